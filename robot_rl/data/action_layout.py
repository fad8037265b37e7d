"""Which elements of an action are positions, rotations and grippers, and what their units say of scales and ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.element_names import gripper_elements, names_of, rotations, units_of
from robot_rl.data.rotations import rotation_size
from robot_rl.errors import DataError
from robot_rl.specs import ActionSemantics, ArraySpec

_NUMBER = r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"
_NORM = re.compile(rf",\s*norm\s*<=\s*{_NUMBER}\s*$")
_SCALED = re.compile(rf"1 = {_NUMBER} (\S+)")
_RANGE = re.compile(rf"-1 = {_NUMBER} (\S+), 1 = {_NUMBER} (\S+)")
AXES = {
    "rotvec": "xyz",
    "quat_xyzw": "xyzw",
    "quat_wxyz": "wxyz",
    "rot6d": "012345",
    "matrix": "012345678",
}


@dataclass(frozen=True)
class ActionLayout:
    """Elements of an action.

    Attributes:
        linear: joints or positions.
        rotations: (first, stop) of each rotation.
        grippers: single elements.
    """

    linear: tuple[int, ...]
    rotations: tuple[tuple[int, int], ...]
    grippers: tuple[int, ...]


def layout_of(
    action: ArraySpec,
    semantics: ActionSemantics,
    *,
    where: str,
    rotation_at: Sequence[int] | None = None,
    gripper_at: Sequence[int] | None = None,
) -> ActionLayout:
    """Elements by their names, or as stated.

    Args:
        action: its spec.
        semantics: what is declared of it.
        where: for errors.
        rotation_at: first element of each rotation; None reads the names.
        gripper_at: elements that move grippers; None reads the names.

    Raises:
        DataError: a rotation or gripper is declared and not found, or elements overlap.
    """
    names = names_of(action)
    first = rotation_at
    if semantics.rotation == "none":
        first = ()
    elif first is None:
        size = rotation_size(semantics.rotation, where=where)
        found = rotations(action, declared=semantics.rotation)
        first = [one.first for one in found if one.stop - one.first == size] or _own_names(names, semantics.rotation)
    spans = [(begin, begin + rotation_size(semantics.rotation, where=where)) for begin in first]
    grippers = tuple(gripper_elements(action) if gripper_at is None else gripper_at)
    if semantics.gripper == "none" and gripper_at is None:
        grippers = ()
    for what, declared, given in (
        ("rotation", semantics.rotation, spans),
        ("gripper", semantics.gripper, grippers),
    ):
        if declared != "none" and not given:
            raise DataError(
                f"{where}, action", expected=f"elements of the {what} that is declared ({declared})",
                got=f"none that are named so: {', '.join(names)}", hint=f"Say where it is: --{what}-at ELEMENT.",
            )  # fmt: skip
    used = [*grippers, *(element for begin, stop in spans for element in range(begin, stop))]
    if len(set(used)) < len(used) or not all(0 <= element < action.size for element in used):
        raise DataError(
            f"{where}, action", expected=f"elements of 0..{action.size - 1}, each in one part",
            got=f"rotations {spans}, grippers {list(grippers)}", hint="Correct --rotation-at or --gripper-at.",
        )  # fmt: skip
    linear = tuple(element for element in range(action.size) if element not in used)
    return ActionLayout(linear, tuple(spans), grippers)


def _own_names(names: Sequence[str], rotation: str) -> list[int]:
    """Where the names of `rotation_meanings` stand; matrices have no other usual ones."""
    ends = [f"rotation {rotation} {axis}" for axis in AXES.get(rotation, "")]
    begins = range(len(names) - len(ends) + 1) if ends else ()
    return [i for i in begins if all(name.endswith(end) for name, end in zip(names[i:], ends, strict=False))]


def scale_of(unit: str) -> tuple[float, float, str]:
    """(factor, offset, unit) that make a number physical: factor * number + offset.

    "1 = 0.1 m" is (0.1, 0, "m"), "-1 = 0 m, 1 = 0.04 m" is (0.02, 0.02, "m"), and "m" is (1, 0, "m"). A largest norm behind
    it (see `bounded`) is left away.
    """
    unit = _NORM.sub("", unit)
    if scaled := _SCALED.fullmatch(unit):
        return float(scaled[1]), 0.0, scaled[2]
    found = _RANGE.fullmatch(unit)
    if found and found[2] == found[4]:
        low, high = float(found[1]), float(found[3])
        return (high - low) / 2, (high + low) / 2, found[2]
    return 1.0, 0.0, unit


def bounded(
    values: Float64[Array, "T A"], action: ArraySpec, vectors: Sequence[Sequence[int]]
) -> Float64[Array, "T A"]:
    """What a controller makes of numbers beyond its range, as deploy/targets.py does: norms first, then bounds.

    Args:
        values: actions.
        action: their spec; a unit that ends in ", norm <= 1" shortens its vector to this norm.
        vectors: elements of each vector.
    """
    out = values.copy()
    for vector in vectors:
        norms = {float(found[1]) for e in vector if (found := _NORM.search(units_of(action)[e]))}
        for most in norms:
            lengths = np.linalg.norm(out[:, list(vector)], axis=1, keepdims=True)
            out[:, list(vector)] *= np.minimum(1.0, most / np.maximum(lengths, 1e-12))
    low = -np.inf if action.low is None else np.array(action.low)
    high = np.inf if action.high is None else np.array(action.high)
    return np.clip(out, low, high)


def gripper_ends(text: str, *, where: str) -> tuple[float, float]:
    """Numbers of a closed and of an open gripper, from a text such as "-1 closed .. 1 open".

    Raises:
        DataError: the text does not say both.
    """
    ends: dict[str, float] = {}
    for side in text.lower().split(".."):
        number = re.search(_NUMBER, side)
        word = "open" if "open" in side else "closed" if re.search("clos|shut", side) else None
        if number is not None and word is not None:
            ends.setdefault(word, float(number[1]))
    if len(ends) != 2 or ends["open"] == ends["closed"]:
        raise DataError(
            where, expected='two ends, as in "-1 closed .. 1 open"', got=repr(text),
            hint="A gripper is converted only where the data declare what its numbers mean.",
        )  # fmt: skip
    return ends["closed"], ends["open"]


def rotation_meanings(name: str, like: str, *, is_delta: bool) -> list[str]:
    """Meanings of the elements of a rotation, named after the element `like` that it replaces."""
    group, colon, _ = like.partition(":")
    head = f"{group}: " if colon else ""
    return [f"{head}{'change of ' if is_delta else ''}rotation {name} {axis}" for axis in AXES[name]]


def linear_meaning(text: str, *, is_delta: bool) -> str:
    """The meaning of a position with or without "change of"."""
    plain = text.replace("change of ", "")
    if not is_delta:
        return plain
    group, colon, rest = plain.partition(": ")
    return f"{group}: change of {rest}" if colon else f"change of {plain}"
