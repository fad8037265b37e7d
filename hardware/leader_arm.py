"""A leader arm: a small copy of the robot that a person moves, heard from servos, ROS 2 or a socket (leader_drivers.py).

Its joints are followed while the clutch is held, which is a key or a button: an arm that lies on the table must not move a robot.
Numbers are never folded: a joint that leaps (its counter wrapped inside the travel) or a gripper far outside its travel stops the
device until it is connected anew. What is still a whole turn off when it is engaged, the mapping names and refuses.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.contracts import TeleopDevice
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import ConfigError, DeployError, RobotRlError, closest
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand

from .leader_calibration import LeaderCalibration, LeaderJoint, load_calibration
from .leader_drivers import DynamixelSource, FeetechSource, LeaderSource, Numbers, Ros2Source, SocketSource
from .teleop_slot import CommandSlot

GRIPPER = "gripper"
SOURCES = ("socket", "ros2", "dynamixel", "feetech")
CLUTCHES = ("keyboard", "gamepad")
# A person does not move a joint faster than this; a wrapped counter does.
_LEAP_RAD_S = 20.0
_LEAP_RAD = 1.0
_SLACK = 0.25
_FIRST_S = 5.0
_LOST_S = 0.01


@dataclass(frozen=True)
class LeaderArmConfig:
    """See the text of this module.

    Attributes:
        source: "socket", "ros2", "dynamixel" or "feetech".
        port: serial line of servos.
        baud: of it; 57600 and 1000000 are usual for Dynamixel, 1000000 for Feetech.
        ids: servo's name -> id.
        udp_port: of the socket, 127.0.0.1.
        topic: of ROS 2, JointState.
        calibration: file (leader_calibration.py); "" for a stream that is in the robot's radians already: then `joints`.
        joints: the robot's joints in the order of its card, then "gripper" where there is one (an opening, 0..1).
        clutch: device that must be held: "keyboard" (space; see its text about plain terminals) or "gamepad" (RB).
    """

    source: str = "socket"
    port: str = ""
    baud: int = 1000000
    ids: Mapping[str, int] = field(default_factory=dict)
    udp_port: int = 8765
    topic: str = "/leader/joint_states"
    calibration: str = ""
    joints: tuple[str, ...] = ()
    clutch: str = "keyboard"


class LeaderArm:
    """A TeleopDevice.

    Args:
        config: see LeaderArmConfig.
        source: instead of the one that `config` names. For tests.
        clutch: likewise; connected and closed here.

    Raises:
        ConfigError: a source, clutch or calibration that there is not, or no joints.
    """

    name = "leader_arm"

    def __init__(
        self, config: LeaderArmConfig, *, source: LeaderSource | None = None, clutch: TeleopDevice | None = None
    ) -> None:
        self.config = config
        self._source = source_of(config) if source is None else source
        self._clutch = _clutch_of(config) if clutch is None else clutch
        self.calibration = load_calibration(Path(config.calibration)) if config.calibration else LeaderCalibration(
            {name: LeaderJoint(name) for name in config.joints}
        )  # fmt: skip
        if not self.joint_names:
            raise ConfigError(
                "leader_arm", expected="a calibration file, or joints", got="neither",
                hint="teleop.calibration=FILE, or teleop.joints=[...] for a stream in the robot's radians.",
            )  # fmt: skip
        self._clock: Clock = MonotonicClock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._is_first = threading.Event()
        self._is_wrong = self._is_lost = self._is_open = False
        self._buttons = frozenset[str]()  # of the clutch, as they were said last
        help_ = dict(self._clutch.status().help) | {
            "arm": "followed while the clutch is held",
            "calibration": self.calibration.digest,
        }
        self._slot = CommandSlot(self.name, help_)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The robot's joints, in the order of the command's: they are followed by their place."""
        return tuple(name for name in self.calibration.joints if name != GRIPPER)

    def connect(self) -> None:
        """Open source and clutch, and wait for the first joints. Nothing moves.

        Raises:
            DeployError: one of them can't be opened, is silent, or lacks a joint.
        """
        if self._is_open:
            raise DeployError("leader_arm", expected="one connect", got="another", hint="Close it first.")
        self._is_open, self._is_wrong, self._is_lost = True, False, False
        for key in ("source", "leap", "clutch"):
            self._slot.problem(key)
        self._stop.clear()
        self._is_first.clear()
        try:
            self._source.open()
            self._clutch.connect()
            self._thread = threading.Thread(target=self._listen, name="leader arm", daemon=True)
            self._thread.start()
            if not self._is_first.wait(_FIRST_S):
                raise DeployError(
                    "leader_arm", expected=f"joints {list(self.calibration.joints)}", got=self._source.trouble or "none",
                    hint="Is it switched on, and its stream up?",
                )  # fmt: skip
        except RobotRlError:
            self.close()
            raise
        self._slot.is_connected = True

    def read(self) -> TeleopCommand:
        """As the contract has it."""
        return self._slot.read()

    def status(self) -> DeviceStatus:
        """As the contract has it."""
        problems = self._clutch.status().problems
        self._slot.problem("clutch", f"clutch: {'; '.join(problems)}" if problems else "")
        return self._slot.status()

    def close(self) -> None:
        """As the contract has it."""
        self._stop.set()
        self._slot.is_connected = False
        if self._thread is not None:
            self._thread.join(2.0)
        self._thread = None
        if self._is_open:
            self._source.close()
            self._clutch.close()
        self._is_open = False

    def _listen(self) -> None:
        values: dict[str, float] = {}
        heard_s = 0.0
        while not self._stop.is_set():
            new = self._poll()
            if new is not None:
                now_s = self._clock.now()
                self._check(new, values, now_s - heard_s)
                values, heard_s = new, now_s
                self._say(values, now_s, self._clutch.read())
                self._is_first.set()
            elif values and (held := self._clutch.read()).buttons != self._buttons:
                # Buttons are heard when the arm is not, the emergency stop above all; the joints stay as old as they are.
                self._say(values, heard_s, held)

    def _poll(self) -> dict[str, float] | None:
        if self._is_lost:
            self._stop.wait(_LOST_S)
            return None
        try:
            numbers = self._source.poll()
        except (OSError, RobotRlError, ValueError) as error:
            self._is_lost, self._slot.is_connected = True, False
            self._slot.problem("source", f"the leader arm is gone ({error})")
            return None
        self._slot.problem("source", self._source.trouble)
        return None if numbers is None else self._values(numbers)

    def _values(self, numbers: Numbers) -> dict[str, float] | None:
        missing = [joint.source for joint in self.calibration.joints.values() if joint.source not in numbers]
        if missing:
            self._source.trouble = f"no {', '.join(missing)} in the stream, which has {', '.join(numbers) or 'nothing'}"
            self._slot.problem("source", self._source.trouble)
            return None
        return {name: joint.value(numbers[joint.source]) for name, joint in self.calibration.joints.items()}

    def _check(self, values: Mapping[str, float], before: Mapping[str, float], passed_s: float) -> None:
        """Latch what must not be followed."""
        for name, value in values.items():
            leap = abs(value - before.get(name, value))
            if name != GRIPPER and leap > min(max(_LEAP_RAD, _LEAP_RAD_S * passed_s), math.pi):
                self._wrong(
                    f"{name} leapt by {leap:.2f} rad: its counter wraps inside the travel; turn its horn, calibrate anew"
                )
            if name == GRIPPER and not -_SLACK <= value <= 1 + _SLACK:
                self._wrong(f"the gripper reads {value:.2f} of 0..1: a turn off? Calibrate anew")

    def _wrong(self, text: str) -> None:
        self._is_wrong = True
        self._slot.problem("leap", text)

    def _say(self, values: Mapping[str, float], now_s: float, held: TeleopCommand) -> None:
        self._buttons = held.buttons
        joints = np.array([value for name, value in values.items() if name != GRIPPER], np.float64)
        opening = float(np.clip(values[GRIPPER], 0.0, 1.0)) if GRIPPER in values else None
        # As old as the older of the two: an arm that is heard does not make up for a clutch that is not.
        stamp_s = min(now_s, held.stamp_s) if held.sequence else now_s
        self._slot.say(
            stamp_s=stamp_s, engaged=held.engaged and not self._is_wrong, joints=None if self._is_wrong else joints,
            opening=None if self._is_wrong else opening, buttons=held.buttons,
        )  # fmt: skip


