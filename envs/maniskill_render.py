"""Pictures of a live scene for people, drawn in another process from where things are (envs/maniskill_live.placement).

SwiftShader takes tenths of a second, and sapien's `get_picture` holds Python's lock until it is done: in the process of a
control loop, also in a thread of its own, that would stop the robot. hardware/sim_render.py starts the process and sends what
is to be drawn. Nothing here steps physics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64, UInt8

from .headless import prepare_rendering
from .maniskill import ManiSkillConfig
from .maniskill_live import LiveScene, make_live

_FIELD_OF_VIEW_RAD = 0.8  # from top to bottom
_NEAR_M, _FAR_M = 0.01, 100.0


class RenderedScene:
    """See the text of this module.

    Args:
        live: a scene with visuals, of a process that has a renderer.
        width, height: of a picture, pixels.
        eye_m, target_m: where the camera is and what it looks at, robot's base frame.
    """

    def __init__(
        self, live: LiveScene, *, width: int, height: int, eye_m: Sequence[float], target_m: Sequence[float]
    ) -> None:
        from mani_skill.render.shaders import PREBUILT_SHADER_CONFIGS, set_shader_pack

        self._live, self._seed = live, -1
        set_shader_pack(PREBUILT_SHADER_CONFIGS["default"])  # of cameras made from here on; policies' cameras are flat
        self._camera = live._env.scene.sub_scenes[0].add_camera(
            "people", width, height, _FIELD_OF_VIEW_RAD, _NEAR_M, _FAR_M
        )
        self._pose = looking_at(eye_m, target_m)

    def picture(self, seed: int, placement: Float64[Array, " S"]) -> UInt8[Array, "H W 3"]:
        """The scene of a seed with everything where `placement` says, goals that tasks hide from their cameras included.

        Raises:
            EnvError: the seed or the placement does not fit this scene.
        """
        import sapien

        live, env = self._live, self._live._env
        if seed != self._seed:  # some tasks draw new shapes for each
            live.reset(seed)
            self._seed = seed
        live.place(placement)
        for hidden in env._hidden_objects:
            hidden.show_visual()
        root = env.agent.robot.root._objs[0].entity_pose
        self._camera.entity.pose = root * sapien.Pose(self._pose)
        env.scene.sub_scenes[0].update_render()
        self._camera.take_picture()
        colour = self._camera.get_picture("Color")[..., :3]
        return np.ascontiguousarray((colour.clip(0.0, 1.0) * 255).astype(np.uint8))

    def close(self) -> None:
        """Release the simulator."""
        self._live.close()


def make_rendered(config: ManiSkillConfig, **camera: Any) -> RenderedScene:
    """The scene of a configuration with visuals, on the renderer that this machine has.

    Args:
        config: of the live scene that is drawn.
        camera: see RenderedScene.

    Raises:
        EnvError: this machine has no renderer, or as make_env.
    """
    prepare_rendering("rgb", vulkan_icd=config.vulkan_icd)
    # Its own cameras are drawn where the live scene is, if anywhere.
    return RenderedScene(make_live(replace(config, obs_mode="state", points=None, with_state=False)), **camera)


def looking_at(eye_m: Sequence[float], target_m: Sequence[float]) -> Float64[Array, "4 4"]:
    """Pose of a camera (x forward, y left, z up) whose picture is upright.

    Raises:
        ValueError: it looks straight up or down, or at itself.
    """
    forward = np.subtract(target_m, eye_m, dtype=np.float64)
    left = np.cross([0.0, 0.0, 1.0], forward)
    if not np.linalg.norm(left) > 1e-6:
        raise ValueError(f"a camera at {tuple(eye_m)} can't look at {tuple(target_m)} with its top up")
    forward, left = forward / np.linalg.norm(forward), left / np.linalg.norm(left)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
    pose[:3, 3] = eye_m
    return pose
