"""Decisions of a dataset as flat tensors in a policy's feature space: what critics, models and judges are fitted on.

Row i is a decision at env step t of some episode (every t, stride 1, or only every `execute`-th): features of the
observation, the chunk that was played, its discounted reward, and the features that it led to.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from robot_rl.algorithms.returns import returns_to_go
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.data.feature_cache import encode_windows
from robot_rl.data.windows import WindowSampler

ACTION = "action"


@dataclass(frozen=True)
class Transitions:
    """B decisions.

    Attributes:
        feature: float32 (B, F), the policy's condition vector at the decision.
        action: float32 (B, D), the first Ta actions, flattened (D = Ta * A), normalised and clipped to [-1, 1]: what a
            critic scores is what is executed. Behind the end of an episode the last action is repeated.
        reward: float32 (B,), sum_j gamma^j r_j over the executed steps.
        discount: float32 (B,), gamma^executed, and 0 where the task terminated.
        next_feature: float32 (B, F), at the next decision; before any auto-reset.
        terminated: bool (B,), the task ended within these steps. A time limit is none.
        return_to_go: float32 (B,), discounted rewards that followed in the data; at a time limit the rest is missing.
        episode: int64 (B,), index of the episode in the sampler's list.
        step: int64 (B,), env step of the decision in its episode; 0 at a start.
        success: bool (B,), whether the decision's episode succeeded at any step (success_once, as recorded).
    """

    feature: Float32[Array, "B F"]
    action: Float32[Array, "B D"]
    reward: Float32[Array, " B"]
    discount: Float32[Array, " B"]
    next_feature: Float32[Array, "B F"]
    terminated: Bool[Array, " B"]
    return_to_go: Float32[Array, " B"]
    episode: Int64[Array, " B"]
    step: Int64[Array, " B"]
    success: Bool[Array, " B"]

    def __len__(self) -> int:
        return int(self.feature.shape[0])

    def rows(self, index: torch.Tensor) -> Transitions:
        """The rows at `index` (positions or a mask)."""
        return Transitions(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def starts(self) -> Float32[Array, "S F"]:
        """Features at the first decision of each episode."""
        return self.feature[self.step == 0]


@torch.no_grad()
def transitions_of(
    sampler: WindowSampler,
    policy: Any,
    *,
    gamma: float,
    batch_size: int = 4096,
    features: tuple[Float32[Array, "S F"], Float32[Array, "S F"]] | None = None,
) -> Transitions:
    """Every window of `sampler` as a decision, in the feature space of `policy` (a DenoisingPolicy).

    Args:
        sampler: its gamma must be `gamma`, its `execute` is the policy's.
        policy: gives `encode`, `normalizer` and `config.execute`.
        gamma: discount per env step.
        batch_size: rows at once.
        features: of every window and of what it led to (feature_cache.py); None: encoded here.
    """
    execute = policy.config.execute
    feature, next_feature = encode_windows(sampler, policy) if features is None else features
    parts: list[dict[str, torch.Tensor]] = []
    plain = sampler.without_observations()  # 4,096 windows of pictures would be gigabytes
    for first in range(0, sampler.num_windows, batch_size):
        window = plain.window(torch.arange(first, min(first + batch_size, sampler.num_windows)))
        assert window.discount is not None
        powers = gamma ** torch.arange(execute, device=window.reward.device, dtype=torch.float32)
        action = policy.normalizer.apply(ACTION, window.actions[:, :execute]).clamp(-1, 1)
        parts.append(
            {
                "action": action.flatten(1),
                "reward": (window.reward[:, :execute] * powers).sum(1),
                "discount": window.discount,
                "terminated": window.discount == 0,
                "step_reward": window.reward[:, 0],
            }
        )
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    step_reward = joined.pop("step_reward")
    lengths = torch.as_tensor(sampler.windows_per_episode, device=step_reward.device)
    episode = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    step = torch.arange(len(episode), device=lengths.device) - (lengths.cumsum(0) - lengths)[episode]
    pieces = torch.split(step_reward, lengths.tolist())
    success = torch.as_tensor(sampler.success_of_episode, device=episode.device)[episode]
    to_go = torch.cat([returns_to_go(piece, gamma=gamma) for piece in pieces])
    return Transitions(
        feature=feature, next_feature=next_feature, **joined, return_to_go=to_go, episode=episode, step=step,
        success=success,
    )  # fmt: skip
