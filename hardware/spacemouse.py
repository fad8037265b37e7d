"""A 3Dconnexion SpaceMouse through pyspacemouse (extra `devices`). NOT TRIED ON HARDWARE.

The cap springs back: pushed is engaged, let go is released; with `clutch` a button must be held besides. A cap that is pushed
reports all the time, and one at rest does not: a push of which no report came for 0.1 s is no longer said.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import glob
from typing import Any

from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import ConfigError, DeployError
from robot_rl.teleop.axes import AXES
from robot_rl.teleop.commands import EVENT, DeviceStatus, TeleopCommand

from .teleop_controls import Controls
from .teleop_slot import CommandSlot

CONTROLS = {axis: f"+{axis}" for axis in AXES} | {"button0": "close", "button1": "open"}
_KNOWN = (*AXES, *(f"button{number}" for number in range(32)))
_PERIOD_S = 0.01
_SILENT_S = 0.1
_MOST_REPORTS = 20
_RULE = (
    "As root write into /etc/udev/rules.d/70-spacemouse.rules these two lines: "
    'SUBSYSTEM=="hidraw", ATTRS{idVendor}=="256f", MODE="0660", TAG+="uaccess" and '
    'SUBSYSTEM=="hidraw", ATTRS{idVendor}=="046d", MODE="0660", TAG+="uaccess"; then '
    "sudo udevadm control --reload && sudo udevadm trigger, and plug it in anew."
)


@dataclass(frozen=True)
class SpaceMouseConfig:
    """See the text of this module.

    Attributes:
        device: name as in pyspacemouse; "" is the first.
        controls: over CONTROLS: "x" ... "yaw" (forward, left, up), "button0", ... -> meaning (teleop_controls.py).
        deadzone: share of an axis' travel around its rest that means nothing.
        curve: 1 is linear, 2 finer near the rest.
    """

    device: str = ""
    controls: Mapping[str, str] = field(default_factory=dict)
    deadzone: float = 0.1
    curve: float = 1.5


class SpaceMouse:
    """A TeleopDevice.

    Args:
        config: see SpaceMouseConfig.

    Raises:
        ConfigError: controls, meanings or numbers that there are not.
    """

    name = "spacemouse"

    def __init__(self, config: SpaceMouseConfig) -> None:
        self.config = config
        if not 0 <= config.deadzone < 0.9 or not 0.5 <= config.curve <= 4:
            raise ConfigError(
                "spacemouse", expected="deadzone 0..0.9, curve 0.5..4", got=f"{config.deadzone:g}, {config.curve:g}",
                hint="Usual are 0.1 and 1.5.",
            )  # fmt: skip
        self._controls = Controls(CONTROLS | dict(config.controls), where="spacemouse.controls", known=_KNOWN)
        self._clock: Clock = MonotonicClock()
        self._mouse: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        meanings = {control: meaning.removeprefix(EVENT) for control, meaning in self._controls.meanings.items()}
        self._slot = CommandSlot(self.name, meanings)

    def connect(self) -> None:
        """Open the mouse.

        Raises:
            DeployError: pyspacemouse is missing, there is no mouse, or it may not be opened.
        """
        if self._mouse is not None:
            raise DeployError("spacemouse", expected="one connect", got="another", hint="Close it first.")
        self._mouse = self._opened()
        self._slot.problem("spacemouse")
        self._stop.clear()
        self._thread = threading.Thread(target=self._listen, args=(self._mouse,), name="spacemouse", daemon=True)
        self._slot.is_connected = True
        self._thread.start()

    def read(self) -> TeleopCommand:
        """As the contract has it."""
        return self._slot.read()

    def status(self) -> DeviceStatus:
        """As the contract has it."""
        return self._slot.status()

    def close(self) -> None:
        """As the contract has it."""
        self._stop.set()
        self._slot.is_connected = False
        if self._thread is not None:
            self._thread.join(2.0)
        if self._mouse is not None:
            self._mouse.close()
        self._mouse = self._thread = None

    def _opened(self) -> Any:
        try:
            import pyspacemouse
        except ModuleNotFoundError as error:
            raise DeployError(
                "spacemouse",
                expected=f"the package {error.name}",
                got="not installed",
                hint="pip install 'robot-rl[devices]'.",
            ) from error
        except OSError as error:
            raise _no_hidapi(error) from error
        try:
            return pyspacemouse.open(device=self.config.device or None, axis_convention=pyspacemouse.AxisConvention.ROS)
        except Exception as error:  # hidapi's and pyspacemouse's own kinds, by version
            if "HID API" in str(error):
                raise _no_hidapi(error) from error
            refused = [path for path in sorted(glob("/dev/hidraw*")) if not os.access(path, os.R_OK | os.W_OK)]
            is_refused = bool(refused) or isinstance(error, PermissionError) or "Failed to open" in str(error)
            hint = (
                _RULE if is_refused else "Is it plugged in (lsusb | grep -i 3dconnexion)? The receiver counts as one."
            )
            why = f"{type(error).__name__}: {error}" + (f"; no access to {', '.join(refused)}" if refused else "")
            raise DeployError("spacemouse", expected="a SpaceMouse that may be opened", got=why, hint=hint) from error

    def _listen(self, mouse: Any) -> None:
        heard_s, last = float("-inf"), -1.0
        while not self._stop.wait(_PERIOD_S):
            try:
                state = self._newest(mouse)
            except Exception as error:  # as above
                self._slot.is_connected = False
                self._slot.problem("spacemouse", f"the SpaceMouse is gone ({error})")
                return
            now_s = self._clock.now()
            if state.t != last:
                last, heard_s = state.t, now_s
            values = {axis: self._live(float(getattr(state, axis))) for axis in AXES}
            values |= {f"button{number}": float(held) for number, held in enumerate(state.buttons)}
            said = self._controls.said(values)
            if said.motion.any() and now_s - heard_s > _SILENT_S:
                continue
            self._slot.say(
                stamp_s=now_s, engaged=said.engaged, motion=said.motion, gripper=said.gripper, buttons=said.buttons
            )

    def _newest(self, mouse: Any) -> Any:
        """Its state behind all reports that wait."""
        state = mouse.read()
        for _ in range(_MOST_REPORTS):
            before = state.t
            state = mouse.read()
            if state.t == before:
                break
        return state

    def _live(self, value: float) -> float:
        travel = (abs(value) - self.config.deadzone) / (1 - self.config.deadzone)
        return float(min(max(travel, 0.0), 1.0) ** self.config.curve) * (1.0 if value > 0 else -1.0)


def _no_hidapi(error: Exception) -> DeployError:
    return DeployError(
        "spacemouse", expected="the library hidapi", got=str(error), hint="sudo apt install libhidapi-hidraw0."
    )
