"""What LeRobot's layout has no place for, in files of our own that its loaders never open.

    meta/robot_rl.json                      of the whole store: card, spec, metadata, content hash; of each episode: how
                                            it ended, metadata, checksums
    meta/robot_rl/chunk-000/episode-000000.npz   source, time (T), final/<feature>: what the last action led to
A checksum is the CRC-32 of what `LeRobotSource.rows` gives, so that nothing that was changed or swapped since the export is
taken for ours. Videos have none: a decoder of another version may round differently.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.lerobot_layout import parse_json
from robot_rl.errors import DataError

SCHEMA = "robot_rl.lerobot"
VERSION = 1
SOURCE, TIME = "robot_rl/source", "robot_rl/time"
CHANGED = (
    "The dataset was changed since robot-rl wrote it: export it again, or delete meta/robot_rl.json to import the rest."
)


def write_episode_file(path: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """The .npz of one episode of the dataset at `path`."""
    file = episode_file(path, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, allow_pickle=False, **arrays)


def episode_file(path: Path, number: int) -> Path:
    """Where it lies."""
    return path / "meta" / "robot_rl" / f"chunk-{number // 1000:03d}" / f"episode-{number:06d}.npz"


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """meta/robot_rl.json of the dataset at `path`."""
    text = json.dumps({"schema": SCHEMA, "version": VERSION, **content}, allow_nan=False)
    (path / "meta" / "robot_rl.json").write_text(text)


def read_sidecar(path: Path, lengths: list[int]) -> dict[str, Any] | None:
    """The sidecar of a dataset with episodes of these lengths, or None without one.

    Raises:
        DataError: damaged, of a newer version, or not of these episodes.
    """
    file = path / "meta" / "robot_rl.json"
    if not file.is_file():
        return None
    content = parse_json(file.read_text(), where=f"{file}")
    if content.get("schema") != SCHEMA or content.get("version") != VERSION:
        raise DataError(
            f"{file}", expected=f"{SCHEMA} version {VERSION}", got=f"{content.get('schema')} {content.get('version')}",
            hint="Update robot-rl.",
        )  # fmt: skip
    episodes = content.get("episodes")
    if not isinstance(episodes, list) or [episode.get("steps") for episode in episodes] != lengths:
        got = f"{len(episodes)} of other lengths" if isinstance(episodes, list) else "none"
        raise DataError(f"{file}", expected=f"the {len(lengths)} episodes of this dataset", got=got, hint=CHANGED)
    return content


def read_episode_array(path: Path, number: int, name: str) -> np.ndarray:
    """One array of an episode's .npz. Raises DataError where it is missing or damaged."""
    file = episode_file(path, number)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
            return array
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{file}, episode {number}, {name}",
            expected="this array",
            got=f"{type(error).__name__}: {error}",
            hint=CHANGED,
        ) from error
