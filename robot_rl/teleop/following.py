"""Following what a device shows (velocities, a hand, a leader arm) smoothly, the same at every rate, and never with a jump.

Smoothing is a first-order lag, solved exactly over each period for an input that stands still in it: the path is the same
whether it is cut into 20, 50 or 100 periods a second.
"""

from __future__ import annotations

import math

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.rotation_motion import difference, from_vector, multiply

_CONJUGATE = np.array([1.0, -1.0, -1.0, -1.0])


class Lag:
    """Velocities behind a first-order lag.

    Args:
        time_s: constant; 0: none.
        size: of the velocities.
    """

    def __init__(self, time_s: float, size: int) -> None:
        self._time_s, self.velocity = time_s, np.zeros(size)

    def reset(self) -> None:
        """At rest."""
        self.velocity = np.zeros_like(self.velocity)

    def way(self, wanted: Array, period_s: float) -> Float64[Array, " S"]:
        """How far it goes in a period in which `wanted` (S,) is asked for: the integral of the lagged velocity."""
        if not self._time_s:
            self.velocity = np.asarray(wanted, np.float64)
            return self.velocity * period_s
        left = self.velocity - wanted
        fade = math.exp(-period_s / self._time_s)
        self.velocity = wanted + left * fade
        return np.asarray(wanted * period_s + left * self._time_s * (1 - fade), np.float64)


def lag_share(time_s: float, period_s: float) -> float:
    """Share of the distance to a place that stands still which a first-order lag closes in a period."""
    return 1.0 if not time_s else 1.0 - math.exp(-period_s / time_s)


class HandFollower:
    """A tracked hand since it was engaged, as a motion of the tool since then.

    Args:
        pose: of the hand when it was engaged, m and quaternion wxyz, float64 (7,).
        scale: metres of the tool for one of the hand.
    """

    def __init__(self, pose: Float64[Array, "7"], *, scale: float) -> None:
        self._start, self._scale = _unit(pose), scale

    def motion(self, pose: Float64[Array, "7"]) -> Float64[Array, "6"]:
        """How far the hand went, in its own frame: m along, and axis times angle about its axes."""
        pose = _unit(pose)
        way = (pose[:3] - self._start[:3]) * self._scale
        return np.concatenate([way, difference(pose[3:], self._start[3:])])


class LeaderFollower:
    """A leader arm since it was engaged; the robot's joints begin where they are and come to the leader's slowly.

    Args:
        leader: its joints when it was engaged, float64 (J,), rad or m.
        start: the robot's.
        ramp_per_s: how fast the difference between them is worked off; 0: it stays.
    """

    def __init__(self, leader: Float64[Array, " J"], start: Float64[Array, " J"], *, ramp_per_s: float) -> None:
        self._offset, self._ramp = start - leader, ramp_per_s

    def goal(self, leader: Float64[Array, " J"], period_s: float) -> Float64[Array, " J"]:
        """Where the robot's joints belong after a period."""
        step = self._ramp * period_s
        self._offset = self._offset - np.clip(self._offset, -step, step)
        return leader + self._offset


def leader_problems(
    names: tuple[str, ...], leader: Float64[Array, " J"], start: Float64[Array, " J"], *, most: float
) -> tuple[str, ...]:
    """Joints of a leader arm that are too far from the robot's to be engaged, each with what it looks like.

    A whole turn is never taken off in silence: a counter that begins elsewhere after a power cycle, and a joint that really
    is elsewhere, look the same from here.
    """
    problems = []
    for name, gap in zip(names, (leader - start).tolist(), strict=True):
        if abs(gap) <= most:
            continue
        turns = round(gap / (2 * math.pi))
        left = gap - turns * 2 * math.pi
        is_turned = turns != 0 and abs(left) <= most
        why = f", {turns:+d} whole turn(s) and {left:+.2f}: calibrate the leader arm anew" if is_turned else ""
        problems.append(f"leader joint {name} is {gap:+.2f} from the robot's, at most {most:g} may be{why}")
    return tuple(problems)


def moved(pose: Float64[Array, "7"], motion: Float64[Array, "6"], *, in_tool: bool) -> Float64[Array, "7"]:
    """A pose behind a motion (m; axis times angle) along and about the axes of the base, or of the tool."""
    turn = from_vector(motion[3:])
    if in_tool:
        way = multiply(multiply(pose[3:], np.concatenate([[0.0], motion[:3]])), pose[3:] * _CONJUGATE)[1:]
        return np.concatenate([pose[:3] + way, multiply(pose[3:], turn)])
    return np.concatenate([pose[:3] + motion[:3], multiply(turn, pose[3:])])


def _unit(pose: Float64[Array, "7"]) -> Float64[Array, "7"]:
    return np.concatenate([pose[:3], pose[3:] / np.linalg.norm(pose[3:])])
