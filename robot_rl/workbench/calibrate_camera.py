"""Intrinsics of a camera from pictures of a ChArUco board, with cv2.calibrateCamera (Zhang 2000), and how good they are.

Judged, with the limits of LIMITS: residual of all corners and of each picture, residual of pictures that the fit did not
see, standard deviation of the focal length, how much of the picture was covered, and how far the board was tilted (without
tilt focal length and distance are one number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.calibration import CameraCalibration
from robot_rl.errors import ConfigError, DataError, closest
from robot_rl.workbench.calibrate_board import BoardSpec, Sight
from robot_rl.workbench.calibrate_judged import Judged, judge

FEWEST_IMAGES = 10
GRID = (6, 4)
FOLDS = 5
TILT_DEG = 15.0
BAD_TIMES, BAD_PX = 3.0, 0.5
MOST_BAD = 0.25
# measure -> (warning, refused)
LIMITS = {
    "residual_px": (0.5, 1.0),
    "held_out_px": (0.6, 1.2),
    "focal_sd_percent": (0.3, 1.0),
    "centre_sd_percent": (0.3, 1.0),
    "coverage_percent": (80.0, 60.0),
    "tilted_images": (5.0, 3.0),
}
# name -> number of coefficients
MODELS = {"plain": 4, "k3": 5, "rational": 8}


@dataclass(frozen=True)
class Intrinsics:
    """One fit.

    Attributes:
        matrix: K, pixels.
        distortion: OpenCV's coefficients.
        residual_px: root mean square over all corners.
        per_image_px: of each picture.
        sd: standard deviations of fx, fy, cx, cy, pixels.
        tilt_deg: angle between the board's normal and the optical axis, of each picture.
    """

    matrix: Float64[Array, "3 3"]
    distortion: Float64[Array, " D"]
    residual_px: float
    per_image_px: Float64[Array, " V"]
    sd: Float64[Array, "4"]
    tilt_deg: Float64[Array, " V"]


@dataclass(frozen=True)
class CameraReport:
    """A calibration with what was judged.

    Attributes:
        calibration: to be stored when nothing is refused.
        judged: one line a measure.
        left_out: picture -> why it was not used.
    """

    calibration: CameraCalibration
    judged: tuple[Judged, ...]
    left_out: dict[str, str]


def calibrate_camera(
    sights: Sequence[Sight], spec: BoardSpec, *, camera: str, size: tuple[int, int], model: str = "plain"
) -> CameraReport:
    """Fit and judge the intrinsics; pictures far worse than the rest are left out by name, once.

    Args:
        sights: what was found in each picture.
        spec: the board.
        camera: name that the calibration is for.
        size: width and height, pixels.
        model: of MODELS: "plain" (k1 k2 p1 p2), "k3" for wide lenses, "rational" for very wide ones.

    Raises:
        ConfigError: unknown model.
        DataError: fewer than FEWEST_IMAGES usable pictures.
    """
    if model not in MODELS:
        raise ConfigError("--model", expected="a distortion model", got=repr(model), hint=closest(model, MODELS))
    left_out = {s.name: _why_unusable(s) for s in sights if not s.is_usable()}
    used = [sight for sight in sights if sight.is_usable()]
    _require_enough(used, left_out)
    fit = fit_intrinsics(used, size=size, model=model)
    bad = fit.per_image_px > max(BAD_PX, BAD_TIMES * float(np.median(fit.per_image_px)))
    if bad.any():
        for index in np.flatnonzero(bad):
            left_out[used[index].name] = f"residual {fit.per_image_px[index]:.2f} px: blurred, bent or moving"
        used = [sight for sight, is_bad in zip(used, bad, strict=True) if not is_bad]
        _require_enough(used, left_out)
        fit = fit_intrinsics(used, size=size, model=model)
    held_out_px = _held_out(used, size=size, model=model)
    counts, cells = cell_counts(used, size=size), GRID[0] * GRID[1]
    judged = (*_judged(fit, held_out_px, counts, size=size), _judged_bad(int(bad.sum()), len(used)))
    details = {
        "board": spec.to_json(), "model": model, "held_out_px": held_out_px,
        "focal_sd_px": fit.sd[:2].tolist(), "centre_sd_px": fit.sd[2:].tolist(),
        "coverage_percent": 100.0 * float((counts > 0).sum()) / cells,
        "images": {s.name: round(float(px), 4) for s, px in zip(used, fit.per_image_px, strict=True)},
        "left_out": left_out, "limits": {key: list(value) for key, value in LIMITS.items()},
    }  # fmt: skip
    matrix = fit.matrix
    calibration = CameraCalibration(
        camera=camera, width=size[0], height=size[1], focal_px=(float(matrix[0, 0]), float(matrix[1, 1])),
        centre_px=(float(matrix[0, 2]), float(matrix[1, 2])), distortion=tuple(fit.distortion.tolist()),
        residual_px=fit.residual_px, images=len(used),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), details=details,
    )  # fmt: skip
    return CameraReport(calibration, judged, left_out)


def fit_intrinsics(sights: Sequence[Sight], *, size: tuple[int, int], model: str) -> Intrinsics:
    """One call of cv2.calibrateCameraExtended over all corners."""
    import cv2

    flags = {"plain": cv2.CALIB_FIX_K3, "k3": 0, "rational": cv2.CALIB_RATIONAL_MODEL}[model]
    points = [sight.points.astype(np.float32) for sight in sights]
    corners = [sight.corners.astype(np.float32) for sight in sights]
    residual, matrix, distortion, turns, _, sd, _, per_image = cv2.calibrateCameraExtended(
        points, corners, size, None, None, flags=flags
    )
    normals = np.array([cv2.Rodrigues(turn)[0][2, 2] for turn in turns])
    return Intrinsics(
        matrix=np.asarray(matrix, np.float64), distortion=np.asarray(distortion, np.float64).reshape(-1)[: MODELS[model]],
        residual_px=float(residual), per_image_px=np.asarray(per_image, np.float64).reshape(-1),
        sd=np.asarray(sd, np.float64).reshape(-1)[:4], tilt_deg=np.degrees(np.arccos(np.clip(np.abs(normals), 0, 1))),
    )  # fmt: skip


def board_pose(
    sight: Sight, matrix: Float64[Array, "3 3"], distortion: Float64[Array, " D"]
) -> tuple[Float64[Array, "4 4"], float]:
    """Board to camera, and the root mean square residual in pixels; of a plane's two solutions the better one."""
    import cv2

    _, turns, shifts, _ = cv2.solvePnPGeneric(sight.points, sight.corners, matrix, distortion, flags=cv2.SOLVEPNP_IPPE)
    best, best_px = np.eye(4), float("inf")
    for first_turn, first_shift in zip(turns, shifts, strict=True):
        turn, shift = cv2.solvePnPRefineLM(sight.points, sight.corners, matrix, distortion, first_turn, first_shift)
        there, _ = cv2.projectPoints(sight.points, turn, shift, matrix, distortion)
        px = float(np.sqrt(((there.reshape(-1, 2) - sight.corners) ** 2).sum(axis=1).mean()))
        if px < best_px:
            best, best_px = np.eye(4), px
            best[:3, :3], best[:3, 3] = cv2.Rodrigues(turn)[0], np.asarray(shift).reshape(3)
    return best, best_px


