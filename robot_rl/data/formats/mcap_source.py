"""Reads ROS 2 bags (rosbag2 folders and .mcap files): topics brought to one rate, cut into episodes.

Everything that a bag does not say is stated by the user, and nothing is interpolated: a row has the latest message that
is not newer than its time (`take: last`), or the first that is not older (`take: next`, for commands that answer what was
seen). How old each was is recorded under `age/<stream>`, and in the metadata of the episode. A larger gap than stated is
an error that names stream and time, or splits the episode there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64, Int64
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.mcap_bag import Bag, Track, look_through, read_rows
from robot_rl.data.formats.mcap_folder import bags_at, topic_lines
from robot_rl.data.formats.mcap_spans import Span, marks_of
from robot_rl.data.formats.mcap_streams import CLOCKS, require_number, row_of, streams_of
from robot_rl.errors import DataError

_STATE = """options:
  rate_hz: 20              # of the rows
  align: ???               # header (stamps of the messages) or log (when the recorder got them)
  max_gap_s: 0.2           # a message further away is a gap
  on_gap: refuse           # or split
  episodes: ???            # bag; {times: [[0, 12.5], ...]}; {topic: /episode, begin: [start], end: [stop], drop: [discard]}
  streams:                 # name: {topic, joints, field, take, align, max_gap_s, initial}
    proprio: {topic: ???, joints: [???]}
    action: {topic: ???, take: ???}    # last: in force at that time; next: sent in answer to what was seen then
