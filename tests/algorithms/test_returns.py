"""Hand numbers of GAE, chunks and masks."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.algorithms.returns import (
    chunk_reward,
    decision_discount,
    generalized_advantage,
    reachable_range,
    returns_to_go,
)

TERMINATED = [0.21712, 0.246, 0.3]
TRUNCATED = [0.590368, 0.7644, 1.02]
V = [0.5, 0.6, 0.7]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def gae(ends: str, *, trace: float = 0.8, last_value: float = 0.8, executed: int = 1) -> torch.Tensor:
    flags = torch.tensor([[False], [False], [True]])
    none = torch.zeros_like(flags)
    advantage, returns = generalized_advantage(
        column(0.0, 0.0, 1.0), column(*V), column(0.6, 0.7, last_value),
        executed=torch.full((3, 1), executed), terminated=flags if ends == "terminated" else none,
        truncated=flags if ends == "truncated" else none, gamma=0.9, trace=trace,
    )  # fmt: skip
    assert torch.allclose(returns, advantage + column(*V))
    return advantage[:, 0]


def test_gae_hand_numbers() -> None:
    assert gae("terminated").tolist() == pytest.approx(TERMINATED, abs=1e-6)
    assert gae("truncated").tolist() == pytest.approx(TRUNCATED, abs=1e-6)
    # The value behind a true end is never looked at.
    assert torch.equal(gae("terminated", last_value=123.0), gae("terminated"))


def test_gae_at_both_ends_of_lambda() -> None:
    assert gae("terminated", trace=0.0).tolist() == pytest.approx([0.04, 0.03, 0.3], abs=1e-6)
    assert gae("terminated", trace=1.0).tolist() == pytest.approx([0.81 - 0.5, 0.9 - 0.6, 1 - 0.7], abs=1e-6)


def test_episodes_in_one_column_do_not_see_each_other() -> None:
    """Two episodes behind each other, and beside them the same two the other way round with an idle row between."""
    reward = torch.tensor([[0.0, 0], [0, 0], [1, 1], [0, 9], [0, 0], [1, 0], [9, 1]])
    value = torch.tensor([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7], [0.5, 9], [0.6, 0.5], [0.7, 0.6], [9, 0.7]])
    following = torch.tensor([[0.6, 0.6], [0.7, 0.7], [55, 0.8], [0.6, 9], [0.7, 0.6], [0.8, 0.7], [9, 55]])
    terminated, truncated = torch.zeros(2, 7, 2, dtype=torch.bool)
    terminated[2, 0], truncated[5, 0], truncated[2, 1], terminated[6, 1] = True, True, True, True
    executed = torch.ones(7, 2, dtype=torch.int64)
    executed[6, 0] = executed[3, 1] = 0
    advantage, returns = generalized_advantage(
        reward, value, following, executed=executed, terminated=terminated, truncated=truncated, gamma=0.9, trace=0.8
    )
    assert advantage[:, 0].tolist() == pytest.approx([*TERMINATED, *TRUNCATED, 0], abs=1e-6)
    assert advantage[:, 1].tolist() == pytest.approx([*TRUNCATED, 0, *TERMINATED], abs=1e-6)
    assert returns[6, 0] == 9


def test_an_idle_row_carries_nothing() -> None:
    """An env that waits is not a bridge between the rows around it."""
    none = torch.zeros(2, 1, dtype=torch.bool)
    advantage, _ = generalized_advantage(
        column(5.0, 1.0), column(0.0, 0.0), column(7.0, 0.0),
        executed=torch.tensor([[0], [1]]), terminated=none, truncated=none, gamma=0.9, trace=0.8,
    )  # fmt: skip
    assert advantage[:, 0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("chunk", [1, 4, 8, 16])
def test_a_sparse_reward_is_worth_the_same_for_every_chunk_length(chunk: int) -> None:
    """+1 at env step 80, gamma 0.997: 0.788710 = gamma^79."""
    rewards = torch.zeros(80)
    rewards[79] = 1
    rows = rewards.view(-1, chunk)
    folded = chunk_reward(rows, torch.ones_like(rows, dtype=torch.bool), gamma=0.997)[:, None]
    count = len(folded)
    ends = torch.zeros(count, 1, dtype=torch.bool)
    ends[-1] = True
    advantage, _ = generalized_advantage(
        folded, torch.zeros(count, 1), torch.zeros(count, 1), executed=torch.full((count, 1), chunk),
        terminated=ends, truncated=torch.zeros_like(ends), gamma=0.997, trace=1.0,
    )  # fmt: skip
    assert float(advantage[0, 0]) == pytest.approx(0.788710, abs=1e-5)


def test_padding_behind_the_end_does_not_count() -> None:
    mask = torch.tensor([[True, True, True, False]])
    assert float(chunk_reward(torch.tensor([[0.0, 0, 1, 1]]), mask, gamma=0.9)) == pytest.approx(0.81)
    assert float(chunk_reward(torch.tensor([[0.0, 0, 1, math.nan]]), mask, gamma=0.9)) == pytest.approx(0.81)
    first = torch.zeros(1, 16, dtype=torch.bool)
    first[0, 0] = True
    assert float(chunk_reward(torch.ones(1, 16), first, gamma=0.997)) == 1.0


def test_discount_counts_what_was_played() -> None:
    discount = decision_discount(torch.tensor([4, 3, 3, 0]), torch.tensor([False, False, True, False]), gamma=0.9)
    assert discount.tolist() == pytest.approx([0.6561, 0.729, 0.0, 1.0])


def test_returns_to_go() -> None:
    assert returns_to_go(torch.tensor([1.0, 0.0, 2.0]), gamma=0.5).tolist() == [1.5, 1.0, 2.0]


def test_reachable_range() -> None:
    assert reachable_range(0.0, 1.0, gamma=0.997, max_steps=100, only_once=True) == (0.0, 1.0)
    assert reachable_range(-1.0, 1.0, gamma=0.5, max_steps=2, only_once=False) == (-1.5, 1.5)
    assert reachable_range(0.25, 1.0, gamma=1.0, max_steps=7, only_once=False) == (0.0, 7.0)
