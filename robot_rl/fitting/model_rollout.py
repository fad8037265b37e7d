"""Roll a policy out inside a transition model, in the policy's feature space: what AM-Q and model returns are read from.

All randomness comes in as tensors, so that a candidate and the incumbent start at the same states and meet the same
noise in the same members (P13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from robot_rl.algorithms.dynamics import ModelBounds, ModelOutput, disagreement, model_step
from robot_rl.arrays import Array, Bool, Float32, Int64

Act = Callable[[Any, Any], Any]
"""A policy in feature space: feature (B, F), noise (B, draws, Tp, A) -> action (B, D), normalised, clipped, flat."""


@runtime_checkable
class TransitionModel(Protocol):
    """What a roll-out needs of a model."""

    delta_std: torch.Tensor

    @property
    def bounds(self) -> ModelBounds:
        """Where predictions are cut off."""
        ...

    def __call__(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> ModelOutput:
        """Prediction of every member."""
        ...


@dataclass(frozen=True)
class RolloutNoise:
    """All randomness of S roll-outs of at most H decisions; shared by policies that are compared, and by members.

    Attributes:
        policy: float32 (H, S, draws, Tp, A), standard normal.
        model: float32 (H, S, F), standard normal.
        termination: float32 (H, S), uniform in [0, 1): a task ends where it is below the predicted probability. All
            0.5 makes that a threshold.
    """

    policy: Float32[Array, "H S draws Tp A"]
    model: Float32[Array, "H S F"]
    termination: Float32[Array, "H S"]


def draw_noise(
    *,
    horizon: int,
    starts: int,
    noise_shape: tuple[int, int, int],
    feature_size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> RolloutNoise:
    """Draw a bundle on the generator's device and move it to `device`.

    Args:
        horizon: H.
        starts: S.
        noise_shape: of the policy, (draws, Tp, A).
        feature_size: F.
        generator: the same state gives the same bundle.
        device: where roll-outs happen.
    """
    place = generator.device
    policy = torch.randn(horizon, starts, *noise_shape, generator=generator, device=place)
    model = torch.randn(horizon, starts, feature_size, generator=generator, device=place)
    uniform = torch.rand(horizon, starts, generator=generator, device=place)
    return RolloutNoise(policy.to(device), model.to(device), uniform.to(device))


@dataclass(frozen=True)
class ModelRollout:
    """S roll-outs in each of M members, at most H decisions long. Everything is zero where `alive` is False.

    Attributes:
        feature: float32 (H, M, S, F), what each decision answered to.
        action: float32 (H, M, S, D).
        reward: float32 (H, M, S), expected reward of the decision, given whether it ended the task.
        alive: bool (H, M, S), whether the decision was made: no termination was predicted before it.
        terminated: bool (H, M, S), whether the task ended within the decision.
        disagreement: float32 (H, M, S), of all members of the ensemble at the decision.
    """

    feature: Float32[Array, "H M S F"]
    action: Float32[Array, "H M S D"]
    reward: Float32[Array, "H M S"]
    alive: Bool[Array, "H M S"]
    terminated: Bool[Array, "H M S"]
    disagreement: Float32[Array, "H M S"]

    @property
    def mean_disagreement(self) -> float:
        """Over all decisions that were made."""
        return float(self.disagreement.sum() / self.alive.sum().clamp(min=1))

    @property
    def length(self) -> Float32[Array, "M S"]:
        """Decisions made."""
        return self.alive.sum(0).float()


@torch.no_grad()
def roll_out(
    model: TransitionModel,
    act: Act,
    starts: Float32[Array, "S F"],
    *,
    noise: RolloutNoise,
    members: Int64[Array, " M"],
) -> ModelRollout:
    """Play a policy from S starts in each of the chosen members; a roll-out keeps its member to its end.

    All M x S roll-outs advance together. Each stops where its member predicts termination, which is sampled with the
    uniform numbers of the bundle; rows that ended are not computed any more.

    Args:
        model: a fitted ensemble.
        act: the policy.
        starts: first features.
        noise: the bundle; its first dimension is the horizon.
        members: indices into the ensemble.
    """
    horizon, number, count = len(noise.policy), len(members), len(starts)
    rows, device = number * count, starts.device
    member = members.to(device).repeat_interleave(count)
    start = torch.arange(count, device=device).repeat(number)
    feature, alive = starts[start], torch.ones(rows, dtype=torch.bool, device=device)
    out: dict[str, torch.Tensor] = {}
    for decision in range(horizon):
        index = alive.nonzero().flatten()
        if not len(index):
            break
        own = start[index]
        action = act(feature[index], noise.policy[decision, own])
        output = model(feature[index], action)
        following, reward, ended = model_step(
            output, feature[index], noise=noise.model[decision, own], uniform=noise.termination[decision, own],
            member=member[index], bounds=model.bounds,
        )  # fmt: skip
        made = {
            "feature": feature[index], "action": action, "reward": reward, "terminated": ended,
            "alive": torch.ones_like(ended), "disagreement": disagreement(output.mean, scale=model.delta_std),
        }  # fmt: skip
        for name, value in made.items():
            if name not in out:
                out[name] = value.new_zeros(horizon, rows, *value.shape[1:])
            out[name][decision, index] = value
        feature[index] = following
        alive[index] = ~ended
    return ModelRollout(
        **{name: value.reshape(horizon, number, count, *value.shape[2:]) for name, value in out.items()}
    )


@torch.no_grad()
def rollout_q(q: Callable[[Any, Any], Any], rollout: ModelRollout) -> Float32[Array, "H M S"]:
    """Smallest Q of a critic's ensemble at every decision of a roll-out; zero where none was made.

    Args:
        q: feature (B, F), action (B, D) -> (E, B).
        rollout: of the policy that is judged.
    """
    out = torch.zeros_like(rollout.reward)
    out[rollout.alive] = q(rollout.feature[rollout.alive], rollout.action[rollout.alive]).amin(0)
    return out
