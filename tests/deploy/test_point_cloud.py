"""Point processing against brute force, numpy against torch, and images in every layout."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from robot_rl.data.same_cameras import require_same_cameras, rotation_between
from robot_rl.data.same_spec import require_same_spec
from robot_rl.deploy.images import stored_image
from robot_rl.deploy.point_cloud import (
    PointCloudConfig,
    Sampling,
    crop_mask,
    farthest_points,
    moved_points,
    points_from_json,
    points_of_depth,
    points_to_json,
    process_points,
    require_same_points,
    voxel_mask,
)
from robot_rl.errors import ConfigError, DataError, PolicyError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, CameraSpec, DeltaReference, EnvSpec

LOW, HIGH = (-0.5, -0.5, -0.2), (0.5, 0.4, 0.6)


def cloud(rows: int = 3, number: int = 200, seed: int = 0) -> np.ndarray:
    """Points in a box of 2 m with colours; every seventh row is no surface."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.uniform(-1, 1, (rows, number, 3)), rng.uniform(0, 1, (rows, number, 3))], -1)
    points[:, ::7] = 0
    return points.astype(np.float32)


def brute_crop(points: np.ndarray) -> np.ndarray:
    def inside(p: np.ndarray) -> bool:
        return any(p[i] != 0 for i in range(3)) and all(LOW[i] <= p[i] <= HIGH[i] for i in range(3))

    return np.array([[inside(p) for p in row] for row in points])


