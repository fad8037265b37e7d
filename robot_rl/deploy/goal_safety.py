"""The safety layers of joints (safety.py) and of poses (pose_safety.py) behind one interface: Goal in, Goal out.

Ages are judged before, stream by stream (chunking.AgeCheck): what comes here with a goal is fresh, and what comes without
one brakes within the limits and holds, for the reason that the caller gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.pose_safety import GripperLimiter, MeasuredPose, PoseSafetyFilter, PoseSafetyLimits
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.deploy.rotation_motion import from_vector, multiply
from robot_rl.deploy.safety import STOPS, Measured, Reason, SafetyFilter, SafetyLimits
from robot_rl.errors import ConfigError
from robot_rl.types import Goal, Reading

# The age of an action that was never given: the layers brake for it as for one that is too old.
_NEVER_S = 1e9
# Slower is rest: rad/s and m/s.
_REST = 1e-6


@dataclass(frozen=True)
class Judged:
    """What may be sent.

    Attributes:
        goal: within every limit.
        reasons: why it is not what was asked.
        is_at_rest: whether it asks for no motion.
    """

    goal: Goal
    reasons: Reason
    is_at_rest: bool


@runtime_checkable
class GoalSafety(Protocol):
    """The safety layer of one robot."""

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move."""
        ...

    def judge(self, goal: Goal | None, period_s: float, reading: Reading, *, reason: Reason = Reason.none) -> Judged:
        """Judge one goal.

        Args:
            goal: None: brake within the limits and hold, without latching anything.
            period_s: time since the last one.
            reading: what the robot measures.
            reason: why there is no goal.
        """
        ...

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """Brake from the next `judge` on, and hold for as long as this layer is used. Callable at any time, from any thread."""
        ...


@dataclass(frozen=True)
class SafetyHooks:
    """What only a robot's own code knows.

    Attributes:
        forward: joint positions -> position of the end effector in the base frame, m (3,); needed for a workspace of
            a robot that is commanded by joints.
        collides: joint positions (or a pose, as the robot is commanded) -> whether it would hit something.
    """

    forward: Callable[[np.ndarray], np.ndarray] | None = None
    collides: Callable[[np.ndarray], bool] | None = None


def safety_of(card: RobotCard, reading: Reading, hooks: SafetyHooks | None = None) -> GoalSafety:
    """The safety layer that a robot's card asks for, starting where the robot is.

    Args:
        card: of the robot.
        reading: where it is, at rest.
        hooks: see SafetyHooks.

    Raises:
        ConfigError: a workspace without `forward`.
        DeployError: a start outside the limits.
    """
    hooks = hooks or SafetyHooks()
    is_joint = card.command.is_joint
    return JointGoalSafety(card, reading, hooks) if is_joint else PoseGoalSafety(card, reading, hooks)


class JointGoalSafety:
    """Of a robot commanded by joints; see GoalSafety. Arguments as `safety_of`."""

    def __init__(self, card: RobotCard, reading: Reading, hooks: SafetyHooks) -> None:
        box, half_spaces = (None, ()) if card.pose is None else (card.pose.box, card.pose.half_spaces)
        limits = SafetyLimits(
            joints=card.limits, box=box, half_spaces=half_spaces, force_n=card.force_n, torque_nm=card.torque_nm,
            tracking=card.tracking, stale_s=card.thresholds.observation_s,
        )  # fmt: skip
        self._filter = SafetyFilter(limits, reading.position, forward=hooks.forward, collides=hooks.collides)
        self._gripper = _gripper_limiter(card, reading)

    @property
    def latched(self) -> Reason:
        """See GoalSafety."""
        return self._filter.latched

    def judge(self, goal: Goal | None, period_s: float, reading: Reading, *, reason: Reason = Reason.none) -> Judged:
        """See GoalSafety."""
        age_s = _NEVER_S if goal is None else 0.0
        wanted = reading.position if goal is None or goal.position is None else goal.position
        if goal is not None and goal.position is None:
            self._filter.stop(Reason.wrong_size)
        if goal is None and not (
            wanted.shape == (len(self._filter.limits.joints.names),) and np.isfinite(wanted).all()
        ):
            wanted = np.array(self._filter.limits.joints.low)  # not looked at: the layer brakes
        if goal is not None and _is_bad(goal.gripper):
            self._filter.stop(Reason.not_finite)
        sent = self._filter.step(wanted, period_s, Measured(reading.position, age_s, reading.wrench))
        reasons = _without_goal(sent.reasons, reason) if goal is None else sent.reasons
        gripper, bent = _opening(self._gripper, goal, period_s, is_held=bool(reasons & STOPS))
        is_at_rest = bool(np.abs(sent.velocity).max() < _REST)
        return Judged(Goal(position=sent.position, velocity=sent.velocity, gripper=gripper), reasons | bent, is_at_rest)

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """See GoalSafety."""
        self._filter.stop(reason)


