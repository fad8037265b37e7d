"""The sampler against hand numbers, closed forms for Gaussian data, and diffusers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    add_noise,
    leading_levels,
    linspace_levels,
    predict_x0_epsilon,
    prediction_target,
    reverse_step,
    sample_chain,
    sample_final,
    squared_cosine_alpha_bar,
    step_coefficients,
    step_log_prob,
)
from robot_rl.errors import PolicyError

LEVELS = leading_levels(100, 10)
FREE = Sampler(levels=LEVELS, prediction=Prediction.epsilon, clip_sample=None)
# level: alpha_bar, sigma (eta 1), d mean / d latent, d mean / d output
TABLE = {
    91: (0.015464, 0.865243, 2.22637, -1.79112),
    81: (0.076650, 0.712639, 1.52660, -0.90701),
    71: (0.178634, 0.598022, 1.32072, -0.62182),
    61: (0.311590, 0.504877, 1.21860, -0.47967),
    51: (0.462707, 0.422407, 1.15515, -0.39490),
    41: (0.617425, 0.343270, 1.11008, -0.33829),
    31: (0.760836, 0.260776, 1.07493, -0.29575),
    21: (0.879122, 0.165933, 1.04547, -0.25588),
    11: (0.960887, 0.040894, 1.01926, -0.19291),
    1: (0.998252, 0.020087, 1.00056, -0.02673),
}
# abs(d mean / d output) over the std really added when sigma_max is 0.1
SENSITIVITY_AT_MAX_0_1 = (17.91, 9.07, 6.22, 4.80, 3.95, 3.38, 2.96, 2.56, 4.72, 1.33)


def exact_epsilon(latent: torch.Tensor, alpha_bar: float, m: float, s: float) -> torch.Tensor:
    """Best noise prediction for data N(m, s^2)."""
    return math.sqrt(1 - alpha_bar) * (latent - math.sqrt(alpha_bar) * m) / (alpha_bar * s**2 + 1 - alpha_bar)


def exact_x0(latent: torch.Tensor, alpha_bar: float, m: float, s: float) -> torch.Tensor:
    """Best clean prediction for data N(m, s^2)."""
    root = math.sqrt(alpha_bar)
    return m + root * s**2 * (latent - root * m) / (alpha_bar * s**2 + 1 - alpha_bar)


def exact_output(sampler: Sampler, latent: torch.Tensor, step: int, m: float, s: float) -> torch.Tensor:
    alpha_bar = float(squared_cosine_alpha_bar(sampler.num_levels)[sampler.levels[step]])
    epsilon, x0 = exact_epsilon(latent, alpha_bar, m, s), exact_x0(latent, alpha_bar, m, s)
    v = math.sqrt(alpha_bar) * epsilon - math.sqrt(1 - alpha_bar) * x0
    return {Prediction.epsilon: epsilon, Prediction.sample: x0, Prediction.v: v}[sampler.prediction]


def output_moments(sampler: Sampler, m: float, s: float) -> tuple[float, float]:
    """Exact mean and std of the sampler's output from N(0, 1): every step is affine, so probe it at 0 and 1."""
    mean, variance = 0.0, 1.0
    for step in range(sampler.num_steps):
        probe = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
        out, std = reverse_step(sampler, probe, exact_output(sampler, probe, step, m, s), step)
        intercept, slope = float(out[0]), float(out[1] - out[0])
        mean, variance = slope * mean + intercept, slope**2 * variance + std**2
    return mean, math.sqrt(variance)


def test_schedule_has_the_known_values() -> None:
    schedule = squared_cosine_alpha_bar(100)
    assert tuple(TABLE) == LEVELS
    assert schedule.dtype == torch.float64
    for level, (alpha_bar, *_) in TABLE.items():
        assert float(schedule[level]) == pytest.approx(alpha_bar, abs=5e-7)
    assert float(schedule[0]) == pytest.approx(0.999369, abs=5e-7)
    assert float(schedule[99]) == pytest.approx(2.43e-7, abs=5e-10)
    assert float(schedule[50]) == pytest.approx(0.478265, abs=5e-7)


