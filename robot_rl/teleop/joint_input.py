"""Where the joints shall be one period from now: a leader arm, or single joints driven by a device's axes."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.errors import ConfigError, closest
from robot_rl.teleop.axes import AXES, DeviceAxes
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.following import Lag, LeaderFollower, lag_share, leader_problems
from robot_rl.teleop.mapping_config import MappingConfig


class JointInput:
    """Input of an action of joints.

    Args:
        layout: of the action.
        config: see MappingConfig.

    Raises:
        ConfigError: joints to jog that there are not.
    """

    def __init__(self, layout: ActionLayout, config: MappingConfig) -> None:
        self._config, self._names = config, layout.card.joints
        self._axes = DeviceAxes(config.axes, config.rotation, config.locked)
        self._low, self._high = np.array(layout.card.limits.low), np.array(layout.card.limits.high)
        is_length = ["length" in layout.quantities[index] for index in layout.arm]
        self._speed = np.where(is_length, config.speed_m_s, config.speed_rad_s)
        self._has_gripper = layout.gripper is not None
        self._jog = np.zeros((len(self._names), 6))
        if len(config.jog) > len(AXES):
            raise ConfigError("mapping.jog", expected="at most 6 joints", got=str(len(config.jog)), hint=f"For {AXES}.")
        for axis, name in enumerate(config.jog):
            if name and name not in self._names:
                raise ConfigError("mapping.jog", expected="a joint", got=repr(name), hint=closest(name, self._names))
            if name:
                self._jog[self._names.index(name), axis] = 1.0
        self._lag = Lag(config.smoothing_s, len(self._names))
        self._leader: LeaderFollower | None = None
        self._problems: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether a leader arm was too far from the robot when it was engaged; it is, until it is engaged anew."""
        return bool(self._problems)

    def rest(self) -> None:
        """Nobody is engaged."""
        self._lag.reset()
        self._problems = ()

    def is_said(self, command: TeleopCommand, share: float) -> bool:
        """Whether the command says where to go."""
        if self._config.input == "motion":
            return True
        joints = command.joints
        is_whole = joints is not None and joints.shape == (len(self._names),) and bool(np.isfinite(joints).all())
        return share >= 1 and is_whole

    def engage(self, command: TeleopCommand, start: Float64[Array, " J"]) -> None:
        """From here on it is followed, if it is near enough."""
        if command.joints is not None and self._config.input == "joints":
            leader = np.asarray(command.joints, np.float64)
            self._problems = leader_problems(self._names, leader, start, most=self._config.leader_gap_rad)
            self._leader = LeaderFollower(leader, start, ramp_per_s=self._config.leader_ramp_rad_s)
            self._followed = start

    def goals(
        self, command: TeleopCommand, start: Float64[Array, " J"], period_s: float, *, share: float, notes: list[str]
    ) -> tuple[Float64[Array, " J"], Float64[Array, " J"]]:
        """Where to be behind the period, and where the person asked to be.

        Args:
            command: engaged.
            start: rad or m, in the card's order.
            period_s: of this step.
            share: of a velocity.
            notes: what is held back is added here.
        """
        if command.gripper and not self._has_gripper:
            notes.append("no gripper")
        if self._config.input == "motion":
            motion = self._axes.motion(np.clip(np.nan_to_num(command.motion), -1.0, 1.0)) * share
            wanted = (self._jog @ motion) * self._speed
            goal, asked = start + self._lag.way(wanted, period_s), start + wanted * period_s
        elif self._problems:
            notes.extend(self._problems)
            return start, start
        else:
            goal, asked = self._follow(command, period_s, notes)
        inside = np.clip(goal, np.minimum(self._low, start), np.maximum(self._high, start))
        notes += [f"joint {self._names[index]}" for index in np.flatnonzero(np.abs(inside - goal) > 1e-9)]
        self._followed = inside
        return inside, asked

    def _follow(self, command: TeleopCommand, period_s: float, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
        assert self._leader is not None
        leader = np.asarray(command.joints, np.float64)
        goal = self._leader.goal(leader, period_s)
        way = (goal - self._followed) * lag_share(self._config.smoothing_s, period_s)
        most = self._speed * period_s
        if (np.abs(way) > most).any():
            notes.append("speed")
        return self._followed + np.clip(way, -most, most), leader
