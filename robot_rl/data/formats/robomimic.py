"""Reads robomimic's HDF5 (Mandlekar et al. 2021; also MimicGen, LIBERO, robocasa) and our exports to it.

    data                 attrs: total, env_args (JSON: env_name, env_version, type, env_kwargs)
      demo_<i>           attrs: num_samples
        actions, rewards, dones (T, ...)   states (T, D) of the simulator
        obs/<key>, next_obs/<key> (T, ...) images (T, H, W, 3) uint8
    mask/<name>          names of demos: train, valid, 20_percent, ...
Row t of obs is what action t answered to; the last row of next_obs is the final observation. Source: robomimic 0.3,
docs/datasets and scripts/dataset_states_to_obs.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats import robomimic_sidecar as sidecar
from robot_rl.data.formats.exporting import require_checksum
from robot_rl.data.formats.hdf5_source import (
    leaf_names,
    named_damage,
    natural_order,
    open_hdf5,
    read_rows,
    require_numbers,
    size_note,
    text_of,
)
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.robomimic_meaning import contradicts, declared_card, parse_env_args
from robot_rl.errors import DataError

_DONE_MODES = {0: "at success", 1: "at the end of each demo", 2: "at success and at the end"}


@dataclass(frozen=True)
class _Demo:
    """What one demo says without its observations.

    Attributes:
        steps: actions.
        problem: why it can't be read, or None.
        done_modes: ways of setting `dones` that explain them.
        reaches: largest absolute value of an action.
        keys: datasets, without next_obs.
        has_next: every obs key has its next_obs.
        ends_done: the last `dones`.
    """

    steps: int
    problem: DataError | None
    done_modes: frozenset[int]
    reaches: float
    keys: frozenset[str]
    has_next: bool
    ends_done: bool


class RobomimicSource:
    """A KeyedSource of one HDF5 file. Keys are the paths below a demo: "actions", "rewards", "obs/object".

    Raises:
        DataError: damaged, foreign, without observations, or `total` is not the sum of the demos.
    """

    format = "robomimic"

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, open_hdf5(path)
        try:
            with named_damage(f"{path}"):
                self._open()
        except BaseException:
            self._file.close()
            raise

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows of `key`: (steps, ...), and one more for "obs/..." where next_obs gives it. Raises DataError."""
        name, demo = self._names[index], self._demos[index]
        where = f"{self.path}, {name}"
        if demo.problem is not None:
            raise demo.problem
        with named_damage(f"{where}, {key}"):
            ours = f"{sidecar.GROUP}/{name}"
            if key.startswith(f"{sidecar.GROUP}/"):
                rows = read_rows(self._file[ours], key.partition("/")[2], where=where, rows=demo.steps)
            else:
                rows = read_rows(self._file[f"data/{name}"], key, where=where, rows=demo.steps)
            if key.startswith("obs/") and self.episodes[index].has_final:
                place, last = (ours, f"final/{key[4:]}") if self._sidecar else (f"data/{name}", f"next_{key}")
                final = read_rows(self._file[place], last, where=where, only_last=True)
                if final.shape[1:] != rows.shape[1:]:
                    raise _other_shape(f"{where}, {last}", rows.shape[1:], final.shape[1:])
                rows = np.concatenate([rows, final])
            if rows.shape[1:] != self.keys[key][0]:
                raise _other_shape(f"{where}, {key}", self.keys[key][0], rows.shape[1:])
            require_checksum(rows, self._checksums(index).get(key), where=f"{where}, {key}", hint=sidecar.CHANGED)
            return rows

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _open(self) -> None:
        if "data" not in self._file:
            raise DataError(
                f"{self.path}", expected="a group data with demo_0, demo_1, ...", got=f"{sorted(self._file)[:8]}",
                hint="Not a file of robomimic or robosuite.",
            )  # fmt: skip
        data = self._file["data"]
        self._names = natural_order(list(data), where=f"{self.path}, data", example="demo_0")
        attributes = {key: text_of(data.attrs[key]) for key in data.attrs if key in ("env_args", "env", "problem_info")}
        self._env_args = parse_env_args(attributes.get("env_args", "{}"), where=f"{self.path}, data")
        _refuse_states_only(self.path, data[self._names[0]], has_env_args="env_args" in attributes)
        self._demos = [_look(data[name], f"{self.path}, {name}") for name in self._names]
        self._require_total(data.attrs.get("total"))
        self._sidecar = sidecar.sidecar_of(self._file, self._names, where=f"{self.path}")
        self._one: tuple[int, dict[str, Any]] = (-1, {})
        shared = next((name for name, demo in zip(self._names, self._demos, strict=True) if demo.problem is None), "")
        self.keys = {} if not shared else self._keys(shared)
        self._modes = frozenset.intersection(*(demo.done_modes for demo in self._demos))
        self._instruction = _problem(attributes.get("problem_info"))
        self.episodes = [self._episode(index) for index in range(len(self._names))]
        reaches = max(demo.reaches for demo in self._demos)
        said = declared_card(self._env_args, self.keys, reaches=reaches) if "actions" in self.keys else {}
        self.declared: Mapping[str, Any] = said if self._sidecar is None else self._sidecar["card"]
        masks = self._masks()
        self.facts: Mapping[str, Any] = {
            "env_args": self._env_args,
            "masks": masks,
            "done_modes": sorted(self._modes),
            **(
                {}
                if self._sidecar is None
                else {"exported": {k: self._sidecar[k] for k in ("metadata", "content_hash")}}
            ),
        }
        self.notes = list(self._notes(masks, reaches))

    def _keys(self, first: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Every key of any demo, by the first demo that has it."""
        keys: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for name, demo in zip(self._names, self._demos, strict=True):
            for key in sorted(demo.keys - keys.keys()) if demo.problem is None else ():
                shape, dtype = require_numbers(self._file[f"data/{name}"], key, where=f"{self.path}, {name}")
                keys[key] = (shape[1:], dtype)
        if self._sidecar is not None:
            group = self._file[f"{sidecar.GROUP}/{first}"]
            for key in ("success", "source", "time", *(["action"] if "action" in group else [])):
                shape, dtype = require_numbers(group, key, where=f"{self.path}, {sidecar.GROUP}/{first}")
                keys[f"{sidecar.GROUP}/{key}"] = (shape[1:], dtype)
        return keys

    def _episode(self, index: int) -> SourceEpisode:
        name, demo = self._names[index], self._demos[index]
        if self._sidecar is not None:
            said = self._said(index)
            return SourceEpisode(name, demo.steps, True, said["terminated"], said["truncated"], said["metadata"], True)
        attributes = self._file[f"data/{name}"].attrs
        metadata = {} if self._instruction is None else {"instruction": self._instruction}
        if "ep_meta" in attributes:  # robocasa
            language = parse_env_args(text_of(attributes["ep_meta"]), where=f"{self.path}, {name}, ep_meta").get("lang")
            metadata |= {"instruction": str(language)} if language else {}
        # Only dones that are set at success and nowhere else say that the task itself ended.
        terminated = demo.ends_done if self._modes == {0} else None
        # A demo that can't be read has rows for its reader, so that it asks for them and meets the problem.
        steps = demo.steps if demo.problem is None else max(demo.steps, 2)
        return SourceEpisode(name, steps, demo.has_next, terminated, None, metadata)

    def _said(self, index: int) -> dict[str, Any]:
        if self._one[0] != index:
            where = f"{self.path}, {sidecar.GROUP}/{self._names[index]}"
            with named_damage(where):
                said = sidecar.read_json(self._file[f"{sidecar.GROUP}/{self._names[index]}"], where=where)
            if said["name"] != self._names[index]:
                raise DataError(where, expected=self._names[index], got=said["name"], hint="Demos were swapped.")
            self._one = (index, said)
        return self._one[1]

    def _checksums(self, index: int) -> Mapping[str, int]:
        return {} if self._sidecar is None else self._said(index)["crc32"]

    def _require_total(self, total: Any) -> None:
        steps = sum(demo.steps for demo in self._demos)
        if total is not None and int(total) != steps and not any(demo.problem for demo in self._demos):
            raise DataError(
                f"{self.path}, data, total",
                expected=f"{steps}, the sum of the actions of {len(self._demos)} demos",
                got=f"{int(total)}",
                hint=f"Demos were lost or added. If that was on purpose: h5py.File(PATH, 'a')['data'].attrs['total'] = {steps}.",
            )

    def _masks(self) -> dict[str, list[str]]:
        masks = self._file.get("mask", {})
        return {name: [text_of(entry) for entry in np.asarray(masks[name]).ravel().tolist()] for name in masks}

    def _notes(self, masks: Mapping[str, list[str]], reaches: float) -> Iterator[str]:
        if self._sidecar is not None:
            yield "robot-rl wrote this file: its own card and checksums are used."
            return
        if self._modes:
            texts = [f"{mode} ({_DONE_MODES[mode]})" for mode in sorted(self._modes)]
            yield f"dones are set in robomimic's done mode {' or '.join(texts)}; success comes from the card, not from them."
        else:
            yield "dones follow none of robomimic's done modes (with reward above 0 as success); nothing is taken from them."
        without = [name for name, demo in zip(self._names, self._demos, strict=True) if not demo.has_next]
        if without:
            yield (
                f"{len(without)} of {len(self._names)} demos have no next_obs for every observation ({', '.join(without[:3])}): "
                "their final observation is made as the card says (final_observation)."
            )
        every = frozenset.union(*(demo.keys for demo in self._demos))
        for name, demo in zip(self._names, self._demos, strict=True):
            if demo.keys != every and demo.problem is None:
                yield f"{name} has no {', '.join(sorted(every - demo.keys))}, which other demos have."
        if contradicts(self._env_args, reaches=reaches):
            yield (
                f"env_args says that actions are deltas in -1..1, but they reach {reaches:.3g}: perhaps a file of absolute "
                "actions of diffusion_policy (*_abs.hdf5), which keeps the old env_args. State the action in the card."
            )
        yield from _mask_notes(masks, self._names)
        if self._instruction is not None:
            yield "LIBERO's images are upside down, as OpenGL renders them: look at a frame before you train."
        widths = {key: int(np.prod(shape)) * dtype.itemsize for key, (shape, dtype) in self.keys.items()}
        sizes = [demo.steps * sum(widths.get(key, 0) for key in demo.keys) for demo in self._demos]
        yield size_note(sum(sizes), max(sizes))


def _look(group: Any, where: str) -> _Demo:
    """One demo, without its observations; what is wrong with it is kept for `rows`."""
    keys, steps, modes, reaches, ends_done, problem = frozenset[str](), 0, frozenset(_DONE_MODES), 0.0, False, None
    has_next = False
    try:
        with named_damage(where):
            names = list(leaf_names(group))
            keys = frozenset(name for name in names if not name.startswith("next_obs/"))
            nexts = {name for name in names if name.startswith("next_obs/")}
            has_next = bool(nexts) and {f"next_{key}" for key in keys if key.startswith("obs/")} <= nexts
            (steps, *_), _ = require_numbers(group, "actions", where=where)
            said = group.attrs.get("num_samples")
            if said is not None and int(said) != steps:
                raise DataError(
                    f"{where}, num_samples", expected=f"{steps}, as many as it has actions", got=f"{int(said)}",
                    hint="A writer was stopped: leave it out with --skip-bad.",
                )  # fmt: skip
            actions = read_rows(group, "actions", where=where)
            reaches = float(np.abs(actions).max(initial=0))
            if {"dones", "rewards"} <= keys:
                dones, rewards = (
                    read_rows(group, key, where=where, rows=steps).ravel() > 0 for key in ("dones", "rewards")
                )
                modes = done_modes(dones, rewards)
                ends_done = bool(dones[-1:].any())
    except DataError as error:
        problem = error
    return _Demo(steps, problem, modes, reaches, keys, has_next, ends_done)


def done_modes(dones: np.ndarray, success: np.ndarray) -> frozenset[int]:
    """Which of robomimic's done modes give these dones, bool (T,), for this success, bool (T,)."""
    ending = np.arange(len(dones)) == len(dones) - 1
    expected = {0: success, 1: ending, 2: success | ending}
    return frozenset(mode for mode, wanted in expected.items() if np.array_equal(dones, wanted))


def _mask_notes(masks: Mapping[str, list[str]], names: list[str]) -> Iterator[str]:
    if not masks:
        yield "The file has no masks (mask/train, mask/valid): a split is made by seed when you train."
    for mask, demos in masks.items():
        strange = sorted(set(demos) - set(names))
        if strange:
            yield f"mask/{mask} names {len(strange)} demos that are not there: {', '.join(strange[:5])}."


def _problem(text: str | None) -> str | None:
    """LIBERO's instruction."""
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        return None
    instruction = content.get("language_instruction") if isinstance(content, dict) else None
    return None if not instruction else "".join(instruction)


def _refuse_states_only(path: Path, demo: Any, *, has_env_args: bool) -> None:
    if "obs" in demo and len(demo["obs"]):
        return
    convert = "" if has_env_args else f"python -m robomimic.scripts.conversion.convert_robosuite --dataset {path} && "
    raise DataError(
        f"{path}, {demo.name.rpartition('/')[2]}",
        expected="observations (obs)",
        got=f"only {', '.join(sorted(demo))}"
        + (" (robosuite's own recording: states of the simulator)" * ("states" in demo)),
        hint=f"Let robomimic render them: {convert}python -m robomimic.scripts.dataset_states_to_obs --dataset {path} "
        "--output_name obs.hdf5 --done_mode 2, and import obs.hdf5.",
    )


def _other_shape(where: str, expected: tuple[int, ...], got: tuple[int, ...]) -> DataError:
    return DataError(
        where, expected=f"rows of shape {expected}", got=f"{got}", hint="Leave the episode out with --skip-bad."
    )
