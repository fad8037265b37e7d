"""Datasets of one ManiSkill trajectory with the rows that they must have, and its point clouds in the robot's base frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.data.formats.hdf5_source import named_damage, require_written
from robot_rl.data.formats.importing import require_finite
from robot_rl.errors import DataError, closest
from robot_rl.specs import ArraySpec

CLOUD = "pointcloud"
_ROOT_POSE = 7  # of an articulation's state: position (m), quaternion wxyz; then velocities and joints


def rows_of(group: Any, key: str, rows: int, where: str) -> np.ndarray:
    """Dataset `key` of an HDF5 group, all written and `rows` long. Raises DataError."""
    if not hasattr(group, "keys") or key not in group:
        found = ", ".join(sorted(group)) if hasattr(group, "keys") else "a flat array"
        raise DataError(
            where, expected=f"a dataset {key!r}", got=f"only {found}",
            hint=closest(key, list(group) if hasattr(group, "keys") else []),
        )  # fmt: skip
    return require_rows(group[key], rows, f"{where}, {key}")


def require_rows(dataset: Any, rows: int, where: str) -> np.ndarray:
    """The dataset, all written and `rows` long. Raises DataError."""
    if dataset.shape[:1] != (rows,):
        raise DataError(
            where,
            expected=f"{rows} rows",
            got=f"shape {tuple(dataset.shape)}",
            hint="T actions need T flags and rewards, and T + 1 observations. Use --skip-bad to leave this episode out.",
        )
    with named_damage(where):
        require_written(dataset, where=where)
        return np.asarray(dataset)


def depth_in_metres(obs: Any, spec: ArraySpec, *, rows: int, where: str) -> Float32[Array, "R H W 1"]:
    """Depth of a camera, float32 in metres, 0 where there is no surface; the file has int16 millimetres.

    Args:
        obs: group of the trajectory's observations.
        spec: of "depth/<camera>", float32 (H, W, 1).
        rows: R, steps + 1.
        where: file and trajectory, for errors.

    Raises:
        DataError: no depth of that camera, or another size or type.
    """
    path = f"sensor_data/{spec.name.partition('/')[2]}/depth"
    depth = rows_of(obs, path, rows, f"{where}, obs")
    if depth.shape != (rows, *spec.shape) or depth.dtype not in (np.int16, np.uint16) or spec.dtype != "float32":
        raise DataError(
            f"{where}, obs/{path}", expected=f"int16 {(rows, *spec.shape)} in mm, for a spec in float32 metres",
            got=f"{depth.dtype} {depth.shape} for a spec of {spec.dtype}",
            hint="Use the spec of the environment that the file was recorded in.",
        )  # fmt: skip
    return (depth / np.float32(1000)).astype(np.float32)


def base_frame_points(group: Any, spec: ArraySpec, *, robot: str, rows: int, where: str) -> Float32[Array, "R M 6"]:
    """The clouds of a trajectory as our environment gives them: x, y, z in the base frame (m), RGB in 0..1.

    A file has homogeneous points in the world frame; w = 0 marks a pixel without a surface, which becomes a row of zeros.
    The base frame of each row is the root pose in env_states/articulations/<robot>.

    Args:
        group: of the trajectory: obs/pointcloud/xyzw (R, M, 4) and rgb uint8 (R, M, 3).
        spec: of "points", shape (M, 6).
        robot: its articulation, EnvSpec.robot.
        rows: R, steps + 1.
        where: file and trajectory, for errors.

    Raises:
        DataError: a dataset is missing or of another shape, points that are not finite, a w that is neither 0 nor 1, or no
            pose of the robot.
    """
    from scipy.spatial.transform import Rotation

    cloud = f"{where}, obs/{CLOUD}"
    xyzw, rgb = (rows_of(group["obs"], f"{CLOUD}/{name}", rows, f"{where}, obs") for name in ("xyzw", "rgb"))
    expected = (rows, spec.shape[0])
    if xyzw.shape != (*expected, 4) or rgb.shape != (*expected, 3) or rgb.dtype != np.uint8 or spec.shape[1:] != (6,):
        raise DataError(
            cloud, expected=f"xyzw {(*expected, 4)} and rgb uint8 {(*expected, 3)} for points {spec.shape} of the spec",
            got=f"xyzw {xyzw.shape}, rgb {rgb.dtype} {rgb.shape}",
            hint="The file was recorded with other cameras: use the spec of the environment that it was recorded in.",
        )  # fmt: skip
    is_surface = xyzw[..., 3] == 1
    if not (is_surface | (xyzw[..., 3] == 0)).all():
        raise DataError(cloud, expected="w of 0 (no surface) or 1", got="other values", hint="Record the file again.")
    require_finite(xyzw[is_surface], where=f"{cloud}/xyzw")
    root = _root_poses(group, robot, rows, where)
    turn = Rotation.from_quat(np.roll(root[:, 3:], -1, axis=1)).as_matrix()
    out = np.zeros((*expected, 6), np.float32)
    # v @ R is R^-1 applied to v: from the world to the base.
    out[..., :3] = (np.where(is_surface[..., None], xyzw[..., :3], 0) - root[:, None, :3]) @ turn
    out[..., 3:] = rgb / np.float32(255)
    out[~is_surface] = 0
    return out


def _root_poses(group: Any, robot: str, rows: int, where: str) -> np.ndarray:
    """(R, 7) float64: position and quaternion wxyz of the robot's base in the world."""
    states = group.get("env_states/articulations")
    if states is None or robot not in states:
        raise DataError(
            where, expected=f"env_states/articulations/{robot}, whose root pose says where the base is: clouds of a file are "
            "in the world frame",
            got="nothing there" if states is None else f"only {', '.join(sorted(states))}",
            hint="Record with record_env_state=True.",
        )  # fmt: skip
    root = rows_of(states, robot, rows, f"{where}, env_states/articulations")[:, :_ROOT_POSE].astype(np.float64)
    require_finite(root, where=f"{where}, env_states/articulations/{robot}")
    if root.shape[1] != _ROOT_POSE or not np.allclose(np.linalg.norm(root[:, 3:], axis=1), 1, atol=1e-3):
        raise DataError(
            f"{where}, env_states/articulations/{robot}", expected="a position and a unit quaternion in front",
            got=f"shape {root.shape}, or another norm", hint="Record the file again.",
        )  # fmt: skip
    return root