def source_of(config: LeaderArmConfig) -> LeaderSource:
    """The source that a configuration names.

    Raises:
        ConfigError: there is none of that name, or it lacks a port or ids.
    """
    if config.source not in SOURCES:
        raise ConfigError(
            "leader_arm.source", expected="a source", got=repr(config.source), hint=closest(config.source, SOURCES)
        )
    if config.source == "socket":
        return SocketSource(config.udp_port)
    if config.source == "ros2":
        return Ros2Source(config.topic)
    if not config.port or not config.ids:
        raise ConfigError(
            "leader_arm", expected="port and ids of the servos", got=f"{config.port!r}, {dict(config.ids)}",
            hint="E.g. teleop.port=/dev/ttyUSB0 '+teleop.ids={shoulder_pan: 1, ...}'.",
        )  # fmt: skip
    kind = DynamixelSource if config.source == "dynamixel" else FeetechSource
    return kind(config.port, config.baud, config.ids)


def _clutch_of(config: LeaderArmConfig) -> Any:
    if config.clutch == "keyboard":
        from .keyboard import KEYS, Keyboard, KeyboardConfig

        moving = {key: "" for key, meaning in KEYS.items() if ":" not in meaning}
        return Keyboard(KeyboardConfig(keys=moving | {"space": "clutch"}))
    if config.clutch == "gamepad":
        from .gamepad import Gamepad, GamepadConfig

        return Gamepad(GamepadConfig())
    raise ConfigError(
        "leader_arm.clutch", expected="a device", got=repr(config.clutch), hint=closest(config.clutch, CLUTCHES)
    )
