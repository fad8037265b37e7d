"""Robot poses for `robot-rl calibrate hand-eye`: read from JSON or CSV, and refused when they can't tell where a camera is.

JSON: {"poses": [{"image": "00.png", "position_m": [x, y, z], "quaternion_wxyz": [w, x, y, z]}, ...]}.
CSV, with this first line: image,x_m,y_m,z_m,qw,qx,qy,qz. The pose is that of the gripper in the robot's base frame.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import DataError

COLUMNS = ("image", "x_m", "y_m", "z_m", "qw", "qx", "qy", "qz")
FEWEST_POSES = 8
TURNED_DEG = 10.0
MOST_PAIRS = 3
AXES_APART_DEG = 10.0
MATCH_DEG = 1.0


def read_poses(path: Path) -> dict[str, Float64[Array, "4 4"]]:
    """Picture -> gripper in the base frame.

    Raises:
        DataError: unreadable file, a row without a number, a quaternion that is not of unit length, or a picture twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = _csv_rows(text, path) if path.suffix.lower() == ".csv" else _json_rows(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            str(path), expected="poses as JSON or CSV", got=f"{type(error).__name__}: {error}", hint=str(__doc__)
        ) from error
    poses: dict[str, np.ndarray] = {}
    for name, numbers in rows:
        if name in poses:
            raise DataError(f"{path}: {name}", expected="one pose a picture", got="two", hint="Remove one.")
        poses[name] = _matrix(numbers, f"{path}: {name}")
    return poses


def _json_rows(text: str) -> list[tuple[str, list[float]]]:
    return [
        (str(row["image"]), [float(v) for v in (*row["position_m"], *row["quaternion_wxyz"])])
        for row in json.loads(text)["poses"]
    ]


def _csv_rows(text: str, path: Path) -> list[tuple[str, list[float]]]:
    reader = csv.DictReader(text.splitlines())
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise DataError(
            str(path), expected="first line " + ",".join(COLUMNS), got=",".join(reader.fieldnames or ()), hint=""
        )
    return [(row["image"], [float(row[key]) for key in COLUMNS[1:]]) for row in reader]


def _matrix(numbers: Sequence[float], where: str) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    if len(numbers) != 7 or not all(math.isfinite(v) for v in numbers):
        raise DataError(
            where, expected="7 finite numbers", got=str(list(numbers)), hint="Position m, quaternion w x y z."
        )
    length = math.hypot(*numbers[3:])
    if abs(length - 1) > 1e-2:
        raise DataError(
            where, expected="a unit quaternion (w, x, y, z)", got=f"length {length:.3f}",
            hint="Angles are not taken; a pose in millimetres has its numbers in the wrong place or unit.",
        )  # fmt: skip
    out = np.eye(4)
    out[:3, :3] = Rotation.from_quat(np.roll(numbers[3:], -1)).as_matrix()
    out[:3, 3] = numbers[:3]
    return out


def check_motion(poses: Sequence[Float64[Array, "4 4"]]) -> None:
    """Refuse motions from which no hand-eye pose follows (Tsai and Lenz 1989: two rotations about different axes).

    Raises:
        DataError: too few poses, pure translation, or all rotations about one axis (named, in the gripper's frame).
    """
    if len(poses) < FEWEST_POSES:
        raise DataError(
            "hand-eye poses", expected=f"at least {FEWEST_POSES} with the board seen", got=str(len(poses)),
            hint="Take 15 to 25, each turned another way.",
        )  # fmt: skip
    turns = np.array([relative_turn(a, b) for i, a in enumerate(poses) for b in poses[i + 1 :]])
    angles = np.degrees(np.linalg.norm(turns, axis=1))
    if (angles >= TURNED_DEG).sum() < MOST_PAIRS:
        raise DataError(
            "hand-eye poses", expected=f"turns of {TURNED_DEG:g} deg and more between poses",
            got=f"pure translation (largest turn {angles.max():.1f} deg)", hint="Turn the wrist about two axes by 30 deg.",
        )  # fmt: skip
    axes = turns[angles >= TURNED_DEG] / np.linalg.norm(turns[angles >= TURNED_DEG], axis=1, keepdims=True)
    shares, directions = np.linalg.eigh(axes.T @ axes / len(axes))
    if shares[1] < math.sin(math.radians(AXES_APART_DEG)) ** 2:
        axis = directions[:, 2] * np.sign(directions[np.abs(directions[:, 2]).argmax(), 2])
        raise DataError(
            "hand-eye poses", expected=f"turns about axes at least {AXES_APART_DEG:g} deg apart",
            got=f"all about one axis ({', '.join(f'{v:.2f}' for v in axis)} in the gripper's frame)",
            hint="The camera's place along that axis can't be known: turn the wrist about a second one too.",
        )  # fmt: skip


def relative_turn(one: Float64[Array, "4 4"], other: Float64[Array, "4 4"]) -> Float64[Array, "3"]:
    """Rotation vector that leads from `one` to `other`, in the frame of `one`, radians."""
    from scipy.spatial.transform import Rotation

    turn: np.ndarray = Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).as_rotvec()
    return turn


def check_match(
    names: Sequence[str], grippers: Sequence[Float64[Array, "4 4"]], boards: Sequence[Float64[Array, "4 4"]]
) -> None:
    """Refuse poses that are not those of the pictures: robot and camera must have turned by the same angles.

    A wrong order of the quaternions' numbers is not seen here: angles stay the same (calibrate_hand_eye.py tries it).

    Args:
        names: of the pictures.
        grippers: in the base frame, or the base in the gripper's; only angles count.
        boards: board to camera.

    Raises:
        DataError: naming the pictures that stand out.
    """
    apart = _angles_apart(grippers, boards)
    if float(np.median(apart)) <= MATCH_DEG:
        return
    typical = np.median(apart[~np.eye(len(apart), dtype=bool)].reshape(len(apart), -1), axis=1)
    worst = [f"{names[i]} ({typical[i]:.1f} deg)" for i in np.argsort(-typical)[:3]]
    raise DataError(
        "hand-eye poses", expected=f"robot and camera turned by the same angles (median within {MATCH_DEG:g} deg)",
        got=f"{np.median(apart):.1f} deg apart; worst {', '.join(worst)}",
        hint="Are these the poses of these pictures, taken at rest?",
    )  # fmt: skip


def _angles_apart(grippers: Sequence[np.ndarray], boards: Sequence[np.ndarray]) -> np.ndarray:
    """|angle the robot turned - angle the camera saw| of every pair, degrees, (n, n)."""
    turned = np.array([[np.linalg.norm(relative_turn(a, b)) for b in grippers] for a in grippers])
    seen = np.array([[np.linalg.norm(relative_turn(a.T, b.T)) for b in boards] for a in boards])
    apart: np.ndarray = np.degrees(np.abs(turned - seen))
    return apart


def read_scalar_last(pose: Float64[Array, "4 4"]) -> Float64[Array, "4 4"]:
    """The pose if the four numbers that were read as w, x, y, z were x, y, z, w."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    out = pose.copy()
    out[:3, :3] = Rotation.from_quat((w, x, y, z)).as_matrix()  # the number that was read first was x
    return out


def match_pictures(poses: Mapping[str, Any], pictures: Sequence[str], *, where: str) -> list[str]:
    """Names that have both a picture and a pose, in order.

    Raises:
        DataError: a pose without its picture.
    """
    missing = [name for name in poses if name not in pictures]
    if missing:
        raise DataError(
            where, expected="a picture for every pose", got=f"none for {', '.join(missing[:5])}", hint="Check --images."
        )
    return [name for name in pictures if name in poses]
