"""What teachers said during a roll-out, and what they did in episodes of their own; both in physical actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.types import Observation


@dataclass(frozen=True)
class GuidanceLabels:
    """Labels of one roll-out: T steps, N envs, M teachers.

    Attributes:
        teacher: float32 (T, M, N, A), what each teacher would do; 0 where it was not asked.
        asked: bool (T, M, N).
        failing: bool (T, N), the last episodes of the env all failed.
        reference: float32 (T, N, A), what the reference policy would do, or None.
    """

    teacher: Float32[Array, "T M N A"]
    asked: Bool[Array, "T M N"]
    failing: Bool[Array, "T N"]
    reference: Float32[Array, "T N A"] | None = None


@dataclass(frozen=True)
class TeacherTraces:
    """Steps of the teacher's own episodes.

    Attributes:
        observation: (R, To, ...), what it saw.
        action: float32 (R, A), what it did.
        success: bool (R,), whether that episode succeeded.
    """

    observation: Observation
    action: Float32[Array, "R A"]
    success: Bool[Array, " R"]


def segment_returns(returns: Float32[Array, "T N"], ended: Bool[Array, "T N"]) -> Float32[Array, "T N"]:
    """Return of the trajectory that each step belongs to: that of its first step in the roll-out.

    Args:
        returns: from each step on, bootstrapped where the roll-out stops.
        ended: whether an episode ended behind the step.
    """
    out = returns.clone()
    for row in range(1, len(out)):
        out[row] = torch.where(ended[row - 1], returns[row], out[row - 1])
    return out
