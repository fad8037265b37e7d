"""A gamepad over Linux's evdev (extra `devices`), as the browser page reads one: RB is the clutch, LB gives buttons a second meaning.

Its state is asked of the kernel 100 times a second. A stick that is held still sends nothing, and a pad that was unplugged
says nothing either: only an answer that came just now is worth moving for. When the pad is gone its last command grows old.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from glob import glob
from typing import Any

from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.errors import ConfigError, DeployError, closest
from robot_rl.teleop.commands import EVENT, DeviceStatus, TeleopCommand

from .teleop_controls import Controls
from .teleop_slot import CommandSlot

# Names of input-event-codes.h, as an Xbox pad has them; HAT directions are controls of their own.
CONTROLS = {
    "ABS_X": "-y", "ABS_Y": "-x", "ABS_RX": "-yaw", "ABS_RY": "-z", "ABS_Z": "open", "ABS_RZ": "close", "BTN_TR": "clutch",
    "ABS_HAT0Y-": "+pitch", "ABS_HAT0Y+": "-pitch", "ABS_HAT0X+": "+roll", "ABS_HAT0X-": "-roll",
    "BTN_SOUTH": "event:start", "BTN_EAST": "event:stop", "BTN_NORTH": "event:failure", "BTN_WEST": "event:success",
    "BTN_START": "event:save", "BTN_SELECT": "event:discard", "BTN_THUMBL": "event:rerecord", "BTN_THUMBR": "event:estop",
}  # fmt: skip
SHIFTED = {
    "BTN_SOUTH": "event:resume", "BTN_EAST": "event:pause", "BTN_NORTH": "event:undo", "BTN_WEST": "event:subtask",
    "BTN_START": "event:save_last", "BTN_SELECT": "event:reset", "BTN_THUMBL": "event:note", "BTN_THUMBR": "event:estop",
    "ABS_HAT0Y-": "event:release", "ABS_HAT0Y+": "event:quit",
}  # fmt: skip
_PERIOD_S = 0.01
_FIX = (
    "Give yourself access: sudo usermod -aG input $USER and log in again; or as a rule, in /etc/udev/rules.d/99-gamepad.rules: "
    'KERNEL=="event*", SUBSYSTEM=="input", ENV{ID_INPUT_JOYSTICK}=="1", TAG+="uaccess", then: sudo udevadm control --reload && '
    "sudo udevadm trigger."
)


@dataclass(frozen=True)
class GamepadConfig:
    """See the text of this module.

    Attributes:
        device: path or a part of its name; "" is the first pad.
        controls: over CONTROLS: evdev's name -> meaning (teleop_controls.py); "" takes one away.
        shifted: likewise over SHIFTED, while `shift` is held.
        shift: button of the second meaning; "" for none.
        deadzone: share of a stick's travel around its rest that means nothing.
        curve: 1 is linear, 2 finer near the rest.
    """

    device: str = ""
    controls: Mapping[str, str] = field(default_factory=dict)
    shifted: Mapping[str, str] = field(default_factory=dict)
    shift: str = "BTN_TL"
    deadzone: float = 0.12
    curve: float = 1.5


class Gamepad:
    """A TeleopDevice.

    Args:
        config: see GamepadConfig.
        opened: path -> what evdev.InputDevice is; None: evdev's own. For tests.

    Raises:
        ConfigError: controls, meanings or numbers that there are not.
    """

    name = "gamepad"

    def __init__(self, config: GamepadConfig, *, opened: Callable[[str], Any] | None = None) -> None:
        self.config = config
        if not 0 <= config.deadzone < 0.9 or not 0.5 <= config.curve <= 4:
            raise ConfigError(
                "gamepad", expected="deadzone 0..0.9, curve 0.5..4", got=f"{config.deadzone:g}, {config.curve:g}",
                hint="Usual are 0.12 and 1.5.",
            )  # fmt: skip
        self._first = Controls(CONTROLS | dict(config.controls), where="gamepad.controls")
        second = {name: meaning for name, meaning in self._first.meanings.items() if not meaning.startswith(EVENT)}
        self._second = Controls(second | SHIFTED | dict(config.shifted), where="gamepad.shifted")
        self._opened, self._clock = opened, MonotonicClock()
        self._device: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._slot = CommandSlot(self.name, self._help())

    def connect(self) -> None:
        """Open the pad.

        Raises:
            ConfigError: a control that evdev does not know.
            DeployError: evdev is missing, there is no pad, or it may not be opened.
        """
        if self._device is not None:
            raise DeployError("gamepad", expected="one connect", got="another", hint="Close it first.")
        self._device = self._find()
        self._slot.problem("gamepad")
        self._stop.clear()
        self._thread = threading.Thread(target=self._listen, args=(self._device,), name="gamepad", daemon=True)
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
        if self._device is not None:
            self._device.close()
        self._device = self._thread = None

    def _help(self) -> dict[str, str]:
        shift = self.config.shift
        own = {name: meaning.removeprefix(EVENT) for name, meaning in self._first.meanings.items()}
        other = {
            f"{shift}+{name}": meaning.removeprefix(EVENT)
            for name, meaning in self._second.meanings.items() if shift and meaning != self._first.meanings.get(name)
        }  # fmt: skip
        return own | other

    def _find(self) -> Any:
        try:
            import evdev
        except ModuleNotFoundError as error:
            raise DeployError(
                "gamepad", expected="the package evdev", got="not installed", hint="pip install 'robot-rl[devices]'."
            ) from error
        for name in (*self._first.meanings, *self._second.meanings, *filter(None, (self.config.shift,))):
            if name.rstrip("+-") not in evdev.ecodes.ecodes:
                raise ConfigError(
                    "gamepad", expected="evdev's name of a control", got=repr(name), hint=closest(name, CONTROLS)
                )
        opened = evdev.InputDevice if self._opened is None else self._opened
        wanted = self.config.device
        paths = (
            [wanted]
            if wanted.startswith("/")
            else sorted(glob("/dev/input/event*"))
            if self._opened is None
            else ["pad"]
        )
        refused, seen = [], []
        for path in paths:
            try:
                device = opened(path)
            except PermissionError:
                refused.append(path)
                continue
            except OSError as error:
                seen.append(f"{path} ({error.strerror or error})")
                continue
            if _is_pad(device) and (wanted.startswith("/") or wanted.lower() in device.name.lower()):
                self._slot.problem("gamepad")
                return device
            seen.append(device.name)
            device.close()
        got = f"others: {', '.join(seen)}" if seen else "none"
        if refused:
            raise DeployError(
                "gamepad", expected="access to the pad", got=f"permission denied for {', '.join(refused)}", hint=_FIX
            )
        raise DeployError(
            "gamepad", expected=f"a pad named {wanted!r}" if wanted else "a gamepad", got=got,
            hint="Is it plugged in and switched on (ls /dev/input/by-id)? Over SSH it must be on this machine; else take teleop=browser.",
        )  # fmt: skip

    def _listen(self, device: Any) -> None:
        ranges = dict(device.capabilities(absinfo=True).get(_codes().EV_ABS, ()))
        shift = _codes().ecodes.get(self.config.shift)
        while not self._stop.wait(_PERIOD_S):
            try:
                pressed = set(device.active_keys())
                values = self._values(device, ranges, pressed)
            except OSError as error:
                self._slot.is_connected = False
                self._slot.problem("gamepad", f"the gamepad is gone ({error.strerror or error})")
                return
            said = (self._second if shift is not None and shift in pressed else self._first).said(values)
            self._slot.say(
                stamp_s=self._clock.now(), engaged=said.engaged, motion=said.motion, gripper=said.gripper,
                buttons=said.buttons,
            )  # fmt: skip

    def _values(self, device: Any, ranges: Mapping[int, Any], pressed: set[int]) -> dict[str, float]:
        values = {name: 1.0 for code in pressed for name in _names(_codes().BTN, code)}
        for code, info in ranges.items():
            name = _names(_codes().ABS, code)[0]
            now = device.absinfo(code).value
            if name.startswith("ABS_HAT"):
                values |= {name + "-": float(now < 0), name + "+": float(now > 0)}
            elif self._first.is_analog(name):
                values[name] = self._live((2 * now - info.max - info.min) / max(info.max - info.min, 1))
            else:
                values[name] = max(self._live((now - info.min) / max(info.max - info.min, 1)), 0.0)
        return values

    def _live(self, value: float) -> float:
        travel = (abs(value) - self.config.deadzone) / (1 - self.config.deadzone)
        return float(min(max(travel, 0.0), 1.0) ** self.config.curve) * (1.0 if value > 0 else -1.0)


def _codes() -> Any:
    from evdev import ecodes

    return ecodes


def _names(table: Mapping[int, Any], code: int) -> list[str]:
    names = table.get(code, f"CODE_{code}")
    return [names] if isinstance(names, str) else list(names)


def _is_pad(device: Any) -> bool:
    codes = _codes()
    capabilities = device.capabilities(absinfo=False)
    return codes.BTN_SOUTH in capabilities.get(codes.EV_KEY, ()) and codes.ABS_X in capabilities.get(codes.EV_ABS, ())
