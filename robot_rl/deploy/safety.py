"""The safety layer between a policy and joints: what leaves it is finite and within every limit, whatever comes in.

In this order: finite -> shape -> workspace -> joint position (with room to brake), velocity, acceleration, jerk
(motion.py) -> force and torque -> collision hook. The result says what is to be sent and why it is not what was asked.
Two kinds of reasons: those that only bend an action, and those that stop: the joints brake within their limits and hold
until a person calls `release`. A bad number never enters the state: after one NaN the next action is judged as before.
pose_safety.py is the same layer for robots that are commanded by a pose; what both need is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.motion import MARGIN_M, JointLimits, MotionLimiter, MotionState, is_below
from robot_rl.errors import ConfigError, DeployError

_REACHED = 1e-9
# Less than an encoder sees; radians or metres.
SAME = 1e-6
_BISECTIONS = 20


class Reason(IntFlag):
    """Why something else was sent than asked; a bitmask.

    The upper half stops the robot until a person releases it.
    """

    none = 0
    workspace = 1 << 0
    position = 1 << 1
    velocity = 1 << 2
    acceleration = 1 << 3
    jerk = 1 << 4
    period = 1 << 5
    stale = 1 << 6
    range = 1 << 7
    step = 1 << 8
    rotation = 1 << 9
    gripper = 1 << 10
    policy_late = 1 << 11
    not_finite = 1 << 16
    wrong_size = 1 << 17
    tracking = 1 << 18
    force = 1 << 19
    collision = 1 << 20
    emergency = 1 << 21
    measured_not_finite = 1 << 22
    not_a_rotation = 1 << 23
    policy_lost = 1 << 24
    loop_lost = 1 << 25
    robot_lost = 1 << 26


STOPS = Reason(sum(reason for reason in Reason if reason >= Reason.not_finite))
_ASKED = (Reason.position, Reason.velocity, Reason.acceleration, Reason.jerk)


@dataclass(frozen=True)
class SafetyLimits:
    """What the layer enforces.

    Attributes:
        joints: limits of motion.
        box: lowest and highest corner of the end effector's workspace in the base frame, metres; None: no box.
        half_spaces: rows (nx, ny, nz, d): n . x <= d must hold, metres.
        force_n, torque_nm: largest norms of the measured wrench; None: not looked at.
        tracking: largest difference between the command and the measured joints, per joint, in their units; None: any.
        stale_s: age of the newest observation beyond which the robot holds.
    """

    joints: JointLimits
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    half_spaces: tuple[tuple[float, float, float, float], ...] = field(default=())
    force_n: float | None = None
    torque_nm: float | None = None
    tracking: tuple[float, ...] | None = None
    stale_s: float = 0.2


@dataclass(frozen=True)
class Measured:
    """What the robot says of itself at this step.

    Attributes:
        position: of the joints, float64 (J,).
        age_s: of the newest observation that the action answers to.
        wrench: force N and torque N m, float64 (6,), or None.
    """

    position: Float64[Array, " J"]
    age_s: float
    wrench: Float64[Array, "6"] | None = None


@dataclass(frozen=True)
class Sent:
    """What to send: joint positions, and where they are going; and why it is not what was asked."""

    position: Float64[Array, " J"]
    velocity: Float64[Array, " J"]
    reasons: Reason

    @property
    def is_stopping(self) -> bool:
        """Whether the robot brakes or holds for a reason that a person must release."""
        return bool(self.reasons & STOPS)


class SafetyFilter:
    """One robot's safety layer; see the text of this module.

    Args:
        limits: see SafetyLimits.
        position: of the joints now, at rest, float64 (J,).
        forward: joint positions -> position of the end effector in the base frame, metres (3,); needed for a workspace.
        collides: joint positions -> whether the robot would hit something; None: not looked at.

    Raises:
        ConfigError: a workspace without `forward`, or a limit that is no positive number.
        DeployError: a start outside the limits.
    """

    def __init__(
        self,
        limits: SafetyLimits,
        position: Float64[Array, " J"],
        *,
        forward: Callable[[np.ndarray], np.ndarray] | None = None,
        collides: Callable[[np.ndarray], bool] | None = None,
    ) -> None:
        _check(limits, has_forward=forward is not None)
        self.limits, self._forward, self._collides = limits, forward, collides
        self._motion = MotionLimiter(limits.joints, position)
        self._latch = Latch()
        if not self._is_inside(np.asarray(position, np.float64)):
            raise DeployError(
                "workspace", expected="a start inside", got=str(None if forward is None else forward(position)),
                hint="Move the arm inside by hand, or correct box and half_spaces.",
            )  # fmt: skip

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move."""
        return self._latch.reasons

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """Brake from the next step on, and hold until `release`. Callable at any time, also twice."""
        self._latch.stop(reason)

    def release(self, position: Float64[Array, " J"] | None = None) -> None:
        """A person allows motion again; only at rest.

        Args:
            position: measured, where motion goes on from; None: from what was sent last. Needed after `tracking`.

        Raises:
            DeployError: the joints still move, or the position is outside the limits.
        """
        self._latch.require_rest(self._motion.state.velocity)
        if position is not None:
            self._motion = MotionLimiter(self.limits.joints, np.asarray(position, np.float64))
        self._latch.reasons = Reason.none

    def step(self, action: Sequence[float] | Array, period_s: float, measured: Measured) -> Sent:
        """Judge one action: target positions of the joints, in the order of the limits.

        Args:
            action: anything; only (J,) finite numbers can move the robot.
            period_s: time since the last step; without a positive finite one nothing moves.
            measured: see Measured.
        """
        reasons = self._judge_measured(measured)
        target, bad = finite_target(action, self._motion.state.position)
        reasons |= bad
        self._latch.take(reasons)
        if not is_period(period_s):
            return self._sent(reasons | self.latched | Reason.period)
        if self.latched or reasons & Reason.stale:
            self._motion.brake(period_s)
            return self._sent(reasons | self.latched)
        allowed = self._into_workspace(target)
        if allowed is not target:
            reasons |= Reason.workspace
        before = self._motion.state
        if self._collides is not None and self._collides(allowed):
            self._latch.take(Reason.collision)
            self._motion.brake(period_s)
            return self._sent(reasons | self.latched)
        after = self._motion.follow(allowed, period_s, is_inside=self._are_inside if self._has_workspace else None)
        if self._motion.is_held_back:
            reasons |= Reason.workspace
        if (np.abs(after.position - target) > SAME).any():
            reasons |= asked_too_much(self.limits.joints, target, before, period_s)
        return self._sent(reasons)

    def _judge_measured(self, measured: Measured) -> Reason:
        limits = self.limits
        position = np.asarray(measured.position, np.float64)
        if position.shape != (len(limits.joints.names),) or not np.isfinite(position).all():
            return Reason.measured_not_finite
        reasons = judge_robot(measured.age_s, measured.wrench, limits)
        if limits.tracking is not None and not reasons & Reason.stale:  # an old position says nothing of it
            far = np.abs(position - self._motion.state.position) > np.asarray(limits.tracking)
            reasons |= Reason.tracking if far.any() else Reason.none
        return reasons

    def _into_workspace(self, target: np.ndarray) -> np.ndarray:
        """The target itself, or the last point inside on the straight way to it in joint space."""
        clipped = np.clip(target, self.limits.joints.low, self.limits.joints.high)
        if self._is_inside(clipped):
            return target
        here, low, high = self._motion.state.position, 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._is_inside(here + middle * (clipped - here)) else (low, middle)
        inside: np.ndarray = here + low * (clipped - here)
        return inside

    @property
    def _has_workspace(self) -> bool:
        return self.limits.box is not None or bool(self.limits.half_spaces)

    def _are_inside(self, positions: np.ndarray) -> bool:
        return all(self._is_inside(position) for position in positions)

    def _is_inside(self, position: np.ndarray) -> bool:
        if self._forward is None:
            return True
        place = np.asarray(self._forward(position), np.float64)
        box = self.limits.box
        in_box = box is None or bool(
            ((place >= np.add(box[0], MARGIN_M)) & (place <= np.subtract(box[1], MARGIN_M))).all()
        )
        return in_box and is_below(self.limits.half_spaces, place)

    def _sent(self, reasons: Reason) -> Sent:
        state = self._motion.state
        return Sent(state.position.copy(), state.velocity.copy(), reasons)


