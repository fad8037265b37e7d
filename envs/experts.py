"""Scripted experts for ManiSkill tasks: closed loop on the privileged state, with flaws on request.

They make demonstrations without people and without downloads. Layouts and tasks: mani_skill 3.0.1,
envs/tasks/tabletop; control: agents/controllers/pd_ee_pose.py (a delta to the measured pose, 1 = 0.1 m).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.errors import EnvError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .expert_flaws import EpisodeFlaws, ExpertConfig
from .expert_memory import ExpertMemory
from .expert_rules import Command, Scene, pick, shove, stack

__all__ = ["ExpertConfig", "ScriptedExpert"]

CONTROL_MODE = "pd_ee_delta_pos"
METRES_PER_ACTION = 0.1
# The arm's drives reach about 40 % of a commanded delta within a step (stiffness 1000, damping 100, 20 Hz).
GAIN = 1.0
TOP_SPEED = 0.8
# Near the arm's reach the simulator's IK fails on targets far from the present pose, and the arm stands still: small
# steps pass. Radius around the robot's base, m.
BASE_X_M = -0.615
FAR_M = (0.74, 0.79)
FAR_SPEED = 0.1


@dataclass(frozen=True)
class Task:
    """How to read one task's flat state, and the rule that solves it.

    Attributes:
        size: of the whole state.
        slices: name -> place in the state. Needs "tcp", "cube", "goal"; "grasped" where the task shows it.
        goal_above_m: added to the height of what "goal" reads.
        rule: see expert_rules.
        grasps: whether the gripper opens and closes at all.
    """

    size: int
    slices: Mapping[str, slice]
    goal_above_m: float
    rule: Callable[[Scene, EpisodeFlaws], Command]
    grasps: bool


# The state is qpos (9), qvel (9), then the task's extras in the order of its _get_obs_extra.
TASKS: Mapping[str, Task] = {
    "PickCube-v1": Task(
        42,
        {"grasped": slice(18, 19), "tcp": slice(19, 22), "goal": slice(26, 29), "cube": slice(29, 32)},
        0.0,
        pick,
        True,
    ),
    "PushCube-v1": Task(35, {"tcp": slice(18, 21), "goal": slice(25, 28), "cube": slice(28, 31)}, 0.0, shove, False),
    "PullCube-v1": Task(35, {"tcp": slice(18, 21), "goal": slice(25, 28), "cube": slice(28, 31)}, 0.0, shove, False),
    "StackCube-v1": Task(48, {"tcp": slice(18, 21), "cube": slice(25, 28), "goal": slice(32, 35)}, 0.04, stack, True),
}
FINGERS = slice(7, 9)


class ScriptedExpert:
    """Solves PickCube-v1, PushCube-v1, PullCube-v1 and StackCube-v1 with `pd_ee_delta_pos`.

    Without flaws it has no memory at all. With them it remembers, per env, whether the early closing and the drop of
    this episode are still to come, and the stream of the noise.

    Args:
        config: flaws, noise and seed.
        spec: of the environment; needs the observation key "state".

    Raises:
        EnvError: for a task, control mode or observation it does not know, listing what it knows.
        ConfigError: for a flaw out of range.
    """

    def __init__(self, config: ExpertConfig, spec: EnvSpec) -> None:
        config.validate()
        self.config = config
        self.spec = spec
        self._task = _find_task(config, spec)
        self._memory = ExpertMemory(config)

    def act(
        self,
        observation: Observation,
        *,
        episode_seeds: Int64[Array, " N"],
        new_episode: Bool[Array, " N"],
    ) -> ActionChunk:
        """Choose the next action of N envs from the newest frame of `observation.state`.

        Args:
            observation: state float32 (N, To, S).
            episode_seeds: int64 (N,), -1 for an idle env (its action means nothing).
            new_episode: bool (N,), True where this is the first decision of an episode.

        Returns:
            A chunk of one action, float32 (N, 1, 4) in [-1, 1]: x, y, z deltas and the gripper (1 open, -1 shut).

        Raises:
            EnvError: when there is no state, its size is wrong, or an episode goes on that never began.
        """
        frame = self._newest_frame(observation)
        self._memory.begin(torch.as_tensor(episode_seeds).cpu().numpy(), torch.as_tensor(new_episode).cpu().numpy())
        scene = self._scene(frame.cpu().numpy().astype(np.float64))
        command = self._task.rule(scene, self._memory.flaws)
        if self._task.grasps:
            command = self._slip(scene, command)
        action = np.concatenate(
            [self._arm(scene, command.displacement), np.where(command.close, -1.0, 1.0)[:, None]], axis=1
        )
        return ActionChunk(torch.as_tensor(action[:, None], dtype=torch.float32, device=frame.device), execute=1)

    def _newest_frame(self, observation: Observation) -> torch.Tensor:
        """The newest frame of the state, (N, S), with a check of its size."""
        state = observation.state
        if state is None or state.shape[-1] != self._task.size:
            raise EnvError(
                f"scripted expert for {self.spec.env_id}",
                expected=f"observation.state with {self._task.size} numbers a frame",
                got="none" if state is None else f"{state.shape[-1]}",
                hint="Make the environment with the privileged state in its observation.",
            )
        return torch.as_tensor(state)[:, -1].detach()

    def _scene(self, state: Float64[Array, "N S"]) -> Scene:
        slices = self._task.slices
        return Scene(
            tcp=state[:, slices["tcp"]],
            finger=state[:, FINGERS].mean(axis=1),
            cube=state[:, slices["cube"]],
            goal=state[:, slices["goal"]] + np.array([0.0, 0.0, self._task.goal_above_m]),
            grasped=state[:, slices["grasped"]][:, 0] > 0.5 if "grasped" in slices else None,
        )

    def _slip(self, scene: Scene, command: Command) -> Command:
        """The command with the mistakes of the episode; meanwhile the arm rests."""
        shut, opened = self._memory.slips.step(
            above=scene.tcp - scene.cube, to_goal=scene.goal - scene.cube, holding=command.holding
        )
        displacement = np.where((shut | opened)[:, None], 0.0, command.displacement)
        return replace(command, displacement=displacement, close=(command.close | shut) & ~opened)

    def _arm(self, scene: Scene, displacement: Float64[Array, "N 3"]) -> Float64[Array, "N 3"]:
        """Position actions from a displacement: proportional, limited in speed, noisy, inside [-1, 1]."""
        speed = self._memory.flaws.speed[:, None]
        wanted = displacement * (GAIN / METRES_PER_ACTION) * speed
        fastest = np.abs(wanted).max(axis=1, keepdims=True)
        radius = np.sqrt((scene.tcp[:, :1] - BASE_X_M) ** 2 + scene.tcp[:, 1:2] ** 2)
        far = np.clip((radius - FAR_M[0]) / (FAR_M[1] - FAR_M[0]), 0.0, 1.0)
        top = speed * (TOP_SPEED - (TOP_SPEED - FAR_SPEED) * far)
        limited = wanted * np.minimum(1.0, top / np.maximum(fastest, 1e-9))
        return np.clip(limited + self._memory.noise(), -1.0, 1.0)


def _find_task(config: ExpertConfig, spec: EnvSpec) -> Task:
    """The task of `spec`, or an EnvError that lists what is supported."""
    where = f"scripted expert for {spec.env_id}"
    if spec.env_id not in TASKS:
        raise EnvError(where, expected="a supported task", got=repr(spec.env_id), hint=closest(spec.env_id, TASKS))
    mode = spec.action_semantics.control_mode
    if mode != CONTROL_MODE or spec.action.shape != (4,):
        got = f"{mode!r} with actions of shape {spec.action.shape}"
        raise EnvError(where, expected=f"{CONTROL_MODE!r} with 4 actions", got=got, hint=closest(mode, [CONTROL_MODE]))
    task = TASKS[spec.env_id]
    if "state" not in spec.observation or spec.observation["state"].shape != (task.size,):
        found = {key: array.shape for key, array in spec.observation.items()}
        hint = "Valid: the privileged flat state of mani_skill 3.0.1 (obs_mode state) under the key 'state'."
        raise EnvError(where, expected=f"observation 'state' of shape ({task.size},)", got=f"{found}", hint=hint)
    if not task.grasps and (config.early_close_probability > 0.0 or config.drop_probability > 0.0):
        graspers = ", ".join(sorted(name for name, one in TASKS.items() if one.grasps))
        raise EnvError(
            where,
            expected="early_close_probability and drop_probability 0",
            got=f"{config.early_close_probability} and {config.drop_probability}",
            hint=f"The fingers stay shut in this task; these flaws are for: {graspers}.",
        )
    return task
