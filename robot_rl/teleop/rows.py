"""One step of a recording: what was seen, who asked for what, what was sent, and when each of it happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.specs import EnvSpec
from robot_rl.types import Goal

IMAGE = "image/"
# One number each; see Row.
_SINGLE = (
    "read_s", "use_s", "command_s", "device_s", "device_sequence", "slot", "late_s", "skipped", "source",
    "intervention", "reasons", "sent_gripper",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One step. Times are CLOCK_MONOTONIC seconds.

    Attributes:
        frames: key of EnvSpec.observation -> array, as the reading had it. Never written to afterwards.
        capture_s: stream -> when it was captured.
        read_s: when the reading was received.
        use_s: when the action was chosen.
        command_s: when the robot had taken the command.
        device_s: when the operator's command was received; NaN without one.
        device_sequence: of that command.
        policy: the policy's action, float32 (A,), or None.
        operator: what the operator asked for, before clamps and blending, float32 (A,), or None.
        action: what was asked of the safety layer, float32 (A,).
        sent: what the robot was sent.
        reasons: why that is not what the action asks (safety.Reason).
        source: see types.Source.
        intervention: number of the intervention it belongs to, from 1; 0: none.
        slot, late_s, skipped: see schedule.Slot.
    """

    frames: Mapping[str, Array]
    capture_s: Mapping[str, float]
    read_s: float
    use_s: float
    command_s: float
    device_s: float
    device_sequence: int
    policy: Float32[Array, " A"] | None
    operator: Float32[Array, " A"] | None
    action: Float32[Array, " A"]
    sent: Goal
    reasons: int
    source: int
    intervention: int
    slot: int
    late_s: float
    skipped: int


class RowLayout:
    """Rows as one run of bytes: float64 numbers, then frames in the order of `keys`.

    Args:
        spec: of the robot.
        goal_size: numbers of a goal without its gripper.
        streams: whose capture times are kept.
    """

    def __init__(self, spec: EnvSpec, *, goal_size: int, streams: Sequence[str]) -> None:
        self.spec, self.goal_size, self.streams = spec, goal_size, tuple(streams)
        actions = dict.fromkeys(("policy", "operator", "action"), spec.action.size)
        sizes = dict.fromkeys(_SINGLE, 1) | actions | {"sent": goal_size}
        sizes |= {f"capture_s/{stream}": 1 for stream in self.streams}
        ends = np.cumsum(list(sizes.values())).tolist()
        self.columns = {name: (end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.width = int(ends[-1])
        # Small ones first: an image may be left out when it is the one before.
        self.keys = tuple(sorted(spec.observation, key=lambda key: (key.startswith(IMAGE), key)))

    def numbers(self, row: Row) -> np.ndarray:
        """All but the frames, float64 (width,); NaN where there is nothing."""
        out = np.full(self.width, np.nan)
        for name in _SINGLE[:-1]:
            out[self.columns[name][0]] = getattr(row, name)
        sent = row.sent
        arm = next((value for value in (sent.position, sent.pose, sent.twist) if value is not None), None)
        gripper = np.nan if sent.gripper is None else sent.gripper
        told: dict[str, Any] = {"policy": row.policy, "operator": row.operator, "action": row.action, "sent": arm}
        for name, value in {**told, "sent_gripper": gripper}.items():
            if value is not None:
                first, end = self.columns[name]
                out[first:end] = np.asarray(value, np.float64).ravel()
        for stream in self.streams:
            out[self.columns[f"capture_s/{stream}"][0]] = row.capture_s.get(stream, np.nan)
        return out

    def column(self, table: Array, name: str) -> np.ndarray:
        """A column of stacked numbers (T, width): (T,) where it has one, else (T, size)."""
        first, end = self.columns[name]
        part: np.ndarray = table[:, first:end]
        return part[:, 0] if name in _SINGLE or name.startswith("capture_s/") else part

    def to_json(self) -> dict[str, Any]:
        """Inverse: `from_json`."""
        return {"spec": self.spec.to_json(), "goal_size": self.goal_size, "streams": list(self.streams)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, where: str) -> RowLayout:
        """Of a file's header.

        Raises:
            DataError: no spec.
        """
        spec = EnvSpec.from_json(plain["spec"], where=f"{where}, spec")
        return cls(spec, goal_size=int(plain["goal_size"]), streams=tuple(map(str, plain["streams"])))


def layout_for(spec: EnvSpec, card: RobotCard) -> RowLayout:
    """The layout of a robot: the streams that its card and spec have.

    Args:
        spec: of the robot.
        card: of the robot.
    """
    size = len(card.joints) if card.command.is_joint else 7 if card.command is CommandKind.pose else 6
    streams = ["joints", "pose", "wrench", "gripper", *(key for key in spec.observation if key != "proprio")]
    return RowLayout(spec, goal_size=size, streams=streams)
