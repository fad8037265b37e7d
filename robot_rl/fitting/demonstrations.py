"""What the policy should imitate while it learns online: successful demonstrations, and every action of a human.

A human's stretch of an episode becomes a small episode of its own, so that no window runs on into what the policy did
when it had the arm again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robot_rl.data.same_spec import require_same_spec
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import StepArrays, WindowSampler
from robot_rl.errors import DataError
from robot_rl.types import Episode, Source

BATCH = 256


def human_segments(episode: Episode) -> list[Episode]:
    """The stretches of an episode in which a human acted (Source.intervention), each as an episode of its own.

    Its final observation is the frame behind its last action. A stretch that ends earlier than the episode is neither
    terminated nor truncated.
    """
    human = np.asarray(episode.source) == Source.intervention
    edges = np.flatnonzero(np.diff(np.concatenate([[False], human, [False]]).astype(np.int8)))
    return [_part(episode, int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _part(episode: Episode, first: int, behind: int) -> Episode:
    is_last = behind == len(episode)
    steps = slice(first, behind)
    final = {
        key: episode.final_observation[key] if is_last else frames[behind]
        for key, frames in episode.observation.items()
    }
    return replace(
        episode, observation={key: frames[steps] for key, frames in episode.observation.items()}, final_observation=final,
        action=episode.action[steps], reward=episode.reward[steps], success=episode.success[steps],
        source=episode.source[steps], time=episode.time[steps], terminated=is_last and episode.terminated,
        truncated=is_last and episode.truncated,
    )  # fmt: skip


class Imitated:
    """Windows of what is imitated; grows with the human's stretches. `loss` is what PPO adds (its anchor).

    Args:
        policy: gives sizes, keys and device.
        datasets: EpisodeStores whose successful episodes count from the start.

    Raises:
        DataError: a store that is missing, damaged, of another spec, or without a success.
    """

    def __init__(self, policy: Any, datasets: Sequence[str] = ()) -> None:
        config = policy.config
        self._keys = list(dict.fromkeys(["proprio", *config.observation_keys]))
        self._sizes = {"history": config.history, "horizon": config.horizon, "execute": config.execute}
        self._device = policy.device
        self._parts = [part for path in datasets for part in self._successful(path, policy)]
        self._windows: WindowSampler | None = None
        self._build()

    def add(self, episodes: Sequence[Episode], *, successes: bool = False) -> int:
        """Take the human's stretches of new episodes, or all of those that succeeded; returns how many steps that were."""
        stretches = [
            part
            for episode in episodes
            for part in ([episode] if successes and episode.success.any() else human_segments(episode))
        ]
        if stretches:
            self._parts.append(StepArrays.from_episodes(stretches, self._keys))
            self._build()
        return sum(len(part) for part in stretches)

    @property
    def num_windows(self) -> int:
        """Steps that can be drawn."""
        return 0 if self._windows is None else self._windows.num_windows

    def loss(self, policy: Any, generator: torch.Generator) -> torch.Tensor:
        """Denoising loss on a batch of windows."""
        assert self._windows is not None
        value: torch.Tensor = policy.loss(self._windows.sample(BATCH, generator), generator)[0]
        return value

    def _successful(self, path: str, policy: Any) -> list[StepArrays]:
        with EpisodeStore.open(path) as store:
            require_same_spec(store.spec, policy.spec, where=path)
            success = np.flatnonzero(store.success)
            if not len(success):
                raise DataError(
                    path, expected="a successful episode to imitate", got=f"{len(store)} episodes, none successful",
                    hint="Leave it out of `demonstrations`, or label its successes (`robot-rl data relabel`).",
                )  # fmt: skip
            return [StepArrays.from_store(store, self._keys).select(success)]

    def _build(self) -> None:
        if self._parts:
            arrays = StepArrays.concatenate(self._parts)
            self._windows = WindowSampler(
                arrays, keys=self._keys, episodes=np.arange(len(arrays.lengths)), device=self._device, **self._sizes
            )
