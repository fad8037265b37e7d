"""From a foreign dataset to an EpisodeStore, one episode in memory at a time, and all or nothing.

The store is written under a hidden name beside its target, read back against its checksums, and renamed: an import
that fails or is stopped leaves nothing at the target.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.episode_rows import check_episode
from robot_rl.data.new_store import require_nothing_at
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode, Source

_BATCH_BYTES = 8 * 1024**2
_BATCH_EPISODES = 64


@runtime_checkable
class EpisodeReader(Protocol):
    """A foreign dataset. `read` raises DataError for a bad episode; others can still be read.

    Attributes:
        spec: what the numbers mean; it becomes the spec of the store.
        names: name of each episode in the source, in order.
        facts: JSON types for the metadata of the store.
        notes: what a user should know about this source as a whole, one sentence each.
    """

    spec: EnvSpec
    names: tuple[str, ...]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]

    def read(self, index: int) -> Episode:
        """Episode `index`, as the spec says."""
        ...

    def close(self) -> None:
        """Release the files."""
        ...


@dataclass(frozen=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        target: the store, or None when nothing was written.
        episodes, steps: that are in it.
        successes: episodes with success at any step.
        left_out: one text for each episode that is not in it: name and reason.
        longest_steps: length of the longest episode.
        over_limit: episodes longer than the time limit of the spec.
        late_success: episodes that succeed for the first time behind that limit.
        outside_bounds: episodes with an action outside the bounds of the spec.
        content_hash: of the store, or None.
        notes: one sentence each, for people.
    """

    target: str | None
    episodes: int
    steps: int
    successes: int
    left_out: tuple[str, ...]
    longest_steps: int
    over_limit: int
    late_success: int
    outside_bounds: int
    content_hash: str | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class _Facts:
    """Of one good episode."""

    steps: int
    first_success: int | None
    is_outside: bool


