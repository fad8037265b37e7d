"""A VectorEnv of ours as Stable-Baselines3's VecEnv: one action a decision, conventions of time limits translated.

SB3 resets an env itself when an episode ends, returns the first observation of the next one, and expects the last one
of the old episode in `info["terminal_observation"]`. `info["TimeLimit.truncated"]` says that the value behind it must be
bootstrapped (PPO adds gamma V to the reward, SAC keeps the target); a termination is not marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Float32
from robot_rl.contracts import VectorEnv
from robot_rl.data.normalizer import Normalizer
from robot_rl.types import ActionChunk, Observation

from .acting import ACTION
from .encoders import build_encoder

TRUNCATED = "TimeLimit.truncated"
LAST = "terminal_observation"


class _VecEnvMethods:
    """The methods of SB3's VecEnv over a VectorEnv; `as_vec_env` joins it with the class itself."""

    num_envs: int

    def connect(
        self, env: VectorEnv, *, keys: tuple[str, ...], history: int, normalizer: Normalizer, seeds: Iterable[int]
    ) -> None:
        """Remember the environment and how observations and actions are mapped. Called once, before anything else."""
        self.env, self.seeds, self.normalizer = env, seeds, normalizer
        self.encoder = build_encoder(env.spec, keys, history=history, normalizer=normalizer)

    def flat(self, observation: Observation) -> Float32[Array, "N C"]:
        """What the network sees: the keys of To frames in one row."""
        with torch.inference_mode():
            return self.encoder(observation.map(lambda array: array.cpu())).numpy().copy()

    def reset(self) -> Float32[Array, "N C"]:
        """Start the first episodes."""
        return self.flat(self.env.reset(self.seeds))

    def step_async(self, actions: Float32[Array, "N A"]) -> None:
        """Keep the normalised actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Play one action in every env.

        Returns:
            float32 (N, C) observations behind the auto-reset, float32 (N,) rewards, bool (N,) ends of episodes, and a
            dict for each env.
        """
        normalized = torch.as_tensor(np.asarray(self.actions, dtype=np.float32))[:, None]
        physical = self.normalizer.invert(ACTION, normalized).to(self.env.device)
        result = self.env.step(ActionChunk(actions=physical, execute=1))
        terminated, truncated = result.terminated.cpu().numpy(), result.truncated.cpu().numpy()
        done = terminated | truncated
        success = result.success.cpu().numpy()
        infos: list[dict[str, Any]] = [{TRUNCATED: False} for _ in range(self.num_envs)]
        if done.any():
            last = self.flat(result.final_observation)
            for row in np.flatnonzero(done).tolist():
                is_truncated = bool(truncated[row] and not terminated[row])
                infos[row] = {TRUNCATED: is_truncated, LAST: last[row], "is_success": bool(success[row])}
        return self.flat(result.observation), result.rewards[:, 0].cpu().numpy().copy(), done, infos

    def close(self) -> None:
        """Nothing: whoever built the environment closes it."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """SB3 asks for `render_mode` alone, which there is none of."""
        if attr_name == "render_mode":
            return [None] * self.num_envs
        raise AttributeError(attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Single envs have no attributes here."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Single envs have no methods here."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> Sequence[bool]:
        """Never."""
        return [False] * self.num_envs


def as_vec_env(
    env: VectorEnv, *, keys: tuple[str, ...], history: int, normalizer: Normalizer, seeds: Iterable[int]
) -> Any:
    """`env` as a stable_baselines3 VecEnv with flat observations and actions in [-1, 1].

    Args:
        env: the environments; not closed here.
        keys: observation keys, in this order in the flat observation.
        history: To of `env`.
        normalizer: with "action" and every key; see normalizer.unit_actions.
        seeds: of the training episodes, as for `VectorEnv.reset`; endless.

    Raises:
        PolicyError: a key that the environment does not have.
        ModuleNotFoundError: stable_baselines3 is not installed.
    """
    from gymnasium.spaces import Box
    from stable_baselines3.common.vec_env import VecEnv

    # Joined here: a module must load without the package whose class it extends.
    kind: Any = type("ChunkVecEnv", (_VecEnvMethods, VecEnv), {})
    vec_env = kind.__new__(kind)
    vec_env.connect(env, keys=keys, history=history, normalizer=normalizer, seeds=seeds)
    observations = Box(-np.inf, np.inf, (vec_env.encoder.size,), np.float32)
    VecEnv.__init__(vec_env, env.num_envs, observations, Box(-1.0, 1.0, (env.spec.action.size,), np.float32))
    return vec_env
