"""Meta of LeRobotDataset v2.0 and v2.1: one parquet file and one mp4 per camera for each episode.

meta/info.json, episodes.jsonl, tasks.jsonl, stats.json (v2.0) or episodes_stats.jsonl (v2.1)
data/chunk-000/episode_000000.parquet
videos/chunk-000/<camera feature>/episode_000000.mp4
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
    inside,
    read_features,
    read_lines,
)
from robot_rl.errors import DataError


def read_v2(path: Path, info: Mapping[str, Any]) -> Layout:
    """The layout of a v2 dataset. Raises DataError for a damaged meta file."""
    meta = path / "meta"
    features = read_features(info, where=f"{meta / 'info.json'}")
    tasks = {task["task_index"]: task["task"] for task in _lines(meta / "tasks.jsonl", "task_index", "task")}
    cameras = [name for name, feature in features.items() if feature.kind == "video"]
    size = int(info.get("chunks_size", 1000))
    entries = []
    for said in _lines(meta / "episodes.jsonl", "episode_index", "length"):
        number = int(said["episode_index"])
        place = {"episode_chunk": number // size, "episode_index": number}
        videos = {
            camera: Clip(inside(path, info.get("video_path"), **place, video_key=camera), 0.0) for camera in cameras
        }
        data = inside(path, info.get("data_path"), **place)
        entries.append(Entry(number, int(said["length"]), tuple(said.get("tasks") or ()), data, videos))
    entries.sort(key=lambda entry: entry.number)
    has_stats = any((meta / name).is_file() for name in ("stats.json", "episodes_stats.jsonl"))
    return Layout(path, info, float(info["fps"]), features, tasks, entries, has_stats)


def _lines(file: Path, *keys: str) -> list[dict[str, Any]]:
    lines = read_lines(file)
    for number, line in enumerate(lines, 1):
        if missing := [key for key in keys if key not in line]:
            raise DataError(f"{file}, line {number}", expected=", ".join(missing), got=f"{sorted(line)}", hint=REPAIR)
    return lines
