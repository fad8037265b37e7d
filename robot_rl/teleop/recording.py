"""Recording off the loop: rows go into a bounded queue, a thread writes them down, and a saved episode is durable.

A thread and not a process: what it does (CRC, write, compression) runs without the interpreter's lock, frames need not be
copied into another process, and what protects from a crash is the file. A row that the queue can't take is counted and
marks the episode; the loop never waits. While an episode is recorded or waits for its label it lies in
`.<store>.recording/` beside the store (segments.py); the next session finds it there, whatever ended this one.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.teleop.building import told
from robot_rl.teleop.rows import Row, RowLayout
from robot_rl.teleop.saved_episodes import Edit, Edited
from robot_rl.teleop.segments import SUFFIX, Segment, read_segment
from robot_rl.teleop.writing import DROPPED, Outcome, RecordingConfig, WritingThread

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recovered:
    """What is known of a recording that an earlier session did not save.

    Attributes:
        label: newest; "" for none.
        problems: found by that session.
        seed: of its scene; None: not said.
    """

    label: str
    problems: tuple[str, ...]
    seed: int | None


def _recovered(segment: Segment) -> Recovered:
    said, seed = told(segment.events), segment.facts.get("seed")
    return Recovered(said["label"], tuple(said["problems"]), seed if isinstance(seed, int) else None)


class Recorder:
    """One recording at a time; see the text of this module. Called by the loop's thread alone.

    Args:
        store: open for append; only this recorder appends to it. An edit puts another in its place: `self.store` is the one
            that counts, and is the caller's to close.
        layout: of the rows.
        config: see RecordingConfig.
        facts: JSON types that go into the metadata of every episode.
    """

    def __init__(
        self, store: EpisodeStore, layout: RowLayout, config: RecordingConfig | None = None, *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.layout, self.config = layout, config or RecordingConfig()
        self.folder = store.path.with_name(f".{store.path.name}.recording")
        self._facts = dict(facts or {})
        self._thread = WritingThread(store, layout, self.config)
        self._ring: deque[Row] = deque()
        self._dropped: list[Path] = []
        self.pending: Path | None = None
        self.rows, self.lost = 0, 0
        self.recovered: Recovered | None = None
        self._is_saving, self._editing = False, 0

    @property
    def store(self) -> EpisodeStore:
        """Open for append."""
        return self._thread.store

    @property
    def queued(self) -> int:
        """Rows that wait for the disk."""
        return self._thread.queued

    @property
    def failure(self) -> str:
        """What the disk said of the running recording; "" while it takes everything."""
        return self._thread.failure

    @property
    def past_rows(self) -> int:
        """Rows that `take_last` would make an episode of."""
        return len(self._past(self.config.last_s))

    def prioritise(self, fifo_priority: int) -> None:
        """Ask for SCHED_FIFO for the thread: one that loses the CPU while it has the interpreter's lock stops the loop."""
        self._thread.put("priority", fifo_priority)

    def recover(self) -> int:
        """Take up what an earlier session recorded and did not save; it is `pending` then. Returns its rows, 0 for none.

        What was dropped there is removed, and what was saved already.
        """
        for path in sorted(self.folder.glob(f"*{DROPPED}")):
            log.info("removing a dropped episode of an earlier session: %s, %d bytes", path, path.stat().st_size)
            path.unlink()
        saved = {bytes(row).hex() for row in self.store.uuids}
        found = list[tuple[Path, int, Recovered]]()
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime):
            try:
                segment = read_segment(path, has_frames=False)
            except DataError as error:
                log.warning("left alone: %s", error)
                continue
            if path.stem in saved or len(segment.table) < 2:
                path.unlink()
            else:
                found.append((path, len(segment.table), _recovered(segment)))
        if not found:
            return 0
        self.pending, self.rows, self.recovered = found[0]
        if len(found) > 1:
            log.warning("%d more unsaved recordings in %s; the next sessions take them up", len(found) - 1, self.folder)
        log.warning("an unsaved recording of %d rows was found: %s", self.rows, self.pending)
        self._thread.put("open", self.pending)
        return self.rows

    def keep(self, row: Row) -> None:
        """A row that is not recorded, for pre-roll and "save the last seconds"."""
        self._ring.append(row)
        newest_s, most_s = row.read_s, max(self.config.preroll_s, self.config.last_s)
        size = sum(np.asarray(frame).nbytes for frame in row.frames.values())
        most = max(int(self.config.ring_bytes / max(size, 1)), 1)
        while self._ring and (newest_s - self._ring[0].read_s > most_s or len(self._ring) > most):
            self._ring.popleft()

    def forget_past(self) -> None:
        """The past does not lead here: the scene was reset, or the loop stood still."""
        self._ring.clear()

    def begin(self, facts: Mapping[str, Any]) -> None:
        """A new recording, with the pre-roll before it."""
        self._open(facts, self._past(self.config.preroll_s))

    def take_last(self, facts: Mapping[str, Any]) -> None:
        """The last seconds become a recording that has ended."""
        self._open(facts, self._past(self.config.last_s))
        self.told("end", self._ring[-1].read_s if self._ring else 0.0, name="save_last")
        self._ring.clear()

    def add(self, row: Row) -> None:
        """One row; never waits."""
        if self._thread.put_row(row):
            self.rows += 1
        else:
            self.lost += 1

    def told(self, kind: str, stamp_s: float, *, name: str = "", text: str = "") -> None:
        """What happened to the recording: mark, success, failure, undo_label, undo_mark, pause, resume, end."""
        self._thread.put("event", {"kind": kind, "stamp_s": stamp_s, "name": name, "text": text})

    def abandon(self) -> None:
        """The running recording has no step: as if it had not begun."""
        if self.pending is not None:
            self._thread.put("remove", self.pending)
            self.pending, self.rows = None, 0

    def drop(self) -> None:
        """Put the pending recording aside, until the next save."""
        if self.pending is None:
            return
        aside = self.pending.with_suffix(DROPPED)
        self._thread.put("rename", (self.pending, aside))
        self._dropped.append(aside)
        self.pending = None

    def bring_back(self) -> None:
        """Undo the newest `drop`."""
        if self.pending is None and self._dropped:
            aside = self._dropped.pop()
            self.pending = aside.with_suffix(SUFFIX)
            self._thread.put("rename", (aside, self.pending))
            self._thread.put("open", self.pending)

    def save(self) -> None:
        """Make the pending recording an episode of the store; `poll` says what came of it."""
        self._is_saving = True
        self._thread.put("save", self.pending)

    def poll(self) -> list[Outcome]:
        """Saves that have ended since the last call."""
        out = self._thread.outcomes()
        for outcome in out:
            self._is_saving = False
            if outcome.index >= 0:
                self.pending = None
                self._dropped.clear()
        return out

    @property
    def is_saving(self) -> bool:
        """Whether a save has not ended."""
        return self._is_saving

    def edit(self, edit: Edit) -> None:
        """Change an episode that is saved; `poll_edits` says what came of it. Not while rows are recorded: they would wait."""
        self._editing += 1
        self._thread.put("edit", edit)

    def poll_edits(self) -> list[Edited]:
        """Edits that have ended since the last call."""
        out = self._thread.edits()
        self._editing -= len(out)
        return out

    @property
    def is_editing(self) -> bool:
        """Whether an edit has not ended."""
        return self._editing > 0

    @property
    def edit_progress(self) -> tuple[int, int]:
        """Episodes of the edit that is under way that are written, and all of them."""
        return self._thread.progress

    def close(self) -> None:
        """Write what waits and end; what is pending stays on the disk for the next session. Also twice."""
        self._thread.close()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _past(self, seconds: float) -> list[Row]:
        if seconds <= 0 or not self._ring:
            return []
        return [row for row in self._ring if row.read_s >= self._ring[-1].read_s - seconds]

    def _open(self, facts: Mapping[str, Any], past: list[Row]) -> None:
        self.pending = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        self.rows, self.lost, self._thread.failure = len(past), 0, ""
        self._thread.put("new", (self.pending, {**self._facts, **facts}, past))
