"""Energy distance and reward term against hand numbers and expectations over all draws of two points."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from robot_rl.algorithms.distribution_matching import energy_distance, reward_term
from robot_rl.errors import PolicyError


def cloud(*values: float) -> torch.Tensor:
    """One observation, chunks of one action of one element."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_by_hand() -> None:
    # across: |0-1| |0-3| |4-1| |4-3| -> (1 + 3 + 3 + 1) / 4 = 2; within 4; of the teacher 2.
    loss, values = energy_distance(cloud(0.0, 4.0), cloud(1.0, 3.0))
    assert float(loss) == pytest.approx(2 * 2 - 4 - 2, abs=1e-5)
    assert values["student_spread"] == pytest.approx(4, abs=1e-5)
    assert values["teacher_spread"] == pytest.approx(2, abs=1e-5)


def test_the_distance_of_a_chunk_is_a_root_mean_square() -> None:
    x = torch.zeros(1, 2, 2, 3)
    y = torch.zeros(1, 2, 2, 3)
    y[..., 0, 0] = 6.0  # one of 6 elements: sqrt(36 / 6)
    assert float(energy_distance(x, y)[0]) == pytest.approx(2 * 6**0.5, abs=1e-5)


def test_two_modes_expectation_over_all_draws() -> None:
    draws = list(product((-1.0, 1.0), repeat=2))
    same = [float(energy_distance(cloud(*x), cloud(*y))[0]) for x, y in product(draws, draws)]
    assert sum(same) / len(same) == pytest.approx(0, abs=1e-5)
    # At the mean: 2 E|0 - y| - 0 - E|y - y'| = 2 - 1. On one mode: 2 * 1 - 0 - 1 as well.
    for point in (0.0, 1.0):
        fallen = [float(energy_distance(cloud(point, point), cloud(*y))[0]) for y in draws]
        assert sum(fallen) / len(fallen) == pytest.approx(1, abs=1e-5)


def test_equal_chunks_have_no_gradient_and_the_teacher_gets_none() -> None:
    x = cloud(0.5, 0.5).requires_grad_()
    y = cloud(0.5, 0.5).requires_grad_()
    energy_distance(x, y)[0].backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert y.grad is None
    with pytest.raises(PolicyError, match="at least 2 chunks of the student"):
        energy_distance(cloud(1.0), cloud(1.0, 2.0))


def test_reward_term_takes_the_smaller_critic_and_its_size() -> None:
    q = torch.tensor([[1.0, -2.0], [3.0, 4.0]], requires_grad=True)
    term = reward_term(q)
    assert float(term.detach()) == pytest.approx(-(1 - 2) / 2 / 1.5)
    term.backward()
    # d(-mean(least) / 1.5): -1/2 / 1.5 at the smaller entries, the scale is a constant.
    assert q.grad is not None
    torch.testing.assert_close(q.grad, torch.tensor([[-1 / 3, -1 / 3], [0.0, 0.0]]))
