"""How good a teacher is, measured before it teaches: its own success, its latency, how it agrees with what was shown."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.guidance_labels import TeacherTraces
from robot_rl.algorithms.teacher_agreement import Agreement, agreement
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.contracts import VectorEnv
from robot_rl.data.same_spec import require_same_spec
from robot_rl.data.store import EpisodeStore
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig, take_rows
from robot_rl.rollout import Actor, rollout, summarize
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Episode, Observation

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
MOST_ROWS = 2_000


@dataclass(frozen=True)
class ShownSteps:
    """Observations, and the actions that a demonstration or an expert answered with.

    Attributes:
        observation: (B, To, ...).
        action: float32 (B, A), physical units, numpy.
    """

    observation: Observation
    action: Float32[Array, "B A"]


class _Recorded:
    """An actor, and everything that it saw and did, row by row with the episode's seed."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.seeds: list[int] = []
        self.observations: list[Observation] = []
        self.actions: list[torch.Tensor] = []

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """What the actor does."""
        chunk = self.actor.act(observation, episode_seeds=episode_seeds, new_episode=new_episode)
        rows = np.flatnonzero(episode_seeds >= 0)
        self.seeds += episode_seeds[rows].tolist()
        self.observations.append(take_rows(observation.map(lambda x: x.cpu()), rows))
        self.actions.append(torch.as_tensor(chunk.actions).cpu().float()[rows.tolist(), 0])
        first = torch.as_tensor(chunk.actions)[:, :1]
        return ActionChunk(first, execute=1)

    def joined(self) -> tuple[Observation, torch.Tensor]:
        """All rows."""
        arrays = [each.arrays() for each in self.observations]
        joined = Observation.from_arrays({key: torch.cat([each[key] for each in arrays]) for key in arrays[0]})
        return joined, torch.cat(self.actions)


class TeacherActor:
    """A teacher as an actor of roll-outs, one action a decision; the time of every call is kept.

    Args:
        teacher: asked about every env at every step.

    Attributes:
        latencies_s: of the calls.
    """

    def __init__(self, teacher: AskedTeacher) -> None:
        self.teacher = teacher
        self.latencies_s: list[float] = []

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """The teacher's answers; it knows nothing of episodes."""
        began = time.monotonic()
        actions = self.teacher.label(observation)
        self.latencies_s.append(time.monotonic() - began)
        return ActionChunk(actions[:, None], execute=1)


def measure_teacher(
    teacher: AskedTeacher, env: VectorEnv, seeds: Sequence[int], *, shown: ShownSteps | None
) -> tuple[dict[str, Any], TeacherTraces]:
    """Let a teacher play, and compare it with what was shown.

    Args:
        teacher: under test.
        env: with the teacher's history.
        seeds: of its episodes; not those of any evaluation.
        shown: to compare with, or None.

    Returns:
        The report (JSON types), and the steps of its episodes with their outcome.

    Raises:
        DeployError, PolicyError: see AskedTeacher.label.
    """
    actor = TeacherActor(teacher)
    recorded = _Recorded(actor)
    records = rollout(env, recorded, seeds)
    summary, won = summarize(records), {record.seed: record.success_once for record in records}
    observation, action = recorded.joined()
    traces = TeacherTraces(observation, action, torch.tensor([won[seed] for seed in recorded.seeds]))
    latency_ms = 1000 * np.array(actor.latencies_s[1:] or actor.latencies_s)
    report: dict[str, Any] = {
        "teacher": teacher.card.name,
        "success_once": summary["success_once"],
        "total_reward_mean": summary["total_reward_mean"],
        "length": summary["length"],
        "first_seed": seeds[0],
        "latency_ms": {"p50": float(np.percentile(latency_ms, 50)), "p95": float(np.percentile(latency_ms, 95)),
                       "first": 1000 * actor.latencies_s[0], "rows": env.num_envs,
                       "is_one_frame": teacher.is_one_frame},
        "agreement": None if shown is None else compare(teacher, shown, env).to_json(),
    }  # fmt: skip
    rate = report["success_once"]
    log.info(
        "teacher %s: %d/%d = %.0f %% (Wilson 95 %%: %.0f to %.0f), %.1f ms a call", teacher.card.name, rate["k"],
        rate["n"], 100 * rate["rate"], 100 * rate["low"], 100 * rate["high"], report["latency_ms"]["p50"],
    )  # fmt: skip
    return report, traces


