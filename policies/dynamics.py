"""The transition model of the offline stage: M small networks in one, each with its own weights.

All members run in one batched product; none is looped over. They live in a policy's feature space: condition vector
and normalised chunk in, change of the condition vector out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from robot_rl.algorithms.dynamics import ModelBounds, ModelOutput
from robot_rl.arrays import Array, Float32
from robot_rl.errors import ConfigError

SMALLEST_STD = 1e-3


@dataclass(frozen=True)
class DynamicsConfig:
    """Configuration of the ensemble.

    Attributes:
        num_members: M.
        hidden_width: of every hidden layer.
        num_layers: hidden layers.
        log_std_low, log_std_high: soft bounds of log std, in units of the standard deviation of the changes.
    """

    num_members: int = 5
    hidden_width: int = 256
    num_layers: int = 2
    log_std_low: float = -3.0
    log_std_high: float = 0.5


class MemberLinear(nn.Module):
    """M linear layers side by side: (M, B, in) -> (M, B, out). Initialised as nn.Linear is."""

    def __init__(self, num_members: int, size_in: int, size_out: int) -> None:
        super().__init__()
        limit = size_in**-0.5
        self.weight = nn.Parameter(torch.empty(num_members, size_in, size_out).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(num_members, 1, size_out).uniform_(-limit, limit))

    def forward(self, x: Float32[Array, "M B In"]) -> Float32[Array, "M B Out"]:
        """Apply every member's layer to its rows."""
        return torch.baddbmm(self.bias, x, self.weight)


class DynamicsEnsemble(nn.Module):
    """A TransitionModel (fitting/model.py). Every parameter has M as its first dimension.

    Args:
        config: see DynamicsConfig.
        feature_size: F.
        action_size: D.

    Raises:
        ConfigError: no member, no layer, no width, or bounds in the wrong order.
    """

    delta_mean: torch.Tensor
    delta_std: torch.Tensor
    feature_low: torch.Tensor
    feature_high: torch.Tensor
    reward_low: torch.Tensor
    reward_high: torch.Tensor

    def __init__(self, config: DynamicsConfig, *, feature_size: int, action_size: int) -> None:
        super().__init__()
        _check(config)
        self.config = config
        sizes = (feature_size + action_size, *(config.hidden_width,) * config.num_layers)
        self.hidden = nn.ModuleList(MemberLinear(config.num_members, a, b) for a, b in pairwise(sizes))
        self.leave = MemberLinear(config.num_members, config.hidden_width, 2 * feature_size + 3)
        self.feature_size = feature_size
        self.register_buffer("delta_mean", torch.zeros(feature_size))
        self.register_buffer("delta_std", torch.ones(feature_size))
        self.register_buffer("feature_low", torch.full((feature_size,), -torch.inf))
        self.register_buffer("feature_high", torch.full((feature_size,), torch.inf))
        self.register_buffer("reward_low", torch.full((2,), -torch.inf))
        self.register_buffer("reward_high", torch.full((2,), torch.inf))

    @property
    def num_members(self) -> int:
        """M."""
        return self.config.num_members

    @property
    def bounds(self) -> ModelBounds:
        """Where predictions are cut off; infinite before `set_data`."""
        return ModelBounds(self.feature_low, self.feature_high, self.reward_low, self.reward_high)

    def set_data(self, delta: Float32[Array, "B F"], bounds: ModelBounds) -> None:
        """Take the scale of the changes and the bounds from the training data; both are saved with the weights."""
        self.delta_mean.copy_(delta.mean(0))
        self.delta_std.copy_(delta.std(0, unbiased=False).clamp(min=SMALLEST_STD))
        self.feature_low.copy_(bounds.feature_low)
        self.feature_high.copy_(bounds.feature_high)
        self.reward_low.copy_(bounds.reward_low)
        self.reward_high.copy_(bounds.reward_high)

    def forward(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> ModelOutput:
        """Prediction of every member for every row, in the units of the data."""
        x = torch.cat([feature, action], dim=1).expand(self.num_members, -1, -1)
        for layer in self.hidden:
            x = functional.silu(layer(x))
        out = self.leave(x)
        size = self.feature_size
        low, high = self.config.log_std_low, self.config.log_std_high
        log_std = high - functional.softplus(high - out[..., size : 2 * size])
        log_std = low + functional.softplus(log_std - low)
        return ModelOutput(
            mean=self.delta_mean + self.delta_std * out[..., :size],
            log_std=log_std + self.delta_std.log(),
            reward=out[..., 2 * size],
            end_reward=out[..., 2 * size + 1],
            termination_logit=out[..., 2 * size + 2],
        )


def _check(config: DynamicsConfig) -> None:
    if min(config.num_members, config.hidden_width, config.num_layers) < 1 or config.log_std_low >= config.log_std_high:
        raise ConfigError(
            "transition model", expected="at least one member, layer and unit, and log_std_low < log_std_high",
            got=str(config), hint="configs/dynamics/ensemble.yaml holds the defaults.",
        )  # fmt: skip
