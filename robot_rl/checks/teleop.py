"""Conformance suite for TeleopDevice, and the look at a device before a robot listens to it: nothing is commanded.

It reads for some seconds, as a session does. Use the device meanwhile: what was never pressed is not checked, and said to be so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from robot_rl.checks.findings import Check, Finding, error, run_checks, skipped, warning
from robot_rl.contracts import TeleopDevice
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.teleop.commands import EVENT, DeviceStatus, TeleopCommand
from robot_rl.teleop.panel import EVENTS

TELEOP_CHECKS = (
    "connect", "contract", "read_time", "stamps", "sequence", "let_go", "numbers", "buttons", "status", "close",
)  # fmt: skip
# A read that takes longer holds up a loop of 100 Hz.
_READ_S = 2e-3
_AHEAD_S = 1e-3
_RELEASE_S = 0.1


def check_teleop(
    device: TeleopDevice,
    *,
    seconds: float = 5.0,
    rate_hz: float = 50.0,
    clock: Clock | None = None,
    heard: list[TeleopCommand] | None = None,
) -> list[Finding]:
    """Connect, read for some seconds, judge, and close.

    Args:
        device: not connected yet; it is closed afterwards.
        seconds: to read.
        rate_hz: of readings.
        clock: see Clock; its `now` must be CLOCK_MONOTONIC.
        heard: what the device said is added here, one of each sequence number.
    """
    trial = TeleopTrial(device, seconds=seconds, rate_hz=rate_hz, clock=MonotonicClock() if clock is None else clock)
    checks: dict[str, Check] = {name: getattr(trial, name) for name in TELEOP_CHECKS}
    try:
        connected = run_checks({"connect": checks.pop("connect")})
        close = checks.pop("close")
        found = connected + (run_checks(checks) if trial.commands else [])
        return found + run_checks({"close": close})
    finally:
        device.close()
        if heard is not None:
            heard += trial.said


class TeleopTrial:
    """One device under test. Arguments as `check_teleop`."""

    def __init__(self, device: TeleopDevice, *, seconds: float, rate_hz: float, clock: Clock) -> None:
        self.device, self._seconds, self._rate_hz, self._clock = device, seconds, rate_hz, clock
        self.commands: list[TeleopCommand] = []
        self.times_s: list[float] = []
        self.took_s: list[float] = []
        self.before: DeviceStatus | None = None

    def connect(self) -> Iterator[Finding]:
        """Status before a connection, connect, and read on an even grid."""
        self.before = self.device.status()
        self.device.connect()
        start_s = self._clock.now()
        for number in range(int(self._seconds * self._rate_hz) + 1):
            self._clock.sleep_until(start_s + number / self._rate_hz)
            began_s = time.perf_counter()
            self.commands.append(self.device.read())
            self.took_s.append(time.perf_counter() - began_s)
            self.times_s.append(self._clock.now())
        yield from ()

    @property
    def said(self) -> list[TeleopCommand]:
        """One of each sequence number."""
        return list({command.sequence: command for command in self.commands if command.sequence > 0}.values())

    def contract(self) -> Iterator[Finding]:
        """Methods are there, and the right types come back."""
        device: Any = self.device
        if not isinstance(device, TeleopDevice):
            yield error(type(device).__name__, expected="all of TeleopDevice", got="less", fix="See contracts.py.")
        command: Any = self.commands[-1]
        if not isinstance(command, TeleopCommand):
            yield error("read", expected="a TeleopCommand", got=type(command).__name__, fix="Return one.")
        if not isinstance(device.name, str) or not device.name:
            yield error("name", expected="a text", got=repr(device.name), fix="The screen and the log show it.")
        if not self.said:
            yield warning(
                "read", expected="commands", got="none in all this time",
                fix="Use the device while this runs; a session waits to be told that the clutch is open.",
            )  # fmt: skip

    def read_time(self) -> Iterator[Finding]:
        """`read` gives what is there and does not wait for more."""
        slow_s = float(np.median(self.took_s))
        if slow_s > _READ_S:
            yield error(
                "read", expected=f"at most {1e3 * _READ_S:g} ms", got=f"median {1e3 * slow_s:.1f} ms",
                fix="Receive in a thread or process of its own; read() returns the newest.",
            )  # fmt: skip

    def stamps(self) -> Iterator[Finding]:
        """CLOCK_MONOTONIC, of the past, never going back."""
        for command, now_s in zip(self.commands, self.times_s, strict=True):
            if command.sequence == 0 and command.stamp_s != float("-inf"):
                yield error(
                    "stamp_s", expected="-inf before the first command", got=f"{command.stamp_s}", fix="Leave it."
                )
            if command.sequence > 0 and not (np.isfinite(command.stamp_s) and command.stamp_s <= now_s + _AHEAD_S):
                yield error(
                    "stamp_s", expected="time.monotonic() at its receipt", got=f"{command.stamp_s:g} at {now_s:g}",
                    fix="Stamp it with time.monotonic() where it arrives, not with the sender's clock.",
                )  # fmt: skip
        ages = [now - c.stamp_s for c, now in zip(self.commands, self.times_s, strict=True) if c.sequence > 0]
        if ages and min(ages) > self._seconds + 60:
            yield error(
                "stamp_s", expected="of this machine's clock", got=f"{min(ages):.0f} s old", fix="time.monotonic()."
            )
        stamps = [command.stamp_s for command in self.commands]
        if any(later < earlier for earlier, later in pairwise(stamps)):
            yield error("stamp_s", expected="stamps that only grow", got="one that goes back", fix="Two threads?")

    def sequence(self) -> Iterator[Finding]:
        """Numbers rise, and the same number is the same command."""
        for earlier, later in pairwise(self.commands):
            if later.sequence < earlier.sequence:
                yield error(
                    "sequence", expected="to rise", got=f"{earlier.sequence}, {later.sequence}", fix="Count on."
                )
            if later.sequence == earlier.sequence and not _is_same(earlier, later):
                yield error(
                    "sequence", expected="the same command under the same number", got=f"another under {later.sequence}",
                    fix="Make a new command with a new number; never change one that was handed out.",
                )  # fmt: skip

    def let_go(self) -> Iterator[Finding]:
        """The first commands are not engaged, and what is not engaged does not move."""
        first = self.said[:1]
        if first and first[0].engaged:
            yield error(
                "engaged", expected="an open clutch at the start", got="engaged",
                fix="Was something held? If not: say that nothing is held before anything else, or nothing will ever move.",
            )  # fmt: skip
        moving = [command for command in self.said if not command.engaged and np.any(command.motion)]
        if moving:
            yield warning(
                "motion", expected="zeros while not engaged", got=f"{moving[0].motion.tolist()}",
                fix="The clutch stops it anyway; the screen would show motion that does not come.",
            )  # fmt: skip
        if self.said and not any(command.engaged for command in self.said):
            yield skipped("engaged", expected="a held clutch", got="never held", fix="Hold it while this runs.")
        ages = [
            now - command.stamp_s
            for command, now in zip(self.commands, self.times_s, strict=True)
            if command.engaged and command.sequence > 0
        ]
        late = sum(age > _RELEASE_S for age in ages)
        if ages and late > 0.02 * len(ages):
            yield warning(
                "stamp_s", expected=f"at most {1e3 * _RELEASE_S:g} ms old while held", got=f"older in {late} of {len(ages)} reads",
                fix="Motion fades and stops then. Send while the clutch is held, also when nothing changes, at 20 Hz or more.",
            )  # fmt: skip

    def numbers(self) -> Iterator[Finding]:
        """Shapes, types, finite, within -1..1."""
        for command in self.said:
            motion = command.motion
            if motion.shape != (6,) or motion.dtype != np.float32:
                yield error(
                    "motion", expected="float32 (6,)", got=f"{motion.dtype} {motion.shape}", fix="x y z roll pitch yaw."
                )
            elif not np.isfinite(motion).all() or np.abs(motion).max() > 1:
                yield error(
                    "motion", expected="-1..1", got=str(motion.tolist()), fix="Shares of the greatest speed; clip them."
                )
            for name, low in (("gripper", -1.0), ("opening", 0.0)):
                value = getattr(command, name)
                if value is not None and not low <= value <= 1:
                    yield error(name, expected=f"{low:g}..1", got=f"{value}", fix="Clip it.")
            for name, size in (("joints", None), ("pose", 7)):
                array = getattr(command, name)
                if array is None:
                    continue
                if array.ndim != 1 or (size and array.shape != (size,)) or not np.isfinite(array).all():
                    yield error(
                        name, expected=f"finite ({size or 'J'},)", got=f"{array}", fix="None where it is not known."
                    )
            if command.pose is not None and abs(float(np.linalg.norm(command.pose[3:])) - 1) > 1e-3:
                yield error(
                    "pose", expected="a quaternion wxyz of length 1", got=str(command.pose[3:]), fix="Normalise it."
                )

    def buttons(self) -> Iterator[Finding]:
        """Events that there are."""
        seen = {button for command in self.commands for button in command.buttons}
        for button in sorted(seen):
            if button.startswith(EVENT) and button.removeprefix(EVENT) not in EVENTS:
                yield error(
                    "buttons", expected="event:<one of " + ", ".join(EVENTS) + ">", got=button, fix="Correct it."
                )

    def status(self) -> Iterator[Finding]:
        """Never raises, before and after; help tells what does what."""
        status: Any = self.device.status()
        if not isinstance(status, DeviceStatus):
            yield error("status", expected="a DeviceStatus", got=type(status).__name__, fix="Return one.")
            return
        if not status.is_connected:
            yield error("status", expected="is_connected", got="not", fix="Set it from connect to close.")
        if self.before is not None and self.before.is_connected:
            yield error("status", expected="not connected before connect", got="connected", fix="Set it in connect.")
        if not status.help:
            yield warning("status.help", expected="what does what", got="nothing", fix="The screen shows it to people.")
        for problem in status.problems:
            yield warning("status.problems", expected="none", got=problem, fix="See the text.")

    def close(self) -> Iterator[Finding]:
        """Close twice; reading and status still answer, and nothing is new."""
        self.device.close()
        self.device.close()
        last = self.device.read()
        if self.device.status().is_connected:
            yield error("status", expected="not connected behind close", got="connected", fix="Clear it in close.")
        self._clock.sleep_until(self._clock.now() + 0.05)
        if self.device.read().sequence != last.sequence:
            yield error("read", expected="no new commands behind close", got="some", fix="End the thread in close.")


def _is_same(one: TeleopCommand, other: TeleopCommand) -> bool:
    for name in vars(one):
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
            if not np.array_equal(left, right, equal_nan=True):
                return False
        elif left != right:
            return False
    return True
