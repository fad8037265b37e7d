"""Policies whose chunks are known by the number of the decision alone: one can continue a chunk, one starts from its rest.

A process imports them by name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from small_robot import small_spec

from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

HORIZON, EXECUTE = 12, 4


def chunk_of(decision: int, size: int = 2) -> np.ndarray:
    """float32 (HORIZON, size): somewhere within 0.3 of zero."""
    return np.random.default_rng(abs(decision)).uniform(-0.3, 0.3, (HORIZON, size)).astype(np.float32)


class KnownChunks:
    """Gives `chunk_of` its calls one after the other; of what it is to continue, so much as the weights say.

    Args:
        spec: of its actions.
        first: number of its first call, below 0 for a warm-up.
    """

    device = None
    noise_shape = (0, HORIZON, 2)
    sampling = "known"

    def __init__(self, spec: EnvSpec | None = None, first: int = 0) -> None:
        self.spec = small_spec() if spec is None else spec
        self.config = SimpleNamespace(observation_keys=("proprio",), history=1, horizon=HORIZON, execute=EXECUTE)
        self.calls = first
        self.plan: tuple[np.ndarray, np.ndarray] | None = None

    def continuing(self, most: float) -> KnownChunks:
        return copy.copy(self)

    def continue_from(self, actions: np.ndarray, weight: np.ndarray) -> None:
        assert (actions.shape, weight.shape) == ((HORIZON, 2), (HORIZON,))
        self.plan = actions.copy(), weight.copy()

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        actions = chunk_of(self.calls)
        if self.plan is not None:
            known, weight = self.plan
            actions = np.float32(weight[:, None] * known + (1 - weight[:, None]) * actions)
        self.calls, self.plan = self.calls + 1, None
        return ActionChunk(actions=actions[None], execute=EXECUTE)

    def noise(self) -> NoiseSource:
        return NoiseSource(NoiseRule.fixed, 0, self.noise_shape)

    def reset(self, mask: np.ndarray) -> None:
        """Keeps nothing of an episode."""


def open_known(config: Mapping[str, Any]) -> KnownChunks:
    """For PolicySource.target, in a process that warms up three times."""
    return KnownChunks(first=-3)


class WarmChunks:
    """Gives `chunk_of` its calls, and remembers what each of them was to start from: it has to be told.

    Args:
        echoes: answer with that instead; zeros where there is nothing.
    """

    device, noise_shape, sampling, starts_warm = None, (0, HORIZON, 2), "known", True

    def __init__(self, *, echoes: bool = False) -> None:
        self.spec, self.calls, self.echoes = small_spec(), 0, echoes
        self.config = SimpleNamespace(observation_keys=("proprio",), history=1, horizon=HORIZON, execute=EXECUTE)
        self.starts: list[np.ndarray | None] = []
        self._told: list[np.ndarray | None] = []

    def start_from(self, rest: np.ndarray | None) -> None:
        self._told = [None if rest is None else rest.copy()]

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        start = self._told.pop()
        self.starts.append(start)
        self.calls += 1
        known = chunk_of(self.calls - 1)
        if self.echoes:
            known = np.zeros_like(known) if start is None else start
        return ActionChunk(actions=known[None], execute=EXECUTE)

    def noise(self) -> NoiseSource:
        return NoiseSource(NoiseRule.fixed, 0, self.noise_shape)

    def reset(self, mask: np.ndarray) -> None:
        """Keeps nothing of an episode."""


def open_warm(config: Mapping[str, Any]) -> WarmChunks:
    """For PolicySource.target: what a process was told is what it answers."""
    return WarmChunks(echoes=True)
