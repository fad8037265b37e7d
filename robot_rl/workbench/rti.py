"""Does RTI hold on this policy, and where? `robot-rl rti tune RUN --env pick_cube [env.key=value ...]`.

Plays the policy on the same seeds with its own sampler (the reference), with DDIM at fewer forwards, with RTI at several
levels and forwards (with and without the handling of two-valued elements, and from a start without noise), and with
one-step heads (`--one-step RUN`).
For each: success and its paired difference to the reference (Tango, 95 %), forwards and milliseconds a decision and an
executed action, distance of its chunks to those of the reference at the same observations and noise, smoothness, flips of
the gripper, and how much of an error of the start is left (contraction). The rule is fixed before anything is played: of
the RTI settings, whatever their start, with at most 3 forwards whose difference is above -5 points at 95 %, the one with
the most successes, and of equals the one with the fewest forwards. Where there is none, RUN/rti.json says so, and
`evaluate rti.level=...` warns.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.warm_start import UNMEASURED_JUMP
from robot_rl.arrays import Array, Float64
from robot_rl.errors import ConfigError
from robot_rl.runs.directory import write_json
from robot_rl.runs.progress import Progress
from robot_rl.runs.provenance import origin
from robot_rl.runs.rti_verdict import FILE, MARGIN, MOST_FORWARDS
from robot_rl.workbench.columns import as_columns
from robot_rl.workbench.judge_play import environment
from robot_rl.workbench.rti_settings import REFERENCE, Setting, reference_of, settings_beside
from robot_rl.workbench.rti_trial import Trial, distance, play, timed

SHOWN = (
    "setting", "success once", "difference to the reference", "forwards", "ms a decision", "ms an action",
    "distance", "jerk rms", "gripper flips", "contraction",
)  # fmt: skip

LOOKS = {
    "full": ("s", "black", "own sampler"),
    "ddim": ("o", "tab:blue", "other numbers of steps"),
    "rti": ("^", "tab:orange", "RTI"),
    "plain": ("v", "tab:red", "RTI, gripper not handled"),
    "clean": ("<", "tab:purple", "RTI, clean start"),
    "one": ("D", "tab:green", "one-step head"),
}


def main(words: Sequence[str]) -> int:
    """Measure, write RUN/rti.json (or --output) and its picture, and print the table; 0 also where RTI does not hold.

    Raises:
        ConfigError: wrong words.
        RobotRlError: a run that can't be used, or one that is no diffusion policy.
    """
    asked = _parser().parse_intermixed_args(list(words))
    torch.set_num_threads(asked.threads)
    paths = [word for word in asked.words if "=" not in word]
    if len(paths) != 1:
        raise ConfigError(
            "rti tune", expected="one run of a diffusion policy", got=str(paths), hint="Give its directory."
        )
    env = environment(asked.env, [word for word in asked.words if "=" in word])
    seeds = range(asked.first_seed, asked.first_seed + asked.episodes)
    document = study(paths[0], env, seeds, asked)
    facts = origin(f"robot-rl rti {shlex.join(words)}", seeds=f"{seeds[0]}-{seeds[-1]}")
    output = asked.output or Path(paths[0]) / FILE
    output.parent.mkdir(parents=True, exist_ok=True)
    title = f"RTI, fewer DDIM steps and one-step heads on {asked.env}: {asked.title or Path(paths[0]).name}"
    measured = {name: document[name] for name in ("rows", "chosen", "max_jump")}
    write_json(output, {"title": title, "note": document["verdict"]} | measured | facts)
    _draw(document["rows"], output.with_suffix(".png"), title)
    print(as_columns([list(SHOWN), *([_cell(row[name]) for name in SHOWN] for row in document["rows"])]))
    print(f"{document['verdict']}\nwrote {output} and {output.with_suffix('.png')}")
    return 0


def study(run: str, env: Mapping[str, Any], seeds: Sequence[int], asked: argparse.Namespace) -> dict[str, Any]:
    """Play, time and compare every setting.

    Args:
        run: of the policy.
        env: component.
        seeds: of the episodes.
        asked: levels, forwards, one_step, ddpm, max_jump and num_envs, see the options.

    Returns:
        {"rows", "chosen" (name of a setting, or None), "max_jump", "verdict" (text)}, JSON types.
    """
    reference = reference_of(run)
    first = play(reference, env, seeds, num_envs=asked.num_envs)
    max_jump = measured_jump(first.jumps) if asked.max_jump is None else asked.max_jump
    others = settings_beside(
        reference, levels=_numbers(asked.levels), forwards=_numbers(asked.forwards), one_step=asked.one_step,
        ddpm=asked.ddpm, max_jump=max_jump,
    )  # fmt: skip
    rows = [_row(reference, first, first, timed(reference, first), 0.0)]
    with Progress("rti", total=len(others)) as progress:
        for setting in others:
            trial = play(setting, env, seeds, num_envs=asked.num_envs)
            away = distance(reference, setting, env, seeds[: min(16, len(seeds))], num_envs=asked.num_envs)
            rows.append(_row(setting, trial, first, timed(setting, trial), away))
            progress.advance(1, f"{setting.name}: {rows[-1]['success once']}")
    chosen = choose(rows)
    return {"rows": rows, "chosen": chosen, "max_jump": max_jump, "verdict": _verdict(rows, chosen)}


def measured_jump(jumps: Float64[Array, " J"]) -> float:
    """What no longer is a jump: the 99th percentile of the policy's own, so one decision in a hundred goes back to full denoising.

    Args:
        jumps: largest change of an observed element between two decisions, normalised; all zero or none where nothing is
            watched (a policy of images or points alone), which gives the default of `rti.max_jump`.
    """
    return float(np.quantile(jumps, 0.99)) if np.any(jumps > 0) else UNMEASURED_JUMP


def choose(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The setting that the rule at the top of this module picks; None where RTI does not hold."""
    held = [
        row for row in rows
        if row["kind"] in ("rti", "plain", "clean") and row["warm forwards"] <= MOST_FORWARDS and row["low"] > -MARGIN
    ]  # fmt: skip
    best = max(held, key=lambda row: (row["k"], -row["warm forwards"]), default=None)
    return None if best is None else str(best["setting"])


