"""Calibration files: what is written comes back, and what belongs to another camera, robot, size or day is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.calibration import (
    CameraCalibration,
    HandEyeCalibration,
    Mounting,
    load_camera,
    load_hand_eye,
    save_calibration,
)  # fmt: skip
from robot_rl.errors import DataError

CAMERA = CameraCalibration(
    camera="wrist", width=640, height=480, focal_px=(600.0, 610.0), centre_px=(319.5, 239.5),
    distortion=(-0.1, 0.01, 0.0, 0.001), residual_px=0.2, images=25, created="2026-11-01T12:00:00+00:00",
)  # fmt: skip
HALF = 0.5**0.5
HAND = HandEyeCalibration(
    camera=CAMERA, robot="fr3", mounting=Mounting.eye_in_hand, position_m=(0.1, 0.0, 0.05),
    quaternion_wxyz=(HALF, 0.0, 0.0, HALF), residual_mm=0.5, residual_deg=0.1, poses=18,
    created="2026-11-02T12:00:00+00:00",
)  # fmt: skip
TODAY = date(2026, 11, 20)


def load(path: Path, **changes: Any) -> CameraCalibration:
    return load_camera(path, **{"camera": "wrist", "width": 640, "height": 480, "today": TODAY, **changes})


def load_hand(path: Path, **changes: Any) -> HandEyeCalibration:
    words = {"camera": "wrist", "robot": "fr3", "width": 640, "height": 480, "today": TODAY}
    return load_hand_eye(path, **{**words, **changes})


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    save_calibration(tmp_path / "sub/camera.json", CAMERA)
    save_calibration(tmp_path / "hand.json", HAND)
    assert load(tmp_path / "sub/camera.json") == CAMERA
    assert load_hand(tmp_path / "hand.json") == HAND
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["camera.json"]


def test_matrices_by_hand() -> None:
    assert CAMERA.matrix().tolist() == [[600, 0, 319.5], [0, 610, 239.5], [0, 0, 1]]
    # A quarter turn about z takes x to y.
    expected = [[0, -1, 0, 0.1], [1, 0, 0, 0], [0, 0, 1, 0.05], [0, 0, 0, 1]]
    np.testing.assert_allclose(HAND.matrix(), expected, atol=1e-15)
    from scipy.spatial.transform import Rotation

    w, x, y, z = quaternion = (0.5, -0.1, 0.7, 0.5)
    assert sum(v * v for v in quaternion) == pytest.approx(1.0)
    turned = replace(HAND, quaternion_wxyz=quaternion).matrix()[:3, :3]
    np.testing.assert_allclose(turned, Rotation.from_quat((x, y, z, w)).as_matrix(), atol=1e-12)


def test_half_size_pictures_have_half_the_focal_length_and_the_same_centre() -> None:
    half = CAMERA.resized(320, 240)
    assert (half.focal_px, half.width, half.height) == ((300.0, 305.0), 320, 240)
    assert half.centre_px == (159.5, 119.5)  # the middle stays the middle: (320 - 1) / 2
    with pytest.raises(DataError, match="aspect ratio of 640 x 480, got 224 x 224"):
        CAMERA.resized(224, 224)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"camera": "front"}, "camera: expected 'front', got 'wrist'"),
        ({"width": 1280, "height": 960}, "resolution: expected 1280 x 960, got 640 x 480"),
        ({"max_age_days": 10.0}, "expected at most 10 days old, got 19 days"),
        ({"today": date(2026, 10, 1)}, "expected a date until 2026-10-01, got 2026-11-01"),
    ],
)
def test_another_camera_size_or_day_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    save_calibration(tmp_path / "camera.json", CAMERA)
    assert load(tmp_path / "camera.json", max_age_days=20.0) == CAMERA
    with pytest.raises(DataError, match=says):
        load(tmp_path / "camera.json", **changes)


def test_hand_eye_of_another_robot_or_camera_is_refused(tmp_path: Path) -> None:
    save_calibration(tmp_path / "hand.json", HAND)
    for changes, says in (
        ({"robot": "ur5e"}, "robot: expected 'ur5e'"), ({"camera": "front"}, "camera"), ({"width": 320}, "resolution"),
        ({"max_age_days": 1.0}, "days old"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            load_hand(tmp_path / "hand.json", **changes)
    with pytest.raises(DataError, match=r"camera_calibration version 1, got robot_rl\.hand_eye_calibration"):
        load(tmp_path / "hand.json")


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.update({key: value})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (put("version", 2), "version 2"),
        (put("focal_px", [600.0, float("nan")]), "focal_px"),
        (put("focal_px", [600.0]), "focal_px"),
        (put("focal_px", [600.0, -1.0]), "above 0"),
        (put("distortion", [0.0] * 6), "4 or 5 or 8 finite numbers"),
        (put("width", 640.0), "width: expected int"),
        (put("created", "yesterday"), "ISO 8601"),
        (lambda data: data.pop("images"), "images: expected int"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, damage: Callable[[dict[str, Any]], None], says: str) -> None:
    path = tmp_path / "camera.json"
    save_calibration(path, CAMERA)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("quaternion_wxyz", [0.5, 0.0, 0.0, 0.5], "length 1"), ("mounting", "eye_on_hand", "Valid: eye_in_hand, eye_to_hand"),
        ("position_m", [0.0, None, 0.0], "position_m"), ("camera", "wrist", "camera: expected dict"),
    ],
)  # fmt: skip
def test_damaged_hand_eye_is_refused(tmp_path: Path, key: str, value: Any, says: str) -> None:
    save_calibration(tmp_path / "hand.json", HAND)
    data = json.loads((tmp_path / "hand.json").read_text())
    (tmp_path / "hand.json").write_text(json.dumps({**data, key: value}))
    with pytest.raises(DataError, match=says):
        load_hand(tmp_path / "hand.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"'])
def test_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match="robot-rl calibrate"):
        load(tmp_path / "x.json")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "y.json")
