"""The committed part of a store: which rows of the arrays count, checked reads of them, and the commit of new rows.

What commits is the shape of meta/episode_ends. Arrays may be longer than it says only while a journal explains why.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data import episode_rows as er
from robot_rl.data.journal import journal_directory, pending_journals, read_journal, sweep, write_journal
from robot_rl.data.video_files import VideoFiles
from robot_rl.data.zarr_layout import refuse_mixed_formats, write_files
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec

# A disk that is full to the last byte takes the rest of the machine down with it.
RESERVED_DISK_BYTES = 64 * 1024**2
_VERIFY_BYTES = 64 * 1024**2
_RESTORE = "The store is damaged: restore it from a copy, or make it anew."
_log = logging.getLogger(__name__)


class CommittedArrays:
    """Arrays of one store, and how many episodes of them are committed.

    Attributes:
        names: key a user asks for -> array name.
        index: the small per-episode arrays (episode_rows.INDEX) of the committed episodes.
        videos: files that stand for the arrays of some cameras.
    """

    def __init__(self, path: Path, spec: EnvSpec, images: str) -> None:
        """Read the index and check that all chunks are there; `images` is how the store keeps them (video_files.py).

        Raises:
            DataError: when the store is damaged.
        """
        self.path, self.spec = path, spec
        self.names = er.array_names(spec)
        self.videos = VideoFiles(path, spec, images)
        self._arrays = er.array_layout(spec, path, videos=self.videos.keys)
        for group in (path, path / "data", path / "meta", *(array.path for array in self._arrays.values())):
            refuse_mixed_formats(group)
        self.index = self._read_index()
        self._interrupted = True

    def __len__(self) -> int:
        return len(self.index[er.ENDS])

    def rows_before(self, episode: int, name: str) -> int:
        """Row of array `name` where an episode begins (or all rows, for the episode behind the last)."""
        return _rows_before(self.index, episode, name)

    def rows(self, key: str, begin: int, stop: int) -> Array:
        """Rows of episodes [begin, stop) for a key of `names`, compared with their checksums.

        Raises:
            DataError: naming array and episode.
        """
        name, column = self.names[key], list(self.names).index(key)
        if key.removeprefix("final/") in self.videos.keys:
            return self._decoded(key, begin, stop)
        offset = self.rows_before(begin, name)
        rows = self._arrays[name].read(offset, self.rows_before(stop, name))
        for episode in range(begin, stop):
            part = rows[self.rows_before(episode, name) - offset : self.rows_before(episode + 1, name) - offset]
            self._compare(er.crc32(part), episode, column, name)
        return rows

    def packed(self, key: str, episode: int) -> bytes:
        """Video of an observation in one episode, compared with its checksum.

        Raises:
            DataError: naming episode and camera.
        """
        content = self.videos.read(key, episode)
        self._compare(zlib.crc32(content), episode, list(self.names).index(key), str(self.videos.path(key, episode)))
        return content

    def text(self, episode: int) -> bytes:
        """JSON text of one episode, compared with its checksum.

        Raises:
            DataError: naming the episode.
        """
        text = self._arrays[er.TEXT].read(self.rows_before(episode, er.TEXT), self.rows_before(episode + 1, er.TEXT))
        self._compare(er.crc32(text), episode, len(self.names), er.TEXT)
        return bytes(text)

    def verify(self) -> None:
        """Read everything in blocks and compare with the checksums.

        Raises:
            DataError: naming the first damaged array and episode.
        """
        for key, name in self.names.items():
            begin, block = 0, max(1, _VERIFY_BYTES // self._row_bytes(key))
            ends = np.arange(1, len(self) + 1) if name.startswith("meta/") else self.index[er.ENDS]
            while begin < len(self):
                fitting = int(np.searchsorted(ends, self.rows_before(begin, name) + block, side="right"))
                stop = max(begin + 1, fitting)
                self.rows(key, begin, stop)
                begin = stop
        for episode in range(len(self)):
            self.text(episode)

    def append(self, rows: Mapping[str, Array], videos: Sequence[Mapping[str, bytes]] = ()) -> None:
        """Add rows and videos of new episodes (episode_rows.episode_rows); durable when this returns.

        Raises:
            DataError: when the disk is full.
        """
        files = self.videos.files(videos, len(self))
        self._check_space(rows, sum(map(len, files.values())))
        # Set until the end: whatever stops us here, the next append or open starts with recover.
        self._interrupted = True
        if files:
            write_files(files, journal_directory(self.path), on_error=self._not_written)
        journal = write_journal(self.path, len(self), rows)
        self._fold(journal, rows)
        self._interrupted = False

    def recover(self) -> None:
        """Finish or repeat the append that was cut off, if one was; only for the writer.

        Raises:
            DataError: when a journal does not continue the store, or the disk is full.
        """
        if not self._interrupted:
            return
        sweep(self.path)
        self.index = self._read_index()
        for journal in pending_journals(self.path):
            first, rows = read_journal(journal)
            if first == len(self):
                _log.warning("%s: finishing an append that was cut off at episode %d", self.path, first)
                self._fold(journal, rows)
            elif first + len(rows[er.ENDS]) == len(self):
                journal.unlink()
            else:
                raise DataError(
                    f"journal {journal}",
                    expected=f"rows behind episode {len(self) - 1}",
                    got=f"episodes {first}..{first + len(rows[er.ENDS]) - 1}",
                    hint=_RESTORE,
                )
        self.videos.sweep(len(self))
        self._interrupted = False

    def _row_bytes(self, key: str) -> int:
        name = self.names[key]
        return (
            self._arrays[name].row_bytes
            if name in self._arrays
            else self.spec.observation[key.removeprefix("final/")].size
        )

    def _decoded(self, key: str, begin: int, stop: int) -> Array:
        """Rows of a camera that is stored as videos."""
        camera, is_final = key.removeprefix("final/"), key.startswith("final/")
        ends = self.index[er.ENDS]
        offset = self.rows_before(begin, self.names[key])
        out = np.empty(
            (self.rows_before(stop, self.names[key]) - offset, *self.spec.observation[camera].shape), np.uint8
        )

        def one(episode: int) -> None:
            content, name = self.packed(camera, episode), self.names[key]
            into = out[self.rows_before(episode, name) - offset : self.rows_before(episode + 1, name) - offset]
            if is_final:
                steps = int(ends[episode]) - self.rows_before(episode, "data/action")
                self.videos.final(content, camera, episode, steps, into)
            else:
                self.videos.observations(content, camera, episode, into)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(one, range(begin, stop)))
        return out

    def _fold(self, journal: Path, rows: Mapping[str, Array]) -> None:
        episodes = len(self)
        files: dict[Path, bytes] = {}
        for name, array in self._arrays.items():
            start = self.rows_before(episodes, name)
            files |= array.chunk_files(start, rows[name])
            files |= dict([array.metadata_file(start + len(rows[name]))])
        commit = self._arrays[er.ENDS].metadata_file(episodes + len(rows[er.ENDS]))
        del files[commit[0]]
        write_files(files, journal_directory(self.path), on_error=self._not_folded)
        write_files(dict([commit]), journal_directory(self.path), on_error=self._not_folded)
        journal.unlink()
        self.index = {name: np.concatenate([self.index[name], rows[name]]) for name in er.INDEX}

    def _not_folded(self, path: Path, size: int, error: OSError) -> DataError:
        return DataError(
            f"{path}",
            expected=f"to write {size} bytes",
            got=f"{error.strerror or error}",
            hint="Free some disk space. All episodes are safe, the new ones in a journal: the next append or open for "
            "append puts them in. Do not append them again.",
        )

    def _not_written(self, path: Path, size: int, error: OSError) -> DataError:
        return DataError(
            f"{path}",
            expected=f"to write {size} bytes",
            got=f"{error.strerror or error}",
            hint=f"Free some disk space. This append was not saved; the {len(self)} episodes before it are intact.",
        )

    def _check_space(self, rows: Mapping[str, Array], videos_bytes: int) -> None:
        # Rows once for the journal, once for the arrays.
        need = 2 * sum(array.nbytes for array in rows.values()) + videos_bytes
        free = shutil.disk_usage(self.path).free
        if free < need + RESERVED_DISK_BYTES:
            raise DataError(
                f"{self.path}",
                expected=f"{need + RESERVED_DISK_BYTES} bytes free ({need} for this append, the rest in reserve)",
                got=f"{free} bytes",
                hint=f"Free some disk space. Nothing was written; the {len(self)} episodes before are intact.",
            )

    def _read_index(self) -> dict[str, np.ndarray]:
        """Index of the committed episodes, after checking lengths and chunks against it."""
        while True:
            episodes = self._arrays[er.ENDS].length()
            index = {name: self._arrays[name].read(0, self._committed(name, episodes)) for name in er.INDEX}
            _check_index(index, self.path)
            surplus = ""
            for name, array in self._arrays.items():
                committed, length = _rows_before(index, episodes, name), array.length()
                if length < committed:
                    raise _bad_length(self.path, name, committed, length)
                surplus = surplus or (f"{length} rows in {name}" if length > committed else "")
                array.check(committed)
            self.videos.check(episodes)
            # A writer at work: its journal goes away only after its commit, so look in this order.
            if not surplus or pending_journals(self.path):
                return index
            if self._arrays[er.ENDS].length() == episodes:
                raise DataError(
                    f"{self.path}, array {er.ENDS}",
                    expected=f"as many rows in all arrays as its {episodes} episodes have",
                    got=f"{surplus}, and no journal that explains it",
                    hint=_RESTORE,
                )

    def _committed(self, name: str, episodes: int) -> int:
        length = self._arrays[name].length()
        if length < episodes:
            raise _bad_length(self.path, name, episodes, length)
        return episodes

    def _compare(self, crc: int, episode: int, column: int, name: str) -> None:
        if crc != int(self.index[er.CRC][episode, column]):
            raise DataError(
                f"{self.path}, array {name}, episode {episode}",
                expected=f"checksum {int(self.index[er.CRC][episode, column]):08x}",
                got=f"{crc:08x}",
                hint=_RESTORE,
            )


def _rows_before(index: Mapping[str, Array], episode: int, name: str) -> int:
    if name == er.TEXT or name.startswith("data/"):
        ends = index[er.TEXT_ENDS if name == er.TEXT else er.ENDS]
        return int(ends[episode - 1]) if episode else 0
    return episode


def _bad_length(path: Path, name: str, expected: int, got: int) -> DataError:
    return DataError(f"{path}, array {name}", expected=f"at least {expected} rows", got=f"{got}", hint=_RESTORE)


def _check_index(index: Mapping[str, Array], path: Path) -> None:
    wrong = np.flatnonzero(np.diff(index[er.ENDS], prepend=0) <= 0)
    if wrong.size:
        raise DataError(
            f"{path}, array {er.ENDS}, episode {int(wrong[0])}",
            expected="growing episode ends",
            got=f"{index[er.ENDS][wrong[0]]}",
            hint=_RESTORE,
        )
    wrong = np.flatnonzero(er.index_crcs(index) != index[er.CRC][:, -1])
    if wrong.size:
        raise DataError(
            f"{path}, arrays {', '.join(er.INDEX)}, episode {int(wrong[0])}",
            expected="the checksum of this episode's row",
            got="another one",
            hint=_RESTORE,
        )
