"""The keyboard on a real pseudo-terminal: what is typed, what is said, and that the terminal is given back."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.checks.findings import has_errors
from robot_rl.checks.teleop import check_teleop
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware.held_keys import HeldKeys, KeyTimes
from robot_rl.hardware.keyboard import Keyboard, KeyboardConfig
from robot_rl.hardware.terminal_keys import FOCUS_LOST, PUSH, QUERY, REPLY, KeyEvent, KeyParser
from robot_rl.teleop.commands import TeleopCommand


class Terminal:
    """The other end: types, and answers as a terminal does."""

    def __init__(self) -> None:
        self.fd, self._slave = pty.openpty()
        self.path = os.ttyname(self._slave)
        os.set_blocking(self.fd, False)
        self.out = b""

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def hear(self) -> bytes:
        with suppress(BlockingIOError):
            self.out += os.read(self.fd, 65536)
        return self.out

    def close(self) -> None:
        for fd in (self.fd, self._slave):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


def ready(terminal: Terminal, **options: Any) -> Keyboard:
    keyboard = Keyboard(KeyboardConfig(terminal=terminal.path, quiet_s=0.1, **options))
    keyboard.connect()
    until(lambda: keyboard.read().sequence > 0)
    assert not keyboard.read().engaged
    return keyboard


def held(keyboard: Keyboard) -> bool:
    return keyboard.read().engaged


def repeated(terminal: Terminal, keyboard: Keyboard, data: bytes) -> TeleopCommand:
    """What is said while a key repeats."""
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        terminal.type(data)
        time.sleep(0.02)
        command = keyboard.read()
        if command.engaged:
            return command
    raise AssertionError("it was not heard")


def test_a_key_moves_while_it_repeats_and_ends_by_itself(terminal: Terminal) -> None:
    keyboard = ready(terminal)
    try:
        np.testing.assert_array_equal(repeated(terminal, keyboard, b"w").motion, np.float32([1, 0, 0, 0, 0, 0]))
        until(lambda: not held(keyboard))
        assert not keyboard.read().motion.any()
        assert repeated(terminal, keyboard, b"\x1b[D").motion[5] == 1
        until(lambda: not held(keyboard))
        assert repeated(terminal, keyboard, b"F").gripper == -1  # caps lock
    finally:
        keyboard.close()


def test_events_are_buttons_and_do_not_move(terminal: Terminal) -> None:
    keyboard = ready(terminal, keys={"x": "event:quit", "f1": "button:lamp", "9": ""})
    try:
        for data, button in (
            (b"1", "event:start"),
            (b"x", "event:quit"),
            (b"\x1bOP", "lamp"),
            (b"\x1b", "event:estop"),
        ):
            terminal.type(data)
            until(lambda button=button: button in keyboard.read().buttons)  # type: ignore[misc]
            assert not held(keyboard)
        assert "9" not in keyboard.status().help
        assert keyboard.status().help["w"] == "+x"
    finally:
        keyboard.close()


def test_releases_are_heard_where_the_terminal_says_them(terminal: Terminal) -> None:
    """kitty's protocol: two axes at once, held without repeats as long as the terminal answers."""
    keyboard = ready(terminal)
    try:
        until(lambda: QUERY in terminal.hear())
        terminal.type(b"\x1b[?0u")
        until(lambda: PUSH in terminal.hear())
        terminal.type(b"\x1b[119;1:1u\x1b[97;1:1u")
        until(lambda: keyboard.read().motion.tolist() == [1, 1, 0, 0, 0, 0])
        first = keyboard.read()
        terminal.type(b"\x1b[?11u")
        until(lambda: keyboard.read().stamp_s > first.stamp_s)
        assert held(keyboard)
        silent = keyboard.read()
        time.sleep(0.3)  # no answer: the command must grow old, which the clutch sees
        assert keyboard.read().stamp_s == silent.stamp_s
        terminal.type(b"\x1b[119;1:3u")
        until(lambda: keyboard.read().motion.tolist() == [0, 1, 0, 0, 0, 0])
        terminal.type(b"\x1b[O")
        until(lambda: not held(keyboard))
    finally:
        keyboard.close()
    until(lambda: b"\x1b[<u" in terminal.hear())


def test_ctrl_c_interrupts_with_the_protocol_on(terminal: Terminal) -> None:
    keyboard = ready(terminal)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's child ignores it
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        try:
            terminal.type(b"\x1b[99;5u")
            until(lambda: False)
        finally:
            signal.signal(signal.SIGINT, before)
            keyboard.close()


def test_the_terminal_is_given_back_and_a_second_connect_works(terminal: Terminal) -> None:
    before = terminal.modes()
    keyboard = ready(terminal)
    assert not terminal.modes()[3] & termios.ECHO
    with pytest.raises(DeployError, match="one connect"):
        keyboard.connect()
    keyboard.close()
    keyboard.close()
    assert terminal.modes() == before
    keyboard.connect()
    keyboard.close()
    assert terminal.modes() == before


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would its child
from robot_rl.hardware.keyboard import Keyboard, KeyboardConfig
keyboard = Keyboard(KeyboardConfig(terminal=sys.argv[1]))
keyboard.connect()
print("up", flush=True)
if sys.argv[2] == "raise":
    raise ValueError("a bug")
