"""Pushes for any StepEnv: an impulse on a named body where the simulator can give one, else an offset on the action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.disturbance import Push
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError

from .history import Frame, StepEnv

Kick = Callable[[np.ndarray, np.ndarray], None]


class PushedSteps:
    """A StepEnv whose episodes are pushed; between the simulator and HistoryEnv.

    A push depends on (its seed, the seed of the episode) alone, so an episode is the same in any slot of any batch.

    Args:
        inner: the simulator.
        push: when, where and how much.
        kick: gives impulses float64 (N, 3), N s, to the body of `push` in the envs of a mask bool (N,) with the coming
            action; None where the simulator has no body to push.

    Raises:
        EnvError: a body is named and the simulator can't push it, or the action has fewer than two elements.
        ConfigError: numbers out of range.
    """

    def __init__(self, inner: StepEnv, push: Push, *, kick: Kick | None = None) -> None:
        push.validate()
        if push.body and kick is None:
            raise EnvError(
                f"push.body={push.body}", expected=f"a body that {inner.spec.env_id} can push", got="none there",
                hint="Leave body out and give push.action_offset: the robot is pushed through its action.",
            )  # fmt: skip
        if not push.body and inner.spec.action.shape[0] < 2:
            raise EnvError(
                f"push.action_offset on {inner.spec.env_id}", expected="an action of two elements or more",
                got=f"{inner.spec.action.shape[0]}", hint="This environment can't be pushed in a plane.",
            )  # fmt: skip
        self.spec, self.num_envs, self.device = inner.spec, inner.num_envs, inner.device
        self._inner, self._push, self._kick = inner, push, kick
        self._start = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._angle = np.zeros(self.num_envs)

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes and draw their pushes."""
        for row in np.flatnonzero(mask).tolist():
            self._start[row], self._angle[row] = self._push.draw(int(seeds[row]))
        self._steps[mask] = 0
        return self._inner.reset_envs(mask, seeds)

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action, with the push where it is due."""
        since = self._steps - self._start
        due = active & (since >= 0) & (since < self._push.steps)
        if due.any():
            plane = np.stack([np.cos(self._angle), np.sin(self._angle)], axis=1)
            if self._kick is None:
                action = self._offset(action, torch.from_numpy(plane * due[:, None]).to(action))
            else:
                impulse = self._push.impulse_n_s / self._push.steps * plane
                self._kick(np.concatenate([impulse, np.zeros((self.num_envs, 1))], axis=1), due)
        self._steps += active
        return self._inner.step_envs(action, active)

    def protocol(self) -> dict[str, Any]:
        """The simulator's block and the push."""
        return self._inner.protocol() | {"push": self._push.to_json()}

    def close(self) -> None:
        """Release the simulator."""
        self._inner.close()

    def _offset(self, action: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
        spec = self.spec.action
        if spec.low is not None and spec.high is not None:
            action = torch.minimum(torch.maximum(action, action.new_tensor(spec.low)), action.new_tensor(spec.high))
        pushed = action.clone()
        pushed[:, :2] += self._push.action_offset * plane
        return pushed


def pushed(inner: StepEnv, push: Push | None, *, kick: Kick | None = None) -> StepEnv:
    """`inner`, with pushes when there are any. Raises as PushedSteps."""
    return inner if push is None else PushedSteps(inner, push, kick=kick)
