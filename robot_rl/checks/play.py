"""Recorded play of an environment, for the checks of play_checks.py.

Episodes are played with random actions that depend on (episode seed, decision) alone, so that one env and three envs
must play the same episodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from robot_rl.arrays import Array
from robot_rl.checks.findings import to_numpy
from robot_rl.contracts import VectorEnv
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation, StepResult

FEW, MANY = 1, 3
IDLE = -1
_APART = ("observation", "final_observation", "frames", "played")
_FIELDS = tuple(f.name for f in fields(StepResult) if f.name not in _APART)


@dataclass(frozen=True)
class PlayedChunk:
    """One decision of a recorded play; everything is a numpy copy.

    Attributes:
        seeds, seeds_after: int64 (N,), episodes before and after the chunk.
        execute: Ta.
        first: key -> (N, To, ...), observation before; "time" is among the keys.
        values: field of StepResult -> array.
        observation, final, frames: those of StepResult by key.
    """

    seeds: np.ndarray
    seeds_after: np.ndarray
    execute: int
    first: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    observation: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]

    @property
    def ended(self) -> np.ndarray:
        """bool (N,), envs whose episode ended in this chunk."""
        ended: np.ndarray = self.values["terminated"] | self.values["truncated"]
        return ended


@dataclass(frozen=True)
class Recording:
    """The same seeds played with one env and with three.

    Attributes:
        spec: of the environment.
        seeds: of the episodes, ascending.
        plays: number of envs -> its chunks.
        starts: seed -> first observation of its episode by key, from a reset of its own.
    """

    spec: EnvSpec
    seeds: list[int]
    plays: dict[int, list[PlayedChunk]] = field(default_factory=dict)
    starts: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def chunks(self) -> Iterator[tuple[str, PlayedChunk]]:
        """Every played chunk and its name for findings."""
        for number, played in self.plays.items():
            for index, chunk in enumerate(played):
                yield f"step {index + 1} with {number} envs", chunk

    def rows(self) -> Iterator[tuple[str, PlayedChunk, int]]:
        """Every env of every chunk in which it was in an episode."""
        for where, chunk in self.chunks():
            for row in np.flatnonzero(chunk.seeds != IDLE):
                yield f"{where}, env {row}, seed {chunk.seeds[row]}", chunk, int(row)


def numpy_of(observation: Observation) -> dict[str, np.ndarray]:
    """Key -> numpy copy, "time" included where there is one."""
    arrays = {key: to_numpy(value) for key, value in observation.arrays().items()}
    return arrays if observation.time is None else arrays | {"time": to_numpy(observation.time)}


def chunk_length(limit: int) -> int:
    """Shortest chunk of 4 or more that does not divide the time limit, so that episodes end inside a chunk."""
    return next(length for length in itertools.count(4) if limit % length)


def random_chunk(env: VectorEnv, seeds: np.ndarray, decisions: np.ndarray) -> ActionChunk:
    """Random actions inside the bounds, from (episode seed, decision) alone; one more than is played."""
    length = chunk_length(env.spec.max_episode_steps)
    rows = []
    for seed, decision in zip(seeds.tolist(), decisions.tolist(), strict=True):
        rng = np.random.default_rng([max(seed, 0), decision])
        rows.append(np.stack([env.spec.action.sample(rng).reshape(-1) for _ in range(length + 1)]))
    actions = torch.from_numpy(np.stack(rows).astype(np.float32)).to(env.device)
    return ActionChunk(actions=actions, execute=length)


def play(env: VectorEnv, seeds: list[int]) -> list[PlayedChunk]:
    """Play exactly `seeds` and one more chunk in which every env is idle.

    Stops early when the env plays longer than the seeds and the time limit allow.
    """
    observation = env.reset(iter(seeds))
    decisions = np.zeros(env.num_envs, dtype=np.int64)
    most = len(seeds) * math.ceil(env.spec.max_episode_steps / chunk_length(env.spec.max_episode_steps)) + 2
    played: list[PlayedChunk] = []
    while len(played) < most:
        before, first = to_numpy(env.episode_seeds), numpy_of(observation)
        chunk = random_chunk(env, before, decisions)
        result = env.step(chunk)
        played.append(
            PlayedChunk(
                seeds=before,
                seeds_after=to_numpy(env.episode_seeds),
                execute=chunk.execute,
                first=first,
                values={name: to_numpy(getattr(result, name)) for name in _FIELDS},
                observation=numpy_of(result.observation),
                final=numpy_of(result.final_observation),
                frames={key: to_numpy(value) for key, value in result.frames.items()},
            )
        )
        if (before == IDLE).all():
            break
        observation = result.observation
        decisions = np.where(played[-1].ended, 0, decisions + 1)
    return played


def same(one: Array, other: Array) -> bool:
    """Whether two arrays are equal in shape, dtype and every number."""
    return bool(one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other))
