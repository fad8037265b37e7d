"""Reads ALOHA's HDF5 (Zhao et al. 2023, ACT; also Mobile ALOHA and RoboTwin): a folder with a file per episode.

    episode_<i>.hdf5     attrs: sim, compress
      action (T, 14)     base_action (T, 2) of Mobile ALOHA
      observations/qpos, qvel, effort (T, 14)
      observations/images/<camera> (T, H, W, 3) uint8, or packed: (T, bytes) padded with zeros, or bytes of any length
      compress_len (cameras, T)          bytes of each packed frame
There is no observation behind the last action. Source: act-plus-plus, record_sim_episodes.py and compress_data.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.formats.hdf5_guard import require_walkable
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
from robot_rl.errors import DataError

_IMAGES = "observations/images/"
_LENGTHS = "compress_len"
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_ARMS = ("left", "right")


class AlohaSource:
    """A KeyedSource of a folder of episodes. Keys are the paths in a file: "action", "observations/images/cam_high".

    Args:
        path: the folder, or one file.
        swap_red_blue: the packed images were written by OpenCV from RGB arrays, which turns red and blue around.

    Raises:
        DataError: no episode, or all damaged.
    """

    format = "aloha"

    def __init__(self, path: Path, *, swap_red_blue: bool = False) -> None:
        self.path, self._swap = path, swap_red_blue
        self._files = _files(path)
        self._one: tuple[int, Any] = (-1, None)
        self._problems: dict[int, DataError] = {}
        self.keys: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        require_walkable(self._files)
        looks = [self._look(index) for index in range(len(self._files))]
        self._forget()
        if len(self._problems) == len(self._files):
            raise next(iter(self._problems.values()))
        self.episodes = [
            # A file that can't be read has rows for its reader, so that it asks for them and meets the problem.
            SourceEpisode(file.stem, steps or 2)
            for file, (steps, _, _) in zip(self._files, looks, strict=True)
        ]
        sims = {sim for _, sim, _ in looks if sim is not None}
        self.facts: Mapping[str, Any] = {"sim": sims.pop()} if len(sims) == 1 else {}
        self.declared: Mapping[str, Any] = _declared(self.keys)
        self.notes = list(self._notes(looks))

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows (steps, ...) of `key`, images unpacked to (steps, H, W, 3) uint8. Raises DataError."""
        if index in self._problems:
            raise self._problems[index]
        where, steps = f"{self._files[index]}", self.episodes[index].steps
        with named_damage(f"{where}, {key}"):
            file = self._file(index)
            rows = read_rows(file, key, where=where, rows=steps)
            if key.startswith(_IMAGES) and _is_packed(rows):
                rows = self._unpacked(file, rows, key, where)
            if rows.shape[1:] != self.keys[key][0]:
                raise DataError(
                    f"{where}, {key}", expected=f"rows of shape {self.keys[key][0]}, as the first episode has",
                    got=f"{rows.shape[1:]}", hint="Leave the episode out with --skip-bad.",
                )  # fmt: skip
            return rows

    def close(self) -> None:
        """Close the file that is open."""
        self._forget()

    def _file(self, index: int) -> Any:
        """Open one file at a time; the last one stays open, since a reader asks for all its keys."""
        if self._one[0] != index:
            self._forget()
            self._one = (index, open_hdf5(self._files[index]))
        return self._one[1]

    def _forget(self) -> None:
        if self._one[1] is not None:
            self._one[1].close()
        self._one = (-1, None)

    def _look(self, index: int) -> tuple[int, bool | None, frozenset[str]]:
        """Steps, whether it is from the simulator, and keys of one file; fills `keys` where they are new."""
        where = f"{self._files[index]}"
        try:
            with named_damage(where):
                file = self._file(index)
                (steps, *_), _ = require_numbers(file, "action", where=where)
                if not steps:
                    raise DataError(f"{where}, action", expected="a step", got="none", hint="Use --skip-bad.")
                names = frozenset(name for name in leaf_names(file) if name != _LENGTHS)
                for name in sorted(names - self.keys.keys()):
                    self.keys[name] = self._row(file, name, where)
                return steps, bool(file.attrs["sim"]) if "sim" in file.attrs else None, names
        except DataError as error:
            self._problems[index] = error
            return 0, None, frozenset()

    def _row(self, file: Any, key: str, where: str) -> tuple[tuple[int, ...], np.dtype]:
        if not key.startswith(_IMAGES) or not _is_packed(file[key]):
            shape, dtype = require_numbers(file, key, where=where)
            return shape[1:], dtype
        return decode_image(file[key][0], where=f"{where}, {key}, step 0").shape, np.dtype(np.uint8)

    def _unpacked(self, file: Any, packed: np.ndarray, key: str, where: str) -> np.ndarray:
        if _LENGTHS in file:
            _require_lengths(read_rows(file, _LENGTHS, where=where), packed, where=f"{where}, {key}")
        images = np.empty((len(packed), *self.keys[key][0]), np.uint8)
        for step, frame in enumerate(packed):
            image = decode_image(frame, where=f"{where}, {key}, step {step}")
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"{where}, {key}, step {step}", expected=f"an image of {images.shape[1:]}", got=f"{image.shape}",
                    hint="Leave the episode out with --skip-bad.",
                )  # fmt: skip
            images[step] = image[..., ::-1] if self._swap and image.ndim == 3 else image
        return images

    def _notes(self, looks: list[tuple[int, bool | None, frozenset[str]]]) -> Iterator[str]:
        numbers = [int(file.stem.removeprefix("episode_")) for file in self._files]
        gaps = sorted(set(range(numbers[-1] + 1)) - set(numbers)) if len(numbers) > 1 else []
        if gaps:
            yield f"{len(gaps)} numbers have no file (discarded, or lost): {', '.join(map(str, gaps[:10]))}."
        every = frozenset.union(*(names for _, _, names in looks))
        for file, (steps, _, names) in zip(self._files, looks, strict=True):
            if steps and names != every:
                yield f"{file.name} has no {', '.join(sorted(every - names))}, which other episodes have."
        sims = {sim for _, sim, _ in looks if sim is not None}
        if len(sims) > 1:
            yield "Some episodes are from the simulator and some from the robot (attribute sim)."
        if any(key.startswith(_IMAGES) for key in every) and not self._swap:
            yield (
                "Images are taken as RGB. ALOHA's own tools pack with OpenCV, which may have turned red and blue around: "
                "look at a frame, and turn them back with --option swap_red_blue=true."
            )
        yield "The files do not say their rate; ALOHA records at 50 Hz."
        if self.keys["action"][0] != (14,):
            yield f"An action has {self.keys['action'][0]} numbers, not the 14 of two arms: state what they are."
        widths = {key: int(np.prod(shape)) * dtype.itemsize for key, (shape, dtype) in self.keys.items()}
        sizes = [steps * sum(widths[key] for key in names) for steps, _, names in looks]
        yield size_note(sum(sizes), max(sizes))


