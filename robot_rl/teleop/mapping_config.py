"""What people may set about how a device moves a robot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from robot_rl.errors import ConfigError, closest
from robot_rl.teleop.axes import AXES

INPUTS = ("motion", "pose", "joints")


@dataclass(frozen=True)
class MappingConfig:
    """How a device's commands become motion.

    Attributes:
        input: what of a command is followed: "motion" (velocities), "pose" (a tracked hand) or "joints" (a leader arm).
        axes: for x, y, z, roll, pitch, yaw of the robot, the device's axis that drives it; "-y" for the other sense, "" for none.
        rotation: 3 rows of 3; turns the device's frame into the robot's, behind `axes`; None: as it is.
        frame: of the robot's, along whose axes the person thinks: "base" or "tool". What the action's frame is does not matter.
        locked: axes of the robot that do not move.
        speed_m_s, speed_rad_s: greatest, of the tool, or of joints (jog, leader arm).
        smoothing_s: time constant of a first-order lag; 0: none.
        gripper, gripper_per_s: see GripperInput.
        hand_scale: metres of the tool for one of a tracked hand.
        jog: for an action of joints: those that x, y, z, roll, pitch, yaw drive, "" for none.
        leader_gap_rad: difference between a leader arm and the robot above which it is not engaged.
        leader_ramp_rad_s: how fast a smaller difference is worked off; 0: it stays.
    """

    input: str = "motion"
    axes: tuple[str, ...] = AXES
    rotation: tuple[tuple[float, ...], ...] | None = None
    frame: str = "base"
    locked: tuple[str, ...] = ()
    speed_m_s: float = 0.2
    speed_rad_s: float = 0.6
    smoothing_s: float = 0.05
    gripper: str = "rate"
    gripper_per_s: float = 2.0
    hand_scale: float = 1.0
    jog: tuple[str, ...] = ()
    leader_gap_rad: float = 0.5
    leader_ramp_rad_s: float = 0.3

    def __post_init__(self) -> None:
        for name, options in (("input", INPUTS), ("frame", ("base", "tool"))):
            if getattr(self, name) not in options:
                hint = closest(getattr(self, name), options)
                raise ConfigError(f"mapping.{name}", expected="a known one", got=repr(getattr(self, name)), hint=hint)
        for name, is_zero_fine in (
            ("speed_m_s", False), ("speed_rad_s", False), ("hand_scale", False), ("leader_gap_rad", False),
            ("smoothing_s", True), ("leader_ramp_rad_s", True),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or (is_zero_fine and value == 0))):
                least = "0 or more" if is_zero_fine else "above 0"
                raise ConfigError(f"mapping.{name}", expected=f"a number {least}", got=f"{value:g}", hint="Correct it.")
