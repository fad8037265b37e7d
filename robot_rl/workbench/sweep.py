"""Run a stage over seeds and grids: `robot-rl sweep <stage> [key=value] [key=a,b,c] --seeds 0,1,2 --jobs 1`.

Every member is an ordinary run of the stage in a process of its own, below `<folder>/members`; with `--slurm` in a job of
its own, with `--ray` in a task of Ray (docs/scale.md). `sweep.json` says which
are finished; calling with `--resume FOLDER` runs those that are missing. The table pools nothing silently: one line a
member, then one line a setting with the mean over seeds, the spread of the seeds, and, when the members count
successes, the pooled count beside the lowest and highest seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from robot_rl.algorithms.statistics import proportion
from robot_rl.engines.jobs import Job, Launcher, LocalLauncher, RayLauncher, SlurmLauncher
from robot_rl.errors import ConfigError, RunError, closest
from robot_rl.runs.directory import write_json
from robot_rl.stages import STAGES
from robot_rl.workbench.columns import as_columns


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        setting: the overrides of the grid that it has, e.g. ("policy=mlp",).
        seed: of the run.
    """

    setting: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Key in sweep.json."""
        return " ".join([*self.setting, f"seed={self.seed}"])


def main(words: Sequence[str]) -> int:
    """Run or continue a sweep; 0 when every member finished, 1 when one failed, 130 after Ctrl-C.

    Raises:
        ConfigError: unknown stage, no seeds, a seed among the overrides, or a resume with other words.
        RunError: `--resume` names no sweep.
    """
    options = _parser().parse_intermixed_args(list(words))
    slurm = _slurm_options(options)
    folder, plan = _resumed(options.resume) if options.resume else _new(options)
    members = [Member(tuple(item["setting"]), item["seed"]) for item in plan["members"]]
    missing = [member for member in members if plan["results"].get(member.name, {}).get("code") != 0]
    print(f"sweep {folder}: {len(members)} members, {len(members) - len(missing)} finished", file=sys.stderr)
    launcher = _launcher(folder, options, slurm)
    interrupted = _run_members(folder, plan, missing, jobs=options.jobs, launcher=launcher)
    rows = summarize(plan)
    write_json(folder / "sweep.json", plan | {"summary": rows})
    print(json.dumps({"sweep": str(folder), "rows": rows}) if options.json else as_columns(_cells(rows)))
    print(f"sweep: {folder}", file=sys.stderr)
    if interrupted:
        print(f"interrupted; continue with: robot-rl sweep --resume {folder}", file=sys.stderr)
        return 130
    return 0 if all(plan["results"].get(member.name, {}).get("code") == 0 for member in members) else 1


def expand(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The settings of a grid: `key=a,b` has two values, `key=[a,b]` and `key={a:1,b:2}` and quoted text one.

    Args:
        overrides: words of the command line.

    Returns:
        One tuple of overrides a setting; only keys with several values are in it.
    """
    axes = []
    for word in overrides:
        key, _, text = word.partition("=")
        if "," in text and text[0] not in "[{'\"":
            axes.append([f"{key}={value}" for value in text.split(",")])
    return list(itertools.product(*axes))


