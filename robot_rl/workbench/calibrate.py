"""Calibrate cameras with a ChArUco board (print it, measure a lens, where a camera sits on a robot), and delays.

    robot-rl calibrate board --output board.pdf
    robot-rl calibrate camera --name wrist --images pictures/ --output wrist.json
    robot-rl calibrate camera --name wrist --images pictures/ --output wrist.json camera=uvc camera.name=wrist camera.device=...
    robot-rl calibrate hand-eye --name wrist --images poses/ --poses poses.json --intrinsics wrist.json \\
        --mounting eye_in_hand --robot fr3 --output wrist_on_fr3.json
    robot-rl calibrate latency --help       (of a robot and of cameras; it has options of its own)

With `camera=...` pictures are taken first, into the empty folder --images. Every residual is judged against a stated limit;
what breaks one is named, nothing is stored then, and the exit code is 1. See docs/cameras.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_rl.deploy.calibration import CameraCalibration, HandEyeCalibration, Mounting, load_camera, save_calibration
from robot_rl.errors import ConfigError
from robot_rl.workbench.calibrate_board import PAGES_MM, BoardSpec, find_boards, read_board, read_pictures, write_page
from robot_rl.workbench.calibrate_camera import MODELS, calibrate_camera
from robot_rl.workbench.calibrate_hand_eye import calibrate_hand_eye
from robot_rl.workbench.calibrate_judged import Judged, as_table, is_refused, to_json
from robot_rl.workbench.calibrate_poses import match_pictures, read_poses


def main(words: Sequence[str]) -> int:
    """Run one of the four and print its table.

    Raises:
        ConfigError: wrong words, or a board that can't be.
        DataError: pictures or poses from which nothing follows.
    """
    if words and words[0] == "latency":
        from robot_rl.workbench.calibrate_latency import main as latency

        return latency(words[1:])
    asked = _parser().parse_intermixed_args(list(words))
    if asked.what != "camera" and asked.words:
        raise ConfigError(f"calibrate {asked.what}", expected="options only", got=" ".join(asked.words), hint="")
    if asked.what == "latency":
        raise ConfigError("calibrate latency", expected="the word latency first", got=" ".join(words), hint="")
    return {"board": _board, "camera": _camera, "hand-eye": _hand_eye}[asked.what](asked)


def _board(asked: argparse.Namespace) -> int:
    spec = _spec(asked)
    write_page(asked.output, spec, page=asked.page)
    print(f"{spec.text()}\nwrote {asked.output} ({asked.page}, print at 100 %) and {asked.output.with_suffix('.json')}")
    return 0


def _camera(asked: argparse.Namespace) -> int:
    spec = _spec(asked)
    folder, name = _need(asked, "images"), _need(asked, "name")
    if asked.words:
        _take_pictures(asked, folder, spec, name)
    pictures = read_pictures(folder)
    height, width = next(iter(pictures.values())).shape
    report = calibrate_camera(find_boards(pictures, spec), spec, camera=name, size=(width, height), model=asked.model)
    found = report.calibration
    text = [
        f"camera {found.camera}: {found.images} pictures of {width} x {height}",
        f"focal length {found.focal_px[0]:.2f}, {found.focal_px[1]:.2f} px",
        f"centre {found.centre_px[0]:.2f}, {found.centre_px[1]:.2f} px",
        "distortion " + ", ".join(f"{value:.5f}" for value in found.distortion),
    ]
    return _finish(asked, found, report.judged, report.left_out, text)


def _take_pictures(asked: argparse.Namespace, folder: Path, spec: BoardSpec, name: str) -> None:
    from robot_rl.workbench.calibrate_capture import capture, open_camera

    camera = open_camera(asked.words, config_dir=asked.config_dir)
    if camera.name != name:
        raise ConfigError("--name", expected=f"camera.name ({camera.name})", got=name, hint="Give both the same name.")
    camera.connect()
    try:
        capture(
            camera, folder, spec, number=asked.number, timeout_s=asked.seconds, say=lambda text: print(text, flush=True)
        )
    finally:
        camera.close()


def _hand_eye(asked: argparse.Namespace) -> int:
    spec, folder = _spec(asked), _need(asked, "images")
    poses, mounting = read_poses(_need(asked, "poses")), Mounting(_need(asked, "mounting"))
    robot, path = _need(asked, "robot"), _need(asked, "intrinsics")
    pictures = read_pictures(folder)
    match_pictures(poses, list(pictures), where=str(asked.poses))
    height, width = next(iter(pictures.values())).shape
    intrinsics = load_camera(
        path, camera=_need(asked, "name"), width=width, height=height, max_age_days=asked.max_age_days
    )
    sights = find_boards(pictures, spec)
    report = calibrate_hand_eye(sights, poses, spec, intrinsics=intrinsics, mounting=mounting, robot=robot)
    found = report.calibration
    frame = "gripper" if mounting is Mounting.eye_in_hand else "base"
    text = [
        f"camera {intrinsics.camera} in the {frame}'s frame of {robot}, from {found.poses} poses",
        "position " + ", ".join(f"{value:.5f}" for value in found.position_m) + " m",
        "quaternion wxyz " + ", ".join(f"{value:.6f}" for value in found.quaternion_wxyz),
        *(
            f"{method:14} board scatters by {row['mm']:.3f} mm, {row['deg']:.4f} deg"
            for method, row in report.methods.items()
        ),
        *report.notes,
    ]
    return _finish(asked, found, report.judged, report.left_out, text)


def _finish(
    asked: argparse.Namespace,
    found: CameraCalibration | HandEyeCalibration,
    judged: Sequence[Judged],
    left_out: Mapping[str, str],
    text: Sequence[str],
) -> int:
    """Store what is good, print everything, and say how it ended."""
    output, refused = _need(asked, "output"), is_refused(judged)
    if not refused:
        save_calibration(output, found)
    end = (
        f"not stored: {sum(line.verdict == 'error' for line in judged)} limits broken" if refused else f"wrote {output}"
    )
    if asked.json:
        document = {"stored": None if refused else str(output), "judged": to_json(judged), "left_out": dict(left_out)}
        print(json.dumps(document, indent=2))
    else:
        print("\n".join([*text, *(f"left out {name}: {why}" for name, why in left_out.items()), as_table(judged), end]))
    return 1 if refused else 0


def _spec(asked: argparse.Namespace) -> BoardSpec:
    """The board of --board, with the sides measured on paper where they are given."""
    spec = read_board(asked.board) if asked.board else BoardSpec()
    given = {
        "columns": asked.columns, "rows": asked.rows, "dictionary": asked.dictionary, "legacy": asked.legacy or None,
        "square_m": asked.square_mm and asked.square_mm / 1000, "marker_m": asked.marker_mm and asked.marker_mm / 1000,
    }  # fmt: skip
    return replace(spec, **{key: value for key, value in given.items() if value is not None})


def _need(asked: argparse.Namespace, key: str) -> Any:
    value = getattr(asked, key)
    if value is None:
        raise ConfigError(
            f"calibrate {asked.what}", expected=f"--{key.replace('_', '-')}", got="none", hint="See --help."
        )
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("what", choices=("board", "camera", "hand-eye", "latency"))
    parser.add_argument("words", nargs="*", help="camera: camera=<choice> camera.key=value takes pictures first")
    parser.add_argument(
        "--output", type=Path, required=True, help="of the page (.pdf, .png) or the calibration (.json)"
    )
    parser.add_argument("--images", type=Path, help="folder of pictures")
    parser.add_argument("--name", help="of the camera, as in the key image/<name>")
    parser.add_argument("--model", choices=tuple(MODELS), default="plain", help="camera: distortion (%(default)s)")
    parser.add_argument("--number", type=int, default=30, help="camera: pictures to take (%(default)s)")
    parser.add_argument("--seconds", type=float, default=300.0, help="camera: longest time to take them (%(default)s)")
    parser.add_argument("--poses", type=Path, help="hand-eye: JSON or CSV of the gripper in the base frame")
    parser.add_argument("--intrinsics", type=Path, help="hand-eye: what `calibrate camera` wrote")
    parser.add_argument("--mounting", choices=[mounting.value for mounting in Mounting], help="hand-eye")
    parser.add_argument("--robot", help="hand-eye: name of the robot")
    parser.add_argument("--max-age-days", type=float, help="hand-eye: refuse older intrinsics")
    board = parser.add_argument_group("board")
    board.add_argument("--board", type=Path, help="JSON that `calibrate board` wrote")
    board.add_argument("--columns", type=int)
    board.add_argument("--rows", type=int)
    board.add_argument("--square-mm", type=float, help="side of a square, as measured on paper")
    board.add_argument("--marker-mm", type=float)
    board.add_argument("--dictionary", help="as OpenCV names it")
    board.add_argument("--legacy", action="store_true", help="pattern of OpenCV before 4.6 (even number of rows)")
    board.add_argument("--page", choices=tuple(PAGES_MM), default="A4", help="(%(default)s)")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own YAML files")
    parser.add_argument("--json", action="store_true", help="print the judgement as JSON")
    return parser
