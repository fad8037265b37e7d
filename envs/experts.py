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
from robot_rl.types import ActionChunk, EnvSpec, Observation

from .expert_flaws import EpisodeFlaws, ExpertConfig, noise_stream
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
        self._episodes: Int64[Array, " N"] = np.zeros(0, dtype=np.int64)

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
        seeds = np.asarray(episode_seeds)
        state = self._read(observation)
        self._begin(seeds, np.asarray(new_episode))
        scene = self._scene(state)
        command = self._task.rule(scene, self._flaws)
        if self._task.grasps:
            command = self._slip(scene, command)
        action = np.empty((len(state), 4))
        action[:, :3] = self._arm(scene, command.displacement)
        action[:, 3] = np.where(command.close, -1.0, 1.0)
        assert observation.state is not None
        actions = torch.as_tensor(action[:, None], dtype=torch.float32, device=observation.state.device)
        return ActionChunk(actions=actions, execute=1)

    def _read(self, observation: Observation) -> Float64[Array, "N S"]:
        """The newest frame of the state, with a check of its size."""
        if observation.state is None or observation.state.shape[-1] != self._task.size:
            raise EnvError(
                f"scripted expert for {self.spec.env_id}",
                expected=f"observation.state with {self._task.size} numbers a frame",
                got="none" if observation.state is None else f"{observation.state.shape[-1]}",
                hint="Make the environment with the privileged state in its observation.",
            )
        frame = torch.as_tensor(observation.state)[:, -1]
        return frame.detach().cpu().numpy().astype(np.float64)

    def _begin(self, seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]) -> None:
        """Draw the flaws of every episode that begins."""
        if len(self._episodes) != len(seeds):
            self._episodes = np.full(len(seeds), -1, dtype=np.int64)
            self._flaws = EpisodeFlaws.none(len(seeds))
            self._early_due = np.zeros(len(seeds), dtype=bool)
            self._closing_early = np.zeros(len(seeds), dtype=bool)
            self._drop_due = np.zeros(len(seeds), dtype=bool)
            self._dropping = np.zeros(len(seeds), dtype=bool)
            self._noise = [noise_stream(self.config, 0) for _ in seeds]
        for row in np.flatnonzero(new_episode & (seeds >= 0)):
            self._flaws.draw(int(row), self.config, int(seeds[row]))
            self._noise[row] = noise_stream(self.config, int(seeds[row]))
            self._episodes[row] = seeds[row]
            self._early_due[row] = self._flaws.early_height[row] > 0
            self._drop_due[row] = self._flaws.drop_distance[row] > 0
            self._closing_early[row] = self._dropping[row] = False
        strange = np.flatnonzero((seeds >= 0) & (seeds != self._episodes))
        if strange.size:
            row = int(strange[0])
            raise EnvError(
                f"scripted expert, env {row}",
                expected=f"episode {self._episodes[row]} or new_episode",
                got=f"episode {seeds[row]} without new_episode",
                hint="Set new_episode at the first decision of every episode.",
            )

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
        """The two mistakes that happen once an episode: fingers shut too early, cube dropped on the way."""
        above = scene.tcp - scene.cube
        aside = np.sqrt((above[:, :2] ** 2).sum(axis=1))
        self._closing_early |= self._early_due & (aside < 0.03) & (above[:, 2] < self._flaws.early_height)
        self._early_due &= ~self._closing_early
        self._closing_early &= scene.finger > 0.008
        left = np.sqrt(((scene.goal - scene.cube) ** 2).sum(axis=1))
        self._dropping |= self._drop_due & command.holding & (left < self._flaws.drop_distance)
        self._drop_due &= ~self._dropping
        self._dropping &= scene.finger < 0.038
        still = self._closing_early | self._dropping
        displacement = np.where(still[:, None], 0.0, command.displacement)
        return replace(
            command, displacement=displacement, close=(command.close | self._closing_early) & ~self._dropping
        )

    def _arm(self, scene: Scene, displacement: Float64[Array, "N 3"]) -> Float64[Array, "N 3"]:
        """Position actions from a displacement: proportional, limited in speed, noisy, inside [-1, 1]."""
        speed = self._flaws.speed[:, None]
        wanted = displacement * (GAIN / METRES_PER_ACTION) * speed
        fastest = np.abs(wanted).max(axis=1, keepdims=True)
        radius = np.sqrt((scene.tcp[:, :1] - BASE_X_M) ** 2 + scene.tcp[:, 1:2] ** 2)
        far = np.clip((radius - FAR_M[0]) / (FAR_M[1] - FAR_M[0]), 0.0, 1.0)
        top = speed * (TOP_SPEED - (TOP_SPEED - FAR_SPEED) * far)
        limited = wanted * np.minimum(1.0, top / np.maximum(fastest, 1e-9))
        if self.config.action_noise > 0.0:
            limited += self.config.action_noise * np.stack([rng.standard_normal(3) for rng in self._noise])
        return np.clip(limited, -1.0, 1.0)


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
