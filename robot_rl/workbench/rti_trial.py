"""What `robot-rl rti tune` measures of one setting: episodes, time, distance to the reference, contraction."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.comparison import Interval, count_pairs, paired_interval
from robot_rl.algorithms.warm_start import watched_frame
from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.rollout import EpisodeRecord, PolicyActor, rollout
from robot_rl.runs.config import build
from robot_rl.stages.evaluate import check_policy_spec
from robot_rl.types import ActionChunk, Observation
from robot_rl.workbench.rti_settings import Setting

CALLS = 60


@dataclass
class Trial:
    """What came of the episodes of a setting.

    Attributes:
        records: one an episode, in the order of the seeds.
        forwards: of the network, a decision, mean over all decisions (idle envs counted).
        observation: of one decision, N = 1, for timing.
        contraction: what is left of an error of the start; None where a decision starts from noise alone.
        jumps: (decisions,) largest change of an observed element from one decision to the next, normalised (standard
            deviations of the training data); empty for heads.
    """

    records: list[EpisodeRecord]
    forwards: float
    observation: Observation
    contraction: float | None
    jumps: Float64[Array, " D"]

    @property
    def wins(self) -> int:
        """Episodes with success_once."""
        return sum(record.success_once for record in self.records)

    @property
    def number(self) -> int:
        """Episodes."""
        return len(self.records)

    @property
    def jerk(self) -> float:
        """Mean of action_jerk_rms."""
        return float(np.mean([record.action_jerk_rms for record in self.records]))

    @property
    def step_rms(self) -> float:
        """Mean of action_change_rms, the step between two actions."""
        return float(np.mean([record.action_change_rms for record in self.records]))

    @property
    def flips(self) -> float:
        """Gripper flips an episode."""
        return float(np.mean([record.gripper_flips for record in self.records]))

    def against(self, reference: Trial) -> Interval:
        """Difference of success to the reference on the same seeds (Tango's interval)."""
        pairs = count_pairs([r.success_once for r in reference.records], [r.success_once for r in self.records])
        return paired_interval(pairs["only_a"], pairs["only_b"], n=self.number)


def play(setting: Setting, env: Mapping[str, Any], seeds: Sequence[int], *, num_envs: int) -> Trial:
    """Play every seed with the noise that `robot-rl evaluate` gives.

    Raises:
        PolicyError: the policy is of another environment.
    """
    actor = _Kept(setting.policy)
    built = build(env, num_envs=min(num_envs, len(seeds)), history=setting.policy.config.history)
    try:
        check_policy_spec(setting.policy, built.spec, where=setting.name)
        records = rollout(built, actor, seeds)
    finally:
        built.close()
    counts = getattr(setting.policy, "counts", None)
    forwards = float(setting.forwards)
    if counts is not None:
        full = counts.first + counts.jump + counts.full
        forwards = (counts.warm * setting.forwards + full * setting.policy.policy.sampler.num_steps) / (
            counts.warm + full
        )
    assert actor.observation is not None
    return Trial(
        records,
        forwards,
        actor.observation,
        _contraction(setting, actor.observation),
        np.array(actor.jumps, np.float64),
    )


def timed(setting: Setting, trial: Trial) -> dict[str, float]:
    """p50 and p99 of one whole `act` at batch 1, milliseconds; of RTI a warm one."""
    policy, times = setting.policy, []
    noise = torch.randn((1, *policy.noise_shape), generator=torch.Generator().manual_seed(0))
    policy.reset(np.ones(1, bool))
    with torch.inference_mode():
        for call in range(CALLS + 5):
            began = time.perf_counter()
            policy.act(trial.observation, noise)
            if call >= 5:  # the first ones warm up; the very first of RTI is a full one
                times.append(1e3 * (time.perf_counter() - began))
    return {"p50_ms": float(np.percentile(times, 50)), "p99_ms": float(np.percentile(times, 99))}


def distance(
    reference: Setting, setting: Setting, env: Mapping[str, Any], seeds: Sequence[int], *, num_envs: int
) -> float:
    """Root mean square difference of the executed actions of `setting` to those of the reference, which plays.

    Both see the same observations, and the same first draw of noise. Action units; grippers are left in.
    """
    if setting is reference:
        return 0.0
    built = build(env, num_envs=min(num_envs, len(seeds)), history=setting.policy.config.history)
    shadow = _Shadow(reference.policy, setting.policy)
    try:
        rollout(built, shadow, seeds)
    finally:
        built.close()
    return float(np.sqrt(np.mean(shadow.squares)))


def _contraction(setting: Setting, observation: Observation) -> float | None:
    policy = setting.policy
    if not hasattr(policy, "contraction"):
        return None
    noise = torch.randn((1, *policy.noise_shape), generator=torch.Generator().manual_seed(1))
    found = policy.contraction(observation, noise, generator=torch.Generator().manual_seed(2))
    return float(found.mean())


def _seeded(policy: Any) -> NoiseSource:
    return NoiseSource(rule=NoiseRule.seeded, seed=0, shape=policy.noise_shape)


class _Kept:
    """An actor that keeps an observation of the tenth decision (or the last before it), and how far frames jump."""

    def __init__(self, policy: Any) -> None:
        self._policy, self._actor = policy, PolicyActor(policy, _seeded(policy))
        self.observation: Observation | None = None
        self.jumps: list[float] = []
        self._decisions = 0
        self._last: torch.Tensor | None = None

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """As PolicyActor."""
        if self._decisions < 10:
            self.observation = observation.map(lambda array: array[:1].clone())
        self._decisions += 1
        arrays = observation.arrays()
        keys = getattr(getattr(self._policy, "encoder", None), "keys", ())
        if keys:
            frame = watched_frame(arrays, keys, self._policy.normalizer.apply)
            if self._last is not None:
                goes_on = torch.from_numpy((episode_seeds >= 0) & ~new_episode)
                self.jumps += (frame - self._last).abs().amax(dim=-1)[goes_on].tolist()
            self._last = frame
        return self._actor.act(observation, episode_seeds=episode_seeds, new_episode=new_episode)


@dataclass
class _Shadow:
    """Plays `first` and asks `second` about the same observations."""

    first: Any
    second: Any
    squares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._actors = [PolicyActor(policy, _seeded(policy)) for policy in (self.first, self.second)]

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """The reference's chunk."""
        played, other = (
            actor.act(observation, episode_seeds=episode_seeds, new_episode=new_episode) for actor in self._actors
        )
        live = torch.from_numpy(episode_seeds >= 0)
        difference = (torch.as_tensor(played.actions) - torch.as_tensor(other.actions))[live, : played.execute]
        self.squares.extend(difference.square().flatten().tolist())
        return played