def brute_farthest(points: np.ndarray, candidates: list[int], number: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < number:
        gaps = {
            i: min(float(((points[i, :3] - points[j, :3]).astype(np.float64) ** 2).sum()) for j in chosen)
            for i in candidates
        }
        best = max(gaps, key=lambda i: gaps[i])
        chosen.append(best if gaps[best] > 0 else start)
    return chosen


def test_crop_and_farthest_points_are_brute_forces() -> None:
    points = cloud()
    kept = crop_mask(points, LOW, HIGH)
    assert np.array_equal(kept, brute_crop(points))
    assert 5 < kept.sum() < kept.size
    chosen = farthest_points(points, kept, number=12, seed=4)
    for row in range(3):
        candidates = np.flatnonzero(kept[row]).tolist()
        assert chosen[row, 0] in candidates
        assert chosen[row].tolist() == brute_farthest(points[row], candidates, 12, int(chosen[row, 0]))


def test_one_point_of_each_voxel_stays() -> None:
    points, kept = cloud(number=900), brute_crop(cloud(number=900))
    mask = voxel_mask(points, kept, low_m=LOW, voxel_m=0.3)
    for row in range(3):
        seen: dict[tuple[int, ...], int] = {}
        for index in np.flatnonzero(kept[row]).tolist():
            cell = tuple(int(np.floor((points[row, index, axis] - np.float32(LOW[axis])) / 0.3)) for axis in range(3))
            seen.setdefault(cell, index)
        assert np.flatnonzero(mask[row]).tolist() == sorted(seen.values())
        assert len(seen) < kept[row].sum()


@pytest.mark.parametrize("sampling", list(Sampling))
@pytest.mark.parametrize("voxel_m", [0.0, 0.2])
def test_torch_and_numpy_are_one_code_and_rows_do_not_see_each_other(sampling: Sampling, voxel_m: float) -> None:
    config = PointCloudConfig(num_points=16, low_m=LOW, high_m=HIGH, voxel_m=voxel_m, sampling=sampling, seed=3)
    points = cloud(number=900)
    got = process_points(points, config)
    assert got.shape == (3, 16, 6)
    assert got.dtype == np.float32
    assert torch.equal(process_points(torch.from_numpy(points), config), torch.from_numpy(got))
    for row in range(3):
        assert np.array_equal(process_points(points[row : row + 1], config)[0], got[row])
        known = {tuple(p) for p in points[row][brute_crop(points)[row]].tolist()}
        assert {tuple(p) for p in got[row].tolist()} <= known
        assert len({tuple(p) for p in got[row].tolist()}) == 16
    other = process_points(points, replace(config, seed=5))
    assert not np.array_equal(other, got)
    plain = process_points(points, replace(config, use_colour=False))
    assert np.array_equal(plain, got[..., :3])


@pytest.mark.parametrize("sampling", list(Sampling))
def test_too_few_points_are_repeated_and_none_is_zeros(sampling: Sampling) -> None:
    points = np.zeros((2, 10, 3), np.float32)
    points[0, 4], points[0, 7] = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    for given in (points, torch.from_numpy(points)):
        got = np.asarray(process_points(given, PointCloudConfig(num_points=5, sampling=sampling)))
        assert {tuple(p) for p in got[0].tolist()} == {tuple(points[0, 4].tolist()), tuple(points[0, 7].tolist())}
        assert not got[1].any()


def test_farthest_points_spread_further_than_random_ones() -> None:
    points = cloud(1, 400)
    config = PointCloudConfig(num_points=20)

    def gap(got: np.ndarray) -> float:
        distance = np.linalg.norm(got[0, :, None, :3] - got[0, None, :, :3], axis=-1) + 9 * np.eye(20)
        return float(distance.min())

    assert gap(process_points(points, config)) > 2 * gap(
        process_points(points, replace(config, sampling=Sampling.random))
    )


@pytest.mark.parametrize(
    "change",
    [{"num_points": 0}, {"low_m": (0.0, 0.0, 0.0), "high_m": (1.0, 0.0, 1.0)}, {"low_m": (0.0,)}, {"voxel_m": 1e-6}],
)
def test_configurations_that_can_not_be(change: dict) -> None:
    with pytest.raises(ConfigError, match="points"):
        process_points(cloud(), replace(PointCloudConfig(), **change))


def test_depth_becomes_points_by_hand() -> None:
    # Looks down from 1 m: the camera's x is the base's x, its y is minus y, its z is minus z.
    camera = CameraSpec(
        3, 2, fx=2.0, fy=4.0, cx=1.0, cy=0.0, position_m=(0.5, 0.0, 1.0), quaternion_wxyz=(0.0, 1.0, 0.0, 0.0)
    )
    depth = np.array([[[0.8, 0.8, np.nan], [0.4, 0.0, 0.8]]], np.float32)[..., None]
    image = np.full((1, 2, 3, 3), 51, np.uint8)
    expected = [
        [0.5 - 0.4, 0, 0.2], [0.5, 0, 0.2], [0, 0, 0],
        [0.5 - 0.2, -0.1, 0.6], [0, 0, 0], [0.5 + 0.4, -0.2, 0.2],
    ]  # fmt: skip
    got = points_of_depth(depth, camera, image=image)
    np.testing.assert_allclose(got[0, :, :3], expected, atol=1e-6)
    np.testing.assert_allclose(got[0, :, 3], [0.2, 0.2, 0, 0.2, 0, 0.2], atol=1e-6)
    torch.testing.assert_close(
        points_of_depth(torch.from_numpy(depth), camera, image=torch.from_numpy(image)), torch.from_numpy(got)
    )
    with pytest.raises(DataError, match="2 x 3 pixels"):
        points_of_depth(depth[:, :1], camera)


def test_no_torch_is_loaded() -> None:
    code = "import sys, numpy as np; from robot_rl.deploy.point_cloud import *; from robot_rl.deploy.images import *;"
    code += "process_points(np.ones((1, 9, 3), np.float32), PointCloudConfig(num_points=4)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Images --------------------------------------------------------------------------------------------------------------


def test_three_layouts_agree_and_the_fourth_is_refused() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    spec = ArraySpec("image/top", (4, 5, 3), "uint8")
    for given in (image, np.moveaxis(image, -1, -3), (image / 255).astype(np.float32)):
        got = stored_image(given, spec)
        assert got.dtype == np.uint8
        assert np.array_equal(got, image)
    with pytest.raises(DataError, match=r"RGB.*BGR.*::-1"):
        stored_image(image[..., ::-1], spec, channels="BGR")
    for wrong, message in (
        (image[:, :3], "expected .4, 5, 3. or .3, 4, 5."),
        (image.astype(np.float32), "0..2"),
        (image.astype(np.int32), "int32"),
    ):
        with pytest.raises(DataError, match=message):
            stored_image(wrong, spec)
    with pytest.raises(DataError, match="3, 3, 3"):
        stored_image(image[0, :3, :3], ArraySpec("image/top", (3, 3, 3), "uint8"))


# Cameras -------------------------------------------------------------------------------------------------------------

CAMERA = CameraSpec(64, 48, fx=50.0, fy=50.0, cx=31.5, cy=23.5, position_m=(0.3, 0.0, 0.6))


def spec_with(**cameras: CameraSpec) -> EnvSpec:
    shape = (cameras["top"].height, cameras["top"].width, 3) if "top" in cameras else (48, 64, 3)
    return EnvSpec(
        env_id="Seen",
        observation={"image/top": ArraySpec("image/top", shape, "uint8")},
        action=ArraySpec("action", (1,)),
        action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "d"),
        joint_names=(),
        robot="r",
        control_hz=1.0,
        max_episode_steps=1,
        cameras=cameras,
    )


