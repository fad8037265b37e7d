"""Success against the strength of a domain shift: `robot-rl robustness POLICY --env push_cube --camera-deg 0,2,5,10`.

Plays the same seeds with every strength of every shift that is named (camera pose, light, colour; what each one is:
robot_rl/algorithms/view_shift.py), one shift at a time and each against strength 0. Every strength is an `evaluate` run of
its own below --output, with the shift in its protocol; a study that was stopped goes on where it was. The directions of a
shift depend on the seed of the episode alone: a stronger one is the same one, further.
Writes robustness.json and robustness.png (Wilson 95 %) there. Words with `=` are keys of `evaluate`.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.algorithms.comparison import count_pairs, mcnemar_p, paired_interval
from robot_rl.algorithms.statistics import proportion
from robot_rl.algorithms.view_shift import STRENGTHS, with_strength
from robot_rl.errors import ConfigError
from robot_rl.rollout import read_records
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import write_json
from robot_rl.runs.kept_run import finished_run
from robot_rl.runs.progress import Progress
from robot_rl.runs.provenance import origin
from robot_rl.stages import evaluate
from robot_rl.stages.evaluate import EvaluateConfig
from robot_rl.workbench.columns import as_columns

log = logging.getLogger(__name__)

SHOWN = ("shift", "strength", "success once", "low", "high", "difference to 0", "p_value")
UNITS = {
    "camera_deg": "cameras turned, degrees", "camera_m": "cameras moved, m", "light_stops": "light, stops",
    "light_deg": "lights turned, degrees", "hue_deg": "hue turned, degrees", "brightness": "brightness, share",
}  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Play, write the JSON and the picture, print the table; 0 whatever the success is.

    Raises:
        ConfigError: wrong words, or no shift.
        RobotRlError: as `evaluate`.
    """
    asked = _parser().parse_intermixed_args(list(words))
    policies = [word for word in asked.words if "=" not in word]
    wanted = {name: _strengths(name, getattr(asked, name)) for name in STRENGTHS if getattr(asked, name)}
    if len(policies) > 1 or not wanted:
        raise ConfigError(
            "robustness", expected="at most one policy (none: an expert=...), and at least one shift",
            got=f"{policies} and {', '.join(wanted) or 'no shift'}", hint="E.g. --camera-deg 0,2,5,10 --hue-deg 0,30,60.",
        )  # fmt: skip
    _refuse_own(asked.words)
    overrides = [f"env={asked.env}", f"num_envs={asked.num_envs}", *(word for word in asked.words if "=" in word)]
    config = load_config(EvaluateConfig, overrides, name="evaluate")
    config = replace(
        config, policy=policies[0] if policies else config.policy, num_episodes=asked.episodes,
        first_seed=asked.first_seed, run_root=str(asked.output),
    )  # fmt: skip
    asked.output.mkdir(parents=True, exist_ok=True)
    rows = study(config, wanted, shift_seed=asked.shift_seed, words=words)
    title = f"Success against domain shift on {asked.env}: {asked.title or Path(config.policy).name or 'expert'}"
    first, last = asked.first_seed, asked.first_seed + asked.episodes - 1
    facts = origin(f"robot-rl robustness {shlex.join(words)}", seeds=f"{first}-{last}")
    note = "The same seeds at every strength; one shift at a time; p-value: exact McNemar against strength 0."
    write_json(asked.output / "robustness.json", {"title": title, "note": note, "rows": rows, **facts})
    draw(rows, asked.output / "robustness.png", title)
    print(as_columns([list(SHOWN), *([str(row[name]) for name in SHOWN] for row in rows)]))
    print(f"wrote {asked.output / 'robustness.json'} and {asked.output / 'robustness.png'}")
    return 0


def _refuse_own(words: Sequence[str]) -> None:
    """Raise ConfigError for keys of `evaluate` that this command sets itself."""
    options = {
        "num_episodes": "--episodes", "first_seed": "--first-seed", "run_root": "--output",
        "view_shift": "an option for each shift, e.g. --hue-deg", "env.view_shift": "an option for each shift, e.g. --hue-deg",
    }  # fmt: skip
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        for own, instead in options.items():
            if "=" in word and (key == own or key.startswith(f"{own}.")):
                raise ConfigError(
                    f"robustness {key}", expected=instead, got=word, hint="The study sets this key of evaluate itself."
                )