time.sleep(60)
"""


@pytest.mark.parametrize("end", ["raise", "SIGTERM", "SIGKILL", "SIGINT"])
def test_the_terminal_is_given_back_however_the_process_ends(terminal: Terminal, end: str, tmp_path: Path) -> None:
    before, script = terminal.modes(), tmp_path / "program.py"
    script.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(script), terminal.path, end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    if end != "raise":
        assert not terminal.modes()[3] & termios.ICANON
        process.send_signal(signal.Signals[end])
    process.wait(20)
    until(lambda: terminal.modes() == before)
    process.stdout.close()


def test_a_terminal_that_goes_away_is_told_and_its_last_command_grows_old(terminal: Terminal) -> None:
    keyboard = ready(terminal)
    terminal.close()
    until(lambda: not keyboard.status().is_connected)
    assert keyboard.status().problems == ("the terminal is gone",)
    last = keyboard.read()
    time.sleep(0.05)
    assert keyboard.read() is last
    keyboard.close()


def test_what_is_no_terminal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (str(file), str(tmp_path / "none")):
        with pytest.raises(DeployError, match="teleop=browser"):
            Keyboard(KeyboardConfig(terminal=path)).connect()


@pytest.mark.parametrize("keys", [{"word": "+x"}, {"x": "+sideways"}, {"x": "event:dance"}, {"x": "clutched"}])
def test_keys_and_meanings_that_there_are_not_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="keyboard"):
        Keyboard(KeyboardConfig(keys=keys))


def test_the_keyboard_keeps_the_contract(terminal: Terminal) -> None:
    keyboard = Keyboard(KeyboardConfig(terminal=terminal.path, quiet_s=0.1))
    findings = check_teleop(keyboard, seconds=1.0)
    assert not has_errors(findings), findings


PARSED = [
    (b"w\x1b[A\x1bOB\x1b[3~", [KeyEvent("w"), KeyEvent("up"), KeyEvent("down"), KeyEvent("delete")]),
    (b"\x1b[?11u\x1b[?62;c\x1b[O", [KeyEvent(REPLY), KeyEvent(FOCUS_LOST)]),
    (b"\x1b[1;1:3C\x1b[107;2:1u", [KeyEvent("right", "release"), KeyEvent("K")]),
    (b"\x03\xc3\xa4\r\x7f", [KeyEvent("ctrl+c"), KeyEvent("ä"), KeyEvent("enter"), KeyEvent("backspace")]),
    (b"\x1bx", [KeyEvent("esc"), KeyEvent("x")]),
    (b"\x1b[99;5u\x1b[119;1:2u", [KeyEvent("ctrl+c"), KeyEvent("w", "repeat")]),
]  # fmt: skip


@pytest.mark.parametrize(("data", "events"), PARSED)
def test_bytes_are_read_whole_and_one_by_one(data: bytes, events: list[KeyEvent]) -> None:
    assert KeyParser().feed(data) == events
    parser = KeyParser()
    assert [event for index in range(len(data)) for event in parser.feed(data[index : index + 1])] == events


def test_a_lone_escape_is_a_key_and_garbage_raises_nothing() -> None:
    parser = KeyParser()
    assert parser.feed(b"\x1b") == []
    assert parser.is_open
    assert parser.flush() == [KeyEvent("esc")]
    noise = np.random.default_rng(0).integers(0, 256, 20000).astype(np.uint8).tobytes()
    assert parser.feed(noise + b"\x1b[" + b";" * 200 + b"u\x1b[:u\x1b[1;xu")
    parser.flush()


def test_keys_held_at_the_start_move_nothing() -> None:
    times = KeyTimes(tap_s=0.1, hold_s=0.15, quiet_s=0.7, slow=frozenset({"esc"}))
    held = HeldKeys(times, 0.0)
    for step in range(100):  # repeats every 30 ms from before the start
        held.hear("w", "press", 0.03 * step)
        assert not held.turn(0.03 * step)
        assert held.keys == ()
    held.hear("esc", "press", 3.0)
    assert held.turn(3.0)
    assert held.keys == ("esc",)  # a stop is heard at once
    held.turn(3.71)
    held.hear("w", "press", 3.8)
    assert held.turn(3.8)
    assert held.keys == ("w",)


def test_a_plain_terminal_s_hand_numbers() -> None:
    times = KeyTimes(tap_s=0.1, hold_s=0.15, quiet_s=0.1, slow=frozenset({"5"}))
    held, now, states = HeldKeys(times, 0.0), 0.0, []
    held.turn(0.2)
    presses = [(0.3, "w"), *[(0.8 + 0.03 * n, "w") for n in range(5)], (1.5, "5"), (2.0, "5"), (2.03, "5")]
    for tick in range(20, 300):
        now = tick / 100
        for when, key in presses:
            if abs(when - now) < 0.005:
                held.hear(key, "press", now)
        held.turn(now)
        states.append((now, held.keys))
    spans = [now for (now, keys), (_, before) in zip(states[1:], states, strict=False) if keys != before]
    # A tap of 0.1 s; from the first repeat until 0.15 s behind the last; an event once, until 0.7 s behind its last repeat.
    np.testing.assert_allclose(spans, [0.3, 0.4, 0.8, 0.92 + 0.15, 1.5, 2.73], atol=0.011)
