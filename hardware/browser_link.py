"""From a session to the page's process: views and pictures through shared memory, of which the newest counts.

The writer never waits. A view costs it one JSON text (0.1 ms where it was tried), a picture one copy and its checksum (0.3 ms
for 640x480); pictures go one at a time and not faster than asked for, so that no call is long. They are made smaller and
encoded on the other side.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import Child
from robot_rl.teleop.panel import SessionView

from .camera_ring import Entry, SharedRing

SLOTS = 3
VIEW_BYTES, EPISODES_BYTES = 1 << 18, 1 << 23
MOST_PICTURE_BYTES = 1 << 26
_KEPT_APART = ("episodes", "pictures")


def make_rings() -> dict[str, int]:
    """Memory of the two texts: name -> file descriptor."""
    return {
        name: SharedRing.create_memory(f"page-{name}", slots=SLOTS, payload_bytes=size)
        for name, size in (("view", VIEW_BYTES), ("episodes", EPISODES_BYTES))
    }


class ViewWriter:
    """The session's end.

    Args:
        fds: of `make_rings`; the caller closes them.
        view_hz: most views a second; a change of state is shown at once.
        picture_hz: most pictures a second of each camera.
    """

    def __init__(self, fds: Mapping[str, int], *, view_hz: float, picture_hz: float) -> None:
        self._view = SharedRing(fds["view"], slots=SLOTS, payload_bytes=VIEW_BYTES)
        self._episodes_ring = SharedRing(fds["episodes"], slots=SLOTS, payload_bytes=EPISODES_BYTES)
        self._view_s, self._picture_s = 1 / view_hz, 1 / picture_hz
        self._due_s = float("-inf")
        self._shown: tuple[Any, ...] = ()
        self._episodes: Any = None
        self._rings: dict[str, tuple[tuple[int, ...], SharedRing]] = {}
        self._pictures_due_s: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    def write(self, view: SessionView) -> None:
        """Show a view, if one is due."""
        now_s, shown = time.monotonic(), (view.state, view.message, view.allowed, view.limits)
        if now_s >= self._due_s or shown != self._shown:
            self._due_s, self._shown = now_s + self._view_s, shown
            told = {f.name: getattr(view, f.name) for f in fields(view) if f.name not in _KEPT_APART}
            self._write_text(self._view, "view", told, now_s)
        if view.episodes != self._episodes:
            self._episodes = view.episodes
            self._write_text(self._episodes_ring, "episodes", list(view.episodes), now_s)

    def write_picture(self, view: SessionView, child: Child) -> None:
        """Pass on the picture that is longest due, if one is."""
        now_s = time.monotonic()
        for name in sorted(view.pictures, key=lambda name: self._pictures_due_s.get(name, 0.0)):
            if self._pictures_due_s.get(name, 0.0) > now_s:
                return
            self._pictures_due_s[name] = now_s + self._picture_s
            if (ring := self._ring(name, view.pictures[name], child)) is not None:
                ring.write(np.ascontiguousarray(view.pictures[name]), stamp_s=now_s)
                return

    def _ring(self, name: str, picture: Any, child: Child) -> SharedRing | None:
        """The memory of this camera at its present size; the other side is told of a new one."""
        shape: tuple[int, ...] = getattr(picture, "shape", ())
        if (
            getattr(picture, "dtype", None) != np.uint8
            or len(shape) != 3
            or shape[2] != 3
            or not 0 < picture.nbytes <= MOST_PICTURE_BYTES
        ):
            self.problems[name] = f"picture {name!r} is not shown: uint8 (H, W, 3) is expected, not {shape}"
            return None
        known = self._rings.get(name)
        if known is not None and known[0] == shape:
            return known[1]
        fd = SharedRing.create_memory("page-picture", slots=SLOTS, payload_bytes=picture.nbytes)
        try:
            ring = SharedRing(fd, slots=SLOTS, payload_bytes=picture.nbytes)
            if not child.send(json.dumps({"picture": name, "shape": shape}).encode(), fds=[fd]):
                return None  # tried again with the next picture
        finally:
            os.close(fd)
        self._rings[name] = (shape, ring)
        self.problems.pop(name, None)
        return ring

    def _write_text(self, ring: SharedRing, name: str, told: Any, now_s: float) -> None:
        text = json.dumps(plain(told), separators=(",", ":")).encode()
        if len(text) > ring.payload_bytes:
            self.problems[name] = f"{name} is not shown: {len(text)} bytes, at most {ring.payload_bytes}"
            return
        self.problems.pop(name, None)
        ring.write(text, stamp_s=now_s)


class PictureReader:
    """The server's end of one camera.

    Args:
        fd: as it came; the caller closes it.
        shape: (H, W, 3).
    """

    def __init__(self, fd: int, shape: tuple[int, int, int]) -> None:
        self._shape = shape
        self._ring = SharedRing(fd, slots=SLOTS, payload_bytes=math.prod(shape))
        self._seen = 0

    def newest(self) -> np.ndarray | None:
        """A picture that was not given before, uint8 (H, W, 3)."""
        entry = self._ring.read(after=self._seen)
        if entry is None:
            return None
        self._seen = entry.sequence
        return np.frombuffer(entry.payload, np.uint8).reshape(self._shape)


class TextReader:
    """The server's end of one text.

    Args:
        fd: of `make_rings`; the caller closes it.
        payload_bytes: as it was made.
    """

    def __init__(self, fd: int, payload_bytes: int) -> None:
        self._ring = SharedRing(fd, slots=SLOTS, payload_bytes=payload_bytes)
        self._seen = 0

    def newest(self) -> Entry | None:
        """A text that was not given before."""
        entry = self._ring.read(after=self._seen)
        if entry is not None:
            self._seen = entry.sequence
        return entry


def plain(value: Any) -> Any:
    """JSON types of numpy's and ours; a number that is none becomes None, as JSON has no infinity."""
    if value is None or isinstance(value, (str, bool)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return bool(value) if isinstance(value, np.bool_) else str(value)
