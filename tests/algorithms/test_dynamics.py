"""Transition models: loss, step and disagreement by hand."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.algorithms.dynamics import (
    LossScales,
    ModelBounds,
    ModelOutput,
    bounds_of_data,
    disagreement,
    gaussian_nll,
    model_loss,
    model_step,
    termination_loss,
    termination_weight,
)

INFINITE = ModelBounds(*(torch.full((2,), edge) for edge in (-math.inf, math.inf, -9.0, 9.0)))


def output(members: int = 2, rows: int = 3, features: int = 2) -> ModelOutput:
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(2, members, rows, features, generator=generator)
    return ModelOutput(mean, log_std, *torch.randn(3, members, rows, generator=generator))


def test_likelihood_is_that_of_torch() -> None:
    out, delta = output(), torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    expected = -torch.distributions.Normal(out.mean, out.log_std.exp()).log_prob(delta)
    assert torch.allclose(gaussian_nll(out, delta), expected, atol=1e-5)


def test_loss_by_hand() -> None:
    """One feature, two rows, two members; the second member's sample lacks row 0 and holds row 1 twice."""
    zeros = torch.zeros(2, 2, 1)
    reward, end_reward = torch.tensor([[0.0, 9.0], [0.0, 9.0]]), torch.tensor([[9.0, 1.0], [9.0, 1.0]])
    out = ModelOutput(zeros, zeros, reward, end_reward, torch.zeros(2, 2))
    loss, parts = model_loss(
        out,
        delta=torch.tensor([[1.0], [2.0]]),
        reward=torch.tensor([2.0, 0.0]),
        terminated=torch.tensor([False, True]),
        row_weight=torch.tensor([[1.0, 1.0], [0.0, 2.0]]),
        scales=LossScales(torch.tensor([4.0]), reward_std=2.0, end_weight=1.0),
        beta=0.0,
    )
    constant = 0.5 * math.log(2 * math.pi)
    assert parts["nll"].tolist() == pytest.approx([(0.5 + 2.0) / 2 + constant, 2.0 + constant])
    assert parts["delta_mse"].tolist() == pytest.approx([(1 + 4) / 32, 4 / 16])
    assert parts["reward_mse"].tolist() == pytest.approx([(1.0 + 0.25) / 2, 0.25])
    assert parts["termination_loss"].tolist() == pytest.approx([math.log(2)] * 2)
    total = parts["nll"] + parts["reward_mse"] + parts["termination_loss"]
    assert loss.tolist() == pytest.approx(total.tolist())


def test_beta_weighs_rows_by_their_variance() -> None:
    """With beta = 1 the slope of the mean is that of least squares, whatever the predicted spread."""
    mean = torch.zeros(1, 2, 1, requires_grad=True)
    out = ModelOutput(mean, torch.tensor([[[0.0], [1.0]]]), *(torch.zeros(1, 2),) * 3)
    loss, parts = model_loss(
        out,
        delta=torch.tensor([[3.0], [3.0]]),
        reward=torch.zeros(2),
        terminated=torch.zeros(2, dtype=torch.bool),
        row_weight=torch.ones(1, 2),
        scales=LossScales(torch.tensor([2.0]), reward_std=1.0, end_weight=1.0),
        beta=1.0,
    )
    (slope,) = torch.autograd.grad(loss.sum(), mean)
    assert slope.flatten().tolist() == pytest.approx([-3 / 4 / 2] * 2)
    plain = (4.5 + 4.5 * math.exp(-2) + 1) / 2 + 0.5 * math.log(2 * math.pi)
    assert float(parts["nll"]) == pytest.approx(plain)


@pytest.mark.parametrize("weight", [1.0, 19.0])
def test_weighted_terminations_still_give_the_true_odds(weight: float) -> None:
    """The loss is convex in the logit, so its slope is zero at the minimiser and nowhere else."""
    terminated = torch.arange(100) < 5
    slopes = []
    for rate in (0.04, 0.05, 0.06):
        logit = torch.tensor([[math.log(rate / (1 - rate))]], requires_grad=True)
        termination_loss(logit.expand(1, 100), terminated, weight=weight).mean().backward()
        slopes.append(float(logit.grad))
    assert slopes[0] < -1e-3
    assert slopes[1] == pytest.approx(0.0, abs=1e-6)
    assert slopes[2] > 1e-3


