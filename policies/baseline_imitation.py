"""Behaviour cloning of a teacher and DAgger (Ross et al. 2011), without reward, as learners of `robot-rl baseline`.

The student is that of `refine_teacher` (the same network, first weights and input), the teacher is asked about the same
steps, and an update takes as many minibatches as PPO's, where that does not stop at its KL limit. So what differs from RPD
is the loss, and who plays:

    bc_teacher   the teacher, always (teacher_rollouts=null)
    dagger       the teacher in the first roll-out, then the student's centre (beta_1 = 1, else 0: Ross et al., section 3)

Loss: mean |a_T - m|^2 / A over rows drawn from all that was labelled so far, actions in [-1, 1]. The standard deviation is
the root mean square of what the centre misses (the Gaussian's maximum likelihood), so the stochastic evaluation means
something as well.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robot_rl.arrays import Array, Float32
from robot_rl.contracts import VectorEnv
from robot_rl.data.normalizer import unit_actions
from robot_rl.errors import ConfigError
from robot_rl.types import ActionChunk, Observation

from .acting import ACTION
from .baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy, GaussianHead
from .gaussian_actor_critic import GaussianActorCritic

OnEvaluation = Callable[[int, BaselineMlpPolicy, Mapping[str, float]], None]
# Physical actions (N, A) for an observation with at least the teacher's frames: AskedTeacher.label.
Label = Callable[[Observation], Float32[Array, "N A"]]
LEAST_STD = 1e-3  # a centre that misses nothing must keep a density


@dataclass(frozen=True)
class ImitationConfig:
    """A student that imitates a teacher; fields as those of `algo=gaussian_ppo`, and with its defaults.

    Attributes:
        teacher_rollouts: the first roll-outs, which the teacher plays; null: all of them (behaviour cloning).
        hidden: widths of the hidden layers (tanh).
        learning_rate: of Adam, constant.
        num_steps: env steps of each env between updates.
        batch_size: of a minibatch.
        epochs: passes over as many rows as its roll-out has, each of ceil(rows / batch_size) minibatches, drawn from all rows
            so far.
        history: To, frames that the student sees.
        observation_keys: low-dimensional keys that it sees.
    """

    teacher_rollouts: int | None = 1
    hidden: tuple[int, ...] = (256, 256, 256)
    learning_rate: float = 3e-4
    num_steps: int = 50
    batch_size: int = 256
    epochs: int = 8
    history: int = 1
    observation_keys: tuple[str, ...] = ("state",)


class TeacherImitation:
    """A Learner of `robot-rl baseline` that learns from a teacher, see stages/baseline.py.

    Args:
        config: see ImitationConfig.
        device: of the network.

    Raises:
        ConfigError: a number out of range.
    """

    learns_from = "teacher"

    def __init__(self, config: ImitationConfig, *, device: str = "cpu") -> None:
        least = min(config.num_steps, config.batch_size, config.epochs)
        if least < 1 or (config.teacher_rollouts is not None and config.teacher_rollouts < 0):
            raise ConfigError(
                "algo", expected="num_steps, batch_size and epochs of at least 1, teacher_rollouts of 0 or more, or null",
                got=str(config), hint="Correct them.",
            )  # fmt: skip
        self.config, self.device = config, torch.device(device)

    @property
    def history(self) -> int:
        """To, frames that the student sees; the environment stacks as many as the teacher wants."""
        return self.config.history

    def learn(
        self, env: VectorEnv, *, teacher: Label, num_steps: int, seed: int, first_env_seed: int, evaluate_every: int,
        on_evaluation: OnEvaluation,
    ) -> None:  # fmt: skip
        """Train for `num_steps` env steps of all envs together; ends with the roll-out it is in. See Learner.

        Args:
            env: stacks at least as many frames as student and teacher want.
            teacher: asked about every env at every step.
            num_steps: env steps of all envs together.
            seed: of weights and minibatches.
            first_env_seed: of the training episodes.
            evaluate_every: env steps between evaluations.
            on_evaluation: called with the env steps, the policy, and "distill_loss", "std", "teacher_share" of the update.
        """
        config, generator = self.config, torch.Generator().manual_seed(seed)
        keys = tuple(config.observation_keys)
        mlp = BaselineMlpConfig(
            head=GaussianHead.clipped, hidden=tuple(config.hidden), history=config.history, observation_keys=keys
        )
        policy = BaselineMlpPolicy(mlp, env.spec, unit_actions(env.spec, keys))
        GaussianActorCritic(policy, log_std_init=-0.5, generator=generator)  # draws the weights as refine_teacher's
        policy.to(self.device)
        actor = [parameter for name, parameter in policy.named_parameters() if name != "log_std"]
        optimizer = torch.optim.Adam(actor, lr=config.learning_rate, eps=1e-5)
        on_evaluation(0, policy, {})
        observation = env.reset(itertools.count(first_env_seed))
        feature, wanted = torch.zeros(0, policy.encoder.size), torch.zeros(0, env.spec.action.size)
        played, due = 0, evaluate_every
        for rollout in itertools.count():
            teacher_plays = config.teacher_rollouts is None or rollout < config.teacher_rollouts
            observation, *rows = self._play(policy, env, observation, teacher, teacher_plays=teacher_plays)
            feature, wanted = torch.cat([feature, rows[0]]), torch.cat([wanted, rows[1]])
            played += len(rows[0])
            batches = config.epochs * max(1, math.ceil(len(rows[0]) / config.batch_size))
            numbers = self._fit(policy, optimizer, feature, wanted, batches=batches, generator=generator)
            if played >= due or played >= num_steps:
                due += evaluate_every * (1 + (played - due) // evaluate_every)
                on_evaluation(played, policy, numbers | {"teacher_share": float(teacher_plays)})
            if played >= num_steps:
                return

    def _play(
        self,
        policy: BaselineMlpPolicy,
        env: VectorEnv,
        observation: Observation,
        teacher: Label,
        *,
        teacher_plays: bool,
    ) -> tuple[Any, ...]:
        """A roll-out: the observation behind it, and for every step of every env that played what the student saw (R, C)
        and the teacher's normalised action (R, A)."""
        features, labels = [], []
        for _ in range(self.config.num_steps):
            answer = teacher(observation).to(self.device).clamp(policy.action_low, policy.action_high)
            with torch.no_grad():
                seen = policy.encoder(observation.map(lambda x: x[:, -self.config.history :].to(self.device)))
                centre = policy.physical_action(policy.mean(policy.body(seen))[:, None])[:, 0]
            action = answer if teacher_plays else centre
            result = env.step(ActionChunk(action[:, None].to(env.device), execute=1))
            kept = result.executed.to(self.device) > 0
            features.append(seen[kept])
            labels.append(policy.normalizer.apply(ACTION, answer)[kept])
            observation = result.observation
        return observation, torch.cat(features).cpu(), torch.cat(labels).cpu()

    def _fit(
        self, policy: BaselineMlpPolicy, optimizer: torch.optim.Optimizer, feature: Float32[Array, "R C"],
        wanted: Float32[Array, "R A"], *, batches: int, generator: torch.Generator,
    ) -> dict[str, float]:  # fmt: skip
        """Gradient steps on all rows, in place; "distill_loss" (mean of the minibatches) and "std"."""
        losses = []
        for _ in range(batches):
            rows = torch.randint(len(feature), (self.config.batch_size,), generator=generator)
            centre = policy.mean(policy.body(feature[rows].to(self.device)))
            loss = nn.functional.mse_loss(centre, wanted[rows].to(self.device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        rows = torch.randint(len(feature), (min(len(feature), 4096),), generator=generator)
        with torch.no_grad():
            missed = policy.mean(policy.body(feature[rows].to(self.device))) - wanted[rows].to(self.device)
            policy.log_std.copy_(missed.square().mean(0).sqrt().clamp(min=LEAST_STD).log())
        return {"distill_loss": float(torch.stack(losses).mean()), "std": policy.log_std.detach().exp().mean().item()}
