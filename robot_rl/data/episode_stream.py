"""Episodes of a store or of a foreign reader, one after the other, for tools that look at all of them once.

A chunk of a store holds many short episodes; reading them one by one would unpack it as many times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from robot_rl.data.formats.importing import EpisodeReader
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode

_BLOCK_BYTES = 64 * 1024**2


def stored_episodes(
    store: EpisodeStore, numbers: Sequence[int] | None = None, *, observation: Sequence[str] | None = None
) -> Iterator[tuple[int, Episode | DataError]]:
    """(number, episode) of a store in order, in blocks of 64 MB; the error in place of one that is damaged.

    Args:
        store: to read.
        numbers: which episodes; None for all.
        observation: keys of the spec to read; None for all.
    """
    if numbers is not None:
        for number in numbers:
            yield number, _one(store, number, observation)
        return
    read = [store.spec.observation[key] for key in (store.spec.observation if observation is None else observation)]
    row_bytes = sum(array.size * np.dtype(array.dtype).itemsize for array in read)
    ends, begin = store.episode_ends, 0
    while begin < len(store):
        first = int(ends[begin - 1]) if begin else 0
        fitting = int(np.searchsorted(ends, first + _BLOCK_BYTES // max(row_bytes, 1), side="right"))
        stop = max(begin + 1, fitting)
        try:
            yield from enumerate(store.episodes(begin, stop, observation=observation), begin)
        except DataError:
            # One damaged row spoils its block; one by one, only its own episode.
            yield from ((number, _one(store, number, observation)) for number in range(begin, stop))
        begin = stop


def whole_episodes(store: EpisodeStore) -> Iterator[tuple[int, Episode]]:
    """The same where none may be missing.

    Raises:
        DataError: an episode is damaged.
    """
    for number, episode in stored_episodes(store):
        if isinstance(episode, DataError):
            raise episode
        yield number, episode


def read_episodes(reader: EpisodeReader) -> Iterator[tuple[int, Episode | DataError]]:
    """The same for a foreign dataset."""
    for number in range(len(reader.names)):
        try:
            yield number, reader.read(number)
        except DataError as error:
            yield number, error


def _one(store: EpisodeStore, number: int, observation: Sequence[str] | None) -> Episode | DataError:
    try:
        return store.episodes(number, number + 1, observation=observation)[0]
    except DataError as error:
        return error
