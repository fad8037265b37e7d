"""A policy that sees must be looked at by the same camera: pose, lens, size and channel order, compared before use."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from robot_rl.errors import PolicyError
from robot_rl.specs import CameraSpec, EnvSpec

POSITION_M = 0.01
ROTATION_RAD = math.radians(2.0)
FOCAL_SHARE = 0.02


def require_same_cameras(
    trained: EnvSpec,
    given: EnvSpec,
    *,
    where: str,
    position_m: float = POSITION_M,
    rotation_rad: float = ROTATION_RAD,
) -> None:
    """Refuse an environment or robot whose cameras are not those of the training data. Cameras nobody described pass.

    Args:
        trained: of the policy.
        given: of the environment or robot.
        where: of the policy, for the error.
        position_m, rotation_rad: differences of the pose that are allowed; for a robot as good as its calibration.

    Raises:
        PolicyError: with every difference of every camera.
    """
    found = []
    for name, camera in trained.cameras.items():
        other = given.cameras.get(name)
        if other is None and not given.cameras:
            continue
        differences = (
            ["not there"] if other is None else list(camera_differences(camera, other, position_m, rotation_rad))
        )
        found += [f"{name}: {text}" for text in differences]
    for key in (key for key in trained.observation if key.startswith("image/")):
        one, two = trained.observation[key], given.observation.get(key)
        if two is not None and (one.shape, one.dtype) != (two.shape, two.dtype):
            found.append(f"{key}: {one.dtype} {one.shape} in training, {two.dtype} {two.shape} here")
    if found:
        raise PolicyError(
            f"{where}: cameras", expected=f"those it was trained with, within {position_m} m and {rotation_rad:.3g} rad",
            got=f"on {given.env_id}\n  " + "\n  ".join(found) + "\n",
            hint="Move the camera back (`robot-rl calibrate` measures it), set its size, or train with this one.",
        )  # fmt: skip


def rotation_between(one: CameraSpec, two: CameraSpec) -> float:
    """Angle between the axes of two cameras, rad."""
    a, b = (np.asarray(c.quaternion_wxyz) / np.linalg.norm(c.quaternion_wxyz) for c in (one, two))
    return 2 * math.acos(min(1.0, abs(float(a @ b))))


def pose_differences(
    one: CameraSpec, two: CameraSpec, position_m: float = POSITION_M, rotation_rad: float = ROTATION_RAD
) -> Iterator[str]:
    """In words, where a camera stands otherwise than in training: another frame, or farther away than is allowed.

    Args:
        one: in training.
        two: here.
        position_m, rotation_rad: what is allowed.
    """
    if one.frame != two.frame:
        yield f"in the frame of {one.frame!r} in training, of {two.frame!r} here"
        return
    moved = math.dist(one.position_m, two.position_m)
    if moved > position_m:
        yield f"{moved:.4g} m away"
    turned = rotation_between(one, two)
    if turned > rotation_rad:
        yield f"turned by {turned:.4g} rad"


def camera_differences(
    one: CameraSpec, two: CameraSpec, position_m: float = POSITION_M, rotation_rad: float = ROTATION_RAD
) -> Iterator[str]:
    """In words, how a camera is another than in training: size, channels, pose, lens. Arguments as of `pose_differences`."""
    size = (one.width, one.height), (two.width, two.height)
    if size[0] != size[1]:
        yield f"{size[0][0]} x {size[0][1]} pixels in training, {size[1][0]} x {size[1][1]} here"
    if one.channels != two.channels:
        yield f"channels {one.channels} in training, {two.channels} here"
    yield from pose_differences(one, two, position_m, rotation_rad)
    if one.frame == two.frame and size[0] == size[1]:
        # In shares of the image, so that pixels of the principal point weigh as those of the focal lengths.
        for name in ("fx", "fy", "cx", "cy"):
            gap = abs(getattr(one, name) - getattr(two, name)) / max(one.fx, one.fy)
            if gap > FOCAL_SHARE:
                yield f"{name} {getattr(one, name):g} in training, {getattr(two, name):g} here"
