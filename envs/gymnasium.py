"""Any Gymnasium (1.0 or later) environment with Box actions behind the VectorEnv contract.

N instances are stepped one after the other. An episode depends on its seed alone: `reset(seed=)` at every start.
Observations: a Box (float or integer vectors become "state" and "proprio", images "image/camera"), or a Dict whose keys
`observation` maps to "proprio", "state" and "image/<camera>"; several keys for one are flattened and joined.

How an episode ends: HistoryEnv owns the time limit. The registry's limit is read for the spec, and its TimeLimit
wrapper is not put on; a `truncated` of the environment itself is neither success nor failure, and is refused with an
error when it comes before our limit. `terminated` is success when no `success_key` is given and `terminated_is` says
so; any other `terminated` is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError, closest
from robot_rl.specs import ActionKind, ActionSemantics, DeltaReference, EnvSpec

from .gymnasium_spaces import bounded, check_action_space, layout_of, observation_specs, reader
from .history import Frame, HistoryEnv

_AFTER_END = "The environment ends its episodes itself: set terminate_on_success=true."
_TRUNCATED = "Set max_episode_steps to the environment's own limit or less, or switch that limit off in `options`."
_SUCCESS_KEY = " Set success_key to one of these, or to null to go by `terminated`."


class Terminated(str, Enum):
    """What `terminated` means where no success key speaks: the task is solved, or it is lost."""

    success = "success"
    failure = "failure"


@dataclass(frozen=True)
class GymnasiumConfig:
    """Which environment, and how its spaces and signals are read.

    Attributes:
        env_id: id in Gymnasium's registry; "module:Name-v0" imports the module first.
        options: keyword arguments of `gymnasium.make`.
        observation: "proprio", "state" or "image/<camera>" -> keys of a Dict observation space, joined in this order.
            Empty: a Dict whose keys already have these names, or a Box.
        success_key: key in `info` that says whether the task is solved now, e.g. "is_success"; None: `terminated` says.
        terminated_is: see Terminated; used without `success_key`.
        terminate_on_success: whether success ends an episode.
        max_episode_steps: time limit; None takes the registry's.
        control_hz: actions per second; None takes `metadata["render_fps"]`.
        action_kind: what the action's numbers mean.
        delta_reference: what a delta is added to.
    """

    env_id: str
    options: dict[str, Any] = field(default_factory=dict)
    observation: dict[str, list[str]] = field(default_factory=dict)
    success_key: str | None = None
    terminated_is: Terminated = Terminated.success
    terminate_on_success: bool = True
    max_episode_steps: int | None = None
    control_hz: float | None = None
    action_kind: ActionKind = ActionKind.absolute
    delta_reference: DeltaReference = DeltaReference.none


def make_env(config: GymnasiumConfig, *, num_envs: int, history: int) -> HistoryEnv:
    """Build `num_envs` instances with `history` frames per observation.

    Raises:
        EnvError: unknown id, package missing, a space that robot-rl does not read, no time limit or no control rate.
    """
    if num_envs < 1:
        raise EnvError("num_envs", expected="1 or more", got=str(num_envs), hint="Correct the configuration.")
    registered = registered_spec(config.env_id)
    limit = config.max_episode_steps or registered.max_episode_steps
    if limit is None:
        raise EnvError(
            config.env_id, expected="a time limit", got="none in Gymnasium's registry", hint="Set max_episode_steps."
        )
    envs = [make_one(config.env_id, config.options) for _ in range(num_envs)]
    spec = spec_of(envs[0], config, max_episode_steps=limit)
    sim = GymnasiumEnvs(envs, spec, config)
    return HistoryEnv(sim, history=history, terminate_on_success=config.terminate_on_success)


def registered_spec(env_id: str) -> Any:
    """Gymnasium's own EnvSpec of a registered id.

    Raises:
        EnvError: when the id or the package before its colon does not exist.
    """
    import gymnasium

    try:
        return gymnasium.spec(env_id)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise EnvError(
            "env_id",
            expected="an environment that Gymnasium knows",
            got=f"{env_id!r} ({error})",
            hint="Ids of other packages need their module in front, e.g. gym_pusht:gym_pusht/PushT-v0. "
            + closest(env_id, gymnasium.registry),
        ) from error


def make_one(env_id: str, options: Mapping[str, Any]) -> Any:
    """One instance without a TimeLimit wrapper.

    Raises:
        EnvError: when the environment refuses its options.
    """
    import gymnasium

    try:
        # -1: Gymnasium 1.x puts no TimeLimit on.
        return gymnasium.make(env_id, max_episode_steps=-1, **options)
    except (TypeError, ValueError, gymnasium.error.Error) as error:
        raise EnvError(
            env_id,
            expected="options that the environment takes",
            got=f"{dict(options)}: {error}",
            hint="See its page for the keyword arguments.",
        ) from error


def spec_of(env: Any, config: GymnasiumConfig, *, max_episode_steps: int) -> EnvSpec:
    """The EnvSpec that the spaces and the metadata of one instance give.

    Raises:
        EnvError: a space that is not read, or no control rate.
    """
    check_action_space(env.action_space, where=config.env_id)
    control_hz = config.control_hz or env.metadata.get("render_fps")
    if not control_hz:
        hint = "Set control_hz (actions per second)."
        raise EnvError(config.env_id, expected="a control rate", got="no render_fps in its metadata", hint=hint)
    layout = layout_of(env.observation_space, config.observation, where=config.env_id)
    return EnvSpec(
        env_id=config.env_id.rpartition(":")[2],
        observation=observation_specs(layout),
        action=bounded("action", [env.action_space]),
        action_semantics=ActionSemantics(
            kind=config.action_kind,
            delta_reference=config.delta_reference,
            frame="env",
            rotation="none",
            gripper="none",
            control_mode="gymnasium",
        ),
        joint_names=(),
        robot="gymnasium",
        control_hz=float(control_hz),
        max_episode_steps=max_episode_steps,
    )


class GymnasiumEnvs:
    """The StepEnv; see the module docstring.

    Args:
        envs: N Gymnasium environments with equal spaces.
        spec: what `spec_of` gives, or a better one with units and meanings.
        config: how observations and signals are read.
        packages: whose versions `protocol` names beside Gymnasium's.
    """

    def __init__(
        self, envs: Sequence[Any], spec: EnvSpec, config: GymnasiumConfig, packages: tuple[str, ...] = ()
    ) -> None:
        self.spec = spec
        self.num_envs = len(envs)
        self.device = torch.device("cpu")
        self._envs = envs
        self._config = config
        self._packages = ("gymnasium", "numpy", *packages)
        self._dtype = envs[0].action_space.dtype
        self._low, self._high = envs[0].action_space.low.reshape(-1), envs[0].action_space.high.reshape(-1)
        self._read = reader(layout_of(envs[0].observation_space, config.observation, where=config.env_id))
        self._frames = {
            key: np.zeros((self.num_envs, *array.shape), dtype=array.dtype) for key, array in spec.observation.items()
        }
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._over = np.zeros(self.num_envs, dtype=bool)

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start the episodes `seeds[mask]`."""
        success = np.zeros(self.num_envs, dtype=bool)
        for row in np.flatnonzero(mask).tolist():
            observation, info = self._envs[row].reset(seed=int(seeds[row]))
            self._store(row, observation)
            self._steps[row], self._over[row] = 0, False
            key = self._config.success_key
            # Not every environment reports its success key at a reset.
            success[row] = key is not None and bool(info.get(key, False))
        return self._frame(np.zeros(self.num_envs, dtype=np.float32), success, np.zeros(self.num_envs, dtype=bool))

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action in the active envs, clipped to the action space.

        Raises:
            EnvError: an episode goes on behind `terminated`, the env truncates before the time limit, or the info
                lacks the success key.
        """
        reward = np.zeros(self.num_envs, dtype=np.float32)
        success, fail = np.zeros((2, self.num_envs), dtype=bool)
        played = np.clip(action.detach().cpu().numpy(), self._low, self._high).astype(self._dtype)
        for row in np.flatnonzero(active).tolist():
            if self._over[row]:
                raise self._error(row, "an end of the episode at `terminated`", "a further step", _AFTER_END)
            env = self._envs[row]
            observation, raw_reward, terminated, truncated, info = env.step(played[row].reshape(env.action_space.shape))
            self._steps[row] += 1
            self._store(row, observation)
            reward[row] = raw_reward
            success[row], fail[row] = self._signals(row, bool(terminated), info)
            self._over[row] = terminated
            limit = self.spec.max_episode_steps
            if truncated and not terminated and self._steps[row] < limit:
                raise self._error(row, f"no truncation before step {limit}", "truncated", _TRUNCATED)
        return self._frame(reward, success, fail)

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        return {
            "task": self.spec.env_id,
            "options": self._config.options,
            "success": self._config.success_key or f"terminated ({self._config.terminated_is.value})",
            "versions": {name: version(name) for name in self._packages},
        }

    def close(self) -> None:
        """Close all instances."""
        for env in self._envs:
            env.close()

    def _signals(self, row: int, terminated: bool, info: Mapping[str, Any]) -> tuple[bool, bool]:
        """Success and failure now."""
        key = self._config.success_key
        if key is None:
            solved = terminated and self._config.terminated_is is Terminated.success
        elif key in info:
            solved = bool(info[key])
        else:
            raise self._error(row, f"{key!r} in info", f"{sorted(info)}", closest(key, info) + _SUCCESS_KEY)
        return solved, terminated and not solved

    def _store(self, row: int, observation: Any) -> None:
        for key, value in self._read(observation).items():
            self._frames[key][row] = value

    def _frame(self, reward: np.ndarray, success: np.ndarray, fail: np.ndarray) -> Frame:
        observation = {key: torch.from_numpy(value.copy()) for key, value in self._frames.items()}
        return Frame(observation, torch.from_numpy(reward), torch.from_numpy(success), torch.from_numpy(fail))

    def _error(self, row: int, expected: str, got: str, hint: str) -> EnvError:
        return EnvError(
            f"{self.spec.env_id}, env {row}, step {self._steps[row]}", expected=expected, got=got, hint=hint
        )
