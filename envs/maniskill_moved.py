"""Cameras and lights of a ManiSkill scene, moved at the start of an episode. CPU physics only.

Everything is put back to where the task has it before it is moved again. A moved camera's `cam2world` stays as it was:
whoever makes points of its pixels does so with the pose that was measured before somebody knocked against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.view_shift import ViewDraw, ViewShift
from robot_rl.errors import EnvError

from .perturbations_view import MoveViews

# ManiSkill's cameras look along x with y to the left; those of OpenGL, in which cam2world_gl is, along -z with y up.
_GL_IN_CAMERA = np.array([[0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], np.float64)


def mover_of(envs: Sequence[Any], shift: ViewShift | None, *, task: str, sim_backend: str) -> MoveViews | None:
    """What moves cameras and lights of single-scene envs; None when none shall move, or none can (ViewShiftedSteps says so).

    Raises:
        EnvError: a task without a camera.
        ConfigError: numbers out of range.
    """
    if shift is None:
        return None
    shift.validate()
    if sim_backend != "physx_cpu" or any(env.obs_mode.startswith("state") for env in envs):
        return None
    movers = [_Mover(env, shift, task=task) for env in envs]

    def move(row: int, seed: int) -> None:
        movers[row].seed = seed

    return move


class _Mover:
    """Moves what one env shows, whenever an episode begins in it.

    Args:
        env: a ManiSkill BaseEnv with one scene.
        shift: how much.
        task: for errors.
    """

    def __init__(self, env: Any, shift: ViewShift, *, task: str) -> None:
        self._env, self._shift, self.seed = env, shift, -1
        if not env._sensors:
            raise EnvError(f"view_shift of {task}", expected="a camera", got="none", hint="Choose another task.")
        self._lights = _lights_of(env)
        self._ambient = np.asarray(env.scene.ambient_light, np.float64)
        initialize = env._initialize_episode

        def moved(env_idx: torch.Tensor, options: dict[str, Any]) -> None:
            initialize(env_idx, options)
            if env.reconfiguration_freq != 0:  # the scene was built anew, and its lights
                self._lights = _lights_of(env)
            if self.seed >= 0:  # -1: ManiSkill's own first reset, before any episode of ours
                self._move(shift.draw(self.seed, cameras=len(env._sensors)))

        env._initialize_episode = moved

    def _move(self, drawn: ViewDraw) -> None:
        shift = self._shift
        for index, sensor in enumerate(self._env._sensors.values()):
            turn, step = drawn.turn_axis[index], shift.camera_m * drawn.move_axis[index]
            _move_camera(sensor, turn, math.radians(shift.camera_deg), step)
        gain = 2.0 ** (drawn.light_sign * shift.light_stops)
        self._env.scene.set_ambient_light((gain * self._ambient).tolist())
        turn_light = _pose(drawn.light_axis, math.radians(shift.light_deg), np.zeros(3))
        for light, colour, pose in self._lights:
            light.color = (gain * colour).tolist()
            light.pose = _placed(pose.p, (turn_light * _placed(np.zeros(3), pose.q)).q)


def _move_camera(sensor: Any, axis: np.ndarray, angle: float, step: np.ndarray) -> None:
    change = _pose(axis, angle, step)
    camera, nominal = sensor.camera, sensor.config.pose
    first = _placed(nominal.p[0].cpu().numpy(), nominal.q[0].cpu().numpy())
    camera.set_local_pose(first * change)
    matrix = np.linalg.inv(_GL_IN_CAMERA) @ np.linalg.inv(change.to_transformation_matrix()) @ _GL_IN_CAMERA
    undo, model = torch.from_numpy(matrix).float(), type(camera).get_model_matrix
    camera.get_model_matrix = lambda: model(camera) @ undo.to(model(camera))


def _lights_of(env: Any) -> list[tuple[Any, np.ndarray, Any]]:
    import sapien.render

    found = []
    for entity in env.scene.sub_scenes[0].entities:
        for component in entity.components:
            if isinstance(component, sapien.render.RenderLightComponent):
                found.append((component, np.asarray(component.color, np.float64), component.pose))
    return found


def _pose(axis: np.ndarray, angle: float, position: np.ndarray) -> Any:
    return _placed(position, [math.cos(angle / 2), *(math.sin(angle / 2) * axis)])


def _placed(position: Any, quaternion_wxyz: Any) -> Any:
    import sapien

    return sapien.Pose(np.asarray(position, np.float32), np.asarray(quaternion_wxyz, np.float32))
