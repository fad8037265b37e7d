"""Reads LeRobot datasets v2.0, v2.1 and v3.0, and our exports to them.

Keys are the features of meta/info.json: "observation.state", "observation.images.front", "action", "next.reward". Row t of
an observation is what action t answered to; there is no observation behind the last action, except in our own exports.
Everything that meta says is compared with every row and file when the source opens; arrays are read episode by episode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats import lerobot_sidecar as sidecar
from robot_rl.data.formats.exporting import require_checksum
from robot_rl.data.formats.hdf5_source import decode_image
from robot_rl.data.formats.keyed import SourceEpisode
from robot_rl.data.formats.lerobot_columns import Span, read_column, read_pictures, scan
from robot_rl.data.formats.lerobot_layout import REPAIR, Feature, Layout, check_entries, read_info
from robot_rl.data.formats.lerobot_v2 import read_v2
from robot_rl.data.formats.lerobot_v3 import read_v3
from robot_rl.data.formats.lerobot_video import check_videos, read_clip
from robot_rl.errors import DataError

_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_CAMERA = "observation.images."


class LeRobotSource:
    """A KeyedSource of one dataset folder.

    Args:
        path: the folder with meta, data and videos.
        tolerance_s: how far a timestamp may be from frame_index / fps.

    Raises:
        DataError: damaged or foreign; names episode, camera and frame.
    """

    format = "lerobot"

    def __init__(self, path: Path, *, tolerance_s: float = 1e-4) -> None:
        if not 0 < tolerance_s < math.inf:
            raise DataError(
                "tolerance_s", expected="seconds above 0", got=f"{tolerance_s}", hint="The default is 1e-4."
            )
        self.path, self._tolerance_s = path, float(tolerance_s)
        info = read_info(path)
        layout = read_v3(path, info) if info["codebase_version"] == "v3.0" else read_v2(path, info)
        check_entries(layout)
        self._layout, self._spans = layout, scan(layout, self._tolerance_s)
        video_notes = check_videos(layout)
        self._sidecar = sidecar.read_sidecar(path, [entry.steps for entry in layout.entries])
        self.keys = {name: _row(feature) for name, feature in layout.features.items() if _is_array(feature)}
        if self._sidecar is not None:
            self.keys |= {sidecar.SOURCE: ((), np.dtype("uint8")), sidecar.TIME: ((), np.dtype("float64"))}
        self.episodes = [self._episode(number) for number in range(len(layout.entries))]
        self.declared: Mapping[str, Any] = declared_card(layout) if self._sidecar is None else {**self._sidecar["card"]}
        self.facts: Mapping[str, Any] = {
            **{key: info[key] for key in ("codebase_version", "fps", "robot_type", "splits") if key in info},
            "tasks": {str(number): text for number, text in sorted(layout.tasks.items())},
            "features": dict(info["features"]),
        }
        if self._sidecar is not None:
            self.facts = {**self.facts, "exported": {k: self._sidecar[k] for k in ("metadata", "content_hash")}}
        self.notes = [*self._notes(), *video_notes]

    def rows(self, index: int, key: str) -> np.ndarray:
        """Rows of feature `key`: (steps, ...), and one more of an observation in our own exports. Raises DataError."""
        where = f"{self.path}, episode {index}, {key}"
        if key not in self.keys:
            raise DataError(where, expected=f"one of {', '.join(self.keys)}", got=repr(key), hint="Correct the name.")
        if key in (sidecar.SOURCE, sidecar.TIME):
            rows = sidecar.read_episode_array(self.path, index, key.partition("/")[2])
        else:
            rows = self._frames(index, self._layout.features[key], where)
            if self._sidecar is not None and key.startswith("observation."):
                final = sidecar.read_episode_array(self.path, index, f"final/{key}")
                rows = np.concatenate([rows, final.reshape(1, *rows.shape[1:]).astype(rows.dtype, copy=False)])
        said = self._sidecar["episodes"][index]["crc32"] if self._sidecar is not None else {}
        require_checksum(rows, said.get(key), where=where, hint=sidecar.CHANGED)
        return rows

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _frames(self, index: int, feature: Feature, where: str) -> np.ndarray:
        entry, begin = self._layout.entries[index], self._spans[index].begin
        if not feature.is_camera:
            return read_column(entry.data, feature, begin, begin + entry.steps, where=where)
        images: np.ndarray = np.empty((entry.steps, *feature.shape), np.uint8)
        if feature.kind == "video":
            clip, fps = entry.videos[feature.name], self._layout.fps
            read_clip(clip.path, images, start_s=clip.start_s, fps=fps, tolerance_s=self._tolerance_s, where=where)
            return images
        for row, packed in read_pictures(entry.data, feature.name, begin, begin + entry.steps, where=where):
            image = decode_image(np.frombuffer(packed, np.uint8), where=f"{where}, frame {row}")
            if image.shape != feature.shape:
                raise DataError(
                    f"{where}, frame {row}", expected=f"shape {feature.shape}", got=f"{image.shape}", hint=REPAIR
                )
            images[row] = image
        return images

    def _episode(self, number: int) -> SourceEpisode:
        entry, span = self._layout.entries[number], self._spans[number]
        name = f"episode {number}"
        if self._sidecar is not None:
            said = self._sidecar["episodes"][number]
            return SourceEpisode(name, entry.steps, True, said["terminated"], said["truncated"], said["metadata"], True)
        texts = [self._layout.tasks[task] for task in span.tasks]
        metadata: dict[str, Any] = {"instruction": texts[0]}
        if len(texts) > 1:
            metadata["instructions"] = texts
        return SourceEpisode(name, entry.steps, False, _terminated(span), span.truncated, metadata)

    def _notes(self) -> Iterator[str]:
        layout = self._layout
        if not layout.has_stats:
            yield "meta has no statistics; none are needed, they are computed from the data."
        unnamed = [n for n in ("observation.state", "action") if n in layout.features and not layout.features[n].names]
        if unnamed:
            yield f"No names for the elements of {' and '.join(unnamed)}: write their meanings into the card."
        odd = [name for name, feature in layout.features.items() if feature.kind == "string"]
        if odd:
            yield f"Texts are not imported: {', '.join(odd)}."
        several = [str(number) for number, span in enumerate(self._spans) if len(span.tasks) > 1]
        if several:
            yield f"Episodes with more than one task, of which the first became the instruction: {', '.join(several[:10])}."
        worst = max((span.worst_s for span in self._spans), default=0.0)
        if worst > 1e-3:
            yield f"Timestamps are up to {worst:.3g} s off the grid of {layout.fps:g} Hz; the grid was taken."


def declared_card(layout: Layout) -> dict[str, Any]:
    """What the files say of a spec card. Units they never say."""
    features = layout.features
    card: dict[str, Any] = {"control_hz": layout.fps}
    if layout.info.get("robot_type"):
        card["robot"] = str(layout.info["robot_type"])
    state = features.get("observation.state")
    if state is not None:
        # Names of LeRobot's own robots: shoulder_pan.pos
        joints = [name.removesuffix(".pos") for name in state.names if name.endswith(".pos") and "gripper" not in name]
        card |= {"joint_names": joints} if joints else {}
    if "next.success" in features:
        card["success"] = "next.success"
    if "next.reward" in features:
        card["reward_key"] = "next.reward"
    if "action" in features:
        card["action"] = _part(features["action"])
    observation = {}
    for ours, theirs in (("proprio", "observation.state"), ("state", "observation.environment_state")):
        if theirs in features:
            observation[ours] = _part(features[theirs])
    for name, feature in features.items():
        if feature.is_camera:
            camera = name.removeprefix(_CAMERA).removeprefix("observation.")
            observation[f"image/{camera}"] = {"keys": [name], "units": ["1"], "meanings": ["RGB"]}
    return card | ({"observation": observation} if "proprio" in observation else {})


def _part(feature: Feature) -> dict[str, Any]:
    return {"keys": [feature.name], "units": ["???"], "meanings": list(feature.names) or ["???"]}


def _is_array(feature: Feature) -> bool:
    return feature.kind != "string" and feature.name not in _BOOKKEEPING


def _row(feature: Feature) -> tuple[tuple[int, ...], np.dtype]:
    return feature.shape, np.dtype("uint8" if feature.is_camera else feature.kind)


def _terminated(span: Span) -> bool | None:
    """Only with next.truncated beside it does next.done say that the task itself ended."""
    if span.done is None or span.truncated is None:
        return None
    return span.done and not span.truncated
