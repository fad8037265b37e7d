"""The newest command of a device, between the thread that hears it and the loop that reads it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from robot_rl.teleop.commands import EVENT, DeviceStatus, TeleopCommand


class CommandSlot:
    """Holds one command; nothing here waits. An event that was said between two readings is in the next one, also when its key
    was let go of meanwhile: a loop is slower than a tap.

    Args:
        name: of the device.
        help: what does what: control -> meaning.
    """

    def __init__(self, name: str, help: Mapping[str, str]) -> None:
        self.name, self._help = name, dict(help)
        self._lock = threading.Lock()
        self._command = TeleopCommand()
        self._stamps: deque[float] = deque(maxlen=1000)
        self._problems: dict[str, str] = {}
        self._has_reader = self._is_read = False
        self.is_connected = False

    def say(self, *, stamp_s: float, **fields: Any) -> None:
        """A new command.

        Args:
            stamp_s: when it was received, CLOCK_MONOTONIC seconds.
            fields: others of TeleopCommand.
        """
        with self._lock:
            # A reader must never see time go back, whichever thread was late.
            stamp_s = max(stamp_s, self._command.stamp_s)
            if self._has_reader and not self._is_read:
                asked = {button for button in self._command.buttons if button.startswith(EVENT)}
                fields["buttons"] = frozenset(fields.get("buttons", ())) | asked
            self._is_read = False
            self._command = TeleopCommand(sequence=self._command.sequence + 1, stamp_s=stamp_s, **fields)
            self._stamps.append(stamp_s)

    def problem(self, key: str, text: str = "") -> None:
        """Something is wrong, or with an empty text, right again."""
        with self._lock:
            self._problems.pop(key, None)
            if text:
                self._problems[key] = text

    def read(self) -> TeleopCommand:
        """The newest. Of one reader: what it read counts as heard."""
        with self._lock:
            self._has_reader = self._is_read = True
            return self._command

    def status(self) -> DeviceStatus:
        """As the contract has it."""
        with self._lock:
            now_s = time.monotonic()
            recent = sum(now_s - stamp_s <= 1.0 for stamp_s in self._stamps)
            return DeviceStatus(
                self.name, self.is_connected, now_s - self._command.stamp_s, self._command.sequence, float(recent),
                tuple(self._problems.values()), dict(self._help),
            )  # fmt: skip
