"""Faults of a mock robot by time: what goes wrong with a reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from robot_rl.errors import DeployError
from robot_rl.types import Reading


class FaultKind(str, Enum):
    """What can go wrong.

    Of a reading: nan (all measured numbers of the stream), permuted (joints in reverse order), extra_joint, missing_joint,
    bias (every joint off by `value`), missing (the stream is not there), frozen (its frame and stamp stay what they were),
    stale (its stamp is `value` seconds older), clock_jump (all stamps move by `value` seconds), force (`value` N),
    wrong_shape (an image of half the rows), read_error (read raises).
    Of a command: command_lost (accepted, without effect), command_error (command raises).
    """

    nan = "nan"
    permuted = "permuted"
    extra_joint = "extra_joint"
    missing_joint = "missing_joint"
    bias = "bias"
    missing = "missing"
    frozen = "frozen"
    stale = "stale"
    clock_jump = "clock_jump"
    force = "force"
    wrong_shape = "wrong_shape"
    read_error = "read_error"
    command_lost = "command_lost"
    command_error = "command_error"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: see FaultKind.
        start_s, end_s: when it is there, seconds since `connect`.
        stream: which one, e.g. "joints" or "image/wrist".
        value: of the fault, where it has one.
    """

    kind: FaultKind
    start_s: float = 0.0
    end_s: float = math.inf
    stream: str = "joints"
    value: float = 0.0

    def is_active(self, since_s: float) -> bool:
        """Whether it is there `since_s` seconds after connect."""
        return self.start_s <= since_s < self.end_s


def spoil(reading: Reading, faults: Sequence[Fault], *, since_s: float, connected_s: float) -> Reading:
    """A reading with every active fault in it, in their order.

    Args:
        reading: as it should be.
        faults: of the robot.
        since_s: seconds since `connect`.
        connected_s: when that was.

    Raises:
        DeployError: the fault `read_error`.
    """
    for fault in faults:
        if fault.is_active(since_s):
            reading = _spoiled(reading, fault, begin_s=connected_s + fault.start_s)
    return reading


def _spoiled(reading: Reading, fault: Fault, *, begin_s: float) -> Reading:
    kind, stream, joints = fault.kind, fault.stream, reading.position
    if kind is FaultKind.read_error:
        raise DeployError("mock robot", expected="a reading", got="a fault", hint="As the test wants it.")
    if kind is FaultKind.nan:
        return _not_a_number(reading, stream)
    if kind is FaultKind.permuted:
        return replace(reading, position=joints[::-1].copy())
    if kind is FaultKind.extra_joint:
        return replace(reading, position=np.append(joints, 0.0), velocity=None)
    if kind is FaultKind.missing_joint:
        return replace(reading, position=joints[:-1].copy(), velocity=None)
    if kind is FaultKind.bias:
        return replace(reading, position=joints + fault.value)
    if kind is FaultKind.force:
        return replace(reading, wrench=np.array([fault.value, 0, 0, 0, 0, 0], np.float64))
    if kind is FaultKind.wrong_shape:
        return replace(reading, frames={**reading.frames, stream: reading.frames[stream][::2].copy()})
    return _of_time(reading, fault, begin_s=begin_s)


def _of_time(reading: Reading, fault: Fault, *, begin_s: float) -> Reading:
    kind, stream, stamps = fault.kind, fault.stream, dict(reading.stamps)
    if kind is FaultKind.clock_jump:
        return replace(reading, stamps={name: stamp + fault.value for name, stamp in stamps.items()})
    if stream not in stamps:
        return reading
    if kind is FaultKind.missing:
        del stamps[stream]
        frames = {key: frame for key, frame in reading.frames.items() if key != stream}
        return replace(reading, stamps=stamps, frames=frames)
    if kind is FaultKind.frozen:
        frames = dict(reading.frames)
        if stream in frames:
            frames[stream] = np.full_like(frames[stream], 7)
        return replace(reading, stamps=stamps | {stream: min(stamps[stream], begin_s)}, frames=frames)
    if kind is FaultKind.stale:
        return replace(reading, stamps=stamps | {stream: stamps[stream] - fault.value})
    return reading


def _not_a_number(reading: Reading, stream: str) -> Reading:
    changed: dict[str, Any] = {}
    if stream == "joints":
        changed = {"position": np.full_like(reading.position, np.nan)}
        changed["frames"] = {**reading.frames, "proprio": np.full_like(reading.frames["proprio"], np.nan)}
    elif stream == "pose" and reading.pose is not None:
        changed["pose"] = np.full_like(reading.pose, np.nan)
    elif stream == "wrench" and reading.wrench is not None:
        changed["wrench"] = np.full_like(reading.wrench, np.nan)
    return replace(reading, **changed)
