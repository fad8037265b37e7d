"""The table of episodes: by hand, and by random streams of events against a model of what would be lost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest

from robot_rl.teleop.episode_machine import INTERNAL, TABLE, Effect, EpisodeMachine, State
from robot_rl.teleop.panel import EDITS, EVENTS

STREAMS, LENGTH = 100, 120


@dataclass
class Disk:
    """What the effects do to episodes; fails when one would be lost or recorded where nothing may be."""

    machine: EpisodeMachine
    pending: int | None = None
    is_running: bool = False
    dropped: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    count: int = 0

    def apply(self, event: str) -> None:
        transition = self.machine.apply(event, 0.0)
        for effect in transition.effects:
            self._carry_out(effect)
        assert self.is_running == (self.machine.state in (State.recording, State.paused))
        if self.machine.state in (State.review, State.saving, State.recording, State.paused):
            assert self.pending is not None

    def _carry_out(self, effect: Effect) -> None:
        if effect in (Effect.begin, Effect.take_last):
            assert self.pending is None, "an unsaved episode would be written over"
            self.pending, self.count, self.labels = self.count, self.count + 1, []
            self.is_running = effect is Effect.begin
        elif effect is Effect.end:
            assert self.is_running
            self.is_running = False
            if self.machine.state is State.ready:  # `empty`: it had no step
                self.pending = None
        elif effect is Effect.drop:
            assert self.pending is not None
            assert not self.is_running
            self.dropped.append(self.pending)
            self.pending = None
        elif effect is Effect.bring_back:
            assert self.pending is None, "an unsaved episode would be written over"
            self.pending = self.dropped.pop()
        elif effect is Effect.saved:
            assert self.pending is not None
            self.saved.append(self.pending)
            self.pending, self.dropped = None, []
        elif effect in (Effect.success, Effect.failure):
            self.labels.append(effect.value)
        elif effect is Effect.undo_label:
            self.labels.pop()


class Session:
    """Random people and a random machine: internal events come only where a session sends them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.machine = EpisodeMachine()
        self.disk, self.rng, self.is_saving = Disk(self.machine), rng, False

    def step(self) -> str:
        state, words = self.machine.state, list(EVENTS[:-1])
        words.remove("quit")
        words += ["start"] * 5 + ["save"] * 10 * (state is State.review)
        if self.is_saving:
            words += ["saved"] * 20 + ["save_failed"] * 3
            words.remove("release")  # a session refuses it until the save has ended
        if state is State.resetting:
            words += ["reset_done"] * 5 + ["reset_failed"]
        if state in (State.ready, State.recording, State.paused):
            words += ["robot_stop", "device_fault", "camera_problem", "time_limit"]
        if state is State.ready:
            words.append("save_last")
        if state is State.idle and self.disk.pending is not None:
            words = ["pending"]
        event = str(self.rng.choice(words))
        self.disk.apply(event)
        if event == "save" and self.machine.state is State.saving:
            self.is_saving = True
        if event in ("saved", "save_failed"):
            self.is_saving = False
        return event


def test_random_streams_lose_nothing_and_reach_everything() -> None:
    rng, reached, left = np.random.default_rng(0), set[State](), set[State]()
    saved = 0
    for _ in range(STREAMS):
        session = Session(rng)
        for _ in range(LENGTH):
            before = session.machine.state
            seen = list(session.disk.saved)
            session.step()
            assert session.disk.saved[: len(seen)] == seen
            reached.add(session.machine.state)
            if session.machine.state is not before:
                left.add(before)
        saved += len(session.disk.saved)
        assert len(set(session.disk.saved)) == len(session.disk.saved), "one episode saved twice"
    assert reached == set(State) - {State.closed}
    assert left == set(State) - {State.closed}
    assert saved > STREAMS


def test_quit_and_estop_work_from_everywhere_and_end_a_recording() -> None:
    for state in set(State) - {State.closed}:
        for event, after in (("quit", State.closed), ("estop", State.estop)):
            target, effects = TABLE[state, event]
            assert target is after
            assert (Effect.end in effects) == (state in (State.recording, State.paused))
            assert Effect.drop not in effects
            assert event == "quit" or Effect.stop_robot in effects


def test_nothing_is_recorded_or_moved_where_the_robot_is_stopped() -> None:
    for (state, event), (after, effects) in TABLE.items():
        if state in (State.fault, State.estop, State.closed):
            assert not {Effect.begin, Effect.resume, Effect.reset} & set(effects), (state, event)
            assert after in (state, State.idle, State.estop, State.closed), "only a person releases"
            assert (after is State.idle) == (event == "release")
        if after is State.recording:
            assert state in (State.ready, State.paused, State.recording)


def test_every_state_can_be_reached_from_idle_and_all_lead_to_idle_or_the_end() -> None:
    def all_from(start: State) -> set[State]:
        found, todo = {start}, deque([start])
        while todo:
            here = todo.popleft()
            for (state, _), (after, _effects) in TABLE.items():
                if state is here and after not in found:
                    found.add(after)
                    todo.append(after)
        return found

    assert all_from(State.idle) == set(State)
    for state in set(State) - {State.closed}:
        assert {State.idle, State.closed} <= all_from(state)


def test_pairs_that_are_not_in_the_table_change_nothing() -> None:
    for state in State:
        for event in (*EVENTS, *INTERNAL):
            machine = EpisodeMachine()
            machine.state = state
            transition = machine.apply(event, 3.5, text="why", by="test")
            if (state, event) not in TABLE:
                assert (transition.after, transition.effects, transition.is_known) == (state, (), False)
                assert transition.stamp_s == 3.5


def walk(machine: EpisodeMachine, events: str) -> list[Effect]:
    return [effect for event in events.split() for effect in machine.apply(event, 0.0).effects]


@pytest.mark.parametrize(
    ("events", "state", "last"),
    [
        ("start reset_done start success undo", State.review, Effect.undo_label),
        ("start reset_done start subtask undo", State.recording, Effect.undo_mark),
        ("start reset_done start stop discard undo", State.review, Effect.bring_back),
        ("start reset_done start discard reset_done undo", State.review, Effect.bring_back),
        # A label below a dropped episode is undone behind the drop.
        ("start reset_done start success discard undo undo", State.review, Effect.undo_label),
        ("start reset_done start note success undo undo", State.review, Effect.undo_mark),
    ],
)
def test_undo_takes_back_the_newest_thing(events: str, state: State, last: Effect) -> None:
    machine = EpisodeMachine()
    effects = walk(machine, events)
    assert machine.state is state
    assert effects[-1] is last


def test_undo_ends_with_the_next_save_and_never_writes_over_an_episode() -> None:
    machine = EpisodeMachine()
    walk(machine, "start reset_done start stop discard reset_done start stop")
    assert not machine.apply("undo", 0.0).is_known, "the dropped one waits while another is under review"
    assert "undo" not in machine.allowed
    walk(machine, "save saved")
    assert not machine.apply("undo", 0.0).is_known
    assert machine.state is State.resetting


def test_allowed_is_what_does_something() -> None:
    machine = EpisodeMachine()
    assert machine.allowed == ("start", "reset", "estop", "quit", *EDITS)
    walk(machine, "start reset_done start")
    assert "undo" not in machine.allowed
    walk(machine, "note")
    assert {"stop", "success", "failure", "discard", "rerecord", "pause", "undo", "note", "subtask"} <= set(
        machine.allowed
    )