def _files(path: Path) -> list[Path]:
    """The episodes of a folder in natural order."""
    if path.is_file():
        return [path]
    found = {file.stem: file for file in path.glob("*.hdf5")} if path.is_dir() else {}
    if not found:
        raise DataError(
            f"{path}", expected="a folder with episode_0.hdf5, episode_1.hdf5, ...",
            got="nothing there" if not path.exists() else "no .hdf5 file", hint="Give the folder with the episodes.",
        )  # fmt: skip
    return [found[name] for name in natural_order(found, where=f"{path}", example="episode_0")]


def _is_packed(rows: Any) -> bool:
    """Bytes of JPEG in place of (T, H, W, 3): an array or an h5py dataset."""
    return rows.dtype.kind in "SVO" or (rows.ndim == 2 and rows.dtype == np.uint8)


def _require_lengths(lengths: Array, packed: np.ndarray, *, where: str) -> None:
    """compress_len has a row per camera in the recorder's order; one of them must fit what is packed here."""
    found = np.array([len(np.asarray(frame).tobytes().rstrip(b"\0")) for frame in packed])
    table = np.asarray(lengths).reshape(-1, lengths.shape[-1])
    if not any(np.array_equal(row, found) for row in table if len(row) == len(found)):
        closest = min(
            (row for row in table if len(row) == len(found)), key=lambda row: int((row != found).sum()), default=None
        )
        step = "" if closest is None else f", step {int(np.flatnonzero(closest != found)[0])}"
        raise DataError(
            f"{where}{step}", expected="frames as long as compress_len says", got="others",
            hint="Frames were cut off or mixed: leave the episode out with --skip-bad.",
        )  # fmt: skip


def _declared(keys: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, Any]:
    """What ALOHA's two arms mean by convention: absolute joint targets, grippers 0 closed to 1 open."""
    cameras = [
        key for key, (shape, _) in keys.items() if key.startswith(_IMAGES) and len(shape) == 3 and shape[-1] == 3
    ]
    images = {f"image/{key.removeprefix(_IMAGES)}": _card([key], ["1"], ["RGB"]) for key in cameras}
    if keys["action"][0] != (14,) or keys.get("observations/qpos", ((), None))[0] != (14,):
        return {}
    names = [f"{arm}_{joint}" for arm in _ARMS for joint in _JOINTS]
    units = ["1" if name.endswith("gripper") else "rad" for name in names]
    return {
        "robot": "aloha",
        "joint_names": names,
        "action_semantics": {
            "kind": "absolute", "delta_reference": "none", "frame": "joint", "rotation": "none",
            "gripper": "0 closed .. 1 open", "control_mode": "joint_position",
        },
        "action": _card(["action"], units, [f"target of {name}" for name in names]),
        "observation": {"proprio": _card(["observations/qpos"], units, names), **images},
    }  # fmt: skip


def _card(keys: list[str], units: list[str], meanings: list[str]) -> dict[str, Any]:
    return {"keys": keys, "units": units, "meanings": meanings}
