"""EpisodeStore: episodes on disk in the layout of diffusion_policy's replay_buffer.zarr, append-only and crash-safe.

    demos.zarr/                  zarr format 2
      data/<key>                 all steps of all episodes, one after the other
      meta/episode_ends          int64, where each episode ends (exclusive)
      meta/...                   ours: success, seed, source, uuid, checksums, final observations, JSON text
      videos/<camera>/           one mp4 an episode, in stores that were made with images="video"
      .zattrs                    schema version, EnvSpec, software
      .journal/                  while a writer is open or after it died: rows of an append that is not finished

An append writes the rows to a journal, then into the arrays, and `.zarray` of episode_ends last: its shape is what
commits. A kill or power cut at any moment leaves the committed episodes whole; the next open for append repeats an
append that was cut off.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from robot_rl.arrays import Array, Bool, Int64, UInt8
from robot_rl.data import episode_rows as er
from robot_rl.data.committed import CommittedArrays
from robot_rl.data.journal import WriterLock, pending_journals
from robot_rl.data.new_store import write_new_store
from robot_rl.data.remote import is_remote, mirrored, refuse_remote
from robot_rl.data.same_spec import table_of_semantics
from robot_rl.data.store_attributes import read_attributes, require_store
from robot_rl.data.video_files import ARRAYS
from robot_rl.errors import DataError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

_log = logging.getLogger(__name__)


class EpisodeStore:
    """A store of episodes. Make one with `create`, `open` or `open_or_create`; use as a context manager or `close`.

    One process appends; any number read. A reader sees the episodes that were committed when it was opened.
    """

    def __init__(self, path: Path, *, lock: WriterLock | None) -> None:
        """Read an existing store; use `open` instead, which also takes the lock."""
        self._path, self._lock = path, lock
        self._spec, self._metadata, self._images = read_attributes(path)
        self._committed = CommittedArrays(path, self._spec, self._images)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: EnvSpec,
        *,
        metadata: Mapping[str, Any] | None = None,
        images: str = ARRAYS,
    ) -> EpisodeStore:
        """Make an empty store and open it for append. It appears at `path` whole or not at all.

        Args:
            path: a directory that does not exist, or is empty.
            spec: of the environment or robot the episodes come from.
            metadata: JSON types, about the whole store.
            images: how uint8 RGB cameras are kept: "arrays" (blosc/zstd, exact), "video" (H.264, at least 30 dB PSNR
                or the append is refused) or "video_lossless" (H.264, exact). Videos need the extra `data`.

        Raises:
            DataError: when something is at `path`, or the spec or metadata can't be stored.
        """
        refuse_remote(path)
        write_new_store(Path(path), spec, metadata=metadata or {}, images=images)
        return cls.open(path, mode="a")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Literal["r", "a"] = "r",
        cache: str | os.PathLike[str] | None = None,
    ) -> EpisodeStore:
        """Open a store to read ("r") or to append ("a"), which finishes an append that was cut off.

        Args:
            path: of the store; "s3://...", "gs://...", "hf://..." or any other URL that fsspec can list, to read only.
            mode: "r" or "a".
            cache: folder for copies of remote stores; None: robot_rl/stores in the user's cache folder (remote.py).

        Raises:
            DataError: when there is no store, it is damaged or foreign, (mode "a") another writer has it or it is
                remote, or a download fails.
        """
        if is_remote(path):
            refuse_remote(path, unless=mode == "r")
            path = mirrored(path, cache=cache, verify=lambda copy: cls.open(copy).verify())
        path = Path(path)
        if mode not in ("r", "a"):
            raise DataError(f"{path}", expected="mode 'r' or 'a'", got=repr(mode), hint="A store is never overwritten.")
        require_store(path)
        if mode == "r":
            store = cls(path, lock=None)
            if pending := pending_journals(path):
                _log.info("%s: an append is under way or was cut off (%s); mode='a' finishes it", path, pending[0].name)
            return store
        lock = WriterLock(path)
        try:
            store = cls(path, lock=lock)
            store._committed.recover()
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        spec: EnvSpec,
        *,
        metadata: Mapping[str, Any] | None = None,
        images: str | None = None,
    ) -> EpisodeStore:
        """Open for append, or create; `metadata` is used only when the store is new.

        `images` as in `create`; None takes what the store has, and "arrays" for a new one.

        Raises:
            DataError: as `open` and `create`; with a line per difference when the stored spec is not `spec`, or it
                keeps images in another way.
        """
        refuse_remote(path)
        path = Path(path)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return cls.create(path, spec, metadata=metadata, images=images or ARRAYS)
        store = cls.open(path, mode="a")
        stored, new = (
            {**s.to_json(), "images": i} for s, i in ((store.spec, store.images), (spec, images or store.images))
        )
        if differences := er.schema_differences(stored, new):
            store.close()
            raise DataError(
                f"{path}",
                expected="episodes of the same spec",
                got=f"{len(differences)} differences:{table_of_semantics(store.spec, spec)}\n  "
                + "\n  ".join(differences)
                + "\n",
                hint="Write these episodes to a store of their own.",
            )
        return store

    @property
    def path(self) -> Path:
        """Directory of the store."""
        return self._path

    @property
    def spec(self) -> EnvSpec:
        """Spec of the environment or robot."""
        return self._spec

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the whole store."""
        return dict(self._metadata)

    @property
    def images(self) -> str:
        """How it keeps uint8 RGB cameras: "arrays", "video" or "video_lossless"."""
        return self._images

    @property
    def episode_ends(self) -> Int64[Array, " E"]:
        """Where each episode ends in the arrays of `load`, exclusive."""
        return self._committed.index[er.ENDS].copy()

    @property
    def lengths(self) -> Int64[Array, " E"]:
        """Steps of each episode."""
        return np.diff(self._committed.index[er.ENDS], prepend=0)

    @property
    def success(self) -> Bool[Array, " E"]:
        """Whether each episode had success at any step (success_once)."""
        return self._committed.index[er.SUCCESS].copy()

    @property
    def seeds(self) -> Int64[Array, " E"]:
        """Seed of each episode; -1 where its metadata has none."""
        return self._committed.index[er.SEED].copy()

    @property
    def uuids(self) -> UInt8[Array, "E 16"]:
        """Id of each recording; an edit (trim, relabel, merge) keeps it."""
        return self._committed.index[er.UUID].copy()

    def checksums(self, index: int) -> dict[str, int]:
        """Array name -> CRC-32 of that array in one episode, and of its JSON text; reads no data."""
        names = [*self._committed.names.values(), er.TEXT]
        return {name: int(crc) for name, crc in zip(names, self._committed.index[er.CRC][index], strict=False)}

    def __len__(self) -> int:
        return len(self._committed)

    def append(self, episode: Episode) -> int:
        """Add one episode; it is durable when this returns its index.

        Raises:
            DataError: for a bad episode or a full disk; the episodes before it are untouched.
        """
        return self.append_many([episode])[0]

    def append_many(
        self,
        episodes: Sequence[Episode],
        *,
        uuids: UInt8[Array, "E 16"] | None = None,
        videos: Sequence[Mapping[str, bytes]] | None = None,
    ) -> list[int]:
        """Add episodes in one commit: all or none, and much faster than one by one.

        `uuids` keeps the ids of recordings that come from another store; None draws new ones. `videos` are what
        `videos(index)` of that store gave: images that were decoded from them are not encoded a second time.

        Raises:
            DataError: for a bad episode or a full disk; the episodes before them are untouched.
        """
        if self._lock is None:
            raise DataError(
                f"{self._path}",
                expected="a store that is open for append",
                got="one that is closed or opened with mode='r'",
                hint="Use EpisodeStore.open(path, mode='a').",
            )
        self._committed.recover()
        first = len(self)
        for offset, episode in enumerate(episodes):
            er.check_episode(episode, self._spec, first + offset)
        if episodes:
            step, byte = (self._committed.rows_before(first, name) for name in ("data/action", er.TEXT))
            files = self._committed.videos.encode(episodes, first, videos)
            place = {"first_episode": first, "first_step": step, "first_byte": byte}
            rows = er.episode_rows(episodes, self._spec, **place, uuids=uuids, videos=files)
            self._committed.append(rows, files)
        return list(range(first, len(self)))

    def episode(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            DataError: when there is no such episode, or it is damaged.
        """
        self._require_episode(index)
        return self.episodes(index, index + 1)[0]

    def episodes(self, begin: int, stop: int, *, observation: Sequence[str] | None = None) -> list[Episode]:
        """Episodes begin..stop - 1, which exist; many short ones are much faster at once than one by one.

        `observation`: keys of the spec to read, for a look that needs no cameras; None: all.

        Raises:
            DataError: when one is damaged.
        """
        left_out = () if observation is None else self._spec.observation.keys() - set(observation)
        spec = replace(self._spec, observation={k: a for k, a in self._spec.observation.items() if k not in left_out})
        names = {k: name for k, name in self._committed.names.items() if k.removeprefix("final/") not in left_out}
        rows = {key: self._committed.rows(key, begin, stop) for key in names}
        out = []
        for index in range(begin, stop):
            part = {}
            for key, name in names.items():
                first, low, high = (self._committed.rows_before(i, name) for i in (begin, index, index + 1))
                part[key] = rows[key][low - first : high - first]
            out.append(er.episode_from_rows(part, self._committed.text(index), spec))
        return out

    def videos(self, index: int) -> dict[str, bytes]:
        """Video file of each camera in one episode, T + 1 frames; empty when the store keeps images as arrays.

        Raises:
            DataError: when there is no such episode, or a video is damaged.
        """
        self._require_episode(index)
        return {key: self._committed.packed(key, index) for key in self._committed.videos.keys}

    def load(self, keys: Sequence[str]) -> dict[str, Array]:
        """Whole arrays, checked: observation keys and "action", "reward", "success", "source", "timestamp", "done",
        "truncated" over all steps (S, ...), and "final/<observation key>" over episodes (E, ...).

        Raises:
            DataError: for an unknown key or a damaged array.
        """
        names = self._committed.names
        for key in keys:
            if key not in names:
                raise DataError(
                    f"{self._path}", expected="a key of this store", got=repr(key), hint=closest(key, names)
                )
        return {key: self._committed.rows(key, 0, len(self)) for key in keys}

    def _require_episode(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise DataError(
                f"{self._path}",
                expected=f"an episode index in 0..{len(self) - 1}",
                got=f"{index}",
                hint=f"The store holds {len(self)} episodes.",
            )

    def content_hash(self) -> str:
        """SHA-256 over spec, lengths and checksums: equal for equal episodes in equal order; reads no data."""
        content = hashlib.sha256(json.dumps(self._spec.to_json(), sort_keys=True).encode())
        content.update(self._committed.index[er.ENDS].tobytes())
        # Without the last column, which covers the random ids of episodes.
        content.update(np.ascontiguousarray(self._committed.index[er.CRC][:, :-1]).tobytes())
        return content.hexdigest()

    def verify(self) -> None:
        """Read everything and compare with the checksums.

        Raises:
            DataError: naming the first damaged array and episode.
        """
        self._committed.verify()

    def close(self) -> None:
        """Give the writer's lock back; nothing is buffered."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
