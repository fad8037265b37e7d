"""Where a camera sits on a robot: hand-eye calibration from pictures of a ChArUco board and the robot's poses.

One equation for both mountings: A_i X C_i = Z for every pose i. C_i leads from board to camera (measured). Eye in hand: A_i
is the gripper in the base, X the camera in the gripper, Z the board in the base. Eye to hand: A_i is the base in the gripper,
X the camera in the base, Z the board in the gripper. The closed forms of cv2.calibrateHandEye (Tsai, Park, Horaud, Andreff,
Daniilidis) are compared, and the best is the start of the least squares in calibrate_refine.py. Judged by leave-one-out: a fit
without pose i says where the board is in picture i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.calibration import CameraCalibration, HandEyeCalibration, Mounting
from robot_rl.errors import ConfigError, DataError
from robot_rl.workbench.calibrate_board import BoardSpec, Sight
from robot_rl.workbench.calibrate_camera import board_pose
from robot_rl.workbench.calibrate_judged import Judged, is_refused, judge
from robot_rl.workbench.calibrate_poses import check_match, check_motion, read_scalar_last
from robot_rl.workbench.calibrate_refine import Fit, View, board_spread, errors, refine, solve, turn_between

METHODS = ("TSAI", "PARK", "HORAUD", "ANDREFF", "DANIILIDIS")
BOARD_FITS_PX = 2.0
BAD_TIMES, BAD_MM = 4.0, 1.0
MOST_BAD = 0.25
SURE_SDS = 3.0
# measure -> (warning, refused)
LIMITS = {
    "mm": (3.0, 6.0),
    "deg": (0.5, 1.5),
    "sd_mm": (1.0, 3.0),
    "sd_deg": (0.15, 0.5),
    "scale_percent": (0.5, 1.5),
}


@dataclass(frozen=True)
class HandEyeReport:
    """A calibration with what was judged.

    Attributes:
        calibration: to be stored when nothing is refused.
        judged: one line a measure.
        left_out: picture -> why it was not used.
        methods: closed form, or "least squares" -> how far the board scatters in the fixed frame, {"mm", "deg"}.
        notes: for people.
    """

    calibration: HandEyeCalibration
    judged: tuple[Judged, ...]
    left_out: dict[str, str]
    methods: dict[str, dict[str, float]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """The fit to all poses; per pose how far off the fit without it puts the board (mm at its middle, degrees)."""

    fit: Fit
    mm: Float64[Array, " N"]
    deg: Float64[Array, " N"]
    without: tuple[Fit, ...]
    methods: dict[str, dict[str, float]]


def calibrate_hand_eye(
    sights: Sequence[Sight],
    poses: Mapping[str, Float64[Array, "4 4"]],
    spec: BoardSpec,
    *,
    intrinsics: CameraCalibration,
    mounting: Mounting,
    robot: str,
) -> HandEyeReport:
    """Fit and judge where the camera sits; pictures far worse than the rest are left out by name, once.

    Args:
        sights: what was found in each picture.
        poses: picture -> gripper in the base frame, m.
        spec: the board.
        intrinsics: of this camera at this resolution.
        mounting: see Mounting.
        robot: name that the calibration is for.

    Raises:
        DataError: too few poses, degenerate motion, or poses that are not those of the pictures.
    """
    views, left_out = _views(sights, poses, spec, intrinsics=intrinsics, mounting=mounting)
    found = _fit(views, spec, mounting)
    bad = found.mm > max(BAD_MM, BAD_TIMES * float(np.median(found.mm)))
    if bad.any():
        for index in np.flatnonzero(bad):
            why = f"board {found.mm[index]:.1f} mm off: arm moving, or pose of another picture"
            left_out[views[index].name] = why
        views = [view for view, is_bad in zip(views, bad, strict=True) if not is_bad]
        found = _fit(views, spec, mounting)
    fit = found.fit
    sized = solve(views, fit, middle=spec.centre_m(), mounting=mounting, free_scale=True)
    sd_mm, sd_deg = jackknife(fit, found.without)
    rms_mm, rms_deg = (float(np.sqrt((values**2).mean())) for values in (found.mm, found.deg))
    judged = (
        *_judged(rms_mm, rms_deg, sd_mm, sd_deg), _judged_scale(sized, spec), _judged_bad(int(bad.sum()), len(views))
    )  # fmt: skip
    details = {
        "board": spec.to_json(), "board_pose": fit.z.tolist(), "methods": found.methods, "left_out": left_out,
        "sd_mm": sd_mm, "sd_deg": sd_deg, "board_scale": sized.scale, "board_scale_sd": sized.scale_sd,
        "robot_sd_mm": 1000 * fit.noise.shift_m, "robot_sd_deg": float(np.degrees(fit.noise.turn_rad)),
        "images": {
            view.name: {"mm": round(float(mm), 3), "deg": round(float(deg), 4)}
            for view, mm, deg in zip(views, found.mm, found.deg, strict=True)
        },
        "limits": {key: list(value) for key, value in LIMITS.items()},
    }  # fmt: skip
    w, x, y, z = _quaternion_wxyz(fit.x)
    px, py, pz = fit.x[:3, 3].tolist()
    calibration = HandEyeCalibration(
        camera=intrinsics, robot=robot, mounting=mounting, position_m=(px, py, pz), quaternion_wxyz=(w, x, y, z),
        residual_mm=rms_mm, residual_deg=rms_deg, poses=len(views),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), details=details,
    )  # fmt: skip
    notes = _notes(views, spec, fit, mounting, mm=rms_mm if is_refused(judged) else 0.0)
    return HandEyeReport(calibration, judged, left_out, found.methods, notes)


def _views(
    sights: Sequence[Sight],
    poses: Mapping[str, Any],
    spec: BoardSpec,
    *,
    intrinsics: CameraCalibration,
    mounting: Mounting,
) -> tuple[list[View], dict[str, str]]:
    """Poses with a picture in which the board was found; what was left out, and why."""
    found, left_out = list[tuple[Sight, np.ndarray, float]](), dict[str, str]()
    for sight in sights:
        if sight.name not in poses:
            left_out[sight.name] = "no pose"
        elif not sight.is_usable():
            left_out[sight.name] = f"{len(sight.ids)} corners seen"
        else:
            board, px = board_pose(sight, intrinsics.matrix(), intrinsics.coefficients())
            if px > BOARD_FITS_PX:
                left_out[sight.name] = f"board fits to {px:.1f} px only: blurred, bent, or wrong intrinsics"
            else:
                found.append((sight, board, px))
    noise_px = float(np.median([px for _, _, px in found])) / np.sqrt(2) if found else 0.0
    views = []
    for sight, board, _ in found:
        arm = poses[sight.name] if mounting is Mounting.eye_in_hand else np.linalg.inv(poses[sight.name])
        spread = board_spread(sight.points, board, spec.centre_m(), intrinsics=intrinsics, px=noise_px)
        views.append(View(sight.name, arm, board, spread))
    return views, left_out


def _fit(views: Sequence[View], spec: BoardSpec, mounting: Mounting) -> _Found:
    arms, boards = [view.arm for view in views], [view.board for view in views]
    check_motion(arms)
    check_match([view.name for view in views], arms, boards)
    methods, x = closed_forms(views, spec)
    middle = spec.centre_m()
    fit = refine(views, x, _mean_board(views, x), middle=middle, mounting=mounting)
    methods["least squares"] = consistency(views, spec, fit.x)
    without, off = list[Fit](), list[np.ndarray]()
    for index, view in enumerate(views):
        other = solve([*views[:index], *views[index + 1 :]], fit, middle=middle, mounting=mounting)
        without.append(other)
        off.append(errors([view], other, middle=middle)[0])
    table = np.array(off)
    mm, deg = 1000 * np.linalg.norm(table[:, 3:], axis=1), np.degrees(np.linalg.norm(table[:, :3], axis=1))
    return _Found(fit, mm, deg, tuple(without), methods)


def closed_forms(views: Sequence[View], spec: BoardSpec) -> tuple[dict[str, dict[str, float]], Float64[Array, "4 4"]]:
    """Each closed form with its consistency, and the X of the most consistent.

    Raises:
        DataError: when none gives a pose.
        ConfigError: OpenCV 5, where calibrateHandEye is no more.
    """
    import cv2

    if not hasattr(cv2, "calibrateHandEye"):
        raise ConfigError(
            "hand-eye",
            expected="OpenCV 4.7 to 4.x",
            got=str(cv2.__version__),
            hint="Install 'opencv-python-headless<5'.",
        )
    arms, boards = [view.arm for view in views], [view.board for view in views]
    table: dict[str, dict[str, float]] = {}
    results: dict[str, np.ndarray] = {}
    for name in METHODS:
        try:
            turn, shift = cv2.calibrateHandEye(
                [a[:3, :3] for a in arms], [a[:3, 3] for a in arms], [c[:3, :3] for c in boards],
                [c[:3, 3] for c in boards], method=getattr(cv2, f"CALIB_HAND_EYE_{name}"),
            )  # fmt: skip
        except cv2.error:
            continue
        if np.isfinite(turn).all() and np.isfinite(shift).all() and abs(np.linalg.det(turn) - 1) < 1e-3:
            results[name] = np.eye(4)
            results[name][:3, :3], results[name][:3, 3] = turn, np.asarray(shift).reshape(3)
            table[name] = consistency(views, spec, results[name])
    if not table:
        raise DataError("hand-eye", expected="one closed form with a result", got="none", hint="More and wider turns.")
    return table, results[min(table, key=lambda name: table[name]["mm"])]


def consistency(views: Sequence[View], spec: BoardSpec, x: Float64[Array, "4 4"]) -> dict[str, float]:
    """How far the board scatters when each pose says where it is: root mean squares, mm at its middle, and degrees."""
    boards, middle = [view.arm @ x @ view.board for view in views], np.append(spec.centre_m(), 1.0)
    mean = _mean_board(views, x)
    mm = [1000 * np.linalg.norm((board @ middle - mean @ middle)[:3]) for board in boards]
    deg = [np.degrees(np.linalg.norm(turn_between(mean[:3, :3], board[:3, :3]))) for board in boards]
    return {"mm": float(np.sqrt(np.square(mm).mean())), "deg": float(np.sqrt(np.square(deg).mean()))}


def jackknife(fit: Fit, without: Sequence[Fit]) -> tuple[float, float]:
    """Standard deviation of X from the fits without one pose each (Efron 1982): length of the vector, mm and degrees."""
    number = len(without)
    shifts = np.array([other.x[:3, 3] for other in without]) * 1000
    turns = np.degrees([turn_between(fit.x[:3, :3], other.x[:3, :3]) for other in without])
    sds = [np.sqrt((number - 1) / number * ((v - v.mean(axis=0)) ** 2).sum()) for v in (shifts, turns)]
    return float(sds[0]), float(sds[1])


def _quaternion_wxyz(pose: np.ndarray) -> tuple[float, float, float, float]:
    """Of the rotation, with w at least 0."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    sign = -1.0 if w < 0 else 1.0
    return (float(w * sign), float(x * sign), float(y * sign), float(z * sign))


