"""What a person's input device says at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from robot_rl.arrays import Array, Float32, Float64

EVENT = "event:"


@dataclass(frozen=True)
class TeleopCommand:
    """One command; velocities while held, never a pose to go to, so that what is no longer sent ends by itself.

    Attributes:
        sequence: 0 before the first; a new number is a new command, the same number the same one.
        stamp_s: when it was received, CLOCK_MONOTONIC seconds; -inf before the first.
        engaged: the person holds the clutch (deadman). Without it nothing moves, whatever the rest says.
        motion: share of the greatest speed along and about each device axis (x, y, z, roll, pitch, yaw), float32 (6,), -1..1.
        gripper: share of the greatest speed, -1 closing to 1 opening; 0: as it is. A device that knows an opening gives
            `opening` instead.
        opening: of the gripper, 0 closed to 1 open, or None.
        joints: of a leader arm, float64 (J,) in the order of the robot card's joints, rad or m, or None.
        pose: of a tracked hand (WebXR), m and quaternion wxyz in the device's frame, float64 (7,), or None. Followed
            relative to where it was when the clutch was engaged.
        buttons: held now. "event:<name>" asks once, at its press, for an event of panel.EVENTS; others are free.
    """

    sequence: int = 0
    stamp_s: float = float("-inf")
    engaged: bool = False
    motion: Float32[Array, "6"] = field(default_factory=lambda: np.zeros(6, np.float32))
    gripper: float = 0.0
    opening: float | None = None
    joints: Float64[Array, " J"] | None = None
    pose: Float64[Array, "7"] | None = None
    buttons: frozenset[str] = frozenset()


@dataclass(frozen=True)
class DeviceStatus:
    """How a device does.

    Attributes:
        name: of the device.
        is_connected: whether it can be read.
        age_s: since its newest command; infinite before the first.
        commands: received so far.
        rate_hz: of the last second; 0 before.
        problems: one text for each thing that is wrong now.
        help: what does what, for the screen: control -> meaning.
    """

    name: str
    is_connected: bool = False
    age_s: float = float("inf")
    commands: int = 0
    rate_hz: float = 0.0
    problems: tuple[str, ...] = ()
    help: dict[str, str] = field(default_factory=dict)
