"""`robot-rl data info PATH`: what a dataset holds; for a foreign one, what an import needs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.data.formats.maniskill_header import ManiSkillHeader, read_header
from robot_rl.data.formats.zarr_source import ZarrSource
from robot_rl.data.store import EpisodeStore
from robot_rl.data.store_attributes import SCHEMA
from robot_rl.workbench.data_import import card_template


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
    if path.suffix in (".h5", ".hdf5"):
        facts = _maniskill_info(read_header(path))
    else:
        source = ZarrSource(path)
        is_own = source.attributes().get("schema") == SCHEMA
        arrays = {name: source.array(f"data/{name}") for name in source.arrays("data")}
        source.close()
        facts = _store_info(path) if is_own else _foreign_info(path, arrays)
    if as_json:
        print(json.dumps(facts))
        return 0
    for key, value in facts.items():
        if key != "spec":
            print(f"{key}: {value}")
    return 0


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


def _foreign_info(path: Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": "diffusion_policy",
        "data": {name: f"{dtype} {shape}" for name, (shape, dtype) in arrays.items()},
        "import": f"robot-rl data import {path} datasets/{path.name.split('.')[0]}.zarr --format diffusion_policy --spec card.yaml",
        "card": f"\n{card_template(path)}",
    }
