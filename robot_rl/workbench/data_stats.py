"""`robot-rl data stats PATH`: per key and element the range, mean, spread and quantiles; lengths, success, sources."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.element_names import names_of, units_of
from robot_rl.data.element_statistics import ElementStatistics, Summary
from robot_rl.data.episode_stream import whole_episodes
from robot_rl.data.quality_values import spread_findings
from robot_rl.data.store import EpisodeStore
from robot_rl.runs.progress import Progress
from robot_rl.specs import ArraySpec
from robot_rl.types import Source
from robot_rl.workbench.columns import as_columns

_NUMBERS = ("low", "high", "mean", "std", "q01", "q50", "q99")
# Larger arrays (point clouds) would fill the screen; images are shown by channel.
_MOST_ELEMENTS = 256


def main(words: Sequence[str]) -> int:
    """Run it; returns the exit code.

    Args:
        words: "stats" and what stands behind it.

    Raises:
        DataError: for an episode that can't be read.
    """
    parser = argparse.ArgumentParser(prog="robot-rl data stats", description=__doc__, allow_abbrev=False)
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(list(words[1:]))
    with EpisodeStore.open(options.path, mode="r") as store:
        facts = dataset_statistics(store)
    print(json.dumps(facts) if options.json else _text(facts))
    return 0


def dataset_statistics(store: EpisodeStore) -> dict[str, Any]:
    """Everything that the command says, JSON types.

    Raises:
        DataError: for an episode that can't be read.
    """
    arrays = {"action": store.spec.action, **store.spec.observation}
    small = {key: array for key, array in arrays.items() if len(array.shape) == 3 or array.size <= _MOST_ELEMENTS}
    gathered = {key: ElementStatistics(array) for key, array in small.items()}
    steps_by_source, rewards = Counter[int](), ElementStatistics(ArraySpec("reward", (1,)))
    with Progress("stats", total=len(store)) as progress:
        for _, episode in whole_episodes(store):
            for key, statistics in gathered.items():
                statistics.add(episode.action if key == "action" else episode.observation[key])
            codes, counts = np.unique(episode.source, return_counts=True)
            steps_by_source.update({int(code): int(count) for code, count in zip(codes, counts, strict=True)})
            rewards.add(episode.reward[:, None])
            progress.advance(1)
    lengths, total = store.lengths, max(int(store.lengths.sum()), 1)
    return {
        "episodes": len(store),
        "steps": int(lengths.sum()),
        "success_once": int(store.success.sum()),
        "lengths": {name: float(f(lengths)) if len(store) else None for name, f in
                    (("min", np.min), ("median", np.median), ("mean", np.mean), ("max", np.max))},
        "sources": {Source(code).name: count / total for code, count in sorted(steps_by_source.items())},
        "left_out": sorted(arrays.keys() - small.keys()),
        "reward": _json(rewards.summary(), ArraySpec("reward", (1,), meanings=("reward",)), key="reward"),
        "keys": {key: _json(gathered[key].summary(), array, key=key) for key, array in small.items()},
    }  # fmt: skip


def _json(summary: Summary, array: ArraySpec, *, key: str) -> dict[str, Any]:
    is_image = len(array.shape) == 3
    channels = array.shape[-1] if is_image else array.size
    names = [f"channel {i}" for i in range(channels)] if is_image else list(names_of(array))
    units = ["0..255"] * channels if is_image else list(units_of(array))
    numbers: dict[str, Any] = {
        name: [None if not np.isfinite(x) else float(x) for x in getattr(summary, name)] for name in _NUMBERS
    }
    found = [] if is_image else list(spread_findings(summary, key=key, array=array))
    return {
        "names": names,
        "units": units,
        "rows": summary.rows,
        "quantile_rows": summary.kept,
        "constant": [i for i in range(channels) if summary.rows and summary.low[i] == summary.high[i]],
        "near_constant": [finding.place.element for finding in found if finding.check == "near_constant"],
        **numbers,
    }


def _text(facts: dict[str, Any]) -> str:
    lengths, sources = facts["lengths"], facts["sources"]
    lines = [
        f"{facts['episodes']} episodes, {facts['steps']} steps, {facts['success_once']} with success",
        "lengths: " + ", ".join(f"{name} {value:g}" for name, value in lengths.items() if value is not None),
        "steps by source: " + ", ".join(f"{name} {share:.1%}" for name, share in sources.items()),
    ]
    for key, table in facts["keys"].items():
        rows = [["element", "unit", "min", "max", "mean", "std", "q01", "q50", "q99", ""]]
        for i, name in enumerate(table["names"]):
            remark = "constant" if i in table["constant"] else "near-constant" if i in table["near_constant"] else ""
            numbers = ["" if table[n][i] is None else f"{table[n][i]:.4g}" for n in _NUMBERS]
            rows.append([f"{i} {name}", table["units"][i], *numbers, remark])
        sampled = "" if table["rows"] == table["quantile_rows"] else f", quantiles from {table['quantile_rows']}"
        lines += ["", f"{key} ({table['rows']} rows{sampled})", as_columns(rows)]
    if facts["left_out"]:
        lines.append(f"\nleft out (more than {_MOST_ELEMENTS} elements): {', '.join(facts['left_out'])}")
    return "\n".join(lines)
