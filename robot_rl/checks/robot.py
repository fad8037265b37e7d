"""Conformance suite for Robot, and the look at a real arm before anything moves: it only connects and reads.

Names and topics are looked at by `connect`; here come shapes, numbers, limits, rates, ages and clocks, over some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from robot_rl.checks.findings import Check, Finding, error, run_checks, skipped, warning
from robot_rl.contracts import Robot
from robot_rl.deploy.loop_checks import wrong_calibrations
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import DataError
from robot_rl.types import Reading

ROBOT_CHECKS = (
    "connect",
    "contract",
    "streams",
    "numbers",
    "limits",
    "at_rest",
    "rates",
    "ages",
    "clocks",
    "images",
    "calibrations",
    "read_time",
)
# A clock that is ahead of ours by less is rounding and conversion of stamps.
_AHEAD_S = 0.02
_RATE_SHARE = 0.9
_MOVING = 0.05
_READ_SHARE = 0.2


def check_robot(
    robot: Robot, *, streams: tuple[str, ...] | None = None, seconds: float = 5.0, clock: Clock | None = None
) -> list[Finding]:
    """Connect, read for some seconds, and judge. Nothing is commanded.

    Args:
        robot: not connected yet; it stays connected.
        streams: whose rates and ages matter; None: all that come.
        seconds: to read, at twice the rate of commands.
        clock: see Clock.
    """
    trial = RobotTrial(robot, streams=streams, seconds=seconds, clock=MonotonicClock() if clock is None else clock)
    checks: dict[str, Check] = {name: getattr(trial, name) for name in ROBOT_CHECKS}
    connected = run_checks({"connect": checks.pop("connect")})
    if trial.readings:
        return connected + run_checks(checks)
    unseen = skipped("", expected="readings to look at", got="none", fix="See the finding of `connect`.")
    return connected + [replace(unseen, check=name) for name in checks]


class RobotTrial:
    """One robot under test. Arguments as `check_robot`."""

    def __init__(self, robot: Robot, *, streams: tuple[str, ...] | None, seconds: float, clock: Clock) -> None:
        self.robot, self.card, self._clock, self._seconds = robot, robot.card, clock, seconds
        self._wanted = streams
        self.readings: list[Reading] = []
        self.times_s: list[float] = []
        self.took_s: list[float] = []

    def connect(self) -> Iterator[Finding]:
        """Connect, and collect readings on an even grid."""
        self.robot.connect()
        period_s, start_s = 0.5 / self.card.control_hz, self._clock.now()
        for number in range(int(self._seconds / period_s) + 1):
            self._clock.sleep_until(start_s + number * period_s)
            began_s = self._clock.now()
            self.readings.append(self.robot.read())
            self.times_s.append(began_s)
            self.took_s.append(self._clock.now() - began_s)
        yield from ()

    @property
    def _streams(self) -> list[str]:
        seen = {stream for reading in self.readings for stream in reading.stamps}
        return sorted(seen if self._wanted is None else self._wanted)

    def contract(self) -> Iterator[Finding]:
        """Methods are there; sizes and keys are those of card and spec."""
        robot: Any = self.robot
        if not isinstance(robot, Robot):
            yield error(type(robot).__name__, expected="all of Robot", got="less", fix="See contracts.py.")
        reading, joints = self.readings[-1], len(self.card.joints)
        for name, array, shape in (
            ("position", reading.position, (joints,)), ("velocity", reading.velocity, (joints,)),
            ("pose", reading.pose, (7,)), ("wrench", reading.wrench, (6,)),
        ):  # fmt: skip
            if array is not None and array.shape != shape:
                yield error(
                    name, expected=f"shape {shape}", got=str(array.shape), fix="One number a joint of the card."
                )
        for key, spec in self.robot.spec.observation.items():
            if key not in reading.frames:
                yield error(
                    f"frames, {key}",
                    expected="an array",
                    got="none",
                    fix="Add it to the card's inputs, or to the spec.",
                )
                continue
            try:
                spec.validate(np.asarray(reading.frames[key]), where=f"robot {self.card.name!r}")
            except DataError as problem:
                yield error(problem.where, expected=problem.expected, got=problem.got, fix=problem.hint)

    def streams(self) -> Iterator[Finding]:
        """Every wanted stream comes."""
        for stream in self._streams:
            missing = sum(stream not in reading.stamps for reading in self.readings)
            if missing:
                yield error(
                    stream, expected="in every reading", got=f"missing in {missing} of {len(self.readings)}",
                    fix="Is its driver up, and its topic the one of the card?",
                )  # fmt: skip

    def numbers(self) -> Iterator[Finding]:
        """Finite numbers; a quaternion of length 1."""
        for name in ("position", "velocity", "pose", "gripper", "wrench"):
            values = [getattr(reading, name) for reading in self.readings]
            bad = sum(value is not None and not np.isfinite(value).all() for value in values)
            if bad:
                yield error(
                    name,
                    expected="finite numbers",
                    got=f"others in {bad} of {len(values)} readings",
                    fix="Look at its driver.",
                )
        lengths = [
            float(np.linalg.norm(r.pose[3:])) for r in self.readings if r.pose is not None and np.isfinite(r.pose).all()
        ]
        if lengths and max(abs(length - 1) for length in lengths) > 1e-3:
            yield error(
                "pose", expected="a quaternion wxyz of length 1", got=f"length {lengths[-1]:.4f}", fix="Normalise it."
            )

    def limits(self) -> Iterator[Finding]:
        """The arm and its gripper are inside the limits of the card: else no policy may start."""
        low, high = np.array(self.card.limits.low), np.array(self.card.limits.high)
        position = self.readings[-1].position
        if position.shape == low.shape:
            for index in np.flatnonzero(~((position >= low) & (position <= high))):
                yield error(
                    f"joint {self.card.joints[index]!r}", expected=f"{low[index]:g} .. {high[index]:g}",
                    got=f"{position[index]:g}", fix="Move it inside by hand; or the card is of another arm, or in degrees.",
                )  # fmt: skip
        gripper, opening = self.card.gripper, self.readings[-1].gripper
        if gripper is not None and opening is not None:
            ends = sorted((gripper.closed, gripper.open))
            slack = 0.05 * (ends[1] - ends[0])
            if not ends[0] - slack <= opening <= ends[1] + slack:
                yield warning(
                    "gripper",
                    expected=f"{ends[0]:g} .. {ends[1]:g}",
                    got=f"{opening:g}",
                    fix="Unit and scale of the card?",
                )

    def at_rest(self) -> Iterator[Finding]:
        """Nobody moves the arm while it is looked at."""
        fastest = max((float(np.abs(r.velocity).max()) for r in self.readings if r.velocity is not None), default=0.0)
        if fastest > _MOVING:
            yield warning(
                "velocity",
                expected=f"below {_MOVING:g} rad/s",
                got=f"{fastest:g}",
                fix="Does something else command it?",
            )

    def rates(self) -> Iterator[Finding]:
        """Every stream is new at least as often as a command is due."""
        span_s = self.times_s[-1] - self.times_s[0]
        for stream in self._streams:
            stamps = {reading.stamps[stream] for reading in self.readings if stream in reading.stamps}
            rate_hz = (len(stamps) - 1) / span_s if span_s > 0 else 0.0
            if rate_hz < _RATE_SHARE * self.card.control_hz:
                yield error(
                    stream, expected=f"new frames at {self.card.control_hz:g} Hz or more", got=f"{rate_hz:.1f} Hz",
                    fix="Raise the driver's rate, or lower control_hz of policy and card.",
                )  # fmt: skip

    def ages(self) -> Iterator[Finding]:
        """No stream is older than its threshold."""
        for stream in self._streams:
            most_s = self.card.thresholds.age_s(stream)
            ages = [
                now - r.stamps[stream] for r, now in zip(self.readings, self.times_s, strict=True) if stream in r.stamps
            ]
            if ages and max(ages) > most_s:
                late = sum(age > most_s for age in ages)
                yield error(
                    stream, expected=f"at most {1e3 * most_s:g} ms old", got=f"up to {1e3 * max(ages):.0f} ms, {late} of {len(ages)}",
                    fix="The robot would hold. Network, clock offset, or an exposure that is too long?",
                )  # fmt: skip

    def clocks(self) -> Iterator[Finding]:
        """Stamps neither lie in the future nor go back."""
        for stream in self._streams:
            pairs = [
                (r.stamps[stream], now)
                for r, now in zip(self.readings, self.times_s, strict=True)
                if stream in r.stamps
            ]
            ahead_s = max((stamp - now for stamp, now in pairs), default=0.0)
            if ahead_s > _AHEAD_S:
                yield error(
                    stream,
                    expected="stamps of the past",
                    got=f"{1e3 * ahead_s:.0f} ms ahead",
                    fix="Set both clocks (chrony, PTP).",
                )
            stamps = [stamp for stamp, _ in pairs]
            if any(later < earlier for earlier, later in pairwise(stamps)):
                yield error(
                    stream,
                    expected="stamps that only grow",
                    got="one that goes back",
                    fix="Two publishers, or a clock that was set.",
                )

    def images(self) -> Iterator[Finding]:
        """Cameras show something that changes: noise alone does."""
        for key in self.robot.spec.observation:
            frames = [
                np.asarray(reading.frames[key])
                for reading in self.readings
                if key.startswith("image/") and key in reading.frames
            ]
            if len(frames) > 1 and all((frame == frames[0]).all() for frame in frames[1:]):
                yield warning(
                    key,
                    expected="frames that differ",
                    got=f"{len(frames)} equal ones",
                    fix="A frozen or covered camera?",
                )
            elif frames and int(frames[-1].max()) == int(frames[-1].min()):
                yield warning(
                    key, expected="a picture", got=f"one colour, {int(frames[-1].max())}", fix="Is the lens cap on?"
                )

    def calibrations(self) -> Iterator[Finding]:
        """Each calibration of the card is there, and is of this camera, robot and size."""
        for wrong in wrong_calibrations(self.card, self.robot.spec):
            yield error(wrong.where, expected=wrong.expected, got=wrong.got, fix=wrong.hint)

    def read_time(self) -> Iterator[Finding]:
        """`read` gives what is there and does not wait for more."""
        slow_s = float(np.quantile(self.took_s, 0.99))
        if slow_s > _READ_SHARE / self.card.control_hz:
            yield warning(
                "read", expected=f"at most {1e3 * _READ_SHARE / self.card.control_hz:.1f} ms", got=f"p99 {1e3 * slow_s:.1f} ms",
                fix="Receive in a thread or process of its own; read() returns the newest.",
            )  # fmt: skip
