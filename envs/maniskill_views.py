"""What a ManiSkill env's cameras show, as named arrays, and what they are: CameraSpec in the robot's base frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.deploy.point_cloud import PointCloudConfig, process_points
from robot_rl.specs import CameraSpec

IMAGE, DEPTH = "image/", "depth/"
# Of positions, quaternions and pixels in a spec: far finer than any use, coarser than float32 on other machines.
_DIGITS = 4


@dataclass(frozen=True)
class Views:
    """What becomes of an observation with images or points.

    Attributes:
        points: how a cloud is cropped and sampled; None: every pixel.
        with_state: also give "state", as obs_mode=state has it.
    """

    points: PointCloudConfig | None = None
    with_state: bool = False


def read_views(env: Any, obs: Mapping[str, Any], views: Views) -> dict[str, torch.Tensor]:
    """The part of an observation that cameras gave, and the state where it is wanted; copies on the env's device.

    Args:
        env: a ManiSkill BaseEnv in obs_mode rgb, rgb+depth or pointcloud.
        obs: of reset or step.
        views: see Views.

    Returns:
        "image/<camera>" u8 (N, H, W, 3), "depth/<camera>" f32 (N, H, W, 1) m, "points" f32 (N, M, 3 or 6), "state" f32.
    """
    from mani_skill.utils import common

    state = {}
    if views.with_state:
        flat = common.flatten_state_dict(privileged_state(env), use_torch=True, device=env.device)
        state["state"] = flat.float().clone()
    if env.obs_mode == "pointcloud":
        cloud = _points(env, obs["pointcloud"])
        return state | {"points": cloud if views.points is None else process_points(cloud, views.points)}
    out = state | {f"{IMAGE}{name}": data["rgb"].clone() for name, data in obs["sensor_data"].items()}
    depths = {name: data["depth"] for name, data in obs["sensor_data"].items() if "depth" in data}
    # ManiSkill gives whole millimetres, 0 where there is nothing.
    return out | {f"{DEPTH}{name}": depth.float() / 1000 for name, depth in depths.items()}


def privileged_state(env: Any) -> dict[str, Any]:
    """What obs_mode=state would show now, nested, in any mode: what scripted experts act on."""
    wanted = env.obs_mode_struct
    before, wanted.state_dict = wanted.state_dict, True  # tasks ask this flag which extras to give
    try:
        state: dict[str, Any] = env._get_obs_state_dict(env.get_info())
    finally:
        wanted.state_dict = before
    return state


def _points(env: Any, cloud: Mapping[str, torch.Tensor]) -> torch.Tensor:
    # ManiSkill's points are homogeneous and in the world frame; w = 0 marks pixels that hit nothing.
    from_world = env.agent.robot.pose.inv().to_transformation_matrix()
    position = (cloud["xyzw"].float() @ from_world.transpose(1, 2))[..., :3]
    is_surface = cloud["xyzw"][..., 3:] > 0
    return torch.cat([position, cloud["rgb"].float() / 255.0], dim=-1) * is_surface


def describe_cameras(env: Any) -> dict[str, CameraSpec]:
    """Every camera of the observation, as in the first env now; one on a link is described in the link's frame."""
    if env.obs_mode.startswith("state"):
        return {}
    from mani_skill.sensors.camera import Camera

    found = {}
    for name, sensor in env._sensors.items():
        if not isinstance(sensor, Camera):
            continue
        camera = sensor.camera
        intrinsic = _first(camera.get_intrinsic_matrix())
        world_to_camera = np.vstack([_first(camera.get_extrinsic_matrix())[:3], [0, 0, 0, 1]])
        mount = camera.mount
        frame = (env.agent.robot if mount is None else mount).pose.to_transformation_matrix()
        pose = np.linalg.inv(_first(frame)) @ np.linalg.inv(world_to_camera)
        found[name] = CameraSpec(
            width=int(sensor.config.width),
            height=int(sensor.config.height),
            fx=_short(intrinsic[0, 0]),
            fy=_short(intrinsic[1, 1]),
            # ManiSkill counts from the corner of the first pixel, OpenCV from its middle.
            cx=_short(intrinsic[0, 2] - 0.5),
            cy=_short(intrinsic[1, 2] - 0.5),
            position_m=tuple(_short(x) for x in pose[:3, 3]),
            quaternion_wxyz=tuple(_short(x) for x in _quaternion(pose[:3, :3])),
            frame="base" if mount is None else str(mount.name),
        )
    return found


def _first(batch: Any) -> np.ndarray:
    matrix: np.ndarray = batch[0].detach().cpu().numpy().astype(np.float64)
    return matrix


def _short(number: Any) -> float:
    return round(float(number), _DIGITS) + 0.0  # no minus zero


def _quaternion(matrix: np.ndarray) -> np.ndarray:
    """wxyz of a rotation matrix, w not negative."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(matrix).as_quat()
    return np.array([w, x, y, z]) if w >= 0 else -np.array([w, x, y, z])