def study(
    config: EvaluateConfig, wanted: Mapping[str, Sequence[float]], *, shift_seed: int, words: Sequence[str]
) -> list[dict[str, Any]]:
    """Play every strength and compare it with strength 0, which is played once for all shifts.

    Args:
        config: of the evaluation without a shift; its run_root gets a folder a strength.
        wanted: strengths of each shift, by name.
        shift_seed: of the directions.
        words: of the command line, for the runs.

    Returns:
        A row a shift and strength, with 0 in front: k, n, Wilson's interval, paired difference to 0 and its p-value.

    Raises:
        RobotRlError: as `evaluate`.
    """
    strengths = {name: sorted({0.0, *values}) for name, values in wanted.items()}
    total = 1 + sum(len(values) - 1 for values in strengths.values())
    rows: list[dict[str, Any]] = []
    with Progress("robustness", total=total) as progress:
        plain = _played(config, "0", words)
        progress.advance(1, f"0: {sum(plain)}/{len(plain)}")
        for name, values in strengths.items():
            for strength in values:
                shifted = replace(config, view_shift=with_strength(name, strength, seed=shift_seed))
                wins = plain if strength == 0 else _played(shifted, f"{name}_{strength:g}", words)
                rows.append(_row(name, strength, wins, plain))
                progress.advance(int(strength > 0), f"{name} {strength:g}: {sum(wins)}/{len(wins)}")
    return rows


def _row(name: str, strength: float, wins: Sequence[bool], plain: Sequence[bool]) -> dict[str, Any]:
    pairs, found = count_pairs(plain, wins), proportion(sum(wins), len(wins))
    gap = paired_interval(pairs["only_a"], pairs["only_b"], n=len(wins))
    text = f"{100 * gap.difference:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    return {
        "shift": name, "strength": strength, "k": found.k, "n": found.n, "success once": f"{found.k}/{found.n}",
        "rate": found.rate, "low": round(found.low, 4), "high": round(found.high, 4),
        "difference to 0": "-" if strength == 0 else text,
        "p_value": "-" if strength == 0 else float(f"{mcnemar_p(pairs['only_a'], pairs['only_b']):.3g}"),
    }  # fmt: skip


def _played(config: EvaluateConfig, name: str, words: Sequence[str]) -> list[bool]:
    """success_once of the seeds, in their order, from a run that is made, continued or there already."""
    run = finished_run(
        Path(config.run_root) / name, "evaluate", evaluate.run, config, task=name,
        command=["robot-rl", "robustness", *words], hint="Give another --output.",
    )  # fmt: skip
    records = sorted(read_records(run.path / "episodes.jsonl"), key=lambda record: record.seed)
    return [record.success_once for record in records]


def draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Success over strength with Wilson intervals, a panel a shift."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["shift"] for row in rows))
    figure = Figure(figsize=(1 + 3.2 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        of_shift = [row for row in rows if row["shift"] == name]
        rate, low, high = (np.array([row[key] for row in of_shift]) for key in ("rate", "low", "high"))
        spread = np.maximum([rate - low, high - rate], 0)
        axes.errorbar([row["strength"] for row in of_shift], rate, yerr=spread, fmt="o-", capsize=3)
        axes.set(xlabel=UNITS[name], ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"success once of {rows[0]['n']} (Wilson 95 %)")
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.savefig(path, dpi=110)


def _strengths(name: str, text: str) -> list[float]:
    option = f"--{name.replace('_', '-')}"
    try:
        values = [float(word) for word in text.split(",") if word]
    except ValueError as error:
        raise ConfigError(option, expected="numbers, e.g. 0,2,5,10", got=text, hint="Separate by commas.") from error
    for value in values:
        with_strength(name, value)
    if not any(values):
        raise ConfigError(option, expected="a strength above 0", got=text, hint="0 is always played.")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl robustness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="*", help="the policy (run, checkpoint, .onnx or ws://), and key=value of evaluate"
    )
    parser.add_argument("--env", required=True, help="configuration of env")
    for name in STRENGTHS:
        parser.add_argument(f"--{name.replace('_', '-')}", default="", metavar="S,S,...", help=UNITS[name])
    parser.add_argument("--episodes", type=int, default=50, help="seeds a strength (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--num-envs", type=int, default=1, help="side by side; changes no figure (%(default)s)")
    parser.add_argument("--shift-seed", type=int, default=0, help="of the directions (%(default)s)")
    parser.add_argument("--title", default="", help="in place of the policy's name")
    parser.add_argument("--output", type=Path, default=Path("robustness"), help="folder (%(default)s)")
    return parser
