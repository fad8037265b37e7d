"""Hand-eye methods against each other in simulation: `python tests/peers/hand_eye_methods.py [seeds]`.

16 poses, board 0.3 to 0.5 m away, corners and robot with Gaussian noise. Root mean square over seeds of how far the camera is
put from where it is, mm and degrees: OpenCV's closed forms, least squares of pixels alone (the robot taken as exact), and ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from simulated_hand_eye import INTRINSICS, SPEC, off, scene, sight_of

from robot_rl.workbench.calibrate_board import Sight
from robot_rl.workbench.calibrate_camera import board_pose
from robot_rl.workbench.calibrate_hand_eye import METHODS, calibrate_hand_eye, closed_forms
from robot_rl.workbench.calibrate_refine import View

# robot mm, robot degrees, corners px
REGIMES = ((1.0, 0.1, 0.1), (0.3, 0.03, 0.1), (0.05, 0.01, 0.2))


def pixels_alone(views: list[View], sights: list[Sight], x: np.ndarray) -> np.ndarray:
    """X that puts the corners where they were seen, if the robot's poses were exact."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    z = views[0].arm @ x @ views[0].board

    def moved(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
        out = pose.copy()
        out[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(step[:3]).as_matrix()
        out[:3, 3] += step[3:]
        return out

    def residuals(step: np.ndarray) -> np.ndarray:
        back, board = np.linalg.inv(moved(x, step[:6])), moved(z, step[6:])
        out = []
        for view, sight in zip(views, sights, strict=True):
            pose = back @ np.linalg.inv(view.arm) @ board
            turn = cv2.Rodrigues(pose[:3, :3])[0]
            there, _ = cv2.projectPoints(
                sight.points, turn, pose[:3, 3], INTRINSICS.matrix(), INTRINSICS.coefficients()
            )
            out.append(there.reshape(-1, 2) - sight.corners)
        return np.concatenate(out).ravel()

    return moved(x, least_squares(residuals, np.zeros(12), loss="soft_l1", x_scale="jac").x[:6])


def one(seed: int, robot_mm: float, robot_deg: float, px: float) -> dict[str, tuple[float, float]]:
    told, rng = scene(16, seed=seed, robot_mm=robot_mm, robot_deg=robot_deg), np.random.default_rng(1000 + seed)
    sights = [sight_of(board, f"{i:02}.png", px=px, rng=rng) for i, board in enumerate(told.boards)]
    boards = [board_pose(sight, INTRINSICS.matrix(), INTRINSICS.coefficients())[0] for sight in sights]
    out = {}
    for name in METHODS:
        turn, shift = cv2.calibrateHandEye(
            [g[:3, :3] for g in told.grippers], [g[:3, 3] for g in told.grippers], [b[:3, :3] for b in boards],
            [b[:3, 3] for b in boards], method=getattr(cv2, f"CALIB_HAND_EYE_{name}"),
        )  # fmt: skip
        found = np.eye(4)
        found[:3, :3], found[:3, 3] = turn, shift.reshape(3)
        out[name] = off(found)
    views = [View(s.name, g, b, np.eye(6)) for s, g, b in zip(sights, told.grippers, boards, strict=True)]
    out["pixels alone"] = off(pixels_alone(views, sights, closed_forms(views, SPEC)[1]))
    report = calibrate_hand_eye(
        sights, {s.name: g for s, g in zip(sights, told.grippers, strict=True)}, SPEC, intrinsics=INTRINSICS,
        mounting=told.mounting, robot="simulated",
    )  # fmt: skip
    out["ours"] = off(report.calibration.matrix())
    return out


def main(seeds: int) -> dict[str, dict[str, list[float]]]:
    table = {}
    for regime in REGIMES:
        rows = [one(seed, *regime) for seed in range(seeds)]
        table["robot {} mm {} deg, corners {} px".format(*regime)] = {
            name: [round(float(v), 3) for v in np.sqrt(np.mean(np.square([row[name] for row in rows]), axis=0))]
            for name in rows[0]
        }
    return table


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20), indent=1))
