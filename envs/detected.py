"""A simulator whose success is judged by a classifier, as on a robot, where nobody else says so.

The classifier gives reward (1 at every step it calls a success, else 0) and the end of an episode; the task's own reward
and success are dropped, its failures stay. Evaluation is left to the task: `robot-rl evaluate` knows no classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64

from .history import Frame, StepEnv


@runtime_checkable
class Detector(Protocol):
    """hardware/success.SuccessDetector: frames in, success signal out, with memory per env."""

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """A new episode begins in the envs of `mask`."""
        ...

    def update(self, frames: Mapping[str, Array]) -> Bool[Array, " N"]:
        """The signal after these frames (numpy)."""
        ...


class DetectedEnv:
    """A StepEnv with a detector's success in place of the task's.

    Args:
        step_env: the simulator.
        detector: for as many envs.
    """

    def __init__(self, step_env: StepEnv, detector: Detector) -> None:
        self._env, self._detector = step_env, detector
        self.spec, self.num_envs, self.device = step_env.spec, step_env.num_envs, step_env.device

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes; a first frame is no success yet, for the detector has no action to reward."""
        frame = self._env.reset_envs(mask, seeds)
        self._detector.reset(np.asarray(mask))
        return replace(frame, success=torch.zeros(self.num_envs, dtype=torch.bool, device=self.device))

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action and judge what it led to."""
        frame = self._env.step_envs(action, active)
        seen = {key: torch.as_tensor(value).cpu().numpy() for key, value in frame.observation.items()}
        success = torch.from_numpy(self._detector.update(seen) & np.asarray(active)).to(self.device)
        return replace(frame, reward=success.float(), success=success)

    def protocol(self) -> dict[str, Any]:
        """The simulator's block, with who judges."""
        return self._env.protocol() | {"reward_mode": "success classifier", "success": "success classifier"}

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()
