"""What a policy's action means for a robot: numbers and their declaration in, a Goal out.

Everything is read from the spec that travels with the policy: kind, reference and frame, rotation, unit of each element,
ends of the gripper, bounds. Nothing is guessed: what can't be read is refused when the reader is made, with the declaration
in the error. How elements are found:

    joints     by the name of the joint in the element's meaning, in whatever order
    pose       three lengths, then the rotation; the unit of each element must fit
    gripper    the one element whose meaning names it; its closed and open end become the ends of the robot's card

A unit is a name ("m", "rad", "1", "m/s", "deg"), or what numbers stand for: "1 = 0.1 m", "-1 = -0.01 m, 1 = 0.04 m". Behind
it ", norm <= 1" says that elements of one vector are shortened together to this norm, in numbers of the action.
A delta adds to the reading (`measured`) or to what was sent last (`target`; the reading before anything was sent). A
velocity moves on for one control period from what was sent last. `rotation: none` leaves the rotation as it is there.
A robot commanded by twists gets the one that takes it there in one control period; an absolute action is refused there.
Rotations in the base frame turn about its axes, in the tool frame about the tool's. Needs scipy for rotations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.rotations import convert_rotations
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.rotation_motion import as_unit, difference, from_vector, multiply
from robot_rl.deploy.safety import Reason, finite_target
from robot_rl.errors import ConfigError, DataError
from robot_rl.specs import ActionKind, DeltaReference, EnvSpec
from robot_rl.types import Goal, Reading

_UNTURNED = np.array([1.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True)
class Target:
    """What an action asks for, and why it is not what the numbers say.

    Attributes:
        goal: NaN where the action can't be used, so that the safety layer stops.
        reasons: range, or of those that stop: not_finite, wrong_size, not_a_rotation, measured_not_finite.
    """

    goal: Goal
    reasons: Reason


class ActionReader:
    """Reads the actions of one policy for one robot.

    Args:
        spec: the policy's.
        card: the robot's.
        delta_gain: longer deltas for readings that come late. An arm that follows its goals with time constant T (s) moves
            at delta / T; where deltas start from a reading of age a, it lags a times its speed behind and moves at
            delta / (T + a). 1 + a / T would make up for it in steady motion, half of that is what overshoots least
            (docs/ros2.md). Where the arm stands, and so where it comes to rest, age changes nothing.

    Raises:
        ConfigError: a gain outside 1..2, or one for actions that are not deltas from what is measured.
        DeployError: a declaration that can't be read, does not fit itself, or does not fit the robot.
    """

    def __init__(self, spec: EnvSpec, card: RobotCard, *, delta_gain: float = 1.0) -> None:
        self._layout = layout = ActionLayout(spec, card)
        self._card, self._meaning, self._arm = card, layout.meaning, layout.arm
        self._is_joint, self._is_twist, self._period_s = layout.is_joint, layout.is_twist, layout.period_s
        self._gain = delta_gain
        if not 1.0 <= delta_gain <= 2.0:
            raise ConfigError("delta_gain", expected="1 to 2", got=str(delta_gain), hint="1 leaves deltas as they are.")
        late = self._meaning.kind is ActionKind.delta and self._meaning.delta_reference is DeltaReference.measured
        if delta_gain != 1.0 and (self._is_twist or not late):
            raise ConfigError(
                "delta_gain", expected="1: only deltas from what is measured get shorter by age", got=str(delta_gain),
                hint=f"The actions are {self._meaning.kind} from {self._meaning.delta_reference}, sent as {card.command}.",
            )  # fmt: skip

    def read(self, action: Sequence[float] | Array, *, reading: Reading, sent: Goal | None) -> Target:
        """One action as a goal.

        Args:
            action: float32 (A,); anything else gives a goal of NaN.
            reading: newest.
            sent: what the robot said it was sent last; None before the first.
        """
        layout = self._layout
        numbers, reasons = finite_target(action, np.zeros(layout.size))
        if reasons:
            return Target(self._goal(None), reasons)
        bounded = numbers.copy()
        for group, most in layout.norms:
            length = math.hypot(*numbers[group].tolist())
            if length > most:
                bounded[group] *= most / length
        bounded = np.clip(bounded, layout.low, layout.high)
        if (bounded != numbers).any():
            reasons |= Reason.range
        values = bounded * layout.scale + layout.offset
        arm, bad = (self._joints if self._is_joint else self._pose)(values[self._arm], reading, sent)
        gripper = self._opening(float(bounded[layout.gripper])) if layout.gripper is not None else None
        return Target(self._goal(arm, gripper), reasons | bad)

    def _joints(self, values: np.ndarray, reading: Reading, sent: Goal | None) -> tuple[np.ndarray | None, Reason]:
        if self._meaning.kind is ActionKind.absolute:
            return values, Reason.none
        start = self._start(reading.position, None if sent is None else sent.position, size=len(values))
        if start is None:
            return None, Reason.measured_not_finite
        reach = self._period_s if self._meaning.kind is ActionKind.velocity else self._gain
        return start + values * reach, Reason.none

    def _pose(self, values: np.ndarray, reading: Reading, sent: Goal | None) -> tuple[np.ndarray | None, Reason]:
        kind, start = self._meaning.kind, self._start(reading.pose, None if sent is None else sent.pose, size=7)
        if kind is ActionKind.velocity:
            values = values * self._period_s
        turn, bad = self._turn(values[3:])
        if bad:
            return None, bad
        if kind is ActionKind.absolute and turn is not None:
            return np.concatenate([values[:3], turn]), Reason.none
        here = None if start is None else as_unit(start[3:])
        if start is None or here is None:
            return None, Reason.measured_not_finite
        if kind is ActionKind.absolute:
            return np.concatenate([values[:3], here]), Reason.none
        is_tool, turn = self._meaning.frame == "tool", _UNTURNED if turn is None else turn
        way = self._gain * (turned(values[:3], here) if is_tool else values[:3])
        turn = turn if self._gain == 1.0 else from_vector(self._gain * difference(turn, _UNTURNED))
        there = multiply(here, turn) if is_tool else multiply(turn, here)
        if self._is_twist:
            return np.concatenate([way, difference(there, here)]) / self._period_s, Reason.none
        return np.concatenate([start[:3] + way, there]), Reason.none

    def _start(self, measured: np.ndarray | None, sent: np.ndarray | None, *, size: int) -> np.ndarray | None:
        """What a delta, or a part that is left alone, begins from; None when it is not known."""
        is_measured = self._meaning.delta_reference is DeltaReference.measured
        place = measured if is_measured or sent is None else sent
        return place if place is not None and place.shape == (size,) and np.isfinite(place).all() else None

    def _turn(self, values: np.ndarray) -> tuple[np.ndarray | None, Reason]:
        """The rotation part as a quaternion wxyz; None where the action has none."""
        if self._meaning.rotation == "none":
            return None, Reason.none
        try:
            quaternion = convert_rotations(values[None], self._meaning.rotation, "quat_wxyz", where="action")[0]
        except DataError:
            return None, Reason.not_a_rotation
        return quaternion, Reason.none

    def _opening(self, number: float) -> float:
        closed, opened = self._layout.ends
        gripper = self._card.gripper
        assert gripper is not None
        return gripper.closed + (number - closed) / (opened - closed) * (gripper.open - gripper.closed)

    def _goal(self, arm: np.ndarray | None, gripper: float | None = None) -> Goal:
        if self._is_joint:
            return Goal(position=np.full(len(self._arm), np.nan) if arm is None else arm, gripper=gripper)
        if self._is_twist:
            return Goal(twist=np.full(6, np.nan) if arm is None else arm, gripper=gripper)
        return Goal(pose=np.full(7, np.nan) if arm is None else arm, gripper=gripper)


def turned(vector: Float64[Array, "3"], quaternion: Float64[Array, "4"]) -> Float64[Array, "3"]:
    """A vector of the turned frame in the frame it is turned in."""
    return multiply(multiply(quaternion, np.concatenate([[0.0], vector])), quaternion * [1.0, -1.0, -1.0, -1.0])[1:]
