"""Point clouds as a policy wants them: depth to points, crop in the base frame, voxels, a fixed number of points.

One code for simulation, recorded data and a real camera: every function takes torch tensors, which stay on their device, or
numpy arrays, and loads neither. A point is x, y, z in the robot's base frame (m) and perhaps red, green, blue (0..1); a row
whose x, y and z are all zero is no point (no surface there). Nothing depends on what else is in the batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32, Float64, UInt8
from robot_rl.errors import ConfigError, DataError, PolicyError
from robot_rl.specs import CameraSpec, EnvSpec

XYZ = 3
# Along each axis: three numbers of 15 bits and a row of 18 fit int64.
_MOST_VOXELS = 2**15
MOST_POINTS = 2**18


class Sampling(str, Enum):
    """Which points stay. farthest: spread out evenly (slower); random: seeded, the same pixels in every frame."""

    farthest = "farthest"
    random = "random"


@dataclass(frozen=True)
class PointCloudConfig:
    """From a cloud of any size to `num_points` points.

    Attributes:
        num_points: M.
        low_m, high_m: corners of the box that is kept, base frame.
        voxel_m: edge of the voxels of which one point each is kept before sampling; 0: none.
        sampling: see Sampling.
        seed: of the sampling (which points, or where farthest-point sampling starts).
        use_colour: keep red, green, blue where there are any.
    """

    num_points: int = 512
    low_m: tuple[float, ...] = (-10.0, -10.0, -10.0)
    high_m: tuple[float, ...] = (10.0, 10.0, 10.0)
    voxel_m: float = 0.0
    sampling: Sampling = Sampling.farthest
    seed: int = 0
    use_colour: bool = True


def process_points(points: Float32[Array, "N P D"], config: PointCloudConfig) -> Float32[Array, "N M D2"]:
    """Crop, thin out by voxels, sample. Fewer points than M: some are repeated; none: zeros.

    Raises:
        ConfigError: a configuration that can't be.
        DataError: points of another shape.
    """
    check_point_config(config)
    if points.ndim != 3 or points.shape[2] not in (XYZ, 6) or not 1 <= points.shape[1] <= MOST_POINTS:
        raise DataError(
            "point cloud",
            expected=f"(N, 1 to {MOST_POINTS} points, 3 or 6)",
            got=str(tuple(points.shape)),
            hint="One cloud a row.",
        )
    kept = crop_mask(points, config.low_m, config.high_m)
    if config.voxel_m:
        kept = kept & voxel_mask(points, kept, low_m=config.low_m, voxel_m=config.voxel_m)
    if config.sampling is Sampling.farthest:
        chosen = farthest_points(points, kept, number=config.num_points, seed=config.seed)
    else:
        chosen = random_points(points, kept, number=config.num_points, seed=config.seed)
    columns = points.shape[2] if config.use_colour else XYZ
    rows = _library(points).arange(len(points), **_device(points))[:, None]
    return points[rows, chosen][..., :columns] * kept.any(-1)[:, None, None]


def crop_mask(
    points: Float32[Array, "N P D"], low_m: tuple[float, ...], high_m: tuple[float, ...]
) -> Bool[Array, "N P"]:
    """Which rows are points inside the box, its faces included."""
    place = points[..., :XYZ]
    low, high = (_like(np.asarray(corner, np.float32), points) for corner in (low_m, high_m))
    return (place != 0).any(-1) & (place >= low).all(-1) & (place <= high).all(-1)


def voxel_mask(
    points: Float32[Array, "N P D"], kept: Bool[Array, "N P"], *, low_m: tuple[float, ...], voxel_m: float
) -> Bool[Array, "N P"]:
    """The first kept point of each voxel; voxels are counted from `low_m`."""
    library = _library(points)
    cell = (points[..., :XYZ] - _like(np.asarray(low_m, np.float32), points)) / voxel_m
    cell = _int64(library.floor(cell).clip(0, _MOST_VOXELS - 1))
    name = (cell[..., 0] * _MOST_VOXELS + cell[..., 1]) * _MOST_VOXELS + cell[..., 2]
    name = library.where(kept, name, _MOST_VOXELS**3)
    # With the row behind the name no two are equal: any sort will do, and the first of a voxel comes first.
    order = (name * MOST_POINTS + library.arange(points.shape[1], **_device(points))).argsort(-1)
    row = library.arange(len(points), **_device(points))[:, None]
    name = name[row, order]
    first = kept[row, order]
    first[:, 1:] &= name[:, 1:] != name[:, :-1]
    mask = kept & False
    mask[row, order] = first
    return mask


def farthest_points(points: Float32[Array, "N P D"], kept: Bool[Array, "N P"], *, number: int, seed: int = 0) -> Array:
    """Farthest-point sampling (Eldar et al. 1997): each next point is the one farthest from those chosen.

    The first is drawn by `seed`: the same share of the kept points in every row. When all kept points are chosen, the first
    is repeated.

    Returns:
        int64 (N, number), rows of `points`; without a kept point, all the first row.
    """
    library, rows = _library(points), len(points)
    row = library.arange(rows, **_device(points))
    place = points[..., :XYZ]
    rank = _int64(kept).cumsum(-1) - 1
    start = _int64(kept.sum(-1) * float(np.random.default_rng(seed).random()))
    latest = _int64(kept & (rank == start[:, None])).argmax(-1)
    first, distance = latest, library.where(kept, np.inf, -1.0)
    out = [latest]
    for _ in range(number - 1):
        gap = ((place - place[row, latest][:, None]) ** 2).sum(-1)
        distance = library.where(gap < distance, gap, distance)
        latest = distance.argmax(-1)
        # Only repeats are left at distance 0; of those the first, whichever argmax would take.
        latest = library.where(distance[row, latest] > 0, latest, first)
        out.append(latest)
    return library.stack(out, -1)


def random_points(points: Float32[Array, "N P D"], kept: Bool[Array, "N P"], *, number: int, seed: int) -> Array:
    """`number` kept points without replacement, by one seeded order of the pixels; all, and then again, if there are fewer.

    Returns:
        int64 (N, number).
    """
    library, size = _library(points), points.shape[1]
    place_in_line = np.random.default_rng(seed).permutation(size).astype(np.int64)
    order = library.where(kept, _like(place_in_line, points), size).argsort(-1)
    wanted = library.arange(number, **_device(points))[None] % kept.sum(-1).clip(1)[:, None]
    row = library.arange(len(points), **_device(points))[:, None]
    return order[row, wanted]


def points_of_depth(
    depth_m: Float32[Array, "N H W 1"], camera: CameraSpec, *, image: UInt8[Array, "N H W 3"] | None = None
) -> Float32[Array, "N P D"]:
    """Points of a depth image in the camera's `frame`; zeros where the depth is 0 or not finite.

    Args:
        depth_m: along the camera's axis.
        camera: what took it.
        image: RGB of the same pixels, for the colours.

    Raises:
        DataError: an image of another size than the camera's.
    """
    library, (rows, columns) = _library(depth_m), depth_m.shape[1:3]
    if (rows, columns) != (camera.height, camera.width) or (
        image is not None and image.shape[1:3] != depth_m.shape[1:3]
    ):
        raise DataError(
            "depth image", expected=f"{camera.height} x {camera.width} pixels, as its camera",
            got=f"{rows} x {columns}" + ("" if image is None else f", colours {tuple(image.shape[1:3])}"),
            hint="Take the intrinsics that belong to this size.",
        )  # fmt: skip
    x = (np.arange(columns) - camera.cx) / camera.fx
    y = (np.arange(rows) - camera.cy) / camera.fy
    rays = np.stack([*np.meshgrid(x, y), np.ones((rows, columns))], axis=-1) @ rotation(camera).T
    is_surface = library.isfinite(depth_m) & (depth_m > 0)
    place = library.where(is_surface, depth_m, 0.0) * _like(rays.astype(np.float32), depth_m)
    place = (place + _like(np.asarray(camera.position_m, np.float32), depth_m)) * is_surface
    if image is not None:
        place = library.concatenate([place, image / np.float32(255) * is_surface], -1)
    return place.reshape(len(place), rows * columns, -1)


def rotation(camera: CameraSpec) -> np.ndarray:
    """Rotation matrix of the camera in its frame, float64 (3, 3)."""
    w, x, y, z = np.asarray(camera.quaternion_wxyz) / np.linalg.norm(camera.quaternion_wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def check_point_config(config: PointCloudConfig) -> None:
    """Raise ConfigError unless the configuration describes a cloud."""
    is_box = len(config.low_m) == len(config.high_m) == XYZ and all(
        a < b for a, b in zip(config.low_m, config.high_m, strict=True)
    )
    spans = [b - a for a, b in zip(config.low_m, config.high_m, strict=False)]
    if config.num_points < 1 or not is_box or config.voxel_m < 0 or config.seed < 0:
        raise ConfigError(
            "points", expected="num_points from 1 up, low_m below high_m (three numbers each), voxel_m and seed of 0 or more",
            got=f"{config}", hint="The box is in the robot's base frame, metres.",
        )  # fmt: skip
    if config.voxel_m and max(spans) / config.voxel_m > _MOST_VOXELS:
        raise ConfigError(
            "points.voxel_m", expected=f"no more than {_MOST_VOXELS} voxels along an edge of the box",
            got=str(config.voxel_m), hint="Take larger voxels or a smaller box.",
        )  # fmt: skip


def points_to_json(config: PointCloudConfig, cameras: Sequence[str] = ()) -> dict[str, Any]:
    """JSON types, for `EnvSpec.point_cloud`; `cameras` are those whose clouds are joined, none where that is not known."""
    plain = asdict(config) | ({"cameras": sorted(cameras)} if cameras else {})
    return plain | {"low_m": list(config.low_m), "high_m": list(config.high_m), "sampling": config.sampling.value}


def points_from_json(data: Mapping[str, Any], *, where: str) -> PointCloudConfig:
    """Inverse of `points_to_json`.

    Args:
        data: of a spec.
        where: the file or policy, for errors.

    Raises:
        DataError: a field that is unknown, missing or no number.
    """
    try:
        corners = {name: tuple(map(float, data[name])) for name in ("low_m", "high_m")}
        plain = {name: value for name, value in data.items() if name != "cameras"}
        config = PointCloudConfig(**(plain | corners | {"sampling": Sampling(data["sampling"])}))
        check_point_config(config)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(
            f"{where}, point_cloud", expected="the settings of a point cloud", got=f"{dict(data)}: {error}",
            hint="Restore the file from a copy.",
        )  from error  # fmt: skip
    return config


def point_differences(trained: EnvSpec, given: EnvSpec) -> Iterator[str]:
    """In words, how "points" are made otherwise than in training; what either does not know is not compared.

    Args:
        trained: of the policy.
        given: of the environment or robot.
    """
    one, two = trained.point_cloud, given.point_cloud
    if "points" not in trained.observation or not (one and two):
        return
    for key in one:
        if one[key] != two.get(key) and not (key == "cameras" and key not in two):
            yield f"{key}: {one[key]} in training, {two.get(key)} here"


def require_same_points(trained: EnvSpec, given: EnvSpec, *, where: str) -> None:
    """Refuse "points" that are cropped or sampled otherwise than the policy's; what either does not know is not compared.

    Raises:
        PolicyError: with every difference.
    """
    if found := list(point_differences(trained, given)):
        raise PolicyError(
            f"{where}: points", expected="the box, voxels and sampling that it was trained with",
            got=f"on {given.env_id}\n  " + "\n  ".join(found) + "\n", hint="Set env.points as in training, with the same cameras.",
        )  # fmt: skip


def moved_points(points: Float32[Array, "P D"], place: Float64[Array, "4 4"]) -> Float32[Array, "P D"]:
    """A cloud of a camera, numpy, in the frame that `place` leads to; colours stay.

    Args:
        points: x, y, z (m) and perhaps colours.
        place: from the camera's coordinates to the wanted ones (`HandEyeCalibration.matrix`).
    """
    turned = points[:, :XYZ].astype(np.float64) @ place[:3, :3].T + place[:3, 3]
    return np.concatenate([turned.astype(np.float32), points[:, XYZ:]], axis=1)


def _library(array: Any) -> Any:
    """numpy or torch, whichever `array` is of: the functions used here have one name in both."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def _device(array: Any) -> dict[str, Any]:
    return {} if isinstance(array, np.ndarray) else {"device": array.device}


def _like(values: np.ndarray, array: Any) -> Any:
    return _library(array).asarray(values, **_device(array))


def _int64(array: Any) -> Any:
    return array.astype(np.int64) if isinstance(array, np.ndarray) else array.long()


def _numpy(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()
