"""`robot-rl data info PATH`: what a dataset holds; for a foreign one, what an import needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.data.formats.known import card_text, detect_format, open_source
from robot_rl.data.formats.maniskill_header import ManiSkillHeader, read_header
from robot_rl.data.formats.zarr_source import ZarrSource
from robot_rl.data.store import EpisodeStore
from robot_rl.data.store_attributes import SCHEMA


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "info" and what stands behind it.
    """
    parser = argparse.ArgumentParser(prog="robot-rl data info", description=__doc__, allow_abbrev=False)
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(words[1:]))
    return _info(options.path, as_json=options.json)


def _info(path: Path, *, as_json: bool) -> int:
    facts = _facts(path)
    if as_json:
        print(json.dumps(facts))
        return 0
    for key, value in facts.items():
        if key != "spec":
            print(f"{key}: {value}")
    return 0


def _facts(path: Path) -> dict[str, Any]:
    if (path / ".zattrs").is_file():
        zarr = ZarrSource(path)
        schema = zarr.attributes().get("schema")
        zarr.close()
        if schema == SCHEMA:
            return _store_info(path)
    name = detect_format(path)
    return _maniskill_info(read_header(path)) if name == "maniskill" else _foreign_info(path, name)


def _store_info(path: Path) -> dict[str, Any]:
    with EpisodeStore.open(path, mode="r") as store:
        spec, lengths = store.spec, store.lengths
        return {
            "format": "robot-rl",
            "task": spec.env_id,
            "robot": spec.robot,
            "episodes": len(store),
            "steps": int(lengths.sum()),
            "lengths": f"{lengths.min()}..{lengths.max()} of at most {spec.max_episode_steps}"
            if len(store)
            else "none",
            "success_once": int(store.success.sum()),
            "control_hz": spec.control_hz,
            "action": f"{spec.action.size}, {spec.action_semantics.control_mode}, {spec.action_semantics.kind.value}",
            "observation": {key: f"{array.dtype} {array.shape}" for key, array in spec.observation.items()},
            "content_hash": store.content_hash(),
            "metadata": store.metadata,
            "spec": spec.to_json(),
        }


def _maniskill_info(header: ManiSkillHeader) -> dict[str, Any]:
    return {
        "format": "maniskill",
        "task": header.env_id,
        "episodes": len(header.entries),
        "obs_mode": header.obs_mode,
        "control_mode": header.control_mode,
        "source_type": header.source_type,
        "max_episode_steps": header.max_episode_steps,
        "longest_steps": max((int(entry.get("elapsed_steps") or 0) for entry in header.entries.values()), default=0),
        "import": f"robot-rl data import {header.path} datasets/{header.path.stem}.zarr --format maniskill",
    }


def _foreign_info(path: Path, name: str) -> dict[str, Any]:
    source = open_source(name, path, {})
    try:
        return {
            "format": name,
            "episodes": len(source.episodes),
            "steps": sum(episode.steps for episode in source.episodes),
            "data": {key: f"{dtype} {shape}" for key, (shape, dtype) in source.keys.items()},
            "notes": list(source.notes),
            "import": f"robot-rl data import {path} datasets/{path.name.split('.')[0]}.zarr --format {name} --spec card.yaml",
            "card": f"\n{card_text(source)}",
        }
    finally:
        source.close()
