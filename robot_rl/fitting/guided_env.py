"""The environment that a student plays in while teachers are asked about what it sees: which envs, at which steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.guidance_labels import GuidanceLabels
from robot_rl.arrays import Array, Bool, Int64
from robot_rl.contracts import VectorEnv
from robot_rl.errors import RobotRlError
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig, newest_frames, take_rows
from robot_rl.types import ActionChunk, Observation, StepResult


class GuidedEnv:
    """A VectorEnv that asks teachers about what it shows while a student plays.

    Args:
        env: stacks as many frames as the student and every teacher want.
        history: frames of the student.
        teachers: asked; all about the same envs.
        reference: asked about every env at every step, or None.
        config: which envs, which steps.
        on_demand: ask only about failing envs: no success in their last `fail_window` episodes, or in as many as they have
            finished by now.
        fail_window: see on_demand.

    Attributes:
        is_asking: whether teachers are asked at all; False where their weight is 0.
        seconds: spent in the environment.
        lost: why a teacher gave no answer, or None; who goes on without it sets it back.
    """

    def __init__(
        self, env: VectorEnv, *, history: int, teachers: Sequence[AskedTeacher], reference: AskedTeacher | None,
        config: CallConfig, on_demand: bool, fail_window: int,
    ) -> None:  # fmt: skip
        self.env, self.spec, self.num_envs, self.device = env, env.spec, env.num_envs, env.device
        self.teachers, self.reference, self.config = teachers, reference, config
        self.is_asking, self.seconds = True, 0.0
        self.lost: RobotRlError | None = None
        self._history, self._on_demand, self._fail_window = history, on_demand, fail_window
        self.outcomes = [[] for _ in range(self.num_envs)]
        self._begin()

    def _begin(self) -> None:
        self._steps, self._shown = 0, None
        self._rows: list[tuple[torch.Tensor, ...]] = []
        self._won = np.zeros(self.num_envs, dtype=bool)

    _shown: Observation | None

    @property
    def outcomes(self) -> list[list[bool]]:
        """Whether the last `fail_window` finished episodes of every env succeeded, oldest first; a run that goes on has them."""
        return [list(each) for each in self._outcomes]

    @outcomes.setter
    def outcomes(self, outcomes: Sequence[Sequence[bool]]) -> None:
        self._outcomes = [deque(each, maxlen=self._fail_window) for each in outcomes]

    @property
    def episode_seeds(self) -> Int64[Array, " N"]:
        """Of the environment."""
        return self.env.episode_seeds

    @property
    def success_at_reset(self) -> Bool[Array, " N"]:
        """Of the environment."""
        return self.env.success_at_reset

    def reset(self, seeds: Iterable[int]) -> Observation:
        """Start new episodes; turns and labels so far are forgotten, outcomes are kept."""
        self._begin()
        self._shown = self._timed(lambda: self.env.reset(seeds))
        return newest_frames(self._shown, self._history)

    def step(self, chunk: ActionChunk) -> StepResult:
        """Ask the teachers about what was shown, then play.

        Raises:
            DeployError, PolicyError: see AskedTeacher.label; nothing was played then.
        """
        assert self._shown is not None
        if self.is_asking:
            try:
                self._rows.append(self._ask(self._shown))
            except RobotRlError as error:
                self.lost = error
                raise
        result: StepResult = self._timed(lambda: self.env.step(chunk))
        self._steps += 1
        self._won |= result.success.cpu().numpy()
        for row in np.flatnonzero((result.terminated | result.truncated).cpu().numpy()).tolist():
            self._outcomes[row].append(bool(self._won[row]))
            self._won[row] = False
        self._shown = result.observation
        return replace(
            result, observation=newest_frames(result.observation, self._history),
            final_observation=newest_frames(result.final_observation, self._history),
        )  # fmt: skip

    def take(self) -> GuidanceLabels | None:
        """Labels of the steps since the last call, or None when no teacher was asked."""
        rows, self._rows = self._rows, []
        if not rows:
            return None
        teacher, asked, failing, reference = (torch.stack(column) for column in zip(*rows, strict=True))
        return GuidanceLabels(teacher, asked, failing, None if self.reference is None else reference)

    def protocol(self) -> dict[str, Any]:
        """Of the environment."""
        return self.env.protocol()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def due(self) -> Bool[Array, " N"]:
        """Envs that teachers are asked about now."""
        out = np.zeros(self.num_envs, dtype=bool)
        turn, late = divmod(self._steps, self.config.every)
        if not late:
            number = min(self.config.envs or self.num_envs, self.num_envs)
            out[(turn * number + np.arange(number)) % self.num_envs] = True
        return out & self._failing() if self._on_demand else out

    def _failing(self) -> np.ndarray:
        return np.array([not any(outcomes) for outcomes in self._outcomes], dtype=bool)

    def _ask(self, shown: Observation) -> tuple[torch.Tensor, ...]:
        due, size = self.due(), self.spec.action.size
        labels = torch.zeros(len(self.teachers), self.num_envs, size)
        rows = np.flatnonzero(due)
        if rows.size:
            some = shown if rows.size == self.num_envs else take_rows(shown, rows)
            for number, teacher in enumerate(self.teachers):
                labels[number, rows] = teacher.label(some)
        asked = torch.from_numpy(due)[None].expand(len(self.teachers), -1).clone()
        reference = torch.zeros(self.num_envs, size) if self.reference is None else self.reference.label(shown)
        return labels, asked, torch.from_numpy(self._failing()), reference

    def _timed(self, call: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return call()
        finally:
            self.seconds += time.monotonic() - began
