"""Writes a store as a LeRobot dataset v3.0, which LeRobot's own loader and its training script read as it is.

proprio -> observation.state, state -> observation.environment_state, points -> observation.points, image/<camera> ->
observation.images.<camera>. What LeRobot has no place for goes into meta/robot_rl.json and meta/robot_rl (lerobot_sidecar.py),
so that an import gives back the same episodes: numbers bit by bit, images too with images="png", else as the codec left them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.episode_stream import whole_episodes
from robot_rl.data.formats import lerobot_sidecar as sidecar
from robot_rl.data.formats.exporting import appears_whole, card_for, checksum, require_exportable
from robot_rl.data.formats.lerobot_stats import Statistics
from robot_rl.data.formats.lerobot_tables import (
    CHUNKS_SIZE,
    DATA_PATH,
    VIDEO_PATH,
    DataFiles,
    VideoFiles,
    pack_png,
    write_episodes,
    write_tasks,
)
from robot_rl.data.formats.lerobot_verify import verify
from robot_rl.data.formats.lerobot_video import video_info
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import size_on_disk
from robot_rl.errors import DataError
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Episode

_NAMES = {"proprio": "observation.state", "state": "observation.environment_state", "points": "observation.points"}
_INT = ("frame_index", "episode_index", "index", "task_index")
IMAGES = ("video", "png")
_MB = 1024**2


def write_lerobot(
    store: EpisodeStore,
    target: Path,
    *,
    on_episode: Callable[[int, int], None] | None = None,
    images: str = "video",
    data_file_mb: float = 100,
    video_file_mb: float = 200,
) -> dict[str, Any]:
    """Write every episode, read the dataset back against the store, and rename it to `target`: all or nothing.

    Args:
        store: to write.
        target: the folder of the dataset.
        on_episode: called with (episodes done, episodes in all).
        images: "video" (H.264, GOP 2, yuv420p; at least 30 dB PSNR or it is refused) or "png" (in the parquet files, exact).
        data_file_mb: a parquet file ends before it grows beyond this.
        video_file_mb: a video ends with the episode that makes it larger.

    Returns:
        Facts for the report: path, episodes, steps, bytes, keys, images, tasks, data_files, video_files, psnr_db, notes.

    Raises:
        DataError: something is at `target`, the store is empty or can't come back, an image is lost to the codec, full disk.
    """
    _check_request(store, images)
    names = {key: lerobot_name(key) for key in store.spec.observation}
    with appears_whole(target, what="dataset") as unfinished:
        unfinished.mkdir(parents=True)
        _Export(store, unfinished, names, images, (float(data_file_mb), float(video_file_mb))).run(on_episode)
        worst = verify(store, unfinished, card_of(store.spec, names))
        size = size_on_disk(unfinished)
        counts = {kind: len(list(unfinished.rglob(f"{kind}/**/*.*"))) for kind in ("data", "videos")}
    return {
        "path": str(target),
        "episodes": len(store),
        "steps": int(store.lengths.sum()),
        "bytes": size,
        "keys": names,
        "images": images,
        "data_files": counts["data"],
        "video_files": counts["videos"],
        "psnr_db": None if np.isinf(worst) else round(worst, 2),
        "notes": _notes(store.spec),
    }


def lerobot_name(key: str) -> str:
    """Feature of an observation of ours; LeRobot allows no "/" in it."""
    return _NAMES.get(key, f"observation.images.{key.removeprefix('image/').replace('/', '__')}")


def card_of(spec: EnvSpec, names: Mapping[str, str]) -> SpecCard:
    """The card with which `spec` comes back from the dataset."""
    return card_for(
        spec, names, action="action", success="next.success", reward="next.reward", time=sidecar.TIME,
        source=sidecar.SOURCE,
    )  # fmt: skip


class _Export:
    """One export on its way: the open files, and what meta says at the end."""

    def __init__(
        self, store: EpisodeStore, path: Path, names: Mapping[str, str], images: str, limits_mb: tuple[float, float]
    ) -> None:
        self._store, self._path, self._names, self._images, self._limits = store, path, names, images, limits_mb
        self._cameras = [key for key in names if key.startswith("image/")]
        self._fps = float(store.spec.control_hz)
        self._data = DataFiles(path, limits_mb[0] * _MB)
        self._videos = {
            key: VideoFiles(
                path, names[key], fps=self._fps, shape=store.spec.observation[key].shape, limit_bytes=limits_mb[1] * _MB
            )
            for key in self._cameras
            if images == "video"
        }
        self._statistics, self._tasks, self._steps = Statistics(), dict[str, int](), 0

    def run(self, on_episode: Callable[[int, int], None] | None) -> None:
        """Write everything below the folder."""
        rows, said = [], []
        (self._path / "meta").mkdir()
        try:
            for number, episode in whole_episodes(self._store):
                row, about = self._episode(number, episode)
                rows.append(row)
                said.append(about)
                if on_episode is not None:
                    on_episode(number + 1, len(self._store))
            for video in self._videos.values():
                video.close()
        finally:
            self._data.close()
            for video in self._videos.values():
                video.abort()
        write_episodes(self._path, rows)
        write_tasks(self._path, list(self._tasks))
        (self._path / "meta" / "stats.json").write_text(json.dumps(self._statistics.result(), indent=4))
        (self._path / "meta" / "info.json").write_text(json.dumps(self._info(), indent=4))
        sidecar.write_sidecar(self._path, {
            "card": card_of(self._store.spec, self._names).to_json(), "spec": self._store.spec.to_json(),
            "metadata": self._store.metadata, "content_hash": self._store.content_hash(), "images": self._images,
            "episodes": said,
        })  # fmt: skip

    def _episode(self, number: int, episode: Episode) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write one episode; its row of meta/episodes, and what the sidecar says of it."""
        steps, task = len(episode), str(episode.metadata.get("instruction") or self._store.spec.env_id)
        ending = np.arange(steps) == steps - 1
        numbers = {self._names[key]: array for key, array in episode.observation.items() if key not in self._cameras}
        numbers |= {"action": episode.action, "next.reward": episode.reward, "next.success": episode.success}
        numbers |= {"next.done": ending, "next.truncated": ending & episode.truncated}
        frame = np.arange(steps, dtype=np.int64)
        index: dict[str, np.ndarray] = {
            "timestamp": (frame / self._fps).astype(np.float32), "frame_index": frame, "episode_index": frame * 0 + number,
            "index": frame + self._steps, "task_index": frame * 0 + self._tasks.setdefault(task, len(self._tasks)),
        }  # fmt: skip
        pictures = {self._names[key]: episode.observation[key] for key in self._cameras}
        packed: dict[str, Any] = (
            {name: pack_png(array) for name, array in pictures.items()} if self._images == "png" else {}
        )
        row: dict[str, Any] = {
            "episode_index": number, "tasks": [task], "length": steps, "dataset_from_index": self._steps,
            "dataset_to_index": self._steps + steps, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            **self._data.add(packed | numbers | index),
        }  # fmt: skip
        for key, video in self._videos.items():
            row |= video.add(episode.observation[key])
        kept = {name: array for name, array in numbers.items() if name != "observation.points"}
        for name, values in self._statistics.add({**kept, **pictures, **index}).items():
            row |= {f"stats/{name}/{key}": value for key, value in values.items()}
        self._steps += steps
        sidecar.write_episode_file(self._path, number, {
            "source": episode.source, "time": episode.time,
            **{f"final/{self._names[key]}": array for key, array in episode.final_observation.items()},
        })  # fmt: skip
        return row, {
            "steps": steps, "terminated": episode.terminated, "truncated": episode.truncated,
            "metadata": dict(episode.metadata), "crc32": self._checksums(episode),
        }  # fmt: skip

    def _checksums(self, episode: Episode) -> dict[str, int]:
        rows = {
            self._names[key]: np.concatenate([array, np.asarray(episode.final_observation[key])[None]])
            for key, array in episode.observation.items()
            if key not in self._videos
        }
        rows |= {
            "action": episode.action,
            "next.reward": episode.reward[:, None],
            "next.success": episode.success[:, None],
        }
        rows |= {sidecar.SOURCE: episode.source, sidecar.TIME: episode.time}
        return {name: checksum(array) for name, array in rows.items()}

    def _info(self) -> dict[str, Any]:
        spec, fps = self._store.spec, int(self._fps) if self._fps.is_integer() else self._fps
        one = {"dtype": "int64", "shape": [1], "names": None}
        features: dict[str, Any] = {}
        for key, array in spec.observation.items():
            if key in self._cameras:
                kind = "video" if self._images == "video" else "image"
                named = ["height", "width", "channels"]
                features[self._names[key]] = {"dtype": kind, "shape": list(array.shape), "names": named}
                if kind == "video":
                    features[self._names[key]]["info"] = video_info(array.shape, fps)
            else:
                features[self._names[key]] = _feature(array)
        features |= {"action": _feature(spec.action), "next.reward": {**one, "dtype": "float32"}}
        features |= {f"next.{name}": {**one, "dtype": "bool"} for name in ("success", "done", "truncated")}
        features |= {"timestamp": {**one, "dtype": "float32"}} | dict.fromkeys(_INT, one)
        return {
            "codebase_version": "v3.0", "robot_type": spec.robot, "total_episodes": len(self._store),
            "total_frames": self._steps, "total_tasks": len(self._tasks), "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": max(1, round(self._limits[0])), "video_files_size_in_mb": max(1, round(self._limits[1])),
            "fps": fps, "splits": {"train": f"0:{len(self._store)}"}, "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None, "features": features,
        }  # fmt: skip


