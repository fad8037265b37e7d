"""How smooth the actions of one episode were: the numbers of an evaluation, kept while a robot plays."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.execution import held_action
from robot_rl.errors import ConfigError
from robot_rl.specs import EnvSpec


class Smoothness:
    """The fields of rollout.EpisodeRecord with these names; nothing grows while it counts.

    Args:
        spec: of the actions. Where it holds, an action that means that counts (`held_action`); where none does, the hold
            is left out.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._spec, self._grippers = spec, gripper_elements(spec.action)
        self._last: np.ndarray | None = None
        self._change: np.ndarray | None = None
        self._sums = {"change": 0.0, "jerk": 0.0}
        self._numbers = {"change": 0, "jerk": 0}
        self._step_max, self._flips = 0.0, 0

    def add(self, action: Float32[Array, " A"] | None) -> None:
        """The action of one action period; None: the robot held. Holds before the first action do not count.

        Nor does an action that is not finite: it stops the robot and is never commanded.
        """
        if action is not None and not np.isfinite(action).all():
            return
        if action is None:
            if self._last is None:
                return
            try:
                action = held_action(self._spec, self._last, self._grippers)
            except ConfigError:
                return
        now, before, change = np.asarray(action, np.float64), self._last, self._change
        self._last = np.array(action)
        if before is None:
            return
        step = np.delete(now - before, self._grippers)
        self._step_max = max(self._step_max, float(np.abs(step).max(initial=0.0)))
        signs = np.sign(now) != np.sign(before)
        self._flips += int(signs[list(self._grippers)].sum())
        self._add("change", step)
        if change is not None:
            self._add("jerk", step - change)
        self._change = step

    def _add(self, name: str, values: np.ndarray) -> None:
        self._sums[name] += float(np.square(values).sum())
        self._numbers[name] += values.size

    def to_json(self) -> dict[str, float]:
        """action_change_rms, action_jerk_rms, action_step_max (action units) and gripper_flips; 0 of less than two actions."""
        rms = {
            f"action_{name}_rms": float(np.sqrt(total / max(self._numbers[name], 1)))
            for name, total in self._sums.items()
        }
        return rms | {"action_step_max": self._step_max, "gripper_flips": self._flips}