@pytest.mark.parametrize("num_levels", [20, 100, 1000])
def test_schedule_equals_diffusers(num_levels: int) -> None:
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    theirs = scheduling.DDIMScheduler(num_train_timesteps=num_levels, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(
        squared_cosine_alpha_bar(num_levels), theirs.alphas_cumprod.double(), atol=1e-6, rtol=0.0
    )


def test_coefficients_have_the_known_values() -> None:
    sampler = replace(FREE, mode=SamplingMode.eta1)
    for step, (level, (_, sigma, cx, ce)) in enumerate(TABLE.items()):
        row = step_coefficients(sampler)[step]
        latent = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
        output = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
        by_latent, by_output = torch.autograd.grad(
            reverse_step(sampler, latent, output, step)[0].sum(), [latent, output]
        )
        assert row.level == level
        assert row.sigma == pytest.approx(sigma, abs=6e-7)
        assert float(by_latent) == pytest.approx(cx, abs=6e-6)
        assert float(by_output) == pytest.approx(ce, abs=6e-6)


def test_noise_is_clipped_and_the_direction_is_not() -> None:
    wide = replace(FREE, mode=SamplingMode.eta1, sigma_min=1e-9, sigma_max=9.0)
    narrow = replace(wide, sigma_min=0.03, sigma_max=0.1)
    for step, (_, sigma, _, ce) in enumerate(TABLE.values()):
        assert step_coefficients(wide)[step].std == pytest.approx(sigma, abs=6e-7)
        assert step_coefficients(narrow)[step].std == pytest.approx(min(max(sigma, 0.03), 0.1), abs=6e-7)
        assert step_coefficients(narrow)[step].direction == step_coefficients(wide)[step].direction
        to_0_1 = step_coefficients(replace(wide, sigma_max=0.1))[step].std
        assert abs(ce) / to_0_1 == pytest.approx(SENSITIVITY_AT_MAX_0_1[step], abs=6e-3)


WIDE = {"sigma_min": 1e-12, "sigma_max": 9.0}
MOMENTS = [
    (SamplingMode.eta0, {}, (0.29399, 0.15857), (0.29423, 0.15455)),
    (SamplingMode.eta1, WIDE, (0.29971, 0.13337), (0.29981, 0.12984)),
    (SamplingMode.eta1, {"sigma_min": 0.01, "sigma_max": 0.8}, (0.29971, 0.13331), (0.29981, 0.13017)),
    (SamplingMode.eta1, {"sigma_min": 0.01, "sigma_max": 0.1}, (0.29971, 0.07431), (0.29981, 0.07116)),
    (SamplingMode.eta1, {"sigma_min": 0.1, "sigma_max": 9.0}, (0.29971, 0.18783), (0.29981, 0.18579)),
    (SamplingMode.mean, {}, (0.29971, 0.00513), (0.29981, 0.00505)),
]


@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize(("mode", "clip", "to_alpha_bar_0", "to_one"), MOMENTS)
def test_output_distribution_of_exact_denoiser(
    mode: SamplingMode,
    clip: dict[str, float],
    to_alpha_bar_0: tuple[float, float],
    to_one: tuple[float, float],
    prediction: Prediction,
) -> None:
    sampler = replace(FREE, mode=mode, prediction=prediction, **clip)
    assert output_moments(sampler, 0.3, 0.2) == pytest.approx(to_alpha_bar_0, abs=6e-6)
    assert output_moments(replace(sampler, final_alpha=FinalAlpha.one), 0.3, 0.2) == pytest.approx(to_one, abs=6e-6)


def test_ten_steps_keep_less_spread_than_the_data() -> None:
    assert output_moments(FREE, 0.0, 0.5)[1] == pytest.approx(0.43784, abs=6e-6)
    assert output_moments(FREE, -0.5, 0.1)[1] == pytest.approx(0.07561, abs=6e-6)


# Kept spread / s of data N(0, s^2): eta0, mean, eta1 (10 steps, last step to alpha_bar 1).
@pytest.mark.parametrize(
    ("s", "eta0", "mean", "eta1"),
    [
        (0.05, 0.62, 0.006, 0.54),
        (0.1, 0.68, 0.013, 0.55),
        (0.3, 0.83, 0.038, 0.72),
        (0.5, 0.87, 0.063, 0.78),
        (1.0, 0.90, 0.124, 0.83),
    ],
)
def test_kept_spread_by_mode(s: float, eta0: float, mean: float, eta1: float) -> None:
    sampler = replace(FREE, **WIDE, final_alpha=FinalAlpha.one)
    for mode, kept in ((SamplingMode.eta0, eta0), (SamplingMode.mean, mean), (SamplingMode.eta1, eta1)):
        got = output_moments(replace(sampler, mode=mode), 0.0, s)[1] / s
        assert got == pytest.approx(kept, abs=0.0006 if mode is SamplingMode.mean else 0.006), mode


# From 1.3 at level 99, data N(0.2, 0.3^2), convention: rounded even spacing 99..0 and a last step to alpha_bar 1.
@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(100, 0.581), (50, 0.573), (20, 0.550), (10, 0.510), (5, 0.427), (2, 0.233), (1, 0.200)],
)
def test_ddim_steps_of_any_size(num_steps: int, expected: float) -> None:
    levels = linspace_levels(100, num_steps)
    sampler = replace(FREE, levels=levels, final_alpha=FinalAlpha.one)
    schedule = squared_cosine_alpha_bar(100)
    ours, closed, m, s = torch.full((1, 1, 1), 1.3, dtype=torch.float64), 1.3, 0.2, 0.3
    for step, level in enumerate(levels):
        ours = reverse_step(sampler, ours, exact_output(sampler, ours, step, m, s), step)[0]
        now = float(schedule[level])
        then = float(schedule[levels[step + 1]]) if step + 1 < num_steps else 1.0
        g = (math.sqrt(now * then) * s**2 + math.sqrt((1 - now) * (1 - then))) / (now * s**2 + 1 - now)
        closed = math.sqrt(then) * m + g * (closed - math.sqrt(now) * m)
    assert float(ours) == pytest.approx(closed, abs=1e-10)
    assert float(ours) == pytest.approx(expected, abs=6e-4)