def summarize(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a setting: seeds that finished, and of every number that all their summaries have the mean and range.

    Args:
        plan: contents of sweep.json.

    Returns:
        Rows with `setting`, `seeds`, `values` (name -> {mean, min, max}), and `success_once`
        (pooled k, n, low, high; rate_min, rate_max over seeds) where every member counts successes.
    """
    rows = []
    for setting in dict.fromkeys(tuple(item["setting"]) for item in plan["members"]):
        members = [Member(setting, item["seed"]) for item in plan["members"] if tuple(item["setting"]) == setting]
        found = {m.seed: plan["results"][m.name]["summary"] for m in members if _is_finished(plan, m)}
        row: dict[str, Any] = {"setting": " ".join(setting), "seeds": sorted(found), "of": len(members), "values": {}}
        summaries = list(found.values())
        names = set.intersection(*(set(s) for s in summaries)) if summaries else set()
        for name in sorted(names):
            values = [summary[name] for summary in summaries]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                row["values"][name] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
        counts = [_successes(summary) for summary in summaries]
        if counts and all(count is not None for count in counts):
            pairs = [count for count in counts if count is not None]
            pooled = proportion(sum(k for k, _ in pairs), sum(n for _, n in pairs))
            rates = [k / n for k, n in pairs]
            row["success_once"] = {
                "k": pooled.k, "n": pooled.n, "rate": pooled.rate, "low": pooled.low, "high": pooled.high,
                "rate_min": min(rates), "rate_max": max(rates),
            }  # fmt: skip
        rows.append(row)
    return rows


def _successes(summary: dict[str, Any]) -> tuple[int, int] | None:
    """Successes and episodes of a stage's summary; of a pipeline, those of its last stage."""
    found = summary["stages"][-1].get("success_once") if summary.get("stages") else summary.get("success_once")
    return (found["k"], found["n"]) if isinstance(found, dict) and found.get("n") else None


def _is_finished(plan: dict[str, Any], member: Member) -> bool:
    return bool(plan["results"].get(member.name, {}).get("code") == 0)


def _cells(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table: success where there is one, else the first three numbers."""
    cells: list[tuple[str, ...]] = [("setting", "seeds", "result, mean (lowest to highest seed)")]
    for row in rows:
        success = row.get("success_once")
        if success:
            text = f"success {success['k']}/{success['n']} = {success['rate']:.1%}"
            text += f" ({success['rate_min']:.1%} to {success['rate_max']:.1%})"
        else:
            shown = [(name, value) for name, value in row["values"].items() if "/" in name or name == "seconds"][:3]
            text = ", ".join(f"{name} {v['mean']:.4g} ({v['min']:.4g} to {v['max']:.4g})" for name, v in shown)
        cells.append((row["setting"] or "-", f"{len(row['seeds'])}/{row['of']}", text or "no result"))
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="robot-rl sweep", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("stage", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="key=value[,value]")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas (default 0,1,2)")
    parser.add_argument("--jobs", type=int, default=1, help="members that run at the same time (default 1)")
    parser.add_argument("--slurm", action="store_true", help="members are jobs of Slurm, --jobs of them at a time")
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="members are tasks of the Ray there, host:port")
    parser.add_argument("--slurm-options", default="", metavar="KEY=VALUE,...", help="of submitit, e.g. timeout_min=60")
    parser.add_argument("--folder", type=Path, help="of the sweep (default runs/<date>_<time>_sweep_<stage>)")
    parser.add_argument("--resume", type=Path, help="sweep folder to continue")
    parser.add_argument("--json", action="store_true")
    return parser


def _launcher(folder: Path, options: argparse.Namespace, slurm: dict[str, str]) -> Launcher:
    if options.slurm and options.ray:
        raise ConfigError("sweep", expected="--slurm or --ray", got="both", hint="Leave one out.")
    if options.ray:
        return RayLauncher(options.ray, options.jobs)
    return SlurmLauncher(folder / "slurm", slurm) if options.slurm else LocalLauncher()


def _slurm_options(options: argparse.Namespace) -> dict[str, str]:
    pairs = [word.partition("=") for word in options.slurm_options.split(",") if word]
    if (pairs and not options.slurm) or not all(key and value for key, _, value in pairs):
        raise ConfigError(
            "--slurm-options", expected="key=value,key=value, together with --slurm", got=options.slurm_options,
            hint="E.g. --slurm --slurm-options timeout_min=60,cpus_per_task=4.",
        )  # fmt: skip
    return {key: value for key, _, value in pairs}


def _new(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    if options.stage not in STAGES:
        raise ConfigError(
            "sweep",
            expected="a stage: " + ", ".join(STAGES),
            got=repr(options.stage),
            hint=closest(str(options.stage), STAGES),
        )
    bad = [word for word in options.overrides if word.partition("=")[0] in ("seed", "run_root", "resume")]
    if bad or options.jobs < 1:
        raise ConfigError(
            "sweep", expected="--seeds for seeds, --folder for the place, --jobs of at least 1",
            got=" ".join(bad) or f"--jobs {options.jobs}", hint="Leave seed=, run_root= and resume= out.",
        )  # fmt: skip
    try:
        seeds = [int(text) for text in options.seeds.split(",")]
    except ValueError as error:
        raise ConfigError(
            "--seeds", expected="whole numbers separated by commas", got=options.seeds, hint="E.g. --seeds 0,1,2."
        ) from error
    settings = expand(options.overrides)
    grid = {word for setting in settings for word in setting}
    keys = {word.partition("=")[0] for word in grid}
    plan = {
        "stage": options.stage,
        "fixed": [word for word in options.overrides if word.partition("=")[0] not in keys],
        "members": [{"setting": list(setting), "seed": seed} for setting in settings for seed in seeds],
        "results": {},
    }
    folder = options.folder or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_sweep_{options.stage}"
    if folder.exists():
        raise ConfigError("sweep", expected="a new folder", got=f"{folder} exists", hint="Use --resume to continue it.")
    folder.mkdir(parents=True)
    write_json(folder / "sweep.json", plan)
    return folder, plan


def _resumed(folder: Path) -> tuple[Path, dict[str, Any]]:
    try:
        plan: dict[str, Any] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            str(folder), expected="a sweep folder with sweep.json", got=str(error), hint="Give the folder of a sweep."
        ) from error
    return folder, plan


def _run_members(
    folder: Path, plan: dict[str, Any], missing: Sequence[Member], *, jobs: int, launcher: Launcher
) -> bool:
    """Run the members, `jobs` at a time; returns whether the user stopped it. The table is on disk after each."""
    waiting, running = list(missing), dict[Member, Job]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                member = waiting.pop(0)
                running[member] = _start(folder, plan, member, launcher)
                print(f"started {member.name}", file=sys.stderr)
            for member, job in list(running.items()):
                code = job.poll()
                if code is not None:
                    plan["results"][member.name] = _result(folder, member, code)
                    write_json(folder / "sweep.json", plan)
                    del running[member]
            time.sleep(0.1)
    except KeyboardInterrupt:
        # The terminal sent Ctrl-C to the members too; they save and end by themselves.
        for member, job in running.items():
            plan["results"][member.name] = _result(folder, member, job.end())
        return True
    return False


def _start(folder: Path, plan: dict[str, Any], member: Member, launcher: Launcher) -> Job:
    """A member's job: a run that was stopped earlier is continued, otherwise a new one begins."""
    earlier = plan["results"].get(member.name, {}).get("run")
    words = [plan["stage"], "--json", "--quiet"]
    if earlier:
        words += [f"resume={earlier}"]
    else:
        words += [*plan["fixed"], *member.setting, f"seed={member.seed}", f"run_root='{_place(folder, member)}'"]
    _place(folder, member).mkdir(parents=True, exist_ok=True)
    out = _place(folder, member) / "stdout.json"
    errors = out.with_name("stderr.txt")
    errors.touch()  # a job of Slurm may end before it begins
    return launcher.start(words, out, errors)


def _place(folder: Path, member: Member) -> Path:
    plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in member.name.replace("=", "-"))
    return folder / "members" / plain


def _result(folder: Path, member: Member, code: int) -> dict[str, Any]:
    place = _place(folder, member)
    runs = sorted(path for path in place.iterdir() if (path / "status.json").exists())
    result: dict[str, Any] = {"code": code, "run": str(runs[-1]) if runs else None}
    if code == 0:
        result["summary"] = json.loads((place / "stdout.json").read_text(encoding="utf-8"))
    else:
        lines = (place / "stderr.txt").read_text(encoding="utf-8").strip().splitlines()
        result["error"] = lines[-1] if lines else "no message"
        print(f"failed {member.name}: {result['error']}", file=sys.stderr)
    return result
