"""Training windows cut from episodes: arrays stay resident on one device, a batch is a few gathers.

Window t of an episode of T steps, for every t in 0..T-1 (none is lost at either end):
    observation       frames t-To+1 .. t, the first frame repeated before the episode
    actions           t .. t+Tp-1, the last one repeated behind the end, `valid` False there
    next_observation  frames up to t+executed, where executed = min(`execute`, T-t); frame T is the final observation
    discount          gamma^executed, and zero when the episode terminated (not: was truncated) within these steps
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64, UInt8
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode, Observation, Window


@dataclass(frozen=True)
class StepArrays:
    """Episodes one behind the other, numpy: S steps, E episodes.

    Attributes:
        frames: key -> (S + E, ...): the observations of each episode and then its final observation.
        action: float32 (S, A), physical units.
        reward: float32 (S,).
        done: bool (S,), terminated at this step.
        source: uint8 (S,).
        lengths: int64 (E,), steps of each episode.
        success: bool (E,), success_once of each episode.
    """

    frames: dict[str, Array]
    action: Float32[Array, "S A"]
    reward: Float32[Array, " S"]
    done: Bool[Array, " S"]
    source: UInt8[Array, " S"]
    lengths: Int64[Array, " E"]
    success: Bool[Array, " E"]

    @classmethod
    def from_store(cls, store: EpisodeStore, keys: Sequence[str]) -> StepArrays:
        """Read the observations `keys` and everything else that windows need.

        Raises:
            DataError: for an unknown key or a damaged store.
        """
        loaded = store.load([*keys, *(f"final/{key}" for key in keys), "action", "reward", "done", "source"])
        return cls(
            frames={key: np.insert(loaded[key], store.episode_ends, loaded[f"final/{key}"], axis=0) for key in keys},
            action=loaded["action"],
            reward=loaded["reward"],
            done=loaded["done"],
            source=loaded["source"],
            lengths=store.lengths,
            success=store.success,
        )

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], keys: Sequence[str]) -> StepArrays:
        """Join episodes in memory.

        Raises:
            DataError: without episodes.
        """
        if not episodes:
            raise DataError("episodes", expected="at least one", got="none", hint="Collect or record some first.")
        frames = {}
        for key in keys:
            parts = [(episode.observation[key], episode.final_observation[key][None]) for episode in episodes]
            frames[key] = np.concatenate([part for pair in parts for part in pair])
        done = [(np.arange(len(e)) == len(e) - 1) & e.terminated for e in episodes]
        return cls(
            frames=frames,
            action=np.concatenate([episode.action for episode in episodes]),
            reward=np.concatenate([episode.reward for episode in episodes]),
            done=np.concatenate(done),
            source=np.concatenate([episode.source for episode in episodes]),
            lengths=np.array([len(episode) for episode in episodes], np.int64),
            success=np.array([episode.success.any() for episode in episodes], bool),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[StepArrays]) -> StepArrays:
        """The episodes of several, one behind the other; all have the same keys.

        Raises:
            DataError: without parts.
        """
        if not parts:
            raise DataError("datasets", expected="at least one", got="none", hint="Name an EpisodeStore.")
        return cls(
            frames={key: np.concatenate([part.frames[key] for part in parts]) for key in parts[0].frames},
            action=np.concatenate([part.action for part in parts]),
            reward=np.concatenate([part.reward for part in parts]),
            done=np.concatenate([part.done for part in parts]),
            source=np.concatenate([part.source for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            success=np.concatenate([part.success for part in parts]),
        )

    def select(self, episodes: Int64[Array, " E"]) -> StepArrays:
        """Only these episodes, in this order."""
        ends = np.cumsum(self.lengths)
        steps = np.concatenate([np.arange(ends[i] - self.lengths[i], ends[i]) for i in episodes])
        rows = np.concatenate([np.arange(ends[i] - self.lengths[i] + i, ends[i] + i + 1) for i in episodes])
        return StepArrays(
            frames={key: frames[rows] for key, frames in self.frames.items()},
            action=self.action[steps],
            reward=self.reward[steps],
            done=self.done[steps],
            source=self.source[steps],
            lengths=self.lengths[episodes],
            success=self.success[episodes],
        )


class WindowSampler:
    """Windows of the chosen episodes; window i starts at step i of their concatenated steps."""

    def __init__(
        self,
        data: EpisodeStore | StepArrays,
        *,
        history: int,
        horizon: int,
        execute: int,
        keys: Sequence[str],
        episodes: Int64[Array, " E"],
        device: torch.device | str,
        gamma: float = 0.99,
    ) -> None:
        """Load the arrays onto `device`.

        Args:
            data: a store, or arrays that hold at least "proprio" and `keys`.
            history: To, frames in an observation.
            horizon: Tp, actions in a window.
            execute: Ta, actions until the next decision.
            keys: observations wanted; "proprio" is always added.
            episodes: indices of the episodes to use.
            device: where the arrays live.
            gamma: discount per env step.

        Raises:
            DataError: for no episodes, one that does not exist, an unknown key, or a To, Tp, Ta that can't be.
        """
        if history < 1 or not 1 <= execute <= horizon:
            raise DataError(
                "window sampler",
                expected="history >= 1 and 1 <= execute <= horizon",
                got=f"history {history}, horizon {horizon}, execute {execute}",
                hint="Correct the sizes of the policy.",
            )
        keys = list(dict.fromkeys(["proprio", *keys]))
        arrays = _chosen_arrays(data, keys, episodes)
        self.windows_per_episode: np.ndarray = arrays.lengths.copy()
        self.success_of_episode: np.ndarray = arrays.success.copy()
        self._horizon, self._device = horizon, torch.device(device)
        self._frames = {key: torch.as_tensor(arrays.frames[key], device=device) for key in keys}
        self._action = torch.as_tensor(arrays.action, device=device)
        self._reward = torch.as_tensor(arrays.reward, device=device)
        self._source = torch.as_tensor(arrays.source, device=device)

        ends = np.cumsum(arrays.lengths)
        episode = np.repeat(np.arange(len(ends)), arrays.lengths)
        steps = np.arange(ends[-1])
        left = ends[episode] - steps
        executed = np.minimum(execute, left)
        discount = gamma ** executed.astype(np.float64) * ~arrays.done[steps + executed - 1]
        self._last = torch.as_tensor(ends[episode] - 1, device=device)
        self._row = torch.as_tensor(steps + episode, device=device)
        self._first_row = torch.as_tensor((ends - arrays.lengths)[episode] + episode, device=device)
        self._executed = torch.as_tensor(executed, device=device)
        self._discount = torch.as_tensor(discount.astype(np.float32), device=device)
        self._back = torch.arange(1 - history, 1, device=device)
        self._ahead = torch.arange(horizon, device=device)

    @property
    def num_windows(self) -> int:
        """One per step of the chosen episodes."""
        return int(self._action.shape[0])

    @property
    def bytes_per_window(self) -> int:
        """Size of one window's observation."""
        frames = sum(x.element_size() * x[0].numel() for x in self._frames.values())
        return frames * len(self._back)

    def without_observations(self) -> WindowSampler:
        """The same windows on the same memory, with "proprio" alone to look at: for conditions computed before."""
        other = copy.copy(self)
        other._frames = {"proprio": self._frames["proprio"]}
        return other

    def sample(self, batch_size: int, generator: torch.Generator, *, with_next: bool = False) -> Window:
        """Draw windows uniformly, with replacement.

        Args:
            batch_size: B.
            generator: the only source of randomness.
            with_next: also fill next_observation and discount.
        """
        indices = torch.randint(self.num_windows, (batch_size,), generator=generator, device=generator.device)
        return self._cut(indices.to(self._device), with_next)

    def window(self, indices: Int64[Array, " B"], *, with_next: bool = True) -> Window:
        """The windows at `indices`, 0..num_windows-1, numpy or tensor.

        Raises:
            DataError: for an index out of range.
        """
        chosen = torch.as_tensor(indices, device=self._device)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.num_windows:
            raise DataError(
                "window sampler",
                expected=f"indices in 0..{self.num_windows - 1}",
                got=f"{int(chosen.min())}..{int(chosen.max())}",
                hint="There is one window per step of the chosen episodes.",
            )
        return self._cut(chosen, with_next)

    def _cut(self, start: torch.Tensor, with_next: bool) -> Window:
        row, first_row, last = self._row[start], self._first_row[start, None], self._last[start, None]
        ahead = start[:, None] + self._ahead
        valid = ahead <= last
        steps = torch.minimum(ahead, last)
        next_observation = discount = None
        if with_next:
            next_observation = self._history(row + self._executed[start], first_row)
            discount = self._discount[start]
        return Window(
            observation=self._history(row, first_row),
            actions=_gather(self._action, steps),
            valid=valid,
            reward=_gather(self._reward, steps) * valid,
            next_observation=next_observation,
            discount=discount,
            source=self._source[start],
        )

    def _history(self, row: torch.Tensor, first_row: torch.Tensor) -> Observation:
        rows = torch.maximum(row[:, None] + self._back, first_row)
        return Observation.from_arrays({key: _gather(frames, rows) for key, frames in self._frames.items()})


