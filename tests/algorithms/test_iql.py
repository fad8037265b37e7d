"""IQL: expectiles of known distributions, targets by hand, and the tabular fixed point."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from robot_rl.algorithms.iql import advantage, expectile_loss, q_loss, q_target, value_loss

LEVELS = (np.arange(40_000) + 0.5) / 40_000
SAMPLES = {
    "normal": ndtri(LEVELS),
    "uniform": LEVELS,
    "bernoulli 0.5": (LEVELS > 0.5).astype(float),
    "bernoulli 0.2": (LEVELS > 0.8).astype(float),
}
TABLE = {
    0.5: (0.0, 0.5, 0.5, 0.2),
    0.7: (0.33712, 0.60436, 0.7, 0.36842),
    0.8: (0.54916, 0.66667, 0.8, 0.5),
    0.9: (0.86159, 0.75, 0.9, 0.69231),
    0.95: (1.14017, 0.81339, 0.95, 0.82609),
}


@pytest.mark.parametrize("tau", TABLE)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_minimiser_is_the_expectile(tau: float, name: str) -> None:
    """Newton's method on our loss, by autograd, against the closed forms of the distributions."""
    q = torch.tensor(SAMPLES[name], dtype=torch.float32)
    value = torch.tensor(0.3, requires_grad=True)
    for _ in range(30):
        (slope,) = torch.autograd.grad(expectile_loss(q - value, expectile=tau).mean(), value, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, value)
        value = (value - slope / curvature).detach().requires_grad_()
    expected = TABLE[tau][list(SAMPLES).index(name)]
    assert float(value.detach()) == pytest.approx(expected, abs=1e-3)


def test_value_loss_takes_the_smaller_q_and_moves_only_v() -> None:
    q = torch.tensor([[1.0, 2.0], [0.0, 5.0]], requires_grad=True)
    value = torch.tensor([0.5, 0.0], requires_grad=True)
    loss, metrics = value_loss(q, value, expectile=0.9)
    # min Q = (0, 2), u = (-0.5, 2): 0.1 * 0.25 and 0.9 * 4.
    assert float(loss) == pytest.approx((0.025 + 3.6) / 2)
    loss.backward()
    assert q.grad is None
    assert value.grad is not None
    assert metrics == {"value_mean": 0.25, "q_data_mean": 1.0}


def test_target_is_clamped_and_says_so() -> None:
    reward, discount = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.9, 0.0, 0.5])
    value = torch.tensor([2.0, 7.0, -0.5], requires_grad=True)
    target, metrics = q_target(reward, discount, value, low=0.0, high=1.0)
    assert target.tolist() == [1.0, 1.0, 0.0]
    assert not target.requires_grad
    assert metrics["target_max"] == pytest.approx(1.8)
    assert metrics["target_clamped_share"] == pytest.approx(2 / 3)


def test_q_loss_and_advantage_by_hand() -> None:
    q = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert float(q_loss(q, torch.tensor([1.0, 1.0]))) == pytest.approx((0 + 1) / 2 + (4 + 1) / 2)
    assert advantage(q, torch.tensor([0.5, 1.0])).tolist() == [0.5, -1.0]


def test_half_expectile_is_the_value_of_the_behaviour_policy() -> None:
    """Two states, two actions, tabular: state 0 goes on to state 1 by action 1, everything else ends."""
    gamma, share = 0.9, torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    rewards = torch.tensor([[0.2, 0.0], [0.0, 1.0]])
    value = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.5)
    for _ in range(200):
        following = torch.stack([torch.zeros(2), torch.tensor([1.0, 0.0]) * value.detach()[1]], dim=1)
        target, _ = q_target(rewards.flatten(), torch.full((4,), gamma), following.flatten(), low=-9.0, high=9.0)
        loss = (share * expectile_loss(target.view(2, 2) - value[:, None], expectile=0.5)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert value.tolist() == pytest.approx([0.5 * 0.2 + 0.5 * 0.9 * 0.75, 0.75], abs=1e-4)
