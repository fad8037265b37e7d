"""A robot's PointCloud2 becomes the points that the policy was trained with: the numbers of deploy/point_cloud.py, in the base frame."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.calibration import CameraCalibration, HandEyeCalibration, Mounting, save_calibration
from robot_rl.deploy.point_cloud import PointCloudConfig, Sampling, points_to_json, process_points
from robot_rl.deploy.robot_card import RobotCard, TopicCard, load_robot_card
from robot_rl.errors import ConfigError, DataError, DeployError
from robot_rl.hardware.ros2_cloud import CloudReader, cloud_reader
from robot_rl.hardware.ros2_reading import Heard, ReadingMaker, spec_of
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.specs import ArraySpec, EnvSpec

BOX = PointCloudConfig(num_points=16, low_m=(0.0, -0.5, 0.0), high_m=(1.0, 0.5, 0.6), voxel_m=0.02)
# 90 degrees about z, 0.2 m to the left and 1 m up.
PLACE = {"position_m": (0.0, 0.2, 1.0), "quaternion_wxyz": (math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))}


def cloud(points: np.ndarray, frame: str) -> SimpleNamespace:
    fields = [SimpleNamespace(name=name, offset=4 * at, datatype=7, count=1) for at, name in enumerate("xyz")]
    return SimpleNamespace(
        header=SimpleNamespace(frame_id=frame), width=len(points), height=1, point_step=12, row_step=12 * len(points),
        is_bigendian=False, fields=fields, data=points.astype("<f4").tobytes(), is_dense=True,
    )  # fmt: skip


def scene(seed: int = 0) -> np.ndarray:
    """1,000 points in the base frame, about a third of them in the box, and one that was not measured."""
    points = np.random.default_rng(seed).uniform((-0.5, -1, -0.2), (1.5, 1, 1), (1000, 3)).astype(np.float32)
    points[7] = math.nan
    return points


def calibration(path: Path, *, mounting: Mounting = Mounting.eye_to_hand, camera: str = "top") -> HandEyeCalibration:
    lens = CameraCalibration(
        camera=camera, width=64, height=48, focal_px=(50.0, 50.0), centre_px=(31.5, 23.5), distortion=(0.0,) * 4,
        residual_px=0.2, images=25, created="2026-11-01T12:00:00+00:00",
    )  # fmt: skip
    found = HandEyeCalibration(
        camera=lens, robot="sim_panda", mounting=mounting, residual_mm=0.5, residual_deg=0.1, poses=18,
        created="2026-11-02T12:00:00+00:00", **PLACE,
    )  # fmt: skip
    save_calibration(path, found)
    return found


def card(path: Path | None = None) -> RobotCard:
    found = load_robot_card("sim_panda")
    assert found.ros2 is not None
    inputs = dict(found.ros2.inputs) | {"points": TopicCard("/top/points", "PointCloud2")}
    inputs |= {"image/top": TopicCard("/top/image", "Image")}
    return replace(
        found, ros2=replace(found.ros2, inputs=inputs), calibrations={} if path is None else {"top": str(path)}
    )


def policy(config: PointCloudConfig = BOX) -> EnvSpec:
    spec = spec_of(card())
    arrays = {**spec.observation, "points": ArraySpec("points", (config.num_points, 3))}
    return replace(spec, observation=arrays, point_cloud=points_to_json(config))


@pytest.mark.parametrize("config", [BOX, replace(BOX, voxel_m=0.0), replace(BOX, sampling=Sampling.random)])
def test_a_cloud_in_the_base_frame_is_what_recorded_data_show(config: PointCloudConfig) -> None:
    points = scene()
    recorded = np.nan_to_num(points)  # a recording keeps its rows: zeros where nothing was measured
    reader = CloudReader(config, base_frame="base")
    got = reader.read(cloud(points, "base"))
    assert got.dtype == np.float32
    assert np.array_equal(got, process_points(recorded[None], config)[0])
    assert ((got >= config.low_m) & (got <= config.high_m)).all()


def test_a_cameras_cloud_is_brought_into_the_base_frame(tmp_path: Path) -> None:
    place = calibration(tmp_path / "top.json").matrix()
    points = scene()
    seen = ((points - place[:3, 3]) @ place[:3, :3]).astype(np.float32)  # the inverse of a rotation and a shift
    reader = cloud_reader(card(tmp_path / "top.json"), policy(), "top")
    assert reader is not None
    frame = card().ros2.base_frame  # type: ignore[union-attr]
    expected = reader.read(cloud(points, frame))
    got = reader.read(cloud(seen, "top_optical_frame"))
    # Farthest-point sampling may break a tie otherwise behind rounding: the set of points is the same.
    gap = np.linalg.norm(got[:, None] - expected[None], axis=-1)
    assert max(gap.min(axis=0).max(), gap.min(axis=1).max()) < 1e-5


@pytest.mark.parametrize("place", [None, np.diag([1.0, -1, -1, 1]) + np.eye(4, k=3) * 0.5])
@pytest.mark.parametrize("sampling", Sampling)
def test_zeros_are_no_points_wherever_the_camera_is(place: np.ndarray | None, sampling: Sampling) -> None:
    """Drivers mark what was not measured by NaN or by zeros; moved, zeros would be points at the camera."""
    box = replace(BOX, low_m=(-2.0, -2.0, -2.0), high_m=(2.0, 2.0, 2.0), sampling=sampling)
    points = scene()[:40]
    points[::3] = 0
    reader, frame = CloudReader(box, base_frame="/base", place=place), "base" if place is None else "top_optical_frame"
    got = reader.read(cloud(points, frame))
    there = points[np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)]
    moved = there if place is None else (there @ place[:3, :3].T + place[:3, 3]).astype(np.float32)
    assert np.linalg.norm(got[:, None] - moved[None], axis=-1).min(axis=1).max() < 1e-5
    with pytest.raises(DeployError, match="measured points"):
        reader.read(cloud(np.zeros((5, 3), np.float32), frame))


def test_a_cloud_larger_than_the_sampling_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 640 x 480 camera sends more than 2^18 points: those in the box count, and what is too much says what to do."""
    monkeypatch.setattr("robot_rl.hardware.ros2_cloud.MOST_POINTS", 500)
    points = scene()
    measured = points[np.isfinite(points).all(axis=1)]
    got = CloudReader(BOX, base_frame="base").read(cloud(points, "base"))
    assert np.array_equal(got, process_points(measured[None], BOX)[0])
    for much in (
        replace(BOX, sampling=Sampling.random),
        replace(BOX, low_m=(-9.0,) * 3, high_m=(9.0,) * 3, voxel_m=0.0),
    ):
        with pytest.raises(DeployError, match="at most 500 points"):
            CloudReader(much, base_frame="base").read(cloud(points, "base"))


