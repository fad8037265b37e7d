"""Stamps of another clock: a simulated sender, network and receiver whose true times are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from robot_rl.hardware.ros2_clock import CONFIRM, StampClock

WALL_S = 1.7e9  # wall clock minus CLOCK_MONOTONIC of the receiver


@dataclass
class Message:
    """When it was truly captured, when it came (CLOCK_MONOTONIC), and its stamp."""

    captured_s: float
    received_s: float
    stamp_s: float


def messages(
    count: int, *, ahead_s: float = 0.0, way_s: float = 0.002, jitter_s: float = 0.003, start_s: float = 50.0, seed: int = 0
) -> Iterator[Message]:  # fmt: skip
    """100 Hz; the sender's clock is `ahead_s` before the receiver's wall clock; a message takes way_s to way_s + jitter_s."""
    rng, last = np.random.default_rng(seed), 0.0
    for number in range(count):
        captured = start_s + 0.01 * number
        last = max(last, captured + way_s + jitter_s * rng.random())  # never overtakes the one before
        yield Message(captured, last, captured + WALL_S + ahead_s)


def clock() -> StampClock:
    return StampClock(wall=lambda: WALL_S)


def errors(clock: StampClock, sent: Iterator[Message]) -> list[float | None]:
    """Captured as told, less the truth."""
    out = []
    for message in sent:
        told = clock.captured_s(message.stamp_s, message.received_s)
        assert told is None or told <= message.received_s
        out.append(None if told is None else told - message.captured_s)
    return out


@pytest.mark.parametrize("ahead_s", [0.0, 0.01, -0.02])
def test_on_the_same_clock_the_whole_way_counts(ahead_s: float) -> None:
    """20 ms of latency are seen as 20 ms; a clock that is off by less than 20 ms is not told from one that is right."""
    ours = clock()
    found = errors(ours, messages(300, ahead_s=ahead_s, way_s=0.02))
    assert ours.is_same_clock
    np.testing.assert_allclose([error for error in found if error is not None], ahead_s, atol=1e-6)


@pytest.mark.parametrize("ahead_s", [3.2, -3.2, 86_400.0, -WALL_S])
def test_another_clock_counts_from_its_quickest_message(ahead_s: float) -> None:
    ours = clock()
    found = errors(ours, messages(300, ahead_s=ahead_s, way_s=0.002, jitter_s=0.003))
    assert not ours.is_same_clock
    assert ours.away_s == pytest.approx(-ahead_s, abs=0.01)
    # The quickest of many took 2 ms, so that is by how much captures seem too late.
    np.testing.assert_allclose(found[-100:], 0.002, atol=3e-4)
    assert ours.jumps == []


@pytest.mark.parametrize("ahead_s", [0.0, 5.0], ids=["same clock", "another clock"])
@pytest.mark.parametrize("jump_s", [-10.0, 10.0, -0.5, 0.5])
def test_a_jump_is_confirmed_followed_and_told(jump_s: float, ahead_s: float) -> None:
    ours = clock()
    errors(ours, messages(200, ahead_s=ahead_s))
    assert ours.trouble == ""
    after = list(messages(100, ahead_s=ahead_s + jump_s, start_s=52.0, seed=1))
    found = errors(ours, iter(after[: CONFIRM - 1]))
    assert found == [None] * (CONFIRM - 1)
    assert ours.trouble == "clock jump"
    found = errors(ours, iter(after[CONFIRM - 1 :]))
    assert ours.trouble == ""
    assert ours.jumps == [pytest.approx(jump_s, abs=0.01)]
    np.testing.assert_allclose(found, 0.0, atol=0.006)


@pytest.mark.parametrize("ahead_s", [0.0, 5.0], ids=["same clock", "another clock"])
def test_late_messages_are_old_and_no_jump(ahead_s: float) -> None:
    """A network that holds messages back for a second and then delivers all at once: ages say so."""
    ours = clock()
    errors(ours, messages(200, ahead_s=ahead_s))
    late = [
        Message(entry.captured_s, max(entry.received_s, 53.0), entry.stamp_s)
        for entry in messages(150, ahead_s=ahead_s, start_s=52.0)
    ]
    found = errors(ours, iter(late))
    np.testing.assert_allclose(found, 0.0, atol=0.006)
    assert ours.jumps == []


def test_waiting_messages_at_the_start_are_no_jump() -> None:
    """The queue of a latched topic: the first message is old, the next ones are fresh."""
    ours = clock()
    first = Message(40.0, 50.0, 40.0 + WALL_S)
    assert errors(ours, iter([first])) == [pytest.approx(10.0)], "nothing to compare with: it counts as fresh"
    found = errors(ours, messages(100))
    np.testing.assert_allclose(found, 0.0, atol=1e-6)
    assert ours.jumps == []
    assert ours.is_same_clock


def test_stamps_that_stand_still_grow_old() -> None:
    ours = clock()
    assert ours.is_moving, "nothing is known"
    first, *rest = messages(60)
    ours.captured_s(first.stamp_s, first.received_s)
    assert not ours.is_moving
    for message in rest:
        told = ours.captured_s(first.stamp_s, message.received_s)
        assert told == pytest.approx(first.captured_s, abs=1e-6)
    assert ours.trouble == "stale clock"
    assert not ours.is_moving
    moving = clock()
    errors(moving, messages(3))
    assert moving.is_moving


def test_without_a_stamp_the_receipt_counts() -> None:
    ours = clock()
    assert ours.captured_s(None, 12.5) == 12.5
    assert ours.is_moving
    assert ours.trouble == ""


def test_a_clock_that_drifts_is_followed() -> None:
    """100 ppm over 1000 s are 0.1 s."""
    ours, rng = clock(), np.random.default_rng(0)
    worst = 0.0
    for number in range(10_000):
        captured = 50 + 0.1 * number
        stamp, received = WALL_S + 7 + captured * (1 - 1e-4), captured + 0.001 * rng.random()
        told = ours.captured_s(stamp, received)
        assert told is not None
        worst = max(worst, abs(told - captured))
    assert worst < 0.003
    assert ours.jumps == []


def test_two_senders_with_different_clocks_do_not_take_turns() -> None:
    """The one that was first is believed; the other's messages are never used."""
    ours = clock()
    errors(ours, messages(50))
    for one, other in zip(messages(50, start_s=50.5), messages(50, start_s=50.5, ahead_s=-10), strict=True):
        assert ours.captured_s(one.stamp_s, one.received_s) is not None
        assert ours.captured_s(other.stamp_s, one.received_s + 1e-4) is None
    assert ours.jumps == []