class Latch:
    """Why a robot is stopped, until a person releases it."""

    def __init__(self) -> None:
        self.reasons = Reason.none

    def stop(self, reason: Reason) -> None:
        """Latch a reason from outside; one that would not stop counts as an emergency."""
        self.reasons |= reason & STOPS or Reason.emergency

    def take(self, reasons: Reason) -> None:
        """Latch those of the reasons that stop."""
        self.reasons |= reasons & STOPS

    def require_rest(self, *velocities: Float64[Array, " D"]) -> None:
        """Refuse a release in motion.

        Raises:
            DeployError: a velocity is not zero.
        """
        moving = np.concatenate(velocities)
        if np.abs(moving).max() > _REACHED:
            raise DeployError(
                "safety", expected="a robot at rest", got=f"velocity {moving}", hint="Wait until it has stopped."
            )


@runtime_checkable
class Ceilings(Protocol):
    """The part of the limits that is the same for joints and poses; see SafetyLimits."""

    @property
    def stale_s(self) -> float: ...
    @property
    def force_n(self) -> float | None: ...
    @property
    def torque_nm(self) -> float | None: ...


def judge_robot(age_s: float, wrench: Float64[Array, " W"] | None, ceilings: Ceilings) -> Reason:
    """What age and wrench of a reading say; see Measured."""
    felt = np.zeros(6) if wrench is None else np.asarray(wrench, np.float64)
    if not math.isfinite(age_s) or felt.shape != (6,) or not np.isfinite(felt).all():
        return Reason.measured_not_finite
    reasons = Reason.none if 0 <= age_s <= ceilings.stale_s else Reason.stale
    for part, most in ((felt[:3], ceilings.force_n), (felt[3:], ceilings.torque_nm)):
        if most is not None and math.hypot(*part.tolist()) > most:
            reasons |= Reason.force
    return reasons


