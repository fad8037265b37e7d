"""What a reader of a foreign format gives: named arrays, episode by episode. `card_reader.py` makes episodes of them.

A format is one file here with one class that is a KeyedSource. It knows the layout and nothing of robots; what its
numbers mean comes from a spec card (spec_card.py), of which the source fills in what its files declare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class SourceEpisode:
    """What the files say of one episode.

    Attributes:
        name: for messages, for example "demo_12" or "episode 3".
        steps: rows of the action.
        has_final: keys that observe have steps + 1 rows: the last one is what the last action led to.
        terminated, truncated: how it ended; None where the format does not say.
        metadata: JSON types for the episode: "seed", "instruction", ...
        is_export: it was exported from a store of ours, and `metadata` is all that it had there.
    """

    name: str
    steps: int
    has_final: bool = False
    terminated: bool | None = None
    truncated: bool | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_export: bool = False


@runtime_checkable
class KeyedSource(Protocol):
    """One foreign dataset. The constructor reads its index and raises DataError when that is damaged or foreign.

    Attributes:
        format: its name on the command line.
        path: of the dataset.
        episodes: in the format's own natural order.
        keys: array -> (shape of one row, dtype), for every array that a card may name; images as (H, W, 3) uint8.
        declared: fields of a spec card that the files themselves state (robot, control_hz, a whole card, ...).
        facts: JSON types for the metadata of the store.
        notes: what a user should know about this source as a whole, one sentence each.
    """

    # Properties, so that a class may hold them as any kind of list or dict.
    @property
    def format(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def episodes(self) -> Sequence[SourceEpisode]: ...
    @property
    def keys(self) -> Mapping[str, tuple[tuple[int, ...], np.dtype]]: ...
    @property
    def declared(self) -> Mapping[str, Any]: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def rows(self, index: int, key: str) -> np.ndarray:
        """All rows of `key` in episode `index`: (steps, ...), or (steps + 1, ...) for an observation where has_final.

        Raises:
            DataError: rows are missing, damaged, or of another shape than `keys` says; names file, episode and key.
        """
        ...

    def close(self) -> None:
        """Release the files."""
        ...
