"""The keyboard of a terminal as an operator's device; needs no window system and works over SSH.

A plain terminal does not say when a key is let go: held is what repeats. A tap moves for `tap_s`; a key that is held moves for
`tap_s`, rests until the terminal begins to repeat it, and then moves until `hold_s` after the last repeat. Only the key that
was pressed last repeats, so one axis moves at a time. Terminals with kitty's keyboard protocol (kitty, foot, WezTerm, Ghostty,
Konsole, ...) say presses and releases: several axes at once, no rest, and the terminal is asked all the time, so that a
connection that hangs lets go; a window that loses the focus lets go, too.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import ConfigError, DeployError
from robot_rl.teleop.commands import EVENT, DeviceStatus, TeleopCommand

from .held_keys import HeldKeys, KeyTimes
from .teleop_controls import Controls
from .teleop_slot import CommandSlot
from .terminal_keys import FOCUS_LOST, NAMES, PUSH, QUERY, REPLY, KeyEvent, KeyParser
from .terminal_mode import TerminalMode

log = logging.getLogger(__name__)

KEYS = {
    "w": "+x", "s": "-x", "a": "+y", "d": "-y", "e": "+z", "q": "-z", "c": "+roll", "z": "-roll", "up": "+pitch",
    "down": "-pitch", "left": "+yaw", "right": "-yaw", "r": "open", "f": "close", "1": "event:start", "2": "event:stop",
    "3": "event:success", "4": "event:failure", "5": "event:save", "6": "event:discard", "7": "event:rerecord",
    "8": "event:reset", "9": "event:save_last", "p": "event:pause", "o": "event:resume", "u": "event:undo",
    "m": "event:subtask", "n": "event:note", "l": "event:release", "K": "event:quit", "esc": "event:estop",
}  # fmt: skip
_TURN_S = 0.01
_SAY_S = 0.02
# A lone Esc is told from the beginning of an arrow key by the silence behind it.
_ESCAPE_S = 0.05


@dataclass(frozen=True)
class KeyboardConfig:
    """See the text of this module.

    Attributes:
        terminal: path; the one this program was started from.
        keys: characters and names ("space", "esc", "up", "f1", ...) -> meaning (teleop_controls.py). Added to KEYS; "" takes a
            key away. A capital letter that has no meaning of its own means what the small one does.
        tap_s: that one press of a key counts as held.
        hold_s: that one repeat does; the clutch lets go behind 0.1 s, whatever this is.
        quiet_s: without any key before the first command: a key that is held at the start begins to repeat before that.
    """

    terminal: str = "/dev/tty"
    keys: Mapping[str, str] = field(default_factory=dict)
    tap_s: float = 0.1
    hold_s: float = 0.15
    quiet_s: float = 0.7


class Keyboard:
    """A TeleopDevice.

    Args:
        config: see KeyboardConfig.

    Raises:
        ConfigError: keys or meanings that there are not.
    """

    name = "keyboard"

    def __init__(self, config: KeyboardConfig) -> None:
        self.config = config
        for key in config.keys:
            if len(key) != 1 and key not in NAMES and not key.startswith("ctrl+"):
                names = ", ".join(sorted(NAMES))
                raise ConfigError(
                    "keyboard.keys", expected="a character or a name", got=repr(key), hint=f"Names: {names}."
                )
        if not 0 < config.tap_s <= 0.5 or not 0 < config.hold_s <= 0.5 or not config.quiet_s > 0:
            raise ConfigError(
                "keyboard", expected="tap_s and hold_s above 0, at most 0.5 s", got=f"{config.tap_s:g}, {config.hold_s:g}",
                hint="A held key must not move the robot long behind its release.",
            )  # fmt: skip
        self._controls = Controls(KEYS | dict(config.keys), where="keyboard.keys")
        self._clock: Clock = MonotonicClock()
        self._mode: TerminalMode | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._slot = CommandSlot(self.name, self._help())

    def connect(self) -> None:
        """Take the terminal.

        Raises:
            DeployError: there is none.
        """
        if self._mode is not None:
            raise DeployError("keyboard", expected="one connect", got="another", hint="Close it first.")
        self._mode = TerminalMode(self.config.terminal)
        atexit.register(self.close)
        self._stop.clear()
        self._mode.write(QUERY)
        self._thread = threading.Thread(target=self._listen, args=(self._mode,), name="keyboard", daemon=True)
        self._thread.start()
        self._slot.is_connected = True

    def read(self) -> TeleopCommand:
        """As the contract has it."""
        return self._slot.read()

    def status(self) -> DeviceStatus:
        """As the contract has it."""
        return self._slot.status()

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._stop.set()
        self._slot.is_connected = False
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        if self._mode is not None:
            self._mode.close()
        self._mode = self._thread = None
        atexit.unregister(self.close)

    def _help(self) -> dict[str, str]:
        meanings = {key: meaning.removeprefix(EVENT) for key, meaning in self._controls.meanings.items()}
        return meanings | {"terminal": "held is what repeats: a tap is a small step, then hold"}

    def _times(self) -> KeyTimes:
        meanings = self._controls.meanings
        slow = frozenset(key for key, meaning in meanings.items() if ":" in meaning)
        return KeyTimes(tap_s=self.config.tap_s, hold_s=self.config.hold_s, quiet_s=self.config.quiet_s, slow=slow)

    def _listen(self, mode: TerminalMode) -> None:
        parser, held = KeyParser(), HeldKeys(self._times(), self._clock.now())
        heard_s = said_s = asked_s = 0.0
        while not self._stop.is_set():
            try:
                data = os.read(mode.fd, 4096) if select.select([mode.fd], [], [], _TURN_S)[0] else None
            except (OSError, ValueError):
                data = b""
            now_s = self._clock.now()
            if data == b"":
                self._slot.is_connected = False
                self._slot.problem("terminal", "the terminal is gone")
                return
            heard_s = now_s if data else heard_s
            events = parser.feed(data) if data else parser.flush() if now_s - heard_s > _ESCAPE_S else []
            self._hear(events, held, mode, now_s)
            changed = held.turn(now_s)
            if held.has_releases and now_s - asked_s >= _SAY_S:
                asked_s = now_s
                mode.write(QUERY)
            if changed or (held.is_idle and now_s - said_s >= _SAY_S):
                said_s = now_s
                self._say(held, now_s)

    def _hear(self, events: list[KeyEvent], held: HeldKeys, mode: TerminalMode, now_s: float) -> None:
        for event in events:
            if event.key == REPLY and not held.has_releases:
                mode.write(PUSH)
            # With the protocol on, the terminal driver sees no Ctrl-C.
            if event.key == "ctrl+c" and event.kind == "press":
                os.kill(os.getpid(), signal.SIGINT)
            held.hear(event.key if event.kind == "release" else self._known(event.key), event.kind, now_s)

    def _known(self, key: str) -> str:
        if key in (REPLY, FOCUS_LOST) or key in self._controls.meanings:
            return key
        return key.lower() if key.lower() in self._controls.meanings else ""

    def _say(self, held: HeldKeys, now_s: float) -> None:
        said = self._controls.said(dict.fromkeys(held.keys, 1.0))
        self._slot.say(
            stamp_s=now_s, engaged=said.engaged, motion=said.motion, gripper=said.gripper, buttons=said.buttons
        )
