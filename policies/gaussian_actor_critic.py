"""Actor and critic of our Gaussian PPO (baseline_gaussian.py): the first weights, and densities of unclipped actions."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from robot_rl.arrays import Array, Float32

from .baseline_mlp import ACTIVATIONS, BaselineMlpPolicy


class GaussianActorCritic(nn.Module):
    """A `BaselineMlpPolicy` that learns, and a critic on the same input.

    Args:
        policy: of head `clipped`; its weights are drawn anew.
        log_std_init: of its Gaussian.
        generator: of both networks' weights, CPU.
    """

    def __init__(self, policy: BaselineMlpPolicy, *, log_std_init: float, generator: torch.Generator) -> None:
        super().__init__()
        self.policy = policy
        widths = (policy.encoder.size, *policy.config.hidden)
        layers = [(nn.Linear(a, b), ACTIVATIONS["tanh"]()) for a, b in itertools.pairwise(widths)]
        self.value = nn.Sequential(*itertools.chain(*layers), nn.Linear(widths[-1], 1))
        for network in (policy.body, self.value):
            for layer in network:
                if isinstance(layer, nn.Linear):
                    _orthogonal(layer, math.sqrt(2), generator)
        _orthogonal(policy.mean, 0.01 * math.sqrt(2), generator)
        nn.init.constant_(policy.log_std, log_std_init)

    def log_prob(self, feature: Float32[Array, "B C"], action: Float32[Array, "B A"]) -> Float32[Array, " B"]:
        """Log-density of unclipped normalised actions."""
        mean = self.policy.mean(self.policy.body(feature))
        return self._density((action - mean) / self.policy.log_std.exp())

    def sample(
        self, feature: Float32[Array, "B C"], noise: Float32[Array, "B A"]
    ) -> tuple[Float32[Array, "B A"], Float32[Array, " B"]]:
        """Unclipped normalised actions that standard normal noise draws, and their log-density."""
        mean = self.policy.mean(self.policy.body(feature))
        return mean + self.policy.log_std.exp() * noise, self._density(noise)

    def _density(self, scaled: Float32[Array, "B A"]) -> Float32[Array, " B"]:
        """Log-density of actions by their distance to the mean, in standard deviations."""
        out: torch.Tensor = (-0.5 * scaled.square() - self.policy.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return out


def _orthogonal(layer: nn.Linear, gain: float, generator: torch.Generator) -> None:
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
