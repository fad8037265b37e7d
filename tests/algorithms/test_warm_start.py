"""Warm starts against hand numbers and the closed forms of Gaussian and two-valued data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rti_closed_forms import gaussian_contraction, keep_odds

from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    leading_levels,
    sample_final,
    squared_cosine_alpha_bar,
)
from robot_rl.algorithms.warm_start import (
    StartKind,
    WarmStart,
    measured_contraction,
    remaining_sampler,
    scale_discrete,
    start_latent,
    threshold_discrete,
    watched_frame,
)
from robot_rl.errors import ConfigError, PolicyError

AB = squared_cosine_alpha_bar(100)
DDIM10 = Sampler(levels=leading_levels(100, 10), prediction=Prediction.epsilon)
DDPM = Sampler(
    levels=tuple(range(99, -1, -1)), prediction=Prediction.epsilon, mode=SamplingMode.eta1, final_alpha=FinalAlpha.one
)


def test_discrete_elements_by_hand() -> None:
    guess = torch.tensor([[[0.3, -0.9], [0.3, 0.0], [0.3, 0.2]]])
    torch.testing.assert_close(scale_discrete(guess, (1,), 0.1), torch.tensor([[[0.3, -0.1], [0.3, 0.1], [0.3, 0.1]]]))
    assert threshold_discrete(guess, (1,))[0, :, 1].tolist() == [-1, 1, 1]
    assert torch.equal(scale_discrete(guess, (), 0.1), guess)


def test_start_has_mean_and_spread_of_the_forward_process() -> None:
    guess = torch.full((20_000, 1, 1), 0.7, dtype=torch.float64)
    noise = torch.randn(guess.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # alpha_bar_25 of the design's table.
    ab = 0.83562
    starts = {kind: start_latent(guess, noise, level=25, num_levels=100, kind=kind) for kind in StartKind}
    assert torch.equal(starts[StartKind.clean], guess)
    assert float(starts[StartKind.scaled].mean()) == pytest.approx(0.7 * math.sqrt(ab), abs=1e-5)
    torch.testing.assert_close(
        starts[StartKind.noised], starts[StartKind.scaled] + math.sqrt(1 - ab) * noise, atol=1e-5, rtol=0
    )


def test_remaining_levels() -> None:
    assert remaining_sampler(DDIM10, 21).levels == (21, 11, 1)
    assert remaining_sampler(DDIM10, 25).levels == (21, 11, 1)
    assert remaining_sampler(DDIM10, 25, 3).levels == (25, 13, 1)
    assert remaining_sampler(DDIM10, 25, 1).levels == (25,)
    assert remaining_sampler(DDPM, 3).levels == (3, 2, 1, 0)
    assert remaining_sampler(DDPM, 20, 3).levels == (20, 10, 0)
    assert remaining_sampler(DDPM, 20, 3).mode is SamplingMode.eta1
    assert remaining_sampler(DDIM10, 91) == remaining_sampler(DDIM10, 99, 10) == DDIM10


@pytest.mark.parametrize(("level", "steps"), [(0, None), (0, 1), (3, 4), (60, 11), (95, 3)])
def test_levels_that_do_not_exist_are_refused(level: int, steps: int | None) -> None:
    with pytest.raises(PolicyError, match="rti levels"):
        remaining_sampler(DDIM10, level, steps)


@pytest.mark.parametrize("level", [91, 95])
def test_at_the_noisiest_level_there_are_no_steps_to_choose(level: int) -> None:
    with pytest.raises(PolicyError, match=rf"no rti\.steps with rti\.level={level}.*Leave rti\.steps out"):
        remaining_sampler(DDIM10, level, 3)


@pytest.mark.parametrize(
    ("spread", "factors"),
    [
        (0.02, (0.107, 0.068, 0.035, 0.012, 0.002)),
        (0.05, (0.427, 0.315, 0.184, 0.069, 0.014)),
        (0.1, (0.750, 0.649, 0.475, 0.229, 0.053)),
        (0.3, (0.966, 0.945, 0.895, 0.736, 0.343)),
        (1.0, (0.998, 0.997, 0.994, 0.983, 0.914)),
    ],
)
def test_contraction_of_ddpm_is_the_table(spread: float, factors: tuple[float, ...]) -> None:
    """Design 2.4: squared cosine, T=100, all labels K'..0, landing on alpha_bar = 1."""
    for level, factor in zip((2, 3, 5, 10, 25), factors, strict=True):
        assert gaussian_contraction(remaining_sampler(DDPM, level), spread) == pytest.approx(factor, abs=6e-4)


