"""Reads diffusion_policy's `replay_buffer.zarr` (Chi et al. 2023; also DP3, UMI and RL-100), a directory or a zip.

    data/<key>           all steps of all episodes, one after the other
    meta/episode_ends    int64, where each episode ends (exclusive)
Such a store does not say what its numbers mean, so a spec card does. Source of the layout: real-stanford/
diffusion_policy, common/replay_buffer.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.zarr_source import ZarrSource
from robot_rl.errors import DataError

_ENDS = "meta/episode_ends"


class DiffusionPolicySource:
    """A KeyedSource of one replay_buffer.zarr.

    Args:
        path: directory, or .zarr.zip.
        empty_chunks: keys in data/ whose missing chunks do hold zeros.

    Raises:
        DataError: damaged, foreign, or a store of our own.
    """

    format = "diffusion_policy"

    def __init__(self, path: Path, *, empty_chunks: Sequence[str] = ()) -> None:
        self.path, self._empty, self._zarr = path, frozenset(empty_chunks), ZarrSource(path)
        try:
            self._refuse_own()
            self._ends = self._episode_ends()
            shapes = {name: self._zarr.array(f"data/{name}") for name in self._zarr.arrays("data")}
        except BaseException:
            self._zarr.close()
            raise
        self.keys = {name: (shape[1:], dtype) for name, (shape, dtype) in shapes.items()}
        lengths = np.diff(self._ends, prepend=0).tolist()
        self.episodes = [SourceEpisode(f"episode {index}", steps) for index, steps in enumerate(lengths)]
        self.declared: Mapping[str, Any] = {}
        self.facts: Mapping[str, Any] = {}
        behind = min((shape[0] for shape, _ in shapes.values()), default=0) - int(self._ends[-1])
        self.notes = [f"{behind} rows behind the last episode are left out (a recording that was cut off)."] * (
            behind > 0
        )

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows (steps, ...) of `key`. Raises DataError naming episode, array and chunk."""
        start, stop = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        where = f"{self.path}, episode {index}"
        return self._zarr.rows(f"data/{key}", start, stop, where=where, fill_is_known=key in self._empty)

    def close(self) -> None:
        """Release the file."""
        self._zarr.close()

    def _refuse_own(self) -> None:
        if self._zarr.attributes().get("schema") == "robot_rl.episodes":
            raise DataError(
                f"{self._zarr.path}",
                expected="a store of diffusion_policy",
                got="a store of robot-rl",
                hint="It needs no import: use it as it is (dataset=...).",
            )

    def _episode_ends(self) -> np.ndarray:
        (size, *more), dtype = self._zarr.array(_ENDS)
        where = f"{self._zarr.path}, {_ENDS}"
        if more or dtype.kind not in "iu" or size == 0:
            raise DataError(
                where, expected="whole numbers (E,), one per episode", got=f"{dtype} of shape {(size, *more)}",
                hint="The store holds no episode." if size == 0 else "Not a store of diffusion_policy.",
            )  # fmt: skip
        ends = self._zarr.rows(_ENDS, 0, size, where=f"{self._zarr.path}").astype(np.int64)
        backwards = np.flatnonzero(np.diff(ends, prepend=0) < 0)
        if backwards.size:
            bad = int(backwards[0])
            raise DataError(
                f"{where}, episode {bad}",
                expected=f"an end not before {ends[bad - 1] if bad else 0}, where the episode begins",
                got=f"{ends[bad]}",
                hint="Ends count rows from the start of the store; these may be lengths (use their cumulative sum).",
            )
        return ends