def cost_of(report: dict[str, Any], *, env_steps: int, num_envs: int, config: CallConfig) -> dict[str, float]:
    """What asking will cost: answers, calls and seconds, from the latency that was measured; the cache is left out.

    A call about fewer envs takes as long as the measured one where a batch is one message, and its share of it where every
    row is one.

    Args:
        report: of `measure_teacher`.
        env_steps: of all envs together, in which the teacher is asked.
        num_envs: side by side.
        config: which of them, and how often.
    """
    calls = env_steps / num_envs / config.every
    answers = calls * min(config.envs or num_envs, num_envs)
    latency = report["latency_ms"]
    measured = answers / latency["rows"] if latency["is_one_frame"] else calls
    return {"answers": answers, "calls": calls, "seconds": measured * latency["p50"] / 1000}


def compare(teacher: AskedTeacher, shown: ShownSteps, env: VectorEnv) -> Agreement:
    """A teacher's answers to what was shown, against the actions of then.

    Raises:
        DeployError, PolicyError: see AskedTeacher.label.
    """
    # The time limit of a remote teacher is that of a batch as training asks it.
    most = env.num_envs if teacher.is_remote else ROWS_AT_ONCE
    rows = np.arange(len(shown.action))
    answers = [
        teacher.label(take_rows(shown.observation, part)).numpy()
        for part in np.array_split(rows, max(-(-len(rows) // most), 1))
    ]
    low, high = bounds(env)
    return agreement(np.concatenate(answers), shown.action, low=low, high=high)


def bounds(env: VectorEnv) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action of an environment; -1 and 1 where it gives none."""
    size = env.spec.action.size
    low, high = env.spec.action.low or (-1.0,) * size, env.spec.action.high or (1.0,) * size
    return np.array(low, dtype=np.float32), np.array(high, dtype=np.float32)


def shown_by_store(path: str, *, spec: EnvSpec, history: int) -> ShownSteps:
    """The first steps, up to 2,000, of the episodes of an EpisodeStore.

    Args:
        path: of the store.
        spec: of the environment that the teacher is compared in.
        history: To, frames of each observation.

    Raises:
        DataError: no store there, a damaged one, or one of another environment.
    """
    observations: list[dict[str, torch.Tensor]] = []
    actions: list[np.ndarray] = []
    with EpisodeStore.open(path, mode="r") as store:
        # How long an episode may last changes nothing of a single step.
        wanted = replace(spec, max_episode_steps=store.spec.max_episode_steps)
        require_same_spec(
            store.spec, wanted, where=path, whose="the environment", hint="Give demonstrations of this environment, or none.",
        )  # fmt: skip
        for index in range(len(store)):
            episode = store.episode(index)
            observations.append(_frames(episode, history))
            actions.append(np.asarray(episode.action, dtype=np.float32))
            if sum(map(len, actions)) >= MOST_ROWS:
                break
    joined = {key: torch.cat([each[key] for each in observations])[:MOST_ROWS] for key in observations[0]}
    return ShownSteps(Observation.from_arrays(joined), np.concatenate(actions)[:MOST_ROWS])


def _frames(episode: Episode, history: int) -> dict[str, torch.Tensor]:
    """(T, To, ...) of every key; the first frame stands in for those before it."""
    steps = np.arange(len(episode))[:, None] + np.arange(1 - history, 1)
    return {
        key: torch.from_numpy(np.asarray(array)[np.maximum(steps, 0)]) for key, array in episode.observation.items()
    }


def shown_by_expert(expert: Actor, env: VectorEnv, seeds: Sequence[int]) -> ShownSteps:
    """What an expert does in episodes of its own, all their steps."""
    recorded = _Recorded(expert)
    rollout(env, recorded, seeds)
    observation, action = recorded.joined()
    return ShownSteps(observation, action.numpy())
