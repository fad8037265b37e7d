"""A device that says again what was recorded of one: for tests, and to drive without a person.

`robot-rl check teleop teleop=<device> --record FILE` makes a recording; its form: robot_rl/teleop/command_files.py.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import DeployError
from robot_rl.teleop.command_files import FIELDS, read_commands
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand


@dataclass(frozen=True)
class ReplayDeviceConfig:
    """See the text of this module.

    Attributes:
        file: the recording.
        speed: 2 plays it in half the time.
        is_repeated: whether it begins anew behind its end; else its last command grows old, as of a device that is lost.
    """

    file: str
    speed: float = 1.0
    is_repeated: bool = False


class ReplayDevice:
    """A TeleopDevice.

    Args:
        config: see ReplayDeviceConfig.
        clock: of the stamps.
    """

    name = "replay"

    def __init__(self, config: ReplayDeviceConfig, *, clock: Clock | None = None) -> None:
        self.config, self._clock = config, MonotonicClock() if clock is None else clock
        self._commands: list[TeleopCommand] = []
        self._times_s: list[float] = []
        self._start_s, self._is_open = 0.0, False
        self._last = TeleopCommand()

    def connect(self) -> None:
        """Read the recording; it begins now.

        Raises:
            DeployError: no such file.
            DataError: the line that can't be read.
        """
        if not self.config.speed > 0:
            raise DeployError("replay", expected="speed above 0", got=f"{self.config.speed:g}", hint="1 is as it was.")
        self._commands = read_commands(Path(self.config.file))
        self._times_s = [command.stamp_s / self.config.speed for command in self._commands]
        self._start_s, self._is_open = self._clock.now(), True

    def read(self) -> TeleopCommand:
        """As the contract has it."""
        if not self._is_open or not self._commands:
            return self._last
        passed_s, round_s, before = self._clock.now() - self._start_s, 0.0, 0
        if self.config.is_repeated and self._times_s[-1] > 0:
            before = int(passed_s // self._times_s[-1])
            round_s = before * self._times_s[-1]
        index = bisect_right(self._times_s, passed_s - round_s) - 1
        if index >= 0:
            command = self._commands[index]
            sequence = before * len(self._commands) + index + 1
            if sequence != self._last.sequence:
                values = {name: getattr(command, name) for name in FIELDS}
                self._last = TeleopCommand(sequence, self._start_s + round_s + self._times_s[index], **values)
        return self._last

    def status(self) -> DeviceStatus:
        """As the contract has it."""
        age_s = self._clock.now() - self._last.stamp_s
        span_s = self._times_s[-1] if self._times_s else 0.0
        is_over = self._is_open and not self.config.is_repeated and self._last.sequence == len(self._commands)
        return DeviceStatus(
            self.name, self._is_open, age_s, self._last.sequence, len(self._times_s) / span_s if span_s else 0.0,
            ("the recording is over",) if is_over else (), {"file": self.config.file},
        )  # fmt: skip

    def close(self) -> None:
        """As the contract has it."""
        self._is_open = False