def import_episodes(
    reader: EpisodeReader,
    target: Path | None,
    *,
    max_episodes: int | None = None,
    skip_bad: bool = False,
    on_episode: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read every episode, check it, and write it to a new store.

    Args:
        reader: the source.
        target: where the store shall be; None reads and checks everything and writes nothing (then all bad episodes
            are in the report, and none is raised).
        max_episodes: only the first so many episodes of the source.
        skip_bad: leave bad episodes out, with their reason in the report, in place of refusing all.
        on_episode: called with (episodes done, episodes in all).

    Raises:
        DataError: something is at `target`, a bad episode (unless left out), no good episode, or a full disk.
    """
    total = len(reader.names) if max_episodes is None else min(max_episodes, len(reader.names))
    done, left_out = list[_Facts](), list[str]()

    def good_episodes() -> Iterator[Episode]:
        for index in range(total):
            try:
                episode = _checked(reader, index, number=len(done))
            except DataError as error:
                if target is not None and not skip_bad:
                    raise
                left_out.append(f"{reader.names[index]}: {error}")
            else:
                done.append(_facts(episode, reader.spec))
                yield episode
            if on_episode is not None:
                on_episode(index + 1, total)

    if target is None:
        for _ in good_episodes():
            pass
        return _report(reader, done, left_out, target=None, content=None)
    content = _write(good_episodes(), target, spec=reader.spec, metadata=_store_metadata(reader.facts))
    return _report(reader, done, left_out, target=str(target), content=content)


def _write(episodes: Iterator[Episode], target: Path, *, spec: EnvSpec, metadata: Mapping[str, Any]) -> str:
    """Fill a store under a hidden name, read it back, rename it; returns its content hash."""
    require_nothing_at(target)
    unfinished = target.with_name(f".{target.name}.importing-{uuid.uuid4().hex[:8]}")
    try:
        with EpisodeStore.create(unfinished, spec, metadata=metadata) as store:
            for batch in _batches(episodes):
                store.append_many(batch)
            if not len(store):
                raise DataError(
                    f"{target}",
                    expected="at least one good episode",
                    got="none",
                    hint="No store was made. `--dry-run` lists what is wrong with each.",
                )
            store.verify()
            content = store.content_hash()
        require_nothing_at(target)
        os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return content


def _store_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Where a store came from, and the dataset card that an export of ours carried."""
    card = facts.get("exported", {}).get("metadata", {}).get("card")
    return {"import": dict(facts)} | ({"card": card} if card else {})


def _batches(episodes: Iterator[Episode]) -> Iterator[list[Episode]]:
    """Few commits (each waits for the disk), little memory."""
    batch, size = list[Episode](), 0
    for episode in episodes:
        batch.append(episode)
        size += sum(np.asarray(value).nbytes for value in episode.observation.values())
        if size > _BATCH_BYTES or len(batch) >= _BATCH_EPISODES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def source_of(name: str, *, where: str) -> Source:
    """Who chose the actions, by name.

    Raises:
        DataError: for another name.
    """
    options = [source.name for source in Source]
    if name not in options:
        raise DataError(where, expected="who chose the actions", got=repr(name), hint=closest(name, options))
    return Source[name]


def last_step_only(steps: int) -> np.ndarray:
    """Success of a demonstration that is known to be a good one: bool (steps,), True at its last step."""
    ending: np.ndarray = np.arange(steps) == steps - 1
    return ending


def require_finite(array: Array, *, where: str) -> None:
    """Refuse NaN and infinity in rows (T, ...) of one key of a source.

    Raises:
        DataError: naming `where` (episode and key) and the first bad step and element.
    """
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    first = np.argwhere(~np.isfinite(array))[0].tolist()
    bad = int((~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).sum())
    raise DataError(
        f"{where}, step {first[0]}, element {first[1:]}",
        expected="finite numbers",
        got=f"{array[tuple(first)]} ({bad} bad steps in this episode)",
        hint="Repair the source, or leave this episode out with --skip-bad.",
    )


def _checked(reader: EpisodeReader, index: int, *, number: int) -> Episode:
    episode = reader.read(index)
    try:
        check_episode(episode, reader.spec, number)
    except DataError as error:
        raise DataError(
            f"{reader.names[index]} ({error.where})", expected=error.expected, got=error.got, hint=error.hint
        ) from error
    return episode


def _facts(episode: Episode, spec: EnvSpec) -> _Facts:
    successes = np.flatnonzero(episode.success)
    is_outside = False
    if spec.action.low is not None and spec.action.high is not None:
        flat = episode.action.reshape(len(episode), -1)
        low, high = np.asarray(spec.action.low), np.asarray(spec.action.high)
        is_outside = bool(((flat < low - 1e-4) | (flat > high + 1e-4)).any())
    return _Facts(len(episode), int(successes[0]) + 1 if successes.size else None, is_outside)


def _report(
    reader: EpisodeReader, done: list[_Facts], left_out: list[str], *, target: str | None, content: str | None
) -> ImportReport:
    spec, longest = reader.spec, max((facts.steps for facts in done), default=0)
    limit = spec.max_episode_steps
    over = sum(facts.steps > limit for facts in done)
    late = sum(facts.first_success is not None and facts.first_success > limit for facts in done)
    outside = sum(facts.is_outside for facts in done)
    notes = list(reader.notes)
    if over:
        notes.append(
            f"{over} of {len(done)} demonstrations are longer than the limit of {limit} steps of {spec.env_id} (the longest "
            f"has {longest}); {late} succeed only behind it. A policy that learns their pace is cut off at {limit}: give "
            f"env.max_episode_steps={longest} to imitate and evaluate, and say so beside the result."
        )
    if outside:
        notes.append(
            f"{outside} of {len(done)} episodes have actions outside the bounds of the spec. The simulator or robot clips "
            f"them, so what was recorded is not what was executed."
        )
    return ImportReport(
        target=target,
        episodes=len(done),
        steps=sum(facts.steps for facts in done),
        successes=sum(facts.first_success is not None for facts in done),
        left_out=tuple(left_out),
        longest_steps=longest,
        over_limit=over,
        late_success=late,
        outside_bounds=outside,
        content_hash=content,
        notes=tuple(notes),
    )