def _verdict(rows: Sequence[Mapping[str, Any]], chosen: str | None) -> str:
    rule = (
        f"at most {MOST_FORWARDS} forwards, paired difference to `{REFERENCE}` above -{100 * MARGIN:g} points at 95 %"
    )
    if chosen is None:
        return f"No RTI setting holds here ({rule}). Use full denoising, fewer steps (denoising_steps=), or a one-step head."
    row = next(row for row in rows if row["setting"] == chosen)
    # Every RTI decision that is not warm is full, so DDIM with one forward more is no dearer in the mean.
    few = [r for r in rows if r["kind"] == "ddim" and r["warm forwards"] <= MOST_FORWARDS]
    best = max(few, key=lambda r: (r["k"], -r["warm forwards"]), default=None)
    beside = "" if best is None else f"; the best DDIM with as few: {best['success once']} ({best['setting']})"
    return f"RTI holds with {chosen} ({rule}): {row['success once']}{beside}."


def _row(setting: Setting, trial: Trial, reference: Trial, cost: Mapping[str, float], away: float) -> dict[str, Any]:
    compared = trial.against(reference)
    per_action = setting.policy.config.execute
    return {
        "setting": setting.name, "kind": setting.kind, "k": trial.wins, "success once": f"{trial.wins}/{trial.number}",
        "low": compared.low,
        "difference to the reference": "-" if trial is reference else
        f"{100 * compared.difference:+.1f} points ({100 * compared.low:+.1f} to {100 * compared.high:+.1f})",
        "warm forwards": setting.forwards, "forwards": round(trial.forwards, 2), "ms a decision": round(cost["p50_ms"], 3),
        "ms p99": round(cost["p99_ms"], 3), "ms an action": round(cost["p50_ms"] / per_action, 3),
        "distance": round(away, 4), "step rms": round(trial.step_rms, 4), "jerk rms": round(trial.jerk, 4),
        "gripper flips": round(trial.flips, 2), "contraction": None if trial.contraction is None else round(trial.contraction, 3),
    }  # fmt: skip


def _draw(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Success over forwards a decision, with Wilson intervals; one mark a kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from robot_rl.algorithms.statistics import proportion

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, (mark, colour, label) in LOOKS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        found = [proportion(row["k"], int(row["success once"].partition("/")[2])) for row in of_kind]
        rate = np.array([p.k / p.n for p in found])
        spread = np.array([rate - [p.low for p in found], [p.high for p in found] - rate])
        forwards = [row["forwards"] for row in of_kind]
        axes.errorbar(
            forwards, rate, yerr=np.maximum(spread, 0), fmt=mark, color=colour, capsize=2, label=label, alpha=0.8
        )
    axes.set(
        xscale="log", xlabel="network forwards a decision", ylabel="success once (Wilson 95 %)", ylim=(-0.02, 1.02)
    )
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError as error:
        raise ConfigError(
            "rti tune", expected="whole numbers, e.g. 11,21,31", got=text, hint="Separate by commas."
        ) from error


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl rti",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=("tune",))
    parser.add_argument("words", nargs="*", help="the run (or checkpoint) of a diffusion policy, and env.key=value")
    parser.add_argument("--env", required=True, help="configuration of env")
    parser.add_argument("--levels", default="11,31,51,71", help="noise levels to start from (%(default)s)")
    parser.add_argument("--forwards", default="1,2,3", help="of RTI, and of DDIM beside it (%(default)s)")
    parser.add_argument(
        "--one-step", action="append", default=[], metavar="RUN", help="a one-step head to show as well"
    )
    parser.add_argument(
        "--max-jump", type=float, help="rti.max_jump; left out: 99th percentile of the reference's roll-outs"
    )
    parser.add_argument("--ddpm", action="store_true", help="also DDPM with every level (slow)")
    parser.add_argument("--episodes", type=int, default=200, help="seeds a setting (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=910_000, help="(%(default)s)")
    parser.add_argument("--num-envs", type=int, default=8, help="side by side; changes no figure (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--title", default="", help="of the table, in place of the run's name")
    parser.add_argument("--output", type=Path, help="JSON file (RUN/rti.json)")
    return parser