def test_another_frame_without_a_calibration_and_an_empty_cloud_are_refused() -> None:
    reader = CloudReader(BOX, base_frame="base")
    with pytest.raises(DeployError, match=r"(?s)a cloud in 'base'.*'camera_link'"):
        reader.read(cloud(scene(), "camera_link"))
    with pytest.raises(DeployError, match="optical_frame"):  # x forward: the calibration is of other axes
        CloudReader(BOX, base_frame="base", place=np.eye(4)).read(cloud(scene(), "camera_link"))
    with pytest.raises(DeployError, match="measured points"):
        reader.read(cloud(np.full((5, 3), math.nan), "base"))
    nothing_in_the_box = reader.read(cloud(np.full((5, 3), 9.0), "base"))
    assert nothing_in_the_box.shape == (16, 3)
    assert not nothing_in_the_box.any()  # as in simulation


def test_what_a_points_camera_must_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"points_camera.*'top'"):
        cloud_reader(card(), policy(), "top")
    calibration(tmp_path / "top.json", mounting=Mounting.eye_in_hand)
    with pytest.raises(ConfigError, match="stands still"):
        cloud_reader(card(tmp_path / "top.json"), policy(), "top")
    calibration(tmp_path / "top.json", camera="side")
    with pytest.raises(DataError, match="side"):
        cloud_reader(card(tmp_path / "top.json"), policy(), "top")
    assert cloud_reader(card(), replace(policy(), point_cloud={}), "") is None
    with pytest.raises(DataError, match="point_cloud"):
        cloud_reader(card(), replace(policy(), point_cloud={"num_points": 4}), "")


def test_a_robot_gives_the_policys_points(tmp_path: Path) -> None:
    """Through the parts of Ros2Robot that need no ROS."""
    calibration(tmp_path / "top.json")
    arm = card(tmp_path / "top.json")
    robot = Ros2Robot(Ros2RobotConfig(points_camera="top"), card=arm, spec=policy())
    message: Any = cloud(scene(), "top_optical_frame")
    first = robot._maker.make({"points": Heard(message, 1.0, 1.0)})
    assert first.frames["points"].shape == (16, 3)
    assert robot._maker.make({"points": Heard(message, 1.0, 1.0)}).frames["points"] is first.frames["points"]
    raw = ReadingMaker(arm, {"points": "points"}).make({"points": Heard(message, 1.0, 1.0)})
    assert raw.frames["points"].shape == (999, 3)
