"""Guided denoising towards a part of the chunk that is known: what real-time chunking needs of a diffusion sampler.

Source: pseudo-inverse guidance (PiGDM, Song et al., ICLR 2023) as real-time chunking uses it (arXiv 2506.07339), written for
a variance-preserving chain: with r^2 = 1 - alpha_bar the corrected clean sample is
x0 + (dx0/dx)^T W (Y - x0) / sqrt(alpha_bar), which is Y itself where W = 1 and the data have unit variance.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from robot_rl.algorithms.diffusion import (
    Denoise,
    Prediction,
    Sampler,
    predict_x0_epsilon,
    reverse_step,
    step_coefficients,
)
from robot_rl.arrays import Array, Float


def sample_towards(
    denoise: Denoise,
    noise: Float[Array, "B draws Tp A"],
    sampler: Sampler,
    *,
    target: Float[Array, "B Tp A"],
    weight: Float[Array, "B Tp"],
    most: float,
) -> Float[Array, "B Tp A"]:
    """The last latent of a chain that is pulled to `target`; without pull the numbers of `sample_final` up to rounding.

    Costs a backward pass through the network at every step. Not inside torch.inference_mode.

    Args:
        denoise: network with its condition bound.
        noise: as sample_final takes it.
        sampler: of the policy, any mode.
        target: Y, normalised.
        weight: W, 0 (free) to 1.
        most: largest factor of the correction, in place of 1 / sqrt(alpha_bar) where that is larger.
    """
    rule = replace(sampler, prediction=Prediction.sample)
    latent = noise[:, 0]
    for step, row in enumerate(step_coefficients(sampler)):
        level = torch.full((len(latent),), sampler.levels[step], dtype=torch.int64, device=latent.device)
        with torch.enable_grad():
            point = latent.detach().requires_grad_(True)
            x0, _epsilon = predict_x0_epsilon(row, point, denoise(point, level), prediction=sampler.prediction)
            clean = x0.detach()
            if sampler.clip_sample is not None:
                clean = clean.clamp(-sampler.clip_sample, sampler.clip_sample)
            error = (target - clean) * weight[:, :, None]
            (pull,) = torch.autograd.grad(x0, point, grad_outputs=error)
        guided = x0.detach() + min(most, 1 / row.signal) * pull
        mean, std = reverse_step(rule, latent, guided, step)
        latent = mean + std * noise[:, step + 1] if std > 0 else mean
    return latent
