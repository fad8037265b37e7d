"""Run an actor in a vector environment: per-episode records, and whole episodes for the store where asked for.

Evaluate, collect and the periodic roll-outs of training all use this one loop. The seeds that go in are the episodes
that come out, each once, whatever num_envs is; an actor that takes its noise from (episode seed, decision) then gives
the same record for an episode in any slot.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robot_rl.algorithms.statistics import proportion
from robot_rl.arrays import Array, Bool, Int64
from robot_rl.contracts import Policy, VectorEnv
from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.noise import NoiseSource
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Episode, Observation, Source, StepResult

log = logging.getLogger(__name__)


@runtime_checkable
class Actor(Protocol):
    """Anything that chooses actions in a rollout: a policy with its noise, or a scripted expert."""

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """Choose a chunk for every env; `new_episode` marks envs at their first decision."""
        ...


class PolicyActor:
    """A Policy with the noise rule of deploy/noise.py.

    Args:
        policy: torch or numpy policy; arrays are converted to what it wants by its `device` (None: numpy).
        noise: where its noise comes from; its shape must be policy.noise_shape.
    """

    def __init__(self, policy: Policy, noise: NoiseSource) -> None:
        self.policy, self.noise = policy, noise
        self.device: torch.device | None = getattr(policy, "device", None)
        self._decisions = np.zeros(0, dtype=np.int64)

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """Draw the noise of (episode, decision) and ask the policy."""
        if self._decisions.shape != episode_seeds.shape:
            self._decisions = np.zeros_like(episode_seeds)
        self._decisions[new_episode] = 0
        self.policy.reset(new_episode)
        noise: Array = self.noise.draw(episode_seeds.tolist(), self._decisions.tolist())
        self._decisions += 1
        if self.device is None:
            return self.policy.act(observation.map(lambda x: x.cpu().numpy()), noise)
        device = self.device
        with torch.inference_mode():
            return self.policy.act(observation.map(lambda x: x.to(device)), torch.from_numpy(noise).to(device))


@dataclass(frozen=True)
class EpisodeRecord:
    """What an evaluation keeps of one episode.

    Attributes:
        seed: of the episode.
        length: env steps.
        total_reward: sum of the raw rewards.
        success_once: at any step.
        success_at_end: at the last step.
        success_at_reset: already before the first action.
        terminated, truncated: how it ended.
        steps_to_success: env steps until the first success, or None.
        action_change_rms: root mean square of a[t+1] - a[t] over arm dimensions, action units.
        action_jerk_rms: the same of the second difference.
        gripper_flips: sign changes of the gripper command.
        initial_state: hash of the first frame, to see that starts differ.
        wall_s: seconds from the end of the env's episode before (or the call) to the end of this one. All together they
            are the time of play, resets and waiting. None unless the protocol says `real_time` (a real robot).
        action_step_max: largest |a[t+1] - a[t]| of an arm dimension, action units; None in records of older versions.
    """

    seed: int
    length: int
    total_reward: float
    success_once: bool
    success_at_end: bool
    success_at_reset: bool
    terminated: bool
    truncated: bool
    steps_to_success: int | None
    action_change_rms: float
    action_jerk_rms: float
    gripper_flips: int
    initial_state: str
    wall_s: float | None = None
    action_step_max: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


class _Track:
    """What has happened so far in the episode that one env is in."""

    def __init__(self, seed: int, first: dict[str, np.ndarray], success_at_reset: bool) -> None:
        self.seed, self.success_at_reset = seed, success_at_reset
        self.frames: dict[str, list[np.ndarray]] = {key: [frame] for key, frame in first.items()}
        low_dim = b"".join(frame.tobytes() for key, frame in sorted(first.items()) if not key.startswith("image/"))
        self.initial_state = hashlib.sha1(low_dim, usedforsecurity=False).hexdigest()[:12]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.success: list[bool] = []

    def add(self, row: int, actions: np.ndarray, arrays: dict[str, np.ndarray], *, count: int, keep: bool) -> None:
        """Append the `count` executed steps of env `row`."""
        self.actions.extend(actions[row, :count].copy())
        self.rewards.extend(arrays["rewards"][row, :count].tolist())
        self.success.extend(arrays["step_success"][row, :count].tolist())
        if keep:
            for key, frames in self.frames.items():
                frames.extend(arrays[key][row, :count].copy())

    def record(self, spec: EnvSpec, *, terminated: bool, truncated: bool, wall_s: float | None = None) -> EpisodeRecord:
        """Statistics of the finished episode."""
        actions = np.stack(self.actions)
        grippers = list(gripper_elements(spec.action))
        arm = np.delete(actions, grippers, axis=1)
        flips = int((np.diff(np.sign(actions[:, grippers]), axis=0) != 0).sum())
        return EpisodeRecord(
            seed=self.seed,
            length=len(actions),
            total_reward=float(np.sum(self.rewards)),
            success_once=any(self.success),
            success_at_end=self.success[-1],
            success_at_reset=self.success_at_reset,
            terminated=terminated,
            truncated=truncated,
            steps_to_success=self.success.index(True) + 1 if any(self.success) else None,
            action_change_rms=_rms(np.diff(arm, axis=0)),
            action_jerk_rms=_rms(np.diff(arm, n=2, axis=0)),
            gripper_flips=flips,
            initial_state=self.initial_state,
            wall_s=wall_s,
            action_step_max=float(np.abs(np.diff(arm, axis=0)).max(initial=0.0)),
        )

    def episode(self, spec: EnvSpec, source: Source, *, terminated: bool, truncated: bool) -> Episode:
        """The finished episode for a store."""
        steps = len(self.actions)
        stacked = {key: np.stack(frames) for key, frames in self.frames.items()}
        return Episode(
            observation={key: frames[:-1] for key, frames in stacked.items()},
            final_observation={key: frames[-1] for key, frames in stacked.items()},
            action=np.stack(self.actions).astype(np.float32),
            reward=np.asarray(self.rewards, dtype=np.float32),
            success=np.asarray(self.success, dtype=bool),
            terminated=terminated,
            truncated=truncated,
            source=np.full(steps, int(source), dtype=np.uint8),
            time=np.arange(steps, dtype=np.float64) / spec.control_hz,
            metadata={"seed": self.seed, "success_at_reset": self.success_at_reset},
        )


def _rms(differences: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(differences)))) if differences.size else 0.0


def rollout(
    env: VectorEnv,
    actor: Actor,
    seeds: Iterable[int],
    *,
    on_episode: Callable[[EpisodeRecord, Episode | None], None] | None = None,
    source: Source | None = None,
) -> list[EpisodeRecord]:
    """Play the episodes of `seeds` (finite) and return one record each, in the order of `seeds`.

    Envs finish in any order; `on_episode` is called in the order of `seeds` all the same, so what is written does not
    depend on num_envs.

    Args:
        env: the environments; they are reset here.
        actor: chooses the actions.
        seeds: of the episodes; each is played exactly once. None at all is no error: a run that was killed behind its
            last episode has none left when it continues.
        on_episode: called for each episode (to write it, count it, or stop by raising).
        source: give it to get whole episodes in `on_episode`; None keeps only records.
    """
    wanted = list(seeds)
    if not wanted:
        return []
    is_real = bool(env.protocol().get("real_time", False))
    ended_s = [time.monotonic()] * env.num_envs
    observation = env.reset(iter(wanted))
    tracks = _start_tracks(env, observation, np.ones(env.num_envs, dtype=bool), [None] * env.num_envs)
    new_episode = np.ones(env.num_envs, dtype=bool)
    records: list[EpisodeRecord] = []
    waiting: dict[int, tuple[EpisodeRecord, Episode | None]] = {}
    while (env.episode_seeds >= 0).any():
        seeds_now = np.array(env.episode_seeds, dtype=np.int64)
        chunk = actor.act(observation, episode_seeds=seeds_now, new_episode=new_episode)
        actions = torch.as_tensor(chunk.actions).to(env.device)
        result = env.step(ActionChunk(actions=actions, execute=chunk.execute))
        arrays = _numpy(result, keep=source is not None)
        played = (actions if result.played is None else result.played).cpu().numpy()
        done = arrays["terminated"] | arrays["truncated"]
        for row in np.flatnonzero(arrays["executed"]).tolist():
            track = tracks[row]
            assert track is not None
            track.add(row, played, arrays, count=int(arrays["executed"][row]), keep=source is not None)
            if done[row]:
                ends = {"terminated": bool(arrays["terminated"][row]), "truncated": bool(arrays["truncated"][row])}
                now_s = time.monotonic()
                finished = track.record(env.spec, **ends, wall_s=now_s - ended_s[row] if is_real else None)
                ended_s[row] = now_s
                waiting[track.seed] = finished, None if source is None else track.episode(env.spec, source, **ends)
        while len(records) < len(wanted) and wanted[len(records)] in waiting:
            record, episode = waiting.pop(wanted[len(records)])
            records.append(record)
            if on_episode is not None:
                on_episode(record, episode)
        observation, new_episode = result.observation, done
        tracks = _start_tracks(env, observation, done, tracks)
    return records


def _start_tracks(
    env: VectorEnv, observation: Observation, begins: Bool[Array, " N"], tracks: list[_Track | None]
) -> list[_Track | None]:
    if not begins.any():
        return tracks
    first = {key: value[:, -1].cpu().numpy() for key, value in observation.arrays().items()}
    seeds, solved = env.episode_seeds, env.success_at_reset
    out = list(tracks)
    for row in np.flatnonzero(begins).tolist():
        frame = {key: value[row].copy() for key, value in first.items()}
        out[row] = None if seeds[row] < 0 else _Track(int(seeds[row]), frame, bool(solved[row]))
    return out


def _numpy(result: StepResult, *, keep: bool) -> dict[str, np.ndarray]:
    names = ("rewards", "executed", "terminated", "truncated", "step_success")
    arrays = {name: getattr(result, name).cpu().numpy() for name in names}
    return arrays | ({key: frames.cpu().numpy() for key, frames in result.frames.items()} if keep else {})


def summarize(records: list[EpisodeRecord]) -> dict[str, Any]:
    """Success with intervals, lengths, smoothness and counts; the body of every evaluation summary.

    success_once counts episodes that were already solved at reset as what they are: they are listed by their own
    count, and a warning names them. Raises DataError for an empty list.
    """
    number = len(records)
    at_reset = [record.seed for record in records if record.success_at_reset]
    if at_reset:
        log.warning(
            "%d of %d episodes were solved at reset, before any action: seeds %s", len(at_reset), number, at_reset
        )
    starts = {record.initial_state for record in records}
    if number > 1 and len(starts) == 1:
        log.warning("all %d episodes began in the same state: the success rate says nothing about other starts", number)
    times = [record.steps_to_success for record in records if record.steps_to_success is not None]
    steps = [record.action_step_max for record in records if record.action_step_max is not None]
    return {
        "success_once": proportion(sum(r.success_once for r in records), number).to_json(),
        "success_at_end": proportion(sum(r.success_at_end for r in records), number).to_json(),
        "success_at_reset": len(at_reset),
        "episodes": number,
        "distinct_starts": len(starts),
        "env_steps": sum(record.length for record in records),
        "terminated": sum(record.terminated for record in records),
        "truncated": sum(record.truncated for record in records),
        "length": _spread([record.length for record in records]),
        "steps_to_success": _spread(times) if times else None,
        "total_reward_mean": float(np.mean([record.total_reward for record in records])),
        "action_change_rms": float(np.mean([record.action_change_rms for record in records])),
        "action_jerk_rms": float(np.mean([record.action_jerk_rms for record in records])),
        "action_step_max": max(steps) if len(steps) == number else None,
        "gripper_flips_mean": float(np.mean([record.gripper_flips for record in records])),
    }


def _spread(values: list[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(values)),
        "p50": float(np.percentile(values, 50)),
        "p95": float(np.percentile(values, 95)),
    }


def read_records(table: Path) -> list[EpisodeRecord]:
    """Records of an earlier, killed run (empty when there was none); a torn last line is cut off the file."""
    if not table.exists():
        return []
    records, good = [], 0
    for line in table.read_bytes().splitlines(keepends=True):
        try:
            records.append(EpisodeRecord(**json.loads(line)))
        except (ValueError, TypeError):
            break
        good += len(line)
    with open(table, "r+b") as file:
        file.truncate(good)
    return records
