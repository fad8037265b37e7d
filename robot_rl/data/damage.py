"""What of a damaged store still verifies, and why the rest does not: read episode by episode against the checksums.

An episode verifies when every array and the text of it have the checksums that the store noted at its commit; where
they begin and end is proven by that too. Seed, success and source of the index are derived from them and made anew.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool
from robot_rl.data import episode_rows as er
from robot_rl.data.committed import CommittedArrays
from robot_rl.data.journal import pending_journals, read_journal
from robot_rl.data.rewriting import Piece
from robot_rl.data.store_attributes import SCHEMA, parse_attributes, read_attributes
from robot_rl.data.video_files import VideoFiles
from robot_rl.data.zarr_layout import ZarrArray, read_json, refuse_mixed_formats
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode


@dataclass(frozen=True)
class Survey:
    """What is in a store that may be damaged.

    Attributes:
        path: of the store.
        spec, metadata, images: of the store (or of the one given in its place).
        declared: number of episodes that it should hold.
        pending: number of them that are in a journal only: an append was cut off.
        good: index -> piece, of the episodes that verify.
        lost: index -> why it does not verify.
        problems: one line for each damaged or missing file, by name, and for what is in the way.
    """

    path: Path
    spec: EnvSpec
    metadata: Mapping[str, Any]
    images: str
    declared: int
    pending: int
    good: Mapping[int, Piece]
    lost: Mapping[int, str]
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to repair."""
        return not self.problems and not self.lost

    @property
    def prefix(self) -> int:
        """Number of episodes before the first that does not verify."""
        return min(self.lost, default=self.declared)


def survey(
    path: Path,
    *,
    like: Path | None = None,
    on_episode: Callable[[int, int], None] | None = None,
) -> Survey:
    """Read everything and say what verifies; nothing is written.

    Args:
        path: of the store.
        like: another store whose spec and metadata stand in for a `.zattrs` that is damaged or missing.
        on_episode: called with (episodes done, episodes in all).

    Raises:
        DataError: no folder there, or its `.zattrs` can't be read and there is no `like`.
    """
    if not path.is_dir():
        raise DataError(f"{path}", expected="the folder of a store", got="none", hint="Check the path.")
    problems = list[str]()
    spec, metadata, images = _attributes(path, like, problems)
    videos = VideoFiles(path, spec, images)
    arrays = er.array_layout(spec, path, videos=videos.keys)
    if not (path / ".zgroup").is_file():
        problems.append(f"{path / '.zgroup'}: no such file")
    for group in (path, path / "data", path / "meta", *(array.path for array in arrays.values())):
        _noted(problems, partial(refuse_mixed_formats, group), None)
    damaged = _Damaged(arrays, videos, spec, problems, has_journal=bool(pending_journals(path)))
    journal = _journal_episodes(path, videos, spec, problems)
    declared = max([damaged.episodes, *(index + 1 for index in journal)])
    good, lost = dict[int, Piece](), dict[int, str]()
    for index in range(declared):
        readers: list[_Read] = [partial(damaged.read, index)] if index < damaged.episodes else []
        readers += [journal[index]] if index in journal else []
        piece, reason = _first_that_verifies(f"{path}, episode {index}", readers, problems)
        if piece is not None:
            piece = replace(piece, videos=partial(_files, videos, index))
        if piece is None:
            lost[index] = reason
        else:
            good[index] = piece
        if on_episode is not None:
            on_episode(index + 1, declared)
    if not problems and not lost:
        # Whatever else keeps it from being opened.
        _noted(problems, partial(CommittedArrays, path, spec, images), None)
    pending = sum(index >= damaged.episodes for index in journal)
    return Survey(path, spec, metadata, images, declared, pending, good, lost, tuple(problems))


# An episode, its checksums, and its id where that is certain.
_Content = tuple[Episode, dict[str, int], np.ndarray | None]
_Read = Callable[[], _Content]