def _feature(array: ArraySpec) -> dict[str, Any]:
    """Of numbers; every element gets a name of its own."""
    names = list(array.meanings) if len(array.meanings) == array.size else []
    if len(set(names)) != array.size:
        names = [f"{array.name}_{element}" for element in range(array.size)]
    return {"dtype": array.dtype, "shape": list(array.shape), "names": names if len(array.shape) == 1 else None}


def _check_request(store: EpisodeStore, images: str) -> None:
    if images not in IMAGES:
        raise DataError("LeRobot, images", expected=" or ".join(IMAGES), got=repr(images), hint="Correct it.")
    require_exportable(store)
    for key, array in store.spec.observation.items():
        if key.startswith("image/") and (array.dtype != "uint8" or len(array.shape) != 3 or array.shape[-1] != 3):
            raise DataError(
                f"{store.path}, {key}", expected="a uint8 RGB camera (H, W, 3)", got=f"{array.dtype} {array.shape}",
                hint="LeRobot 0.4 has no other cameras.",
            )  # fmt: skip


def _notes(spec: EnvSpec) -> list[str]:
    notes = ["next.done is set at the end of every episode, next.truncated where the time limit ended it."]
    if spec.control_hz != int(spec.control_hz):
        notes.append(f"fps is {spec.control_hz:g}: parts of LeRobot want a whole number.")
    if "points" in spec.observation:
        notes.append("observation.points has no statistics, and no policy of LeRobot 0.4 reads it.")
    return notes
