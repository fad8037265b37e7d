"""What single elements of an array are, read from the units and meanings of its spec: rotations, grippers, angles.

The names follow no standard, so these are rules for those that are usual (ManiSkill's paths, robomimic's and
diffusion_policy's keys, "roll", "quat w", ...). What they don't recognise is not checked as a rotation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from robot_rl.specs import ArraySpec, EnvSpec

_ROTATIONS = {
    "quat": r"quat|orient|(^|[^a-z])q$",
    "euler": r"euler|rpy",
    "rotvec": r"rotvec|rot[ _]vec|axis.?angle",
    "rot6d": r"rot6d|rotation.?6d|6d",
}
_SIZES = {"quat": 4, "euler": 3, "rotvec": 3, "rot6d": 6}
_GRIPPER = re.compile(r"gripper|finger|jaw")
_WIDTH = re.compile(r"gripper|finger|jaw|width")


@dataclass(frozen=True)
class Rotation:
    """Elements of an array that are one rotation.

    Attributes:
        kind: quat (in any order), euler, rotvec or rot6d.
        first, stop: range of elements.
    """

    kind: str
    first: int
    stop: int


def entry(texts: tuple[str, ...], element: int) -> str:
    """Unit or meaning of one element: its own, or the one that stands for all."""
    return texts[element] if element < len(texts) else texts[0]


@cache
def units_of(array: ArraySpec) -> tuple[str, ...]:
    """Unit of every element."""
    return tuple(entry(array.units, element) for element in range(array.size))


@cache
def names_of(array: ArraySpec) -> tuple[str, ...]:
    """Name of every element: its meaning, or with one meaning for all that and its index."""
    if len(array.meanings) == array.size:
        return array.meanings
    stem = array.meanings[0] if array.meanings[0] != "unspecified" else array.name
    return tuple(f"{stem}[{element}]" for element in range(array.size))


@cache
def rotations(array: ArraySpec, *, declared: str = "none") -> tuple[Rotation, ...]:
    """The rotations in a one-dimensional array.

    Args:
        array: its spec.
        declared: ActionSemantics.rotation, which says what "rotation x, y, z" is.
    """
    split = [_stem_and_axis(name) for name in names_of(array)]
    out, first = [], 0
    while first < len(split):
        stop = first + 1
        while stop < len(split) and split[stop][0] == split[first][0]:
            stop += 1
        stem, axes = split[first][0], tuple(axis for _, axis in split[first:stop])
        out += _in_run(stem, axes, first, declared)
        first = stop
    return tuple(out)


@cache
def gripper_elements(array: ArraySpec) -> tuple[int, ...]:
    """Elements of an action that move a gripper."""
    return tuple(i for i, name in enumerate(names_of(array)) if _GRIPPER.search(name.lower()))


def width_elements(array: ArraySpec, spec: EnvSpec) -> list[int]:
    """Elements of an observation that tell how open a gripper is: finger positions and widths, not velocities."""
    out = []
    for i, (name, unit) in enumerate(zip(names_of(array), units_of(array), strict=True)):
        joint = re.search(r"qpos\[(\d+)\]$", name)
        if joint and int(joint[1]) < len(spec.joint_names):
            name = spec.joint_names[int(joint[1])]
        if _WIDTH.search(name.lower()) and "/s" not in unit and not re.search(r"qvel|velocity|force", name.lower()):
            out.append(i)
    return out


def open_is_high(gripper: str) -> bool | None:
    """Whether the larger number opens, from a text such as "-1 closed .. 1 open"; None where it does not say."""
    ends = gripper.lower().split("..")
    if len(ends) != 2:
        return None
    low, high = (("open" in end, "clos" in end or "shut" in end) for end in ends)
    if low == high or (any(low) == all(low) and any(high) == all(high)):
        return None
    return high[0] or low[1]


def _stem_and_axis(name: str) -> tuple[str, str]:
    text = name.lower().strip()
    for word, axis in (("roll", "x"), ("pitch", "y"), ("yaw", "z")):
        if re.search(rf"(^|[^a-z]){word}$", text):
            return text[: -len(word)] + "euler", axis
    found = re.fullmatch(r"(.*?)[\s_.\-]*\[?([wxyz]|\d+)\]?", text)
    return (found[1], found[2]) if found else (text, "")


def _in_run(stem: str, axes: tuple[str, ...], first: int, declared: str) -> list[Rotation]:
    size = len(axes)
    if size == 7 and stem.endswith("pose"):
        return [Rotation("quat", first + 3, first + 7)]
    for kind, pattern in _ROTATIONS.items():
        if size == _SIZES[kind] and re.search(pattern, stem):
            return [Rotation(kind, first, first + size)]
    kind = declared.partition("_")[0]
    if re.search(r"rotation|(^|\W)rot$", stem) and _SIZES.get(kind) == size:
        return [Rotation(kind, first, first + size)]
    return []
