"""ManiSkill scenes as StepEnvs: several CPU scenes stepped one after the other, or one GPU batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError

from .history import Frame
from .maniskill_spec import PLAIN, describe_env, read_frame
from .maniskill_views import Views


class CpuEnvs:
    """N scenes with CPU physics in one process; only active ones are stepped.

    Args:
        envs: N ManiSkill BaseEnvs of the same task.
        task: its id.
        max_episode_steps: time limit for the spec.
        facts: what `protocol` returns.
        views: what becomes of images and points.
    """

    def __init__(
        self,
        envs: Sequence[Any],
        *,
        task: str,
        max_episode_steps: int,
        facts: Mapping[str, Any],
        views: Views = PLAIN,
    ) -> None:
        self.views = views
        self._envs = envs
        self._facts = dict(facts)
        self.num_envs = len(envs)
        self.device = torch.device("cpu")
        self.spec = describe_env(envs[0], task=task, max_episode_steps=max_episode_steps, views=views)
        first = read_frame(envs[0], envs[0].get_obs(), views=views)
        self._current = {
            key: torch.zeros_like(value[0]).repeat(self.num_envs, *[1] * (value.dim() - 1))
            for key, value in first.items()
        }

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes in a physics scene without a past.

        Raises:
            EnvError: a seed does not fit ManiSkill's generators (below 2^32).
        """
        success, fail = torch.zeros(2, self.num_envs, dtype=torch.bool)
        for row in np.flatnonzero(mask).tolist():
            env = self._envs[row]
            seed = _checked_seed(int(seeds[row]))
            with torch.inference_mode():  # a sixth less time in ManiSkill's pose arithmetic, the same numbers
                obs, info = env.reset(seed=seed, options=_forget_past(env))
            self._keep(row, obs)
            success[row], fail[row] = _signals(info, 1)
        return Frame(observation=self._copy(), reward=torch.zeros(self.num_envs), success=success, fail=fail)

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action in the active envs."""
        reward = torch.zeros(self.num_envs)
        success, fail = torch.zeros(2, self.num_envs, dtype=torch.bool)
        for row in np.flatnonzero(active).tolist():
            with torch.inference_mode():
                obs, raw_reward, _, _, info = self._envs[row].step(action[row])
            self._keep(row, obs)
            reward[row] = float(raw_reward)
            success[row], fail[row] = _signals(info, 1)
        return Frame(observation=self._copy(), reward=reward, success=success, fail=fail)

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        return self._facts | {"reset": "a new physics scene per episode; an episode depends on its seed alone"}

    def close(self) -> None:
        """Release all scenes."""
        for env in self._envs:
            env.close()

    def _keep(self, row: int, obs: Any) -> None:
        for key, value in read_frame(self._envs[row], obs, views=self.views).items():
            self._current[key][row] = value[0]

    def _copy(self) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in self._current.items()}


def _forget_past(env: Any) -> dict[str, Any]:
    """Options of the coming reset, after which nothing of earlier episodes is left in PhysX.

    ManiSkill's reset restores poses and velocities, but PhysX keeps contacts and the order in which it solves them: the
    first observation may still show a grasp, and the same seed may go another way (16 cm at a grasp, seen in
    PickCube-v1). Moving the same bodies into a new PhysX scene costs 0.4 ms and gives the numbers of a fresh instance.
    """
    if env.reconfiguration_freq != 0:
        # These tasks draw new shapes when they rebuild; rebuilding at every reset ties the shapes to the seed.
        return {"reconfigure": True}
    import sapien

    old = env.scene.sub_scenes[0]
    entities = list(old.entities)
    for entity in reversed(entities):
        old.remove_entity(entity)
    env._set_scene_config()  # process-wide in sapien: another task may have set it since
    physics = sapien.physx.PhysxCpuSystem()
    physics.timestep = old.physx_system.timestep
    systems = [physics] + ([old.render_system] if env.scene.can_render() else [])
    new = sapien.Scene(systems)
    for entity in entities:
        new.add_entity(entity)
    env.scene.sub_scenes[0], env.scene.px = new, physics
    return {}


class GpuEnvs:
    """One batch of N envs with GPU physics. Written against mani_skill 3.0.1's source, not run on a GPU yet.

    ManiSkill draws start states from one generator for all envs that reset together, so a seed would mean another
    start in another company. Envs are therefore reset one by one; GPU physics itself is not bit-reproducible.

    Args:
        env: a batched ManiSkill BaseEnv.
        task: its id.
        max_episode_steps: time limit for the spec.
        facts: what `protocol` returns.
        views: what becomes of images and points.
    """

    def __init__(
        self,
        env: Any,
        *,
        task: str,
        max_episode_steps: int,
        facts: Mapping[str, Any],
        views: Views = PLAIN,
    ) -> None:
        self.views = views
        if env.reconfiguration_freq != 0:
            raise EnvError(
                f"{task} with physx_cuda",
                expected="a task whose scene is built once",
                got="a task that rebuilds its scene at resets, which ManiSkill can't do for a part of a batch",
                hint="Use sim_backend=physx_cpu.",
            )
        self._env = env
        self._facts = dict(facts)
        self.num_envs = int(env.num_envs)
        self.device = torch.device(env.device)
        self.spec = describe_env(env, task=task, max_episode_steps=max_episode_steps, views=views)

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes one by one. Raises EnvError on a seed of 2^32 or more."""
        for row in np.flatnonzero(mask).tolist():
            # All entries of the list get this seed: tasks read the generator of env 0 or of the env that resets.
            seed = [_checked_seed(int(seeds[row]))] * self.num_envs
            index = torch.tensor([row], device=self.device)
            self._env.reset(seed=seed, options={"env_idx": index})
        info = self._env.get_info()
        success, fail = _signals(info, self.num_envs)
        return Frame(
            observation=read_frame(self._env, self._env.get_obs(info), views=self.views),
            reward=torch.zeros(self.num_envs, device=self.device),
            success=success,
            fail=fail,
        )

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action in all envs; those that are not active get zeros."""
        playing = torch.as_tensor(active, device=self.device)[:, None]
        obs, reward, _, _, info = self._env.step(torch.where(playing, action, torch.zeros_like(action)))
        success, fail = _signals(info, self.num_envs)
        return Frame(
            observation=read_frame(self._env, obs, views=self.views),
            reward=reward.to(torch.float32).clone(),
            success=success,
            fail=fail,
        )

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        return self._facts | {"reset": "each env by itself from its seed; GPU physics is not bit-reproducible"}

    def close(self) -> None:
        """Release the scene."""
        self._env.close()


def _signals(info: Mapping[str, Any], num_envs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(success, fail), bool (N,), copies on the device of the simulator; False where a task has no such signal."""
    nothing = torch.zeros(num_envs, dtype=torch.bool, device=info["elapsed_steps"].device)
    return info.get("success", nothing).bool().clone(), info.get("fail", nothing).bool().clone()


def _checked_seed(seed: int) -> int:
    if seed >= 2**32:
        raise EnvError("seeds", expected="seeds below 2^32", got=str(seed), hint="ManiSkill's generators take no more.")
    return seed
