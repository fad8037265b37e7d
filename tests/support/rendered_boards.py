"""Pictures of a ChArUco board by a camera that is known exactly: every pixel's ray is met with the board's plane."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PX_PER_M = 3000.0
FINER = 2
_RAYS: dict[int, np.ndarray] = {}


@dataclass(frozen=True)
class Lens:
    """A camera as OpenCV describes it."""

    width: int
    height: int
    matrix: np.ndarray
    distortion: np.ndarray


LENS = Lens(
    640, 480, np.array([[612.0, 0, 325.5], [0, 608.0, 236.0], [0, 0, 1]]), np.array([-0.12, 0.05, 0.0012, -0.0008])
)


def render(
    board: object, *, squares: tuple[int, int], square_m: float, pose: np.ndarray, lens: Lens = LENS, noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:  # fmt: skip
    """uint8 (H, W) grey.

    Args:
        board: OpenCV's CharucoBoard.
        squares, square_m: its columns and rows, and their side.
        pose: board to camera, (4, 4).
        lens: of the camera.
        noise: standard deviation of the grey levels.
        rng: of the noise.
    """
    texture = board.generateImage((round(squares[0] * square_m * PX_PER_M), round(squares[1] * square_m * PX_PER_M)))
    rays = _rays(lens)
    # A board point (x, y) is seen along x * r1 + y * r2 + t, so the inverse homography leads from rays to the board.
    there = (np.linalg.inv(np.stack([pose[:3, 0], pose[:3, 1], pose[:3, 3]], axis=1)) @ rays.T).astype(np.float32)
    on_board = (there[:2] / there[2]).T.reshape(lens.height * FINER, lens.width * FINER, 2)
    grid = on_board * np.float32(PX_PER_M) - np.float32(0.5)
    fine = cv2.remap(
        texture, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=235
    )
    picture = cv2.resize(fine, (lens.width, lens.height), interpolation=cv2.INTER_AREA).astype(np.float64)
    picture = 20 + 0.8 * picture  # neither black nor white
    if rng is not None:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.6) + noise * rng.standard_normal(picture.shape)
    return np.clip(picture.round(), 0, 255).astype(np.uint8)


def _rays(lens: Lens) -> np.ndarray:
    """(pixels, 3): directions of the fine grid's pixels, z = 1, by fixed-point iteration of the distortion's formula."""
    if id(lens) not in _RAYS:
        rows, columns = np.mgrid[: lens.height * FINER, : lens.width * FINER]
        pixels = (np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) / FINER - 0.5
        x0 = (pixels[:, 0] - lens.matrix[0, 2]) / lens.matrix[0, 0]
        y0 = (pixels[:, 1] - lens.matrix[1, 2]) / lens.matrix[1, 1]
        k1, k2, p1, p2 = lens.distortion
        x, y = x0, y0
        for _ in range(20):
            square = x * x + y * y
            radial = 1 + k1 * square + k2 * square**2
            x, y = (
                (x0 - 2 * p1 * x * y - p2 * (square + 2 * x * x)) / radial,
                (y0 - p1 * (square + 2 * y * y) - 2 * p2 * x * y) / radial,
            )
        _RAYS[id(lens)] = np.stack([x, y, np.ones_like(x)], axis=1)
    return _RAYS[id(lens)]


def rotation(rotvec: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    """(3, 3) of a rotation vector, radians."""
    return cv2.Rodrigues(np.asarray(rotvec, np.float64))[0]


def transform(
    rotvec: tuple[float, float, float] | np.ndarray, shift: tuple[float, float, float] | np.ndarray
) -> np.ndarray:
    """(4, 4) of a rotation vector (radians) and a translation (m)."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation(rotvec), shift
    return out


def board_poses(number: int, *, centre_m: np.ndarray, rng: np.random.Generator, lens: Lens = LENS) -> list[np.ndarray]:
    """Poses with the board's middle all over the picture, 0.3 to 0.55 m away, tilted up to 40 degrees to all sides."""
    out = []
    for index in range(number):
        depth = rng.uniform(0.3, 0.55)
        across = 0.1 + 0.8 * np.array([(index % 4) / 3, (index // 4 % 3) / 2]) + rng.uniform(-0.05, 0.05, 2)
        pixel = np.append(across * (lens.width, lens.height), 1.0)
        middle = depth * np.linalg.solve(lens.matrix, pixel)
        tilt, around = np.radians(rng.uniform(0, 40)), rng.uniform(0, 2 * np.pi)
        turned = rotation((tilt * np.cos(around), tilt * np.sin(around), 0)) @ rotation((0, 0, rng.uniform(-0.4, 0.4)))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turned, middle - turned @ centre_m
        out.append(pose)
    return out
