"""The safety layer between a policy and an end effector that is commanded by its pose; see also safety.py.

In this order: finite -> shape and unit quaternion -> workspace box and half-spaces -> step against the measured pose ->
speed, acceleration and jerk of the translation -> rate and acceleration of the rotation -> gripper; and, judged first
because they stop: force and torque, measured pose, age of the observation, and the collision hook on the target.

The limits of the translation hold for its norm. Each axis gets 1 / sqrt(3) of them and moves by itself (motion.py), so
the box is kept with room to brake, between the commands too; a way along one axis has 58 % of the speed. A limiter along
the straight way can't do this: the target changes while the end effector moves another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.gripper_motion import GripperLimiter as GripperLimiter
from robot_rl.deploy.motion import MARGIN_M, JointLimits, MotionLimiter, is_below
from robot_rl.deploy.robot_card import GripperCard, PoseLimits
from robot_rl.deploy.rotation_motion import RotationLimiter, as_unit, difference, from_vector, multiply
from robot_rl.deploy.safety import (
    SAME,
    STOPS,
    Latch,
    Reason,
    asked_too_much,
    check_ceilings,
    finite_target,
    is_period,
    judge_robot,
)
from robot_rl.errors import DeployError

# Without a box: further than any arm reaches.
_REACH_M = 10.0
_ROUNDS = 20
# Rounding of positions and angles.
_SLACK = 1e-9
# Targets stay within this part of a step of the measured pose, and ways to rest within the other: the rest is rounding.
_OF_STEP, _ON_THE_WAY = 0.99, 0.995


@dataclass(frozen=True)
class PoseSafetyLimits:
    """What the layer enforces.

    Attributes:
        pose: workspace, motion and step of the end effector.
        gripper: its range and velocity; None without one.
        force_n, torque_nm: largest norms of the measured wrench; None: not looked at.
        stale_s: age of the newest observation beyond which the robot holds.
    """

    pose: PoseLimits
    gripper: GripperCard | None = None
    force_n: float | None = None
    torque_nm: float | None = None
    stale_s: float = 0.2


@dataclass(frozen=True)
class MeasuredPose:
    """What the robot says of itself at this step.

    Attributes:
        pose: of the end effector in the base frame, m and quaternion wxyz, float64 (7,).
        age_s: of the newest observation that the action answers to.
        wrench: force N and torque N m, float64 (6,), or None.
    """

    pose: Float64[Array, "7"]
    age_s: float
    wrench: Float64[Array, "6"] | None = None


@dataclass(frozen=True)
class SentPose:
    """What to send, and why it is not what was asked.

    Attributes:
        pose: m and unit quaternion wxyz (w >= 0), float64 (7,).
        twist: linear m/s and angular rad/s in the base frame, float64 (6,).
        gripper: in its own unit; None without one.
        reasons: see Reason.
    """

    pose: Float64[Array, "7"]
    twist: Float64[Array, "6"]
    gripper: float | None
    reasons: Reason

    @property
    def is_stopping(self) -> bool:
        """Whether the robot brakes or holds for a reason that a person must release."""
        return bool(self.reasons & STOPS)


class PoseSafetyFilter:
    """One robot's safety layer; see the text of this module.

    Args:
        limits: see PoseSafetyLimits.
        pose: of the end effector now, at rest, m and quaternion wxyz, float64 (7,).
        gripper: opening now; needed when the limits have a gripper.
        collides: pose float64 (7,) -> whether the robot would hit something there; None: not looked at.

    Raises:
        ConfigError: a limit that is no positive number.
        DeployError: a start outside the limits, or no unit quaternion.
    """

    def __init__(
        self,
        limits: PoseSafetyLimits,
        pose: Float64[Array, "7"],
        *,
        gripper: float | None = None,
        collides: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        check_ceilings(limits, limits.pose.half_spaces)
        self.limits, self._collides, self._latch = limits, collides, Latch()
        self._axes = _axes(limits.pose)
        self._gripper: GripperLimiter | None = None
        if limits.gripper is not None:
            self._gripper = GripperLimiter(limits.gripper, math.nan if gripper is None else gripper)
        place, quaternion = self._start(np.asarray(pose, np.float64))
        self._motion = MotionLimiter(self._axes, place)
        self._rotation = RotationLimiter(limits.pose.rotation_rad_s, limits.pose.rotation_rad_s2, quaternion)

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move."""
        return self._latch.reasons

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """Brake from the next step on, and hold until `release`. Callable at any time, also twice."""
        self._latch.stop(reason)

    def release(self, pose: Float64[Array, "7"] | None = None) -> None:
        """A person allows motion again; only at rest.

        Args:
            pose: measured, where motion goes on from; None: from what was sent last. Needed after `tracking`.

        Raises:
            DeployError: the end effector still moves, or the pose is outside the limits.
        """
        self._latch.require_rest(self._motion.state.velocity, self._rotation.state.rate)
        if pose is not None:
            place, quaternion = self._start(np.asarray(pose, np.float64))
            self._motion = MotionLimiter(self._axes, place)
            self._rotation.restart(quaternion)
        self._latch.reasons = Reason.none

    def step(
        self,
        action: Sequence[float] | Array,
        period_s: float,
        measured: MeasuredPose,
        *,
        gripper: float | None = None,
    ) -> SentPose:
        """Judge one action: the pose to go to.

        Args:
            action: anything; only 7 finite numbers with a unit quaternion can move the robot.
            period_s: time since the last step; without a positive finite one nothing moves.
            measured: see MeasuredPose.
            gripper: opening to go to; None: it stays. One that is not finite stops the robot.
        """
        measured_pose, reasons = self._judge_measured(measured)
        place, quaternion, bad = self._target(action)
        reasons |= bad
        if gripper is not None and not math.isfinite(gripper):
            reasons |= Reason.not_finite
        self._latch.take(reasons)
        if not is_period(period_s):
            return self._sent(reasons | self.latched | Reason.period)
        if self.latched or reasons & Reason.stale:
            return self._braked(reasons, period_s)
        allowed = self._into_workspace(place)
        if np.abs(allowed - place).max() > SAME:
            reasons |= Reason.workspace
        near, turned = self._near(measured_pose, allowed, quaternion)
        if np.abs(near - allowed).max() > SAME or turned is not quaternion:
            reasons |= Reason.step
        if self._collides is not None and self._collides(np.concatenate([near, turned])):
            self._latch.take(Reason.collision)
            return self._braked(reasons, period_s)
        reasons |= self._move(near, turned, period_s, measured_pose)
        if self._gripper is not None and gripper is not None and not self.latched:
            reasons |= self._gripper.step(gripper, period_s)[1]
        return self._sent(reasons | self.latched)

    def _start(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place and rotation to begin from."""
        quaternion = as_unit(pose[3:]) if pose.shape == (7,) and np.isfinite(pose).all() else None
        if quaternion is None or not is_below(self.limits.pose.half_spaces, pose[:3]):
            raise DeployError(
                "pose", expected=f"a unit quaternion wxyz, and {1e3 * MARGIN_M:g} mm inside the half-spaces",
                got=str(pose), hint="Move the arm inside by hand, or correct half_spaces.",
            )  # fmt: skip
        return pose[:3], quaternion

    def _judge_measured(self, measured: MeasuredPose) -> tuple[np.ndarray, Reason]:
        """The measured pose, or the sent one with the reason."""
        here = self._sent(Reason.none).pose
        pose, bad = finite_target(measured.pose, here)
        quaternion = as_unit(pose[3:])
        if bad or quaternion is None:
            return here, Reason.measured_not_finite
        pose = np.concatenate([pose[:3], quaternion])
        reasons = judge_robot(measured.age_s, measured.wrench, self.limits)
        is_tracked = bool(reasons & Reason.stale) or self._is_near(pose)  # an old pose says nothing of it
        return pose, reasons if is_tracked else reasons | Reason.tracking

    def _target(self, action: Sequence[float] | Array) -> tuple[np.ndarray, np.ndarray, Reason]:
        target, reason = finite_target(action, self._sent(Reason.none).pose)
        quaternion = as_unit(target[3:])
        if quaternion is None:
            return self._motion.state.position, self._rotation.state.quaternion, Reason.not_a_rotation
        return target[:3], quaternion, reason

    def _into_workspace(self, place: np.ndarray) -> np.ndarray:
        """The place itself, or one inside near it: projected, so that a hand on the table still slides along it."""
        inside = np.clip(place, self._axes.low, self._axes.high)
        half_spaces = self.limits.pose.half_spaces
        for _ in range(_ROUNDS):
            if is_below(half_spaces, inside):
                return inside
            for *normal, most in half_spaces:
                length = math.hypot(*normal)
                over = (float(np.dot(normal, inside)) - most) / length + MARGIN_M
                if over > 0:
                    inside = inside - np.asarray(normal) * ((over + _SLACK) / length)
            inside = np.clip(inside, self._axes.low, self._axes.high)
        return inside if is_below(half_spaces, inside) else self._motion.state.position

    def _near(self, measured: np.ndarray, place: np.ndarray, quaternion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The target, no further from the measured pose than a step."""
        limits, way = self.limits.pose, place - measured[:3]
        length = math.hypot(*way.tolist())
        if limits.step_m is not None and length > _OF_STEP * limits.step_m:
            place = self._into_workspace(measured[:3] + way * (_OF_STEP * limits.step_m / length))
        turn = difference(quaternion, measured[3:])
        angle = math.hypot(*turn.tolist())
        if limits.step_rad is not None and angle > _OF_STEP * limits.step_rad:
            quaternion = multiply(from_vector(turn * (_OF_STEP * limits.step_rad / angle)), measured[3:])
        return place, quaternion

    def _is_near(self, measured: np.ndarray) -> bool:
        """Whether what is sent is within a step of the measured pose."""
        limits = self.limits.pose
        way = self._motion.state.position - measured[:3]
        turn = difference(self._rotation.state.quaternion, measured[3:])
        is_far = limits.step_m is not None and math.hypot(*way.tolist()) > limits.step_m + _SLACK
        return not is_far and (limits.step_rad is None or math.hypot(*turn.tolist()) <= limits.step_rad + _SLACK)

    def _move(self, place: np.ndarray, quaternion: np.ndarray, period_s: float, measured: np.ndarray) -> Reason:
        """One step of both parts, from which both can come to rest within a step of the measured pose."""
        before, memory = self._motion.state, (self._motion.memory, self._rotation.memory)
        after = self._motion.follow(place, period_s, is_inside=self._ways_inside(measured))
        turned = self._rotation.follow(quaternion, period_s)
        if not self._turns_inside(measured, period_s):
            self._rotation.memory = memory[1]
            turned = self._rotation.follow(quaternion, period_s, to_rest=True)
        reasons = Reason.none
        if not self._is_near(measured):
            reasons |= Reason.step
            self._motion.memory, self._rotation.memory = memory
            after, turned = self._motion.brake(period_s), self._rotation.brake(period_s)
            self._latch.take(Reason.none if self._is_near(measured) else Reason.tracking)
        if (np.abs(after.position - place) > SAME).any():
            reasons |= asked_too_much(self._axes, place, before, period_s)
            reasons |= Reason.workspace if self._motion.is_held_back and self.limits.pose.half_spaces else Reason.none
        if np.abs(difference(quaternion, turned.quaternion)).max() > SAME:
            reasons |= Reason.rotation
        return reasons

    def _ways_inside(self, measured: np.ndarray) -> Callable[[np.ndarray], bool] | None:
        """Whether a way is inside the half-spaces, and within a step of the measured place; None: anywhere."""
        limits = self.limits.pose
        if limits.step_m is None and not limits.half_spaces:
            return None

        def are_inside(places: np.ndarray) -> bool:
            far = 0.0 if limits.step_m is None else np.linalg.norm(places - measured[:3], axis=1).max() / limits.step_m
            return bool(far <= _ON_THE_WAY) and is_below(limits.half_spaces, places)

        return are_inside

    def _turns_inside(self, measured: np.ndarray, period_s: float) -> bool:
        most = self.limits.pose.step_rad
        angle = math.hypot(*difference(self._rotation.state.quaternion, measured[3:]).tolist())
        return most is None or angle + self._rotation.braking_rad(period_s) <= _ON_THE_WAY * most

    def _braked(self, reasons: Reason, period_s: float) -> SentPose:
        self._motion.brake(period_s)
        self._rotation.brake(period_s)
        return self._sent(reasons | self.latched)

    def _sent(self, reasons: Reason) -> SentPose:
        moved, turned = self._motion.state, self._rotation.state
        return SentPose(
            np.concatenate([moved.position, turned.quaternion]),
            np.concatenate([moved.velocity, turned.rate]),
            None if self._gripper is None else self._gripper.opening,
            reasons,
        )


def _axes(limits: PoseLimits) -> JointLimits:
    """The translation as three joints whose norm keeps the limits."""
    low, high = limits.box or ((-_REACH_M,) * 3, (_REACH_M,) * 3)
    most = (limits.speed_m_s, limits.acceleration_m_s2, limits.jerk_m_s3)
    return JointLimits(("x", "y", "z"), low, high, *((value / math.sqrt(3),) * 3 for value in most))
