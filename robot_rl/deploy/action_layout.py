"""How the numbers of an action are laid out, read once from their declaration; targets.py tells the rules."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from robot_rl.data.element_names import gripper_elements, names_of, units_of
from robot_rl.data.rotations import rotation_size
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import ActionKind, DeltaReference, EnvSpec

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_STANDS_FOR = re.compile(rf"({_NUMBER})\s*=\s*({_NUMBER})\s*(\S+)")
_NORM = re.compile(rf",\s*norm\s*<=\s*({_NUMBER})\s*$")
_GRIPPER_END = re.compile(rf"\s*({_NUMBER})\s*\w*\s+(closed|open)\b")
_UNITS = {
    "m": ("length", 1.0), "cm": ("length", 1e-2), "mm": ("length", 1e-3),
    "rad": ("angle", 1.0), "deg": ("angle", math.pi / 180), "1": ("number", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class _Element:
    """One number of an action: value = number * scale + offset, of a quantity, and of a vector with a largest norm."""

    quantity: str
    scale: float
    offset: float
    norm: float | None


class ActionLayout:
    """What each number of an action stands for on one robot: value = number * scale + offset.

    Attributes:
        spec, card: as given.
        meaning: the declaration.
        size: of the action, A.
        period_s: of actions.
        scale, offset: float64 (A,), to SI units.
        low, high: bounds of the numbers, float64 (A,), infinite where there are none.
        arm: indices of joints in the card's order, or of x, y, z and the rotation.
        gripper: index of its number, or None.
        ends: its numbers for closed and open.
        is_joint: whether the arm's numbers are of joints.
        is_twist: whether the robot takes twists.
        quantities: "length" or "angle" of each number, with "velocity " in front where it is one.
        norms: (indices, largest norm) of vectors that are shortened together.

    Args:
        spec: the policy's.
        card: the robot's.

    Raises:
        DeployError: a declaration that can't be read, does not fit itself, or does not fit the robot.
    """

    def __init__(self, spec: EnvSpec, card: RobotCard) -> None:
        self.spec, self.card, self.meaning = spec, card, spec.action_semantics
        self.size, self.period_s = spec.action.size, 1 / spec.control_hz
        names = names_of(spec.action)
        elements = [self._element(unit) for unit in units_of(spec.action)]
        self.scale = np.array([element.scale for element in elements])
        self.offset = np.array([element.offset for element in elements])
        self.low, self.high = self._bound(spec.action.low, -math.inf), self._bound(spec.action.high, math.inf)
        self.gripper, self.ends = self._read_gripper(names)
        self.arm = [index for index in range(self.size) if index != self.gripper]
        self.is_joint, self.is_twist = self.meaning.frame == "joint", card.command is CommandKind.twist
        self._check_kind()
        if self.is_joint:
            self.arm = self._by_name(names)
            wanted: list[tuple[str, ...]] = [("length", "angle")] * len(self.arm)
        else:
            wanted = [("length",), ("length",), ("length",), *[self._of_rotation()] * self._rotation_size()]
        self._check_units(elements, wanted)
        self.quantities = [element.quantity for element in elements]
        self.norms = self._vectors(elements)

    def refused(self, what: str, expected: str, got: str) -> DeployError:
        """An error about `what` that shows the whole declaration."""
        declared = ", ".join(f"{name} {getattr(value, 'value', value)!r}" for name, value in vars(self.meaning).items())
        return DeployError(
            f"action of {self.spec.env_id!r} for robot {self.card.name!r}, {what}", expected=expected, got=got,
            hint=f"Declared: {declared}; units {list(units_of(self.spec.action))}; meanings "
            f"{list(names_of(self.spec.action))}. Correct the spec where the data was made.",
        )  # fmt: skip

    def _element(self, unit: str) -> _Element:
        norm = _NORM.search(unit)
        text = unit[: norm.start()] if norm else unit
        pairs = [_STANDS_FOR.fullmatch(part.strip()) for part in text.split(",")]
        names = [pair[3] if pair else text.strip() for pair in pairs]
        base, _, per = names[0].partition("/")
        is_velocity = self.meaning.kind is ActionKind.velocity and base in _UNITS and per == "s"
        is_read = base in _UNITS and (per == "" or is_velocity) and len(set(names)) == 1
        numbers = [(float(pair[1]), float(pair[2])) for pair in pairs if pair]
        is_line = len(numbers) in (0, len(pairs)) and (
            len(numbers) < 3
            and (len(numbers) != 1 or numbers[0][0] != 0)
            and len({x for x, _ in numbers}) == len(numbers)
        )
        if not is_read or not is_line or (not numbers and len(pairs) > 1):
            raise self.refused("units", f"one of {', '.join(_UNITS)}, or '1 = 0.1 m'", repr(unit))
        quantity, size = _UNITS[base]
        points = {0: [(0.0, 0.0), (1.0, 1.0)], 1: [(0.0, 0.0), *numbers], 2: numbers}[len(numbers)]
        (x0, y0), (x1, y1) = points
        scale = (y1 - y0) / (x1 - x0)
        moved = "velocity " if is_velocity else ""
        return _Element(moved + quantity, scale * size, (y0 - scale * x0) * size, float(norm[1]) if norm else None)

    def _bound(self, bounds: tuple[float, ...] | None, unbounded: float) -> np.ndarray:
        numbers = np.full(self.size, unbounded) if bounds is None else np.array(bounds, np.float64)
        if numbers.shape != (self.size,) or np.isnan(numbers).any():
            raise self.refused("bounds", f"{self.size} numbers", str(bounds))
        return numbers

    def _read_gripper(self, names: tuple[str, ...]) -> tuple[int | None, tuple[float, float]]:
        """Index of the gripper's element, and its numbers for closed and open."""
        text, found = self.meaning.gripper, gripper_elements(self.spec.action)
        if text == "none" and not found:
            return None, (0.0, 1.0)
        if len(found) != 1 or "change" in names[found[0]] or self.spec.action.size < 2:
            raise self.refused("gripper", "one element whose meaning names it", f"elements {list(found)}")
        if self.card.gripper is None:
            raise self.refused("gripper", "a robot with a gripper", "a card without one")
        ends = {end[2]: float(end[1]) for part in text.split("..") if (end := _GRIPPER_END.match(part))}
        if set(ends) != {"closed", "open"} or ends["closed"] == ends["open"]:
            raise self.refused("gripper", "a text as '-1 closed .. 1 open'", repr(text))
        return found[0], (ends["closed"], ends["open"])

    def _check_kind(self) -> None:
        meaning, command = self.meaning, self.card.command
        is_delta = meaning.kind is ActionKind.delta
        if is_delta == (meaning.delta_reference is DeltaReference.none):
            raise self.refused("delta_reference", "measured or target for a delta, none else", "another")
        if meaning.frame not in ("joint", "base", "tool"):
            raise self.refused("frame", "joint, base or tool", repr(meaning.frame))
        if meaning.frame == "tool" and meaning.kind is ActionKind.absolute:
            raise self.refused("frame", "base for an absolute pose", "'tool'")
        if self.is_joint != command.is_joint:
            raise self.refused("frame", f"one that fits the robot's command {command.value!r}", repr(meaning.frame))
        if self.is_twist and meaning.kind is ActionKind.absolute:
            raise self.refused("kind", "delta or velocity for the robot's command 'twist'", "'absolute'")
        if self.is_joint and meaning.rotation != "none":
            raise self.refused("rotation", "none for joints", repr(meaning.rotation))

    def _by_name(self, names: tuple[str, ...]) -> list[int]:
        """Element of each joint of the card."""
        found = []
        for joint in self.card.joints:
            pattern = re.compile(rf"(?<![\w]){re.escape(joint)}(?![\w])")
            matches = [index for index in self.arm if pattern.search(names[index])]
            if len(matches) != 1:
                raise self.refused("joints", f"one element whose meaning names {joint!r}", f"elements {matches}")
            found += matches
        if sorted(found) != self.arm:
            raise self.refused("joints", f"the joints {list(self.card.joints)}", "others besides")
        return found

    def _rotation_size(self) -> int:
        rotation = self.meaning.rotation
        if self.meaning.kind is ActionKind.velocity and rotation not in ("none", "rotvec"):
            raise self.refused("rotation", "rotvec for an angular velocity, or none", repr(rotation))
        try:
            return 0 if rotation == "none" else rotation_size(rotation, where="action")
        except DataError as error:
            raise self.refused("rotation", "a known one", f"{rotation!r}. {error.hint}") from error

    def _of_rotation(self) -> tuple[str, ...]:
        is_angle = self.meaning.rotation == "rotvec" or self.meaning.rotation.startswith("euler")
        return ("angle",) if is_angle else ("number",)

    def _check_units(self, elements: list[_Element], wanted: list[tuple[str, ...]]) -> None:
        if len(self.arm) != len(wanted):
            raise self.refused("size", f"{len(wanted)} elements of the arm", str(len(self.arm)))
        moved = "velocity " if self.meaning.kind is ActionKind.velocity else ""
        for index, quantities in zip(self.arm, wanted, strict=True):
            if elements[index].quantity not in [moved + quantity for quantity in quantities]:
                expected = f"the unit of a {moved}{' or '.join(quantities)}"
                raise self.refused(f"element {index}", expected, repr(units_of(self.spec.action)[index]))

    def _vectors(self, elements: list[_Element]) -> list[tuple[list[int], float]]:
        """Groups of elements with a largest norm: all joints, or translation and rotation."""
        groups = [self.arm] if self.is_joint else [self.arm[:3], self.arm[3:]]
        out = []
        for group in groups:
            norms = {elements[index].norm for index in group} - {None}
            if norms and {elements[index].norm for index in group} != norms:
                raise self.refused("units", "one norm for the elements of a vector", str(sorted(norms, key=str)))
            out += [(group, norm) for norm in norms if norm is not None]
        return out
