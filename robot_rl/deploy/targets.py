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
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.element_names import gripper_elements, names_of, units_of
from robot_rl.data.rotations import convert_rotations, rotation_size
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.deploy.rotation_motion import as_unit, difference, multiply
from robot_rl.deploy.safety import Reason, finite_target
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import ActionKind, DeltaReference, EnvSpec
from robot_rl.types import Goal, Reading

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_STANDS_FOR = re.compile(rf"({_NUMBER})\s*=\s*({_NUMBER})\s*(\S+)")
_NORM = re.compile(rf",\s*norm\s*<=\s*({_NUMBER})\s*$")
_GRIPPER_END = re.compile(rf"\s*({_NUMBER})\s*\w*\s+(closed|open)\b")
_UNITS = {
    "m": ("length", 1.0), "cm": ("length", 1e-2), "mm": ("length", 1e-3),
    "rad": ("angle", 1.0), "deg": ("angle", math.pi / 180), "1": ("number", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What an action asks for, and why it is not what the numbers say.

    Attributes:
        goal: NaN where the action can't be used, so that the safety layer stops.
        reasons: range, or of those that stop: not_finite, wrong_size, not_a_rotation, measured_not_finite.
    """

    goal: Goal
    reasons: Reason


@dataclass(frozen=True)
class _Element:
    """One number of an action: value = number * scale + offset, of a quantity, and of a vector with a largest norm."""

    quantity: str
    scale: float
    offset: float
    norm: float | None


class ActionReader:
    """Reads the actions of one policy for one robot.

    Args:
        spec: the policy's.
        card: the robot's.

    Raises:
        DeployError: a declaration that can't be read, does not fit itself, or does not fit the robot.
    """

    def __init__(self, spec: EnvSpec, card: RobotCard) -> None:
        self._spec, self._card, self._meaning = spec, card, spec.action_semantics
        self._size, self._period_s = spec.action.size, 1 / spec.control_hz
        names = names_of(spec.action)
        elements = [self._element(unit) for unit in units_of(spec.action)]
        self._scale = np.array([element.scale for element in elements])
        self._offset = np.array([element.offset for element in elements])
        self._low, self._high = self._bound(spec.action.low, -math.inf), self._bound(spec.action.high, math.inf)
        self._gripper, self._ends = self._read_gripper(names)
        self._arm = [index for index in range(self._size) if index != self._gripper]
        self._is_joint, self._is_twist = self._meaning.frame == "joint", card.command is CommandKind.twist
        self._check_kind()
        if self._is_joint:
            self._arm = self._by_name(names)
            wanted: list[tuple[str, ...]] = [("length", "angle")] * len(self._arm)
        else:
            wanted = [("length",), ("length",), ("length",), *[self._of_rotation()] * self._rotation_size()]
        self._check_units(elements, wanted)
        self._norms = self._vectors(elements)

    def read(self, action: Sequence[float] | Array, *, reading: Reading, sent: Goal | None) -> Target:
        """One action as a goal.

        Args:
            action: float32 (A,); anything else gives a goal of NaN.
            reading: newest.
            sent: what the robot said it was sent last; None before the first.
        """
        numbers, reasons = finite_target(action, np.zeros(self._size))
        if reasons:
            return Target(self._goal(None), reasons)
        bounded = numbers.copy()
        for group, most in self._norms:
            length = math.hypot(*numbers[group].tolist())
            if length > most:
                bounded[group] *= most / length
        bounded = np.clip(bounded, self._low, self._high)
        if (bounded != numbers).any():
            reasons |= Reason.range
        values = bounded * self._scale + self._offset
        arm, bad = (self._joints if self._is_joint else self._pose)(values[self._arm], reading, sent)
        gripper = self._opening(float(bounded[self._gripper])) if self._gripper is not None else None
        return Target(self._goal(arm, gripper), reasons | bad)

    def _joints(self, values: np.ndarray, reading: Reading, sent: Goal | None) -> tuple[np.ndarray | None, Reason]:
        if self._meaning.kind is ActionKind.absolute:
            return values, Reason.none
        start = self._start(reading.position, None if sent is None else sent.position, size=len(values))
        if start is None:
            return None, Reason.measured_not_finite
        return start + values * (self._period_s if self._meaning.kind is ActionKind.velocity else 1.0), Reason.none

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
        is_tool, turn = self._meaning.frame == "tool", np.array([1.0, 0.0, 0.0, 0.0]) if turn is None else turn
        way = _turned(values[:3], here) if is_tool else values[:3]
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
        closed, opened = self._ends
        gripper = self._card.gripper
        assert gripper is not None
        return gripper.closed + (number - closed) / (opened - closed) * (gripper.open - gripper.closed)

    def _goal(self, arm: np.ndarray | None, gripper: float | None = None) -> Goal:
        if self._is_joint:
            return Goal(position=np.full(len(self._arm), np.nan) if arm is None else arm, gripper=gripper)
        if self._is_twist:
            return Goal(twist=np.full(6, np.nan) if arm is None else arm, gripper=gripper)
        return Goal(pose=np.full(7, np.nan) if arm is None else arm, gripper=gripper)

    # What follows reads the declaration, once.

    def _refused(self, what: str, expected: str, got: str) -> DeployError:
        declared = ", ".join(
            f"{name} {getattr(value, 'value', value)!r}" for name, value in vars(self._meaning).items()
        )
        return DeployError(
            f"action of {self._spec.env_id!r} for robot {self._card.name!r}, {what}", expected=expected, got=got,
            hint=f"Declared: {declared}; units {list(units_of(self._spec.action))}; meanings "
            f"{list(names_of(self._spec.action))}. Correct the spec where the data was made.",
        )  # fmt: skip

    def _element(self, unit: str) -> _Element:
        norm = _NORM.search(unit)
        text = unit[: norm.start()] if norm else unit
        pairs = [_STANDS_FOR.fullmatch(part.strip()) for part in text.split(",")]
        names = [pair[3] if pair else text.strip() for pair in pairs]
        base, _, per = names[0].partition("/")
        is_velocity = self._meaning.kind is ActionKind.velocity and base in _UNITS and per == "s"
        is_read = base in _UNITS and (per == "" or is_velocity) and len(set(names)) == 1
        numbers = [(float(pair[1]), float(pair[2])) for pair in pairs if pair]
        is_line = len(numbers) in (0, len(pairs)) and (
            len(numbers) < 3
            and (len(numbers) != 1 or numbers[0][0] != 0)
            and len({x for x, _ in numbers}) == len(numbers)
        )
        if not is_read or not is_line or (not numbers and len(pairs) > 1):
            raise self._refused("units", f"one of {', '.join(_UNITS)}, or '1 = 0.1 m'", repr(unit))
        quantity, size = _UNITS[base]
        points = {0: [(0.0, 0.0), (1.0, 1.0)], 1: [(0.0, 0.0), *numbers], 2: numbers}[len(numbers)]
        (x0, y0), (x1, y1) = points
        scale = (y1 - y0) / (x1 - x0)
        moved = "velocity " if is_velocity else ""
        return _Element(moved + quantity, scale * size, (y0 - scale * x0) * size, float(norm[1]) if norm else None)

    def _bound(self, bounds: tuple[float, ...] | None, unbounded: float) -> np.ndarray:
        numbers = np.full(self._size, unbounded) if bounds is None else np.array(bounds, np.float64)
        if numbers.shape != (self._size,) or np.isnan(numbers).any():
            raise self._refused("bounds", f"{self._size} numbers", str(bounds))
        return numbers

    def _read_gripper(self, names: tuple[str, ...]) -> tuple[int | None, tuple[float, float]]:
        """Index of the gripper's element, and its numbers for closed and open."""
        text, found = self._meaning.gripper, gripper_elements(self._spec.action)
        if text == "none" and not found:
            return None, (0.0, 1.0)
        if len(found) != 1 or "change" in names[found[0]] or self._spec.action.size < 2:
            raise self._refused("gripper", "one element whose meaning names it", f"elements {list(found)}")
        if self._card.gripper is None:
            raise self._refused("gripper", "a robot with a gripper", "a card without one")
        ends = {end[2]: float(end[1]) for part in text.split("..") if (end := _GRIPPER_END.match(part))}
        if set(ends) != {"closed", "open"} or ends["closed"] == ends["open"]:
            raise self._refused("gripper", "a text as '-1 closed .. 1 open'", repr(text))
        return found[0], (ends["closed"], ends["open"])

    def _check_kind(self) -> None:
        meaning, command = self._meaning, self._card.command
        is_delta = meaning.kind is ActionKind.delta
        if is_delta == (meaning.delta_reference is DeltaReference.none):
            raise self._refused("delta_reference", "measured or target for a delta, none else", "another")
        if meaning.frame not in ("joint", "base", "tool"):
            raise self._refused("frame", "joint, base or tool", repr(meaning.frame))
        if meaning.frame == "tool" and meaning.kind is ActionKind.absolute:
            raise self._refused("frame", "base for an absolute pose", "'tool'")
        if self._is_joint != command.is_joint:
            raise self._refused("frame", f"one that fits the robot's command {command.value!r}", repr(meaning.frame))
        if self._is_twist and meaning.kind is ActionKind.absolute:
            raise self._refused("kind", "delta or velocity for the robot's command 'twist'", "'absolute'")
        if self._is_joint and meaning.rotation != "none":
            raise self._refused("rotation", "none for joints", repr(meaning.rotation))

    def _by_name(self, names: tuple[str, ...]) -> list[int]:
        """Element of each joint of the card."""
        found = []
        for joint in self._card.joints:
            pattern = re.compile(rf"(?<![\w]){re.escape(joint)}(?![\w])")
            matches = [index for index in self._arm if pattern.search(names[index])]
            if len(matches) != 1:
                raise self._refused("joints", f"one element whose meaning names {joint!r}", f"elements {matches}")
            found += matches
        if sorted(found) != self._arm:
            raise self._refused("joints", f"the joints {list(self._card.joints)}", "others besides")
        return found

    def _rotation_size(self) -> int:
        rotation = self._meaning.rotation
        if self._meaning.kind is ActionKind.velocity and rotation not in ("none", "rotvec"):
            raise self._refused("rotation", "rotvec for an angular velocity, or none", repr(rotation))
        try:
            return 0 if rotation == "none" else rotation_size(rotation, where="action")
        except DataError as error:
            raise self._refused("rotation", "a known one", f"{rotation!r}. {error.hint}") from error

    def _of_rotation(self) -> tuple[str, ...]:
        is_angle = self._meaning.rotation == "rotvec" or self._meaning.rotation.startswith("euler")
        return ("angle",) if is_angle else ("number",)

    def _check_units(self, elements: list[_Element], wanted: list[tuple[str, ...]]) -> None:
        if len(self._arm) != len(wanted):
            raise self._refused("size", f"{len(wanted)} elements of the arm", str(len(self._arm)))
        moved = "velocity " if self._meaning.kind is ActionKind.velocity else ""
        for index, quantities in zip(self._arm, wanted, strict=True):
            if elements[index].quantity not in [moved + quantity for quantity in quantities]:
                expected = f"the unit of a {moved}{' or '.join(quantities)}"
                raise self._refused(f"element {index}", expected, repr(units_of(self._spec.action)[index]))

    def _vectors(self, elements: list[_Element]) -> list[tuple[list[int], float]]:
        """Groups of elements with a largest norm: all joints, or translation and rotation."""
        groups = [self._arm] if self._is_joint else [self._arm[:3], self._arm[3:]]
        out = []
        for group in groups:
            norms = {elements[index].norm for index in group} - {None}
            if norms and {elements[index].norm for index in group} != norms:
                raise self._refused("units", "one norm for the elements of a vector", str(sorted(norms, key=str)))
            out += [(group, norm) for norm in norms if norm is not None]
        return out


def _turned(vector: Float64[Array, "3"], quaternion: Float64[Array, "4"]) -> Float64[Array, "3"]:
    """A vector of the turned frame in the frame it is turned in."""
    return multiply(multiply(quaternion, np.concatenate([[0.0], vector])), quaternion * [1.0, -1.0, -1.0, -1.0])[1:]