def is_period(period_s: float) -> bool:
    """Whether a time can pass: a finite number above zero."""
    return math.isfinite(period_s) and period_s > 0


def finite_target(action: Sequence[float] | Array, here: Float64[Array, " D"]) -> tuple[Float64[Array, " D"], Reason]:
    """An action as finite float64 (D,), or where the robot is with the reason."""
    try:
        target = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError):
        return here, Reason.wrong_size
    if target.shape != here.shape:
        return here, Reason.wrong_size
    return (target, Reason.none) if np.isfinite(target).all() else (here, Reason.not_finite)


def asked_too_much(limits: JointLimits, target: Float64[Array, " J"], before: MotionState, period_s: float) -> Reason:
    """Which limits a jump to the target would break, from what the joints do now."""
    here = (before.position.tolist(), before.velocity.tolist(), before.acceleration.tolist())
    most = (limits.low, limits.high, limits.velocity, limits.acceleration, limits.jerk)
    is_beyond = list[tuple[bool, ...]]()
    # Plain numbers: for a few joints numpy's calls take ten times as long.
    for place, position, speed, gain, low, high, *rates in zip(target.tolist(), *here, *most, strict=True):
        clipped = min(max(place, low), high)
        velocity = (clipped - position) / period_s
        acceleration = (velocity - speed) / period_s
        asked = (velocity, acceleration, (acceleration - gain) / period_s)
        is_beyond.append((clipped != place, *(abs(one) > rate for one, rate in zip(asked, rates, strict=True))))
    joints = zip(_ASKED, zip(*is_beyond, strict=True), strict=True)
    return Reason(sum(reason for reason, is_joint_beyond in joints if any(is_joint_beyond)))


def check_ceilings(
    ceilings: Ceilings, half_spaces: tuple[tuple[float, float, float, float], ...], **others: float | None
) -> None:
    """Refuse limits that limit nothing.

    Raises:
        ConfigError: a limit that is no positive number, or a half-space without a direction.
    """
    numbers = {"stale_s": ceilings.stale_s, "force_n": ceilings.force_n, "torque_nm": ceilings.torque_nm} | others
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"safety.{name}", expected="a positive number", got=str(value), hint="Correct the limit.")
    for row in half_spaces:
        if len(row) != 4 or not np.isfinite(row).all() or not any(row[:3]):
            raise ConfigError(
                "safety.half_spaces", expected="finite (nx, ny, nz, d)", got=str(row), hint="n . x <= d, metres."
            )


def _check(limits: SafetyLimits, *, has_forward: bool) -> None:
    if (limits.box is not None or limits.half_spaces) and not has_forward:
        raise ConfigError(
            "safety.box",
            expected="forward kinematics with a workspace",
            got="none",
            hint="Give `forward`, or no workspace.",
        )
    tracking = zip(limits.joints.names, limits.tracking or (), strict=False)
    check_ceilings(limits, limits.half_spaces, **{f"tracking of {name}": value for name, value in tracking})
    if limits.tracking is not None and len(limits.tracking) != len(limits.joints.names):
        raise ConfigError(
            "safety.tracking", expected=f"{len(limits.joints.names)} numbers", got=str(len(limits.tracking)),
            hint=f"One for each of {', '.join(limits.joints.names)}.",
        )  # fmt: skip