class _Damaged:
    """Rows of a store of which any file may be missing or wrong."""

    def __init__(
        self,
        arrays: Mapping[str, ZarrArray],
        videos: VideoFiles,
        spec: EnvSpec,
        problems: list[str],
        *,
        has_journal: bool,
    ) -> None:
        self._arrays, self._videos, self._spec = arrays, videos, spec
        self._room = {name: _chunk_room(array) for name, array in arrays.items()}
        lengths = {name: _noted(problems, array.length, None) for name, array in arrays.items()}
        self.episodes = self._count(lengths, has_journal=has_journal)
        self._chunk = dict[str, tuple[int, Any]]()
        self._index, self._known = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for name in er.INDEX:
            self._index[name], self._known[name] = _rows_that_are_there(arrays[name], self.episodes, problems)
        self._proven = self._check_index(problems)
        for name, array in arrays.items():
            if name not in er.INDEX:
                for chunk in range(-(-self._rows(name) // array.chunk_rows)):
                    begin = chunk * array.chunk_rows
                    _noted(problems, partial(array.read, begin, min(begin + array.chunk_rows, self._rows(name))), None)

    def read(self, index: int) -> _Content:
        """One episode, compared with its checksums.

        Raises:
            DataError: saying what is missing or differs.
        """
        if not self._known[er.CRC][index]:
            raise DataError(er.CRC, expected="its checksums", got="its checksums are lost", hint="")
        crcs, names = _by_name(self._spec, self._index[er.CRC][index]), er.array_names(self._spec)
        rows = {key: self._part(name, index, crcs[name]) for key, name in names.items() if name in self._arrays}
        rows |= _camera_rows(self._videos, index, len(rows["action"]), crcs, self._spec)
        text = self._part(er.TEXT, index, crcs[er.TEXT])
        episode = er.episode_from_rows(rows, bytes(text), self._spec)
        return episode, crcs, self._uuid(index, episode)

    def _part(self, name: str, index: int, crc: int) -> Array:
        begin, stop = index, index + 1
        if name == er.TEXT or name.startswith("data/"):
            ends = er.TEXT_ENDS if name == er.TEXT else er.ENDS
            if not self._known[ends][max(0, index - 1) : index + 1].all():
                raise DataError(
                    ends, expected="where it begins and ends", got="where it begins or ends is lost", hint=""
                )
            begin, stop = int(self._index[ends][index - 1]) if index else 0, int(self._index[ends][index])
            if not 0 <= begin < stop <= self._room[name]:
                raise DataError(ends, expected="a place inside the array", got=f"rows {begin} to {stop}", hint="")
        rows = self._cached(name, begin, stop)
        if er.crc32(rows) != crc:
            raise DataError(
                name, expected=f"{crc:08x}", got=f"checksum {er.crc32(rows):08x} and not {crc:08x}", hint=""
            )
        return rows

    def _cached(self, name: str, begin: int, stop: int) -> Array:
        """Rows, with the last chunk kept: many short episodes are in one."""
        size = self._arrays[name].chunk_rows
        first, last = begin // size, (stop - 1) // size
        if first != last:
            return self._arrays[name].read(begin, stop)
        if self._chunk.get(name, (-1,))[0] != first:
            self._chunk[name] = (first, self._arrays[name].read(first * size, (first + 1) * size))
        return self._chunk[name][1][begin - first * size : stop - first * size]

    def _uuid(self, index: int, episode: Episode) -> np.ndarray | None:
        """The id, if the checksum of the index row (with what is derived from the data) proves it."""
        if not all(self._known[name][index] for name in (er.ENDS, er.TEXT_ENDS, er.UUID)):
            return None
        row = {name: self._index[name][index : index + 1].copy() for name in er.INDEX}
        row[er.SUCCESS][0] = episode.success.any()
        row[er.SEED][0] = episode.metadata.get("seed", -1)
        row[er.SOURCE][0] = episode.source.max()
        is_proven = er.index_crcs(row)[0] == row[er.CRC][0, -1]
        return np.asarray(row[er.UUID][0]) if is_proven else None

    def _check_index(self, problems: list[str]) -> Bool[Array, " E"]:
        """Which rows of the index have their checksum."""
        known = np.logical_and.reduce([self._known[name] for name in er.INDEX])
        is_equal = er.index_crcs(self._index) == self._index[er.CRC][:, -1]
        wrong = np.flatnonzero(known & ~is_equal)
        if wrong.size:
            problems.append(f"{', '.join(er.INDEX)}: the row of episodes {_listed(wrong)} differs from its checksum")
        return known & is_equal

    def _count(self, lengths: Mapping[str, int | None], *, has_journal: bool) -> int:
        """Episodes by the commit marker, or by the rest of the index when it is lost or old; as many as chunks hold."""
        said = lengths[er.ENDS]
        others = [length for name in er.INDEX if name != er.ENDS and (length := lengths[name]) is not None]
        is_old = said is not None and said < min(others, default=0) and not has_journal
        wanted = max(others, default=2**62) if said is None or is_old else said
        return min(wanted, max(self._room[name] for name in er.INDEX))

    def _rows(self, name: str) -> int:
        """Rows of an array that the index knows of; an end that is not proven may be any number."""
        if not (name == er.TEXT or name.startswith("data/")):
            return self.episodes
        ends = self._index[er.TEXT_ENDS if name == er.TEXT else er.ENDS]
        return int(ends[self._proven].max(initial=0)) or self._room[name]


def _attributes(path: Path, like: Path | None, problems: list[str]) -> tuple[EnvSpec, Mapping[str, Any], str]:
    try:
        content = read_json(path / ".zattrs")
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema {content.get('schema')!r}")
        return parse_attributes(content, where=f"{path / '.zattrs'}")
    except (DataError, ValueError) as error:
        got = f"{error.where}: {error.got}" if isinstance(error, DataError) else f"{error}"
        if like is None:
            raise DataError(
                f"{path / '.zattrs'}",
                expected="the spec of the store",
                got=got,
                hint="Without it the numbers have no meaning. `--like STORE` takes it from a store of the same spec. A "
                "store of another program must be imported.",
            ) from error
        problems.append(f"{path / '.zattrs'}: {got}")
        return read_attributes(like)


def _rows_that_are_there(array: ZarrArray, length: int, problems: list[str]) -> tuple[Array, Bool[Array, " E"]]:
    """First rows of an index array, and which of them could be read."""
    rows, known = np.zeros((length, *array.row_shape), array.dtype), np.zeros(length, bool)
    for begin in range(0, length, array.chunk_rows):
        stop = min(begin + array.chunk_rows, length)
        read = _noted(problems, partial(array.read, begin, stop), None)
        if read is not None:
            rows[begin:stop], known[begin:stop] = read, True
    return rows, known


def _journal_episodes(path: Path, videos: VideoFiles, spec: EnvSpec, problems: list[str]) -> dict[int, _Read]:
    """Index -> reader, for the episodes of appends that were cut off."""
    found: dict[int, _Read] = {}
    for file in pending_journals(path):
        content = _noted(problems, partial(read_journal, file), None)
        if content is None:
            continue
        first, rows = content
        for offset in range(len(rows[er.ENDS])):
            found[first + offset] = partial(_from_journal, rows, offset, first + offset, videos, spec)
    return found


def _from_journal(
    rows: Mapping[str, np.ndarray], offset: int, index: int, videos: VideoFiles, spec: EnvSpec
) -> _Content:
    crcs = _by_name(spec, rows[er.CRC][offset])
    starts = {}
    for name, ends in ((er.TEXT, er.TEXT_ENDS), ("data/action", er.ENDS)):
        # The ends count from the beginning of the store; the rows of the journal begin somewhere behind it.
        before = int(rows[ends][-1]) - len(rows[name])
        starts[ends] = (int(rows[ends][offset - 1]) if offset else before) - before, int(rows[ends][offset]) - before
    parts = {
        key: rows[name][slice(*starts[er.ENDS])] if name.startswith("data/") else rows[name][offset : offset + 1]
        for key, name in er.array_names(spec).items()
        if name in rows
    }
    parts |= _camera_rows(videos, index, len(parts["action"]), crcs, spec)
    text = rows[er.TEXT][slice(*starts[er.TEXT_ENDS])]
    return er.episode_from_rows(parts, bytes(text), spec), crcs, rows[er.UUID][offset]


def _camera_rows(
    videos: VideoFiles, index: int, steps: int, crcs: Mapping[str, int], spec: EnvSpec
) -> dict[str, Array]:
    """Decoded videos of an episode, compared with their checksums."""
    rows: dict[str, Array] = {}
    for key in videos.keys:
        content, name = videos.read(key, index), er.array_names(spec)[key]
        if zlib.crc32(content) != crcs[name]:
            raise DataError(f"{videos.path(key, index)}", expected="its checksum", got="another checksum", hint="")
        shape = spec.observation[key].shape
        rows[key], rows[f"final/{key}"] = np.empty((steps, *shape), np.uint8), np.empty((1, *shape), np.uint8)
        videos.observations(content, key, index, rows[key])
        videos.final(content, key, index, steps, rows[f"final/{key}"])
    return rows


def _files(videos: VideoFiles, index: int) -> dict[str, bytes]:
    return {key: videos.read(key, index) for key in videos.keys}


def _by_name(spec: EnvSpec, crcs: np.ndarray) -> dict[str, int]:
    return dict(zip([*er.array_names(spec).values(), er.TEXT], crcs.tolist(), strict=False))


def _first_that_verifies(name: str, readers: Sequence[_Read], problems: list[str]) -> tuple[Piece | None, str]:
    """A piece from the first reader that can, or the reason of the first that can't."""
    reason = ""
    for read in readers:
        try:
            _episode, crcs, uid = read()
        except DataError as error:
            reason = reason or f"{error.where}: {error.got}"
            continue
        if uid is None:
            problems.append(f"{name}: its id in {er.UUID} is not certain, it gets a new one")
            uid = np.frombuffer(uuid.uuid4().bytes, np.uint8)
        return Piece(name, partial(_episode_of, read), uid, crcs), ""
    return None, reason or "in no journal"


def _episode_of(read: _Read) -> Episode:
    return read()[0]


def _noted(problems: list[str], read: Callable[[], Any], otherwise: Any) -> Any:
    """What `read` gives; when it raises, a line in `problems` and `otherwise`."""
    try:
        return read()
    except DataError as error:
        problems.append(f"{error.where}: {error.got}")
        return otherwise


def _chunk_room(array: ZarrArray) -> int:
    """Rows up to the end of the last chunk file that is there."""
    numbers = [file.name.partition(".")[0] for file in array.path.glob("[0-9]*")]
    return (max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1) * array.chunk_rows


def _listed(indices: np.ndarray) -> str:
    text = ", ".join(map(str, indices[:10].tolist()))
    return f"{text} ..." if len(indices) > 10 else text
