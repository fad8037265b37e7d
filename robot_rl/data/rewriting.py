"""How every edit writes: a new store under a hidden name, read back, compared with its sources, renamed into place.

An edit is a list of pieces: which episode of which source comes next, and what becomes of it. Whatever fails or is
killed before the rename changes nothing; what the new store replaces goes to the trash (data/trash.py).
"""

from __future__ import annotations

import glob
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl import __version__
from robot_rl.arrays import Array, UInt8
from robot_rl.data import episode_rows as er
from robot_rl.data.committed import RESERVED_DISK_BYTES
from robot_rl.data.disk_space import bytes_per_step, nearest_folder
from robot_rl.data.journal import WriterLock
from robot_rl.data.new_store import require_nothing_at
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import put_in_place, size_on_disk
from robot_rl.data.video_files import ARRAYS, video_keys
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

_BATCH_BYTES = 8 * 1024**2
_BATCH_EPISODES = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """One episode of a new store.

    Attributes:
        name: of the source and the episode in it, for errors.
        read: gives the episode of the source.
        uuid: id of the recording, uint8 (16,); it stays.
        checksums: array name -> CRC-32 in the source.
        change: what becomes of it; None keeps it bit by bit.
        videos: gives its videos, so that cameras are not encoded a second time.
    """

    name: str
    read: Callable[[], Episode]
    uuid: UInt8[Array, "16"]
    checksums: Mapping[str, int]
    change: Callable[[Episode], Episode] | None = None
    videos: Callable[[], dict[str, bytes]] = dict


@dataclass(frozen=True)
class Plan:
    """A new store, checked as far as it can be without reading the data; nothing was touched yet.

    Attributes:
        target: where it will be.
        spec: of the new store.
        metadata: of the new store, with its history.
        pieces: its episodes in order.
        replaces: whether a store is at `target` now; the caller holds its lock, and it goes to the trash.
        may_change: arrays that a changed episode may differ in; None for all.
        images: how cameras are kept (video_files.STORAGES).
        encoded: arrays that are not compared: the cameras of a store that changes how it keeps them.
        bytes_needed: estimate of its size on the disk.
        notes: one sentence each, for people.
    """

    target: Path
    spec: EnvSpec
    metadata: Mapping[str, Any]
    pieces: Sequence[Piece]
    replaces: bool = False
    may_change: frozenset[str] | None = None
    images: str = ARRAYS
    encoded: frozenset[str] = frozenset()
    bytes_needed: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class EditReport:
    """What an edit did, or would do.

    Attributes:
        target: the new store.
        episodes, steps, successes: that are in it; success at any step.
        changed: array name -> number of episodes in which it differs from the source.
        content_hash: of the new store; None when nothing was written.
        trash: where the store is that it replaced, or None.
        notes: one sentence each, for people.
    """

    target: str
    episodes: int = 0
    steps: int = 0
    successes: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    content_hash: str | None = None
    trash: str | None = None
    notes: tuple[str, ...] = ()


class _Blocks:
    """Episodes of a store in blocks of a few MB: a chunk that holds many short episodes is unpacked once."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store, self._begin, self._block = store, 0, list[Episode]()
        self._ends, self._steps = store.episode_ends, max(1, _BATCH_BYTES // bytes_per_step(store.spec))

    def read(self, index: int) -> Episode:
        if not self._begin <= index < self._begin + len(self._block):
            before = int(self._ends[index - 1]) if index else 0
            stop = max(index + 1, int(np.searchsorted(self._ends, before + self._steps, side="right")))
            self._begin, self._block = index, []  # the old block must not be in memory beside the new one
            self._block = self._store.episodes(index, stop)
        return self._block[index - self._begin]


def pieces_of(
    store: EpisodeStore, episodes: Sequence[int], *, change: Callable[[Episode], Episode] | None = None
) -> list[Piece]:
    """Episodes of a store as pieces, each with the same change."""
    uuids, blocks = store.uuids, _Blocks(store)

    def piece(index: int) -> Piece:
        name = f"{store.path}, episode {index}"
        read, videos = partial(blocks.read, index), partial(store.videos, index)
        return Piece(name, read, uuids[index], store.checksums(index), change, videos)

    return [piece(index) for index in episodes]


def with_history(
    metadata: Mapping[str, Any], command: str, *, arguments: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Metadata of a store after a command: its `history` list says what made it, from what, when and by which version.

    Args:
        metadata: before.
        command: its name.
        arguments: JSON types.
        sources: `source_facts` of each.
    """
    entry = {
        "command": command,
        "arguments": dict(arguments),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "software": {"robot_rl": __version__},
        "sources": [dict(source) for source in sources],
    }
    return {**metadata, "history": [*metadata.get("history", []), entry]}


def source_facts(store: EpisodeStore) -> dict[str, Any]:
    """What history says of a source. The folder's name only: a path can hold the name of a person."""
    return {"store": store.path.name, "episodes": len(store), "content_hash": store.content_hash()}


def carry_out(
    plans: Sequence[Plan], *, dry_run: bool = False, on_episode: Callable[[int, int], None] | None = None
) -> list[EditReport]:
    """Write the new stores: all or none.

    Args:
        plans: of stores that belong together (the parts of a split).
        dry_run: read, change and check every episode, and write nothing.
        on_episode: called with (episodes done, episodes in all).

    Raises:
        DataError: something is at a target, a damaged or bad episode, or no room; nothing has changed then.
    """
    total, done = sum(len(plan.pieces) for plan in plans), 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_episode is not None:
            on_episode(done, total)

    for plan in plans:
        if not plan.replaces:
            require_nothing_at(plan.target)
    _require_room(plans)
    reports = [EditReport(str(plan.target), notes=plan.notes) for plan in plans]
    if dry_run:
        for plan, report in zip(plans, reports, strict=True):
            for piece, episode in _changed(plan):
                _note(report, plan, piece, episode, _checksums(plan, episode))
                count()
        return reports
    with ExitStack() as stack:
        finished = [_write(plan, report, count, stack) for plan, report in zip(plans, reports, strict=True)]
        _put_in_place(plans, finished, reports)
    return reports


