"""The teacher term of a denoising student: its own denoising loss on what the teacher said, where an option lets it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from robot_rl.algorithms.guidance import Guidance, GuidanceConfig, helps
from robot_rl.algorithms.guidance_labels import GuidanceLabels, segment_returns
from robot_rl.algorithms.ppo import scale_advantage
from robot_rl.arrays import Array, Float32, Int64
from robot_rl.fitting.on_policy import OnPolicyBatch, advantages
from robot_rl.fitting.online_update import Learner, UpdateConfig, values_of
from robot_rl.types import Source, Window


@dataclass(frozen=True)
class DenoisingRollout:
    """What was played between two updates.

    Attributes:
        decisions: of N envs, T of each, env after env; `episode` is the number of the env.
        executed: int64 (T, N).
        reward: float32 (T, N).
    """

    decisions: OnPolicyBatch
    executed: Int64[Array, "T N"]
    reward: Float32[Array, "T N"]


class TeacherTerm:
    """The teacher term of one update, unweighted: PPO's minibatches call it as their anchor.

    Args:
        learner: whose policy played `rollout`.
        rollout: what was played.
        labels: of the same steps.
        guidance: which rows count.
        update: of PPO.

    Attributes:
        is_on: whether any row counts.
    """

    def __init__(
        self, learner: Learner, rollout: DenoisingRollout, labels: GuidanceLabels, guidance: GuidanceConfig, *,
        update: UpdateConfig,
    ) -> None:  # fmt: skip
        self._learner, self._rollout, self._batch, self._update = learner, rollout, rollout.decisions, update
        device = self._batch.feature.device
        policy = learner.policy
        # What the environment would have played of it: a student that followed it further would leave the normaliser's range.
        self._teacher = by_env(labels.teacher[:, 0].to(device)).clamp(policy.action_low, policy.action_high)
        asked = by_env(labels.asked[:, 0].to(device))
        self._losses: list[float] = []
        self._helps: dict[str, float] = {}
        is_open = asked & self._gate(guidance, asked)
        self._rows = is_open.nonzero().flatten()
        self._share = float(is_open.sum()) / max(float(asked.sum()), 1.0)
        self.is_on = len(self._rows) > 0 and self._helps.get("helps") != 0.0

    def __call__(self, policy: Any, generator: torch.Generator) -> torch.Tensor:
        """Denoising loss on the teacher's actions at drawn open rows, times the share of open ones among the asked."""
        place = generator.device
        drawn = torch.randint(len(self._rows), (self._update.ppo.batch_size,), generator=generator, device=place)
        rows = self._rows[drawn.to(self._rows.device)]
        window = Window(
            observation=self._batch.observation.map(lambda array: array[rows]), actions=self._teacher[rows, None],
            valid=torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device),
            reward=torch.zeros(len(rows), 1, device=rows.device), next_observation=None, discount=None,
            source=torch.full((len(rows),), int(Source.policy), dtype=torch.uint8, device=rows.device),
        )  # fmt: skip
        known = None if self._update.train_encoder else self._batch.feature[rows]
        loss: torch.Tensor = policy.loss(window, generator, condition=known)[0] * self._share
        self._losses.append(float(loss.detach()))
        return loss

    def numbers(self) -> dict[str, float]:
        """Mean loss of the minibatches so far, and the gates."""
        numbers = self._helps | {"gate": self._share}
        return numbers | ({"distill_loss": sum(self._losses) / len(self._losses)} if self._losses else {})

    @torch.no_grad()
    def _gate(self, guidance: GuidanceConfig, asked: torch.Tensor) -> torch.Tensor:
        """Rows that count, of those that were asked, (B,)."""
        every = torch.ones_like(asked)
        if guidance.option not in (Guidance.gated, Guidance.kepo):
            return every
        batch, config, critic = self._batch, self._update, self._learner.critic
        now, behind = values_of(critic, batch.feature), values_of(critic, batch.next_feature)
        if guidance.option is Guidance.kepo:
            # Whole returns: those of GAE's trace rest on V after a few steps, and would rank trajectories by it.
            _, returns = advantages(batch, now, behind, gamma=config.gamma, trace=1.0)
            envs = self._rollout.executed.shape[1]
            ended = (batch.terminated | batch.truncated).view(envs, -1).T
            segments = by_env(segment_returns(returns.view(envs, -1).T, ended))
            good: torch.Tensor = segments >= float(segments.quantile(guidance.quantile))
            return good
        advantage, _ = advantages(batch, now, behind, gamma=config.gamma, trace=config.trace)
        policy, scaled = self._learner.policy, scale_advantage(advantage, rule=config.ppo.advantage)
        gain = teacher_slope(policy, batch, policy.normalizer.apply("action", self._teacher), scaled)
        self._helps = {"helps": float(helps(gain[asked], z=guidance.gate_z))}
        return gain > 0


def teacher_slope(
    policy: Any, batch: OnPolicyBatch, teacher: Float32[Array, "B A"], advantage: Float32[Array, " B"]
) -> torch.Tensor:
    """A <d log p / d m, a_T - m>, (B,): `guidance.teacher_gain` of the last denoising step.

    That step is a Gaussian about m, given the latent before it, and draws the action that is played.

    Args:
        policy: that played `batch`, in mode eta1.
        batch: of horizon 1.
        teacher: its actions, normalised.
        advantage: as the ratio loss has it.
    """
    with torch.no_grad():
        mean, std = policy.reverse_step(batch.latents[:, -2], policy.sampler.num_steps - 1, batch.feature)
    score = (batch.latents[:, -1] - mean)[:, 0] / std**2
    out: torch.Tensor = advantage * (score * (teacher - mean[:, 0])).sum(-1)
    return out


def by_env(array: torch.Tensor) -> torch.Tensor:
    """(T, N, ...) to rows, env after env."""
    return array.transpose(0, 1).flatten(0, 1)
