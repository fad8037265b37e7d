"""Episodes of an online run that are stored where asked for, and what the anchor imitates of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.fitting.demonstrations import Imitated
from robot_rl.rollout import EpisodeRecord
from robot_rl.types import Episode


class KeptEpisodes:
    """Demonstrations, the human's stretches and, where asked for, successes; a context that closes the store.

    Args:
        policy: that learns.
        demonstrations: paths of EpisodeStores.
        path: of the store of this run's episodes, made when it is missing; None: none is kept.
        successes: imitate the successful episodes of this run as well.
        imitates: False: only store them, another process imitates.
    """

    def __init__(
        self, policy: Any, demonstrations: Sequence[str], path: Path | None, *, successes: bool,
        imitates: bool = True,
    ) -> None:  # fmt: skip
        self._imitates, self._successes = imitates, successes
        self._imitated = Imitated(policy, list(demonstrations) if imitates else [])
        self._store: EpisodeStore | None = None
        self._stored: set[int] = set()
        if path is not None:
            self._store = EpisodeStore.open_or_create(
                path, policy.spec, metadata={"collector": "policy", "stage": "online"}
            )
            self._stored = {int(seed) for seed in self._store.seeds}
            there = range(len(self._store) if imitates else 0)
            self._imitated.add([self._store.episode(index) for index in there], successes=successes)
        self._new: list[Episode] = []

    def __enter__(self) -> KeptEpisodes:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._store is not None:
            self._store.close()

    def keep(self, record: EpisodeRecord, episode: Episode) -> None:
        """Store the episode, unless a run that was killed behind it has it already."""
        if self._store is not None:
            if record.seed in self._stored:
                return
            self._store.append(episode)
        if self._imitates:
            self._new.append(episode)

    def __len__(self) -> int:
        """Episodes in the store; 0 without one."""
        return 0 if self._store is None else len(self._store)

    def anchor(self) -> Callable[[Any, torch.Generator], torch.Tensor] | None:
        """The imitation loss over everything so far, or None when there is nothing to imitate."""
        self._imitated.add(self._new, successes=self._successes)
        self._new = []
        return self._imitated.loss if self._imitated.num_windows else None
