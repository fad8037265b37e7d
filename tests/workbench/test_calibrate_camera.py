"""Boards, and intrinsics from rendered pictures of a camera that is known exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from rendered_boards import LENS, board_poses, render  # noqa: E402

from robot_rl.errors import ConfigError, DataError  # noqa: E402
from robot_rl.workbench import calibrate  # noqa: E402
from robot_rl.workbench.calibrate_board import (  # noqa: E402
    BoardSpec,
    Sight,
    check_layout,
    draw_page,
    find_board,
    find_boards,
    read_board,
    read_pictures,
    write_page,
)
from robot_rl.workbench.calibrate_camera import board_pose, calibrate_camera, cell_counts, empty_places  # noqa: E402
from robot_rl.workbench.calibrate_judged import as_table, is_refused, judge  # noqa: E402

SPEC = BoardSpec()
POINTS = np.asarray(SPEC.board().getChessboardCorners(), np.float64)


def picture(pose: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    return render(SPEC.board(), squares=(7, 5), square_m=SPEC.square_m, pose=pose, noise=3.0, rng=rng)


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    poses = board_poses(24, centre_m=SPEC.centre_m(), rng=rng)
    return {f"{index:02}.png": picture(pose, rng) for index, pose in enumerate(poses)}


@pytest.fixture(scope="module")
def sights(pictures: dict[str, np.ndarray]) -> list[Sight]:
    return [find_board(grey, SPEC, name=name) for name, grey in pictures.items()]


def corners_of(pose: np.ndarray) -> np.ndarray:
    """Where the inner corners truly are, pixels."""
    there, _ = cv2.projectPoints(POINTS, cv2.Rodrigues(pose[:3, :3])[0], pose[:3, 3], LENS.matrix, LENS.distortion)
    return there.reshape(-1, 2)


def sight_of(pose: np.ndarray, name: str, *, px: float, rng: np.random.Generator) -> Sight:
    """Corners inside the picture, with noise, without rendering."""
    there = corners_of(pose)
    inside = np.flatnonzero(((there > 2) & (there < (LENS.width - 3, LENS.height - 3))).all(axis=1))
    return Sight(
        name=name, ids=inside, corners=there[inside] + rng.normal(0, px, (len(inside), 2)), points=POINTS[inside],
        marker_ids=np.zeros(1, np.int64), markers=np.zeros((1, 4, 2)),
    )  # fmt: skip


def test_corners_are_found_where_they_are() -> None:
    """OpenCV 4.11's detector alone is off by half a pixel, right and down (opencv/opencv#25539)."""
    off = []
    for pose in board_poses(10, centre_m=SPEC.centre_m(), rng=np.random.default_rng(3))[4:8]:
        sight = find_board(picture(pose), SPEC, name="x")
        off.append(sight.corners - corners_of(pose)[sight.ids])
    apart = np.concatenate(off)
    assert len(apart) > 40
    assert np.abs(apart.mean(axis=0)).max() < 0.05
    assert apart.std(axis=0).max() < 0.15


def test_intrinsics_come_back(sights: list[Sight]) -> None:
    report = calibrate_camera(sights, SPEC, camera="wrist", size=(640, 480))
    found = report.calibration
    assert not is_refused(report.judged), as_table(report.judged)
    sd = [*found.details["focal_sd_px"], *found.details["centre_sd_px"]]
    off = np.array([*found.focal_px, *found.centre_px]) - LENS.matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
    assert np.abs(off).max() < 2.0  # 0.3 % of the focal length
    assert (np.abs(off) < 4 * np.array(sd)).all(), (off, sd)
    assert found.distortion[0] == pytest.approx(LENS.distortion[0], abs=0.02)
    assert found.distortion[2:] == pytest.approx(LENS.distortion[2:], abs=1e-3)
    assert found.residual_px < 0.15
    assert found.details["held_out_px"] < 0.2
    unusable = [sight.name for sight in sights if len(sight.ids) < 8]
    assert sorted(report.left_out) == unusable
    assert len(unusable) >= 3  # the board half outside
    # What counts in the end: where rays go. Corners of the picture, a metre away, in millimetres.
    edge = np.array([[[5.0, 5.0]], [[635.0, 475.0]], [[320.0, 240.0]]])
    ours = cv2.undistortPoints(edge, found.matrix(), found.coefficients())
    true = cv2.undistortPoints(edge, LENS.matrix, LENS.distortion)
    assert np.abs(ours - true).max() * 1000 < 4.0


def test_board_pose_comes_back() -> None:
    rng = np.random.default_rng(1)
    for pose in board_poses(12, centre_m=SPEC.centre_m(), rng=rng)[4:8]:
        found, px = board_pose(sight_of(pose, "x", px=0.0, rng=rng), LENS.matrix, LENS.distortion)
        np.testing.assert_allclose(found, pose, atol=1e-6)
        assert px < 1e-4


