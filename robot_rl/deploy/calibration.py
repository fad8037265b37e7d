"""What `robot-rl calibrate` measured, as JSON files that a robot's card or an environment's spec points to.

A camera's file holds its intrinsics; a hand-eye file holds where that camera sits, and the intrinsics it was measured
with. Loading compares camera, robot, resolution and date: a calibration of another camera is refused, not scaled.

Conventions are OpenCV's: camera x right, y down, z forward; pixel centres at whole numbers; distortion k1 k2 p1 p2 [k3
[k4 k5 k6]].
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import DataError, closest
from robot_rl.specs import CameraSpec

CAMERA_FORMAT, HAND_EYE_FORMAT, VERSION = "robot_rl.camera_calibration", "robot_rl.hand_eye_calibration", 1
DISTORTION_SIZES = (4, 5, 8)


class Mounting(str, Enum):
    """eye_in_hand: the camera moves with the gripper. eye_to_hand: it stands still in the base frame."""

    eye_in_hand = "eye_in_hand"
    eye_to_hand = "eye_to_hand"


@dataclass(frozen=True)
class CameraCalibration:
    """Intrinsics of one camera at one resolution.

    Attributes:
        camera: its name, as in the key image/<camera>.
        width, height: pixels.
        focal_px: fx, fy.
        centre_px: cx, cy.
        distortion: see the text of this module.
        residual_px: root mean square over all corners.
        images: used by the fit.
        created: ISO 8601, UTC.
        details: thresholds, residuals of every image, board; JSON types.
    """

    camera: str
    width: int
    height: int
    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    distortion: tuple[float, ...]
    residual_px: float
    images: int
    created: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def matrix(self) -> Float64[Array, "3 3"]:
        """K, pixels."""
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)

    def coefficients(self) -> Float64[Array, " D"]:
        """The distortion as OpenCV takes it."""
        return np.array(self.distortion, dtype=np.float64)

    def resized(self, width: int, height: int) -> CameraCalibration:
        """For pictures scaled as a whole (not cropped) to another size.

        Raises:
            DataError: another aspect ratio, which a mere scaling does not give.
        """
        if width * self.height != height * self.width:
            raise DataError(
                f"calibration of camera {self.camera!r}", expected=f"the aspect ratio of {self.width} x {self.height}",
                got=f"{width} x {height}", hint="A cropped picture has another centre: crop it after undistortion.",
            )  # fmt: skip
        scale = width / self.width
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        centre = ((cx + 0.5) * scale - 0.5, (cy + 0.5) * scale - 0.5)
        return replace(self, width=width, height=height, focal_px=(fx * scale, fy * scale), centre_px=centre)


@dataclass(frozen=True)
class HandEyeCalibration:
    """Where a camera sits.

    Attributes:
        camera: its intrinsics, those that the poses were measured with.
        robot: name of the robot.
        mounting: see Mounting.
        position_m, quaternion_wxyz: of the camera in the gripper's frame (eye_in_hand) or the base frame (eye_to_hand).
        residual_mm, residual_deg: root mean square of the leave-one-out prediction of the board's pose.
        poses: used by the fit.
        created: ISO 8601, UTC.
        details: methods, thresholds, residuals of every pose, board; JSON types.
    """

    camera: CameraCalibration
    robot: str
    mounting: Mounting
    position_m: tuple[float, float, float]
    quaternion_wxyz: tuple[float, float, float, float]
    residual_mm: float
    residual_deg: float
    poses: int
    created: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def camera_spec(self, *, tool_frame: str) -> CameraSpec:
        """How this camera sees, for a spec; its lens without distortion.

        Args:
            tool_frame: name of the gripper's frame, in which a camera in the hand is.
        """
        (fx, fy), (cx, cy) = self.camera.focal_px, self.camera.centre_px
        frame = "base" if self.mounting is Mounting.eye_to_hand else tool_frame
        return CameraSpec(
            self.camera.width, self.camera.height, fx, fy, cx, cy, position_m=self.position_m,
            quaternion_wxyz=self.quaternion_wxyz, frame=frame,
        )  # fmt: skip

    def matrix(self) -> Float64[Array, "4 4"]:
        """Camera coordinates to gripper or base coordinates, m."""
        w, x, y, z = self.quaternion_wxyz
        out = np.eye(4)
        out[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        out[:3, 3] = self.position_m
        return out


def save_calibration(path: Path, calibration: CameraCalibration | HandEyeCalibration) -> None:
    """Write a calibration as JSON, in one piece; a former file of that name is replaced."""
    name = CAMERA_FORMAT if isinstance(calibration, CameraCalibration) else HAND_EYE_FORMAT
    data = {"format": name, "version": VERSION, **asdict(calibration)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_camera(
    path: Path, *, camera: str, width: int, height: int, max_age_days: float | None = None, today: date | None = None
) -> CameraCalibration:
    """Read the intrinsics of a camera and check that they are its own.

    Args:
        path: the JSON file.
        camera: name that it must have.
        width, height: pixels of the pictures it is for.
        max_age_days: refuse an older one; None takes any.
        today: for `max_age_days` (default: the date of this machine, UTC).

    Raises:
        DataError: no such file, another format or version, damaged numbers, another camera or resolution, a date in the
            future or too long ago.
    """
    data = _read(path, CAMERA_FORMAT)
    found = _camera(data, str(path))
    _check_camera(found, str(path), camera=camera, width=width, height=height)
    _check_date(found.created, str(path), max_age_days=max_age_days, today=today)
    return found


def load_hand_eye(
    path: Path,
    *,
    camera: str,
    robot: str,
    width: int | None = None,
    height: int | None = None,
    max_age_days: float | None = None,
    today: date | None = None,
) -> HandEyeCalibration:
    """Read where a camera sits and check that it is this camera on this robot; otherwise as `load_camera`.

    Without a size the lens is not compared: for clouds, which have none.

    Raises:
        DataError: as `load_camera`, and another robot.
    """
    data = _read(path, HAND_EYE_FORMAT)
    where = str(path)
    inner = _need(data, "camera", dict, where)
    intrinsics = _camera(inner, f"{where}: camera")
    size = (intrinsics.width if width is None else width, intrinsics.height if height is None else height)
    _check_camera(intrinsics, where, camera=camera, width=size[0], height=size[1])
    if _need(data, "robot", str, where) != robot:
        raise DataError(
            f"{where}: robot", expected=repr(robot), got=repr(data["robot"]), hint="Calibrate on this robot."
        )
    mounting = _need(data, "mounting", str, where)
    if mounting not in (names := [kind.value for kind in Mounting]):
        raise DataError(f"{where}: mounting", expected="a mounting", got=repr(mounting), hint=closest(mounting, names))
    quaternion = _numbers(data, "quaternion_wxyz", (4,), where)
    if abs(math.hypot(*quaternion) - 1) > 1e-6:
        raise DataError(
            f"{where}: quaternion_wxyz", expected="length 1", got=str(quaternion), hint="Calibrate again; do not edit."
        )
    w, x, y, z = quaternion
    px, py, pz = _numbers(data, "position_m", (3,), where)
    found = HandEyeCalibration(
        camera=intrinsics, robot=robot, mounting=Mounting(mounting), position_m=(px, py, pz),
        quaternion_wxyz=(w, x, y, z), residual_mm=_number(data, "residual_mm", where),
        residual_deg=_number(data, "residual_deg", where), poses=_need(data, "poses", int, where),
        created=_need(data, "created", str, where), details=_need(data, "details", dict, where),
    )  # fmt: skip
    _check_date(found.created, where, max_age_days=max_age_days, today=today)
    return found


def _read(path: Path, wanted: str) -> dict[str, Any]:
    hint = "Write it with `robot-rl calibrate`."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(str(path), expected="a calibration", got="no such file", hint=hint) from error
    except (OSError, ValueError) as error:
        raise DataError(str(path), expected="readable JSON", got=str(error), hint=hint) from error
    got = (data.get("format"), data.get("version")) if isinstance(data, dict) else (type(data).__name__, None)
    if got != (wanted, VERSION):
        raise DataError(str(path), expected=f"{wanted} version {VERSION}", got=f"{got[0]} version {got[1]}", hint=hint)
    return dict(data)


def _camera(data: Mapping[str, Any], where: str) -> CameraCalibration:
    width, height = (_need(data, key, int, where) for key in ("width", "height"))
    fx, fy = _numbers(data, "focal_px", (2,), where)
    cx, cy = _numbers(data, "centre_px", (2,), where)
    if min(width, height) < 1 or min(fx, fy) <= 0:
        raise DataError(
            where, expected="sizes and focal lengths above 0", got=f"{width} x {height}, {fx}, {fy}",
            hint="Calibrate again; do not edit.",
        )  # fmt: skip
    return CameraCalibration(
        camera=_need(data, "camera", str, where), width=width, height=height, focal_px=(fx, fy), centre_px=(cx, cy),
        distortion=_numbers(data, "distortion", DISTORTION_SIZES, where),
        residual_px=_number(data, "residual_px", where), images=_need(data, "images", int, where),
        created=_need(data, "created", str, where), details=_need(data, "details", dict, where),
    )  # fmt: skip


def _check_camera(found: CameraCalibration, where: str, *, camera: str, width: int, height: int) -> None:
    if found.camera != camera:
        raise DataError(
            f"{where}: camera", expected=repr(camera), got=repr(found.camera),
            hint="A calibration belongs to one camera; calibrate this one.",
        )  # fmt: skip
    if (found.width, found.height) != (width, height):
        raise DataError(
            f"{where}: resolution", expected=f"{width} x {height}", got=f"{found.width} x {found.height}",
            hint="Calibrate at the resolution you use; for pictures scaled as a whole call resized().",
        )  # fmt: skip


def _check_date(created: str, where: str, *, max_age_days: float | None, today: date | None) -> None:
    try:
        day = datetime.fromisoformat(created.replace("Z", "+00:00")).date()
    except ValueError as error:
        raise DataError(f"{where}: created", expected="an ISO 8601 time", got=repr(created), hint="") from error
    now = today or datetime.now(timezone.utc).date()
    age = (now - day).days
    if age < -1:
        raise DataError(
            f"{where}: created", expected=f"a date until {now}", got=str(day), hint="Is this machine's clock right?"
        )
    if max_age_days is not None and age > max_age_days:
        raise DataError(
            f"{where}: created", expected=f"at most {max_age_days:g} days old", got=f"{age} days ({day})",
            hint="Check it with a few new pictures, or calibrate again.",
        )  # fmt: skip


def _need(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if type(value) is not kind:
        raise DataError(
            f"{where}: {key}", expected=kind.__name__, got=repr(value), hint="The file is damaged; calibrate again."
        )
    return value


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    return _numbers({key: [data.get(key)]}, key, (1,), where)[0]


def _numbers(data: Mapping[str, Any], key: str, sizes: Sequence[int], where: str) -> tuple[float, ...]:
    values = data.get(key)
    good = isinstance(values, list) and len(values) in sizes
    if not good or not all(type(v) in (int, float) and math.isfinite(v) for v in values or ()):
        raise DataError(
            f"{where}: {key}", expected=f"{' or '.join(map(str, sizes))} finite numbers", got=repr(values),
            hint="The file is damaged; calibrate again.",
        )  # fmt: skip
    return tuple(float(value) for value in values or ())
