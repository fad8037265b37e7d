"""The thread that writes recordings down and saves them; recording.py gives it what is to be done, in order."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.realtime import take_priority
from robot_rl.errors import RobotRlError
from robot_rl.teleop.building import build_episode
from robot_rl.teleop.rows import RowLayout
from robot_rl.teleop.saved_episodes import Edit, Edited, carry_out_edit
from robot_rl.teleop.segments import SegmentWriter, read_segment
from robot_rl.types import Episode

log = logging.getLogger(__name__)

_T = TypeVar("_T")
DROPPED = ".dropped"
_LONGEST_S = 60.0


@dataclass(frozen=True)
class RecordingConfig:
    """How it is recorded.

    Attributes:
        max_queued: rows that may wait for the disk.
        preroll_s: of the time before the start that belongs to an episode.
        last_s: of the past that "save_last" makes an episode of.
        ring_bytes: of frames that are kept for both; less of the past when they are large.
        sync_s: at most so much is lost in a power cut.
        delays: file of `robot-rl calibrate latency`, stored with every episode; "": none.
    """

    max_queued: int = 200
    preroll_s: float = 0.0
    last_s: float = 10.0
    ring_bytes: int = 1 << 29
    sync_s: float = 0.5
    delays: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a save.

    Attributes:
        index: of the episode in the store; -1 when it was not saved.
        episode: what is in the store, or None.
        problem: why it was not saved; "" when it was.
    """

    index: int
    episode: Episode | None
    problem: str = ""


class WritingThread:
    """Carries out, one after the other: new, open, row, event, rename, remove, save, edit, priority.

    Args:
        store: open for append; only this thread appends to it, or puts another in its place.
        layout: of the rows.
        config: see RecordingConfig.
    """

    def __init__(self, store: EpisodeStore, layout: RowLayout, config: RecordingConfig) -> None:
        self.store, self._layout, self._sync_s = store, layout, config.sync_s
        # Only rows are bounded: labels and an end must always find a place.
        self._queue: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._most = config.max_queued
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._edits: queue.SimpleQueue[Edited] = queue.SimpleQueue()
        self.failure, self.progress = "", (0, 0)
        self._thread = threading.Thread(target=self._write_all, name="recording", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """What waits."""
        return self._queue.qsize()

    def put_row(self, row: Any) -> bool:
        """Add a row; False when the disk does not keep up. Never waits."""
        if self._queue.qsize() >= self._most:
            return False
        self._queue.put(("row", row))
        return True

    def put(self, what: str, about: Any) -> None:
        """Add something else; never waits."""
        self._queue.put((what, about))

    def outcomes(self) -> list[Outcome]:
        """Saves that have ended since the last call."""
        return _taken(self._outcomes)

    def edits(self) -> list[Edited]:
        """Edits that have ended since the last call."""
        return _taken(self._edits)

    def close(self) -> None:
        """Write what waits and end. Also twice. A disk that takes nothing is waited for no longer than a minute."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(_LONGEST_S)
            while self._thread.is_alive() and self.progress[1]:  # an edit of a large dataset, which goes on
                before = self.progress
                log.info("the dataset is being rewritten: %d of %d episodes", *before)
                self._thread.join(_LONGEST_S)
                if self.progress == before:
                    break
            if self._thread.is_alive():
                log.error("the disk of %s takes nothing: %d rows are not written", self.store.path, self.queued)

    def _write_all(self) -> None:
        writer: SegmentWriter | None = None
        while (task := self._queue.get()) is not None:
            what, about = task
            try:
                writer = self._carry_out(what, about, writer)
            except Exception as error:  # whatever it is, the thread must live: the next episode depends on it
                self.failure = self.failure or f"{type(error).__name__}: {error}"
                log.error("recording: %s", error, exc_info=not isinstance(error, OSError | RobotRlError))
                if what == "save":
                    self._outcomes.put(Outcome(-1, None, str(error)))
                elif what == "edit":
                    self._edits.put(Edited(about, problem=f"{type(error).__name__}: {error}"))
        if writer is not None:
            writer.sync()
            writer.close()

    def _carry_out(self, what: str, about: Any, writer: SegmentWriter | None) -> SegmentWriter | None:
        if what == "row":
            if writer is not None and not self.failure:
                writer.add_row(about)
            return writer
        if what == "priority":
            log.info("the writing thread's %s", take_priority(about))
            return writer
        if what == "edit":
            self._edit(about)
            return writer
        if what == "event":
            if writer is not None:
                writer.add_event(about)
                if about["kind"] == "end":
                    writer.sync()
            return writer
        if writer is not None:
            writer.close()
        if what == "new":
            path, facts, past = about
            writer = SegmentWriter(path, self._layout, facts, sync_s=self._sync_s)
            for row in past:
                writer.add_row(row)
            return writer
        if what == "open":
            return SegmentWriter.reopen(about, self._layout, sync_s=self._sync_s)
        if what == "remove":
            about.unlink()
            return None
        if what == "rename":
            about[0].rename(about[1])
            return None
        return self._save(about)

    def _save(self, path: Path) -> SegmentWriter | None:
        """Append to the store, then remove the recording: a crash in between leaves both, and the uuid tells."""
        try:
            outcome = self._append(path)
        except (OSError, RobotRlError) as error:
            self._outcomes.put(Outcome(-1, None, str(error)))
            return SegmentWriter.reopen(path, self._layout, sync_s=self._sync_s)
        path.unlink()
        for aside in path.parent.glob(f"*{DROPPED}"):
            aside.unlink()
        self._outcomes.put(outcome)
        return None

    def _append(self, path: Path) -> Outcome:
        segment = read_segment(path)
        episode = build_episode(segment, control_hz=self.store.spec.control_hz)
        self.store.append_many([])  # finishes an append that was cut off, maybe of this very episode
        ours = np.frombuffer(bytes.fromhex(path.stem), np.uint8)
        there = np.flatnonzero((self.store.uuids == ours).all(axis=1))
        if there.size:
            return Outcome(int(there[0]), episode)
        (index,) = self.store.append_many([episode], uuids=ours[None])
        return Outcome(index, episode)

    def _edit(self, edit: Edit) -> None:
        def count(done: int, total: int) -> None:
            self.progress = (done, total)

        try:
            self.progress = (0, 1)
            self.store, done = carry_out_edit(self.store, edit, on_episode=count)
        except (OSError, RobotRlError) as error:
            log.error("%s of an episode: %s", edit.name, error)
            done = Edited(edit, problem=str(error))
        finally:
            self.progress = (0, 0)
        self._edits.put(done)


def _taken(found: queue.SimpleQueue[_T]) -> list[_T]:
    out = list[_T]()
    while not found.empty():
        out.append(found.get())
    return out
