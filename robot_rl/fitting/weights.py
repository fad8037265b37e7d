"""Which windows weighted imitation draws, and how often: the honest controls beside PPO, from the same advantages.

awr:          exp(A / (temperature * sd)), capped (Peng et al. 2019, arXiv 1910.00177).
success_only: windows of episodes that succeeded (success_once, as recorded).
merged:       all windows alike.
"""

from __future__ import annotations

from enum import Enum

import torch

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.errors import DataError


class Weighting(str, Enum):
    """See the module."""

    awr = "awr"
    success_only = "success_only"
    merged = "merged"


def awr_weights(advantage: Float32[Array, " B"], *, temperature: float, exponent_max: float) -> Float32[Array, " B"]:
    """exp(min(A / (temperature sd(A)), exponent_max)) for every row; all 1 where A does not vary.

    Args:
        advantage: of the recorded chunk.
        temperature: in standard deviations of the advantage; smaller is greedier.
        exponent_max: cap, so that a few rows can't be everything.
    """
    spread = float(advantage.std(unbiased=False))
    if spread < 1e-8:
        return torch.ones_like(advantage)
    return (advantage / (temperature * spread)).clamp(max=exponent_max).exp()


def effective_share(weight: Float32[Array, " B"]) -> float:
    """Effective number of samples over the number of rows, (sum w)^2 / (B sum w^2), in (0, 1]."""
    return float(weight.sum().square() / (len(weight) * weight.square().sum()))


def success_weights(success: Bool[Array, " B"]) -> Float32[Array, " B"]:
    """1 in episodes that succeeded, else 0.

    Raises:
        DataError: none did.
    """
    if not bool(success.any()):
        raise DataError(
            "success-only imitation", expected="an episode that succeeded", got=f"none in {len(success)} windows",
            hint="Collect successes, or leave success_only out of `methods` and set ppo.anchor=0.",
        )  # fmt: skip
    return success.float()


class WeightedRows:
    """Draws row numbers in proportion to their weight, with replacement.

    Args:
        weight: float32 (B,), not negative, not all zero.
    """

    def __init__(self, weight: Float32[Array, " B"]) -> None:
        self._edges = weight.double().cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """int64 (count,) row numbers."""
        uniform = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
        # A draw that rounds up to the last edge belongs to the last row with weight, not behind it.
        position = torch.searchsorted(self._edges, uniform.to(self._edges.device) * self._edges[-1], right=True)
        return position.clamp(max=int(torch.searchsorted(self._edges, self._edges[-1])))
