"""Longest run of successes and successes an hour: RL-100's measures beside the success rate (arXiv 2510.14830)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robot_rl.arrays import Array, Bool
from robot_rl.errors import DataError


def runs_of(outcomes: Sequence[bool] | Bool[Array, " N"]) -> list[tuple[int, int]]:
    """(first, one behind the last) of each run of True, in order."""
    flags = np.asarray(outcomes, dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(int(first), int(stop)) for first, stop in zip(edges[::2], edges[1::2], strict=True)]


def longest_run(outcomes: Sequence[bool] | Bool[Array, " N"]) -> tuple[int, int]:
    """(length, index of its first outcome) of the longest run of True; the earliest of equals, (0, 0) without one."""
    first, stop = max(runs_of(outcomes), key=lambda run: run[1] - run[0], default=(0, 0))
    return stop - first, first


def successes_an_hour(successes: int, *, play_s: float, episodes: int, reset_s: float) -> float:
    """3600 k / (play_s + n reset_s): successes of one robot that plays episode after episode.

    Args:
        successes: k.
        play_s: seconds of all episodes together, failures too.
        episodes: n.
        reset_s: seconds that the reset before each episode takes.

    Raises:
        DataError: no time, or impossible counts.
    """
    total_s = play_s + episodes * reset_s
    if total_s <= 0 or play_s < 0 or reset_s < 0 or not 0 <= successes <= episodes:
        raise DataError(
            "successes an hour", expected="times of 0 or more, not all 0, and 0 <= successes <= episodes",
            got=f"{play_s} s of play, {reset_s} s a reset, {successes} successes of {episodes}",
            hint="Count finished episodes; reset_s is 0 or more.",
        )  # fmt: skip
    return 3600.0 * successes / total_s
