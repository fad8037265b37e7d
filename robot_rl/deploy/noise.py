"""One rule for the noise a policy gets, the same in torch, ONNX and TensorRT, in training-time evaluation and on robots.

fixed:  one tensor, drawn once from the seed, for every decision of every episode (a deterministic controller).
seeded: a fresh tensor per decision from (seed, episode seed, decision index): random between decisions, yet the same
        for an episode however many envs run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from robot_rl.arrays import Array, Float32


class NoiseRule(str, Enum):
    """Where a policy's noise comes from."""

    fixed = "fixed"
    seeded = "seeded"


@dataclass(frozen=True)
class NoiseSource:
    """Draws the noise of a policy.

    Attributes:
        rule: see NoiseRule.
        seed: of the whole source.
        shape: (draws, Tp, A) per env and decision.
    """

    rule: NoiseRule
    seed: int
    shape: tuple[int, int, int]

    def draw(self, episode_seeds: list[int], decisions: list[int]) -> Float32[Array, "N draws Tp A"]:
        """Noise for N envs: env i is in the episode with `episode_seeds[i]` at its decision `decisions[i]`."""
        if self.rule is NoiseRule.fixed:
            one = np.random.default_rng(self.seed).standard_normal(self.shape, dtype=np.float32)
            return np.repeat(one[None], len(episode_seeds), axis=0)
        out = np.empty((len(episode_seeds), *self.shape), dtype=np.float32)
        for row, (episode_seed, decision) in enumerate(zip(episode_seeds, decisions, strict=True)):
            # The sequence must be non-negative; an idle env has seed -1 and its noise is never used.
            rng = np.random.default_rng([self.seed, max(episode_seed, 0), decision])
            out[row] = rng.standard_normal(self.shape, dtype=np.float32)
        return out