def cell_counts(sights: Sequence[Sight], *, size: tuple[int, int]) -> np.ndarray:
    """Corners in each cell of the picture, int64 (rows, columns) of GRID."""
    corners = np.concatenate([sight.corners for sight in sights])
    edges = [np.linspace(0, size[axis], GRID[axis] + 1) - 0.5 for axis in (1, 0)]
    counts, _ = np.histogramdd(corners[:, ::-1], bins=edges)
    return counts.astype(np.int64)


def empty_places(counts: np.ndarray) -> str:
    """Where nothing was seen, in words."""
    rows, columns = counts.shape
    words = []
    for name, row in (("upper", slice(0, 1)), ("middle", slice(1, rows - 1)), ("lower", slice(rows - 1, rows))):
        for side, column in (
            ("left", slice(0, 2)),
            ("centre", slice(2, columns - 2)),
            ("right", slice(columns - 2, columns)),
        ):
            if (counts[row, column] == 0).any():
                words.append(f"{name} {side}")
    return ", ".join(words)


def _held_out(sights: Sequence[Sight], *, size: tuple[int, int], model: str) -> float:
    """Root mean square residual of pictures in which only the board's pose was fitted, over FOLDS fits without them."""
    squares, number = 0.0, 0
    for fold in range(FOLDS):
        fit = fit_intrinsics([s for i, s in enumerate(sights) if i % FOLDS != fold], size=size, model=model)
        for sight in sights[fold::FOLDS]:
            _, px = board_pose(sight, fit.matrix, fit.distortion)
            squares += px**2 * len(sight.corners)
            number += len(sight.corners)
    return float(np.sqrt(squares / number))


