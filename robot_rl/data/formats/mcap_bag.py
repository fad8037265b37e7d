"""A bag: the MCAP files of one recording, and where the messages of its streams lie on their clocks."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.data.formats.mcap_file import McapFile, Stored
from robot_rl.data.formats.mcap_streams import (
    BY_NAME,
    EVENTS,
    Stream,
    has_joints,
    header_ns,
    joint_names,
    require_readable,
    row_of,
)
from robot_rl.errors import DataError, closest


@dataclass(frozen=True)
class Track:
    """Messages of one stream in the order of its clock, each stamp once.

    Attributes:
        stream: what was stated.
        kind: type of its messages.
        stamps_ns: int64 (M,).
        places: int64 (M, 3): file, byte of the record, number in it.
        late_s: median of log time minus stamp.
    """

    stream: Stream
    kind: str
    stamps_ns: Int64[Array, " M"]
    places: Int64[Array, "M 3"]
    late_s: float

    def pick(self, grid_ns: Int64[Array, " T"]) -> tuple[Int64[Array, "T 3"], Float64[Array, " T"], Bool[Array, " T"]]:
        """The message for each grid time: its place, its age in seconds (below 0 for `next`), whether it is good.

        Places of rows that have no message are -1; they are good only where an initial value was stated.
        """
        is_next, count = self.stream.take == "next", len(self.stamps_ns)
        chosen = np.searchsorted(self.stamps_ns, grid_ns, side="left" if is_next else "right") - (not is_next)
        is_there = np.asarray((chosen >= 0) & (chosen < count))
        safe = np.clip(chosen, 0, count - 1)
        ages = np.where(is_there, (grid_ns - self.stamps_ns[safe]) / 1e9, 0.0)
        limit = np.inf if self.stream.max_gap_s is None else self.stream.max_gap_s
        good: np.ndarray = is_there & (np.abs(ages) <= limit)
        if self.stream.initial is not None and not is_next:
            good |= chosen < 0
        return np.where(is_there[:, None], self.places[safe], -1), ages, good


@dataclass(frozen=True)
class Bag:
    """One recording, looked through once.

    Attributes:
        name: of its folder or file.
        files: its parts in order.
        tracks: by name of the stream.
        events: (log time in ns, what was said) of the topic that marks episodes.
        first_ns, last_ns: log times of the first and last message of any topic.
        notes: one sentence each.
        record: what the recorder itself wrote of the episode (the metadata "episode" of hardware/raw_log.py), else empty.
    """

    name: str
    files: Sequence[McapFile]
    tracks: dict[str, Track]
    events: Sequence[tuple[int, bool | str]]
    first_ns: int
    last_ns: int
    notes: Sequence[str]
    record: Mapping[str, str]


@dataclass
class _Found:
    """Messages of one stream as they come."""

    kind: str = ""
    stamps: array[int] = field(default_factory=lambda: array("q"))
    logs: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("q"))


def look_through(name: str, paths: Sequence[Path], streams: Sequence[Stream], *, events: str | None) -> Bag:
    """Read a bag once and note where the messages of each stream lie.

    Args:
        name: of the bag.
        paths: of its files.
        streams: what to look for.
        events: topic that marks episodes, or None.

    Raises:
        DataError: a topic is missing, of a type that is not read, or its clock jumps back; or a file is damaged.
    """
    files = [McapFile(path) for path in paths]
    found = {stream.name: _Found() for stream in streams}
    said: list[tuple[int, bool | str]] = []
    wanted = {stream.topic for stream in streams} | ({events} if events is not None else set())
    first, last = 2**63 - 1, 0
    for number, file in enumerate(files):
        for message in file.messages():
            first, last = min(first, message.log_ns), max(last, message.log_ns)
            topic = file.topics[message.channel]
            if topic not in wanted:
                continue
            if topic == events:
                said.append((message.log_ns, _event(file, message)))
            for stream in streams:
                if stream.topic == topic:
                    _note(found[stream.name], stream, file, message, number)
        file.close()
    topics = {topic for file in files for topic in file.topics.values()}
    for topic in sorted(wanted):
        if topic not in topics or not (said if topic == events else True):
            raise DataError(f"{name}, topic {topic}", expected="messages", got="none", hint=closest(topic, topics))
    notes = [note for file in files for note in file.notes]
    tracks = {}
    for stream in streams:
        tracks[stream.name], more = _track(found.pop(stream.name), stream, name)
        notes += more
    record = {key: value for file in files for key, value in file.metadata.get("episode", {}).items()}
    if record.get("dropped", "0") != "0":
        notes.append(f"{name}: its recorder dropped {record['dropped']} messages.")
    return Bag(name, files, tracks, sorted(said, key=lambda event: event[0]), first, last, notes, record)


def _note(found: _Found, stream: Stream, file: McapFile, message: Stored, number: int) -> None:
    kind = file.types[message.channel]
    if not found.kind:
        require_readable(stream, kind, where=f"{file.path}")
        if kind in BY_NAME and not stream.joints:
            names = ", ".join(joint_names(file.decode(message)))
            raise DataError(
                f"{file.path}, stream {stream.name!r}", expected="`joints`: which ones, in the order of the row", got="none",
                hint=f"{stream.topic} has: {names}.",
            )  # fmt: skip
        found.kind = kind
    elif kind != found.kind:
        raise DataError(
            f"{file.path}, topic {stream.topic}",
            expected="one type",
            got=f"{found.kind} and {kind}",
            hint="Record anew.",
        )
    if kind in BY_NAME and not has_joints(file.decode(message), stream):
        return
    where = f"{file.path}, topic {stream.topic}, message {len(found.stamps)}"
    found.stamps.append(message.log_ns if stream.align == "log" else header_ns(message.data, where=where))
    found.logs.append(message.log_ns)
    found.places.extend((number, message.offset, message.number))


def _track(found: _Found, stream: Stream, bag: str) -> tuple[Track, list[str]]:
    """Sorted by the stream's clock; of equal stamps the message that came last stays."""
    where = f"{bag}, stream {stream.name!r} ({stream.topic})"
    stamps = np.frombuffer(found.stamps, np.int64) if found.stamps else np.zeros(0, np.int64)
    if not stamps.size:
        got = f"none with {', '.join(stream.joints)}" if stream.joints else "none"
        raise DataError(where, expected="messages", got=got, hint="Was its publisher running? Leave the stream out.")
    notes, steps = [], np.diff(stamps)
    back = float(-steps.min(initial=0)) / 1e9
    if back > max(stream.max_gap_s or 0.0, 1.0):
        place = int(np.argmin(steps)) + 1
        raise DataError(
            f"{where}, message {place}", expected="one clock", got=f"a stamp {back:.3f} s before the one in front of it",
            hint="A clock was set, or a simulator restarted, while recording: align by the other clock, or split the bag.",
        )  # fmt: skip
    if back > 0:
        notes.append(f"{where}: {int((steps < 0).sum())} messages came out of order (by {back:.3f} s at most); sorted.")
    order = np.argsort(stamps, kind="stable")
    stamps, places = stamps[order], np.frombuffer(found.places, np.int64).reshape(-1, 3)[order]
    keep = np.append(stamps[1:] != stamps[:-1], True)
    if not keep.all():
        notes.append(
            f"{where}: {int((~keep).sum())} messages have the stamp of the next one; the one that came last stays."
        )
    late_s = float(np.median(np.frombuffer(found.logs, np.int64)[order] - stamps)) / 1e9
    return Track(stream, found.kind, stamps[keep], places[keep], late_s), notes


