"""What may happen when: one table of state x event -> next state and effects. It knows no robot, clock or disk.

A pair that is not in the table changes nothing and is noted. Events are those that people ask for (panel.EVENTS) and those
that a session finds out (INTERNAL). An unsaved episode is never lost by a transition: what ends a recording keeps it, and
what drops one can be undone until the next save.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from robot_rl.teleop.panel import EDITS, EVENTS


class State(str, Enum):
    """Of a session.

    idle: nothing moves; ready: the operator drives, nothing is recorded; recording; paused: holds, to go on recording;
    review: an episode waits for its label; saving; resetting: scene and robot go to the start of the next; fault, estop:
    stopped until a person releases; closed: the end.
    """

    idle = "idle"
    ready = "ready"
    recording = "recording"
    paused = "paused"
    review = "review"
    saving = "saving"
    resetting = "resetting"
    fault = "fault"
    estop = "estop"
    closed = "closed"


class Effect(str, Enum):
    """What a session does on a transition.

    hold: no motion; stop_robot: brake and latch; release_robot: a person allows motion; begin, pause, resume, end: of the
    recording; take_last: the last seconds become an episode; drop: the episode is put aside, bring_back: and taken back;
    same_seed: the next episode starts as the dropped one; save, saved, not_saved; success, failure: label; mark: a subtask,
    note or problem; undo_label, undo_mark; reset: begin one, hurry: leave out its countdown; edit: change saved
    episodes; quit.
    """

    hold = "hold"
    stop_robot = "stop_robot"
    release_robot = "release_robot"
    begin = "begin"
    pause = "pause"
    resume = "resume"
    end = "end"
    take_last = "take_last"
    drop = "drop"
    bring_back = "bring_back"
    same_seed = "same_seed"
    save = "save"
    saved = "saved"
    not_saved = "not_saved"
    success = "success"
    failure = "failure"
    mark = "mark"
    undo_label = "undo_label"
    undo_mark = "undo_mark"
    reset = "reset"
    hurry = "hurry"
    edit = "edit"
    quit = "quit"


INTERNAL = (
    "saved", "saved_last", "save_failed", "reset_done", "reset_failed", "device_fault", "robot_stop", "camera_problem",
    "time_limit", "empty", "pending", "undo_label", "undo_mark", "undo_drop",
)  # fmt: skip

Entry = tuple[State, tuple[Effect, ...]]
_S, _E = State, Effect
# Both of them leave through `review`: whatever was recorded is kept.
_ENDS = {
    "stop": (_S.review, (_E.end,)),
    "success": (_S.review, (_E.end, _E.success)),
    "failure": (_S.review, (_E.end, _E.failure)),
    "time_limit": (_S.review, (_E.end,)),
    "discard": (_S.resetting, (_E.end, _E.drop, _E.reset)),
    "rerecord": (_S.resetting, (_E.end, _E.drop, _E.same_seed, _E.reset)),
    "device_fault": (_S.fault, (_E.hold, _E.end)),
    "robot_stop": (_S.fault, (_E.stop_robot, _E.end)),
    "estop": (_S.estop, (_E.stop_robot, _E.end)),
    "quit": (_S.closed, (_E.hold, _E.end, _E.quit)),
    # Nothing was recorded yet, so there is nothing to keep.
    "empty": (_S.ready, (_E.end,)),
}
_ROWS: dict[State, dict[str, Entry]] = {
    _S.idle: {
        "start": (_S.resetting, (_E.reset,)), "reset": (_S.resetting, (_E.reset,)), "pending": (_S.review, ()),
        "undo_drop": (_S.review, (_E.bring_back,)),
    },
    _S.resetting: {
        "reset_done": (_S.ready, ()), "reset_failed": (_S.fault, (_E.stop_robot,)), "start": (_S.resetting, (_E.hurry,)),
        "reset": (_S.resetting, (_E.reset,)), "stop": (_S.idle, (_E.hold,)),
        "undo_drop": (_S.review, (_E.hold, _E.bring_back)),
    },
    _S.ready: {
        "start": (_S.recording, (_E.begin,)), "reset": (_S.resetting, (_E.reset,)), "stop": (_S.idle, (_E.hold,)),
        "save_last": (_S.review, (_E.hold, _E.take_last)), "device_fault": (_S.fault, (_E.hold,)),
        "undo_drop": (_S.review, (_E.hold, _E.bring_back)),
    },
    _S.recording: _ENDS | {
        "pause": (_S.paused, (_E.pause, _E.hold)), "subtask": (_S.recording, (_E.mark,)),
        "note": (_S.recording, (_E.mark,)), "camera_problem": (_S.recording, (_E.mark,)),
        "undo_mark": (_S.recording, (_E.undo_mark,)),
    },
    _S.paused: _ENDS | {
        "resume": (_S.recording, (_E.resume,)), "start": (_S.recording, (_E.resume,)),
        "subtask": (_S.paused, (_E.mark,)), "note": (_S.paused, (_E.mark,)), "undo_mark": (_S.paused, (_E.undo_mark,)),
    },
    _S.review: {
        "save": (_S.saving, (_E.save,)), "success": (_S.review, (_E.success,)), "failure": (_S.review, (_E.failure,)),
        "note": (_S.review, (_E.mark,)), "discard": (_S.resetting, (_E.drop, _E.reset)),
        "rerecord": (_S.resetting, (_E.drop, _E.same_seed, _E.reset)), "undo_label": (_S.review, (_E.undo_label,)),
        "undo_mark": (_S.review, (_E.undo_mark,)),
    },
    _S.saving: {
        "saved": (_S.resetting, (_E.saved, _E.reset)), "saved_last": (_S.closed, (_E.saved, _E.quit)),
        "save_failed": (_S.review, (_E.not_saved,)),
    },
    _S.fault: {"release": (_S.idle, (_E.release_robot,))},
    _S.estop: {"release": (_S.idle, (_E.release_robot,))},
    _S.closed: {},
}  # fmt: skip
# Only where no row is on its way to the disk.
for _state in (_S.idle, _S.ready, _S.review):
    _ROWS[_state] |= dict.fromkeys(EDITS, (_state, (_E.edit,)))
_STOPPED = (_S.fault, _S.estop, _S.closed)
for _state, _row in _ROWS.items():
    if _state is not _S.closed:
        _row.setdefault("estop", (_S.estop, (_E.stop_robot,)))
        _row.setdefault("quit", (_S.closed, (_E.hold, _E.quit)))
    if _state not in _STOPPED:
        _row.setdefault("robot_stop", (_S.fault, (_E.stop_robot,)))
    else:  # a save that was under way when the robot was stopped
        _row |= dict.fromkeys(("saved", "saved_last"), (_state, (_E.saved,)))
        _row["save_failed"] = (_state, (_E.not_saved,))

# The whole table: (state, event) -> (next state, effects in order).
TABLE: dict[tuple[State, str], Entry] = {
    (state, event): entry for state, row in _ROWS.items() for event, entry in row.items()
}
_REMEMBERED = {_E.success: "label", _E.failure: "label", _E.mark: "mark", _E.drop: "drop"}


@dataclass(frozen=True)
class Transition:
    """One event, whatever came of it.

    Attributes:
        stamp_s: when it was asked for or found out, CLOCK_MONOTONIC seconds.
        event: its name.
        before, after: states; equal where nothing came of it.
        effects: what is to be done, in order.
        text: of a note, a subtask or a problem.
        by: who.
        is_known: whether the table has this pair.
        episode: id of the saved episode that an edit is about.
    """

    stamp_s: float
    event: str
    before: State
    after: State
    effects: tuple[Effect, ...]
    text: str = ""
    by: str = ""
    is_known: bool = True
    episode: str = ""

    def to_json(self) -> dict[str, object]:
        """JSON types only."""
        return {
            **vars(self), "before": self.before.value, "after": self.after.value,
            "effects": [effect.value for effect in self.effects],
        }  # fmt: skip


class EpisodeMachine:
    """A state, and what can be undone. Pure but for these two."""

    def __init__(self) -> None:
        self.state = State.idle
        self._undo: list[str] = []

    @property
    def allowed(self) -> tuple[str, ...]:
        """Events that people may ask for now and something would come of, in the order of panel.EVENTS, then EDITS."""
        return tuple(event for event in (*EVENTS, *EDITS) if (self.state, self._meant(event)) in TABLE)

    def apply(self, event: str, stamp_s: float, *, text: str = "", by: str = "", episode: str = "") -> Transition:
        """Take one event; a pair that the table does not have changes nothing."""
        before, meant = self.state, self._meant(event)
        entry = TABLE.get((before, meant))
        if entry is None:
            return Transition(stamp_s, event, before, before, (), text, by, is_known=False, episode=episode)
        self.state, effects = entry
        if meant != event:
            self._undo.pop()
        if event != "camera_problem":  # it stays: `undo` is about what a person said
            self._undo += [_REMEMBERED[effect] for effect in effects if effect in _REMEMBERED]
        if Effect.saved in effects:
            self._undo.clear()
        return Transition(stamp_s, event, before, self.state, effects, text, by, episode=episode)

    def _meant(self, event: str) -> str:
        """`undo` means the newest thing that can be undone."""
        return f"undo_{self._undo[-1]}" if event == "undo" and self._undo else event
