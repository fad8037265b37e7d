"""Joint motion within position, velocity, acceleration and jerk limits, whatever targets come and whenever they come.

Every step plans anew from where the last one ended (Ruckig: Berscheid and Kroeger 2021, arXiv 2105.04830) and goes along
the plan for the time that passed, so the limits hold between the commands too. A plan ends at the target at rest, or
with the speed of the stream of targets where the joint could still stop before its bound. A plan is taken only when all of it
lies inside the position limits; while there is no such new plan, the old one is followed to its end, and then braked.

Limits that couple joints (a workspace) are kept by looking ahead: a step is taken only when the way from its end to rest
stays inside, so there is always a way to stop inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.plan_extrema import extrema
from robot_rl.errors import ConfigError, DeployError

# Rounding of the planner, relative to the range of a joint.
_TOLERANCE = 1e-9
# Whoever waited longer finds the joints where this time takes them.
_LONGEST_S = 60.0
# Points looked at on the way to rest: between two of them a way strays by less than 1/4096 of the braking distance.
_LOOK_AHEAD = 32
# A workspace is kept with this to spare, for what lies between those points.
MARGIN_M = 1e-3
# A joint with nearly nothing to do on a straight way gets this share of its limits: Ruckig fails on smaller ones.
_LEAST_SHARE = 1e-3
# Of the speed of a stream of targets, tried in this order.
_SHARES_OF_SPEED = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class JointLimits:
    """Limits of J joints; radians and metres as the joints are.

    Attributes:
        names: of the joints, in the order of every array.
        low, high: positions.
        velocity, acceleration, jerk: largest absolute values.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("low", "high", "velocity", "acceleration", "jerk"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            is_rate = name not in ("low", "high")
            if values.shape != (len(self.names),) or not np.isfinite(values).all() or (is_rate and (values <= 0).any()):
                raise ConfigError(
                    f"limits.{name}", expected=f"{len(self.names)} finite numbers" + ", above 0" * is_rate,
                    got=str(getattr(self, name)), hint=f"One for each of {', '.join(self.names)}.",
                )  # fmt: skip
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if low >= high:
                raise ConfigError(
                    f"limits of joint {name!r}", expected="low below high", got=f"{low} and {high}", hint="Correct it."
                )


@dataclass(frozen=True)
class MotionState:
    """Where J joints are on their plan: position, velocity and acceleration, float64 (J,)."""

    position: Float64[Array, " J"]
    velocity: Float64[Array, " J"]
    acceleration: Float64[Array, " J"]


class MotionLimiter:
    """Follows targets within limits, every joint by itself. The caller keeps numbers that are not finite away.

    Args:
        limits: of the joints.
        position: where they are, at rest, float64 (J,).

    Raises:
        DeployError: a start outside the position limits, or ruckig is not installed.
    """

    def __init__(self, limits: JointLimits, position: Float64[Array, " J"]) -> None:
        rows = zip(limits.low, limits.high, limits.velocity, limits.acceleration, limits.jerk, strict=True)
        self.limits = limits
        self._joints = [
            _Joint(name, tuple(map(float, row)), start=float(start))
            for name, row, start in zip(limits.names, rows, position, strict=True)
        ]
        self._is_held_back = False
        self._state: MotionState | None = None  # of the joints as they are now, made when asked for

    @property
    def is_held_back(self) -> bool:
        """Whether `is_inside` changed what the last step did."""
        return self._is_held_back

    @property
    def state(self) -> MotionState:
        """Where the joints are on their plans; its arrays can't be written to."""
        if self._state is None:
            rows = np.array([joint.state for joint in self._joints]).T.copy()
            rows.flags.writeable = False
            self._state = MotionState(*rows)
        return self._state

    def follow(
        self,
        target: Float64[Array, " J"],
        period_s: float,
        *,
        is_inside: Callable[[Float64[Array, "n J"]], bool] | None = None,
    ) -> MotionState:
        """Go towards a target for `period_s`; it is reached exactly and on time where the limits allow.

        Args:
            target: positions, finite; clipped to the limits.
            period_s: time since the last call, above 0 and finite.
            is_inside: whether the joints may be at all of n positions; None: everywhere. The start must be inside. Where
                the quickest way does not stay inside, a straight one is tried, and when that does not, they brake.
        """
        shares: list[tuple[float, float, float] | None] = [None] * len(self._joints)
        before = self.memory
        self._towards(target, period_s, shares)
        self._is_held_back = is_inside is not None and not self._rests_inside(is_inside)
        if is_inside is None or not self._is_held_back:
            return self.state
        self.memory = before
        self._towards(target, period_s, self._straight(target))
        if not self._rests_inside(is_inside):
            self.memory = before
            self.brake(period_s)
        return self.state

    @property
    def memory(self) -> tuple[Any, ...]:
        """Everything a step changes; set it to what it was, and the step was never taken."""
        return tuple(joint.memory for joint in self._joints)

    @memory.setter
    def memory(self, memory: tuple[Any, ...]) -> None:
        self._state = None
        for joint, part in zip(self._joints, memory, strict=True):
            joint.memory = part

    def _towards(self, target: np.ndarray, period_s: float, shares: list[tuple[float, float, float] | None]) -> None:
        self._state = None
        for joint, place, share in zip(self._joints, target.tolist(), shares, strict=True):
            joint.follow(place, period_s, share=share)

    def _straight(self, target: np.ndarray) -> list[tuple[float, float, float] | None]:
        """Shares of velocity, acceleration and jerk with which all joints, from rest, take the same time."""
        limits = self.limits
        way = np.abs(np.clip(target, limits.low, limits.high) - self.state.position)
        most = np.array([limits.velocity, limits.acceleration, limits.jerk])
        with np.errstate(divide="ignore"):
            pace = (most / way).min(axis=1, keepdims=True)
        shares = np.clip(pace * way / most, _LEAST_SHARE, 1.0) if way.any() else np.ones_like(most)
        return [None if not length else tuple(share) for length, share in zip(way, shares.T.tolist(), strict=True)]

    def _rests_inside(self, is_inside: Callable[[np.ndarray], bool]) -> bool:
        """Whether the way from here to rest is inside."""
        plans = [joint.rest_plan() for joint in self._joints]
        if any(plan is None for plan in plans):
            return False
        longest = max(plan.duration for plan in plans)
        places = [
            [plan.at_time(min(time_s, plan.duration))[0][0] for plan in plans]
            for time_s in (np.linspace(0.0, longest, _LOOK_AHEAD + 1).tolist() if longest > 0 else [0.0])
        ]
        return is_inside(np.array(places, np.float64))

    def brake(self, period_s: float) -> MotionState:
        """Come to rest as quickly as the limits allow, for `period_s`; at rest it holds."""
        self._state = None
        for joint in self._joints:
            joint.brake(period_s)
        return self.state


class _Joint:
    """One joint: its state (position, velocity, acceleration) and the plan it is on."""

    def __init__(self, name: str, limits: tuple[float, ...], *, start: float) -> None:
        try:
            import ruckig
        except ModuleNotFoundError as error:
            raise DeployError(
                "motion limits",
                expected="the package ruckig",
                got="not installed",
                hint="pip install 'robot-rl[ros2]'.",
            ) from error
        self._low, self._high, self._velocity, self._acceleration, self._jerk = limits
        if not self._low <= start <= self._high:
            raise DeployError(
                f"joint {name!r}", expected=f"a start in {self._low:g} .. {self._high:g}", got=f"{start:g}",
                hint="Move it inside by hand, or correct the limits.",
            )  # fmt: skip
        self._name, self._ruckig, self._planner = name, ruckig, ruckig.Ruckig(1)
        self._slack = _TOLERANCE * (self._high - self._low)
        self.state = (start, 0.0, 0.0)
        self._target, self._pace = start, 0.0
        self._plan: Any = None
        self._time_s = 0.0

    @property
    def memory(self) -> tuple[Any, ...]:
        return self.state, self._target, self._pace, self._plan, self._time_s

    @memory.setter
    def memory(self, memory: tuple[Any, ...]) -> None:
        self.state, self._target, self._pace, self._plan, self._time_s = memory

    def follow(self, target: float, period_s: float, *, share: tuple[float, float, float] | None = None) -> None:
        """One step towards a target; with a share of the limits it ends at rest there."""
        period_s = min(period_s, _LONGEST_S)
        target = min(max(target, self._low), self._high)
        step, self._target = target - self._target, target
        pace, before = step / period_s, self._pace
        self._pace = pace
        room = self._high - target if step > 0 else target - self._low
        # One step alone is no stream: whoever passed it at its speed would have to come back.
        is_stream = pace * before > 0 and abs(pace) <= self._velocity
        speed = math.copysign(min(abs(pace), self._stoppable(room)), step) if is_stream else 0.0
        rest = self._to_target(target, 0.0, period_s, share=share)
        plan = self._passing(target, speed, period_s, rest=rest) if speed and share is None else None
        self._go(rest if plan is None else plan, period_s)

    def _passing(self, target: float, speed: float, period_s: float, *, rest: Any) -> Any:
        """A plan through the target with as much of `speed` as there is way for; None: there is way for none.

        The quickest plan to a speed that the way is too short for takes a run-up: it first goes away from the target.
        """
        for share in _SHARES_OF_SPEED:
            plan = self._to_target(target, share * speed, period_s)
            if plan is None or rest is None:
                return plan
            (least, most), (rest_least, rest_most) = extrema(plan), extrema(rest)
            if (least >= rest_least - self._slack) if speed > 0 else (most <= rest_most + self._slack):
                return plan
        return None

    def brake(self, period_s: float) -> None:
        self._go(self.rest_plan(), min(period_s, _LONGEST_S))
        self._target, self._pace = self.state[0], 0.0  # the next target is no stream from where it was

    def _stoppable(self, room: float) -> float:
        """Largest speed from which the joint, without acceleration, stops within `room`: v^2/2a + v a/2j = room."""
        ramp = self._acceleration**2 / self._jerk
        return min(self._velocity, max(0.0, (math.sqrt(ramp**2 + 8 * self._acceleration * room) - ramp) / 2))

    def _to_target(
        self, target: float, speed: float, period_s: float, *, share: tuple[float, float, float] | None = None
    ) -> Any:
        task = self._task()
        if share is not None:
            most = [x * y for x, y in zip((self._velocity, self._acceleration, self._jerk), share, strict=True)]
            task.max_velocity, task.max_acceleration, task.max_jerk = ([value] for value in most)
            # With less jerk the acceleration of now lasts longer, and may lead beyond the limit of velocity.
            if abs(self.state[1] + self.state[2] * abs(self.state[2]) / (2 * most[2])) > self._velocity:
                return None
        task.target_position, task.target_velocity, task.minimum_duration = [target], [speed], period_s
        return self._calculated(task)

    def rest_plan(self) -> Any:
        """The quickest plan to rest, wherever that is; None when it would pass a bound (the old plan turns before it)."""
        task = self._task()
        task.control_interface, task.target_velocity = self._ruckig.ControlInterface.Velocity, [0.0]
        return self._calculated(task)

    def _task(self) -> Any:
        task = self._ruckig.InputParameter(1)
        task.current_position, task.current_velocity, task.current_acceleration = ([value] for value in self.state)
        task.max_velocity, task.max_acceleration, task.max_jerk = [self._velocity], [self._acceleration], [self._jerk]
        return task

    def _calculated(self, task: Any) -> Any:
        """A plan inside the position limits, or None."""
        plan = self._ruckig.Trajectory(1)
        try:
            result = self._planner.calculate(task, plan)
        except (self._ruckig.RuckigError, ValueError):  # its binding has no name for some results
            return None
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished) or not self._is_sane(plan):
            return None
        least, most = extrema(plan)
        return plan if least >= self._low - self._slack and most <= self._high + self._slack else None

    def _is_sane(self, plan: Any) -> bool:
        """Whether a plan begins where the joint is, is finite, and is nowhere further than the speed limit lets it.

        Random states found plans of Ruckig 0.19 that jump, or hold NaN, from speeds of 1e-34 or over 1e-9 s.
        """
        duration, start = plan.duration, self.state[0]
        for time_s in (0.0, 0.5 * duration, duration):
            (position,), (velocity,), (acceleration,) = plan.at_time(time_s)
            if not (math.isfinite(position) and math.isfinite(velocity) and math.isfinite(acceleration)):
                return False
            if abs(position - start) > self._velocity * time_s + self._slack:
                return False
        return math.isfinite(duration)

    def _go(self, plan: Any, period_s: float) -> None:
        """Along `plan`, or further along the one before; behind its end there is always room to brake."""
        if plan is not None:
            self._plan, self._time_s = plan, 0.0
        if self._plan is None:  # at the very start, at rest
            return
        left_s = self._plan.duration - self._time_s
        if period_s > left_s and abs(self._at(self._plan.duration)[1]) > _TOLERANCE * self._velocity:
            self.state = self._at(self._plan.duration)
            rest = self.rest_plan()
            if rest is None:
                raise DeployError(
                    f"joint {self._name!r}", expected="room to brake at the end of a plan", got=f"none at {self.state}",
                    hint="Stop the robot by its own means; this is a bug, please report it.",
                )  # fmt: skip
            self._plan, self._time_s, period_s = rest, 0.0, period_s - max(left_s, 0.0)
        self._time_s = min(self._time_s + period_s, self._plan.duration)
        self.state = self._at(self._time_s)

    def _at(self, time_s: float) -> tuple[float, float, float]:
        (position,), (velocity,), (acceleration,) = self._plan.at_time(time_s)
        # Takes off the rounding of the planner, nothing else: what is nearly rest is rest.
        if abs(velocity) < _TOLERANCE * self._velocity and abs(acceleration) < _TOLERANCE * self._acceleration:
            velocity = acceleration = 0.0
        return (
            min(max(position, self._low), self._high),
            min(max(velocity, -self._velocity), self._velocity),
            min(max(acceleration, -self._acceleration), self._acceleration),
        )


def is_below(half_spaces: tuple[tuple[float, float, float, float], ...], places: Float64[Array, "*n 3"]) -> bool:
    """Whether all places, metres, are in all half-spaces, with the margin."""
    planes = np.asarray(half_spaces, np.float64).reshape(-1, 4)
    spare = MARGIN_M * np.linalg.norm(planes[:, :3], axis=1)
    return bool((places @ planes[:, :3].T <= planes[:, 3] - spare).all())
