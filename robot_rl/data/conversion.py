"""What a conversion of a dataset asks for, and the declarations that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from robot_rl.data.action_layout import ActionLayout, gripper_ends, linear_meaning, rotation_meanings, scale_of
from robot_rl.data.element_names import names_of, units_of
from robot_rl.data.recorded_points import PointSource
from robot_rl.data.rotations import convert_rotations, rotation_size
from robot_rl.errors import DataError, closest
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference


@dataclass(frozen=True)
class Measured:
    """Elements of an observation that measure what an action commands, in the order of its elements.

    Attributes:
        key: of the observation.
        first, stop: range of elements: joints, or x y z and the rotation.
        rotation: its representation there; "none" for joints.
    """

    key: str
    first: int
    stop: int
    rotation: str = "none"


@dataclass(frozen=True)
class Turned:
    """A rotation in an observation, and how it shall be written."""

    key: str
    first: int
    stop: int
    given: str
    wanted: str


@dataclass(frozen=True)
class Conversion:
    """What to change; None leaves it as it is.

    Attributes:
        rotation: representation of the action's rotations.
        kind: "absolute" or "delta".
        reference: of a delta, "measured" or "target".
        gripper: text of the new range, such as "0 closed .. 1 open".
        measured: needed to change `kind` or `reference`.
        observations: rotations in observations.
        control_mode: the driver's name of the mode that takes the new actions.
        rotation_at, gripper_at: elements of the action, where their names do not tell.
        points: what "points" shall be made of and how.
    """

    rotation: str | None = None
    kind: str | None = None
    reference: str | None = None
    gripper: str | None = None
    measured: Measured | None = None
    observations: tuple[Turned, ...] = ()
    control_mode: str | None = None
    rotation_at: tuple[int, ...] | None = None
    gripper_at: tuple[int, ...] | None = None
    points: PointSource | None = None


def new_semantics(old: ActionSemantics, wanted: Conversion, where: str) -> ActionSemantics:
    """The new declaration of an action.

    Args:
        old: of the data.
        wanted: what to change.
        where: for errors.

    Raises:
        DataError: what is wanted needs something that the old one does not say, or is there already.
    """
    place = f"{where}, action semantics"
    kind = old.kind if wanted.kind is None else ActionKind(wanted.kind)
    if ActionKind.velocity in (kind, old.kind) and kind is not old.kind:
        raise DataError(
            place, expected="absolute or delta on both sides", got=f"{old.kind.value} to {kind.value}",
            hint="How long a velocity lasts is the robot's matter.",
        )  # fmt: skip
    reference = old.delta_reference if wanted.reference is None else DeltaReference(wanted.reference)
    if kind is not ActionKind.delta and wanted.reference is not None:
        raise DataError(
            place, expected="a reference for a delta only", got=f"{wanted.reference} for {kind.value}", hint=""
        )
    if kind is not ActionKind.delta:
        reference = DeltaReference.none
    elif reference is DeltaReference.none:
        raise DataError(
            place, expected="what a delta is added to", got="nothing", hint="--reference measured or target."
        )
    if wanted.kind is not None and wanted.kind == old.kind.value and reference is old.delta_reference:
        raise DataError(
            place, expected=f"actions that are not {wanted.kind} yet", got=f"{old.kind.value}",
            hint="A second conversion would spoil them; nothing was written.",
        )  # fmt: skip
    for what, given, new in (("rotation", old.rotation, wanted.rotation), ("gripper", old.gripper, wanted.gripper)):
        if new is not None and given == "none":
            raise DataError(
                place,
                expected=f"a {what} that the data declare",
                got="none",
                hint="It can't be converted, nor guessed.",
            )
    rotation = old.rotation if wanted.rotation is None else wanted.rotation
    if wanted.rotation is not None or (rotation.startswith("euler") and (kind, reference) != kind_of(old)):
        # Refuses an unknown name, and Euler angles to write.
        identity = np.array([[0.0, 0.0, 0.0, 1.0]])
        convert_rotations(identity, "quat_xyzw", rotation, where=f"{place}, rotation")
    gripper = old.gripper if wanted.gripper is None else wanted.gripper
    for text in (old.gripper, gripper) if wanted.gripper is not None else ():
        gripper_ends(text, where=f"{place}, gripper")
    differs = (kind, reference, rotation, gripper) != (*kind_of(old), old.rotation, old.gripper)
    mode = wanted.control_mode or (f"{old.control_mode}, converted" if differs else old.control_mode)
    return ActionSemantics(kind, reference, old.frame, rotation, gripper, mode)


def kind_of(semantics: ActionSemantics) -> tuple[ActionKind, DeltaReference]:
    """Kind, and what a delta is added to."""
    return semantics.kind, semantics.delta_reference


def new_action_spec(
    array: ArraySpec, layout: ActionLayout, old: ActionSemantics, new: ActionSemantics, *, where: str
) -> ArraySpec:
    """Element by element, each with its unit, meaning and bounds; bounds of another kind are not known.

    Args:
        array: spec of the old action.
        layout: its elements.
        old, new: declarations.
        where: for errors.
    """
    is_delta, moves = new.kind is ActionKind.delta, kind_of(old) != kind_of(new)
    turns = moves or old.rotation != new.rotation
    entries: dict[int, list[tuple[str, str, float, float]]] = {}
    names, units = names_of(array), units_of(array)
    low, high = array.low or (-np.inf,) * array.size, array.high or (np.inf,) * array.size
    for e in (*layout.linear, *layout.grippers):
        entries[e] = [(units[e], names[e], low[e], high[e])]
    for e in layout.linear if moves else ():
        entries[e] = [(scale_of(units[e])[2], linear_meaning(names[e], is_delta=is_delta), -np.inf, np.inf)]
    for e in layout.grippers if old.gripper != new.gripper else ():
        ends = gripper_ends(new.gripper, where=where)
        entries[e] = [("m" if " m" in new.gripper else "1", names[e], min(ends), max(ends))]
    for first, stop in layout.rotations:
        entries[first] = [(units[e], names[e], low[e], high[e]) for e in range(first, stop)]
        if turns:
            limit = np.pi if new.rotation == "rotvec" else 1.0
            unit = "rad" if new.rotation == "rotvec" else "1"
            meanings = rotation_meanings(new.rotation, names[first], is_delta=is_delta)
            entries[first] = [(unit, meaning, -limit, limit) for meaning in meanings]
    rows = [row for element in sorted(entries) for row in entries[element]]
    is_bounded = array.low is not None and array.high is not None and not moves
    return replace(
        array, shape=(len(rows),), units=tuple(row[0] for row in rows), meanings=tuple(row[1] for row in rows),
        low=tuple(row[2] for row in rows) if is_bounded else None,
        high=tuple(row[3] for row in rows) if is_bounded else None,
    )  # fmt: skip


def turned_spec(observation: Mapping[str, ArraySpec], turned: Turned, where: str) -> ArraySpec:
    """Spec of an observation whose rotation is written in another way. Raises DataError."""
    array = elements_of(observation, turned.key, turned.first, turned.stop, where)
    size = rotation_size(turned.given, where=where)
    if turned.stop - turned.first != size or turned.given == turned.wanted:
        raise DataError(
            f"{where}, observation {turned.key!r}", expected=f"{size} elements of {turned.given}, and another representation",
            got=f"{turned.stop - turned.first} elements to {turned.wanted}", hint="KEY=START:STOP:GIVEN:WANTED.",
        )  # fmt: skip
    convert_rotations(np.array([[0.0, 0.0, 0.0, 1.0]]), "quat_xyzw", turned.wanted, where=where)
    names, units = names_of(array), units_of(array)
    meanings = rotation_meanings(turned.wanted, names[turned.first], is_delta=False)
    unit, limit = ("rad", np.pi) if turned.wanted == "rotvec" else ("1", 1.0)
    before, behind = slice(0, turned.first), slice(turned.stop, None)
    low, high = (
        None if bound is None else (*bound[before], *(sign * limit,) * len(meanings), *bound[behind])
        for bound, sign in ((array.low, -1), (array.high, 1))
    )
    return replace(
        array, shape=(array.size - size + len(meanings),), low=low, high=high,
        units=(*units[before], *(unit,) * len(meanings), *units[behind]),
        meanings=(*names[before], *meanings, *names[behind]),
    )  # fmt: skip


def elements_of(observation: Mapping[str, ArraySpec], key: str, first: int, stop: int, where: str) -> ArraySpec:
    """The array of a key, if it is float32 in one row and has the elements first..stop. Raises DataError."""
    if key not in observation:
        raise DataError(where, expected="an observation of the data", got=repr(key), hint=closest(key, observation))
    array = observation[key]
    if len(array.shape) != 1 or not 0 <= first < stop <= array.size or array.dtype != "float32":
        raise DataError(
            f"{where}, observation {key!r}", expected=f"elements of 0..{array.size}", got=f"{first}:{stop}",
            hint="START:STOP, as `robot-rl data info STORE --json` numbers them.",
        )  # fmt: skip
    return array
