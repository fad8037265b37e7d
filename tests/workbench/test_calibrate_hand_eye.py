"""Hand-eye calibration: known cameras on known robots come back, from rendered pictures and from simulated corners."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("scipy")

from rendered_boards import LENS, render, transform  # noqa: E402
from simulated_hand_eye import BOARD, INTRINSICS, POINTS, SPEC, Scene, X, off, scene, sight_of  # noqa: E402

from robot_rl.deploy.calibration import (  # noqa: E402
    Mounting,
    load_hand_eye,
    save_calibration,
)
from robot_rl.errors import DataError  # noqa: E402
from robot_rl.workbench import calibrate  # noqa: E402
from robot_rl.workbench.calibrate_board import Sight, find_board  # noqa: E402
from robot_rl.workbench.calibrate_hand_eye import HandEyeReport, calibrate_hand_eye, consistency  # noqa: E402
from robot_rl.workbench.calibrate_judged import as_table, is_refused  # noqa: E402
from robot_rl.workbench.calibrate_poses import check_motion, read_poses  # noqa: E402
from robot_rl.workbench.calibrate_refine import board_spread  # noqa: E402


def measured(
    told: Scene,
    *,
    px: float = 0.1,
    scale: float = 1.0,
    mounting: Mounting | None = None,
    wrong: dict[int, np.ndarray] | None = None,
) -> HandEyeReport:
    """Calibrate from simulated corners; `wrong` changes poses of some pictures."""
    rng = np.random.default_rng(100)
    sights = [sight_of(board, f"{i:02}.png", px=px, rng=rng, scale=scale) for i, board in enumerate(told.boards)]
    grippers = [(wrong or {}).get(i, gripper) for i, gripper in enumerate(told.grippers)]
    poses = {sight.name: gripper for sight, gripper in zip(sights, grippers, strict=True)}
    return calibrate_hand_eye(
        sights, poses, SPEC, intrinsics=INTRINSICS, mounting=mounting or told.mounting, robot="fr3"
    )


def verdicts(report: HandEyeReport) -> dict[str, str]:
    return {line.measure.partition(" (")[0]: line.verdict for line in report.judged}


@pytest.mark.parametrize("mounting", ["eye_in_hand", "eye_to_hand"])
def test_camera_is_found_from_rendered_pictures(
    mounting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command: pictures and poses in, a file that loads out; 0.2 mm and 0.03 degrees."""
    told, rng = scene(12, mounting=mounting), np.random.default_rng(5)
    (tmp_path / "images").mkdir()
    rows = []
    for index, (gripper, board) in enumerate(zip(told.grippers, told.boards, strict=True)):
        name = f"{index:02}.png"
        grey = render(SPEC.board(), squares=(7, 5), square_m=SPEC.square_m, pose=board, noise=3.0, rng=rng)
        cv2.imwrite(str(tmp_path / "images" / name), grey)
        rows.append({"image": name, "position_m": gripper[:3, 3].tolist(), "quaternion_wxyz": quaternion(gripper)})
    (tmp_path / "poses.json").write_text(json.dumps({"poses": rows}))
    save_calibration(tmp_path / "wrist.json", INTRINSICS)
    code = calibrate.main(
        ["hand-eye", "--name", "wrist", "--images", str(tmp_path / "images"), "--poses", str(tmp_path / "poses.json"),
         "--intrinsics", str(tmp_path / "wrist.json"), "--mounting", mounting, "--robot", "fr3",
         "--output", str(tmp_path / "hand.json")]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0, out
    found = load_hand_eye(tmp_path / "hand.json", camera="wrist", robot="fr3", width=640, height=480)
    mm, deg = off(found.matrix())
    assert mm < 0.2
    assert deg < 0.03
    assert found.residual_mm < 0.3
    assert found.camera == INTRINSICS
    assert set(found.details["methods"]) >= {"PARK", "DANIILIDIS", "least squares"}
    assert "PARK" in out


def quaternion(pose: np.ndarray) -> list[float]:
    """w, x, y, z."""
    from scipy.spatial.transform import Rotation

    return np.roll(Rotation.from_matrix(pose[:3, :3]).as_quat(), 1).tolist()


@pytest.mark.parametrize("mounting", ["eye_in_hand", "eye_to_hand"])
def test_exact_poses_and_corners_give_the_exact_camera(mounting: str) -> None:
    report = measured(scene(10, mounting=mounting), px=0.0)
    mm, deg = off(report.calibration.matrix())
    assert mm < 1e-3
    assert deg < 1e-3
    np.testing.assert_allclose(report.calibration.details["board_pose"], BOARD, atol=1e-6)
    assert not is_refused(report.judged)
    assert report.calibration.poses == 10


def test_least_squares_beat_the_closed_forms_and_tell_the_robots_noise() -> None:
    """Root mean square over seeds; robot 0.3 mm and 0.03 degrees an axis, corners 0.1 px."""
    ours, theirs, noise = [], [], []
    for seed in range(4):
        told = scene(16, seed=seed, robot_mm=0.3, robot_deg=0.03)
        report = measured(told)
        ours.append(off(report.calibration.matrix())[0])
        details = report.calibration.details
        noise.append((details["robot_sd_mm"], details["robot_sd_deg"]))
        rng = np.random.default_rng(100)
        boards = [_pose(sight_of(board, "x", px=0.1, rng=rng)) for board in told.boards]
        _, shift = cv2.calibrateHandEye(
            [g[:3, :3] for g in told.grippers], [g[:3, 3] for g in told.grippers], [b[:3, :3] for b in boards],
            [b[:3, 3] for b in boards], method=cv2.CALIB_HAND_EYE_PARK,
        )  # fmt: skip
        theirs.append(1000 * float(np.linalg.norm(shift.reshape(3) - X[:3, 3])))
    assert np.sqrt(np.mean(np.square(ours))) < np.sqrt(np.mean(np.square(theirs)))
    assert np.mean(noise, axis=0) == pytest.approx((0.3, 0.03), rel=0.3)


def _pose(sight: Sight) -> np.ndarray:
    from robot_rl.workbench.calibrate_camera import board_pose

    return board_pose(sight, LENS.matrix, LENS.distortion)[0]


def test_spread_of_the_boards_pose_is_that_of_repeated_pictures() -> None:
    """The covariance from one Jacobian against 300 noisy pictures of one board."""
    board, rng, px = scene(1, seed=2).boards[0], np.random.default_rng(0), 0.3
    middle, seen = SPEC.centre_m(), []
    for _ in range(300):
        found = _pose(sight_of(board, "x", px=px, rng=rng))
        turn = cv2.Rodrigues(found[:3, :3] @ board[:3, :3].T)[0].reshape(3)
        seen.append([*turn, *((found - board) @ np.append(middle, 1.0))[:3]])
    spread = board_spread(POINTS, board, middle, intrinsics=INTRINSICS, px=px)
    np.testing.assert_allclose(np.std(seen, axis=0), np.sqrt(np.diag(spread)), rtol=0.15)
    np.testing.assert_allclose(
        np.corrcoef(np.array(seen).T), spread / np.sqrt(np.outer(*[np.diag(spread)] * 2)), atol=0.2
    )


def test_standard_deviation_is_that_of_repeated_calibrations() -> None:
    reports = [measured(scene(12, seed=seed, robot_mm=0.5, robot_deg=0.05)) for seed in range(6)]
    errors_mm = [off(report.calibration.matrix())[0] for report in reports]
    told = np.mean([report.calibration.details["sd_mm"] for report in reports])
    assert 0.4 < np.sqrt(np.mean(np.square(errors_mm))) / told < 2.5


def test_pose_of_another_picture_is_named_and_left_out() -> None:
    told = scene(14, robot_mm=0.1, robot_deg=0.01)
    report = measured(told, wrong={4: told.grippers[4] @ transform((0, 0, 0), (0.02, 0, 0))})
    assert list(report.left_out) == ["04.png"]
    assert "mm off" in report.left_out["04.png"]
    assert verdicts(report)["pictures far worse than the rest"] == "warning"
    assert off(report.calibration.matrix())[0] < 0.5


def test_board_of_another_size_than_told_is_refused_with_its_size() -> None:
    report = measured(scene(14, robot_mm=0.1, robot_deg=0.01), scale=0.95)
    (line,) = [line for line in report.judged if line.measure.startswith("size of the board")]
    assert line.verdict == "error"
    assert "34.2" in line.fix  # 36 mm told, 34.2 mm true
    same = measured(scene(14, robot_mm=0.1, robot_deg=0.01))
    assert verdicts(same)["size of the board against the robot's motion"] == "ok"


def test_wrong_mounting_is_refused_and_the_right_one_named() -> None:
    report = measured(scene(12), mounting=Mounting.eye_to_hand)
    assert is_refused(report.judged), as_table(report.judged)
    assert any("mounted the other way it would fit" in note for note in report.notes)


def test_robot_that_is_far_off_is_refused() -> None:
    assert is_refused(measured(scene(12, robot_mm=15.0, robot_deg=0.5)).judged)


def moved(turns: list[tuple[float, float, float]]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [transform(turn, rng.uniform(-0.2, 0.2, 3)) for turn in turns]


@pytest.mark.parametrize(
    ("poses", "says"),
    [
        (moved([(0.1 * i, 0.2 * (i % 3), 0.0) for i in range(7)]), "at least 8 with the board seen, got 7"),
        (moved([(0.0, 0.0, 0.0)] * 12), r"pure translation \(largest turn 0\.0 deg\)"),
        (
            moved([(0.0, 0.0, 0.2 * i) for i in range(12)]),
            r"all about one axis \(-?0\.00, -?0\.00, 1\.00 in the gripper",
        ),
        (moved([(0.01 * (i % 2), 0.2 * i, 0.0) for i in range(12)]), r"all about one axis \(.*1\.00, "),
    ],
)
def test_motion_that_tells_nothing_is_refused_by_name(poses: list[np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_motion(poses)


def test_two_axes_are_enough() -> None:
    check_motion(moved([(0.3 * (i % 3), 0.3 * (i // 3), 0.0) for i in range(9)]))


def test_poses_of_other_pictures_are_refused() -> None:
    told = scene(12)
    shuffled = replace(told, grippers=told.grippers[1:] + told.grippers[:1])
    with pytest.raises(DataError, match=r"turned by the same angles.*deg apart; worst \d\d\.png"):
        measured(shuffled)


def test_quaternions_in_the_other_order_are_named(tmp_path: Path) -> None:
    told = scene(12)
    rows = [
        {
            "image": f"{i:02}.png",
            "position_m": g[:3, 3].tolist(),
            "quaternion_wxyz": np.roll(quaternion(g), -1).tolist(),
        }
        for i, g in enumerate(told.grippers)
    ]
    (tmp_path / "poses.json").write_text(json.dumps({"poses": rows}))
    wrong = dict(enumerate(read_poses(tmp_path / "poses.json").values()))
    report = measured(told, wrong=wrong)
    assert is_refused(report.judged)
    assert any("with quaternions read as x, y, z, w it would fit to 0." in note for note in report.notes)


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    half = 0.5**0.5
    (tmp_path / "p.csv").write_text(f"image,x_m,y_m,z_m,qw,qx,qy,qz\na.png,0.1,0.2,0.3,{half},0,0,{half}\n")
    row = {"image": "a.png", "position_m": [0.1, 0.2, 0.3], "quaternion_wxyz": [half, 0, 0, half]}
    (tmp_path / "p.json").write_text(json.dumps({"poses": [row]}))
    for name in ("p.csv", "p.json"):
        (pose,) = read_poses(tmp_path / name).values()
        np.testing.assert_allclose(pose, [[0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.3], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "image,x,y,z\na,1,2,3\n", "first line image,x_m"),
        ("p.csv", "image,x_m,y_m,z_m,qw,qx,qy,qz\na.png,1,2,3,1,0,0,zero\n", "poses as JSON or CSV"),
        ("p.csv", "image,x_m,y_m,z_m,qw,qx,qy,qz\na.png,1,2,3,0,0,0,90\n", r"a\.png: expected a unit quaternion"),
        ("p.csv", "image,x_m,y_m,z_m,qw,qx,qy,qz\na.png,1,2,nan,1,0,0,0\n", "finite"),
        ("p.json", "{}", "poses as JSON or CSV"),
        ("p.json", "[", "poses as JSON or CSV"),
    ],
)
def test_poses_that_can_not_be_read_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        read_poses(tmp_path / name)


def test_picture_twice_or_missing_is_refused(tmp_path: Path) -> None:
    from robot_rl.workbench.calibrate_poses import match_pictures

    row: dict[str, Any] = {"image": "a.png", "position_m": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0]}
    (tmp_path / "p.json").write_text(json.dumps({"poses": [row, row]}))
    with pytest.raises(DataError, match="one pose a picture"):
        read_poses(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"none for b\.png"):
        match_pictures({"a.png": 0, "b.png": 0}, ["a.png"], where="p.json")


def test_consistency_by_hand() -> None:
    """Two poses that put the board 2 mm apart scatter by 1 mm about their middle."""
    from robot_rl.workbench.calibrate_refine import View

    boards = [transform((0, 0, 0), (shift, 0, 0.4)) for shift in (0.001, -0.001)]
    views = [View("x", np.eye(4), board, np.eye(6)) for board in boards]
    got = consistency(views, SPEC, np.eye(4))
    assert got["mm"] == pytest.approx(1.0)
    assert got["deg"] == pytest.approx(0.0, abs=1e-6)


def test_corner_finder_is_used_on_these_pictures_too() -> None:
    """The rendered scene holds whole boards, else the first test would say less than it seems to."""
    told = scene(3)
    for board in told.boards:
        grey = render(SPEC.board(), squares=(7, 5), square_m=SPEC.square_m, pose=board)
        assert len(find_board(grey, SPEC, name="x").ids) == len(POINTS)