def split_by_episode(
    num_episodes: int, validation_fraction: float, seed: int
) -> tuple[Int64[Array, " train"], Int64[Array, " validation"]]:
    """Split episode indices at random; whole episodes, because windows of one episode overlap.

    Args:
        num_episodes: E.
        validation_fraction: in [0, 1). At least one episode is held out when it is over 0 and E over 1.
        seed: of the split.

    Returns:
        Sorted indices to train on (at least one) and to validate on.

    Raises:
        DataError: without episodes, or for a fraction outside [0, 1).
    """
    if num_episodes < 1 or not 0 <= validation_fraction < 1:
        raise DataError(
            "split by episode",
            expected="at least one episode and a validation fraction in [0, 1)",
            got=f"{num_episodes} episodes and {validation_fraction}",
            hint="Collect or record episodes first, or correct the fraction.",
        )
    held_out = round(num_episodes * validation_fraction)
    if validation_fraction > 0:
        held_out = max(1, held_out)
    held_out = min(held_out, num_episodes - 1)
    order = np.random.default_rng(seed).permutation(num_episodes).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _gather(array: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    # One-dimensional index_select copies whole rows; indexing with a matrix is several times slower.
    return array.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *array.shape[1:])


def _chosen_arrays(data: EpisodeStore | StepArrays, keys: list[str], episodes: np.ndarray) -> StepArrays:
    arrays = data if isinstance(data, StepArrays) else StepArrays.from_store(data, keys)
    missing = [key for key in keys if key not in arrays.frames]
    if missing:
        raise DataError(
            "window sampler",
            expected=f"observations {keys}",
            got=f"{sorted(arrays.frames)}",
            hint=f"Load {missing} too.",
        )
    number = len(arrays.lengths)
    if len(episodes) == 0 or int(np.min(episodes)) < 0 or int(np.max(episodes)) >= number:
        raise DataError(
            "window sampler",
            expected=f"at least one episode index, all in 0..{number - 1}",
            got=f"{np.asarray(episodes).tolist()[:20]}",
            hint=f"The data holds {number} episodes.",
        )
    return arrays.select(np.asarray(episodes))
