"""Targets and changes of targets: absolute actions from deltas and back, for joints and for poses.

A change is added to what was measured at that step, or to the target before (the first one to what was measured). In the
frame "joint", "base" or "world" positions add and rotations turn about fixed axes (R_target = R_change R_before); in the
frame "tool" both are seen from the hand (p + R_before dp, R_before R_change).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import DataError, closest
from robot_rl.specs import DeltaReference

FIXED = ("joint", "base", "world")
FRAMES = (*FIXED, "tool")


@dataclass(frozen=True)
class Poses:
    """Rows of positions (joints, or x y z) and, for a hand, rotations.

    Attributes:
        linear: float64 (T, L).
        turn: scipy Rotation of T rotations, or None.
    """

    linear: Float64[Array, "T L"]
    turn: Any = None

    def __len__(self) -> int:
        return len(self.linear)

    def __getitem__(self, rows: slice) -> Poses:
        return Poses(self.linear[rows], None if self.turn is None else self.turn[rows])


def require_frame(frame: str, *, has_rotation: bool, where: str) -> None:
    """Refuse a frame whose changes can't be added up.

    Raises:
        DataError: an unknown frame, or that of the tool for an action that does not say how the tool is turned.
    """
    if frame not in FRAMES:
        raise DataError(where, expected="a frame that is known", got=repr(frame), hint=closest(frame, FRAMES))
    if frame == "tool" and not has_rotation:
        raise DataError(
            where, expected="a rotation in the action, as its frame is that of the tool", got="positions only",
            hint="Without it nobody knows where the tool's axes point.",
        )  # fmt: skip


def targets_of(change: Poses, measured: Poses, reference: DeltaReference, *, frame: str) -> Poses:
    """Absolute targets of changes.

    Args:
        change: T changes.
        measured: T poses, what was measured when each was given.
        reference: what a change is added to.
        frame: of FRAMES.
    """
    if reference is DeltaReference.measured:
        return _plus(measured, change, frame)
    return _joined(_run(change, measured, lambda before, step: (target := _plus(before, step, frame), target)))


def changes_of(
    target: Poses, measured: Poses, reference: DeltaReference, *, frame: str, stored: Callable[[Poses], Poses]
) -> Poses:
    """Changes that lead to targets; the inverse of `targets_of`.

    Args:
        target: T targets.
        measured: T poses, what was measured when each was given.
        reference: what a change is added to.
        frame: of FRAMES.
        stored: a change as it comes back from a store. What rounding leaves over goes into the next change, so that sums
            of them do not wander off.
    """
    if reference is DeltaReference.measured:
        return _minus(target, measured, frame)

    def step(before: Poses, wanted: Poses) -> tuple[Poses, Poses]:
        change = stored(_minus(wanted, before, frame))
        return change, _plus(before, change, frame)

    return _joined(_run(target, measured, step))


def _run(rows: Poses, measured: Poses, step: Callable[[Poses, Poses], tuple[Poses, Poses]]) -> list[Poses]:
    out, before = list[Poses](), measured[0:1]
    for index in range(len(rows)):
        result, before = step(before, rows[index : index + 1])
        out.append(result)
    return out


def _joined(rows: list[Poses]) -> Poses:
    linear = np.concatenate([row.linear for row in rows])
    if rows[0].turn is None:
        return Poses(linear)
    return Poses(linear, type(rows[0].turn).concatenate([row.turn for row in rows]))


def _plus(before: Poses, change: Poses, frame: str) -> Poses:
    if frame in FIXED:
        turn = None if before.turn is None else change.turn * before.turn
        return Poses(before.linear + change.linear, turn)
    return Poses(before.linear + before.turn.apply(change.linear), before.turn * change.turn)


def _minus(target: Poses, before: Poses, frame: str) -> Poses:
    if frame in FIXED:
        turn = None if before.turn is None else target.turn * before.turn.inv()
        return Poses(target.linear - before.linear, turn)
    back = before.turn.inv()
    return Poses(back.apply(target.linear - before.linear), back * target.turn)
