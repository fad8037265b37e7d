"""A student that learns under a teacher: its loop between two evaluations, and all state that a checkpoint holds.

Episodes go on from one update to the next. At every evaluation all envs begin new ones, in a run that goes on as in one
that is resumed there, so that both are the same run to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from robot_rl.algorithms.guidance import Guidance, GuidanceConfig, weight_at
from robot_rl.algorithms.guidance_labels import GuidanceLabels, TeacherTraces
from robot_rl.algorithms.teacher_hacking import is_hacking
from robot_rl.errors import DeployError, PolicyError, RobotRlError
from robot_rl.fitting.guided_env import GuidedEnv
from robot_rl.runs.checkpoint import Checkpoint, flatten_optimizer, restore_optimizer

log = logging.getLogger(__name__)

ALARM_WINDOW = 8


@runtime_checkable
class Student(Protocol):
    """What learns; see policies/guided_gaussian.py and fitting/guided_denoising.py.

    `rollouts` yields batches with `executed` (T, N) and `reward` (T, N).
    """

    options: frozenset[Guidance]

    @property
    def policy(self) -> Any:
        """What it has learned so far; a Policy with both modes, mean and eta1."""
        ...

    @property
    def deployed(self) -> Any:
        """The same as whoever loads a checkpoint plays it."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the policy."""
        ...

    @property
    def history(self) -> int:
        """Frames that it sees."""
        ...

    def rollouts(self, env: Any, seeds: Iterable[int]) -> Iterator[Any]:
        """Endless roll-outs with the policy as it is then."""
        ...

    def learn(
        self, batch: Any, labels: GuidanceLabels | None, *, guidance: GuidanceConfig, env_steps: int,
        traces: TeacherTraces | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """One update; numbers of it by name."""
        ...

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """For a checkpoint; "policy" is the policy."""
        ...

    def restore(self, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Inverse of `tensors`."""
        ...


class Seeds:
    """Whole numbers from `next` on, for ever; `next` can be kept."""

    def __init__(self, first: int) -> None:
        self.next = first

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.next += 1
        return self.next - 1


@dataclass
class Refinement:
    """See the module.

    Attributes:
        student, env, guidance, traces: what learns, where, how, and the teacher's own episodes or None.
        seeds: of training episodes.
        env_steps: so far.
        curve: (env steps, scores) of every evaluation.
        losses, returns: of the last updates, for the alarm.
        alarms: updates at which it went off.
        goes_on: go on without a teacher that is lost; otherwise its error is raised.
        is_lost: there is none now, and the run goes on without it.
        was_lost: it was lost at some time of the run, also before the run was resumed.
    """

    student: Student
    env: GuidedEnv
    guidance: GuidanceConfig
    seeds: Seeds
    traces: TeacherTraces | None = None
    goes_on: bool = False
    env_steps: int = 0
    curve: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    alarms: int = 0
    is_lost: bool = False
    was_lost: bool = False

    def lose(self, why: RobotRlError) -> None:
        """Go on without the teacher."""
        log.warning("going on without the teacher: %s", why)
        self.is_lost = self.was_lost = True

    def updates(self, until: int) -> Iterator[dict[str, float]]:
        """Play and learn until `until` env steps are passed; metrics of every update, names without prefix.

        Raises:
            DeployError, PolicyError: the teacher is lost, and `goes_on` is False. The student is whole then, and the roll-out
                in which it happened is not counted.
        """
        while self.env_steps < until:
            rollouts = self.student.rollouts(self.env, self.seeds)
            try:
                while self.env_steps < until:
                    self.env.is_asking = self._is_asking()
                    yield self._update(next(rollouts))
            except (DeployError, PolicyError) as error:
                if self.env.lost is None or not self.goes_on:
                    raise
                self.env.lost = None
                self.lose(error)

    def _is_asking(self) -> bool:
        return not self.is_lost and weight_at(self.guidance, self.env_steps) > 0

    def _update(self, batch: Any) -> dict[str, float]:
        labels = self.env.take()
        weight = weight_at(self.guidance, self.env_steps) if labels is not None else 0.0
        numbers = self.student.learn(
            batch, labels, guidance=self.guidance, env_steps=self.env_steps, traces=self.traces
        )
        self.env_steps += int(batch.executed.sum())
        reward = float(batch.reward[batch.executed > 0].mean())
        asked = 0.0 if labels is None else float(labels.asked.any(1).float().mean())
        return numbers | {"weight": weight, "reward_mean": reward, "asked_share": asked} | self._alarm(numbers, reward)

    def _alarm(self, numbers: Mapping[str, float], reward: float) -> dict[str, float]:
        if "distill_loss" not in numbers:
            return {"alarm": 0.0}
        self.losses = [*self.losses, numbers["distill_loss"]][-2 * ALARM_WINDOW :]
        self.returns = [*self.returns, reward][-2 * ALARM_WINDOW :]
        rings = is_hacking(self.losses, self.returns, window=ALARM_WINDOW)
        if rings:
            self.alarms += 1
            log.warning(
                "teacher hacking at %d env steps: over %d updates the distillation loss fell and the reward fell as well; "
                "lower guidance.weight, or let it reach 0 sooner (guidance.anneal_steps)", self.env_steps, ALARM_WINDOW,
            )  # fmt: skip
            self.losses, self.returns = [], []
        return {"alarm": float(rings)}

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """For a checkpoint."""
        return self.student.tensors() | {"optimizer": flatten_optimizer(self.student.optimizer)}

    def document(self) -> dict[str, Any]:
        """For a checkpoint, JSON types."""
        names = ("env_steps", "curve", "losses", "returns", "alarms", "was_lost")
        return {name: getattr(self, name) for name in names} | {
            "next_seed": self.seeds.next,
            "outcomes": self.env.outcomes,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Go on where `saved` was written; a teacher that was lost then is asked again."""
        self.student.restore(saved.tensors)
        restore_optimizer(self.student.optimizer, saved.tensors["optimizer"])
        document = saved.documents["refinement"]
        for name in ("env_steps", "losses", "returns", "alarms"):
            setattr(self, name, document[name])
        self.curve = [(step, scores) for step, scores in document["curve"]]
        self.seeds.next = document["next_seed"]
        # Checkpoints before these were kept: `is_lost` was the whole run's, and an evaluation forgot the outcomes.
        self.was_lost = document["was_lost"] if "was_lost" in document else document["is_lost"]
        if "outcomes" in document:
            self.env.outcomes = document["outcomes"]