def test_contraction_of_ddim_is_the_product_of_its_steps() -> None:
    """Design 7.1 item 4: g = (sqrt(ab ab') s^2 + sqrt((1-ab)(1-ab'))) / (ab s^2 + 1 - ab)."""
    spread, product = 0.1, 1.0
    for now, then in ((21, 11), (11, 1), (1, 0)):
        a, b = float(AB[now]), float(AB[then])
        product *= (math.sqrt(a * b) * spread**2 + math.sqrt((1 - a) * (1 - b))) / (a * spread**2 + 1 - a)
    assert gaussian_contraction(remaining_sampler(DDIM10, 21), spread) == pytest.approx(product, abs=1e-12)


@pytest.mark.parametrize("mode", list(SamplingMode))
def test_measured_contraction_of_the_exact_denoiser_is_the_closed_form(mode: SamplingMode) -> None:
    mean, spread = 0.2, 0.1
    sampler = replace(remaining_sampler(DDIM10, 31), mode=mode, clip_sample=None)

    def epsilon(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        ab = AB[level][:, None, None]
        return (1 - ab).sqrt() * (x - ab.sqrt() * mean) / (ab * spread**2 + 1 - ab)

    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(5, sampler.noise_draws, 4, 2, generator=generator, dtype=torch.float64)

    def finish(latent: torch.Tensor) -> torch.Tensor:
        return sample_final(epsilon, torch.cat([latent[:, None], noise[:, 1:]], dim=1), sampler)

    ratio = measured_contraction(finish, noise[:, 0], radius=0.05, generator=generator)
    expected = torch.full((5,), gaussian_contraction(sampler, spread), dtype=torch.float64)
    torch.testing.assert_close(ratio, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("value", "guess", "level", "odds"),
    [
        (1.0, 1.0, 25, math.exp(11)),
        (1.0, 1.0, 40, 76.0),
        (0.1, 0.1, 2, 387.0),
        (0.1, 0.1, 3, 40.0),
        (1.0, 0.1, 25, 3.0),
    ],
)
def test_odds_of_a_gripper_are_the_table(value: float, guess: float, level: int, odds: float) -> None:
    """Design 2.3, printed there to two or three digits (log odds: 11 is 11.12)."""
    assert math.log(keep_odds(float(AB[level]), value=value, guess=guess)) == pytest.approx(math.log(odds), abs=0.15)


@pytest.mark.parametrize(
    "wrong",
    [
        WarmStart(),
        WarmStart(level=3, steps=0),
        WarmStart(level=3, discrete_scale=2.0),
        WarmStart(level=3, max_jump=0.0),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: WarmStart) -> None:
    with pytest.raises(ConfigError, match="rti"):
        wrong.validate()


def test_of_images_and_points_nothing_is_watched() -> None:
    """`rti tune` looks at the same numbers as the policy, which may see pictures beside them."""
    arrays = {
        "proprio": torch.arange(12.0).reshape(2, 2, 3), "image/top": torch.zeros(2, 2, 4, 4, 3, dtype=torch.uint8),
        "points": torch.zeros(2, 2, 5, 3), "state": torch.full((2, 2, 1), 7.0),
    }  # fmt: skip
    halves = {"proprio": 0.5, "state": 2.0}
    frame = watched_frame(arrays, ("proprio", "image/top", "points", "state"), lambda key, value: value * halves[key])
    assert frame.tolist() == [[1.5, 2.0, 2.5, 14.0], [4.5, 5.0, 5.5, 14.0]]
    assert watched_frame(arrays, ("image/top",), lambda key, value: value).tolist() == [[0.0], [0.0]]
