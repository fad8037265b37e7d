"""Losses of an encoder against hand numbers, brute force and torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from robot_rl.algorithms.representation import annealed, chamfer, draw_latent, drop, gaussian_kl, squared_error
from robot_rl.errors import ConfigError


def test_chamfer_of_two_single_points_is_two() -> None:
    origin, unit = torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0, 0]]])
    assert chamfer(origin, unit).tolist() == [2.0]
    assert chamfer(unit, unit).tolist() == [0.0]


def test_chamfer_equals_brute_force_and_does_not_know_the_order() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 7, 3, generator=generator, dtype=torch.float64)
    b = torch.rand(3, 5, 3, generator=generator, dtype=torch.float64)
    for row in range(3):
        there = sum(min(float((p - q).square().sum()) for q in b[row]) for p in a[row]) / 7
        back = sum(min(float((p - q).square().sum()) for p in a[row]) for q in b[row]) / 5
        assert float(chamfer(a, b)[row]) == pytest.approx(there + back, rel=1e-12)
    shuffled = chamfer(a[:, torch.randperm(7, generator=generator)], b[:, torch.randperm(5, generator=generator)])
    torch.testing.assert_close(shuffled, chamfer(a, b), rtol=1e-12, atol=0)


def test_chamfer_has_the_gradient_of_its_nearest_pairs() -> None:
    a = torch.tensor([[[0.0, 0, 0], [5.0, 0, 0]]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[[1.0, 0, 0], [5.5, 0, 0]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(chamfer, (a, b))
    chamfer(a, b).sum().backward()
    # Each point is the nearest of its partner both ways: 2 (a - b) / 2 twice.
    assert a.grad is not None
    assert a.grad[0, :, 0].tolist() == [-2.0, -1.0]


def test_kl_of_the_bottleneck() -> None:
    one = gaussian_kl(
        torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64).square().log()
    )
    assert float(one) == pytest.approx(0.818147, abs=5e-7)
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), exact)
    assert float(gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))) == 0


def test_latents_are_drawn_with_the_stated_mean_and_deviation() -> None:
    mean, log_variance = torch.full((40_000, 1), 3.0), torch.full((40_000, 1), 0.25).log()
    drawn = draw_latent(mean, log_variance, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(3.0, abs=4 * 0.5 / 200)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(drawn, draw_latent(mean, log_variance, torch.Generator().manual_seed(0)))


def test_dropout_keeps_the_mean_and_follows_its_generator() -> None:
    x = torch.ones(200, 200)
    dropped = drop(x, 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert float(dropped.mean()) == pytest.approx(1.0, abs=4 * (1 / 3) ** 0.5 / 200)
    assert torch.equal(dropped, drop(x, 0.25, torch.Generator().manual_seed(0)))
    assert drop(x, 0.0, torch.Generator()) is x


def test_pixels_count_equally() -> None:
    assert squared_error(torch.zeros(2, 2, 2), torch.tensor([[[2.0, 0], [0, 0]], [[1.0, 1], [1, 1]]])).tolist() == [
        1,
        1,
    ]


def test_annealing_is_linear_and_ends() -> None:
    assert [annealed(step, 100) for step in (0, 25, 100, 900)] == [0.0, 0.25, 1.0, 1.0]
    assert annealed(0, 0) == 1.0
    with pytest.raises(ConfigError, match="0 or more"):
        annealed(1, -1)
