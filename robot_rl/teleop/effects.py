"""What the transitions of the episode machine do to robot, recording and reset, and which events follow by themselves."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robot_rl.data.disk_space import DiskWatch, bytes_per_step
from robot_rl.deploy.safety import Reason
from robot_rl.errors import DataError, RobotRlError
from robot_rl.teleop.driving import Driver
from robot_rl.teleop.episode_list import EpisodeList
from robot_rl.teleop.episode_machine import Effect, EpisodeMachine, State, Transition
from robot_rl.teleop.panel import EDITS
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.resetting import Resetter
from robot_rl.teleop.rows import Row
from robot_rl.teleop.said import Said
from robot_rl.teleop.writing import Outcome
from robot_rl.types import Source

log = logging.getLogger(__name__)

_RECORDS = (State.recording, State.paused)
_DISK_S = 1.0
# What would want the writer's thread while it changes saved episodes.
_WAITS = ("start", "save", "save_last", *EDITS)
_LOST = "rows were lost: the disk does not keep up"


def free_bytes(path: Path) -> int:
    """On the disk of a folder; one system call, for a loop."""
    return shutil.disk_usage(path).free


class Effects:
    """The hands of a session.

    Args:
        machine: of the session.
        driver: of its robot.
        recorder: of its dataset.
        resetter: of scene and robot.
        config: a session.SessionConfig.
    """

    def __init__(
        self, machine: EpisodeMachine, driver: Driver, recorder: Recorder, resetter: Resetter, config: Any
    ) -> None:  # fmt: skip
        self._machine, self._driver, self._recorder, self.resetter, self._config = (
            machine, driver, recorder, resetter, config,
        )  # fmt: skip
        self._disk = DiskWatch(recorder.store)
        self.message, self.source = "", Source.teleop
        self.said, self._aside = Said(), list[tuple[Said, int]]()
        self.saved = self.discarded = 0
        self._is_first, self._same_seed, self._begun_rows = True, False, 0
        self.began_s = self._disk_s = self._paused_s = 0.0
        self.left, self.list = self._disk.left(), EpisodeList(recorder)
        self.takeover, self.policy_success, self._driven = 0.0, 0, list[float]()

    def begin(self) -> None:
        """Look at what is there: the next seed, and a recording of an earlier session."""
        seeds = [int(seed) for seed in self._recorder.store.seeds]
        self.seed = self._newest_seed = max([self._config.first_seed - 1, *seeds])
        if self._recorder.recover() and (found := self._recorder.recovered):
            self.said = Said([found.label] if found.label else [], list(found.problems))
            self.seed = self.seed if found.seed is None else found.seed
            self.message = "An earlier session left this episode unsaved: save or discard it."

    def counts(self) -> dict[str, Any]:
        """Of the session so far."""
        store = self._recorder.store
        return {
            "saved": self.saved, "discarded": self.discarded, "stored": len(store), "successes": int(store.success.sum()),
        }  # fmt: skip

    @property
    def table(self) -> tuple[dict[str, Any], ...]:
        """See SessionView.episodes."""
        return self.list.rows

    @property
    def rows(self) -> int:
        """Of the running recording, without its pre-roll."""
        return self._recorder.rows - self._begun_rows

    def meant(self, event: str, *, is_solved: Callable[[], bool]) -> tuple[str, str]:
        """What an event comes to now, and why it is refused ("" when it is not)."""
        state, recorder = self._machine.state, self._recorder
        if state in _RECORDS and event in ("stop", "success", "failure", "time_limit", "discard") and self.rows < 1:
            return "empty", ""
        if state is State.idle and recorder.pending is not None and event in ("start", "reset"):
            return "pending", ""  # asked for in the very turn in which the episode's review is due
        if event in _WAITS and recorder.is_editing:
            return event, "The saved episodes are being changed: wait."
        if event == "release" and recorder.is_saving:
            return event, "An episode is still being saved."
        if event == "save_last" and recorder.past_rows < 2:
            return event, "There is nothing of the past to save yet."
        if event == "start" and state is State.ready:
            if is_solved():
                return event, "The task is solved already: reset first."
            return event, self._no_room()
        is_kept = self._config.keep_failures or self.said.label == "success"
        if event == "save" and state is State.review and not is_kept:
            self.message = "Not kept: it is no success."
            return "discard", ""
        return event, ""

    def _no_room(self) -> str:
        try:
            self._disk.require_episode()
        except DataError as error:
            if self.message != str(error):
                log.error("%s", error)
            return str(error)
        return ""

    def watch_recording(self, now_s: float) -> list[tuple[str, str]]:
        """Events that a recording brings about: its time limit, and a disk that fills or fails."""
        limit_s, recorder = self._config.time_limit_s, self._recorder
        found = []
        if limit_s is not None and now_s - self.began_s >= limit_s:
            found.append(("time_limit", f"{limit_s:g} s"))
        if recorder.lost and _LOST not in self.said.problems:
            found.append(("camera_problem", _LOST))
        if recorder.failure:
            found += [("camera_problem", f"the disk failed: {recorder.failure}"), ("stop", "the disk failed")]
        elif now_s - self._disk_s > _DISK_S:
            self._disk_s, free = now_s, free_bytes(recorder.store.path)
            # It must still fit into the store, where it is on the disk twice for a moment.
            need = 2 * recorder.rows * bytes_per_step(recorder.store.spec)
            if free < need + self._disk.reserve_bytes:
                found.append(("stop", f"the disk is nearly full: {free} bytes free"))
        return found

    def ended(self, outcome: Outcome) -> str:
        """The event that the end of a save is."""
        if outcome.index < 0:
            return "save_failed"
        self.saved += 1
        self._aside.clear()
        self._count_saved(outcome)
        self.list.saved(outcome)
        self.left = self._disk.left()
        self.message = f"Saved as episode {outcome.index}."
        return "saved_last" if len(self._recorder.store) >= self._config.total else "saved"

    def end_edits(self) -> bool:
        """Take in changes of saved episodes that have ended; True when there were some."""
        said = self.list.ended()
        if said:
            self.message, self._disk = said, DiskWatch(self._recorder.store)
            self.left = self._disk.left()
        elif self._recorder.is_editing:
            self.message = self.list.progress() or self.message
        return bool(said)

    def _count_saved(self, outcome: Outcome) -> None:
        """How much of an episode people drove themselves."""
        assert outcome.episode is not None
        said = outcome.episode.metadata
        self._driven += [said["takeover"]]
        self.policy_success += said["label"] == "success" and not said["interventions"]
        self.takeover = sum(self._driven) / len(self._driven)

    def next_event(self) -> str:
        """What follows without being asked for; "" for nothing."""
        state, config = self._machine.state, self._config
        if state is State.idle:
            if self._recorder.pending is not None:
                return "pending"
            if self._is_first:
                self._is_first = False
                return "quit" if len(self._recorder.store) >= config.total else "reset"
        if state is State.review and config.auto_save and self.said.label and not self.said.problems:
            return "save"
        if state is State.ready and config.auto_start:
            return "start"
        return ""

    def carry_out(self, transition: Transition, *, closing: Callable[[], Row]) -> None:
        """Everything that a transition does, in order."""
        if transition.after in (State.fault, State.estop) or (
            transition.text and Effect.edit not in transition.effects
        ):
            self.message = transition.text or f"Stopped: {self._driver.why or transition.event}."
        for effect in transition.effects:
            if (what := self._actions().get(effect)) is not None:
                what(transition, closing)

    def _actions(self) -> dict[Effect, Callable[[Transition, Callable[[], Row]], None]]:
        return {
            Effect.stop_robot: self._stop, Effect.release_robot: self._release, Effect.begin: self._begin,
            Effect.pause: self._tell, Effect.resume: self._tell, Effect.end: self._end, Effect.take_last: self._take_last,
            Effect.drop: self._drop, Effect.bring_back: self._bring_back, Effect.same_seed: self._keep_seed,
            Effect.save: self._save, Effect.success: self._labelled, Effect.failure: self._labelled,
            Effect.mark: self._mark, Effect.undo_label: self._undo_label, Effect.undo_mark: self._undo_mark,
            Effect.reset: self._reset, Effect.hurry: lambda *_: self.resetter.hurry(), Effect.edit: self._edit,
        }  # fmt: skip

    def _edit(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self.message = self.list.ask(transition)

    def _stop(self, transition: Transition, closing: Callable[[], Row]) -> None:
        if not self._driver.latched:
            self._driver.stop(Reason.emergency, transition.text or transition.event)

    def _release(self, transition: Transition, closing: Callable[[], Row]) -> None:
        try:
            self._driver.release()
            self.message = ""
        except RobotRlError as error:
            # Still latched: the next turn finds that out and goes back to the fault.
            log.error("%s", error)
            self._driver.stop(Reason.emergency, str(error))

    def _begin(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._recorder.begin(self._facts(transition))
        self.said, self.message = Said(), ""
        self._begun_rows, self.began_s, self._disk_s = self._recorder.rows, transition.stamp_s, transition.stamp_s

    def _take_last(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._recorder.take_last(self._facts(transition))
        self.said, self.message = Said(), ""

    def _facts(self, transition: Transition) -> dict[str, Any]:
        """Of an episode, JSON types."""
        wall_s = time.time() - time.monotonic() + transition.stamp_s
        return {"seed": self.seed, "begin_unix_s": wall_s, "begin_monotonic_s": transition.stamp_s}

    def _end(self, transition: Transition, closing: Callable[[], Row]) -> None:
        if transition.event == "empty":
            self._recorder.abandon()
            return
        self._recorder.add(closing())
        self._recorder.told("end", transition.stamp_s, name=transition.event, text=transition.text)

    def _drop(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._recorder.drop()
        self._aside.append((self.said, self.seed))
        self.discarded += 1
        self.message = "Put aside; undo brings it back until the next save."

    def _bring_back(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._recorder.bring_back()
        self.said, self.seed = self._aside.pop()
        self.discarded -= 1
        self.message = "It is back: save or discard it."

    def _keep_seed(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._same_seed = True

    def _save(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self._recorder.save()
        self.message = "Saving."

    def _tell(self, transition: Transition, closing: Callable[[], Row]) -> None:
        kind, stamp_s = "pause" if Effect.pause in transition.effects else "resume", transition.stamp_s
        if kind == "resume":  # what was paused is not the episode's time
            self.began_s += max(stamp_s - self._paused_s, 0.0)
        self._paused_s = stamp_s
        self._recorder.told(kind, transition.stamp_s)

    def _labelled(self, transition: Transition, closing: Callable[[], Row]) -> None:
        kind = "success" if Effect.success in transition.effects else "failure"
        self.said.labels.append(kind)
        self._recorder.told(kind, transition.stamp_s, text=transition.by)

    def _mark(self, transition: Transition, closing: Callable[[], Row]) -> None:
        if transition.event == "camera_problem":
            self.said.problems.append(transition.text)
        else:
            self.said.marks.append((transition.event, transition.text))
        self._recorder.told("mark", transition.stamp_s, name=transition.event, text=transition.text)

    def _undo_label(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self.said.labels = self.said.labels[:-1]
        self._recorder.told("undo_label", transition.stamp_s)

    def _undo_mark(self, transition: Transition, closing: Callable[[], Row]) -> None:
        self.said.marks = self.said.marks[:-1]
        self._recorder.told("undo_mark", transition.stamp_s)

    def _reset(self, transition: Transition, closing: Callable[[], Row]) -> None:
        # Behind all that were begun: an episode that was found or brought back may be an older one.
        self._newest_seed = max(self._newest_seed, self.seed)
        self.seed, self._same_seed = self.seed if self._same_seed else self._newest_seed + 1, False
        self._recorder.forget_past()
        problem = self.resetter.begin(self.seed)
        if problem:
            self._driver.stop(Reason.robot_lost, f"the reset failed: {problem}")
