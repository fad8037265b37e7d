"""A robot with a camera whose place is known, and a board before it: poses with noise, and corners without rendering."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from rendered_boards import LENS, rotation, transform

from robot_rl.deploy.calibration import CameraCalibration, Mounting
from robot_rl.workbench.calibrate_board import BoardSpec, Sight

SPEC = BoardSpec()
POINTS = np.asarray(SPEC.board().getChessboardCorners(), np.float64)
X = transform((0.1, -0.2, 1.5), (0.03, -0.06, 0.08))  # camera in gripper or base
BOARD = transform((0.05, 0.02, 0.3), (0.5, 0.1, 0.02))  # board in base or gripper
INTRINSICS = CameraCalibration(
    camera="wrist", width=640, height=480, focal_px=(612.0, 608.0), centre_px=(325.5, 236.0),
    distortion=tuple(LENS.distortion.tolist()), residual_px=0.1, images=20, created="2026-11-01T00:00:00+00:00",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Poses of the gripper, and where the board truly was in the camera."""

    mounting: Mounting
    grippers: list[np.ndarray]
    boards: list[np.ndarray]


def scene(
    number: int, *, mounting: str = "eye_in_hand", seed: int = 0, robot_mm: float = 0.0, robot_deg: float = 0.0
) -> Scene:
    """The board 0.3 to 0.5 m before the camera, tilted up to 40 degrees; the robot says its pose with noise."""
    rng = np.random.default_rng(seed)
    kind, grippers, boards = Mounting(mounting), [], []
    for _ in range(number):
        tilt, around = np.radians(rng.uniform(5, 40)), rng.uniform(0, 2 * np.pi)
        board = np.eye(4)
        board[:3, :3] = rotation((tilt * np.cos(around), tilt * np.sin(around), 0)) @ rotation(
            (0, 0, rng.uniform(-0.6, 0.6))
        )
        middle = np.array([rng.uniform(-0.05, 0.05), rng.uniform(-0.04, 0.04), rng.uniform(0.3, 0.5)])
        board[:3, 3] = middle - board[:3, :3] @ SPEC.centre_m()
        arm = BOARD @ np.linalg.inv(board) @ np.linalg.inv(X)
        gripper = arm if kind is Mounting.eye_in_hand else np.linalg.inv(arm)
        grippers.append(gripper @ transform(rng.normal(0, np.radians(robot_deg), 3), rng.normal(0, robot_mm / 1000, 3)))
        boards.append(board)
    return Scene(kind, grippers, boards)


def sight_of(board: np.ndarray, name: str, *, px: float, rng: np.random.Generator, scale: float = 1.0) -> Sight:
    """Corners with noise; with squares `scale` times as large as the spec says."""
    there, _ = cv2.projectPoints(
        POINTS * scale, cv2.Rodrigues(board[:3, :3])[0], board[:3, 3], LENS.matrix, LENS.distortion
    )
    return Sight(
        name=name, ids=np.arange(len(POINTS)), corners=there.reshape(-1, 2) + rng.normal(0, px, (len(POINTS), 2)),
        points=POINTS, marker_ids=np.zeros(1, np.int64), markers=np.zeros((1, 4, 2)),
    )  # fmt: skip


def off(found: np.ndarray) -> tuple[float, float]:
    """Millimetres and degrees from the true X."""
    turn = cv2.Rodrigues(X[:3, :3].T @ found[:3, :3])[0]
    return 1000 * float(np.linalg.norm(found[:3, 3] - X[:3, 3])), float(np.degrees(np.linalg.norm(turn)))
