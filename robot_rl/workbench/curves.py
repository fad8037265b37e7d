"""Env steps until success passes a level: `robot-rl curves RUN... --levels 0.8,0.95` for runs of `online` and `baseline`.

A row is a method with its reward, a column a level, an entry the env steps of every training seed in their order. A run
that never arrives is censored: "> 200704 (.42)" names its last env step and its best measurement. A measurement is what
the run itself logged: `online` the batch that it trained on (mode eta1, with sampling noise), `baseline` its evaluation
without noise.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.errors import DataError
from robot_rl.runs.directory import write_json
from robot_rl.runs.provenance import origin
from robot_rl.workbench.columns import as_columns

METRICS = ("online/success_once", "baseline/success_once_deterministic")


@dataclass(frozen=True)
class Curve:
    """Success over env steps of one run.

    Attributes:
        method: its name and reward.
        seed: of training.
        steps, success: one entry a measurement, in order.
    """

    method: tuple[str, str]
    seed: int
    steps: tuple[int, ...]
    success: tuple[float, ...]

    def first_step(self, level: float) -> int | None:
        """Env steps at the first measurement of at least `level`; None when there is none (censored)."""
        return next((step for step, value in zip(self.steps, self.success, strict=True) if value >= level), None)


def main(words: Sequence[str]) -> int:
    """Print the table; with --output also write it as JSON for `robot-rl results`.

    Raises:
        DataError: a folder that is no such run, or without measurements.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of `online` or `baseline`")
    parser.add_argument("--levels", default="0.8,0.95", help="of success (%(default)s)")
    parser.add_argument("--title", default="Env steps until success passes a level")
    parser.add_argument("--note", default="", help="what a reader should know")
    parser.add_argument("--output", type=Path, help="JSON file")
    asked = parser.parse_args(list(words))
    levels = [float(word) for word in asked.levels.split(",")]
    curves = [read_curve(run) for run in asked.runs]
    rows = table(curves, levels)
    print(as_columns([list(rows[0]), *([str(value) for value in row.values()] for row in rows)]))
    if asked.output is not None:
        seeds = "training " + ", ".join(map(str, sorted({curve.seed for curve in curves})))
        facts = origin(f"robot-rl curves {' '.join(map(str, asked.runs))} --levels {asked.levels}", seeds=seeds)
        write_json(asked.output, {"title": asked.title, "note": asked.note, **facts, "rows": rows})
    return 0


def read_curve(run: Path) -> Curve:
    """The curve that a run logged.

    Raises:
        DataError: no metrics or no success in them.
    """
    metrics, config = run / "metrics.jsonl", run / "config.yaml"
    if not metrics.is_file() or not config.is_file():
        raise DataError(
            str(run), expected="a run of online or baseline", got="no metrics.jsonl and config.yaml",
            hint="Give the folder that the command printed as its run.",
        )  # fmt: skip
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    key = next((name for name in METRICS if any(name in line for line in lines)), None)
    if key is None:
        raise DataError(
            str(metrics), expected=f"one of {', '.join(METRICS)}", got="neither", hint="Is the run of another stage?"
        )
    points = [(int(line["step"]), float(line[key])) for line in lines if key in line]
    steps, success = zip(*points, strict=True)
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(OmegaConf.load(config))
    return Curve((_method(plain), str(plain["env"].get("reward_mode", "sparse"))), int(plain["seed"]), steps, success)


def _method(config: Mapping[str, Any]) -> str:
    target = str(config.get("algo", {}).get("_target_", ""))
    return target.removeprefix("robot_rl.policies.") or "online (ours)"


def table(curves: Sequence[Curve], levels: Sequence[float]) -> list[dict[str, Any]]:
    """One row a method: env steps of each seed, in the order of the seeds."""
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.method].append(curve)
    rows = []
    for (method, reward), members in sorted(groups.items()):
        members.sort(key=lambda curve: curve.seed)
        row: dict[str, Any] = {"method": method, "reward": reward, "seeds trained": len(members)}
        row |= {f"steps to {level:.0%}": ", ".join(_entry(curve, level) for curve in members) for level in levels}
        row["last success"] = ", ".join(f"{curve.success[-1]:.2f}" for curve in members)
        rows.append(row)
    return rows


def _entry(curve: Curve, level: float) -> str:
    step = curve.first_step(level)
    return f"{step}" if step is not None else f"> {curve.steps[-1]} ({max(curve.success):.2f})"
