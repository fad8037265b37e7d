"""Where the tool shall be one period from now: velocities of a device, or a tracked hand, within the robot's box."""

from __future__ import annotations

import math

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.deploy.rotation_motion import difference, from_vector, multiply
from robot_rl.errors import ConfigError
from robot_rl.teleop.axes import DeviceAxes
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.following import HandFollower, Lag, lag_share, moved
from robot_rl.teleop.mapping_config import MappingConfig


class CartesianInput:
    """Input of a Cartesian action.

    Args:
        layout: of the action.
        config: see MappingConfig.

    Raises:
        ConfigError: axes that there are not, or that mirror a tracked hand.
    """

    def __init__(self, layout: ActionLayout, config: MappingConfig) -> None:
        self._config, self._axes = config, DeviceAxes(config.axes, config.rotation, config.locked)
        if config.input == "pose" and not self._axes.is_rigid:
            raise ConfigError(
                "mapping.axes", expected="the same right-handed choice for x, y, z and roll, pitch, yaw",
                got=str(list(config.axes)), hint="A hand is not followed as a mirror image; use mapping.locked to leave out axes.",
            )  # fmt: skip
        self._box = None if layout.card.pose is None else layout.card.pose.box
        self._has_rotation, self._has_gripper = layout.meaning.rotation != "none", layout.gripper is not None
        self._lag = Lag(config.smoothing_s, 6)
        self._hand: HandFollower | None = None

    @property
    def is_refused(self) -> bool:
        """Never: a hand is followed from wherever it is."""
        return False

    def rest(self) -> None:
        """Nobody is engaged."""
        self._lag.reset()

    def is_said(self, command: TeleopCommand, share: float) -> bool:
        """Whether the command says where to go."""
        if self._config.input == "motion":
            return True
        return share >= 1 and command.pose is not None and bool(np.isfinite(command.pose).all())

    def engage(self, command: TeleopCommand, start: Float64[Array, "7"]) -> None:
        """From here on it is followed, from where hand and tool are now."""
        if command.pose is not None and self._config.input == "pose":
            self._hand, self._origin, self._followed = (
                HandFollower(command.pose, scale=self._config.hand_scale),
                start,
                start,
            )

    def goals(
        self, command: TeleopCommand, start: Float64[Array, "7"], period_s: float, *, share: float, notes: list[str]
    ) -> tuple[Float64[Array, "7"], Float64[Array, "7"]]:
        """Where to be behind the period, and where the person asked to be.

        Args:
            command: engaged.
            start: m and quaternion wxyz.
            period_s: of this step.
            share: of a velocity.
            notes: what is held back is added here.
        """
        if command.gripper and not self._has_gripper:
            notes.append("no gripper")
        follow = self._velocity if self._config.input == "motion" else self._pose
        goal, asked = follow(command, start, period_s, share, notes)
        goal = self._in_box(goal, start, notes)
        self._followed = goal
        return goal, asked

    def _velocity(
        self, command: TeleopCommand, start: np.ndarray, period_s: float, share: float, notes: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        motion = self._axes.motion(np.clip(np.nan_to_num(command.motion), -1.0, 1.0)) * share
        wanted = np.concatenate(
            [
                _shortened(motion[:3], 1.0) * self._config.speed_m_s,
                _shortened(motion[3:], 1.0) * self._config.speed_rad_s,
            ]
        )
        if not self._has_rotation and wanted[3:].any():
            notes.append("no rotation")
        in_tool = self._config.frame == "tool"
        way = self._lag.way(wanted, period_s)
        return moved(start, way, in_tool=in_tool), moved(start, wanted * period_s, in_tool=in_tool)

    def _pose(
        self, command: TeleopCommand, start: np.ndarray, period_s: float, share: float, notes: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        assert self._hand is not None
        assert command.pose is not None
        motion = self._axes.motion(self._hand.motion(np.asarray(command.pose, np.float64)))
        asked = moved(self._origin, motion, in_tool=self._config.frame == "tool")
        here, part = self._followed, lag_share(self._config.smoothing_s, period_s)
        way, turn = part * (asked[:3] - here[:3]), part * difference(asked[3:], here[3:])
        for vector, speed in ((way, self._config.speed_m_s), (turn, self._config.speed_rad_s)):
            if math.hypot(*vector.tolist()) > speed * period_s:
                notes.append("speed")
        way = _shortened(way, self._config.speed_m_s * period_s)
        turn = _shortened(turn, self._config.speed_rad_s * period_s)
        return np.concatenate([here[:3] + way, multiply(from_vector(turn), here[3:])]), asked

    def _in_box(self, goal: np.ndarray, start: np.ndarray, notes: list[str]) -> np.ndarray:
        """Inside the robot's box; a tool that is outside may come back, and goes no further out."""
        if self._box is None:
            return goal
        low, high = np.minimum(self._box[0], start[:3]), np.maximum(self._box[1], start[:3])
        inside = np.clip(goal[:3], low, high)
        for index in np.flatnonzero(np.abs(inside - goal[:3]) > 1e-9):
            notes.append(f"workspace {'-+'[int(goal[index] > inside[index])]}{'xyz'[index]}")
        return np.concatenate([inside, goal[3:]])


def _shortened(vector: np.ndarray, most: float) -> np.ndarray:
    length = math.hypot(*vector.tolist())
    return vector * (most / length) if length > most else vector