def simulated(number: int, *, seed: int = 0, px: float = 0.1) -> list[Sight]:
    rng = np.random.default_rng(seed)
    poses = board_poses(number, centre_m=SPEC.centre_m(), rng=rng)
    return [sight_of(pose, f"{index:02}.png", px=px, rng=rng) for index, pose in enumerate(poses)]


def verdicts(sights: list[Sight]) -> dict[str, str]:
    report = calibrate_camera(sights, SPEC, camera="wrist", size=(640, 480))
    return {line.measure: line.verdict for line in report.judged}


def test_bad_picture_is_named_and_left_out() -> None:
    sights = simulated(16)
    good = calibrate_camera(sights, SPEC, camera="wrist", size=(640, 480))
    bent = sights[5].corners + np.random.default_rng(1).normal(0, 4.0, sights[5].corners.shape)
    report = calibrate_camera(
        [*sights[:5], replace(sights[5], corners=bent), *sights[6:]], SPEC, camera="wrist", size=(640, 480)
    )
    assert "blurred, bent or moving" in report.left_out["05.png"]
    assert set(report.left_out) - set(good.left_out) == {"05.png"}
    assert report.judged[-1].verdict == "warning"
    assert report.calibration.focal_px[0] == pytest.approx(good.calibration.focal_px[0], abs=2.5)


def test_noisy_corners_are_refused() -> None:
    assert verdicts(simulated(16, px=1.5))["residual"] == "error"


def test_board_that_was_never_tilted_is_refused() -> None:
    rng = np.random.default_rng(0)
    flat = board_poses(16, centre_m=SPEC.centre_m(), rng=rng)
    for pose in flat:
        middle = pose[:3, :3] @ SPEC.centre_m() + pose[:3, 3]
        pose[:3, :3], pose[:3, 3] = np.eye(3), middle - SPEC.centre_m()
    got = verdicts([sight_of(pose, f"{index:02}.png", px=0.1, rng=rng) for index, pose in enumerate(flat)])
    assert got["pictures with the board tilted over 15 deg"] == "error"
    assert got["residual"] == "ok"  # which alone says nothing


def test_board_in_one_half_of_the_picture_is_refused_and_the_rest_named() -> None:
    sights = [
        replace(s, ids=s.ids[left], corners=s.corners[left], points=s.points[left])
        for s in simulated(36)
        for left in [s.corners[:, 0] < 300]
    ]
    report = calibrate_camera(sights, SPEC, camera="wrist", size=(640, 480))
    (line,) = [line for line in report.judged if line.measure == "picture covered"]
    assert line.verdict == "error"
    assert "upper right, " in line.fix
    assert "left" not in line.fix


def test_empty_places_by_hand() -> None:
    counts = np.ones((4, 6), np.int64)
    assert empty_places(counts) == ""
    counts[0, 5] = counts[2, 3] = 0
    assert empty_places(counts) == "upper right, middle centre"
    corners = np.array([[0.0, 0.0], [639.0, 479.0], [639.0, 0.0]])
    sight = replace(simulated(1)[0], corners=corners, points=POINTS[:3], ids=np.arange(3))
    found = cell_counts([sight], size=(640, 480))
    assert (found.shape, found[0, 0], found[3, 5], found[0, 5], found.sum()) == ((4, 6), 1, 1, 1, 3)


def test_too_few_pictures_name_what_was_wrong(sights: list[Sight]) -> None:
    blank = find_board(np.full((480, 640), 128, np.uint8), SPEC, name="blank.png")
    with pytest.raises(DataError, match=r"at least 10 usable pictures, got 5 .*blank\.png: no board seen"):
        calibrate_camera([blank, *[s for s in sights if s.is_usable()][:5]], SPEC, camera="wrist", size=(640, 480))
    with pytest.raises(ConfigError, match="Did you mean 'rational'"):
        calibrate_camera(sights, SPEC, camera="wrist", size=(640, 480), model="rationl")


@pytest.mark.parametrize("other", [(8, 6), (6, 5), (5, 7), (9, 5)])
def test_another_board_is_refused_with_the_columns_that_fit(
    pictures: dict[str, np.ndarray], other: tuple[int, int]
) -> None:
    wrong = BoardSpec(*other)
    found = [find_board(pictures[f"{index:02}.png"], wrong, name="x") for index in (5, 6, 9)]
    with pytest.raises(DataError, match=f"ChArUco {other[0]} x {other[1]}.*A board of 7 columns fits"):
        check_layout(found, wrong)


def test_board_in_the_old_pattern_is_told_from_the_new() -> None:
    """OpenCV before 4.6 began even rows with the other colour."""
    old, new = BoardSpec(6, 6, legacy=True), BoardSpec(6, 6)
    poses = board_poses(7, centre_m=old.centre_m(), rng=np.random.default_rng(1))[5:7]
    grey = [render(old.board(), squares=(6, 6), square_m=old.square_m, pose=pose) for pose in poses]
    seen = find_boards({str(index): picture for index, picture in enumerate(grey)}, old)
    assert all(sight.is_usable() for sight in seen)
    with pytest.raises(DataError, match=r"A board of 6 columns in the legacy pattern \(--legacy\) fits"):
        find_boards({str(index): picture for index, picture in enumerate(grey)}, new)