def test_a_missed_termination_costs_its_weight() -> None:
    terminated = torch.tensor([True, False])
    level = torch.full((1, 2), -math.log(4.0))  # shifted to 0 by the weight
    loss = termination_loss(level, terminated, weight=4.0)
    assert loss[0].tolist() == pytest.approx([4 * math.log(2), math.log(2)])


def test_class_weight_balances_up_to_its_limit() -> None:
    ends = torch.arange(100) < 5
    assert termination_weight(ends, largest=50.0) == pytest.approx(19.0)
    assert termination_weight(ends, largest=10.0) == 10.0
    assert termination_weight(~ends, largest=10.0) == 1.0
    assert termination_weight(torch.zeros(4, dtype=torch.bool), largest=10.0) == 1.0


def test_step_takes_each_row_from_its_member() -> None:
    mean = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[-1.0, 5.0], [-2.0, 5.0]]])
    log_std = torch.tensor([0.0, math.log(3.0)]).view(2, 1, 1).expand(2, 2, 2)
    rewards = torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.tensor([[1.1, 1.2], [1.3, 99.0]])
    logit = torch.tensor([[0.0, -5.0], [-5.0, 0.0]])  # one in two for the member of the row
    feature, noise = torch.tensor([[10.0, 0.0], [20.0, 0.0]]), torch.tensor([[0.5, -0.5], [1.0, 0.0]])
    following, reward, ended = model_step(
        ModelOutput(mean, log_std, *rewards, logit),
        feature,
        noise=noise,
        uniform=torch.tensor([0.51, 0.49]),
        member=torch.tensor([0, 1]),
        bounds=INFINITE,
    )
    assert torch.allclose(following, torch.tensor([[11.5, -0.5], [21.0, 5.0]]))
    assert ended.tolist() == [False, True]
    assert reward.tolist() == pytest.approx([0.1, 9.0])


def test_step_stays_inside_the_range_of_the_data() -> None:
    """The features' range is widened; rewards have one of their own for decisions that end the task."""
    data, reward = torch.tensor([[0.0, -1.0], [1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 0.9, 1.0])
    following = data + torch.tensor([1.0, 0.0])
    bounds = bounds_of_data(data, following, reward=reward, terminated=reward > 0, margin=0.1)
    assert bounds.feature_low.tolist() == pytest.approx([-0.2, -1.2])
    assert bounds.feature_high.tolist() == pytest.approx([2.2, 1.2])
    assert bounds.reward_low.tolist() == pytest.approx([0.0, 0.9])
    assert bounds.reward_high.tolist() == [0.0, 1.0]
    far = ModelOutput(
        *(torch.full((1, 3, 2), x) for x in (1e6, 0.0)), *(torch.full((1, 3), x) for x in (7.0, 7.0, 0.0))
    )
    following, reward, _ = model_step(
        far,
        data,
        noise=torch.zeros(3, 2),
        uniform=torch.tensor([0.1, 0.9, 0.9]),
        member=torch.zeros(3, dtype=torch.int64),
        bounds=bounds,
    )
    assert torch.allclose(following, bounds.feature_high.expand(3, 2))
    assert reward.tolist() == [1.0, 0.0, 0.0]


def test_a_kind_of_decision_that_the_data_lacks_pays_nothing() -> None:
    data, never = torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool)
    bounds = bounds_of_data(data, data, reward=torch.tensor([1.0, 2.0]), terminated=never, margin=0.0)
    assert bounds.reward_low.tolist() == [1.0, 0.0]
    assert bounds.reward_high.tolist() == [2.0, 0.0]


def test_disagreement() -> None:
    one = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    assert disagreement(one.expand(5, -1, -1), scale=torch.ones(3)).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    # +-1 in a feature of scale 2 and +-3 in one of scale 1: sqrt((0.25 + 9) / 2).
    apart = torch.tensor([[[1.0, 3.0]], [[-1.0, -3.0]]])
    assert float(disagreement(apart, scale=torch.tensor([2.0, 1.0]))) == pytest.approx(math.sqrt(9.25 / 2))