def _changed(plan: Plan) -> Iterator[tuple[Piece, Episode]]:
    for number, piece in enumerate(plan.pieces):
        episode = piece.read()
        if piece.change is not None:
            episode = piece.change(episode)
            try:
                er.check_episode(episode, plan.spec, number)
            except DataError as error:
                raise DataError(
                    f"{piece.name} ({error.where})", expected=error.expected, got=error.got, hint=error.hint
                ) from error
        yield piece, episode


def _write(plan: Plan, report: EditReport, count: Callable[[], None], stack: ExitStack) -> EpisodeStore:
    """A finished store under a hidden name. `stack` holds its lock, and removes it unless it was renamed."""
    _sweep(plan.target)
    unfinished = plan.target.with_name(f".{plan.target.name}.editing-{uuid.uuid4().hex[:8]}")
    stack.callback(shutil.rmtree, unfinished, ignore_errors=True)
    store = stack.enter_context(EpisodeStore.create(unfinished, plan.spec, metadata=plan.metadata, images=plan.images))
    for batch in _batches(_changed(plan)):
        uuids, videos = np.stack([piece.uuid for piece, _ in batch]), [piece.videos() for piece, _ in batch]
        numbers = store.append_many([e for _, e in batch], uuids=uuids, videos=None if plan.encoded else videos)
        for number, (piece, episode) in zip(numbers, batch, strict=True):
            _note(report, plan, piece, episode, store.checksums(number))
            count()
    store.verify()
    report.content_hash = store.content_hash()
    return store


def _put_in_place(plans: Sequence[Plan], finished: Sequence[EpisodeStore], reports: Sequence[EditReport]) -> None:
    placed: list[tuple[Path, Path]] = []
    try:
        for plan, store, report in zip(plans, finished, reports, strict=True):
            old = put_in_place(store.path, plan.target, replaces=plan.replaces)
            placed.append((store.path, plan.target))
            report.trash = None if old is None else str(old)
    except DataError:
        # The parts of a split come together or not at all.
        for hidden, target in placed:
            target.rename(hidden)
        raise


def _note(report: EditReport, plan: Plan, piece: Piece, episode: Episode, checksums: Mapping[str, int]) -> None:
    """Count an episode, and compare it with its source: an edit must not change what it does not mean to."""
    report.episodes += 1
    report.steps += len(episode)
    report.successes += bool(episode.success.any())
    for name, value in checksums.items():
        if value == piece.checksums.get(name) or name in plan.encoded:
            continue
        if piece.change is None or (plan.may_change is not None and name not in plan.may_change):
            raise DataError(
                f"{piece.name}, array {name}",
                expected=f"checksum {piece.checksums.get(name, 0):08x}, as in its source",
                got=f"{value:08x}",
                hint="This is a bug or failing memory; nothing was changed. Please report it.",
            )
        report.changed[name] = report.changed.get(name, 0) + 1


def _checksums(plan: Plan, episode: Episode) -> dict[str, int]:
    """Of an episode that is not written; those of videos can't be known before."""
    rows = er.episode_rows([episode], plan.spec, first_episode=0, first_step=0, first_byte=0)
    names, videos = er.array_names(plan.spec), video_keys(plan.spec, plan.images)
    crcs = zip([*names, er.TEXT], [*names.values(), er.TEXT], rows[er.CRC][0].tolist(), strict=False)
    return {name: crc for key, name, crc in crcs if key.removeprefix("final/") not in videos}


def _batches(pairs: Iterator[tuple[Piece, Episode]]) -> Iterator[list[tuple[Piece, Episode]]]:
    """Few commits (each waits for the disk), little memory."""
    batch, size = list[tuple[Piece, Episode]](), 0
    for piece, episode in pairs:
        batch.append((piece, episode))
        size += sum(np.asarray(value).nbytes for value in episode.observation.values())
        if size > _BATCH_BYTES or len(batch) >= _BATCH_EPISODES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _require_room(plans: Sequence[Plan]) -> None:
    for folder in {nearest_folder(plan.target.parent) for plan in plans}:
        need = sum(plan.bytes_needed for plan in plans if nearest_folder(plan.target.parent) == folder)
        free = shutil.disk_usage(folder).free
        if free < need + RESERVED_DISK_BYTES:
            raise DataError(
                f"{folder}",
                expected=f"{need + RESERVED_DISK_BYTES} bytes free (about {need} for the new store, the rest in reserve)",
                got=f"{free} bytes",
                hint="Free some disk space (old versions are in .trash), or name a target on another disk. "
                "Nothing was changed.",
            )


def _sweep(target: Path) -> None:
    """Remove what killed edits of the same target left behind; a living one holds its lock."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.editing-*"):
        try:
            lock = WriterLock(leftover) if (leftover / ".zgroup").exists() else None
        except DataError:
            continue
        _log.warning("removing what a killed edit left: %s, %d bytes", leftover, size_on_disk(leftover))
        if lock is not None:
            lock.release()
        shutil.rmtree(leftover, ignore_errors=True)
