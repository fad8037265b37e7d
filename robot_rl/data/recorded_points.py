"""Recorded clouds and depth images -> the fixed number of points that a policy takes, by the code that runs live.

The functions are those of robot_rl/deploy/point_cloud.py, on torch as in simulation, step by step in the order of the
recording: the stored points are bit for bit what an environment with this PointCloudConfig would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.point_cloud import (
    PointCloudConfig,
    check_point_config,
    points_of_depth,
    points_to_json,
    process_points,
)
from robot_rl.errors import DataError, closest
from robot_rl.specs import ArraySpec, EnvSpec

POINTS, DEPTH, IMAGE = "points", "depth/", "image/"
# Of clouds that are sampled at once: farthest-point sampling keeps a few arrays of this size.
_BYTES = 32 * 2**20


@dataclass(frozen=True)
class PointSource:
    """What a cloud is made of.

    Attributes:
        cloud: how it is cropped and sampled.
        cameras: whose depths are joined, in this order; empty: the recorded points, or else every camera with a depth.
    """

    cloud: PointCloudConfig = field(default_factory=PointCloudConfig)
    cameras: tuple[str, ...] = ()


def cameras_of(spec: EnvSpec, source: PointSource, *, where: str) -> tuple[str, ...]:
    """Cameras whose depths are used; none: the recorded points are.

    Raises:
        DataError: nothing to make points of, or a camera that is unknown, not described, or on a link that moves.
    """
    check_point_config(source.cloud)
    depths = tuple(key.removeprefix(DEPTH) for key in spec.observation if key.startswith(DEPTH))
    if not source.cameras and POINTS in spec.observation:
        return ()
    chosen = source.cameras or depths
    if not chosen:
        raise DataError(
            f"{where}, --points", expected="points or depth/<camera> in the data", got=", ".join(spec.observation),
            hint="Record with env.obs_mode=pointcloud or rgb+depth.",
        )  # fmt: skip
    for name in chosen:
        if name not in depths:
            raise DataError(
                f"{where}, --points", expected="a camera with depth", got=repr(name), hint=closest(name, depths)
            )
        camera = spec.cameras.get(name)
        if camera is None or camera.frame != "base":
            raise DataError(
                f"{where}, camera {name!r}", expected="its lens and its pose in the base frame in the spec",
                got="neither" if camera is None else f"a pose in the frame of {camera.frame!r}, which moves",
                hint="Calibrate it, or leave it out: --points-camera NAME, once a camera.",
            )  # fmt: skip
    return chosen


def points_spec(spec: EnvSpec, source: PointSource, *, where: str) -> ArraySpec:
    """Spec of the new "points". Raises DataError as `cameras_of`, and for recorded points of fewer than asked."""
    cameras = cameras_of(spec, source, where=where)
    has_colour = all(f"{IMAGE}{name}" in spec.observation for name in cameras)
    if not cameras:
        shape = spec.observation[POINTS].shape
        has_colour = shape[-1] == 6
        if spec.point_cloud:
            raise DataError(
                f"{where}, --points", expected="a raw recording", got=f"points that were made with {dict(spec.point_cloud)}",
                hint="A cloud that was cropped and sampled twice is none that an environment shows: convert the raw one.",
            )  # fmt: skip
        if len(shape) != 2 or shape[0] < source.cloud.num_points:
            raise DataError(
                f"{where}, --points", expected=f"recorded clouds of {source.cloud.num_points} points or more",
                got=f"shape {shape}", hint="Points that were thrown away can't be had back.",
            )  # fmt: skip
    columns = 6 if has_colour and source.cloud.use_colour else 3
    colour = ", red, green, blue (0..1)" if columns == 6 else ""
    meaning = f"x, y, z in the base frame (m){colour}; zero where there is no surface"
    return ArraySpec(POINTS, (source.cloud.num_points, columns), meanings=(meaning,))


def points_of_frames(
    frames: Mapping[str, Array], spec: EnvSpec, source: PointSource, *, where: str
) -> Float32[Array, "T M D"]:
    """The points of T recorded frames, numpy.

    Args:
        frames: key of the observation -> (T, ...), as recorded.
        spec: of the recording.
        source: see PointSource.
        where: for errors.

    Raises:
        DataError: as `cameras_of`.
    """
    cameras = cameras_of(spec, source, where=where)
    keys = [key for name in cameras for key in (f"{DEPTH}{name}", f"{IMAGE}{name}") if key in frames] or [POINTS]
    has_colour = all(f"{IMAGE}{name}" in frames for name in cameras)
    number = len(np.asarray(frames[keys[0]]))
    size = sum(np.asarray(frames[key][:1]).nbytes for key in keys) * (8 if cameras else 1)
    rows, out = max(1, _BYTES // max(1, size)), []
    for first in range(0, number, rows):
        part = {key: torch.from_numpy(np.ascontiguousarray(frames[key][first : first + rows])) for key in keys}
        if cameras:
            clouds = [
                points_of_depth(
                    part[f"{DEPTH}{name}"], spec.cameras[name], image=part[f"{IMAGE}{name}"] if has_colour else None
                )
                for name in cameras
            ]
            cloud = torch.cat(clouds, dim=1)
        else:
            cloud = part[POINTS]
        out.append(process_points(cloud, source.cloud).float().numpy())
    joined: np.ndarray = np.concatenate(out)
    return joined


def with_points_spec(spec: EnvSpec, source: PointSource, *, where: str) -> EnvSpec:
    """The spec with the new "points"; everything else stays. Recorded points are of all cameras that it describes.

    Raises:
        DataError: as `points_spec`.
    """
    points, cameras = points_spec(spec, source, where=where), cameras_of(spec, source, where=where)
    # What an environment must be asked for to show the same.
    cloud = replace(source.cloud, use_colour=points.shape[-1] == 6)
    return replace(
        spec,
        observation={**spec.observation, POINTS: points},
        point_cloud=points_to_json(cloud, cameras or tuple(spec.cameras)),
    )