def _mean_board(views: Sequence[View], x: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    boards = np.array([view.arm @ x @ view.board for view in views])
    out = np.eye(4)
    out[:3, :3] = Rotation.from_matrix(boards[:, :3, :3]).mean().as_matrix()
    out[:3, 3] = np.median(boards[:, :3, 3], axis=0)
    return out


def _notes(views: Sequence[View], spec: BoardSpec, fit: Fit, mounting: Mounting, *, mm: float) -> tuple[str, ...]:
    """The robot's noise, and which common mistake would explain a bad residual `mm`."""
    turn, shift = np.degrees(fit.noise.turn_rad), 1000 * fit.noise.shift_m
    notes = [f"the robot's own poses look exact to {shift:.2f} mm and {turn:.3f} deg (standard deviation of an axis)"]
    back = mounting is Mounting.eye_to_hand

    def reread(arm: np.ndarray) -> np.ndarray:
        return np.linalg.inv(read_scalar_last(np.linalg.inv(arm))) if back else read_scalar_last(arm)

    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mounted the other way": np.linalg.inv, "with quaternions read as x, y, z, w": reread,
    }  # fmt: skip
    for name, change in changes.items():
        changed = [replace(view, arm=change(view.arm)) for view in views]
        other = min(row["mm"] for row in closed_forms(changed, spec)[0].values())
        if other < mm / 3:
            notes.append(f"{name} it would fit to {other:.1f} mm: check --mounting and --poses")
    return tuple(notes)


