"""Least squares for hand-eye calibration: X and Z of A_i X C_i = Z, each pose weighted by how well it can be known.

Two things err: the corners (a board's distance is known worse than its direction) and the robot (its poses are off by a
fraction of a millimetre and a degree that nobody knows). The error of a pose, in the camera's frame at the board's middle, has
the covariance of both: that of the corners from the Jacobian of the projection, that of the robot from two standard deviations,
turn and shift at the flange, fitted by maximum likelihood to the errors themselves. Minimising pixels alone takes the robot as
exact: in simulation that put the camera up to three times further off than the best closed form (docs/cameras.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.calibration import CameraCalibration, Mounting

ROUNDS = 3
FAR = 3.0
SMALLEST_PX, SMALLEST_RAD, SMALLEST_M = 0.03, 1e-6, 1e-6


@dataclass(frozen=True)
class View:
    """One pose of the robot and its picture.

    Attributes:
        name: of the picture.
        arm: A_i (see calibrate_hand_eye.py).
        board: C_i, board to camera.
        spread: covariance of `board` from the corners: turn (rad) and shift of the board's middle (m), camera's frame.
    """

    name: str
    arm: Float64[Array, "4 4"]
    board: Float64[Array, "4 4"]
    spread: Float64[Array, "6 6"]


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the robot's poses, of each axis: turn, rad, and shift of the flange, m."""

    turn_rad: float
    shift_m: float


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        x, z: see calibrate_hand_eye.py.
        noise: of the robot.
        scale, scale_sd: size of the board's squares against the robot's motion, and its standard deviation; 1 and 0 when
            it was not fitted.
    """

    x: Float64[Array, "4 4"]
    z: Float64[Array, "4 4"]
    noise: Noise
    scale: float = 1.0
    scale_sd: float = 0.0


def board_spread(
    points: Float64[Array, "N 3"],
    board: Float64[Array, "4 4"],
    middle: Float64[Array, "3"],
    *,
    intrinsics: CameraCalibration,
    px: float,
) -> Float64[Array, "6 6"]:
    """Covariance of a board's pose (View.spread) when every corner coordinate errs by `px`."""
    import cv2

    turned = (points - middle) @ board[:3, :3].T
    there = board[:3, :3] @ middle + board[:3, 3]
    _, jacobian = cv2.projectPoints(turned, np.zeros(3), there, intrinsics.matrix(), intrinsics.coefficients())
    jacobian = jacobian[:, :6]
    spread: np.ndarray = max(px, SMALLEST_PX) ** 2 * np.linalg.inv(jacobian.T @ jacobian)
    return spread


def refine(
    views: Sequence[View], x: Float64[Array, "4 4"], z: Float64[Array, "4 4"], *, middle: Float64[Array, "3"],
    mounting: Mounting,
) -> Fit:  # fmt: skip
    """Fit X, Z and the robot's noise, in turns; `x` and `z` are the start.

    Args:
        views: of all poses.
        x, z: start.
        middle: of the board, in its own frame, m.
        mounting: where the flange is seen from.
    """
    fit = Fit(x, z, Noise(np.radians(0.1), 0.001))
    for _ in range(ROUNDS):
        fit = solve(views, fit, middle=middle, mounting=mounting)
        fit = Fit(fit.x, fit.z, _likeliest(views, fit, middle=middle, mounting=mounting))
    return solve(views, fit, middle=middle, mounting=mounting)


def solve(
    views: Sequence[View], start: Fit, *, middle: Float64[Array, "3"], mounting: Mounting, free_scale: bool = False
) -> Fit:
    """X and Z (and the scale) for a noise that is given; soft-L1 loss, so that one wrong pose does not pull far."""
    from scipy.optimize import least_squares

    weights = np.linalg.inv(np.linalg.cholesky(_covariances(views, start, middle, mounting)))
    arms, boards = _stacked(views)

    def residuals(step: np.ndarray) -> np.ndarray:
        x, z, scale = _moved(start.x, step[:6]), _moved(start.z, step[6:12]), 1 + step[12:].sum()
        found = _errors(arms, boards, x, z, scale * middle, scale)
        weighted: np.ndarray = np.einsum("nij,nj->ni", weights, found).ravel()
        return weighted

    first = np.zeros(13 if free_scale else 12)
    found = least_squares(residuals, first, loss="soft_l1", f_scale=2.0, x_scale="jac", max_nfev=50)
    sd = float(np.sqrt(np.linalg.inv(found.jac.T @ found.jac)[-1, -1])) if free_scale else 0.0
    return Fit(
        _moved(start.x, found.x[:6]), _moved(start.z, found.x[6:12]), start.noise, float(1 + found.x[12:].sum()), sd
    )


def errors(views: Sequence[View], fit: Fit, *, middle: Float64[Array, "3"]) -> Float64[Array, "N 6"]:
    """Seen against expected board of each view: turn (rad) and shift of the middle (m), in the camera's frame."""
    arms_back, boards = _stacked(views)
    return _errors(arms_back, boards, fit.x, fit.z, fit.scale * middle, fit.scale)


