"""Meta of LeRobotDataset v3.0: many episodes in a parquet file, and many in an mp4.

    meta/info.json, stats.json, tasks.parquet (index: the text; older: tasks.jsonl)
    meta/episodes/chunk-000/file-000.parquet       one row an episode
    data/chunk-000/file-000.parquet
    videos/<camera feature>/chunk-000/file-000.mp4
The number of a video file is its camera's own and not that of the data file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl.data.formats.lerobot_layout import (
    REPAIR,
    Clip,
    Entry,
    Layout,
    import_parquet,
    inside,
    read_features,
    read_lines,
)
from robot_rl.errors import DataError

_NUMBERS = ("episode_index", "length", "dataset_from_index", "dataset_to_index", "data/chunk_index", "data/file_index")


def read_v3(path: Path, info: Mapping[str, Any]) -> Layout:
    """The layout of a v3 dataset. Raises DataError for a damaged meta file, and indices that don't follow each other."""
    meta = path / "meta"
    features = read_features(info, where=f"{meta / 'info.json'}")
    cameras = [name for name, feature in features.items() if feature.kind == "video"]
    rows = _episode_rows(meta / "episodes", cameras)
    begin, entries = 0, []
    for said in rows:
        number, steps = int(said["episode_index"]), int(said["length"])
        first, stop = int(said["dataset_from_index"]), int(said["dataset_to_index"])
        if (first, stop) != (begin, begin + steps):
            raise DataError(
                f"{meta / 'episodes'}, episode {number}",
                expected=f"dataset_from_index {begin} and dataset_to_index {begin + steps}", got=f"{first} and {stop}",
                hint="Old versions of LeRobot's converter to v3.0 scrambled them: convert it again with a new one.",
            )  # fmt: skip
        begin = stop
        data = inside(
            path, info.get("data_path"), chunk_index=said["data/chunk_index"], file_index=said["data/file_index"]
        )
        videos = {camera: _clip(path, info, said, camera) for camera in cameras}
        entries.append(Entry(number, steps, tuple(said.get("tasks") or ()), data, videos))
    has_stats = (meta / "stats.json").is_file()
    return Layout(path, info, float(info["fps"]), features, _tasks(meta), entries, has_stats)


def _episode_rows(folder: Path, cameras: list[str]) -> list[dict[str, Any]]:
    parquet = import_parquet()
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise DataError(f"{folder}", expected="chunk-000/file-000.parquet", got="no parquet file", hint=REPAIR)
    wanted = [*_NUMBERS, *(f"videos/{camera}/{key}" for camera in cameras for key in _CLIP)]
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            opened = parquet.ParquetFile(file)
            names = opened.schema_arrow.names
            if missing := [name for name in wanted if name not in names]:
                raise DataError(f"{file}", expected=f"columns {', '.join(missing)}", got="none", hint=REPAIR)
            rows += opened.read(columns=[*wanted, *(["tasks"] if "tasks" in names else [])]).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{file}", expected="a whole parquet file", got=str(error), hint=REPAIR) from error
    for row in rows:
        if empty := [name for name in wanted if row[name] is None]:
            raise DataError(
                f"{folder}, episode {row['episode_index']}", expected=", ".join(empty), got="null", hint=REPAIR
            )
    return sorted(rows, key=lambda row: int(row["episode_index"]))


_CLIP = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _clip(path: Path, info: Mapping[str, Any], said: Mapping[str, Any], camera: str) -> Clip:
    chunk, file, start, stop = (said[f"videos/{camera}/{key}"] for key in _CLIP)
    seconds = int(said["length"]) / float(info["fps"])
    if not abs(float(stop) - float(start) - seconds) < 0.5 / float(info["fps"]) or start < 0:
        raise DataError(
            f"{path}, episode {said['episode_index']}, {camera}",
            expected=f"{seconds:g} s of video, as length and fps say",
            got=f"from_timestamp {start:g} to to_timestamp {stop:g}", hint=REPAIR,
        )  # fmt: skip
    return Clip(
        inside(path, info.get("video_path"), video_key=camera, chunk_index=chunk, file_index=file), float(start)
    )


def _tasks(meta: Path) -> dict[int, str]:
    file = meta / "tasks.parquet"
    if not file.is_file():
        return {int(task["task_index"]): str(task["task"]) for task in read_lines(meta / "tasks.jsonl")}
    try:
        table = import_parquet().ParquetFile(file).read()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}", expected="a whole parquet file", got=str(error), hint=REPAIR) from error
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise DataError(
            f"{file}", expected="task_index and one column of texts", got=f"{table.column_names}", hint=REPAIR
        )
    return dict(zip(table["task_index"].to_pylist(), (str(text) for text in table[texts[0]].to_pylist()), strict=True))
