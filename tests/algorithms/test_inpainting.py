"""Guided denoising against closed forms: Gaussian data, whose exact denoiser is known."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    leading_levels,
    sample_final,
    squared_cosine_alpha_bar,
)
from robot_rl.algorithms.inpainting import sample_towards

ALPHA_BAR = squared_cosine_alpha_bar(100)
MEAN = 0.3


def sampler(mode: SamplingMode = SamplingMode.eta0, **changes: object) -> Sampler:
    plain = {
        "levels": leading_levels(100, 10), "num_levels": 100, "prediction": Prediction.sample, "clip_sample": None,
        "final_alpha": FinalAlpha.one, "mode": mode, "sigma_min": 0.01, "sigma_max": 0.8,
    }  # fmt: skip
    return Sampler(**{**plain, **changes})  # type: ignore[arg-type]


def gaussian(covariance: torch.Tensor):
    """Clean sample given a latent, for chunks (B, Tp, 1) of N(MEAN, covariance)."""
    eye = torch.eye(len(covariance), dtype=torch.float64)

    def denoise(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        ab = float(ALPHA_BAR[int(level[0])])
        gain = math.sqrt(ab) * covariance @ torch.linalg.inv(ab * covariance + (1 - ab) * eye)
        return MEAN + ((latent[..., 0] - math.sqrt(ab) * MEAN) @ gain.T)[..., None]

    return denoise


def noise(rows: int, length: int, draws: int = 11) -> torch.Tensor:
    return torch.randn(rows, draws, length, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_known_actions_come_out_and_free_ones_stay() -> None:
    """Independent actions of unit variance: the correction makes x0 the target itself, whatever the level."""
    denoise, draws = gaussian(torch.eye(5, dtype=torch.float64)), noise(7, 5)
    target = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5, 1)
    weight = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64).expand(7, 5)
    plain = sample_final(denoise, draws, sampler())
    got = sample_towards(denoise, draws, sampler(), target=target, weight=weight, most=1e9)
    torch.testing.assert_close(got[:, :2], target[:, :2], rtol=0, atol=1e-9)
    torch.testing.assert_close(got[:, 2:], plain[:, 2:], rtol=0, atol=1e-9)
    half = sample_towards(denoise, draws, sampler(), target=target, weight=0.5 * weight, most=1e9)
    gaps = [float((x[:, :2] - target[:, :2]).abs().mean()) for x in (got, half, plain)]
    assert gaps[0] < 0.1 * gaps[1] < 0.1 * gaps[2]
    assert not got.requires_grad


def test_a_smaller_factor_pulls_less() -> None:
    denoise, draws = gaussian(torch.eye(3, dtype=torch.float64)), noise(50, 3)
    target, weight = torch.full((50, 3, 1), 2.0, dtype=torch.float64), torch.ones(50, 3, dtype=torch.float64)
    gaps = [
        float(
            (sample_towards(denoise, draws, sampler(), target=target, weight=weight, most=most) - target).abs().mean()
        )
        for most in (0.1, 0.5, 1.0)
    ]
    assert gaps[0] > gaps[1] > gaps[2]


def test_free_actions_follow_the_known_one_by_their_correlation() -> None:
    """Neighbours of correlation 0.95: the conditional mean of the free one is MEAN + 0.95 (known - MEAN), 1.43 from MEAN.

    Guidance is an approximation where the data are correlated: it goes most of the way.
    """
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
    rows = 4000
    target = torch.tensor([1.8, 0.0], dtype=torch.float64).expand(rows, 2)[..., None]
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(rows, 2)
    got = sample_towards(gaussian(covariance), noise(rows, 2), sampler(), target=target, weight=weight, most=5.0)
    conditional = MEAN + 0.95 * (1.8 - MEAN)
    assert abs(float(got[:, 0].mean()) - 1.8) < 0.1
    assert abs(float(got[:, 1].mean()) - conditional) < 0.3
    free = sample_final(gaussian(covariance), noise(rows, 2), sampler())
    assert abs(float(free[:, 1].mean()) - MEAN) < 0.05


@pytest.mark.parametrize("mode", list(SamplingMode))
@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("clip", [None, 1.0])
def test_without_pull_it_is_the_sampler_itself(mode: SamplingMode, prediction: Prediction, clip: float | None) -> None:
    """A clamped x0 keeps its noise in the plain sampler and here, as its text says, where nothing is clamped."""
    rule = sampler(mode, prediction=prediction, clip_sample=clip, final_alpha=FinalAlpha.alpha_bar_0)
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 4

    def denoise(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latent[..., 0] @ mix + 0.01 * level[:, None])[..., None]

    draws = 0.1 * noise(3, 4)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    got = sample_towards(denoise, draws, rule, target=zero[..., None], weight=zero, most=5.0)
    torch.testing.assert_close(got, sample_final(denoise, draws, rule), rtol=0, atol=1e-7)
