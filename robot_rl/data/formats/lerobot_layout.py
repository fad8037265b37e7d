"""What the meta files of a LeRobot dataset say: the episodes, and in which file and row or second each of them lies.

`lerobot_v2.py` and `lerobot_v3.py` fill a Layout; `lerobot.py` reads by it and knows no version.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import DataError

VERSIONS = ("v2.0", "v2.1", "v3.0")
REPAIR = "The dataset is damaged or half written: get it again, or repair it with the program that wrote it."


@dataclass(frozen=True)
class Feature:
    """One feature of info.json.

    Attributes:
        name: for example "observation.state".
        kind: numpy name of the dtype, "string", "image" or "video".
        shape: of one row; (H, W, 3) of a camera, however the file says it.
        names: one per element, or empty where the file has none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def is_camera(self) -> bool:
        """Rows are pictures."""
        return self.kind in ("image", "video")


@dataclass(frozen=True)
class Clip:
    """Where the video of one episode begins: file and seconds."""

    path: Path
    start_s: float


@dataclass(frozen=True)
class Entry:
    """One episode: number, rows, tasks, the parquet file with its rows, and camera -> video."""

    number: int
    steps: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, Clip]


@dataclass(frozen=True)
class Layout:
    """All that meta says.

    Attributes:
        path: folder of the dataset.
        info: meta/info.json.
        fps: rows and frames a second.
        features: name -> Feature.
        tasks: task_index -> text.
        entries: episodes 0, 1, 2, ...
        has_stats: meta holds statistics.
    """

    path: Path
    info: Mapping[str, Any]
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    entries: Sequence[Entry]
    has_stats: bool


def import_parquet() -> Any:
    """`pyarrow.parquet`.

    Raises:
        DataError: saying what to install.
    """
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise DataError(
            "LeRobot", expected="pyarrow, which reads and writes parquet", got="no module named pyarrow",
            hint="pip install 'robot-rl[data]'",
        ) from error  # fmt: skip
    return parquet


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json of the dataset at `path`, with a known version.

    Raises:
        DataError: none, no JSON, another version, or a field is missing.
    """
    file = path / "meta" / "info.json"
    if not file.is_file():
        raise DataError(
            f"{path}", expected="a LeRobot dataset, a folder with meta/info.json", got="no such file",
            hint="Give the folder that holds meta/, data/ and videos/.",
        )  # fmt: skip
    info = parse_json(file.read_text(), where=f"{file}")
    version = info.get("codebase_version")
    if version not in VERSIONS:
        raise DataError(
            f"{file}, codebase_version", expected=" or ".join(VERSIONS), got=repr(version),
            hint="Convert it with LeRobot's own scripts first.",
        )  # fmt: skip
    for key, kind in (("fps", int | float), ("features", dict), ("total_episodes", int), ("total_frames", int)):
        if not isinstance(info.get(key), kind):
            raise DataError(f"{file}", expected=f"{key}", got=repr(info.get(key)), hint=REPAIR)
    if not 0 < info["fps"] < math.inf:
        raise DataError(f"{file}, fps", expected="a rate above 0", got=f"{info['fps']}", hint=REPAIR)
    return info


def parse_json(text: str, *, where: str) -> dict[str, Any]:
    """A JSON object. Raises DataError for anything else."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(where, expected="JSON", got=str(error), hint=REPAIR) from error
    if not isinstance(content, dict):
        raise DataError(where, expected="a JSON object", got=type(content).__name__, hint=REPAIR)
    return content


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A .jsonl file. Raises DataError naming file and line."""
    if not file.is_file():
        raise DataError(f"{file}", expected="this file", got="none", hint=REPAIR)
    lines = [(number, line) for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip()]
    return [parse_json(line, where=f"{file}, line {number}") for number, line in lines]


def read_features(info: Mapping[str, Any], *, where: str) -> dict[str, Feature]:
    """The features of info.json.

    Raises:
        DataError: one has no dtype or shape, or a camera is not RGB.
    """
    features = {}
    for name, said in info["features"].items():
        try:
            kind, shape = str(said["dtype"]), tuple(int(size) for size in said["shape"])
            if kind not in ("image", "video", "string"):
                kind = np.dtype(kind).name
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}, features, {name}", expected="a dtype and a shape", got=f"{said}", hint=REPAIR
            ) from error
        if kind in ("image", "video"):
            shape = _rows_columns_colours(shape, said.get("names"), where=f"{where}, features, {name}")
        features[name] = Feature(name, kind, shape, flat_names(said.get("names"), math.prod(shape)))
    return features


def _rows_columns_colours(shape: tuple[int, ...], names: Any, *, where: str) -> tuple[int, ...]:
    """(H, W, 3) of a camera that may be declared as (3, H, W)."""
    if len(shape) == 3:
        first = isinstance(names, list) and len(names) == 3 and str(names[0]).startswith("channel")
        if shape[0] == 3 and (first or shape[2] != 3):
            return (*shape[1:], 3)
        if shape[2] == 3:
            return shape
    raise DataError(
        where, expected="a colour camera, shape (H, W, 3) or (3, H, W)", got=f"{shape}",
        hint="Depth and grey images are not read: take the feature out of meta/info.json to import the rest.",
    )  # fmt: skip


def flat_names(names: Any, size: int) -> tuple[str, ...]:
    """Names of elements in any of the forms seen: null, a list, {"motors": [...]}, {"motor_0": 0, ...}."""
    if isinstance(names, dict):
        if names and all(isinstance(value, int) for value in names.values()):
            names = sorted(names, key=names.__getitem__)
        else:
            names = [name for value in names.values() if isinstance(value, list) for name in value]
    flat = tuple(map(str, names)) if isinstance(names, list) else ()
    return flat if len(flat) == size else ()


def inside(path: Path, template: Any, **numbers: Any) -> Path:
    """A file that info.json names, which must lie inside the dataset.

    Raises:
        DataError: the template is none, or leads out of the folder.
    """
    try:
        relative = Path(str(template).format(**numbers))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}, meta/info.json", expected="a path with known fields", got=repr(template), hint=REPAIR
        ) from error
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(
            f"{path}, meta/info.json", expected="a path inside the dataset", got=repr(template), hint=REPAIR
        )
    return path / relative


def check_entries(layout: Layout) -> None:
    """Numbers without a gap, sums as the totals of info.json, every file there.

    Raises:
        DataError: naming the first episode where it is not so.
    """
    where, totals = f"{layout.path}, meta", layout.info
    for place, entry in enumerate(layout.entries):
        if entry.number != place:
            raise DataError(
                f"{where}, episodes", expected=f"episode {place}", got=f"episode {entry.number}", hint=REPAIR
            )
        if entry.steps < 1:
            raise DataError(f"{where}, episode {place}", expected="a length above 0", got=f"{entry.steps}", hint=REPAIR)
        for file in (entry.data, *(clip.path for clip in entry.videos.values())):
            if not file.is_file():
                raise DataError(f"{where}, episode {place}", expected=f"the file {file}", got="none", hint=REPAIR)
    steps = sum(entry.steps for entry in layout.entries)
    for key, got in (("total_episodes", len(layout.entries)), ("total_frames", steps)):
        if totals[key] != got:
            raise DataError(
                f"{where}, info.json, {key}", expected=f"{got}, as the episodes say", got=f"{totals[key]}", hint=REPAIR
            )
