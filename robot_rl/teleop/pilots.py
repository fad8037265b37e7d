"""Who chooses the action of a step: the operator alone. shared_pilot.py has the one in which a policy drives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.schedule import Slot
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.types import Goal, Reading, Source

# States of a clutch in which a command moves the robot.
MOVES = ("engaged", "releasing")


@runtime_checkable
class Mapped(Protocol):
    """What a mapping makes of a command; mapping.py."""

    @property
    def action(self) -> Float32[Array, " A"]:
        """As the environment takes it."""
        ...

    @property
    def raw(self) -> Float32[Array, " A"]:
        """Before clamps and smoothing."""
        ...

    @property
    def clamped(self) -> tuple[str, ...]:
        """Why they differ, for the operator."""
        ...


@runtime_checkable
class Mapping(Protocol):
    """A command as an action of the environment; mapping.ActionMapping."""

    def action(
        self, command: TeleopCommand, *, reading: Reading, period_s: float, share: float = 1.0, sent: Goal | None = None
    ) -> Mapped:
        """The action of one step; `share` of the motion is followed, `sent` is what the robot was sent last."""
        ...

    def reset(self, reading: Reading, *, sent: Goal | None = None) -> None:
        """Begin anew where the robot is."""
        ...


@runtime_checkable
class Engagement(Protocol):
    """What a clutch says; clutch.py."""

    @property
    def state(self) -> str:
        """open, engaged, releasing or fault."""
        ...

    @property
    def share(self) -> float:
        """Of the motion that is still followed, 0..1."""
        ...


@runtime_checkable
class ClutchLike(Protocol):
    """Whether a command may move the robot; clutch.Clutch."""

    def judge(self, command: TeleopCommand, now_s: float) -> Engagement:
        """Of the newest command."""
        ...


@dataclass(frozen=True)
class Turn:
    """What a pilot may look at.

    Attributes:
        slot: of the loop.
        reading: of this turn.
        command: of the operator's device.
        now_s: when the reading was received.
        period_s: of actions.
        sent: what the robot was sent last; None before the first.
        is_stale: whether a stream of the reading is too old, so that the robot will hold whatever is chosen.
    """

    slot: Slot
    reading: Reading
    command: TeleopCommand
    now_s: float
    period_s: float
    sent: Goal | None
    is_stale: bool = False


@dataclass(frozen=True)
class Choice:
    """The action of one step.

    Attributes:
        action: float32 (A,), what is asked of the robot.
        policy: the policy's, float32 (A,), or None.
        operator: the operator's before clamps, float32 (A,), or None.
        source: who chose it.
        intervention: number of the intervention, from 1; 0: none.
        clamped: why the operator does not get what was asked.
        is_still: nobody asks for motion: the robot brakes and holds, and the action says the same.
    """

    action: Float32[Array, " A"]
    policy: Float32[Array, " A"] | None
    operator: Float32[Array, " A"] | None
    source: Source
    intervention: int = 0
    clamped: tuple[str, ...] = ()
    is_still: bool = False


@runtime_checkable
class Pilot(Protocol):
    """Chooses the actions of a session."""

    @property
    def engagement(self) -> str:
        """State of the clutch."""
        ...

    def judge(self, command: TeleopCommand, now_s: float) -> None:
        """Look at the clutch; once a turn, whatever the state of the session."""
        ...

    def begin(self, reading: Reading, *, sent: Goal | None, seed: int) -> None:
        """A new episode, or motion goes on after a pause."""
        ...

    def start(self, *, seed: int, is_new: bool) -> None:
        """Recording begins, or goes on behind a pause (`is_new` False)."""
        ...

    @property
    def problem(self) -> str:
        """Why the robot must stop; "" while it need not."""
        ...

    def choose(self, turn: Turn) -> Choice:
        """The action of this step."""
        ...


class OperatorPilot:
    """The operator drives; without the clutch nothing moves.

    Args:
        mapping: see Mapping.
        clutch: see ClutchLike.
    """

    def __init__(self, mapping: Mapping, clutch: ClutchLike) -> None:
        self._mapping, self._clutch = mapping, clutch
        self._state, self._share, self.problem = "open", 0.0, ""

    @property
    def engagement(self) -> str:
        """See Pilot."""
        return self._state

    def judge(self, command: TeleopCommand, now_s: float) -> None:
        """See Pilot."""
        engagement = self._clutch.judge(command, now_s)
        self._state, self._share = engagement.state, engagement.share

    def begin(self, reading: Reading, *, sent: Goal | None, seed: int) -> None:
        """See Pilot."""
        self._mapping.reset(reading, sent=sent)

    def start(self, *, seed: int, is_new: bool) -> None:
        """See Pilot."""

    def choose(self, turn: Turn) -> Choice:
        """See Pilot."""
        mapped = mapped_of(self._mapping, turn, self._state, self._share)
        is_still = self._state not in MOVES
        return Choice(mapped.action, None, mapped.raw, Source.teleop, 0, tuple(mapped.clamped), is_still)


def mapped_of(mapping: Mapping, turn: Turn, state: str, share: float) -> Mapped:
    """The operator's action as far as the clutch lets the command through."""
    may_move = state in MOVES
    command = replace(turn.command, engaged=turn.command.engaged and may_move)
    return mapping.action(
        command, reading=turn.reading, period_s=turn.period_s, share=share if may_move else 0.0, sent=turn.sent
    )
