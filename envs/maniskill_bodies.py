"""Which objects of which ManiSkill task can be pushed and moved at the start, and how. CPU physics only.

Another task is supported by one more line in TASKS (attributes as in mani_skill 3.0.1, envs/tasks/tabletop).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.errors import EnvError, closest

from .perturbations import Kick


@dataclass(frozen=True)
class TaskBodies:
    """Objects of one task.

    Attributes:
        movable: name -> attribute of the env, whose start can be shifted.
        pushable: names of those that have a mass and can be pushed.
        least_scale: smallest factor of Shift.scale that makes sense; None: places depend on each other, no scaling.
        centre_m: of the region that starts are drawn from, x and y.
    """

    movable: Mapping[str, str]
    pushable: tuple[str, ...]
    least_scale: float | None = None
    centre_m: tuple[float, float] = (0.0, 0.0)


TASKS: Mapping[str, TaskBodies] = {
    "PickCube-v1": TaskBodies({"cube": "cube", "goal": "goal_site"}, ("cube",), least_scale=0.0),
    # The goal lies at a fixed distance from the cube: they move together, or the task is another.
    "PushCube-v1": TaskBodies({"cube": "obj", "goal": "goal_region"}, ("cube",)),
    "PullCube-v1": TaskBodies({"cube": "obj", "goal": "goal_region"}, ("cube",)),
    # A smaller region would put one cube into the other.
    "StackCube-v1": TaskBodies({"cubeA": "cubeA", "cubeB": "cubeB"}, ("cubeA", "cubeB"), least_scale=1.0),
}


def kick_of(envs: Sequence[Any], push: Push | None, *, task: str, sim_backend: str) -> Kick | None:
    """What pushes the body of `push` in single-scene envs; None when no body is named.

    Raises:
        EnvError: another task, body or backend.
    """
    if push is None or not push.body:
        return None
    bodies = _bodies(f"push.body={push.body}", task, sim_backend)
    if push.body not in bodies.pushable:
        raise EnvError(
            f"push.body={push.body}", expected=f"an object of {task} that can be pushed", got=repr(push.body),
            hint=closest(push.body, bodies.pushable),
        )  # fmt: skip
    attribute = bodies.movable[push.body]

    def kick(impulses_n_s: np.ndarray, mask: np.ndarray) -> None:
        for row in np.flatnonzero(mask).tolist():
            # A force acts for one physics step, so this is the whole impulse.
            force = impulses_n_s[row] / envs[row].scene.px.timestep
            getattr(envs[row], attribute).apply_force(force.astype(np.float32))

    return kick


def check_shift(shift: Shift, *, task: str, sim_backend: str) -> tuple[str, ...]:
    """Attributes of the objects that `shift` moves.

    Raises:
        EnvError: another task, object or backend, or a scale that this task can't have.
        ConfigError: numbers out of range.
    """
    shift.validate()
    bodies = _bodies("shift", task, sim_backend)
    for name in shift.bodies:
        if name not in bodies.movable:
            raise EnvError(
                "shift.bodies", expected=f"objects of {task}", got=repr(name), hint=closest(name, bodies.movable)
            )
    if shift.scale != 1 and (bodies.least_scale is None or shift.scale < bodies.least_scale):
        expected = "1, for places of its objects depend on each other"
        if bodies.least_scale is not None:
            expected = f"{bodies.least_scale} or more"
        raise EnvError(f"shift.scale of {task}", expected=expected, got=str(shift.scale), hint="Use shift.xy_m.")
    return tuple(attribute for name, attribute in bodies.movable.items() if not shift.bodies or name in shift.bodies)


def shift_starts(env: Any, shift: Shift, *, task: str, sim_backend: str) -> None:
    """Move the objects of every start of this instance, behind the task's own draw and before its first observation.

    Args:
        env: a ManiSkill BaseEnv with one scene.
        shift: how.
        task, sim_backend: for errors and the table.

    Raises:
        EnvError, ConfigError: as `check_shift`.
    """
    from mani_skill.utils.structs.pose import Pose

    attributes = check_shift(shift, task=task, sim_backend=sim_backend)
    centre = torch.tensor(TASKS[task].centre_m)
    initialize = env._initialize_episode

    def shifted(env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        initialize(env_idx, options)
        for attribute in attributes:
            actor = getattr(env, attribute)
            position = actor.pose.p.clone()
            position[:, :2] = shift.moved(position[:, :2], centre=centre)
            actor.set_pose(Pose.create_from_pq(position, actor.pose.q))

    env._initialize_episode = shifted


def _bodies(where: str, task: str, sim_backend: str) -> TaskBodies:
    if task not in TASKS or sim_backend != "physx_cpu":
        raise EnvError(
            where, expected=f"one of {', '.join(TASKS)} on physx_cpu", got=f"{task} on {sim_backend}",
            hint="Other tasks need a line in envs/maniskill_bodies.py; GPU physics is not supported here. "
            "push.action_offset works with every task.",
        )  # fmt: skip
    return TASKS[task]
