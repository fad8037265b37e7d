"""The denoising student of `robot-rl refine_teacher`: PPO over the denoising steps with a teacher term on the denoising loss.

A diffusion policy has no density of an action in closed form, so the term is its own training loss on the teacher's action
at the student's states: the forward cross-entropy of DAgger and DistIL up to a constant (Ho et al. 2020, eq. 14). PPO, V
and the check of the step are those of `robot-rl online` (fitting/online_update.py). One decision is one action, for a
teacher says what to do now. What the student sees, images and points too, is the affair of its policy's encoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.guidance import Guidance, GuidanceConfig, pace_at
from robot_rl.algorithms.guidance_labels import GuidanceLabels, TeacherTraces
from robot_rl.contracts import VectorEnv, check_is_diffusion
from robot_rl.data.normalizer import unit_actions
from robot_rl.errors import PolicyError
from robot_rl.fitting.denoising_ppo import latents_from
from robot_rl.fitting.guided_term import DenoisingRollout, TeacherTerm, by_env
from robot_rl.fitting.on_policy import OnPolicyBatch
from robot_rl.fitting.online_update import (
    SHRINK,
    Learner,
    OnlinePpoConfig,
    UpdateConfig,
    ValueConfig,
    improve,
    let_encoder_learn,
    numbers_to_log,
)
from robot_rl.runs.adopted import require_trained_here
from robot_rl.runs.checkpoint import flatten_optimizer, load_policy, restore_optimizer
from robot_rl.runs.config import build
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

OPTIONS = frozenset({Guidance.rpd, Guidance.annealed, Guidance.gated, Guidance.kepo, Guidance.distil})


@dataclass(frozen=True)
class GuidedDenoisingConfig:
    """A denoising student and how it learns.

    Attributes:
        policy: component of a diffusion policy with horizon 1; its weights are drawn anew.
        start: run or checkpoint of such a policy to go on from instead, e.g. one that imitates; empty: `policy`.
        critic: component; its V is used.
        num_steps: env steps of each env between updates.
        gamma, trace: discount per env step, lambda of GAE.
        ppo: of the policy; `anchor` is the teacher term's weight and comes from guidance.weight.
        value: of V.
        final_kl_stop: where ppo.kl_stop goes as the teacher's weight goes to 0, if guidance.final_kl_stop says that it goes
            anywhere: that number is of the Gaussian's KL, this one of the sum over the denoising steps.
        max_kl: nats a decision; an update that ends beyond it is undone, and the learning rate halved.
        sigma_min: noise floor of every denoising step while it learns: how it explores.
        train_encoder: an encoder with weights learns as well.
    """

    policy: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    critic: dict[str, Any] = field(default_factory=dict)
    num_steps: int = 50
    gamma: float = 0.8
    trace: float = 0.9
    ppo: OnlinePpoConfig = field(default_factory=lambda: OnlinePpoConfig(learning_rate=3e-4, batch_size=256))
    value: ValueConfig = field(default_factory=ValueConfig)
    final_kl_stop: float = 0.3
    max_kl: float = 5.0
    sigma_min: float = 0.1
    train_encoder: bool = True


class GuidedDenoising:
    """A Student of `robot-rl refine_teacher`, see fitting/refinement.py.

    Args:
        config: see GuidedDenoisingConfig.
        spec: of the environment.
        device: of the networks.
        seed: of weights, exploration and the order of minibatches.

    Raises:
        PolicyError: no diffusion policy with horizon 1, one of another environment, or pretrained weights that do not fit.
    """

    options = OPTIONS

    def __init__(self, config: GuidedDenoisingConfig, *, spec: EnvSpec, device: str, seed: int) -> None:
        self.config = config
        torch.manual_seed(seed)
        begun = _policy(config, spec).to(device).eval()
        self._deployed = begun.config.mode, begun.config.sigma_min
        policy = begun.with_mode(SamplingMode.eta1, sigma_min=config.sigma_min)
        let_encoder_learn(policy.encoder, config.train_encoder)
        self._encoder_learns = any(parameter.requires_grad for parameter in policy.encoder.parameters())
        critic = build(config.critic, feature_size=policy.encoder.size, action_size=spec.action.size).to(device)
        weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self.learner = Learner(
            policy, critic, torch.optim.Adam(weights, lr=config.ppo.learning_rate, eps=1e-5),
            torch.optim.Adam(critic.parameters(), lr=config.value.learning_rate, eps=1e-5),
            torch.Generator(device=device).manual_seed(seed),
        )  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self._shrunk = 1.0

    @property
    def policy(self) -> Any:
        """What it has learned so far, in mode eta1."""
        return self.learner.policy

    @property
    def deployed(self) -> Any:
        """The policy as it is saved: in the mode and with the noise floor of `policy` or `start`, not those it explores with."""
        mode, sigma_min = self._deployed
        return self.policy.with_mode(mode, sigma_min=sigma_min)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the policy."""
        return self.learner.optimizer

    @property
    def history(self) -> int:
        """To, frames that it sees."""
        found: int = self.policy.config.history
        return found

    def rollouts(self, env: VectorEnv, seeds: Iterable[int]) -> Iterator[DenoisingRollout]:
        """Endless roll-outs with the policy as it is then; the envs are reset before the first."""
        observation = env.reset(seeds)
        while True:
            rows = []
            for _ in range(self.config.num_steps):
                observation, row = self._step(env, observation)
                rows.append(row)
            yield _joined(rows)

    @torch.no_grad()
    def _step(self, env: VectorEnv, observation: Observation) -> tuple[Observation, tuple[Any, ...]]:
        policy = self.policy
        seen = observation.map(lambda array: array.to(policy.device))
        feature = policy.encode(seen)
        noise = torch.randn(len(feature), *policy.noise_shape, generator=self.generator).to(policy.device)
        latents = latents_from(policy, feature, noise)
        physical = policy.physical_action(latents[:, -1]).to(env.device)
        result = env.step(ActionChunk(actions=physical, execute=1))
        behind = policy.encode(result.final_observation.map(lambda array: array.to(policy.device)))
        told = (result.rewards[:, 0], result.executed, result.terminated, result.truncated)
        row = (feature, behind, latents, *(each.to(policy.device) for each in told), seen.arrays())
        return result.observation, row

    def learn(
        self, batch: DenoisingRollout, labels: GuidanceLabels | None, *, guidance: GuidanceConfig, env_steps: int,
        traces: TeacherTraces | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """One update, in place.

        Args:
            batch: what this policy played last.
            labels: of the same steps; None: no teacher term.
            guidance: of the term, and where learning rate and KL limit go with its weight.
            env_steps: at the start of the batch, for the weight.
            traces: not used by the options that it has.

        Returns:
            "kl", "clip_share", "value_loss", "minibatches" and "learning_rate" of PPO, "undone", and with a term "distill_loss",
            "gate" (share of asked rows that counted) and "helps" (option gated).

        Raises:
            RunError: a loss that is no number.
        """
        config = self.config
        pace = pace_at(
            guidance, env_steps, learning_rate=config.ppo.learning_rate, kl_stop=config.ppo.kl_stop,
            final_kl_stop=None if guidance.final_kl_stop is None else config.final_kl_stop,
        )  # fmt: skip
        rate = self._shrunk * pace.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        ppo = replace(config.ppo, anchor=0.0, kl_stop=pace.kl_stop)
        update = UpdateConfig(config.gamma, config.trace, ppo, config.value, config.max_kl, self._encoder_learns)
        term = None
        if labels is not None and pace.weight > 0:
            term = TeacherTerm(self.learner, batch, labels, guidance, update=update)
            update = replace(update, ppo=replace(ppo, anchor=pace.weight if term.is_on else 0.0))
        found = improve(self.learner, batch.decisions, config=update, anchor=term)
        self._shrunk *= SHRINK if found.get("undone") else 1.0
        logged = numbers_to_log(found)
        numbers: dict[str, float] = {
            "value_loss": logged["value_loss"], "clip_share": logged["clip_share"], "kl": logged["kl_nats"],
            "minibatches": logged["gradient_steps"], "undone": logged["undone"], "learning_rate": rate,
        }  # fmt: skip
        return numbers | ({} if term is None else term.numbers())

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """All that the next update depends on, but for the policy's optimiser (the stage saves that)."""
        random = {"generator": self.generator.get_state(), "learner": self.learner.generator.get_state()}
        return {
            "policy": self.policy.state_dict(),
            "critic": self.learner.critic.state_dict(),
            "value_optimizer": flatten_optimizer(self.learner.value_optimizer),
            "random": random | {"shrunk": torch.tensor(self._shrunk, dtype=torch.float64)},
        }

    def restore(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Go on where `tensors` were taken."""
        self.policy.load_state_dict(dict(tensors["policy"]))
        self.learner.critic.load_state_dict(dict(tensors["critic"]))
        restore_optimizer(self.learner.value_optimizer, tensors["value_optimizer"])
        self.generator.set_state(tensors["random"]["generator"].cpu())
        self.learner.generator.set_state(tensors["random"]["learner"].cpu())
        self._shrunk = float(tensors["random"]["shrunk"])


def _joined(rows: list[tuple[Any, ...]]) -> DenoisingRollout:
    *columns, seen = zip(*rows, strict=True)
    feature, behind, latents, reward, executed, terminated, truncated = (torch.stack(column) for column in columns)
    steps, envs = executed.shape
    decisions = OnPolicyBatch(
        feature=by_env(feature), latents=by_env(latents), reward=by_env(reward), executed=by_env(executed),
        terminated=by_env(terminated), truncated=by_env(truncated), next_feature=by_env(behind),
        human=torch.zeros(steps * envs, dtype=torch.bool, device=feature.device),
        episode=torch.arange(envs, device=feature.device).repeat_interleave(steps),
        observation=Observation.from_arrays({key: by_env(torch.stack([each[key] for each in seen])) for key in seen[0]}),
    )  # fmt: skip
    return DenoisingRollout(decisions, executed, reward)


def _policy(config: GuidedDenoisingConfig, spec: EnvSpec) -> Any:
    """The policy to begin with, checked."""
    if config.start:
        policy, found, saved = load_policy(config.start)
        require_trained_here(saved, where=config.start)
        if found != spec:
            raise PolicyError(
                config.start, expected=f"a policy of {spec.env_id} as it is configured here", got=found.env_id,
                hint="Give env=... as that policy was trained.",
            )  # fmt: skip
        where = config.start
    else:
        keys = tuple(config.policy.get("observation_keys", ()))
        policy, where = build(config.policy, spec=spec, normalizer=unit_actions(spec, keys)), "student.policy"
    check_is_diffusion(policy, where, hint="Choose policy@student.policy=mlp_single, or a run of imitate with it.")
    if policy.config.horizon != 1:
        raise PolicyError(
            where, expected="horizon 1: a teacher says what to do now, not a chunk", got=f"horizon {policy.config.horizon}",
            hint="policy=mlp_single has it.",
        )  # fmt: skip
    if not config.start and hasattr(policy, "load_pretrained"):
        policy.load_pretrained()
    return policy
