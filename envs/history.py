"""From single steps to action chunks: history, time limit, seed queue and auto-reset, once for all simulators.

A simulator implements `StepEnv` (N envs, one action each). `HistoryEnv` makes a `robot_rl.contracts.VectorEnv` of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation, StepResult

_IDLE = -1
_TIME = "time"


@dataclass(frozen=True)
class Frame:
    """What a reset or one action led to in each of N envs; rows of envs that took no part mean nothing.

    Attributes:
        observation: key of EnvSpec.observation -> (N, ...).
        reward: float32 (N,), as the simulator gives it (zero at a reset).
        success, fail: bool (N,), raw signals of the task now.
        cut: bool (N,), a person or a stop ends the episode here, as a time limit does; None: nowhere.
    """

    observation: Mapping[str, Any]
    reward: Float32[Array, " N"]
    success: Bool[Array, " N"]
    fail: Bool[Array, " N"]
    cut: Bool[Array, " N"] | None = None


@runtime_checkable
class StepEnv(Protocol):
    """N simulated envs that take one action at a time. They know no time limit and never reset themselves."""

    spec: EnvSpec
    num_envs: int
    device: torch.device

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start the episodes `seeds[mask]`. Returns copies; observation rows outside `mask`: their last frame."""
        ...

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action in the active envs (a batched simulator may move the others too). Returns copies."""
        ...

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        ...

    def close(self) -> None:
        """Release the simulator."""
        ...


class HistoryEnv:
    """A VectorEnv on top of a StepEnv.

    An episode ends when the task fails, when it succeeds and `terminate_on_success` is set (both: terminated), or at
    the time limit (truncated, unless it terminated at that very step). The rest of the chunk is dropped and the env
    starts the next seed of the queue, or becomes idle.

    Args:
        step_env: the simulator.
        history: To, frames of an observation; the first frame of an episode is repeated to fill it.
        terminate_on_success: whether success ends an episode.
        max_episode_steps: time limit in steps, in place of that of `step_env.spec`.
    """

    def __init__(
        self, step_env: StepEnv, *, history: int, terminate_on_success: bool, max_episode_steps: int | None = None
    ) -> None:
        if history < 1 or (max_episode_steps is not None and max_episode_steps < 1):
            raise EnvError(
                "HistoryEnv",
                expected="history and max_episode_steps of at least 1",
                got=f"history={history}, max_episode_steps={max_episode_steps}",
                hint="Correct the configuration.",
            )
        self._env = step_env
        self._history = history
        self._terminate_on_success = terminate_on_success
        limit = step_env.spec.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.spec = replace(step_env.spec, max_episode_steps=limit)
        self.num_envs = step_env.num_envs
        self.device = step_env.device
        self._stack: dict[str, torch.Tensor] = {}
        self._queue: Iterator[int] = iter(())
        self._seeds = np.full(self.num_envs, _IDLE, dtype=np.int64)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._success_at_reset = np.zeros(self.num_envs, dtype=bool)

    @property
    def episode_seeds(self) -> Int64[Array, " N"]:
        """Seed of the episode each env is in, int64 numpy (N,); -1 when idle."""
        return self._seeds.copy()

    @property
    def success_at_reset(self) -> Bool[Array, " N"]:
        """Whether the episode each env is in was solved at its first frame, bool numpy (N,); False when idle."""
        return self._success_at_reset.copy()

    def reset(self, seeds: Iterable[int]) -> Observation:
        """Start new episodes; see `robot_rl.contracts.VectorEnv`.

        Raises:
            EnvError: there is no seed, a seed is negative, or a first frame is not finite.
        """
        self._queue = iter(seeds)
        self._stack = {}
        if not self._start(np.ones(self.num_envs, dtype=bool)):
            raise EnvError("reset", expected="at least one seed", got="none", hint="Give the seeds of the episodes.")
        return self._observation()

    def step(self, chunk: ActionChunk) -> StepResult:
        """Play a chunk; see `robot_rl.contracts.VectorEnv`.

        Raises:
            EnvError: before `reset`, on a chunk of a wrong size, or on an action or a frame that is not finite.
        """
        running = self._seeds != _IDLE
        actions = self._checked_actions(chunk, running)
        rewards = np.zeros((self.num_envs, chunk.execute), dtype=np.float32)
        mask, successes = np.zeros((2, self.num_envs, chunk.execute), dtype=bool)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        frames = []
        for column in range(chunk.execute):
            active = running & ~terminated & ~truncated
            if active.any():
                frame = self._env.step_envs(actions[:, column], active)
                success, fail = _to_numpy(frame.success) & active, _to_numpy(frame.fail) & active
                mask[:, column], successes[:, column] = active, success
                rewards[:, column] = np.where(active, _to_numpy(frame.reward), 0)
                self._steps += active
                self._check_finite({**frame.observation, "reward": frame.reward}, active)
                terminated |= fail | (success & self._terminate_on_success)
                truncated |= active & ~terminated & (self._steps >= self.spec.max_episode_steps)
                if frame.cut is not None:
                    truncated |= active & ~terminated & _to_numpy(frame.cut)
                self._push_history(frame.observation, active)
            frames.append({key: value[:, -1] for key, value in self._stack.items() if key != _TIME})
        final_observation = self._observation()
        self._start(terminated | truncated)
        executed = mask.sum(axis=1, dtype=np.int64)
        last = successes[np.arange(self.num_envs), np.maximum(executed - 1, 0)]
        return StepResult(
            observation=self._observation(),
            final_observation=final_observation,
            rewards=self._tensor(rewards),
            mask=self._tensor(mask),
            executed=self._tensor(executed),
            terminated=self._tensor(terminated),
            truncated=self._tensor(truncated),
            success=self._tensor(successes.any(axis=1)),
            success_at_end=self._tensor(last),
            step_success=self._tensor(successes),
            frames={key: torch.stack([frame[key] for frame in frames], dim=1) for key in frames[0]},
        )

    def judged_by(self, detector: Any) -> HistoryEnv:
        """A new env on the same simulator whose reward and success come from a detector (detected.py); success ends
        its episodes. This one must not be used any more."""
        from .detected import DetectedEnv

        return HistoryEnv(
            DetectedEnv(self._env, detector), history=self._history, terminate_on_success=True,
            max_episode_steps=self.spec.max_episode_steps,
        )  # fmt: skip

    def protocol(self) -> dict[str, Any]:
        """The simulator's block, and how episodes end and restart here."""
        return self._env.protocol() | {
            "terminate_on_success": self._terminate_on_success,
            "max_episode_steps": self.spec.max_episode_steps,
            "history": self._history,
            "auto_reset": "at the end of the chunk in which the episode ended; the rest of that chunk is dropped",
        }

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()

    def _start(self, mask: np.ndarray) -> bool:
        """Give each env in `mask` the next seed and start it there, or make it idle; returns whether any started."""
        for row in np.flatnonzero(mask):
            seed = next(self._queue, None)
            if seed is not None and seed < 0:
                raise EnvError("seeds", expected="seeds of 0 or more", got=str(seed), hint="-1 marks an idle env.")
            self._seeds[row] = _IDLE if seed is None else seed
        starting = mask & (self._seeds != _IDLE)
        self._success_at_reset[mask] = False
        self._steps[mask] = 0
        if not starting.any():
            return False
        frame = self._env.reset_envs(starting, self._seeds.copy())
        self._check_finite(frame.observation, starting)
        self._success_at_reset[starting] = _to_numpy(frame.success)[starting]
        time = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        for key, value in {**frame.observation, _TIME: time}.items():
            repeated = torch.stack([value] * self._history, dim=1)
            self._stack[key] = self._merge(starting, repeated, self._stack.get(key, repeated))
        return True

    def _check_finite(self, arrays: Mapping[str, torch.Tensor], mask: np.ndarray) -> None:
        for key, value in arrays.items():
            # A sum is finite only if every element is; one that overflows is looked at element by element.
            if not value.is_floating_point() or math.isfinite(float(value.sum())):
                continue
            bad = ~torch.isfinite(value) & self._tensor(mask).view(-1, *[1] * (value.dim() - 1))
            if bool(bad.any()):
                env, *element = torch.nonzero(bad)[0].tolist()
                raise EnvError(
                    f"{self.spec.env_id}, env {env}, seed {self._seeds[env]}, step {self._steps[env]}, key {key!r}",
                    expected="finite numbers",
                    got=f"{value[(env, *element)].item()} at {element}",
                    hint="The simulator or driver gives no numbers there; episodes that ended before are kept.",
                )

    def _push_history(self, frame: Mapping[str, torch.Tensor], mask: np.ndarray) -> None:
        time = self._tensor(self._steps / self.spec.control_hz)
        for key, value in {**frame, _TIME: time}.items():
            old = self._stack[key]
            new = value[:, None] if self._history == 1 else torch.cat([old[:, 1:], value[:, None]], dim=1)
            self._stack[key] = self._merge(mask, new, old)

    def _merge(self, mask: np.ndarray, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        if mask.all():
            return new
        return torch.where(self._tensor(mask).view(-1, *[1] * (new.dim() - 1)), new, old)

    def _observation(self) -> Observation:
        arrays = {key: value.clone() for key, value in self._stack.items()}
        return Observation.from_arrays({k: v for k, v in arrays.items() if k != _TIME}, time=arrays[_TIME])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        # Shares memory on the CPU: only for arrays that nobody changes afterwards.
        return torch.from_numpy(array).to(self.device)

    def _checked_actions(self, chunk: ActionChunk, running: np.ndarray) -> torch.Tensor:
        if not self._stack:
            raise EnvError("step", expected="reset first", got="step before reset", hint="Call env.reset(seeds).")
        actions = torch.as_tensor(chunk.actions, dtype=torch.float32, device=self.device)
        shape, size = tuple(actions.shape), self.spec.action.size
        if len(shape) != 3 or shape[0] != self.num_envs or shape[2] != size or not 1 <= chunk.execute <= shape[1]:
            raise EnvError(
                f"action chunk for {self.spec.env_id}",
                expected=f"shape (N={self.num_envs}, Tp, A={size}) with 1 <= execute <= Tp",
                got=f"shape {shape} with execute={chunk.execute}",
                hint="The policy was made for another task, control mode or number of envs.",
            )
        if math.isfinite(float(actions.sum())):
            return actions
        finite = torch.isfinite(actions[:, : chunk.execute]) | ~self._tensor(running)[:, None, None]
        if not bool(finite.all()):
            env, column, element = torch.nonzero(~finite)[0].tolist()
            raise EnvError(
                f"env {env}, action {column} of the chunk, element {element}",
                expected="a finite number",
                got=str(actions[env, column, element].item()),
                hint="The policy or its normaliser gives no numbers; nothing was played.",
            )
        return actions


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array
