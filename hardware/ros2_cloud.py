"""From a PointCloud2 to the points that a policy was trained with: the base frame, its box, its number of points; without ROS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32, Float64
from robot_rl.deploy.calibration import Mounting, load_hand_eye
from robot_rl.deploy.point_cloud import (
    MOST_POINTS,
    XYZ,
    PointCloudConfig,
    Sampling,
    crop_mask,
    moved_points,
    points_from_json,
    process_points,
    voxel_mask,
)
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import EnvSpec

from .ros2_pictures import points_of


class CloudReader:
    """Reads clouds as the policy's spec has them, by the code of simulation and recorded data (deploy/point_cloud.py).

    Args:
        config: of the policy's points.
        base_frame: of the robot, as messages name it.
        place: from that camera's coordinates to the base frame; None: clouds must come in the base frame.
    """

    def __init__(
        self, config: PointCloudConfig, *, base_frame: str, place: Float64[Array, "4 4"] | None = None
    ) -> None:
        self._config, self._base_frame, self._place = config, base_frame.lstrip("/"), place

    def read(self, message: Any) -> Float32[Array, "M D"]:
        """The points of one cloud, float32 (M, 3 or 6).

        Raises:
            DeployError: another frame than the base frame and no calibration, no measured point, or a broken message.
        """
        # A row without a measured point stays, as zeros: seeded random sampling takes the same pixels of every frame.
        points = points_of(message, keep_invalid=True)
        is_there = np.isfinite(points[:, :XYZ]).all(axis=1) & (points[:, :XYZ] != 0).any(axis=1)
        if not is_there.any():
            raise DeployError(
                "points", expected="measured points", got="none in the whole cloud", hint="Is the camera covered?"
            )
        points = self._in_base(points, str(message.header.frame_id).lstrip("/"))
        points[~is_there] = 0
        if self._config.sampling is Sampling.farthest:
            points = self._candidates(points)
        if len(points) > MOST_POINTS:
            raise DeployError(
                "points", expected=f"at most {MOST_POINTS} points to choose from", got=str(len(points)),
                hint="Let the driver send fewer, or train with a smaller box, env.points.voxel_m and sampling=farthest.",
            )  # fmt: skip
        found: np.ndarray = process_points(points[None], self._config)[0].astype(np.float32)
        return found

    def _in_base(self, points: Array, frame: str) -> Array:
        if frame == self._base_frame:
            return points
        # Hand-eye calibrations are of OpenCV's axes; drivers name frames of such axes so (REP 103), and others are turned.
        if self._place is not None and frame.endswith("optical_frame"):
            return moved_points(points, self._place)
        raise DeployError(
            "points, frame", expected=f"a cloud in {self._base_frame!r}, or with points_camera in its ..._optical_frame",
            got=repr(frame), hint="Numbers of another frame would be taken for places beside the robot.",
        )  # fmt: skip

    def _candidates(self, points: Array) -> Array:
        """Rows that farthest-point sampling may choose, in their order: the choice is the same, and a camera sends many more."""
        config = self._config
        kept = points[crop_mask(points[None], config.low_m, config.high_m)[0]]
        if config.voxel_m and 0 < len(kept) <= MOST_POINTS:
            whole = np.ones((1, len(kept)), dtype=bool)
            kept = kept[voxel_mask(kept[None], whole, low_m=config.low_m, voxel_m=config.voxel_m)[0]]
        return kept if len(kept) else points[:1] * 0


def cloud_reader(card: RobotCard, spec: EnvSpec | None, camera: str) -> CloudReader | None:
    """The reader for a policy; None where its spec does not say how its points were made.

    Args:
        card: of the robot, with topics.
        spec: of the policy, None for none.
        camera: of the card, whose hand-eye calibration brings clouds into the base frame; "": they come in it.

    Raises:
        ConfigError: a camera without a calibration on the card, or one that is mounted on the moving hand.
        DataError: a calibration that can't be read, or of another camera or robot.
    """
    assert card.ros2 is not None
    if camera and camera not in card.calibrations:
        raise ConfigError(
            "points_camera", expected=f"a camera of `calibrations` on card {card.name!r}: {', '.join(card.calibrations) or 'none'}",
            got=repr(camera), hint="`robot-rl calibrate hand-eye` measures it.",
        )  # fmt: skip
    if spec is None or not spec.point_cloud or "points" not in spec.observation:
        return None
    has_colour = spec.observation["points"].shape[-1] > XYZ
    config = replace(points_from_json(spec.point_cloud, where="spec of the policy"), use_colour=has_colour)
    if not camera:
        return CloudReader(config, base_frame=card.ros2.base_frame)
    found = load_hand_eye(Path(card.calibrations[camera]), camera=camera, robot=card.name)
    if found.mounting is not Mounting.eye_to_hand:
        raise ConfigError(
            f"points_camera, {camera!r}", expected="a camera that stands still in the base frame", got=found.mounting.value,
            hint="Let the driver publish the cloud in the base frame (tf2), which knows where the hand is.",
        )  # fmt: skip
    return CloudReader(config, base_frame=card.ros2.base_frame, place=found.matrix())
