"""What a page may say: JSON texts of four kinds, read strictly. Anything else ends that connection, with the reason.

    {"type": "command", "seq": 12, "t": 1034.2, "engaged": true, "motion": [0, .5, 0, 0, 0, 0], "gripper": 0,
     "pose": null, "buttons": []}
    {"type": "event", "name": "success", "text": "", "t": 1040.9}
    {"type": "edit", "name": "edit_failure", "episode": "5f0c...", "text": "", "t": 1040.9}
    {"type": "lease", "want": "take" | "ask" | "give"}

`t` is the page's own clock in milliseconds (performance.now()).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from robot_rl.teleop.panel import EDITS, EVENTS

MOST_BYTES = 64 * 1024  # of one message of a page
MOST_TEXT = 2000
MOST_BUTTONS, MOST_BUTTON_NAME, MOST_NAME = 32, 40, 40
_ANY_T = 1e13


class BadMessage(Exception):
    """A message that no page of ours sends; its text is the reason that the other side gets to read."""


@dataclass(frozen=True)
class Command:
    """See TeleopCommand; `t_ms` is of the page's clock."""

    seq: int
    t_ms: float
    engaged: bool
    motion: tuple[float, ...]
    gripper: float
    pose: tuple[float, ...] | None
    buttons: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """A name of panel.EVENTS, or of EDITS with the id of a saved episode; `t_ms` is of the page's clock."""

    name: str
    text: str
    t_ms: float
    episode: str = ""


@dataclass(frozen=True)
class LeaseWish:
    """take: drive, when nobody does; ask: tell the driver; give: stop driving."""

    want: str


def parse(text: str) -> Command | Event | LeaseWish:
    """One message of a page.

    Raises:
        BadMessage: it is not one of the four kinds, or a field is missing, unknown, of another type or out of range.
    """
    try:
        message = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no JSON: {error}"[:100]) from None
    if not isinstance(message, dict):
        raise BadMessage(f"a JSON object is expected, not {type(message).__name__}")
    kind = message.pop("type", None)
    if kind == "command":
        return _command(message)
    if kind == "event":
        return _event(message)
    if kind == "edit":
        return _edit(message)
    if kind == "lease":
        _require_fields(message, {"want"})
        return LeaseWish(_one_of("want", message["want"], ("take", "ask", "give")))
    raise BadMessage(f"unknown type {kind!r:.40}")


def hello_of(text: str) -> tuple[str, str]:
    """Token and name of a connection's first message, {"type": "hello", "token": "...", "name": "Ada"}.

    Raises:
        BadMessage: it is no hello.
    """
    try:
        message = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or message.pop("type", None) != "hello":
        raise BadMessage("the first message must be a hello")
    _require_fields(message, {"token", "name"})
    return _text("token", message["token"], 200), _text("name", message["name"], MOST_NAME)


def _command(message: dict[str, Any]) -> Command:
    _require_fields(message, {"seq", "t", "engaged", "motion", "gripper", "pose", "buttons"})
    seq, engaged, buttons, pose = message["seq"], message["engaged"], message["buttons"], message["pose"]
    if type(seq) is not int or not 0 < seq < 2**53:
        raise BadMessage("seq: a whole number above 0 is expected")
    if type(engaged) is not bool:
        raise BadMessage("engaged: true or false is expected")
    if not isinstance(buttons, list) or len(buttons) > MOST_BUTTONS:
        raise BadMessage(f"buttons: at most {MOST_BUTTONS} names are expected")
    names = tuple(_text("buttons", name, MOST_BUTTON_NAME) for name in buttons)
    if any(name.startswith("event:") for name in names):
        raise BadMessage("buttons: events are sent as messages of their own")
    if pose is not None:
        pose = _numbers("pose", pose, 7, 1e3)
        if abs(math.hypot(*pose[3:]) - 1) > 0.01:
            raise BadMessage("pose: elements 3 to 6 must be a quaternion of length 1")
    motion = _numbers("motion", message["motion"], 6, 1.0)
    return Command(
        seq,
        _number("t", message["t"], _ANY_T),
        engaged,
        motion,
        _number("gripper", message["gripper"], 1.0),
        pose,
        names,
    )


def _event(message: dict[str, Any]) -> Event:
    _require_fields(message, {"name", "text", "t"})
    name = _one_of("name", message["name"], EVENTS)
    return Event(name, _text("text", message["text"], MOST_TEXT), _number("t", message["t"], _ANY_T))


def _edit(message: dict[str, Any]) -> Event:
    _require_fields(message, {"name", "episode", "text", "t"})
    name, text = _one_of("name", message["name"], EDITS), _text("text", message["text"], MOST_TEXT)
    episode = message["episode"]
    if not isinstance(episode, str) or not re.fullmatch("[0-9a-f]{32}", episode):
        raise BadMessage("episode: an id of 32 hexadecimal digits is expected")
    return Event(name, text, _number("t", message["t"], _ANY_T), episode)


def _require_fields(message: dict[str, Any], fields: set[str]) -> None:
    if message.keys() != fields:
        missing, unknown = sorted(fields - message.keys()), sorted(message.keys() - fields)
        raise BadMessage(f"missing fields {missing}, unknown {unknown}"[:100])


def _number(field: str, value: Any, most: float) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not abs(value) <= most:
        raise BadMessage(f"{field}: a number of at most {most:g} is expected")
    return float(value)


def _numbers(field: str, values: Any, count: int, most: float) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != count:
        raise BadMessage(f"{field}: {count} numbers are expected")
    return tuple(_number(field, value, most) for value in values)


def _text(field: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or (not value.isascii() and _is_broken(value)):
        raise BadMessage(f"{field}: a text of at most {most} characters is expected")
    return value


def _is_broken(text: str) -> bool:
    """Half a surrogate pair, which no file takes."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _one_of(field: str, value: Any, options: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in options:
        raise BadMessage(f"{field}: {value!r:.40} is none of ours")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