def test_own_board_is_taken(sights: list[Sight]) -> None:
    check_layout(sights, SPEC)


def test_printed_page_holds_the_board_at_its_size(tmp_path: Path) -> None:
    """10 pixels a millimetre: neighbours of inner corners are 360 pixels apart, the bar 1000 long."""
    sheet = draw_page(SPEC, page="A4")
    assert sheet.shape == (2100, 2970)
    sight = find_board(sheet, SPEC, name="page")
    assert len(sight.ids) == 6 * 4
    steps = np.diff(sight.corners[np.argsort(sight.ids)].reshape(4, 6, 2), axis=1)
    np.testing.assert_allclose(steps, np.broadcast_to([360.0, 0.0], steps.shape), atol=0.05)
    for name in ("board.pdf", "board.png"):
        write_page(tmp_path / name, SPEC, page="A4")
        assert read_board(tmp_path / "board.json") == SPEC
    media = (tmp_path / "board.pdf").read_bytes().partition(b"MediaBox [ ")[2].split(b"]")[0].split()
    assert [float(number) / 72 * 25.4 for number in media] == pytest.approx([0, 0, 297, 210])
    from PIL import Image

    assert Image.open(tmp_path / "board.png").info["dpi"] == pytest.approx((254, 254), abs=0.01)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (BoardSpec(columns=9), "at most 287 x 188 mm on A4, got 324 x 180"),
        (BoardSpec(square_m=0.03604), "whole tenths"),
        (BoardSpec(columns=12, rows=9, square_m=0.02, marker_m=0.015), "54 markers, got 50 in DICT_4X4_50"),
        (BoardSpec(dictionary="DICT_4x4_50"), "Did you mean 'DICT_4X4_50'"),
    ],
)
def test_board_that_can_not_be_is_refused(spec: BoardSpec, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        draw_page(spec, page="A4")


def test_pictures_of_two_sizes_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got none"):
        read_pictures(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((24, 64), np.uint8))
    with pytest.raises(DataError, match=r"b\.png: expected 64 x 48 like the others, got 64 x 24"):
        read_pictures(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png: expected a picture"):
        read_pictures(tmp_path)


@pytest.mark.parametrize(
    ("value", "warn", "refuse", "verdict"),
    [(0.4, 0.5, 1.0, "ok"), (0.7, 0.5, 1.0, "warning"), (1.1, 0.5, 1.0, "error"), (float("nan"), 0.5, 1.0, "error"),
     (90.0, 80.0, 60.0, "ok"), (70.0, 80.0, 60.0, "warning"), (50.0, 80.0, 60.0, "error")],
)  # fmt: skip
def test_judgement_of_small_and_of_large_values(value: float, warn: float, refuse: float, verdict: str) -> None:
    line = judge("x", value, unit=" px", warn=warn, refuse=refuse, fix="do this")
    assert (line.verdict, line.fix) == (verdict, "" if verdict == "ok" else "do this")


def test_command_writes_what_loads_and_refuses_what_is_bad(
    tmp_path: Path, pictures: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    from robot_rl.deploy.calibration import load_camera

    assert calibrate.main(["board", "--output", str(tmp_path / "board.pdf")]) == 0
    for folder in ("images", "centre"):
        (tmp_path / folder).mkdir()
    for name, grey in pictures.items():
        cv2.imwrite(str(tmp_path / "images" / name), grey)
    words = ["camera", "--name", "wrist", "--images", str(tmp_path / "images"), "--board", str(tmp_path / "board.json")]
    assert calibrate.main([*words, "--output", str(tmp_path / "wrist.json")]) == 0
    out = capsys.readouterr().out
    assert "left out 00.png: only 7 corners" in out
    assert "ok       residual" in out
    found = load_camera(tmp_path / "wrist.json", camera="wrist", width=640, height=480, max_age_days=1.0)
    assert found.details["board"]["square_m"] == 0.036
    for index in range(12):  # the board in the middle only
        cv2.imwrite(str(tmp_path / "centre" / f"{index:02}.png"), pictures[("05.png", "06.png", "17.png")[index % 3]])
    words[words.index(str(tmp_path / "images"))] = str(tmp_path / "centre")
    assert calibrate.main([*words, "--output", str(tmp_path / "bad.json"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["stored"] is None
    assert {line["measure"]: line["verdict"] for line in document["judged"]}["picture covered"] == "error"
    assert not (tmp_path / "bad.json").exists()
    with pytest.raises(ConfigError, match="--images"):
        calibrate.main(["camera", "--output", "x.json"])
