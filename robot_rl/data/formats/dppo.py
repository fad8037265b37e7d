"""Reads dppo's npz (Ren et al. 2024): all steps of all trajectories, states and actions scaled to [-1, 1].

    train.npz            states (N, S), actions (N, A), traj_lengths (E), images (N, C, H, W), rewards (N), terminals (N)
    normalization.npz    obs_min, obs_max (S), action_min, action_max (A)
Both states and actions are scaled back here, by the inverse of dppo's 2 (x - min) / (max - min + 1e-6) - 1. There is no
observation behind the last action. Source: irom-princeton/dppo, script/dataset/process_robomimic_dataset.py and
get_d4rl_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.npz_source import NpzSource
from robot_rl.errors import DataError

_LENGTHS = "traj_lengths"
_SCALED = {"states": "obs", "actions": "action"}
_EPSILON = 1e-6
# Sums of float32: what dppo scaled may leave [-1, 1] by this much.
_TOLERANCE = 1e-3


class DppoSource:
    """A KeyedSource of one train.npz (or val.npz).

    Args:
        path: of it.
        normalization: of normalization.npz; None looks beside `path`.
        is_raw: states and actions were never scaled (dppo's script without --normalize).

    Raises:
        DataError: damaged, foreign, of objects, or normalization.npz is missing and the data are not said to be raw.
    """

    format = "dppo"

    def __init__(self, path: Path, *, normalization: Path | str | None = None, is_raw: bool = False) -> None:
        self.path, self._npz = path, NpzSource(path)
        try:
            lengths = self._lengths()
            self._bounds = {} if is_raw else self._read_bounds(Path(normalization) if normalization else _beside(path))
        except BaseException:
            self._npz.close()
            raise
        self._ends = np.cumsum(lengths)
        self._cameras = self._npz.arrays["images"][0][1] // 3 if "images" in self._npz.arrays else 0
        self.keys = dict(self._row_shapes())
        terminals = "terminals" in self._npz.arrays
        self.episodes = [
            SourceEpisode(
                f"trajectory {index}", int(steps), terminated=self._last_terminal(index) if terminals else None
            )
            for index, steps in enumerate(lengths)
        ]
        self.declared: Mapping[str, Any] = {"reward_key": "rewards"} if "rewards" in self.keys else {}
        self.facts: Mapping[str, Any] = {
            "is_raw": is_raw,
            "normalization": {key: value.tolist() for key, value in self._bounds.items()},
        }
        self.notes = [
            "States and actions are taken as they are: nothing is scaled back."
            if is_raw
            else "States and actions were scaled back from [-1, 1] with normalization.npz."
        ]
        if self._cameras > 1:
            self.notes.append(f"images holds {self._cameras} cameras: images/0 to images/{self._cameras - 1}.")

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows (steps, ...) of `key`: scaled back, images as (steps, H, W, 3). Raises DataError."""
        stop = int(self._ends[index])
        start, where = stop - self.episodes[index].steps, f"{self.path}, trajectory {index}, {key}"
        name, _, camera = key.partition("/")
        rows = self._npz.rows(name, start, stop, where=where)
        if name == "images":
            first = 3 * int(camera or 0)
            return np.ascontiguousarray(np.moveaxis(rows[:, first : first + 3], 1, -1))
        if key not in _SCALED or not self._bounds:
            return rows
        if np.abs(rows).max(initial=0) > 1 + _TOLERANCE:
            step = int(np.argmax(np.abs(rows).max(axis=1)))
            raise DataError(
                f"{where}, step {step}", expected="numbers in [-1, 1], as dppo scales them",
                got=f"{np.abs(rows).max():g}", hint="If they were never scaled, say so (--option is_raw=true).",
            )  # fmt: skip
        low, high = (self._bounds[f"{_SCALED[key]}_{side}"] for side in ("min", "max"))
        scaled_back: np.ndarray = (rows.astype(np.float64) + 1) / 2 * (high - low + _EPSILON) + low
        return scaled_back.astype(np.float32)

    def close(self) -> None:
        """Close the file."""
        self._npz.close()

    def _lengths(self) -> np.ndarray:
        arrays = self._npz.arrays
        missing = sorted({"states", "actions", _LENGTHS} - arrays.keys())
        if missing:
            raise DataError(
                f"{self.path}", expected=f"arrays states, actions and {_LENGTHS}", got=f"no {', '.join(missing)}",
                hint=f"It holds {', '.join(sorted(arrays))}. Not a file of dppo.",
            )  # fmt: skip
        shape, dtype = arrays[_LENGTHS]
        if len(shape) != 1 or dtype.kind not in "iu" or shape[0] == 0:
            raise DataError(
                f"{self.path}, {_LENGTHS}", expected="whole numbers (E,)", got=f"{dtype} of shape {shape}",
                hint="Not a file of dppo.",
            )  # fmt: skip
        lengths = self._npz.rows(_LENGTHS, 0, shape[0], where=f"{self.path}").astype(np.int64)
        for name, (size, *row) in ((name, arrays[name][0]) for name in arrays if name != _LENGTHS and arrays[name][0]):
            if name in ("states", "actions", "images", "rewards", "terminals") and size != lengths.sum():
                raise DataError(
                    f"{self.path}, {name}", expected=f"{lengths.sum()} rows, the sum of {_LENGTHS}", got=f"{size}",
                    hint="The file was cut or mixed with another one.",
                )  # fmt: skip
            if name == "images" and (len(row) != 3 or row[0] % 3):
                raise DataError(
                    f"{self.path}, images", expected="rows (C, H, W), C a multiple of 3", got=f"{tuple(row)}",
                    hint="Move the axis of colours to the front.",
                )  # fmt: skip
        if lengths.min() < 0:
            raise DataError(
                f"{self.path}, {_LENGTHS}", expected="lengths", got=f"{lengths.min()}", hint="The file is damaged."
            )
        return lengths

    def _read_bounds(self, path: Path) -> dict[str, np.ndarray]:
        if not path.is_file():
            raise DataError(
                f"{path}",
                expected="normalization.npz, with which dppo scaled states and actions to [-1, 1]",
                got="nothing there",
                hint="Copy it beside train.npz. If the data were never scaled, say so (--option is_raw=true).",
            )
        npz, bounds = NpzSource(path), {}
        try:
            for key, ours in _SCALED.items():
                for side in ("min", "max"):
                    name, size = f"{ours}_{side}", self._npz.arrays[key][0][-1]
                    if npz.arrays.get(name, ((), None))[0] != (size,):
                        raise DataError(
                            f"{path}, {name}", expected=f"{size} numbers, one for each of {key}",
                            got=f"{npz.arrays.get(name, ('nothing',))[0]}", hint="It belongs to another data set.",
                        )  # fmt: skip
                    bounds[name] = npz.rows(name, 0, size, where=f"{path}").astype(np.float64)
                if (bounds[f"{ours}_max"] < bounds[f"{ours}_min"]).any():
                    raise DataError(
                        f"{path}, {ours}_max",
                        expected=f"not below {ours}_min",
                        got="an element that is",
                        hint="Damaged.",
                    )
        finally:
            npz.close()
        return bounds

    def _row_shapes(self) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
        for name, (shape, dtype) in self._npz.arrays.items():
            if name == "images":
                for camera in range(self._cameras):
                    yield "images" + f"/{camera}" * (self._cameras > 1), ((*shape[2:], 3), dtype)
            elif name != _LENGTHS and shape:
                yield name, (shape[1:], np.dtype(np.float32) if name in _SCALED and self._bounds else dtype)

    def _last_terminal(self, index: int) -> bool:
        stop = int(self._ends[index])
        last: Array = self._npz.rows("terminals", max(stop - 1, 0), stop, where=f"{self.path}, trajectory {index}")
        return bool(last.any())


def _beside(path: Path) -> Path:
    """normalization.npz with the same prefix as train.npz or val.npz."""
    for ending in ("train.npz", "val.npz"):
        if path.name.endswith(ending):
            return path.with_name(path.name.removesuffix(ending) + "normalization.npz")
    return path.with_name("normalization.npz")
