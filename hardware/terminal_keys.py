"""Bytes of a terminal as keys, in plain terminals and in those that know kitty's keyboard protocol.

Plain terminals send bytes for a press and for each repeat, and nothing when a key is let go. Kitty's protocol
(https://sw.kovidgoyal.net/kitty/keyboard-protocol/) sends presses, repeats and releases, after it is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Ask, ask for events and for reports of the focus, and take both back.
QUERY, PUSH, POP = b"\x1b[?u", b"\x1b[>11u\x1b[?1004h", b"\x1b[?1004l\x1b[<u"
REPLY, FOCUS_LOST = "reply", "focus_lost"
# 1 press, 2 repeat, 3 release, as in the protocol.
_KINDS = {"": "press", "1": "press", "2": "repeat", "3": "release"}
_CSI = re.compile(rb"\x1b\[([0-9;:?<=>]*)([\x40-\x7e])")
_LETTERS = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "P": "f1", "Q": "f2", "S": "f4",
}  # fmt: skip
_TILDES = {"2": "insert", "3": "delete", "5": "page_up", "6": "page_down", "1": "home", "4": "end"}
_CODES = {
    9: "tab", 10: "enter", 13: "enter", 27: "esc", 32: "space", 127: "backspace", 8: "backspace", 57414: "enter",
}  # fmt: skip
NAMES = frozenset([*_LETTERS.values(), *_TILDES.values(), *_CODES.values()])
_CTRL = 4


@dataclass(frozen=True)
class KeyEvent:
    """One event.

    Attributes:
        key: a character, or a name of NAMES; "ctrl+c"; REPLY for the terminal's answer to QUERY; FOCUS_LOST.
        kind: press, repeat or release. A plain terminal knows presses only.
    """

    key: str
    kind: str = "press"


class KeyParser:
    """Keeps what is not whole yet."""

    def __init__(self) -> None:
        self._left = b""

    @property
    def is_open(self) -> bool:
        """Whether an escape sequence has begun; after a moment of silence it is the key Esc: `flush`."""
        return bool(self._left)

    def feed(self, data: bytes) -> list[KeyEvent]:
        """Events in `data`, behind what was left over."""
        self._left += data
        events = []
        while self._left:
            event, used = self._first()
            if not used:
                break
            self._left = self._left[used:]
            events += [event] if event else []
        return events

    def flush(self) -> list[KeyEvent]:
        """No more comes: what is left is the key Esc, and what was typed behind it."""
        left, self._left = self._left, b""
        if not left:
            return []
        return [KeyEvent("esc"), *self.feed(left[1:])] if left[:1] == b"\x1b" else []

    def _first(self) -> tuple[KeyEvent | None, int]:
        data = self._left
        if data[:1] != b"\x1b":
            return _character(data)
        if found := _CSI.match(data):
            return _sequence(found[1].decode(), found[2].decode()), found.end()
        if data[:2] == b"\x1bO" and len(data) > 2:
            return _named(_LETTERS.get(chr(data[2]), "")), 3
        is_begun = data in (b"\x1b", b"\x1bO") or re.fullmatch(rb"\x1b\[[0-9;:?<=>]{0,40}", data)
        return (None, 0) if is_begun else (KeyEvent("esc"), 1)


def _character(data: bytes) -> tuple[KeyEvent | None, int]:
    size = 1 if data[0] < 0xC0 else 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
    if len(data) < size:
        return None, 0
    if size == 1 and data[0] in _CODES:
        return KeyEvent(_CODES[data[0]]), 1
    if size == 1 and data[0] < 32:
        return KeyEvent(f"ctrl+{chr(data[0] + 96)}"), 1
    text = data[:size].decode(errors="ignore")
    return (KeyEvent(text) if text else None), size


def _sequence(numbers: str, final: str) -> KeyEvent | None:
    if final == "O" and not numbers:
        return KeyEvent(FOCUS_LOST)
    if numbers.startswith("?"):
        return KeyEvent(REPLY) if final == "u" else None
    parts = [part.split(":") for part in numbers.split(";")]
    modifiers = parts[1] if len(parts) > 1 else [""]
    kind = _KINDS.get(modifiers[1] if len(modifiers) > 1 else "", "press")
    bits = int(modifiers[0] or 1) - 1 if (modifiers[0] or "1").isdigit() else 0
    if final == "u" and parts[0][0].isdigit():
        code = int(parts[0][0])
        key = _CODES.get(code, chr(code) if 32 < code < 57344 else "")
        if bits & 1 and len(key) == 1:
            key = key.upper()
        return _named(f"ctrl+{key}" if key and bits & _CTRL else key, kind)
    return _named(_TILDES.get(parts[0][0], "") if final == "~" else _LETTERS.get(final, ""), kind)


def _named(key: str, kind: str = "press") -> KeyEvent | None:
    return KeyEvent(key, kind) if key else None
