"""Whole episodes of the policy that learns, as decisions with their denoising chains: what online PPO is fitted on.

An iteration plays given episode seeds to their ends with the loop that evaluates and collects (rollout.py), and noise
that follows from (seed, decision). So a batch is the same whatever `num_envs` is, no row belongs to older weights, and
one robot is the case num_envs=1.

A person, or a scripted stand-in, may take over at any env step. A decision in which a human acted is marked: it leaves
the ratio loss, for the policy did not choose it, and the fit of V. The decision before it is cut like one at a time limit,
with V of the state where the human came in: what the human achieves is not credited to what made him come in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robot_rl.algorithms.returns import chunk_reward, generalized_advantage
from robot_rl.algorithms.rewards import RewardConfig, shaped_rewards
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.contracts import VectorEnv
from robot_rl.deploy.noise import NoiseSource
from robot_rl.fitting.denoising_ppo import latents_from
from robot_rl.rollout import EpisodeRecord, rollout
from robot_rl.types import ActionChunk, Episode, Observation, Source


@runtime_checkable
class Intervener(Protocol):
    """A person who may take over, or something that stands in for one. Asked before every env step."""

    def take_over(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> tuple[Bool[Array, " N"], Float32[Array, "N A"]]:
        """Which envs the human steers now, and his actions (rows of the others mean nothing)."""
        ...


@dataclass(frozen=True)
class OnPolicyBatch:
    """B decisions of E whole episodes, episode after episode.

    Attributes:
        feature: float32 (B, F), condition vector of the decision.
        latents: float32 (B, K+1, Tp, A), the chain, unclipped.
        reward: float32 (B,), discounted inside the decision, shaped as the stage says.
        executed: int64 (B,), env steps that it played.
        terminated: bool (B,), the task ended behind it.
        truncated: bool (B,), the time limit, or a human came in behind it.
        next_feature: float32 (B, F), at the next decision or of the final observation.
        human: bool (B,), a human acted within it.
        episode: int64 (B,), 0 to E - 1.
        observation: of the decisions (B, To, ...), for an encoder that learns.
    """

    feature: Float32[Array, "B F"]
    latents: Float32[Array, "B K1 Tp A"]
    reward: Float32[Array, " B"]
    executed: Int64[Array, " B"]
    terminated: Bool[Array, " B"]
    truncated: Bool[Array, " B"]
    next_feature: Float32[Array, "B F"]
    human: Bool[Array, " B"]
    episode: Int64[Array, " B"]
    observation: Observation

    def __len__(self) -> int:
        return int(self.feature.shape[0])


@dataclass(frozen=True)
class _Decision:
    """One decision as it was made: env step in its episode, and rows (1, ...) of what it saw and drew."""

    step: int
    observation: Observation
    feature: torch.Tensor
    latents: torch.Tensor


class ChainActor:
    """Plays a DenoisingPolicy and keeps the chain of every decision, by episode seed.

    Args:
        policy: in a mode with noise (eta1).
        noise: its shape must be policy.noise_shape.
        intervener: may take over; the env is then stepped one action at a time.
    """

    def __init__(self, policy: Any, noise: NoiseSource, intervener: Intervener | None = None) -> None:
        self.policy, self.noise, self.intervener = policy, noise, intervener
        self.chains: dict[int, list[_Decision]] = defaultdict(list)
        self.human: dict[int, list[bool]] = defaultdict(list)
        self._queue: torch.Tensor | None = None
        self._position = np.zeros(0, dtype=np.int64)

    def act(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> ActionChunk:
        """A chunk of the policy, or one action of whoever steers."""
        execute = self.policy.config.execute
        observation = observation.map(lambda x: torch.as_tensor(x, device=self.policy.device))
        if self.intervener is None:
            every = np.ones(len(episode_seeds), dtype=bool)
            return ActionChunk(actions=self._decide(observation, episode_seeds, every), execute=execute)
        if self._queue is None:
            self._position = np.full(len(episode_seeds), execute, dtype=np.int64)
        human, actions = self.intervener.take_over(observation, episode_seeds=episode_seeds, new_episode=new_episode)
        # A decision ends where a human comes in or leaves, so that no decision is half his.
        was_human = np.array([bool(self.human[s]) and self.human[s][-1] for s in episode_seeds.tolist()], dtype=bool)
        due = new_episode | (self._position >= execute) | (was_human != human)
        if self._queue is None or due.any():
            fresh = self._decide(observation, episode_seeds, due)
            rows = torch.as_tensor(due, device=fresh.device)[:, None, None]
            self._queue = fresh if self._queue is None else torch.where(rows, fresh, self._queue)
        self._position[due] = 0
        played = self._queue[torch.arange(len(human)), torch.as_tensor(self._position)]
        steered = torch.as_tensor(human, device=played.device)[:, None]
        played = torch.where(steered, torch.as_tensor(actions, device=played.device), played)
        for seed, steered in zip(episode_seeds.tolist(), human.tolist(), strict=True):
            self.human[seed].append(steered)
        self._position += 1
        return ActionChunk(actions=played[:, None], execute=1)

    def _decide(self, observation: Observation, episode_seeds: np.ndarray, due: np.ndarray) -> torch.Tensor:
        """Chains for all envs, kept where a decision is due; physical actions (N, Tp, A)."""
        seeds = episode_seeds.tolist()
        noise = self.noise.draw(seeds, [len(self.chains.get(seed, ())) for seed in seeds])
        with torch.no_grad():
            feature = self.policy.encode(observation)
        latents = latents_from(self.policy, feature, torch.as_tensor(noise, device=self.policy.device))
        for row in np.flatnonzero(due & (episode_seeds >= 0)).tolist():
            kept = self.chains[seeds[row]]
            step = len(kept) * self.policy.config.execute if self.intervener is None else len(self.human[seeds[row]])
            one = slice(row, row + 1)
            kept.append(_Decision(step, observation.map(itemgetter(one)), feature[one], latents[one]))
        actions: torch.Tensor = self.policy.physical_action(latents[:, -1])
        return actions


def play_batch(
    env: VectorEnv,
    policy: Any,
    seeds: Sequence[int],
    *,
    noise: NoiseSource,
    gamma: float,
    reward: RewardConfig,
    intervener: Intervener | None = None,
    on_episode: Callable[[EpisodeRecord, Episode], None] | None = None,
) -> tuple[OnPolicyBatch, list[EpisodeRecord]]:
    """Play the episodes of `seeds` with the policy and return their decisions, in the order of `seeds`.

    Args:
        env: with the policy's spec and history.
        policy: a DenoisingPolicy in mode eta1.
        seeds: of the episodes, none twice.
        noise: of (seed, decision).
        gamma: discount per env step.
        reward: penalties on top of the task's reward.
        intervener: may take over.
        on_episode: called with each finished episode, steps labelled by who chose them, to store it.
    """
    actor = ChainActor(policy, noise, intervener)
    finished: list[Episode] = []

    def collect(record: EpisodeRecord, episode: Episode | None) -> None:
        assert episode is not None
        human = np.array(actor.human.get(record.seed, [False] * len(episode)), dtype=bool)[: len(episode)]
        source = np.where(human, int(Source.intervention), int(Source.policy)).astype(np.uint8)
        finished.append(replace(episode, source=source))
        if on_episode is not None:
            on_episode(record, finished[-1])

    records = rollout(env, actor, seeds, on_episode=collect, source=Source.policy)
    chains = [actor.chains[seed] for seed in seeds]
    return _joined(finished, chains, policy, gamma=gamma, reward=reward), records


def _joined(
    episodes: Sequence[Episode], chains: Sequence[list[_Decision]], policy: Any, *, gamma: float, reward: RewardConfig
) -> OnPolicyBatch:
    """The rows of all episodes, with rewards summed inside the decisions and features behind them."""
    execute, device = policy.config.execute, policy.device
    with torch.no_grad():
        finals = policy.encode(_final_observations(episodes, policy.config.history).map(lambda x: x.to(device)))
    parts: dict[str, list[Any]] = defaultdict(list)
    for number, (episode, decisions) in enumerate(zip(episodes, chains, strict=True)):
        steps = np.array([*(decision.step for decision in decisions), len(episode)])
        executed = np.diff(steps)
        rewards = shaped_rewards(np.asarray(episode.reward), np.asarray(episode.action), reward)
        place = steps[:-1, None] + np.arange(execute)
        mask = np.arange(execute) < executed[:, None]
        padded = torch.from_numpy(rewards[np.minimum(place, len(episode) - 1)])
        human = np.array([bool((episode.source[a:b] == Source.intervention).any()) for a, b in pairwise(steps)])
        last = np.arange(len(executed)) == len(executed) - 1
        comes_in = ~human & np.append(human[1:], False)
        feature = torch.cat([decision.feature for decision in decisions])
        parts["feature"].append(feature)
        parts["latents"].append(torch.cat([decision.latents for decision in decisions]))
        parts["reward"].append(chunk_reward(padded, torch.from_numpy(mask), gamma=gamma).to(device))
        parts["executed"].append(torch.from_numpy(executed).to(device))
        parts["terminated"].append(torch.from_numpy(last & episode.terminated).to(device))
        parts["truncated"].append(torch.from_numpy((last & episode.truncated) | comes_in).to(device))
        parts["next_feature"].append(torch.cat([feature[1:], finals[number : number + 1]]))
        parts["human"].append(torch.from_numpy(human).to(device))
        parts["episode"].append(torch.full((len(executed),), number, device=device))
    seen = [decision.observation.arrays() for decisions in chains for decision in decisions]
    observation = Observation.from_arrays({key: torch.cat([arrays[key] for arrays in seen]) for key in seen[0]})
    return OnPolicyBatch(**{name: torch.cat(rows) for name, rows in parts.items()}, observation=observation)


def _final_observations(episodes: Sequence[Episode], history: int) -> Observation:
    """What the last action of each episode led to, with the frames before it; the first frame stands in for missing ones."""
    arrays = {}
    for key in episodes[0].final_observation:
        rows = []
        for episode in episodes:
            all_frames = np.asarray(episode.observation[key])
            before: list[Any] = list(all_frames[max(len(episode) - history + 1, 0) :]) if history > 1 else []
            frames = [*before, np.asarray(episode.final_observation[key])]
            rows.append(np.stack([frames[0]] * (history - len(frames)) + frames))
        arrays[key] = torch.from_numpy(np.stack(rows))
    return Observation.from_arrays(arrays)


def advantages(
    batch: OnPolicyBatch,
    value: Float32[Array, " B"],
    next_value: Float32[Array, " B"],
    *,
    gamma: float,
    trace: float,
) -> tuple[Float32[Array, " B"], Float32[Array, " B"]]:
    """GAE over the decisions of every episode (`returns.generalized_advantage`), and returns; rows as in `batch`.

    Args:
        batch: whole episodes.
        value: V of `feature`.
        next_value: V of `next_feature`.
        gamma: discount per env step.
        trace: lambda, per decision.
    """
    counts = torch.bincount(batch.episode)
    row = torch.arange(len(batch), device=counts.device) - (counts.cumsum(0) - counts)[batch.episode]

    def grid(values: torch.Tensor) -> torch.Tensor:
        out = values.new_zeros(int(counts.max()), len(counts))
        out[row, batch.episode] = values
        return out

    advantage, returns = generalized_advantage(
        grid(batch.reward), grid(value), grid(next_value), executed=grid(batch.executed),
        terminated=grid(batch.terminated), truncated=grid(batch.truncated), gamma=gamma, trace=trace,
    )  # fmt: skip
    return advantage[row, batch.episode], returns[row, batch.episode]
