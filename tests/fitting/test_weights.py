"""Weights of weighted imitation by hand, and draws in proportion to them."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.errors import DataError
from robot_rl.fitting.weights import WeightedRows, awr_weights, effective_share, success_weights


def test_awr_by_hand() -> None:
    weight = awr_weights(torch.tensor([-1.0, 1.0, -1.0, 1.0]), temperature=0.5, exponent_max=1.5)
    assert weight.tolist() == pytest.approx([math.exp(-2), math.exp(1.5)] * 2)
    assert awr_weights(torch.full((3,), 0.7), temperature=0.5, exponent_max=1.5).tolist() == [1.0] * 3


def test_effective_share_by_hand() -> None:
    assert effective_share(torch.ones(8)) == pytest.approx(1.0)
    assert effective_share(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert effective_share(torch.tensor([1.0, 1.0, 2.0])) == pytest.approx(16 / 18)


def test_draws_follow_the_weights_and_never_take_a_zero() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = WeightedRows(weight).draw(40_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=5) / 40_000
    assert share[[0, 2, 4]].tolist() == [0, 0, 0]
    assert float(share[3]) == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 40_000))


def test_success_weights() -> None:
    assert success_weights(torch.tensor([True, False])).tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match="an episode that succeeded"):
        success_weights(torch.tensor([False, False]))