def turned(angle: float) -> CameraSpec:
    return replace(CAMERA, quaternion_wxyz=(float(np.cos(angle / 2)), float(np.sin(angle / 2)), 0.0, 0.0))


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (replace(CAMERA, position_m=(0.3, 0.02, 0.6)), "0.02 m away"),
        (turned(0.1), "turned by 0.1 rad"),
        (replace(CAMERA, width=80), "64 x 48 pixels in training, 80 x 48 here"),
        (replace(CAMERA, channels="BGR"), "channels RGB in training, BGR here"),
        (replace(CAMERA, frame="hand"), "frame of 'base' in training, of 'hand'"),
        (replace(CAMERA, fy=60.0), "fy 50 in training, 60 here"),
    ],
)
def test_a_camera_that_differs_is_refused(camera: CameraSpec, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        require_same_cameras(spec_with(top=CAMERA), spec_with(top=camera), where="runs/x")


def test_points_of_another_box_are_refused_and_specs_keep_theirs() -> None:
    box = PointCloudConfig(num_points=64, low_m=(0.2, -0.6, 0.004), high_m=(1.2, 0.6, 0.6), voxel_m=0.01)
    points = {"points": ArraySpec("points", (64, 3))}
    spec = replace(spec_with(), observation=points, point_cloud=points_to_json(box))
    again = EnvSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert points_from_json(again.point_cloud, where="x") == box
    assert "point_cloud" not in spec_with().to_json()
    require_same_points(spec, again, where="x")
    require_same_points(spec, replace(spec, point_cloud={}), where="x")  # nobody knows
    for change, words in (
        ({"high_m": (1.2, 0.6, 0.5)}, r"high_m: \[1.2, 0.6, 0.6\] in training, \[1.2, 0.6, 0.5\] here"),
        ({"sampling": Sampling.random}, "sampling: farthest in training, random here"),
        ({"seed": 1, "voxel_m": 0.0}, r"(?s)voxel_m: 0.01.*seed: 0 in training, 1 here"),
    ):
        with pytest.raises(PolicyError, match=words):
            require_same_points(spec, replace(spec, point_cloud=points_to_json(replace(box, **change))), where="x")
    # Two cameras joined are not one; where either does not say which, nothing is compared.
    one, two = (replace(spec, point_cloud=points_to_json(box, names)) for names in (("base",), ("hand", "base")))
    assert points_from_json(two.point_cloud, where="x") == box
    with pytest.raises(PolicyError, match=r"cameras: \['base'\] in training, \['base', 'hand'\] here"):
        require_same_points(one, two, where="x")
    with pytest.raises(DataError, match=r"point_cloud.cameras"):
        require_same_spec(one, two, where="x")
    for pair in ((one, spec), (spec, one), (one, one)):
        require_same_points(*pair, where="x")
        require_same_spec(*pair, where="x")
    # Data from before the settings were in the spec go together with newer ones; other settings do not.
    old = replace(spec, point_cloud={})
    require_same_spec(old, spec, where="x")
    require_same_spec(spec, old, where="x")
    with pytest.raises(DataError, match=r"point_cloud.num_points"):
        require_same_spec(spec, replace(spec, point_cloud=points_to_json(replace(box, num_points=32))), where="x")
    for broken in (
        {},
        {"num_points": 4},
        points_to_json(box) | {"zoom": 1},
        points_to_json(box) | {"low_m": ["a", 0, 0]},
    ):
        with pytest.raises(DataError, match="point_cloud"):
            points_from_json(broken, where="x")
    with pytest.raises(DataError, match="point_cloud"):
        EnvSpec.from_json(spec.to_json() | {"point_cloud": 3})


def test_a_moved_cloud_by_hand() -> None:
    place = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])  # 90 degrees about z, then a shift
    cloud = np.array([[1.0, 0, 0, 0.5, 0.6, 0.7], [0, 2, 1, 0, 0, 1]], np.float32)
    assert moved_points(cloud, place).tolist() == np.float32([[1, 3, 3, 0.5, 0.6, 0.7], [-1, 2, 4, 0, 0, 1]]).tolist()


def test_cameras_that_agree_pass_and_specs_keep_them() -> None:
    near = replace(turned(0.01), position_m=(0.301, 0.0, 0.6), fx=50.2)
    assert rotation_between(CAMERA, turned(0.01)) == pytest.approx(0.01, rel=1e-6)
    require_same_cameras(spec_with(top=CAMERA), spec_with(top=near), where="x")
    require_same_cameras(spec_with(top=CAMERA), spec_with(), where="x")
    with pytest.raises(PolicyError, match="top: not there"):
        require_same_cameras(spec_with(top=CAMERA), spec_with(side=CAMERA), where="x")
    with pytest.raises(PolicyError, match=r"uint8 .48, 64, 3. in training"):
        require_same_cameras(spec_with(), spec_with(top=replace(CAMERA, height=40)), where="x")
    spec = spec_with(top=CAMERA)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert "cameras" not in spec_with().to_json()
    for name, value, message in (
        ("fx", 0.0, "focal lengths above 0"),
        ("quaternion_wxyz", [1.0, 1.0, 0, 0], "unit length"),
        ("position_m", [1.0], "3 numbers"),
        ("width", 1.5, "whole number"),
        ("zoom", 1, "fields of CameraSpec"),
    ):
        broken = spec.to_json()
        broken["cameras"]["top"][name] = value
        with pytest.raises(DataError, match=message):
            EnvSpec.from_json(broken)
