"""The safety layer between a policy and joints: what leaves it is finite and within every limit, whatever comes in.

In this order: finite -> shape -> workspace -> joint position (with room to brake), velocity, acceleration, jerk
(motion.py) -> force and torque -> collision hook. The result says what is to be sent and why it is not what was asked.
Two kinds of reasons: those that only bend an action, and those that stop: the joints brake within their limits and hold
until a person calls `release`. A bad number never enters the state: after one NaN the next action is judged as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.motion import JointLimits, MotionLimiter, MotionState
from robot_rl.errors import ConfigError, DeployError

_REACHED = 1e-9
# Less than an encoder sees; radians or metres.
_SAME = 1e-6
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
    not_finite = 1 << 16
    wrong_size = 1 << 17
    tracking = 1 << 18
    force = 1 << 19
    collision = 1 << 20
    emergency = 1 << 21
    measured_not_finite = 1 << 22


STOPS = Reason(sum(reason for reason in Reason if reason >= Reason.not_finite))


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
        self._latched = Reason.none
        if not self._is_inside(np.asarray(position, np.float64)):
            raise DeployError(
                "workspace", expected="a start inside", got=str(None if forward is None else forward(position)),
                hint="Move the arm inside by hand, or correct box and half_spaces.",
            )  # fmt: skip

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move."""
        return self._latched

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """Brake from the next step on, and hold until `release`. Callable at any time, also twice."""
        self._latched |= reason & STOPS or Reason.emergency

    def release(self) -> None:
        """A person allows motion again; only at rest.

        Raises:
            DeployError: the joints still move.
        """
        if np.abs(self._motion.state.velocity).max() > _REACHED:
            raise DeployError(
                "safety", expected="a robot at rest", got=f"velocity {self._motion.state.velocity}",
                hint="Wait until it has stopped.",
            )  # fmt: skip
        self._latched = Reason.none

    def step(self, action: Sequence[float] | Array, period_s: float, measured: Measured) -> Sent:
        """Judge one action: target positions of the joints, in the order of the limits.

        Args:
            action: anything; only (J,) finite numbers can move the robot.
            period_s: time since the last step; without a positive finite one nothing moves.
            measured: see Measured.
        """
        reasons = self._judge_measured(measured)
        if not (math.isfinite(period_s) and period_s > 0):
            return self._sent(reasons | Reason.period)
        target, bad = self._target(action)
        reasons |= bad
        self._latched |= reasons & STOPS
        if self._latched or reasons & Reason.stale:
            self._motion.brake(period_s)
            return self._sent(reasons | self._latched)
        allowed = self._into_workspace(target)
        if allowed is not target:
            reasons |= Reason.workspace
        before = self._motion.state
        if self._collides is not None and self._collides(allowed):
            self._latched |= Reason.collision
            self._motion.brake(period_s)
            return self._sent(reasons | self._latched)
        after = self._motion.follow(allowed, period_s)
        if (np.abs(after.position - target) > _SAME).any():
            reasons |= self._asked_too_much(target, before, period_s)
        return self._sent(reasons)

    def _judge_measured(self, measured: Measured) -> Reason:
        limits, reasons = self.limits, Reason.none
        numbers = [np.asarray(measured.position, np.float64).ravel(), np.array([measured.age_s], np.float64)]
        if measured.wrench is not None:
            numbers.append(np.asarray(measured.wrench, np.float64).ravel())
        if not np.isfinite(np.concatenate(numbers)).all() or numbers[0].shape != (len(limits.joints.names),):
            return Reason.measured_not_finite
        if measured.age_s > limits.stale_s or measured.age_s < 0:
            reasons |= Reason.stale
        if limits.tracking is not None:
            far = np.abs(numbers[0] - self._motion.state.position) > np.asarray(limits.tracking)
            reasons |= Reason.tracking if far.any() else Reason.none
        if measured.wrench is not None:
            force, torque = (float(np.linalg.norm(part)) for part in np.split(numbers[2], 2))
            is_hard = (limits.force_n is not None and force > limits.force_n) or (
                limits.torque_nm is not None and torque > limits.torque_nm
            )
            reasons |= Reason.force if is_hard else Reason.none
        return reasons

    def _target(self, action: Sequence[float] | Array) -> tuple[np.ndarray, Reason]:
        """The action as finite float64 (J,), or where the joints are with the reason."""
        here = self._motion.state.position
        try:
            target = np.asarray(action, dtype=np.float64)
        except (TypeError, ValueError):
            return here, Reason.wrong_size
        if target.shape != here.shape:
            return here, Reason.wrong_size
        return (target, Reason.none) if np.isfinite(target).all() else (here, Reason.not_finite)

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

    def _is_inside(self, position: np.ndarray) -> bool:
        if self._forward is None:
            return True
        place = np.asarray(self._forward(position), np.float64)
        box, planes = self.limits.box, np.asarray(self.limits.half_spaces, np.float64).reshape(-1, 4)
        in_box = box is None or bool(((place >= box[0]) & (place <= box[1])).all())
        return in_box and bool((planes[:, :3] @ place <= planes[:, 3]).all())

    def _asked_too_much(self, target: np.ndarray, before: MotionState, period_s: float) -> Reason:
        """Which limits a jump to the target would break, from what the joints do now."""
        joints, reasons = self.limits.joints, Reason.none
        clipped = np.clip(target, joints.low, joints.high)
        if (clipped != target).any():
            reasons |= Reason.position
        with np.errstate(over="ignore"):
            velocity = (clipped - before.position) / period_s
            acceleration = (velocity - before.velocity) / period_s
            jerk = (acceleration - before.acceleration) / period_s
        for reason, asked, most in (
            (Reason.velocity, velocity, joints.velocity),
            (Reason.acceleration, acceleration, joints.acceleration),
            (Reason.jerk, jerk, joints.jerk),
        ):
            if (np.abs(asked) > np.asarray(most)).any():
                reasons |= reason
        return reasons

    def _sent(self, reasons: Reason) -> Sent:
        state = self._motion.state
        return Sent(state.position, state.velocity, reasons)


def _check(limits: SafetyLimits, *, has_forward: bool) -> None:
    if (limits.box is not None or limits.half_spaces) and not has_forward:
        raise ConfigError(
            "safety.box",
            expected="forward kinematics with a workspace",
            got="none",
            hint="Give `forward`, or no workspace.",
        )
    numbers = {"stale_s": limits.stale_s, "force_n": limits.force_n, "torque_nm": limits.torque_nm}
    numbers |= {f"tracking of {name}": x for name, x in zip(limits.joints.names, limits.tracking or (), strict=False)}
    for name, value in numbers.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"safety.{name}", expected="a positive number", got=str(value), hint="Correct the limit.")
    if limits.tracking is not None and len(limits.tracking) != len(limits.joints.names):
        raise ConfigError(
            "safety.tracking", expected=f"{len(limits.joints.names)} numbers", got=str(len(limits.tracking)),
            hint=f"One for each of {', '.join(limits.joints.names)}.",
        )  # fmt: skip
