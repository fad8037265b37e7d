"""A policy judged as a robot runs it: its answers come late, and robot_rl/deploy/execution.py says what is played meanwhile.

An actor of `rollout` that chooses one action a step, so that every env is in its own time. Each env has its own shallow copy
of the policy and is asked alone, as on a robot: the actions do not depend on num_envs.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Int64
from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.execution import (
    FORECAST,
    ChunkPlayer,
    ChunkRule,
    Execution,
    delay_steps,
    describe,
    held_action,
    question_interval,
    require_blendable,
)
from robot_rl.deploy.execution_counts import ExecutionCounts
from robot_rl.deploy.noise import NoiseSource
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.rollout import PolicyActor
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation


@dataclass
class _Row:
    """One env: who is asked, what is played, step of its episode, and its last action."""

    actor: PolicyActor
    player: ChunkPlayer
    step: int = 0
    last: np.ndarray | None = None
    is_new: bool = True


class DelayedActor:
    """An Actor around a policy whose answers take time.

    Args:
        policy: stateless between decisions, or with state that it replaces and does not change in place.
        noise: where its noise comes from.
        kind, rule: see deploy/execution.py.
        latency_ms: from the observation to the answer, the same for all; None: the time that `act` takes at each decision,
            so a result is that of this machine in this hour.

    Raises:
        ConfigError: numbers out of range, a chunk that is over before the next one comes, a hold that has no meaning, or
            rotations that can't be averaged.
        PolicyError: rtc with a policy that can't continue a chunk.
    """

    def __init__(
        self, policy: Any, noise: NoiseSource, *, kind: Execution, rule: ChunkRule, latency_ms: float | None
    ) -> None:
        if latency_ms is not None and latency_ms < 0:
            raise ConfigError(
                "latency_ms", expected="0 or more, or null to measure", got=f"{latency_ms}", hint="Correct."
            )
        if kind is Execution.rtc:
            policy = _continuing(policy, rule)
        self._policy, self._noise, self._kind, self._rule = policy, noise, kind, rule
        self._spec: EnvSpec = policy.spec
        self._given = None if latency_ms is None else delay_steps(latency_ms, self._spec.control_hz)
        config = policy.config
        self._interval = question_interval(
            kind, rule, delay=self._given or 0, horizon=config.horizon, execute=config.execute
        )
        require_blendable(self._spec, kind, rule)
        self._grippers = gripper_elements(self._spec.action)
        held_action(self._spec, None, self._grippers)
        self.description = describe(kind, rule, latency_ms=latency_ms, interval=self._interval)
        self._rows: list[_Row] = []
        self._delays: list[int] = []
        self._recent: deque[int] = deque([0], maxlen=FORECAST)

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """One action for every env, (N, 1, A)."""
        if len(self._rows) != len(episode_seeds):
            self._rows = [self._row() for _ in episode_seeds]
        actions = np.zeros((len(self._rows), 1, *self._spec.action.shape), np.float32)
        for number, row in enumerate(self._rows):
            if new_episode[number]:
                row.player.begin()
                row.step, row.last, row.is_new = 0, None, True
            if episode_seeds[number] < 0:
                continue
            row.player.collect(row.step)
            if row.player.wants(row.step):
                part = observation.map(lambda array, at=number: array[at : at + 1])  # type: ignore[misc]
                self._ask(row, part, episode_seeds[number : number + 1])
            due = row.player.action(row.step)
            row.last = held_action(self._spec, row.last, self._grippers) if due is None else due
            actions[number, 0] = row.last
            row.step += 1
        return ActionChunk(actions=torch.from_numpy(actions), execute=1)

    def summary(self) -> dict[str, Any]:
        """Counts over all envs, and the delays in steps (the first one of an episode is none); JSON types."""
        counts = [row.player.counts for row in self._rows]
        total = ExecutionCounts(
            sum(c.questions for c in counts), sum(c.steps for c in counts), sum(c.held for c in counts)
        )
        return total.to_json(self._delays)

    def _row(self) -> _Row:
        config = self._policy.config
        player = ChunkPlayer(
            self._kind, self._rule, interval=self._interval, horizon=config.horizon, discrete=self._grippers
        )
        return _Row(PolicyActor(copy.copy(self._policy), self._noise), player)

    def _ask(self, row: _Row, observation: Observation, seed: Int64[Array, " 1"]) -> None:
        expected = max(self._recent) if self._given is None else self._given
        plan = row.player.continuation(row.step, expected=expected) if self._kind is Execution.rtc else None
        if plan is not None:
            row.actor.policy.continue_from(*plan)  # type: ignore[attr-defined]
        if getattr(self._policy, "starts_warm", False):
            rest = row.player.rest(row.step)
            row.actor.policy.start_from(None if rest is None else rest[0])  # type: ignore[attr-defined]
        began = time.perf_counter()
        chunk = row.actor.act(observation, episode_seeds=seed, new_episode=np.array([row.is_new]))
        taken_ms = 1e3 * (time.perf_counter() - began)
        delay = delay_steps(taken_ms, self._spec.control_hz) if self._given is None else self._given
        if not row.is_new:
            self._delays.append(delay)
        self._recent.append(delay)  # the first one too: a robot forecasts by it, though it stood still meanwhile
        row.is_new = False
        actions = torch.as_tensor(chunk.actions).cpu().numpy()[0]
        row.player.ask(row.step, actions, delay=delay, expected=expected)


def _continuing(policy: Any, rule: ChunkRule) -> Any:
    if not hasattr(policy, "continuing"):
        raise PolicyError(
            "execution=rtc", expected="a run or checkpoint directory of a diffusion policy", got=type(policy).__name__,
            hint="Guidance needs gradients of its network: exports, heads and baselines have none. Use execution=async.",
        )  # fmt: skip
    return policy.continuing(rule.guidance)
