"""Reads Minari's data sets (Younis et al. 2024, minari 0.4 and 0.5) kept as HDF5.

    <dataset>/data/metadata.json     data_format, observation_space, action_space, env_spec, total_episodes, total_steps
    <dataset>/data/main_data.hdf5
      episode_<i>                    attrs: seed, total_steps, options/...
        observations (T + 1, ...)    or a group of them, for a Dict or Tuple space
        actions (T, ...)             the same
        rewards, terminations, truncations (T)   infos/... (T + 1)
uint8 images are packed as JPEG, a frame a row. Source: minari 0.5.3, dataset/_storages/hdf5_storage.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.hdf5_source import (
    decode_image,
    leaf_names,
    named_damage,
    natural_order,
    open_hdf5,
    read_rows,
    require_numbers,
    size_note,
)
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.minari_spaces import Leaf, declared_card, leaves
from robot_rl.errors import DataError

_MAIN, _META = "main_data.hdf5", "metadata.json"
_FLAGS = ("rewards", "terminations", "truncations")
_INFOS = "infos/"
# What a seed of ours can be; Minari draws 64 bits.
_LARGEST_SEED = 2**63 - 1


class MinariSource:
    """A KeyedSource of one data set. Keys are the paths below an episode: "observations", "observations/goal", "rewards".

    Rows of "infos/..." stand for the info after each action: the first one, of the reset, is left out.

    Args:
        path: folder of the data set (the one named ...-v0), its data folder, or main_data.hdf5.

    Raises:
        DataError: damaged, foreign, kept as arrow, or the counts of metadata.json are not those of the episodes.
    """

    format = "minari"

    def __init__(self, path: Path) -> None:
        folder = _data_folder(path)
        self._metadata = _read_metadata(folder / _META)
        self.path = folder / _MAIN
        self._spaces: dict[str, Leaf] = {}
        for name in ("observation", "action"):
            self._spaces |= leaves(
                self._metadata.get(f"{name}_space"), f"{name}s", where=f"{folder / _META}, {name}_space"
            )
        self._file = open_hdf5(self.path)
        try:
            with named_damage(f"{self.path}"):
                self._open()
        except BaseException:
            self._file.close()
            raise

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows of `key`: (steps + 1, ...) of an observation, else (steps, ...). Raises DataError."""
        name, steps = self._names[index], self.episodes[index].steps
        if index in self._problems:
            raise self._problems[index]
        where = f"{self.path}, {name}"
        with named_damage(f"{where}, {key}"):
            wanted = steps if not key.startswith(("observations", _INFOS)) else steps + 1
            if key.startswith(_INFOS) and key in self._file[name] and self._file[name][key].shape[:1] == (steps,):
                wanted = steps
            rows = read_rows(self._file[name], key, where=where, rows=wanted)
            if key in self._packed:
                rows = np.stack([decode_image(rows[t], where=f"{where}, {key}, step {t}") for t in range(len(rows))])
            if rows.shape[1:] != self.keys[key][0]:
                raise DataError(
                    f"{where}, {key}", expected=f"rows of shape {self.keys[key][0]}", got=f"{rows.shape[1:]}",
                    hint="Leave the episode out with --skip-bad.",
                )  # fmt: skip
            return rows[1:] if key.startswith(_INFOS) and wanted > steps else rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        names = list(self._file)
        self._names = natural_order(names, where=f"{self.path}", example="episode_0")
        self._require_counts(len(self._names), "total_episodes")
        self._problems: dict[int, DataError] = {}
        self._packed: set[str] = set()
        self.keys: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        self.episodes = [self._look(index) for index in range(len(self._names))]
        if not self._problems:
            self._require_counts(sum(episode.steps for episode in self.episodes), "total_steps")
        env_spec = _env_spec(self._metadata.get("env_spec"))
        self.declared: Mapping[str, Any] = declared_card(env_spec, self._spaces, self.keys)
        kept = (
            "dataset_id",
            "minari_version",
            "algorithm_name",
            "author",
            "code_permalink",
            "description",
            "requirements",
        )
        self.facts: Mapping[str, Any] = {
            **{key: self._metadata[key] for key in kept if key in self._metadata},
            "env_spec": env_spec,
        }
        self.notes = list(self._notes())

    def _look(self, index: int) -> SourceEpisode:
        """What an episode says without its arrays; what is wrong with it is kept for `rows`."""
        name = self._names[index]
        where = f"{self.path}, {name}"
        try:
            with named_damage(where):
                group = self._file[name]
                rewards, terminations, truncations = (read_rows(group, key, where=where) for key in _FLAGS)
                steps = len(rewards)
                said = group.attrs.get("total_steps", group.attrs.get("total_timesteps", steps))
                if not steps == len(terminations) == len(truncations) == int(said):
                    raise DataError(
                        where, expected=f"{int(said)} rewards, terminations and truncations, as total_steps says",
                        got=f"{steps}, {len(terminations)} and {len(truncations)}",
                        hint="A writer was stopped: leave it out with --skip-bad.",
                    )  # fmt: skip
                early = np.flatnonzero(np.asarray(terminations[:-1], bool) | np.asarray(truncations[:-1], bool))
                if not steps or early.size:
                    raise DataError(
                        where, expected="an end at its last step only", got=f"one at step {early[0]}" if steps else "no step",
                        hint="Several episodes were stored as one: leave it out with --skip-bad.",
                    )  # fmt: skip
                for key in leaf_names(group):
                    if key not in self.keys and (shape := self._row(group, key, where)) is not None:
                        self.keys[key] = shape
                ends = bool(terminations[-1]), bool(truncations[-1])
                return SourceEpisode(name, steps, True, *ends, metadata=_metadata(group.attrs))
        except DataError as error:
            self._problems[index] = error
            # It has rows for its reader, which asks for them and meets the problem.
            return SourceEpisode(name, 2, True)

    def _row(self, group: Any, key: str, where: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape and dtype of a row; None for text, which no card can name."""
        dataset, space = group[key], self._spaces.get(key)
        if _is_jpeg(dataset, space):
            self._packed.add(key)
            return decode_image(dataset[0], where=f"{where}, {key}, step 0").shape, np.dtype(np.uint8)
        if dataset.dtype.kind not in "biuf" or not dataset.shape:
            return None
        shape, dtype = require_numbers(group, key, where=where)
        if space is not None and shape[1:] != space.shape:
            raise DataError(
                f"{where}, {key}", expected=f"rows of shape {space.shape}, as {key.partition('/')[0]} space says",
                got=f"{shape[1:]}", hint="metadata.json belongs to another data set.",
            )  # fmt: skip
        return shape[1:], dtype

    def _require_counts(self, found: int, key: str) -> None:
        said = self._metadata.get(key)
        if said is not None and said != found:
            raise DataError(
                f"{self.path}, {key}", expected=f"{said}, as {_META} says", got=f"{found}",
                hint="Episodes were lost or added, or the file is of another data set: get both again.",
            )  # fmt: skip

    def _notes(self) -> Iterator[str]:
        if self._packed:
            yield f"JPEG changed these images a little when they were recorded: {', '.join(sorted(self._packed))}."
        discrete = sorted(key for key, space in self._spaces.items() if space.is_discrete and key in self.keys)
        if discrete:
            yield f"These are whole numbers of a discrete space: {', '.join(discrete)}."
        first = self._file[self._names[0]]
        text = sorted(key for key in leaf_names(first) if key not in self.keys)
        if text:
            yield f"Text can't be imported: {', '.join(text)}."
        cut = sum(not episode.terminated and not episode.truncated for episode in self.episodes)
        if cut:
            yield f"{cut} of {len(self.episodes)} episodes neither terminate nor are truncated: they were cut by hand."
        widths = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.keys.values())
        yield size_note(widths * sum(e.steps for e in self.episodes), widths * max(e.steps for e in self.episodes))


def _data_folder(path: Path) -> Path:
    for folder in (path / "data", path, path.parent):
        if (folder / _META).is_file():
            return folder
    raise DataError(
        f"{path}", expected=f"a data set of Minari: data/{_META} and data/{_MAIN}",
        got="nothing there" if not path.exists() else f"no {_META}",
        hint="Give ~/.minari/datasets/<namespace>/<name>-v0 (MINARI_DATASETS_PATH), or download it with `minari download`.",
    )  # fmt: skip


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}", expected="a JSON object", got=str(error), hint="The data set is damaged.") from error
    kind = content.get("data_format", "hdf5")
    if kind != "hdf5":
        raise DataError(
            f"{path}, data_format", expected="hdf5", got=repr(kind),
            hint="Record it with minari.DataCollector(env, data_format='hdf5'), or copy the episodes into such a set.",
        )  # fmt: skip
    return content


def _env_spec(text: Any) -> dict[str, Any]:
    try:
        content = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _is_jpeg(dataset: Any, space: Leaf | None) -> bool:
    """A frame as bytes of any length, or all of the same length by chance; older versions kept arrays."""
    if dataset.dtype.kind == "O":
        import h5py

        return bool(h5py.check_vlen_dtype(dataset.dtype) == np.uint8)
    is_flat = dataset.dtype == np.uint8 and dataset.ndim == 2
    if not is_flat or (space is not None and dataset.shape[1:] == space.shape):
        return False
    return len(dataset) > 0 and bytes(dataset[0, :2].tolist()) == b"\xff\xd8"


def _metadata(attributes: Any) -> dict[str, Any]:
    """Attributes of an episode as JSON types; "seed" only where ours can hold it."""
    metadata: dict[str, Any] = {}
    for key, value in attributes.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if key in ("id", "total_steps", "total_timesteps") or not isinstance(plain, str | int | float | bool | list):
            continue
        is_large = key == "seed" and (not isinstance(plain, int) or plain > _LARGEST_SEED)
        metadata["minari_seed" if is_large else key] = str(plain) if is_large else plain
    return metadata