def turn_between(one: Float64[Array, "3 3"], other: Float64[Array, "3 3"]) -> Float64[Array, "3"]:
    """Rotation vector that turns `one` into `other`, in the frame that both lead to, radians."""
    from scipy.spatial.transform import Rotation

    turn: np.ndarray = Rotation.from_matrix(other @ one.T).as_rotvec()
    return turn


def _stacked(views: Sequence[View]) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of the A_i, and the C_i, each (N, 4, 4)."""
    return np.linalg.inv(np.array([view.arm for view in views])), np.array([view.board for view in views])


def _errors(
    arms_back: np.ndarray, boards: np.ndarray, x: np.ndarray, z: np.ndarray, middle: np.ndarray, scale: float
) -> np.ndarray:
    """`errors` on stacked arrays; `middle` is that of the board in its true size."""
    from scipy.spatial.transform import Rotation

    expected = np.linalg.inv(x) @ arms_back @ z
    turns = Rotation.from_matrix(boards[:, :3, :3] @ expected[:, :3, :3].transpose(0, 2, 1)).as_rotvec()
    seen = boards[:, :3, :3] @ middle + scale * boards[:, :3, 3]
    there = expected[:, :3, :3] @ middle + expected[:, :3, 3]
    return np.concatenate([turns, seen - there], axis=1)


def _covariances(views: Sequence[View], fit: Fit, middle: np.ndarray, mounting: Mounting) -> np.ndarray:
    """Of each view's error, (N, 6, 6)."""
    levers = _levers(views, fit, middle, mounting)
    out: np.ndarray = np.array([view.spread for view in views])
    out += _robot_spread(levers, fit.noise.turn_rad, fit.noise.shift_m)
    return out


def _levers(views: Sequence[View], fit: Fit, middle: np.ndarray, mounting: Mounting) -> np.ndarray:
    """(N, 6, 6): from an error of the pose at the flange to its error at the board's middle."""
    arms_back, boards = _stacked(views)
    back = np.linalg.inv(fit.x)
    flange = back[:3, 3] if mounting is Mounting.eye_in_hand else (back @ arms_back)[:, :3, 3]
    a, b, c = (boards[:, :3, :3] @ middle + boards[:, :3, 3] - flange).T
    lever = np.tile(np.eye(6), (len(views), 1, 1))
    lever[:, 3, 1], lever[:, 3, 2], lever[:, 4, 0] = c, -b, -c  # turn x (a, b, c)
    lever[:, 4, 2], lever[:, 5, 0], lever[:, 5, 1] = a, b, -a
    return lever


def _robot_spread(levers: np.ndarray, turn_rad: float, shift_m: float) -> np.ndarray:
    out: np.ndarray = levers @ np.diag([turn_rad**2] * 3 + [shift_m**2] * 3) @ levers.transpose(0, 2, 1)
    return out


def _likeliest(views: Sequence[View], fit: Fit, *, middle: np.ndarray, mounting: Mounting) -> Noise:
    """The robot's noise under which the errors are likeliest; poses far from the rest do not count."""
    from scipy.optimize import minimize

    found = errors(views, fit, middle=middle)
    size = np.sqrt(_squared_sizes(found, _covariances(views, fit, middle, mounting)))
    kept = size <= FAR * np.median(size)
    chosen = [view for view, is_kept in zip(views, kept, strict=True) if is_kept]
    # 12 numbers were fitted to 6 errors a pose, which makes the errors smaller than the noise is.
    grown = found[kept] * np.sqrt(len(chosen) / max(len(chosen) - 2, 1))

    levers, spreads = _levers(chosen, fit, middle, mounting), np.array([view.spread for view in chosen])

    def surprise(logs: np.ndarray) -> float:
        covariances = spreads + _robot_spread(levers, float(np.exp(logs[0])), float(np.exp(logs[1])))
        return float(np.linalg.slogdet(covariances)[1].sum() + _squared_sizes(grown, covariances).sum())

    start = np.log([fit.noise.turn_rad, fit.noise.shift_m])
    options: Any = {"maxiter": 80, "xatol": 0.02, "fatol": 0.02}
    turn, shift = np.exp(minimize(surprise, start, method="Nelder-Mead", options=options).x)
    return Noise(max(float(turn), SMALLEST_RAD), max(float(shift), SMALLEST_M))


def _squared_sizes(found: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    sizes: np.ndarray = np.einsum("ni,ni->n", found, np.linalg.solve(covariances, found[:, :, None])[:, :, 0])
    return sizes


def _moved(pose: np.ndarray, step: np.ndarray) -> np.ndarray:
    """A pose turned by a rotation vector in its own frame, and shifted."""
    from scipy.spatial.transform import Rotation

    out = pose.copy()
    out[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(step[:3]).as_matrix()
    out[:3, 3] += step[3:]
    return out
