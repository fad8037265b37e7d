"""A recording on the disk while it is made: one append-only file an episode, whole up to its last good record.

A record is length, CRC-32, kind and content. What a crash cut off in the middle is not there when the file is read; what
stands before it is. Rows go to the system at once, so that a killed process loses none that were written, and to the disk
every `sync_s`, so that a power cut loses no more than that. Kinds: header (JSON, first), row, event (JSON).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import DataError
from robot_rl.teleop.rows import IMAGE, Row, RowLayout

MAGIC = b"robot_rl segment 1\n"
SUFFIX = ".segment"
_RECORD = struct.Struct("<IIB")
_HEADER, _ROW, _EVENT = 1, 2, 3
_MOST_BYTES = 1 << 30


class SegmentWriter:
    """Writes one recording. Used by one thread.

    Args:
        path: of the file; it must not exist.
        layout: of its rows.
        facts: JSON types, of the header.
        sync_s: at most so long between two syncs.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, path: Path, layout: RowLayout, facts: Mapping[str, Any], *, sync_s: float = 0.5) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._layout, self._sync_s, self.rows = path, layout, sync_s, 0
        self._before: dict[str, float] = {}
        self._stream = path.open("xb", buffering=0)
        self._synced_s = time.monotonic()
        self._stream.write(MAGIC)
        self._add(_HEADER, json.dumps({"layout": layout.to_json(), **facts}).encode())
        self.sync()

    @classmethod
    def reopen(cls, path: Path, layout: RowLayout, *, sync_s: float = 0.5) -> SegmentWriter:
        """Go on with a file, behind its last good record.

        Raises:
            DataError: as `read_segment`.
            OSError: it can't be written.
        """
        segment = read_segment(path, has_frames=False)
        writer = cls.__new__(cls)
        writer.path, writer._layout, writer._sync_s, writer.rows = path, layout, sync_s, len(segment.table)
        writer._before, writer._synced_s = {}, time.monotonic()
        writer._stream = path.open("r+b", buffering=0)
        writer._stream.seek(-segment.lost_bytes, os.SEEK_END)
        writer._stream.truncate()
        return writer

    def add_row(self, row: Row) -> None:
        """Append one step.

        Raises:
            OSError: no room.
        """
        parts: list[Any] = [self._layout.numbers(row).tobytes()]
        for key in self._layout.keys:
            frame = np.ascontiguousarray(row.frames[key], self._layout.spec.observation[key].dtype)
            if frame.shape != self._layout.spec.observation[key].shape:
                raise DataError(
                    f"frame {key!r}", expected=f"shape {self._layout.spec.observation[key].shape}",
                    got=str(frame.shape), hint="The camera or the robot is not configured as its spec says.",
                )  # fmt: skip
            if key.startswith(IMAGE):
                # The loop may be faster than the camera: a frame of the same capture is not written twice.
                stamp_s = row.capture_s.get(key, np.nan)
                is_same = stamp_s == self._before.get(key)
                parts.append(b"\0" if is_same else b"\1")
                self._before[key] = stamp_s
                if is_same:
                    continue
            parts.append(frame.reshape(-1).view(np.uint8).data)
        self._add(_ROW, *parts)
        self.rows += 1
        if time.monotonic() - self._synced_s > self._sync_s:
            self.sync()

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Append what happened.

        Raises:
            OSError: no room.
        """
        self._add(_EVENT, json.dumps(dict(event)).encode())

    def sync(self) -> None:
        """To the disk, now."""
        os.fsync(self._stream.fileno())
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Also twice."""
        self._stream.close()

    def _add(self, kind: int, *parts: Any) -> None:
        """One record; pictures are not copied, and CRC and write leave the interpreter to the loop."""
        size, crc = sum(len(part) for part in parts), 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        descriptor, place = self._stream.fileno(), self._stream.tell()
        try:
            written = os.writev(descriptor, [_RECORD.pack(size, crc, kind), *parts])
            if written != _RECORD.size + size:
                raise OSError(errno.ENOSPC, "no room for a whole record", str(self.path))
        except OSError:
            # What comes later, the label above all, must not stand behind half a record.
            self._stream.truncate(place)
            self._stream.seek(place)
            raise


@dataclass
class Segment:
    """What a file holds.

    Attributes:
        path: of it.
        facts: its header.
        layout: of its rows.
        table: float64 (R, width), see RowLayout.
        frames: observation key -> (R, ...), or empty where they were not asked for.
        events: in order.
        lost_bytes: behind the last good record.
    """

    path: Path
    facts: dict[str, Any]
    layout: RowLayout
    table: np.ndarray
    frames: dict[str, np.ndarray]
    events: list[dict[str, Any]] = field(default_factory=list)
    lost_bytes: int = 0


def read_segment(path: Path, *, has_frames: bool = True) -> Segment:
    """Everything up to the first record that is not whole.

    Args:
        path: of the file.
        has_frames: False leaves `frames` empty: a recording may be larger than the memory, and a session must begin with it.

    Raises:
        DataError: no such file, or not even its header is whole.
    """
    try:
        with path.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if content[: len(MAGIC)] != MAGIC:
        raise _unreadable(path, "another kind of file")
    records, end = _records(content)
    if not records or records[0][0] != _HEADER:
        raise _unreadable(path, "no whole header")
    facts = json.loads(content[records[0][1] : records[0][2]])
    layout = RowLayout.from_json(facts.pop("layout"), where=str(path))
    rows = [(begin, stop) for kind, begin, stop in records if kind == _ROW]
    events = [json.loads(content[begin:stop]) for kind, begin, stop in records if kind == _EVENT]
    table, frames = _unpacked(content, rows, layout, has_frames=has_frames)
    return Segment(path, facts, layout, table, frames, events, len(content) - end)


def _records(content: mmap.mmap) -> tuple[list[tuple[int, int, int]], int]:
    """(kind, begin, stop) of every whole record, and where the last one ends."""
    place, found = len(MAGIC), list[tuple[int, int, int]]()
    view = memoryview(content)
    try:
        while place + _RECORD.size <= len(content):
            size, crc, kind = _RECORD.unpack_from(content, place)
            begin = place + _RECORD.size
            if size > _MOST_BYTES or begin + size > len(content) or zlib.crc32(view[begin : begin + size]) != crc:
                break
            found.append((kind, begin, begin + size))
            place = begin + size
    finally:
        view.release()
    return found, place


def _unpacked(
    content: mmap.mmap, rows: list[tuple[int, int]], layout: RowLayout, *, has_frames: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    specs, count, keys = layout.spec.observation, len(rows), layout.keys if has_frames else ()
    table = np.empty((count, layout.width))
    frames = {key: np.empty((count, *specs[key].shape), specs[key].dtype) for key in keys}
    for index, (begin, stop) in enumerate(rows):
        row = content[begin : stop if has_frames else begin + layout.width * 8]  # one at a time: a copy
        table[index] = np.frombuffer(row, np.float64, layout.width)
        place = layout.width * 8
        for key in keys:
            if key.startswith(IMAGE):
                place += 1
                if row[place - 1] == 0:
                    frames[key][index] = frames[key][index - 1]
                    continue
            kind, size = np.dtype(specs[key].dtype), specs[key].size
            frames[key][index] = np.frombuffer(row, kind, size, place).reshape(specs[key].shape)
            place += size * kind.itemsize
    return table, frames


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"recording {path}", expected="a recording in progress", got=why,
        hint="Move this file away to go on without it; saved episodes are not in it.",
    )  # fmt: skip
