"""What theory says of an RTI start on Gaussian and on two-valued data: the right answers of its tests."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from robot_rl.algorithms.diffusion import Prediction, Sampler, reverse_step, squared_cosine_alpha_bar


def gaussian_contraction(sampler: Sampler, spread: float) -> float:
    """Factor by which the mean of a chain shrinks the distance of two starts, for data N(mu, spread^2) and its exact denoiser.

    Without clip_sample. RTI then is a low-pass on the plan with this pole: near 1 it hardly corrects, near 0 it
    forgets. Both modes of the sampler; design: rpd_rti_onestep.md 2.4 and 7.1.

    Args:
        sampler: levels from the start on.
        spread: standard deviation of the data around the mode, normalised units, above 0.
    """
    free = replace(sampler, prediction=Prediction.sample, clip_sample=None)
    alpha_bar = squared_cosine_alpha_bar(sampler.num_levels)
    slope = torch.ones(1, 1, 1, dtype=torch.float64)
    for step, level in enumerate(sampler.levels):
        ab = float(alpha_bar[level])
        clean = math.sqrt(ab) * spread**2 / (ab * spread**2 + 1 - ab)
        slope, _std = reverse_step(free, slope, clean * slope, step)
    return float(slope)


def keep_odds(alpha_bar: float, *, value: float, guess: float) -> float:
    """Odds that a two-valued element (+-value, equal prior) keeps its sign when `guess` is taken for its latent."""
    return math.exp(2 * math.sqrt(alpha_bar) * value * guess / (1 - alpha_bar))