"""


@dataclass(frozen=True)
class _Piece:
    """Rows of one episode: which messages, and how old they are."""

    bag: int
    name: str
    grid_ns: Int64[Array, " T"]
    places: Mapping[str, Int64[Array, "T 3"]]
    ages: Mapping[str, Float64[Array, " T"]]
    is_success: bool
    problem: DataError | None = None


class McapSource:
    """A KeyedSource of bags. Keys are the names of the streams, "age/<stream>" (s), "time" (s), and "success".

    Args:
        path: a .mcap file, a rosbag2 folder, or a folder of either.
        rate_hz: rows per second.
        align: clock of the streams: "log" or "header".
        max_gap_s: largest distance between a row's time and its message, s.
        streams: name -> {topic: ..., ...}, see mcap_streams.Stream.
        episodes: "bag" (one each), {"times": [[begin, end], ...]} in seconds from the first message, or {"topic": ...,
            "begin": [...], "end": [...], "success": [...], "drop": [...]}: see mcap_spans.Marks.
        on_gap: "refuse" (the episode is bad) or "split" (parts without gaps are episodes).

    Raises:
        DataError: something is not stated, no bag, a topic is missing, or every bag is damaged.
    """

    format = "mcap"

    def __init__(
        self,
        path: Path,
        *,
        rate_hz: float | int | None = None,
        align: str | None = None,
        max_gap_s: float | int | None = None,
        streams: Any = None,
        episodes: Any = None,
        on_gap: str = "refuse",
    ) -> None:
        self.path, where = path, f"{path}, options"
        found = bags_at(path)
        stated = {"rate_hz": rate_hz, "align": align, "max_gap_s": max_gap_s, "streams": streams, "episodes": episodes}
        _require_stated(stated, found[0][1], where)
        assert rate_hz is not None
        assert max_gap_s is not None
        self._rate_hz, self._on_gap = float(rate_hz), on_gap
        if align not in CLOCKS or on_gap not in ("refuse", "split"):
            raise DataError(
                where, expected="align: log or header, on_gap: refuse or split", got=f"{align} and {on_gap}", hint=""
            )
        self._streams = streams_of(streams, align=align, max_gap_s=float(max_gap_s), where=where)
        self._marks = marks_of(episodes, bags=len(found), where=where)
        self._bags: list[Bag | None] = []
        self._pieces: list[_Piece] = []
        self.notes: list[str] = []
        self._says_success = bool(self._marks.success)
        self._look(found)
        self._loaded: tuple[int, dict[str, np.ndarray]] = (-1, {})
        self.keys = self._keys()
        self.episodes: Sequence[SourceEpisode] = [
            # A bag that can't be read has rows for its reader, so that it asks for them and meets the problem.
            SourceEpisode(piece.name, max(2, len(piece.grid_ns)), metadata=self._metadata(piece))
            for piece in self._pieces
        ]
        self.declared: Mapping[str, Any] = {
            "control_hz": self._rate_hz, "timestamp_key": "time", "timestamp_from_start": True
        }  # fmt: skip
        self.facts: Mapping[str, Any] = {
            **{key: value for key, value in stated.items() if key != "streams"},
            "on_gap": on_gap,
            "streams": {stream.name: stream.to_json() for stream in self._streams},
        }

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows (steps, ...) of `key`: float64 numbers, or uint8 (steps, H, W, 3). Raises DataError."""
        piece = self._pieces[index]
        if piece.problem is not None:
            raise piece.problem
        if key == "time":
            return np.asarray((piece.grid_ns - piece.grid_ns[0]) / 1e9)
        if key == "success":
            is_last: np.ndarray = np.arange(len(piece.grid_ns)) == len(piece.grid_ns) - 1
            return is_last.astype(np.float64) * piece.is_success
        if key.startswith("age/"):
            return np.asarray(piece.ages[key.removeprefix("age/")])
        if self._loaded[0] != index:
            self._load(index)
        rows = self._loaded[1].get(key)
        shape, dtype = self.keys[key]
        if rows is None:  # no message at all, and an initial value
            initial = next(stream.initial for stream in self._streams if stream.name == key)
            return np.full((len(piece.grid_ns), *shape), initial, dtype)
        if rows.shape[1:] != shape:
            raise DataError(
                f"{self.path}, {piece.name}, stream {key!r}", expected=f"rows of shape {shape}, as the first bag has",
                got=f"{rows.shape[1:]}", hint="Leave the episode out with --skip-bad.",
            )  # fmt: skip
        return rows

    def close(self) -> None:
        """Close the files."""
        for bag in self._bags:
            for file in bag.files if bag is not None else ():
                file.close()

    def _load(self, index: int) -> None:
        """All streams of one episode; those of the one before go first."""
        piece = self._pieces[index]
        bag = self._bags[piece.bag]
        assert bag is not None
        self._loaded = (-1, {})
        self.close()
        self._loaded = (index, read_rows(bag, dict(piece.places), where=f"{self.path}, {piece.name}"))

    def _look(self, found: Sequence[tuple[str, list[Path]]]) -> None:
        problems = []
        for number, (name, paths) in enumerate(found):
            try:
                bag = look_through(name, paths, self._streams, events=self._marks.topic)
                self._require_one_clock(bag)
                spans, notes = self._marks.spans(bag)
                pieces = [piece for span in spans for piece in self._cut(number, bag, span)]
            except DataError as error:
                problems.append(error)
                self._bags.append(None)
                self._pieces.append(_Piece(number, name, np.zeros(0, np.int64), {}, {}, False, error))
                continue
            self.notes += [*bag.notes, *notes]
            self._says_success |= bag.record.get("success") in ("true", "false") and not self._marks.uses_log
            self._pieces += pieces
            # Only the places that rows need stay in memory.
            tracks = {key: _without_index(track) for key, track in bag.tracks.items()}
            self._bags.append(replace(bag, tracks=tracks, events=(), notes=()))
        if len(problems) == len(found):
            raise problems[0]
        if not self._pieces:
            raise DataError(f"{self.path}", expected="an episode", got="none", hint=" ".join(self.notes))

    def _cut(self, number: int, bag: Bag, span: Span) -> Iterator[_Piece]:
        """Rows of one episode, or of its parts between gaps."""
        steps = max(0, int((span.end_ns - span.begin_ns) * self._rate_hz / 1e9 + 1e-9) + 1)
        grid = span.begin_ns + np.round(np.arange(steps) * 1e9 / self._rate_hz).astype(np.int64)
        picked = {name: track.pick(grid) for name, track in bag.tracks.items()}
        # Behind the last command there is nothing to learn from: the episode ends with it.
        stop = steps
        for track in bag.tracks.values():
            if track.stream.take == "next":
                stop = min(stop, int(np.searchsorted(grid, track.stamps_ns[-1], side="right")))
        if (steps - stop) / self._rate_hz > max(stream.max_gap_s or 0.0 for stream in self._streams):
            self.notes.append(f"{span.name}: {steps - stop} rows behind the last command were left out.")
        good = np.logical_and.reduce([is_good[:stop] for _, _, is_good in picked.values()])
        where = f"{self.path}, {span.name}"
        if self._on_gap == "refuse" or good.all():
            problem = None if good.all() and stop >= 2 else self._gap(bag, picked, grid[:stop], where)
            yield self._piece(number, span, span.name, grid, picked, slice(0, stop), problem)
            return
        edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
        parts = [(begin, end) for begin, end in edges.reshape(-1, 2).tolist() if end - begin >= 2]
        self.notes.append(f"{span.name}: {int((~good).sum())} rows are in gaps; {len(parts)} parts are left.")
        for part, (begin, end) in enumerate(parts):
            name = f"{span.name} part {part}"
            yield self._piece(number, span, name, grid, picked, slice(begin, end), None, is_last=end == stop)

    def _piece(
        self, number: int, span: Span, name: str, grid: np.ndarray, picked: Mapping[str, Any], rows: slice,
        problem: DataError | None, *, is_last: bool = True,
    ) -> _Piece:  # fmt: skip
        return _Piece(
            number, name, grid[rows], {key: places[rows] for key, (places, _, _) in picked.items()},
            {key: ages[rows] for key, (_, ages, _) in picked.items()}, span.is_success and is_last, problem,
        )  # fmt: skip

    def _gap(self, bag: Bag, picked: Mapping[str, Any], grid: np.ndarray, where: str) -> DataError:
        """Which stream is missing first, and when."""
        first = {
            name: int(np.argmin(good[: len(grid)]))
            for name, (_, _, good) in picked.items()
            if not good[: len(grid)].all()
        }
        if not first:
            return DataError(
                where, expected="two rows or more", got=f"{len(grid)}", hint="Leave it out with --skip-bad."
            )
        name = min(first, key=lambda key: first[key])
        step, stream = first[name], bag.tracks[name].stream
        age = picked[name][1][step]
        got = f"one {abs(age):.3f} s {'before' if age > 0 else 'behind'} it" if age else "none at all"
        bad = int((~picked[name][2][: len(grid)]).sum())
        return DataError(
            f"{where}, stream {name!r} ({stream.topic}), step {step}, {(grid[step] - grid[0]) / 1e9:.3f} s",
            expected=f"a message within {stream.max_gap_s} s of the row's time", got=f"{got} ({bad} such steps)",
            hint="Its publisher or the recorder stopped there: `on_gap: split` keeps what lies between gaps.",
        )  # fmt: skip

    def _require_one_clock(self, bag: Bag) -> None:
        """Clocks may be mixed only where they agree (a simulator's stamps begin at zero)."""
        clocks = {stream.align for stream in self._streams} | ({"log"} if self._marks.uses_log else set())
        for track in bag.tracks.values() if len(clocks) > 1 else ():
            limit = track.stream.max_gap_s or 1.0
            if track.stream.align == "header" and abs(track.late_s) > limit:
                raise DataError(
                    f"{bag.name}, stream {track.stream.name!r} ({track.stream.topic})",
                    expected=f"stamps within {limit} s of the log time, since others (or the episodes) go by that",
                    got=f"stamps {track.late_s:.3f} s before it", hint="Align all streams by log time.",
                )  # fmt: skip

    def _keys(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shapes from the first message of each stream in the first bag that can be read."""
        number = np.dtype(np.float64)
        keys: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        bag = next(bag for bag in self._bags if bag is not None)
        for name, track in bag.tracks.items():
            file = bag.files[int(track.places[0, 0])]
            message = file.decode(file.at(int(track.places[0, 1]))[int(track.places[0, 2])])
            row = row_of(message, track.stream, track.kind, where=f"{self.path}, stream {name!r}, first message")
            keys[name] = (row.shape, row.dtype)
        self.close()
        keys |= {f"age/{stream.name}": ((), number) for stream in self._streams}
        return keys | {"time": ((), number)} | ({"success": ((), number)} if self._says_success else {})

    def _metadata(self, piece: _Piece) -> dict[str, Any]:
        if piece.problem is not None:
            return {}
        ages = {key: {"mean": float(np.mean(age)), "max": float(np.abs(age).max())} for key, age in piece.ages.items()}
        bag = self._bags[piece.bag]
        record = {"recorder": dict(bag.record)} if bag is not None and bag.record else {}
        return {"begin_unix_ns": int(piece.grid_ns[0]), "ages_s": ages, **record}


def _without_index(track: Track) -> Track:
    return replace(track, stamps_ns=track.stamps_ns[:1].copy(), places=track.places[:1].copy())


def _require_stated(stated: Mapping[str, Any], first: Sequence[Path], where: str) -> None:
    missing = [name for name, value in stated.items() if value is None]
    if missing:
        topics = "\n".join(f"# {line}" for line in topic_lines(first))
        raise DataError(
            where, expected="how topics become rows: rate_hz, align, max_gap_s, streams and episodes",
            got=f"no {', '.join(missing)}", hint=f"Put this into card.yaml and fill it in:\n\n{_STATE}{topics}",
        )  # fmt: skip
    for name in ("rate_hz", "max_gap_s"):
        require_number(stated[name], where=f"{where}, {name}")
    if not isinstance(stated["streams"], Mapping) or not stated["streams"]:
        raise DataError(f"{where}, streams", expected="names with topics", got=repr(stated["streams"]), hint=_STATE)