def _event(file: McapFile, message: Stored) -> bool | str:
    if file.types[message.channel] not in EVENTS:
        raise DataError(
            f"{file.path}, topic {file.topics[message.channel]}", expected=" or ".join(EVENTS),
            got=file.types[message.channel], hint="Episodes are marked by a Bool (true while one runs) or by a String.",
        )  # fmt: skip
    said = file.decode(message).data
    return said if isinstance(said, bool) else str(said).strip()


def read_rows(bag: Bag, places: dict[str, Int64[Array, "T 3"]], *, where: str) -> dict[str, np.ndarray]:
    """Rows of several streams of one stretch of a bag; each chunk is unpacked once.

    Args:
        bag: open.
        places: by stream, as `Track.pick` gives them.
        where: for errors.

    Raises:
        DataError: naming stream, step and topic.
    """
    wanted = sorted(
        (*place, name, step)
        for name, rows in places.items()
        for step, place in enumerate(rows.tolist())
        if place[0] >= 0
    )
    out: dict[str, np.ndarray] = {}
    frames: dict[str, str] = {}
    before: tuple[Any, np.ndarray] = (None, np.zeros(0))
    for number, offset, index, name, step in wanted:
        track, file = bag.tracks[name], bag.files[number]
        place = f"{where}, stream {name!r} ({track.stream.topic}), step {step}"
        if before[0] != (number, offset, index, name):
            message = file.decode(file.at(offset)[index])
            _require_one_frame(frames, name, message, place)
            before = ((number, offset, index, name), row_of(message, track.stream, track.kind, where=place))
        row = before[1]
        if name not in out:
            out[name] = np.full((len(places[name]), *row.shape), track.stream.initial or 0, row.dtype)
        if row.shape != out[name].shape[1:]:
            raise DataError(
                place, expected=f"{out[name].shape[1:]} as at the first step", got=f"{row.shape}",
                hint="Leave the episode out with --skip-bad.",
            )  # fmt: skip
        out[name][step] = row
    return out


def _require_one_frame(frames: dict[str, str], name: str, message: Any, where: str) -> None:
    """Poses of two frames of reference must not become one array."""
    if not (hasattr(message, "header") and (hasattr(message, "pose") or hasattr(message, "wrench"))):
        return
    frame = message.header.frame_id
    if frames.setdefault(name, frame) != frame:
        raise DataError(
            where, expected=f"frame {frames[name]!r} all along", got=repr(frame),
            hint="Publish in one frame, or leave the episode out with --skip-bad.",
        )  # fmt: skip
