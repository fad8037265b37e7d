"""Longest run and successes an hour by hand."""

from __future__ import annotations

import itertools

import pytest

from robot_rl.algorithms.throughput import longest_run, successes_an_hour
from robot_rl.errors import DataError


@pytest.mark.parametrize(
    ("text", "length", "first"),
    [
        ("", 0, 0),
        ("...", 0, 0),
        ("xxx", 3, 0),
        ("x.xx.", 2, 2),
        (".xx.xx", 2, 1),  # the earlier of two equals
        ("xx.xxx", 3, 3),  # up to the last one
    ],
)
def test_longest_run_by_hand(text: str, length: int, first: int) -> None:
    assert longest_run([letter == "x" for letter in text]) == (length, first)


def test_longest_run_against_groupby() -> None:
    """All 1,024 lists of ten outcomes against itertools."""
    for outcomes in itertools.product([False, True], repeat=10):
        lengths = [len(list(group)) for won, group in itertools.groupby(outcomes) if won]
        length, first = longest_run(outcomes)
        assert length == max(lengths, default=0)
        assert all(outcomes[first : first + length])


def test_successes_an_hour_by_hand() -> None:
    # 3 successes of 4 episodes in 20 s of play and four resets of 10 s: 3 a minute.
    assert successes_an_hour(3, play_s=20.0, episodes=4, reset_s=10.0) == pytest.approx(180.0)
    assert successes_an_hour(3, play_s=20.0, episodes=4, reset_s=0.0) == pytest.approx(540.0)
    assert successes_an_hour(0, play_s=20.0, episodes=4, reset_s=0.0) == 0.0


@pytest.mark.parametrize(
    ("successes", "play_s", "episodes", "reset_s"), [(1, 0.0, 1, 0.0), (2, 1.0, 1, 0.0), (1, 1.0, 1, -1.0)]
)
def test_impossible_counts_are_refused(successes: int, play_s: float, episodes: int, reset_s: float) -> None:
    with pytest.raises(DataError):
        successes_an_hour(successes, play_s=play_s, episodes=episodes, reset_s=reset_s)
