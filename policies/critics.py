"""Critics of IQL (Kostrikov, Nair, Levine 2022): an ensemble of Q and one V, MLPs on a policy's feature space.

Every member of the ensemble is a slice of one batched weight, so that two or ten cost one call each. Hidden layers are
linear, LayerNorm (it bounds how fast Q grows off the data: Ball et al. 2023, arXiv 2302.02948), SiLU. The last layer
starts near zero: an untrained V must not be bootstrapped from as if it knew something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float32
from robot_rl.errors import PolicyError

LAST_LAYER_SCALE = 0.01


@dataclass(frozen=True)
class CriticConfig:
    """Which networks.

    Attributes:
        hidden_width: H, width of every hidden layer.
        num_layers: hidden layers.
        num_q: E, members of the Q ensemble; the smallest of them counts.
        layer_norm: whether every hidden layer is normalised.
    """

    hidden_width: int = 256
    num_layers: int = 2
    num_q: int = 2
    layer_norm: bool = True


class _StackedLinear(nn.Module):
    """A linear layer for each of E members: (E, B, In) to (E, B, Out), drawn as nn.Linear draws, times `scale`."""

    def __init__(self, members: int, size_in: int, size_out: int, *, scale: float = 1.0) -> None:
        super().__init__()
        bound = scale / math.sqrt(size_in)
        self.weight = nn.Parameter(torch.empty(members, size_in, size_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, size_out).uniform_(-bound, bound))

    def forward(self, x: Float32[Array, "E B In"]) -> Float32[Array, "E B Out"]:
        return torch.baddbmm(self.bias, x, self.weight)


class _StackedNorm(nn.Module):
    """LayerNorm with a scale and a shift for each member."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Float32[Array, "E B H"]) -> Float32[Array, "E B H"]:
        return torch.addcmul(self.shift, functional.layer_norm(x, x.shape[-1:]), self.scale)


class _StackedMlp(nn.Module):
    """E independent MLPs on one input, each with one number out."""

    def __init__(self, config: CriticConfig, *, members: int, size_in: int) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        for size in (size_in, *[config.hidden_width] * (config.num_layers - 1)):
            layers.append(_StackedLinear(members, size, config.hidden_width))
            if config.layer_norm:
                layers.append(_StackedNorm(members, config.hidden_width))
            layers.append(nn.SiLU())
        self.body = nn.Sequential(*layers)
        self.head = _StackedLinear(members, config.hidden_width, 1, scale=LAST_LAYER_SCALE)

    def hidden(self, x: Float32[Array, "B In"]) -> Float32[Array, "E B H"]:
        out: torch.Tensor = self.body(x.expand(self.members, *x.shape))
        return out

    def forward(self, x: Float32[Array, "B In"]) -> Float32[Array, "E B"]:
        out: torch.Tensor = self.head(self.hidden(x)).squeeze(-1)
        return out


class Critic(nn.Module):
    """Q ensemble and V, separate networks.

    Args:
        config: widths and counts.
        feature_size: F, of the policy's condition vector.
        action_size: D, of the flattened executed chunk, normalised.

    Raises:
        PolicyError: a count that is not positive.
    """

    def __init__(self, config: CriticConfig, *, feature_size: int, action_size: int) -> None:
        super().__init__()
        for name in ("hidden_width", "num_layers", "num_q"):
            if getattr(config, name) < 1:
                raise PolicyError(
                    f"critic.{name}", expected="at least 1", got=str(getattr(config, name)), hint="See configs/critic."
                )
        self.config = config
        self.q_network = _StackedMlp(config, members=config.num_q, size_in=feature_size + action_size)
        self.v_network = _StackedMlp(config, members=1, size_in=feature_size)

    def q(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> Float32[Array, "E B"]:
        """Q of every member."""
        out: torch.Tensor = self.q_network(torch.cat([feature, action], dim=1))
        return out

    def value(self, feature: Float32[Array, "B F"]) -> Float32[Array, " B"]:
        """V."""
        out: torch.Tensor = self.v_network(feature)[0]
        return out

    def features(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> Float32[Array, "B H"]:
        """Last hidden layer of Q's first member: what a least-squares evaluation is linear in (algorithms/fqe.py)."""
        return self.q_network.hidden(torch.cat([feature, action], dim=1))[0]


def build_critic(config: CriticConfig, *, feature_size: int, action_size: int) -> Critic:
    """A fresh critic; its weights come from torch's global generator (seed it before: two judges must differ).

    Raises:
        PolicyError: as Critic.
    """
    return Critic(config, feature_size=feature_size, action_size=action_size)