class PoseGoalSafety:
    """Of a robot commanded by the pose or the twist of its end effector; see GoalSafety. Arguments as `safety_of`."""

    def __init__(self, card: RobotCard, reading: Reading, hooks: SafetyHooks) -> None:
        if card.pose is None or reading.pose is None:
            raise ConfigError(
                f"robot {card.name!r}", expected="limits of the pose, and its pose in every reading", got="none",
                hint="See configs/robot/sim_panda.yaml.",
            )  # fmt: skip
        limits = PoseSafetyLimits(
            pose=card.pose, gripper=card.gripper, force_n=card.force_n, torque_nm=card.torque_nm,
            stale_s=card.thresholds.observation_s,
        )  # fmt: skip
        self._is_twist = card.command is CommandKind.twist
        self._filter = PoseSafetyFilter(limits, reading.pose, gripper=reading.gripper, collides=hooks.collides)
        self._last = reading.pose

    @property
    def latched(self) -> Reason:
        """See GoalSafety."""
        return self._filter.latched

    def judge(self, goal: Goal | None, period_s: float, reading: Reading, *, reason: Reason = Reason.none) -> Judged:
        """See GoalSafety."""
        if goal is not None and (goal.twist if self._is_twist else goal.pose) is None:
            self._filter.stop(Reason.wrong_size)
        measured = np.full(7, np.nan) if reading.pose is None else reading.pose
        age_s = _NEVER_S if goal is None else 0.0
        sent = self._filter.step(
            self._wanted(goal, period_s), period_s, MeasuredPose(measured, age_s, reading.wrench),
            gripper=None if goal is None else goal.gripper,
        )  # fmt: skip
        self._last = sent.pose
        reasons = _without_goal(sent.reasons, reason) if goal is None else sent.reasons
        is_at_rest = bool(np.abs(sent.twist).max() < _REST)
        if self._is_twist:
            return Judged(Goal(twist=sent.twist, gripper=sent.gripper), reasons, is_at_rest)
        return Judged(Goal(pose=sent.pose, gripper=sent.gripper), reasons, is_at_rest)

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """See GoalSafety."""
        self._filter.stop(reason)

    def _wanted(self, goal: Goal | None, period_s: float) -> Array:
        if goal is None:
            return self._last
        if goal.pose is not None and not self._is_twist:
            return goal.pose
        if goal.twist is None or goal.twist.shape != (6,):
            return np.zeros(0)  # of the wrong size, as the layer says
        if not np.isfinite(goal.twist).all():
            return np.full(7, np.nan)
        step = goal.twist * period_s
        return np.concatenate([self._last[:3] + step[:3], multiply(from_vector(step[3:]), self._last[3:])])


def _without_goal(reasons: Reason, reason: Reason) -> Reason:
    """The layer calls a missing goal stale; the caller knows better why it is missing."""
    return reasons & ~Reason.stale | reason


def _gripper_limiter(card: RobotCard, reading: Reading) -> GripperLimiter | None:
    if card.gripper is None or reading.gripper is None:
        return None
    return GripperLimiter(card.gripper, reading.gripper)


def _is_bad(gripper: float | None) -> bool:
    return gripper is not None and not np.isfinite(gripper)


def _opening(
    limiter: GripperLimiter | None, goal: Goal | None, period_s: float, *, is_held: bool
) -> tuple[float | None, Reason]:
    if limiter is None:
        return None, Reason.none
    if goal is None or goal.gripper is None or is_held:
        return limiter.opening, Reason.none
    return limiter.step(goal.gripper, period_s)