def test_many_steps_reach_the_exact_flow() -> None:
    """From pure noise the probability flow of a Gaussian ends at m + s x = 0.59; small steps get near it."""
    num_levels = 2000
    levels = linspace_levels(num_levels, num_levels)
    sampler = replace(FREE, num_levels=num_levels, levels=levels, final_alpha=FinalAlpha.one)
    latent = torch.full((1, 1, 1), 1.3, dtype=torch.float64)
    for step in range(num_levels):
        latent = reverse_step(sampler, latent, exact_output(sampler, latent, step, 0.2, 0.3), step)[0]
    assert float(latent) == pytest.approx(0.590, abs=2e-3)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_exact_predictions_agree_and_convert(prediction: Prediction) -> None:
    for step in range(10):
        sampler = replace(FREE, prediction=prediction)
        latent = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(9, 1, 1)
        output = exact_output(sampler, latent, step, 0.3, 0.2)
        x0, epsilon = predict_x0_epsilon(step_coefficients(sampler)[step], latent, output, prediction=prediction)
        alpha_bar = float(squared_cosine_alpha_bar(100)[LEVELS[step]])
        torch.testing.assert_close(x0, exact_x0(latent, alpha_bar, 0.3, 0.2), rtol=0, atol=1e-12)
        torch.testing.assert_close(epsilon, exact_epsilon(latent, alpha_bar, 0.3, 0.2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_target_turns_back_into_sample_and_noise(prediction: Prediction) -> None:
    schedule = squared_cosine_alpha_bar(100)
    generator = torch.Generator().manual_seed(0)
    for step, k in enumerate(LEVELS):
        x0, noise = torch.randn(2, 16, 3, 2, generator=generator, dtype=torch.float64)
        level = torch.full((16,), k)
        target = prediction_target(x0, noise, level, alpha_bar=schedule, prediction=prediction)
        row = step_coefficients(FREE)[step]
        got_x0, got_noise = predict_x0_epsilon(
            row, add_noise(x0, noise, level, schedule), target, prediction=prediction
        )
        torch.testing.assert_close(got_x0, x0, rtol=0, atol=1e-6)
        torch.testing.assert_close(got_noise, noise, rtol=0, atol=1e-6)


def test_v_target_equals_diffusers() -> None:
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    theirs = scheduling.DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    x0, noise = torch.randn(2, 100, 3, 2, generator=torch.Generator().manual_seed(0))
    level = torch.arange(100)
    ours = prediction_target(x0, noise, level, alpha_bar=squared_cosine_alpha_bar(100), prediction=Prediction.v)
    torch.testing.assert_close(ours, theirs.get_velocity(x0, noise, level), rtol=0, atol=1e-5)


def test_known_predictions() -> None:
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    alpha_bar = float(squared_cosine_alpha_bar(100)[50])
    sampler = Sampler(levels=(50,), prediction=Prediction.epsilon, clip_sample=None, final_alpha=FinalAlpha.one)
    assert float(exact_epsilon(one, alpha_bar, 0.3, 0.2)) == pytest.approx(1.058403, abs=6e-7)
    # One DDIM step to alpha_bar 1 is the predicted clean sample.
    assert float(reverse_step(sampler, one, exact_output(sampler, one, 0, 0.3, 0.2), 0)[0]) == pytest.approx(
        0.340534, abs=6e-7
    )


@pytest.mark.parametrize(("m", "s", "average"), [(0.3, 0.2, 0.155380), (0.0, 0.5, 0.323155), (-0.5, 0.1, 0.079378)])
def test_least_epsilon_loss(m: float, s: float, average: float) -> None:
    """No network can beat these; add_noise and the exact denoiser must reach them (Gauss-Hermite, exact)."""
    schedule = squared_cosine_alpha_bar(100)
    node = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # exact for the quadratic error of a linear denoiser
    x0, noise = (axis.reshape(-1, 1, 1) for axis in torch.meshgrid(m + s * node, node, indexing="ij"))
    losses = []
    for level in range(100):
        latent = add_noise(x0, noise, torch.full((4,), level), schedule)
        losses.append(float((exact_epsilon(latent, float(schedule[level]), m, s) - noise).square().mean()))
    assert sum(losses) / 100 == pytest.approx(average, abs=6e-7)
    if (m, s) == (0.3, 0.2):
        assert [losses[1], losses[50], losses[91]] == pytest.approx([0.95807, 0.03537, 0.00063], abs=6e-6)


def test_add_noise_closed_form() -> None:
    schedule = squared_cosine_alpha_bar(100)
    level = torch.tensor([0, 50, 99])
    x0, noise = torch.full((3, 2, 1), 2.0), torch.full((3, 2, 1), -1.0)
    expected = [2 * math.sqrt(float(schedule[k])) - math.sqrt(1 - float(schedule[k])) for k in (0, 50, 99)]
    latent = add_noise(x0, noise, level, schedule)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(latent, torch.tensor(expected)[:, None, None].expand(3, 2, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("final", list(FinalAlpha))
@pytest.mark.parametrize("prediction", list(Prediction))
def test_steps_equal_diffusers_ddim(clip: float | None, eta: float, final: FinalAlpha, prediction: Prediction) -> None:
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    theirs = scheduling.DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        set_alpha_to_one=final is FinalAlpha.one,
        steps_offset=1,
        prediction_type="v_prediction" if prediction is Prediction.v else prediction.value,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(10)
    assert tuple(theirs.timesteps.tolist()) == LEVELS
    mode = SamplingMode.eta1 if eta else SamplingMode.eta0
    # diffusers adds no floor, so the widest range makes ours equal to it.
    sampler = Sampler(levels=LEVELS, prediction=prediction, final_alpha=final, clip_sample=clip, mode=mode, **WIDE)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 11, 4, 2, generator=generator)
    chain = sample_chain(lambda latent, level: torch.sin(3 * latent + level[:, None, None] / 50), noise, sampler)
    latent = noise[:, 0]
    for step, level in enumerate(LEVELS):
        output = torch.sin(3 * latent + level / 50)
        latent = theirs.step(output, level, latent, eta=eta, variance_noise=noise[:, step + 1]).prev_sample
        torch.testing.assert_close(chain.latents[:, step + 1], latent, rtol=1e-4, atol=1e-4)


def linear_denoise(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    return 0.7 * latent + 0.001 * level[:, None, None]


def test_chain_is_reproducible_and_its_ratio_is_one() -> None:
    sampler = replace(FREE, mode=SamplingMode.eta1, clip_sample=1.0)
    noise = torch.randn(64, sampler.noise_draws, 8, 4, generator=torch.Generator().manual_seed(1))
    chain = sample_chain(linear_denoise, noise, sampler)
    assert chain.latents.shape == (64, 11, 8, 4)
    assert chain.levels.tolist() == list(LEVELS)
    assert torch.equal(chain.latents[:, 0], noise[:, 0])
    assert float(chain.latents.abs().max()) > 1.2  # never clipped
    for step in range(10):
        output = linear_denoise(chain.latents[:, step], torch.full((64,), LEVELS[step]))
        mean, std = reverse_step(sampler, chain.latents[:, step], output, step)
        following = chain.latents[:, step + 1]
        log_prob = step_log_prob(mean, std, following)
        assert float((log_prob - chain.log_prob[:, step]).exp().sub(1).abs().max()) < 1e-5
        peer = torch.distributions.Normal(mean.double(), std).log_prob(following.double()).sum(dim=(1, 2))
        torch.testing.assert_close(log_prob.double(), peer, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(sample_final(linear_denoise, noise, sampler), chain.latents[:, -1], rtol=0, atol=0)


def test_kl_of_a_step_is_the_closed_form() -> None:
    """KL = ce^2 |d eps|^2 / (2 std^2) when no clamp is active."""
    sampler = replace(FREE, mode=SamplingMode.eta1, sigma_max=0.1)
    latent = torch.zeros(1, 16, 28, dtype=torch.float64)
    output, shift = torch.zeros_like(latent), torch.full_like(latent, 0.01)
    mean, std = reverse_step(sampler, latent, output, 0)
    moved, _ = reverse_step(sampler, latent, output + shift, 0)
    normal = torch.distributions.Normal
    kl = float(torch.distributions.kl_divergence(normal(moved, std), normal(mean, std)).sum())
    assert kl == pytest.approx((TABLE[91][3] * 0.01) ** 2 * 16 * 28 / (2 * 0.1**2), rel=1e-5)
    assert kl == pytest.approx(7.2, abs=0.05)


def test_clamped_sample_keeps_its_noise() -> None:
    """The clean sample is clamped, the noise is not recomputed; recomputing would give another mean."""
    sampler = replace(FREE, clip_sample=1.0)
    latent, output = torch.full((1, 1, 1), 3.0, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    row = step_coefficients(sampler)[5]
    assert 3.0 / row.signal > 1.0
    assert float(reverse_step(sampler, latent, output, 5)[0]) == pytest.approx(row.next_signal, abs=1e-12)
    recomputed = row.next_signal + row.direction * (3.0 - row.signal) / row.noise
    assert abs(recomputed - row.next_signal) > 0.1


@pytest.mark.parametrize("mode", [SamplingMode.eta0, SamplingMode.mean])
def test_deterministic_modes_have_no_density(mode: SamplingMode) -> None:
    sampler = replace(FREE, mode=mode)
    noise = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    chain = sample_chain(linear_denoise, noise, sampler)
    assert torch.equal(chain.log_prob, torch.zeros(3, 10))
    mean, std = reverse_step(sampler, noise[:, 0], noise[:, 0], 0)
    with pytest.raises(PolicyError, match="eta1"):
        step_log_prob(mean, std, mean)


def test_noise_draws_by_mode() -> None:
    draws = {mode: replace(FREE, mode=mode).noise_draws for mode in SamplingMode}
    assert draws == {SamplingMode.eta0: 1, SamplingMode.mean: 1, SamplingMode.eta1: 11}


def test_json_round_trip() -> None:
    sampler = replace(FREE, mode=SamplingMode.eta1, final_alpha=FinalAlpha.one, sigma_max=0.1)
    assert Sampler.from_json(json.loads(json.dumps(sampler.to_json()))) == sampler


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "velocity"}, "Prediction"),
        ({"mode": "eta2"}, "eta0"),
        ({"levels": [1, 91]}, "descending"),
        ({"levels": [91, 91]}, "descending"),
        ({"levels": [100, 1]}, "0..99"),
        ({"levels": []}, "levels"),
        ({"levels": [50, 0]}, "final_alpha"),
        ({"sigma_min": 0.9}, "sigma_min"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"clip_sample": 0.0}, "clip_sample"),
        ({"sigma_mx": 0.1}, "sigma_max"),
    ],
)
def test_invalid_sampler_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Sampler.from_json(FREE.to_json() | change)


def test_missing_key_is_refused() -> None:
    with pytest.raises(PolicyError, match="prediction"):
        Sampler.from_json({"levels": [91, 1]})


@pytest.mark.parametrize("spacing", [leading_levels, linspace_levels])
@pytest.mark.parametrize("num_steps", [0, 101])
def test_impossible_number_of_steps(spacing: object, num_steps: int) -> None:
    with pytest.raises(PolicyError, match="1 to 100"):
        spacing(100, num_steps)  # type: ignore[operator]


def test_level_lists() -> None:
    assert leading_levels(100, 5) == (81, 61, 41, 21, 1)
    assert leading_levels(100, 3) == (67, 34, 1)
    assert leading_levels(100, 50)[:2] == (99, 97)
    assert leading_levels(100, 100) == tuple(range(99, -1, -1))  # 100 would be no level
    assert leading_levels(100, 100, offset=0) == tuple(range(99, -1, -1))
    assert linspace_levels(100, 5) == (99, 74, 50, 25, 0)
    assert linspace_levels(100, 1) == (99,)
