"""Taking pictures of a board by themselves: only still ones, only new places, and through the real fake camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from rendered_boards import board_poses, render  # noqa: E402

from robot_rl.deploy.calibration import load_camera  # noqa: E402
from robot_rl.errors import ConfigError, DataError  # noqa: E402
from robot_rl.workbench import calibrate  # noqa: E402
from robot_rl.workbench.calibrate_board import BoardSpec  # noqa: E402
from robot_rl.workbench.calibrate_capture import capture, open_camera  # noqa: E402

SPEC = BoardSpec()


@pytest.fixture(scope="module")
def boards() -> list[np.ndarray]:
    """RGB pictures of the board in twelve places."""
    poses = board_poses(12, centre_m=SPEC.centre_m(), rng=np.random.default_rng(7))
    grey = [render(SPEC.board(), squares=(7, 5), square_m=SPEC.square_m, pose=pose) for pose in poses]
    return [np.repeat(picture[:, :, None], 3, axis=2) for picture in grey]


class Played:
    """A camera that shows these pictures, one a read, each with a number of its own."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._pictures, self._reads = pictures, 0

    def read(self) -> SimpleNamespace:
        self._reads += 1
        return SimpleNamespace(image=self._pictures[(self._reads - 1) % len(self._pictures)], sequence=self._reads)


def test_still_pictures_of_new_places_are_taken(tmp_path: Path, boards: list[np.ndarray]) -> None:
    empty = np.full_like(boards[0], 128)
    shown = [boards[5], boards[6], boards[6], empty, boards[6], boards[6], boards[9], boards[9], boards[9]]
    said: list[str] = []
    capture(Played(shown), tmp_path / "new", SPEC, number=2, timeout_s=60.0, say=said.append)
    taken = [cv2.imread(str(path)) for path in sorted((tmp_path / "new").iterdir())]
    assert len(taken) == 2
    assert np.array_equal(taken[0], boards[6])  # 5 was not still, 6 not new the second time
    assert np.array_equal(taken[1], boards[9])
    assert said[0].startswith("1/2 000.png: ")
    assert "not seen yet: upper left" in said[0]


def test_moving_board_is_never_taken(tmp_path: Path, boards: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"3 pictures within 2 s, got 0.*Hold the board still"):
        capture(Played(boards[4:8]), tmp_path / "x", SPEC, number=3, timeout_s=2.0, say=str)


def test_folder_with_pictures_is_left_alone(tmp_path: Path, boards: list[np.ndarray]) -> None:
    (tmp_path / "old.png").touch()
    with pytest.raises(DataError, match="an empty folder"):
        capture(Played(boards), tmp_path, SPEC, number=3, timeout_s=2.0, say=str)


def test_camera_is_calibrated_live(
    tmp_path: Path, boards: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "recording.npy", np.repeat(np.stack(boards), 4, axis=0))
    words = [
        "camera", "--name", "wrist", "--images", str(tmp_path / "new"), "--output", str(tmp_path / "wrist.json"),
        "--number", "10", "--seconds", "120", "camera=fake", "camera.name=wrist", "camera.rate_hz=10",
        "camera.warmup_frames=2", "camera.rate_tolerance=10", "camera.repeats_are_frozen=false",
        "camera.connect_timeout_s=30", f"camera.recording={tmp_path / 'recording.npy'}",
    ]  # fmt: skip
    code = calibrate.main(words)
    out = capsys.readouterr().out
    assert "10/10 009.png" in out
    assert code == (1 if "not stored" in out else 0)
    if not code:
        assert load_camera(tmp_path / "wrist.json", camera="wrist", width=640, height=480).images == 10
    with pytest.raises(ConfigError, match="Give both the same name"):
        calibrate.main([*words, "--name", "front"])
    with pytest.raises(ConfigError, match="web"):
        calibrate.main([*words[:7], "camera=web"])


@pytest.mark.parametrize(
    ("choice", "key", "value"), [("uvc", "device", "serial:AB12"), ("realsense", "serial", "'123'")]
)
def test_real_cameras_are_built_from_their_group_and_need_a_name(choice: str, key: str, value: str) -> None:
    words = [f"camera={choice}", "camera.name=wrist"]
    with pytest.raises(ConfigError, match=f"camera.{key}: expected a value"):
        open_camera(words, config_dir=None)
    camera = open_camera([*words, f"camera.{key}={value}", "camera.width=1280"], config_dir=None)
    assert (camera.name, camera.config.width, camera.status().state) == ("wrist", 1280, "closed")
    assert getattr(camera.config, key) == value.strip("'")