def _judged(mm: float, deg: float, sd_mm: float, sd_deg: float) -> tuple[Judged, ...]:
    still = (
        "Stand still for a second at each pose; is the mounting right, the board fixed, the flange the pose's frame?"
    )
    rows = (
        ("board where a fit without the picture puts it", "mm", mm, " mm", still),
        ("board's turn likewise", "deg", deg, " deg", still),
        ("camera's place, standard deviation", "sd_mm", sd_mm, " mm", "More poses, turned further."),
        ("camera's turn, standard deviation", "sd_deg", sd_deg, " deg", "More poses, turned further."),
    )
    return tuple(
        judge(measure, value, unit=unit, warn=LIMITS[key][0], refuse=LIMITS[key][1], fix=fix)
        for measure, key, value, unit, fix in rows
    )


def _judged_scale(sized: Fit, spec: BoardSpec) -> Judged:
    """A wrong length of the squares; only what stands out of its own uncertainty."""
    off, sd = 100 * abs(sized.scale - 1), 100 * sized.scale_sd
    warn, refuse = LIMITS["scale_percent"]
    real_mm = 1000 * spec.square_m * sized.scale
    fix = f"Against the robot's motion a square is {real_mm:.2f} mm (+- {10 * spec.square_m * sd:.2f}): measure the board."
    return judge(
        f"size of the board against the robot's motion (sd {sd:.2f} %)", off if off > SURE_SDS * sd else 0.0, unit=" %",
        warn=warn, refuse=refuse, fix=fix,
    )  # fmt: skip


def _judged_bad(bad: int, used: int) -> Judged:
    verdict = "error" if bad > MOST_BAD * (bad + used) else "warning" if bad else "ok"
    fix = "They are named above; take them again." if bad else ""
    return Judged("pictures far worse than the rest", str(bad), f"refused above {MOST_BAD:.0%}", verdict, fix)
