"""Motion: jumps of coordinates and of rotations (geodesic), and breaks of a representation that are no motion at all.

A quaternion and its negative are one rotation, Euler angles and rotation vectors have several names for one rotation,
and an angle and the angle plus 2 pi are one: a network sees a jump where the robot saw none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.element_names import Rotation, names_of, rotations, units_of
from robot_rl.data.quality import Finding, Limits, Place, Severity, delete_command
from robot_rl.data.rotations import matrices_of_columns
from robot_rl.specs import ActionKind, ArraySpec, EnvSpec

_IN_RAD = {"rad": 1.0, "deg": np.pi / 180}
_IN_M = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_EVENTS = re.compile(r"gripper|finger|jaw|grasp|contact|(^|[^a-z])is_")


def motion_findings(
    rows: Float64[Array, "T D"], wait: Float64[Array, " T1"], number: int, *, key: str, array: ArraySpec, spec: EnvSpec,
    limits: Limits,
) -> Iterator[Finding]:  # fmt: skip
    """Jumps and breaks in one key of one episode; nothing for actions that are changes or velocities.

    Args:
        rows: values, one column an element.
        wait: seconds between steps; T1 = T - 1.
        number: of the episode.
        key: "action" or an observation key.
        array: its spec.
        spec: for the declared rotation and rate.
        limits: see Limits.
    """
    is_action = key == "action"
    if len(rows) < 2 or (is_action and spec.action_semantics.kind is not ActionKind.absolute):
        return
    # A gap in time explains a larger step; a stamp that came early does not make a speed.
    wait = np.maximum(wait, 1 / spec.control_hz)
    groups = rotations(array, declared=spec.action_semantics.rotation if is_action else "none")
    taken = [column for group in groups for column in range(group.first, group.stop)]
    # A robot has known limits and habits; an object may be dropped, and tumbles.
    strict = key in ("proprio", "action")
    for group in groups:
        yield from _rotation(
            rows[:, group.first : group.stop], wait, group, number, key=key, limits=limits, strict=strict
        )
    others = np.setdiff1d(np.arange(rows.shape[1]), taken)
    if others.size:
        yield from _coordinates(rows, others, wait, number, key=key, array=array, limits=limits, strict=strict)


def geodesic(rows: Float64[Array, "T D"], kind: str) -> Float64[Array, " T1"]:
    """Angle between rotations of consecutive rows, rad.

    Args:
        rows: quaternions in any order, rotation vectors, extrinsic xyz Euler angles, or two columns of a matrix.
        kind: as in Rotation.
    """
    if kind == "quat":
        units = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return 2 * np.arccos(np.clip(np.abs((units[1:] * units[:-1]).sum(axis=1)), 0, 1))
    from scipy.spatial.transform import Rotation as Rotations

    if kind == "euler":
        turned = Rotations.from_euler("xyz", rows)
    elif kind == "rotvec":
        turned = Rotations.from_rotvec(rows)
    else:
        turned = Rotations.from_matrix(matrices_of_columns(rows))
    angles: np.ndarray = (turned[:-1].inv() * turned[1:]).magnitude()
    return angles


def _rotation(
    rows: np.ndarray, wait: np.ndarray, group: Rotation, number: int, *, key: str, limits: Limits, strict: bool
) -> Iterator[Finding]:
    size = np.linalg.norm(rows, axis=1)
    if not np.isfinite(size).all():
        return
    if group.kind == "quat" and np.abs(size - 1).max() > 0.01:
        step = int(np.argmax(np.abs(size - 1)))
        yield Finding(
            "quaternion_norm", Severity.error, Place(number, step, key, group.first),
            f"a quaternion of length {size[step]:.4g}", float(abs(size[step] - 1)),
            "It is no rotation: check the columns of the spec card, or normalise it.",
        )  # fmt: skip
        return
    angle = geodesic(rows, group.kind)
    jumps = angle > (1 if strict else 2) * limits.speed_rad_s * wait
    if jumps.any():
        step = int(np.argmax(np.where(jumps, angle, 0)))
        yield Finding(
            "jump", Severity.error if strict else Severity.warning, Place(number, step + 1, key, group.first),
            f"the rotation turns {angle[step]:.2f} rad in {1000 * wait[step]:.0f} ms ({int(jumps.sum())} jumps)",
            float(angle[step]), f"Leave the episode out: {delete_command(number)}", int(jumps.sum()),
        )  # fmt: skip
    # What changes in the numbers without a turn of the rotation is the representation.
    breaks = (np.linalg.norm(np.diff(rows, axis=0), axis=1) > angle + 1.0) & ~jumps
    if breaks.any() and group.kind != "rot6d":
        step = int(np.flatnonzero(breaks)[0])
        said = {
            "quat": ("quaternion_sign", "the quaternion changes its sign"),
            "euler": ("euler_branch", "the Euler angles change their branch"),
            "rotvec": ("rotvec_branch", "the rotation vector changes its branch"),
        }[group.kind]
        yield Finding(
            said[0], Severity.warning, Place(number, step + 1, key, group.first),
            f"{said[1]} while the rotation turns {angle[step]:.3f} rad ({int(breaks.sum())} times)", float(breaks.sum()),
            "Make it continuous in the source and import again, or learn from rot6d.", int(breaks.sum()),
        )  # fmt: skip


def _coordinates(
    rows: np.ndarray, columns: np.ndarray, wait: np.ndarray, number: int, *, key: str, array: ArraySpec, limits: Limits,
    strict: bool,
) -> Iterator[Finding]:  # fmt: skip
    """Elements that are no rotation: faster than anything real, or (strict) far out of their own habits."""
    units, names = np.array(units_of(array))[columns], np.array(names_of(array))[columns]
    change = np.abs(np.diff(rows[:, columns], axis=0))
    change = np.where(np.isfinite(change), change, 0)
    in_rad = np.array([_IN_RAD.get(unit, np.nan) for unit in units])
    in_m = np.array([_IN_M.get(unit, np.nan) for unit in units])
    fastest = np.where(np.isfinite(in_m), limits.speed_m_s / np.nan_to_num(in_m, nan=1), np.inf)
    fastest = np.where(np.isfinite(in_rad), limits.speed_rad_s / np.nan_to_num(in_rad, nan=1), fastest)
    reach = (1 if strict else 2) * fastest * wait[:, None]
    turn = 2 * np.pi / in_rad
    wraps = np.abs(change - turn) < np.minimum(reach, 0.25 * turn)
    too_fast = (change > reach) & ~wraps
    yield from _worst(wraps, change, columns, names, units, number, key, check="angle_wrap")
    yield from _worst(too_fast, change, columns, names, units, number, key, check="jump" if strict else "object_jump")
    if strict and len(rows) >= 10:
        values = rows[:, columns]
        habit = np.quantile(change, 0.9, axis=0)
        floor = np.maximum(0.5 * np.ptp(values, axis=0), np.nan_to_num(0.02 / in_m, nan=0))
        floor = np.maximum(floor, np.nan_to_num(0.1 / in_rad, nan=0))
        is_event = np.array(["/s" in u or bool(_EVENTS.search(n.lower())) for u, n in zip(units, names, strict=True)])
        is_event |= np.array([len(np.unique(column)) <= 4 for column in values.T])
        odd = (change > limits.jump * habit) & (change >= floor) & ~is_event & ~wraps & ~too_fast
        yield from _worst(odd, change, columns, names, units, number, key, check="spike")


def _worst(
    found: np.ndarray, change: np.ndarray, columns: np.ndarray, names: np.ndarray, units: np.ndarray, number: int,
    key: str, *, check: str,
) -> Iterator[Finding]:  # fmt: skip
    if not found.any():
        return
    step, column = (int(i) for i in np.unravel_index(np.argmax(np.where(found, change, 0)), change.shape))
    size, name, unit = float(change[step, column]), names[column], units[column]
    steps = int(found.any(axis=1).sum())
    texts = {
        "angle_wrap": (Severity.warning, f"{name} wraps by {size:.3f} {unit}", "Unwrap it in the source (numpy.unwrap)."),
        "jump": (Severity.error, f"{name} moves {size:.3g} {unit} in one step", f"Leave it out: {delete_command(number)}"),
        "object_jump": (
            Severity.warning, f"{name} moves {size:.3g} {unit} in one step",
            f"Look at it: robot-rl data view STORE --episode {number}",
        ),
        "spike": (
            Severity.warning, f"{name} changes by {size:.3g} {unit} in one step, far over its habit in this episode",
            f"Look at it: robot-rl data view STORE --episode {number}",
        ),
    }  # fmt: skip
    severity, text, fix = texts[check]
    place = Place(number, step + 1, key, int(columns[column]))
    yield Finding(check.removeprefix("object_"), severity, place, f"{text} ({steps} such steps)", size, fix, steps)
