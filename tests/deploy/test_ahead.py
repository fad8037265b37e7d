"""Deltas from where the arm will be: closed forms, and a delayed plant that behaves as the one without delay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.ahead import Ahead, AheadConfig
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.targets import Target
from robot_rl.errors import ConfigError
from robot_rl.types import Goal, Reading

LAG_S, PERIOD_S = 0.1, 0.05
TURN = [0.6, 0.8, 0.0, 0.0]


class Deltas:
    """Pose goals: measured place + action, rotation as measured."""

    def __init__(self) -> None:
        self.seen: list[Reading] = []

    def read(self, action: Sequence[float] | Any, *, reading: Reading, sent: Goal | None) -> Target:
        self.seen.append(reading)
        assert reading.pose is not None
        return Target(
            Goal(pose=np.concatenate([reading.pose[:3] + action, reading.pose[3:]]), gripper=0.04), Reason.none
        )


def reading_at(place: np.ndarray, stamp_s: float, *, position: float = 0.0) -> Reading:
    stamps = {"pose": stamp_s, "joints": stamp_s}
    return Reading({}, stamps, np.array([position]), pose=np.concatenate([place, TURN]))


def pose(x: float) -> np.ndarray:
    return np.array([x, 0, 0, *TURN])


def test_one_goal_in_force_all_the_time() -> None:
    clock, deltas = ManualClock(10.0), Deltas()
    ahead = Ahead(deltas, AheadConfig(LAG_S), clock=clock)
    ahead.read(np.zeros(3), reading=reading_at(np.zeros(3), 10.0), sent=None)
    clock.advance(PERIOD_S)
    late = reading_at(np.array([0.2, 0, 0]), clock.now() - 0.03)
    ahead.read(np.zeros(3), reading=late, sent=Goal(pose=pose(1.0)))
    seen = deltas.seen[-1].pose
    assert seen is not None
    np.testing.assert_allclose(seen, [1 - 0.8 * math.exp(-0.3), 0, 0, *TURN], atol=1e-12)
    assert late.pose is not None
    assert late.pose[0] == 0.2, "what was measured stays as it was"


def test_two_goals_one_after_the_other() -> None:
    """Captured at 0.02, goals sent at 0 and 0.05 act 0.04 later: the first from 0.04 to 0.09, the second until 0.14."""
    clock, deltas = ManualClock(0.0), Deltas()
    ahead = Ahead(deltas, AheadConfig(LAG_S, 0.04), clock=clock)
    for number, sent in enumerate((None, Goal(pose=pose(1.0)), Goal(pose=pose(-1.0)))):
        clock.sleep_until(PERIOD_S * number)
        ahead.read(np.zeros(3), reading=reading_at(np.zeros(3), 0.02), sent=sent)
    first = 1 - math.exp(-0.5)
    seen = deltas.seen[-1].pose
    assert seen is not None
    assert seen[0] == pytest.approx(-1 + (first + 1) * math.exp(-0.5), abs=1e-12)


@pytest.mark.parametrize(("late_s", "command_s"), [(0.0, 0.0), (0.03, 0.0), (0.04, 0.035), (0.09, 0.06)])
def test_a_late_plant_goes_the_way_of_one_that_is_not(late_s: float, command_s: float) -> None:
    """x' = (goal - x) / lag, seen late and told late; every goal must be the true place where it acts, plus its delta."""
    deltas = np.random.default_rng(0).uniform(-1, 1, 40)
    clock = ManualClock(0.0)
    ahead = Ahead(Deltas(), AheadConfig(LAG_S, command_s), clock=clock)
    acting: list[tuple[float, float]] = []  # (from when, goal), exactly as the plant has them

    def true_place(time_s: float) -> float:
        x = 0.0
        for number, (from_s, goal) in enumerate(acting):
            to_s = acting[number + 1][0] if number + 1 < len(acting) else math.inf
            x = goal + (x - goal) * math.exp(-max(min(to_s, time_s) - from_s, 0.0) / LAG_S)
        return x

    sent = None
    for number, delta in enumerate(deltas):
        clock.sleep_until(PERIOD_S * number)
        now = clock.now()
        seen = reading_at(np.array([true_place(now - late_s), 0, 0]), now - late_s)
        target = ahead.read(np.array([delta, 0, 0]), reading=seen, sent=sent)
        sent = target.goal
        assert sent.pose is not None
        assert sent.pose[0] == pytest.approx(true_place(now + command_s) + delta, abs=1e-9)
        acting.append((now + command_s, float(sent.pose[0])))


def test_joints_too_and_a_new_episode_forgets() -> None:
    clock, deltas = ManualClock(0.0), Deltas()
    ahead = Ahead(deltas, AheadConfig(LAG_S), clock=clock)
    ahead.read(np.zeros(3), reading=reading_at(np.zeros(3), 0.0), sent=None)
    clock.advance(0.1)
    ahead.read(np.zeros(3), reading=reading_at(np.zeros(3), 0.0), sent=Goal(position=np.array([2.0])))
    np.testing.assert_allclose(deltas.seen[-1].position, [2 - 2 * math.exp(-1)])
    assert deltas.seen[-1].pose is not None
    assert deltas.seen[-1].pose[0] == 0.0, "no goal of a pose was sent"
    clock.advance(0.1)
    ahead.read(np.zeros(3), reading=reading_at(np.zeros(3), 0.1), sent=None)
    np.testing.assert_array_equal(deltas.seen[-1].position, [0.0])


def test_without_stamps_nothing_is_foreseen() -> None:
    clock, deltas = ManualClock(0.0), Deltas()
    ahead = Ahead(deltas, AheadConfig(LAG_S), clock=clock)
    bare = Reading({}, {}, np.array([1.0]), pose=pose(0.5))
    for sent in (None, Goal(pose=pose(3.0))):
        ahead.read(np.zeros(3), reading=bare, sent=sent)
        clock.advance(0.1)
    np.testing.assert_array_equal(deltas.seen[-1].pose, pose(0.5))


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (0.1, -0.1), (0.1, math.inf)])
def test_wrong_numbers(numbers: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="response_s"):
        AheadConfig(*numbers)
