"""Rotations between their representations, all through scipy's Rotation; declared by name in ActionSemantics.rotation.

    rotvec        axis times angle, radians (3)
    quat_xyzw     unit quaternion, scalar last (4); quat_wxyz: scalar first
    rot6d         first two columns of the matrix, one after the other (6) (Zhou et al. 2019, arXiv 1812.07035)
    matrix        row by row (9)
    euler_<seq>   angles, radians (3), scipy's sequences: euler_xyz about fixed axes, euler_XYZ about moving ones
Euler angles are read and never written: they have branches, and a policy learns the jumps.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import DataError, closest

SIZES = {"rotvec": 3, "quat_xyzw": 4, "quat_wxyz": 4, "rot6d": 6, "matrix": 9}
_EULER = re.compile(r"euler_([xyz]{3}|[XYZ]{3})")
_UNIT = 1e-2


def rotation_size(name: str, *, where: str) -> int:
    """Numbers of a representation.

    Raises:
        DataError: an unknown name.
    """
    if name not in SIZES and not _EULER.fullmatch(name):
        raise DataError(
            where, expected="a representation of rotations", got=repr(name), hint=closest(name, [*SIZES, "euler_xyz"])
        )
    return SIZES.get(name, 3)


def convert_rotations(values: Float64[Array, "T D"], given: str, wanted: str, *, where: str) -> Float64[Array, "T W"]:
    """Rotations in another representation; quaternions come out with one sign along the sequence.

    Args:
        values: rows in representation `given`.
        given, wanted: see the text of this module.
        where: for errors.

    Raises:
        DataError: an unknown name, Euler angles asked for, rows of another size, or rows that are no rotation.
    """
    if _EULER.fullmatch(wanted):
        raise DataError(
            where, expected="a representation without branches", got=repr(wanted),
            hint="Write rotvec, rot6d or a quaternion; Euler angles are only read.",
        )  # fmt: skip
    rotation_size(wanted, where=where)
    rotation = _read(np.asarray(values, dtype=np.float64), given, where=where)
    if wanted == "rotvec":
        out = rotation.as_rotvec()
    elif wanted in ("quat_xyzw", "quat_wxyz"):
        out = continuous_quaternions(rotation.as_quat())
        out = out if wanted == "quat_xyzw" else np.roll(out, 1, axis=1)
    else:
        matrix = rotation.as_matrix()
        out = matrix.reshape(-1, 9) if wanted == "matrix" else matrix[:, :, :2].transpose(0, 2, 1).reshape(-1, 6)
    converted: np.ndarray = np.ascontiguousarray(out, dtype=np.float64)
    return converted


def continuous_quaternions(values: Float64[Array, "T 4"]) -> Float64[Array, "T 4"]:
    """The same rotations without jumps of sign from row to row; the first row has its largest number above zero."""
    if not len(values):
        return values.copy()
    first = np.sign(values[0, np.abs(values[0]).argmax()])
    flips = np.where((values[1:] * values[:-1]).sum(axis=1) < 0, -1.0, 1.0)
    signs = first * np.concatenate([[1.0], np.cumprod(flips)])
    return values * signs[:, None]


def geodesic_rad(
    left: Float64[Array, "T D"], right: Float64[Array, "T D"], name: str, *, where: str
) -> Float64[Array, " T"]:
    """Angle between rotations, radians, 0 to pi; blind to signs of quaternions and branches of angles.

    Raises:
        DataError: as `convert_rotations`.
    """
    one, other = (_read(np.asarray(values, np.float64), name, where=where) for values in (left, right))
    angle: np.ndarray = (one.inv() * other).magnitude()
    return angle


def matrices_of_columns(values: Float64[Array, "T 6"]) -> Float64[Array, "T 3 3"]:
    """Rotation matrices of rot6d by Gram-Schmidt, as in the paper: what a network puts out is nearly orthogonal."""
    first = values[:, :3] / np.maximum(np.linalg.norm(values[:, :3], axis=1, keepdims=True), 1e-12)
    second = values[:, 3:] - (first * values[:, 3:]).sum(axis=1, keepdims=True) * first
    second = second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-12)
    return np.stack([first, second, np.cross(first, second)], axis=2)


def _read(values: np.ndarray, name: str, *, where: str) -> Any:
    from scipy.spatial.transform import Rotation

    size = rotation_size(name, where=where)
    if values.ndim != 2 or values.shape[1] != size:
        raise DataError(where, expected=f"rows of {size} numbers ({name})", got=f"shape {values.shape}", hint="")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{where}, row {row}", expected="finite numbers", got=str(values[row].tolist()), hint="")
    if euler := _EULER.fullmatch(name):
        return Rotation.from_euler(euler[1], values)
    if name == "rotvec":
        return Rotation.from_rotvec(values)
    if name in ("quat_xyzw", "quat_wxyz"):
        _require_unit(np.linalg.norm(values, axis=1), values, name, where=where)
        return Rotation.from_quat(values if name == "quat_xyzw" else np.roll(values, -1, axis=1))
    if name == "matrix":
        columns = values.reshape(-1, 3, 3)
    else:
        first, second = values[:, :3], values[:, 3:]
        for length in (np.linalg.norm(first, axis=1), np.linalg.norm(np.cross(first, second), axis=1)):
            _require(length > 1e-6, values, "two columns that are not parallel", where=where)
        return Rotation.from_matrix(matrices_of_columns(values))
    _require(np.abs(np.linalg.det(columns) - 1) < _UNIT, values, "matrices with determinant 1", where=where)
    return Rotation.from_matrix(columns)


def _require_unit(lengths: np.ndarray, values: np.ndarray, name: str, *, where: str) -> None:
    _require(np.abs(lengths - 1) < _UNIT, values, f"unit quaternions ({name})", where=where)


def _require(good: np.ndarray, values: np.ndarray, expected: str, *, where: str) -> None:
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DataError(
            f"{where}, row {row}", expected=expected, got=str(values[row].round(4).tolist()),
            hint="Another representation or order than declared? Correct the declaration, or the data.",
        )  # fmt: skip
