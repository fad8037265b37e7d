"""A linear student of a Gaussian teacher: its least-squares solution is known, and tells the losses apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from robot_rl.algorithms.consistency import same_noise_loss, student_sample, student_sampler
from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    leading_levels,
    sample_chain,
    sample_final,
    squared_cosine_alpha_bar,
)
from robot_rl.errors import PolicyError

MEAN, STD = 0.3, 0.2
SCHEDULE = squared_cosine_alpha_bar(100).float()


def exact_epsilon(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Best noise prediction for data N(MEAN, STD^2)."""
    alpha_bar = SCHEDULE[level][:, None, None]
    return (1 - alpha_bar).sqrt() * (latent - alpha_bar.sqrt() * MEAN) / (alpha_bar * STD**2 + 1 - alpha_bar)


def teacher(mode: SamplingMode) -> Sampler:
    levels = leading_levels(100, 10)
    return Sampler(levels=levels, prediction=Prediction.epsilon, clip_sample=None, mode=mode)


def balanced_noise(count: int, seed: int) -> torch.Tensor:
    """Standard normal numbers whose sample mean is exactly 0 and variance 1: no sampling error in the fit."""
    half = torch.randn(count // 2, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    both = torch.cat([half, -half])
    return both / both.square().mean().sqrt()


def fit(student_noise: torch.Tensor, target: torch.Tensor, sampler: Sampler) -> Callable[[float], float]:
    """Train `output = slope * latent + offset` per level by our loss; returns the student's map of the first noise."""
    weights = torch.zeros(100, 2, requires_grad=True)

    def denoise(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        slope, offset = weights[level].unbind(dim=1)
        return slope[:, None, None] * latent + offset[:, None, None]

    optimizer = torch.optim.LBFGS([weights], max_iter=60, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss, metrics = same_noise_loss(student_sample(denoise, student_noise, sampler), target)
        assert metrics["distill_mse"] == pytest.approx(float(loss.detach()))
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda z: float(student_sample(denoise, torch.full((1, 1, 1, 1), z), sampler).detach())


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("mode", "slope", "offset"), [(SamplingMode.eta0, 0.15857, 0.29399), (SamplingMode.mean, 0.00513, 0.29971)]
)
def test_student_recovers_the_teacher_map(num_steps: int, mode: SamplingMode, slope: float, offset: float) -> None:
    noise = balanced_noise(2000, seed=0)
    target = sample_final(exact_epsilon, noise, teacher(mode))
    student = fit(noise, target, student_sampler(teacher(mode), num_steps))
    tolerance = 2e-5 if num_steps == 1 else 5e-4  # a chain of free linear maps is not a convex fit
    assert student(0.0) == pytest.approx(offset, abs=tolerance)
    assert student(1.0) - student(0.0) == pytest.approx(slope, abs=tolerance)


def test_independent_noise_learns_only_the_mean() -> None:
    target = sample_final(exact_epsilon, balanced_noise(20000, seed=0), teacher(SamplingMode.eta0))
    student = fit(balanced_noise(20000, seed=1), target, student_sampler(teacher(SamplingMode.eta0), 1))
    assert student(0.0) == pytest.approx(0.29399, abs=2e-5)
    # Slope of the fit = slope * correlation of two independent samples, sd 0.159 / sqrt(20000) = 0.0011.
    assert abs(student(1.0) - student(0.0)) < 0.005


def test_stochastic_teacher_would_teach_the_mean_path() -> None:
    """Why eta1 is refused: regression from the first noise alone gives the slope of the mean path, not a mode."""
    sampler = teacher(SamplingMode.eta1)
    noise = torch.randn(40000, 11, 1, 1, generator=torch.Generator().manual_seed(3))
    target = sample_chain(exact_epsilon, noise, sampler).latents[:, -1]
    student = fit(noise[:, :1], target, student_sampler(teacher(SamplingMode.mean), 1))
    assert student(1.0) - student(0.0) == pytest.approx(0.00513, abs=4 * 0.133 / math.sqrt(40000))
    with pytest.raises(PolicyError, match="eta1"):
        student_sampler(sampler, 1)


def test_student_starts_where_the_teacher_starts() -> None:
    of_ten = [student_sampler(teacher(SamplingMode.eta0), steps).levels for steps in (1, 2, 3, 4)]
    assert of_ten == [(91,), (91, 41), (91, 61, 31), (91, 71, 41, 21)]
    sampler = student_sampler(teacher(SamplingMode.mean), 2)
    assert (sampler.prediction, sampler.final_alpha, sampler.clip_sample, sampler.mode) == (
        Prediction.sample,
        FinalAlpha.one,
        None,
        SamplingMode.eta0,
    )


def test_one_step_is_the_network_output() -> None:
    noise = torch.randn(5, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    levels: list[int] = []

    def denoise(latent: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        levels.extend(level.tolist())
        return 7.0 * latent

    out = student_sample(denoise, noise, student_sampler(teacher(SamplingMode.eta0), 1))
    torch.testing.assert_close(out, 7.0 * noise[:, 0])
    assert levels == [91] * 5


@pytest.mark.parametrize("num_steps", [0, 5])
def test_number_of_student_steps(num_steps: int) -> None:
    with pytest.raises(PolicyError, match="1 to 4"):
        student_sampler(teacher(SamplingMode.eta0), num_steps)


def test_loss_value_and_stopped_gradient() -> None:
    student = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 5.0]]], requires_grad=True)
    loss, metrics = same_noise_loss(student, target)
    loss.backward()
    assert metrics == {"distill_mse": 5.0}
    torch.testing.assert_close(student.grad, torch.tensor([[[1.0, -3.0]]]))
    assert target.grad is None
