"""What is compared by `robot-rl bench safety`: our two layers, and the rules of others, restated from their description.

The rules are those that LeRobot (`ensure_safe_goal_position`, `EEBoundsAndSafety`), diffusion_policy (the interpolation
process with speed caps) and SERL (clipping to a box) put between a policy and a robot; written here from what they do, not
from their code, and no more than the rule: what a driver, an impedance controller or the robot's firmware does behind it is
not in it. Each gets the numbers of safety_faults.py where it has such a number, else its own default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.pose_safety import MeasuredPose, PoseSafetyFilter, PoseSafetyLimits
from robot_rl.deploy.robot_card import PoseLimits
from robot_rl.deploy.safety import Measured, SafetyFilter, SafetyLimits


@dataclass(frozen=True)
class Numbers:
    """One set of limits for all: metres and radians, or radians for joints.

    Attributes:
        reach: of the workspace (a cube), or of each joint, on either side of zero.
        speed, acceleration, jerk: of the translation (its norm), or of each joint.
        turn, turn_acceleration: of the rotation.
        near: largest distance of a command from the measured place; near_rad: of its rotation.
        force_n: ceiling.
        stale_s: age of an observation.
        wall: half-space n . x <= d.
        jump, jump_rad: what one command may add, LeRobot's default.
    """

    reach: float = 0.5
    speed: float = 0.5
    acceleration: float = 2.0
    jerk: float = 40.0
    turn: float = 1.0
    turn_acceleration: float = 4.0
    near: float = 0.1
    near_rad: float = 0.5
    force_n: float = 30.0
    stale_s: float = 0.2
    wall: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.4)
    jump: float = 0.05
    jump_rad: float = 0.1


NUMBERS = Numbers()


@dataclass(frozen=True)
class ArmState:
    """What the arm says: place (3,), rotation wxyz (4,), age of the observation, and force on z."""

    place: Float64[Array, "3"]
    quaternion: Float64[Array, "4"]
    age_s: float = 0.0
    force_n: float = 0.0


@runtime_checkable
class Rule(Protocol):
    """A rule between policy and robot: one action in, what reaches the robot out; it may raise."""

    @property
    def is_pose(self) -> bool:
        """Whether an action is place and quaternion wxyz (7,); else three joints (3,)."""
        ...

    @property
    def has_stop(self) -> bool:
        """Whether it knows an emergency stop."""
        ...

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped until a person releases it."""
        ...

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """What is sent for an action that came `period_s` after the last one."""
        ...

    def stop(self) -> None:
        """Emergency stop."""
        ...

    def release(self, arm: ArmState) -> None:
        """A person allows motion."""
        ...


@dataclass
class OurJoints:
    """robot_rl/deploy/safety.py."""

    is_pose = False
    has_stop = True
    layer: SafetyFilter = field(init=False)

    @property
    def is_stopped(self) -> bool:
        """See Rule."""
        return bool(self.layer.latched)

    def __post_init__(self) -> None:
        most = [(value,) * 3 for value in (NUMBERS.speed, NUMBERS.acceleration, NUMBERS.jerk)]
        joints = JointLimits(("x", "y", "z"), (-NUMBERS.reach,) * 3, (NUMBERS.reach,) * 3, *most)
        limits = SafetyLimits(
            joints, half_spaces=(NUMBERS.wall,), force_n=NUMBERS.force_n, tracking=(NUMBERS.near,) * 3,
            stale_s=NUMBERS.stale_s,
        )  # fmt: skip
        self.layer = SafetyFilter(limits, np.zeros(3), forward=lambda position: position)

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule."""
        wrench = np.array([0, 0, arm.force_n, 0, 0, 0], np.float64)
        return self.layer.step(action, period_s, Measured(arm.place, arm.age_s, wrench)).position

    def stop(self) -> None:
        """See Rule."""
        self.layer.stop()

    def release(self, arm: ArmState) -> None:
        """See Rule."""
        self.layer.release(arm.place)


@dataclass
class OurPose:
    """robot_rl/deploy/pose_safety.py."""

    is_pose = True
    has_stop = True
    layer: PoseSafetyFilter = field(init=False)

    @property
    def is_stopped(self) -> bool:
        """See Rule."""
        return bool(self.layer.latched)

    def __post_init__(self) -> None:
        pose = PoseLimits(
            speed_m_s=NUMBERS.speed, acceleration_m_s2=NUMBERS.acceleration, jerk_m_s3=NUMBERS.jerk,
            rotation_rad_s=NUMBERS.turn, rotation_rad_s2=NUMBERS.turn_acceleration,
            box=((-NUMBERS.reach,) * 3, (NUMBERS.reach,) * 3), half_spaces=(NUMBERS.wall,), step_m=NUMBERS.near,
            step_rad=NUMBERS.near_rad,
        )  # fmt: skip
        limits = PoseSafetyLimits(pose, force_n=NUMBERS.force_n, stale_s=NUMBERS.stale_s)
        self.layer = PoseSafetyFilter(limits, np.array([0.0, 0, 0, 1, 0, 0, 0]))

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule."""
        measured = MeasuredPose(
            np.concatenate([arm.place, arm.quaternion]), arm.age_s, np.array([0, 0, arm.force_n, 0, 0, 0], np.float64)
        )
        return self.layer.step(action, period_s, measured).pose

    def stop(self) -> None:
        """See Rule."""
        self.layer.stop()

    def release(self, arm: ArmState) -> None:
        """See Rule."""
        self.layer.release(np.concatenate([arm.place, arm.quaternion]))


