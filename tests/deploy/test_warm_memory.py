"""What a warm start remembers, by hand; both policies are compared with each other in test_rti_policy.py and the export's tests."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.deploy.warm_memory import WarmCounts, WarmMemory, shift_chunk
from robot_rl.errors import PolicyError

CHUNK = np.arange(8, dtype=np.float32).reshape(1, 4, 2)


def test_shift_repeats_the_last_action() -> None:
    assert shift_chunk(CHUNK, 1)[0].tolist() == [[2, 3], [4, 5], [6, 7], [6, 7]]
    assert shift_chunk(CHUNK, 4)[0].tolist() == [[6, 7]] * 4
    np.testing.assert_array_equal(shift_chunk(CHUNK, 0), CHUNK)
    assert shift_chunk(CHUNK, 2, past=1)[0].tolist() == [[2, 3], [4, 5], [6, 7], [6, 7], [6, 7]]
    assert shift_chunk(CHUNK, 0, past=2)[0].tolist() == [[0, 1]] * 2 + CHUNK[0].tolist()
    assert not np.shares_memory(shift_chunk(CHUNK, 0), CHUNK)
    with pytest.raises(PolicyError, match="0 to 4 executed"):
        shift_chunk(CHUNK, 5)


def three() -> WarmMemory:
    actions = np.repeat(CHUNK, 3, axis=0)
    actions[2, 3, 1] = np.nan
    return WarmMemory.after(actions, np.zeros((3, 2), np.float32), executed=1, past=0)


def test_who_may_start_warm() -> None:
    """Of three envs one saw nothing new, one jumped by more than 0.5 in one element, and one has a guess that is not finite."""
    seen = np.float32([[0, 0.5], [0.6, 0], [0, 0]])
    known, is_warm = three().rows(seen, max_jump=0.5)
    assert (known.tolist(), is_warm.tolist()) == ([True] * 3, [True, False, False])
    assert three().rows(seen, max_jump=0.7)[1].tolist() == [True, True, False]
    assert three().rows(np.full((3, 2), np.nan, np.float32), max_jump=0.5)[1].tolist() == [False] * 3
    known, is_warm = WarmMemory().rows(seen, max_jump=0.5)
    assert not known.any()
    assert not is_warm.any()


def test_forgetting_and_being_told_leave_the_old_memory_alone() -> None:
    before = three()
    some = before.without(np.array([True, False, False]))
    assert some.known.tolist() == [False, True, True]
    assert before.known.tolist() == [True] * 3
    assert some.without(np.ones(3, bool)).is_empty
    assert WarmMemory().without(np.array([True, False])).is_empty

    one = WarmMemory.after(CHUNK, np.zeros((1, 2), np.float32), executed=2, past=1)
    rest = np.full((4, 2), 7, np.float32)
    told = one.told(rest, past=1)
    assert told.guess[0].tolist() == [[7, 7]] * 5
    assert told.known.tolist() == [True]
    assert one.guess[0, 0].tolist() == [2, 3]
    assert one.told(None, past=1).known.tolist() == [False]
    assert WarmMemory().told(rest, past=1).is_empty


def test_another_number_of_envs_is_refused() -> None:
    for call in (
        lambda: three().rows(np.zeros((2, 2), np.float32), max_jump=1.0),
        lambda: three().without(np.array([True, False])),
        lambda: three().told(None, past=0),
    ):
        with pytest.raises(PolicyError, match="3 envs, as at the last decision"):
            call()


def test_decisions_are_counted_by_reason() -> None:
    counts = WarmCounts()
    counts.add(np.array([True, True, False]), np.array([True, False, False]))
    counts.add(np.array([True, False]), np.zeros(2, bool), is_full=True)
    assert counts.to_json() == {"warm": 1, "first": 2, "jump": 1, "full": 1}