def _judged(fit: Intrinsics, held_out_px: float, counts: np.ndarray, *, size: tuple[int, int]) -> tuple[Judged, ...]:
    def line(measure: str, key: str, value: float, unit: str, fix: str) -> Judged:
        warn, refuse = LIMITS[key]
        return judge(measure, value, unit=unit, warn=warn, refuse=refuse, fix=fix)

    coverage = 100.0 * float((counts > 0).mean())
    tilted = float((fit.tilt_deg > TILT_DEG).sum())
    return (
        line("residual", "residual_px", fit.residual_px, " px", "Hold the board still and flat; or --model k3."),
        line(
            "residual of pictures held out", "held_out_px", held_out_px, " px",
            "More pictures, or fewer coefficients (--model plain).",
        ),
        line(
            "focal length, standard deviation", "focal_sd_percent",
            100 * float((fit.sd[:2] / np.diag(fit.matrix)[:2]).max()), " %", "More pictures, closer, and more tilt.",
        ),
        line(
            "centre, standard deviation", "centre_sd_percent", 100 * float((fit.sd[2:] / size).max()), " %",
            "More pictures with the board tilted both ways.",
        ),
        line("picture covered", "coverage_percent", coverage, " %", f"Nothing seen: {empty_places(counts)}."),
        line(
            f"pictures with the board tilted over {TILT_DEG:g} deg", "tilted_images", tilted, "",
            "Tilt the board by 20 to 45 degrees, to all four sides.",
        ),
    )  # fmt: skip


def _judged_bad(bad: int, used: int) -> Judged:
    share = bad / (bad + used)
    verdict = "error" if share > MOST_BAD else "warning" if bad else "ok"
    fix = "They are named above; take them again." if bad else ""
    return Judged("pictures far worse than the rest", str(bad), f"refused above {MOST_BAD:.0%}", verdict, fix)


def _why_unusable(sight: Sight) -> str:
    if not len(sight.marker_ids):
        return "no board seen"
    if not len(sight.ids):
        return f"{len(sight.marker_ids)} markers and no corner seen: blurred, or another board"
    return f"only {len(sight.ids)} corners seen, or all on one line"


def _require_enough(used: Sequence[Sight], left_out: dict[str, Any]) -> None:
    if len(used) < FEWEST_IMAGES:
        named = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:5])
        raise DataError(
            "calibration of a camera", expected=f"at least {FEWEST_IMAGES} usable pictures",
            got=f"{len(used)} ({named or 'nothing left out'})", hint="Take 20 to 40 with the board in all places.",
        )  # fmt: skip