class _WithoutStop:
    """A rule alone has no stop; SERL even clears the robot's errors before each command."""

    has_stop = False
    is_stopped = False

    def stop(self) -> None:
        """Nothing."""

    def release(self, arm: ArmState) -> None:
        """Nothing."""


class LeRobotRelative(_WithoutStop):
    """LeRobot `ensure_safe_goal_position`: each goal within `max_relative_target` of the present position."""

    is_pose = False

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule. Python's min and max keep a NaN that comes first, as theirs do."""
        sent = []
        for goal, present in zip(action, arm.place.tolist(), strict=True):
            sent.append(present + max(min(float(goal) - present, NUMBERS.jump), -NUMBERS.jump))
        return np.array(sent, np.float64)


class LeRobotBounds(_WithoutStop):
    """LeRobot `EEBoundsAndSafety`: clip to a box, then refuse a step beyond 5 cm from the last place."""

    is_pose = True

    def __init__(self) -> None:
        self._last: np.ndarray | None = None

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule."""
        if len(action) != 7:
            raise ValueError("an action of 7 numbers")
        place = np.clip(action[:3], -NUMBERS.reach, NUMBERS.reach)
        if self._last is not None and float(np.linalg.norm(place - self._last)) > NUMBERS.jump:
            raise ValueError("a jump")
        self._last = place
        return np.concatenate([place, action[3:]])


class Interpolation(_WithoutStop):
    """diffusion_policy's interpolation process: on to a waypoint in time, or later where the speed caps say so."""

    is_pose = True

    def __init__(self) -> None:
        from scipy.spatial.transform import Rotation

        self._rotation = Rotation
        self._place, self._turn = np.zeros(3), Rotation.identity()

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule. A waypoint whose time is over is dropped."""
        if period_s <= 0:
            return self._sent()
        place, turn = np.asarray(action[:3], np.float64), self._rotation.from_quat(np.roll(action[3:], -1))
        way = (turn * self._turn.inv()).as_rotvec()
        needed = [float(np.linalg.norm(place - self._place)) / NUMBERS.speed, float(np.linalg.norm(way)) / NUMBERS.turn]
        part = period_s / max(period_s, *needed)
        self._place = self._place + part * (place - self._place)
        self._turn = self._rotation.from_rotvec(part * way) * self._turn
        return self._sent()

    def _sent(self) -> np.ndarray:
        return np.concatenate([self._place, np.roll(self._turn.as_quat(), 1)])


class BoxClip(_WithoutStop):
    """SERL: clip to a box of xyz and of Euler angles, the first one by its magnitude; no memory."""

    is_pose = True

    def __init__(self) -> None:
        from scipy.spatial.transform import Rotation

        self._rotation = Rotation

    def send(self, action: Any, period_s: float, arm: ArmState) -> Any:
        """See Rule."""
        place = np.clip(action[:3], -NUMBERS.reach, NUMBERS.reach)
        roll, pitch, yaw = self._rotation.from_quat(np.roll(action[3:], -1)).as_euler("xyz")
        angles = [
            math.copysign(float(np.clip(abs(roll), 0, math.pi)), roll), float(np.clip(pitch, -1.5, 1.5)),
            float(np.clip(yaw, -math.pi, math.pi)),
        ]  # fmt: skip
        return np.concatenate([place, np.roll(self._rotation.from_euler("xyz", angles).as_quat(), 1)])


RULES: dict[str, type] = {
    "ours, joints": OurJoints,
    "ours, pose": OurPose,
    "LeRobot relative": LeRobotRelative,
    "LeRobot bounds": LeRobotBounds,
    "diffusion_policy": Interpolation,
    "SERL": BoxClip,
}
