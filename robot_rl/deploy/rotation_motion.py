"""Rotation within a geodesic rate and acceleration, whatever targets come and whenever they come.

The rotation goes at one angular velocity from one command to the next; its norm is below the rate, and its change from
step to step below the acceleration times the time between the middles of the two steps. Far from the target the rate is
the largest from which it can still stop there: v dt/2 + v^2/2a = angle, the sum of a braking in steps. A target that
moves is met at its own rate. Quaternions q and -q, and Euler angles on two branches, are one rotation here.

Quaternions are wxyz with w >= 0, unit length; angles in radians, all in the base frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64

_LONGEST_S = 60.0
_UNIT = 1e-2


def as_unit(quaternion: Float64[Array, "4"]) -> Float64[Array, "4"] | None:
    """The rotation with unit length and w >= 0; None when it is further than 1 % from unit length."""
    length = math.hypot(*quaternion.tolist())
    if not abs(length - 1) <= _UNIT:
        return None
    return quaternion / math.copysign(length, quaternion[0])


def multiply(left: Float64[Array, "4"], right: Float64[Array, "4"]) -> Float64[Array, "4"]:
    """First `right`, then `left`."""
    a, b, c, d = left.tolist()
    e, f, g, h = right.tolist()
    return np.array(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ],
        np.float64,
    )


def from_vector(vector: Float64[Array, "3"]) -> Float64[Array, "4"]:
    """Quaternion of axis times angle."""
    angle = math.hypot(*vector.tolist())
    scale = math.sin(angle / 2) / angle if angle > 0 else 0.5
    return np.concatenate([[math.cos(angle / 2)], scale * vector])


def difference(target: Float64[Array, "4"], start: Float64[Array, "4"]) -> Float64[Array, "3"]:
    """Axis times angle of the shortest rotation from `start` to `target`; its norm, 0 to pi, is the geodesic distance."""
    way = multiply(target, start * [1.0, -1.0, -1.0, -1.0])
    sine = math.hypot(*way[1:].tolist())
    if sine == 0:
        return np.zeros(3)
    return way[1:] * (2 * math.atan2(sine, abs(way[0])) / math.copysign(sine, way[0]))


@dataclass(frozen=True)
class RotationState:
    """Where a rotation is: quaternion wxyz (4,), and the angular velocity of the last step, rad/s (3,), float64."""

    quaternion: Float64[Array, "4"]
    rate: Float64[Array, "3"]


class RotationLimiter:
    """Follows rotations within limits. The caller keeps numbers that are not finite away.

    Args:
        rate_rad_s, acceleration_rad_s2: largest norms.
        quaternion: where it is, at rest.
    """

    def __init__(self, rate_rad_s: float, acceleration_rad_s2: float, quaternion: Float64[Array, "4"]) -> None:
        self._most, self._acceleration, self._period_s = rate_rad_s, acceleration_rad_s2, math.inf
        self.restart(quaternion)

    def restart(self, quaternion: Float64[Array, "4"]) -> None:
        """At rest there."""
        self._state, self._target = RotationState(quaternion, np.zeros(3)), quaternion

    @property
    def state(self) -> RotationState:
        """Where the rotation is, and how fast it came there."""
        return self._state

    @property
    def memory(self) -> tuple[RotationState, Float64[Array, "4"], float]:
        """Everything a step changes; set it to what it was, and the step was never taken."""
        return self._state, self._target, self._period_s

    @memory.setter
    def memory(self, memory: tuple[RotationState, Float64[Array, "4"], float]) -> None:
        self._state, self._target, self._period_s = memory

    def braking_rad(self, period_s: float) -> float:
        """At most how far it still turns when it brakes from now on, in steps of `period_s`."""
        rate = _norm(self._state.rate)
        return rate**2 / (2 * self._acceleration) + rate * min(period_s, _LONGEST_S)

    def follow(self, target: Float64[Array, "4"], period_s: float, *, to_rest: bool = False) -> RotationState:
        """Go towards a target for `period_s`; it is reached exactly and on time where the limits allow.

        Args:
            target: unit quaternion.
            period_s: time since the last call, above 0 and finite.
            to_rest: stop there, even where the target moves.
        """
        period_s = min(period_s, _LONGEST_S)
        step = difference(target, self._target)
        # A jump is no motion of the target.
        is_stream = not to_rest and 0 < _norm(step) <= self._most * period_s
        speed = step / period_s if is_stream else np.zeros(3)
        self._target = target
        left = difference(target, self._state.quaternion) - speed * period_s
        angle = _norm(left)
        pace = min(1 / period_s, self._stoppable(angle, period_s) / angle) if angle > 0 else 0.0
        return self._go(_shortened(speed + pace * left, self._most), period_s)

    def brake(self, period_s: float) -> RotationState:
        """Come to rest as quickly as the limits allow, for `period_s`; at rest it holds."""
        state = self._go(np.zeros(3), min(period_s, _LONGEST_S))
        self._target = state.quaternion
        return state

    def _stoppable(self, angle: float, period_s: float) -> float:
        half = period_s / 2
        return self._acceleration * (math.sqrt(half**2 + 2 * angle / self._acceleration) - half)

    def _go(self, wanted: np.ndarray, period_s: float) -> RotationState:
        most = self._acceleration * min(period_s, (period_s + self._period_s) / 2)
        rate = self._state.rate + _shortened(wanted - self._state.rate, most)
        rate = _shortened(rate, self._most)
        moved = multiply(from_vector(rate * period_s), self._state.quaternion)
        moved = moved / math.copysign(math.hypot(*moved.tolist()), moved[0])
        self._state, self._period_s = RotationState(moved, rate), period_s
        return self._state


def _norm(vector: np.ndarray) -> float:
    return math.hypot(*vector.tolist())


def _shortened(vector: np.ndarray, most: float) -> np.ndarray:
    length = _norm(vector)
    return vector * (most / length) if length > most else vector
