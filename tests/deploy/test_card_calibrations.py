"""Calibrations that a robot's card names: looked at before anything moves, by `check robot` and by the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from robot_rl.checks.robot import check_robot
from robot_rl.deploy.calibration import CameraCalibration, HandEyeCalibration, Mounting, save_calibration
from robot_rl.deploy.loop_checks import _moved_cameras, require_fits
from robot_rl.deploy.point_cloud import PointCloudConfig, points_to_json
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.robot_card import TopicCard, card_from, load_robot_card
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import ConfigError, DataError, DeployError
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.specs import ArraySpec

CAMERA = CameraCalibration(
    camera="wrist", width=8, height=6, focal_px=(9.0, 9.0), centre_px=(3.5, 2.5), distortion=(0.0,) * 4,
    residual_px=0.2, images=25, created="2026-11-01T12:00:00+00:00",
)  # fmt: skip
HAND = HandEyeCalibration(
    camera=CAMERA, robot="sim_panda", mounting=Mounting.eye_in_hand, position_m=(0.1, 0.0, 0.05),
    quaternion_wxyz=(1.0, 0.0, 0.0, 0.0), residual_mm=0.5, residual_deg=0.1, poses=18, created="2026-11-02T12:00:00+00:00",
)  # fmt: skip


def mock(path: Path) -> tuple[MockRobot, ManualClock]:
    clock, card = ManualClock(), replace(load_robot_card("sim_panda"), ros2=None, calibrations={"wrist": str(path)})
    config = MockRobotConfig(card="sim_panda", rate_hz=100.0, latency_s=0.01, cameras={"wrist": (6, 8)})
    return MockRobot(config, card=card, clock=clock), clock


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (HAND, ""),
        (None, "no such file"),
        (replace(HAND, robot="fr3"), "fr3"),
        (replace(HAND, camera=replace(CAMERA, camera="side")), "side"),
        (replace(HAND, camera=replace(CAMERA, width=16)), "16 x 6"),
        (CAMERA, "camera_calibration"),
    ],
    ids=["right", "missing", "another robot", "another camera", "another size", "no hand-eye file"],
)
def test_what_does_not_belong_is_refused_by_check_and_loop(tmp_path: Path, written: Any, words: str) -> None:
    path = tmp_path / "wrist.json"
    if written is not None:
        save_calibration(path, written)
    robot, clock = mock(path)
    found = [each for each in check_robot(robot, seconds=0.5, clock=clock) if each.check == "calibrations"]
    info = PolicyInfo(robot.spec, ("proprio", "image/wrist"), 1, 4, 2)
    if not words:
        assert not found
        require_fits(info, robot.spec, robot.card)
        return
    assert len(found) == 1
    assert words in found[0].got
    with pytest.raises(DataError, match=words):
        require_fits(info, robot.spec, robot.card)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"position_m": (0.1, 0.008, 0.05)}, ""),  # within 1 cm
        ({"position_m": (0.1, 0.03, 0.05)}, "camera wrist: 0.03 m away"),
        ({"quaternion_wxyz": (0.96, 0.28, 0.0, 0.0)}, "camera wrist: turned by 0.56"),
        ({"mounting": Mounting.eye_to_hand}, "camera wrist: in the frame of 'hand' in training, of 'base' here"),
        ({"camera": replace(CAMERA, focal_px=(10.0, 10.0))}, "camera wrist: fx 9 in training, 10 here"),
    ],
)
def test_a_camera_that_stands_or_sees_otherwise_than_in_training_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    save_calibration(tmp_path / "wrist.json", replace(HAND, **change))
    robot, _ = mock(tmp_path / "wrist.json")
    named = load_robot_card("sim_panda").ros2
    assert named is not None
    card = replace(robot.card, ros2=replace(named, tool_frame="hand", inputs={"image/wrist": TopicCard("/w", "Image")}))
    trained = replace(robot.spec, cameras={"wrist": HAND.camera_spec(tool_frame="hand")})
    is_lens = "camera" in change
    clouded = PolicyInfo(replace(trained, observation=trained.observation), ("points",), 1, 4, 2)
    assert [text for text in _moved_cameras(clouded, card) if words in text] or not words or is_lens
    assert not (is_lens and list(_moved_cameras(clouded, card)))  # a cloud has no pixels
    for keys in (("proprio", "image/wrist"), ("proprio",)):
        info = PolicyInfo(trained, keys, 1, 4, 2)
        if not words or len(keys) == 1:  # what the policy does not look through does not matter
            require_fits(info, robot.spec, card)
        else:
            with pytest.raises(DeployError, match=words):
                require_fits(info, robot.spec, card)


def test_what_a_simulated_robot_says_of_its_cameras_and_points_is_compared(tmp_path: Path) -> None:
    """Without any calibration: its spec describes them, as an environment's does."""
    robot, _ = mock(tmp_path / "unused.json")
    card = replace(robot.card, calibrations={})
    camera, box = HAND.camera_spec(tool_frame="hand"), PointCloudConfig(num_points=8)
    arrays = {**robot.spec.observation, "points": ArraySpec("points", (8, 3))}
    spec = replace(robot.spec, observation=arrays, cameras={"wrist": camera}, point_cloud=points_to_json(box))
    cut = replace(spec, point_cloud=points_to_json(replace(box, low_m=(0.2, -0.6, 0.004))))
    moved = replace(spec, cameras={"wrist": replace(camera, position_m=(9.0, 0.0, 0.0))})
    for keys, other, words in (
        (("proprio", "points"), cut, r"low_m: \[-10.0, -10.0, -10.0\] in training, \[0.2, -0.6, 0.004\] here"),
        (("proprio", "image/wrist"), moved, "camera wrist: .* m away"),
        (("proprio", "points"), moved, "camera wrist: .* m away"),
    ):
        info = PolicyInfo(spec, keys, 1, 4, 2)
        require_fits(info, spec, card)
        with pytest.raises(DeployError, match=words):
            require_fits(info, other, card)
    for other in (cut, moved):
        require_fits(PolicyInfo(spec, ("proprio",), 1, 4, 2), other, card)


def test_a_camera_that_this_policy_does_not_use_is_not_looked_at(tmp_path: Path) -> None:
    robot, _ = mock(tmp_path / "missing.json")
    spec = replace(robot.spec, observation={"proprio": robot.spec.observation["proprio"]})
    require_fits(PolicyInfo(spec, ("proprio",), 1, 4, 2), spec, robot.card)


def plain(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parents[2] / "configs" / "robot" / f"{name}.yaml").read_text())


def test_files_are_those_beside_the_card(tmp_path: Path) -> None:
    card = tmp_path / "arm.yaml"
    card.write_text(yaml.safe_dump(plain("ur5e") | {"calibrations": {"wrist": "calibration/wrist.json"}}))
    assert load_robot_card(card).calibrations == {"wrist": str(tmp_path / "calibration" / "wrist.json")}
    card.write_text(yaml.safe_dump(plain("ur5e") | {"calibrations": {"wrist": "/data/wrist.json"}}))
    assert load_robot_card(card).calibrations == {"wrist": "/data/wrist.json"}


def test_a_calibration_of_a_camera_that_the_card_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"calibrations.*'side'"):
        card_from(plain("ur5e") | {"calibrations": {"side": "side.json"}}, where="test")
