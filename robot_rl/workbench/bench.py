"""Measure this machine and this code: `robot-rl bench <name> [--json FILE] [--force]`.

    train      training samples per second of imitation, MLP and U-Net
    sample     windows per second of our sampler against a torch DataLoader over the same zarr
    data       epochs of our sampler against torch's DataLoader, robomimic's and LeRobot's (bench_data.py)
    infer      one decision: samplers (DDPM-100, DDIM-10, RTI, one step) by runtimes (torch, compiled, ONNX, OpenVINO, int8)
    env        env steps per second of our adapter against raw ManiSkill
    loop       how late a control loop's turns begin at 100-1000 Hz: pacing, gc, FIFO, mlock, busy neighbours
    safety     what safety layers let through, fault by fault: ours, and the rules of others (docs/safety.md)
    ceilings   memory bandwidth and peak FLOPs
    ros2       joint states echoed as commands between two processes, and camera transport (not in `all`)
    collect    how late a collecting session's turns begin while it records two cameras (not in `all`)
    vision     frames/s of drawing and encoding, samples/s of training, RGB and points, and shares (not in `all`)
    lerobot    one decision of LeRobot's DiffusionPolicy in its own environment (--peer), beside ours (not in `all`)
    scale      tasks of engine=ray, one and two workers, against engine=local (not in `all`)

What is compared runs in turns in one process. Ratios are refused (exit 1) when other processes use more than a quarter
of the CPUs it may use before or during the measurement, or the 1-minute load average is above CPUs + 0.5 before it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.workbench.bench_timing import (
    OTHERS_ALLOWED,
    BenchError,
    LoadWatch,
    Options,
    Report,
    compare,
    is_overloaded,
    probe_others,
)
from robot_rl.workbench.columns import as_columns
from robot_rl.workbench.cores import allowed_cpus, usable_cores

# Verdicts that a busy machine does not change.
DETERMINISTIC = ("safety",)
BENCHMARKS = ("ceilings", "sample", "data", "train", "infer", "env", "loop", "safety")
_INFER = ("nets", "compile", "policy", "one_step", "episodes")  # options of `infer` alone
# What needs ROS 2, another environment, or minutes.
ALONE = ("ros2", "collect", "vision", "lerobot", "scale")


def main(words: Sequence[str]) -> int:
    """Run benchmarks; 0 when all were measured, 1 when ratios were refused.

    Raises:
        BenchError: the machine is overloaded before anything is measured, and not `--force`.
        RobotRlError: as the benchmarks.
    """
    options = _parser().parse_args(list(words))
    chosen = BENCHMARKS if options.what == "all" else (options.what,)
    sizes = Options(
        rounds=options.rounds,
        threads=options.threads,
        env=options.env,
        dataset=options.dataset,
        seconds=options.seconds,
        image_size=options.image_size,
        peer=options.peer,
        nets=tuple(word for word in options.nets.split(",") if word),
        compiled=options.compile,
        policy=options.policy,
        one_step=options.one_step,
        episodes=options.episodes,
    )
    if given := [word for word in _INFER if getattr(options, word) and "infer" not in chosen]:
        raise BenchError(
            f"bench {options.what} --{given[0].replace('_', '-')}", expected="bench infer", got=options.what,
            hint="No other benchmark has this option.",
        )  # fmt: skip
    planned = [(name, *part) for name in chosen for part in parts(name, sizes).items()]  # wrong options before minutes
    results: dict[str, Any] = {}
    for name, title, part in planned:
        print(f"bench {title} ...", file=sys.stderr)
        results[title] = measure(name, part, force=options.force, own_load=bool(results))
        print(as_table(title, results[title]), flush=True)
        if options.json is not None:  # after each, so that a refusal or Ctrl-C later keeps what was measured
            write_json(options.json, results, words)
    refused = [name for name, result in results.items() if result["refused"]]
    if refused:
        print(f"robot-rl: ratios refused: {', '.join(refused)}; {_REMEDY}", file=sys.stderr)
    return 1 if refused else 0


def parts(name: str, options: Options) -> dict[str, Options]:
    """Parts in which a benchmark is measured and printed, title -> options: those that its module names, or all at once.

    Raises:
        BenchError: the module does not take the options.
    """
    split = getattr(importlib.import_module(f"robot_rl.workbench.bench_{name}"), "parts", None)
    found: dict[str, Options] = {"": options} if split is None else split(options)
    return {f"{name} {part}".strip(): own for part, own in found.items()}


_REMEDY = "stop other work and measure again, or use --force to see ratios that can't be trusted."


def measure(name: str, options: Options, *, force: bool, own_load: bool = False) -> dict[str, Any]:
    """Run one benchmark between two looks at the machine.

    Args:
        name: one of BENCHMARKS or ALONE.
        options: for the benchmark.
        force: show ratios whatever the load.
        own_load: whether this process worked in the last minute, so that the load average before is no evidence.

    Returns:
        JSON types: `measurements`, `ratios` (empty when refused), `facts`, `load` (load averages before and after,
        cores used by others before and during, limit), `overloaded`, `refused`.

    Raises:
        BenchError: overloaded before the start, and not `force`; not for DETERMINISTIC.
        RobotRlError: as the benchmark.
    """
    cpus, before = len(allowed_cpus()), os.getloadavg()[0]
    others = probe_others()
    overloaded = is_overloaded(others, load=before, cpus=cpus, own_load=own_load)
    if overloaded and not force and name not in DETERMINISTIC:
        raise BenchError(
            f"bench {name}",
            expected=f"a quiet machine: others below {OTHERS_ALLOWED * cpus:g} of {cpus} cores, load below {cpus + 0.5:g}",
            got=f"others use {others:.2f} cores, load average {before:.2f}",
            hint=_REMEDY[0].upper() + _REMEDY[1:],
        )  # fmt: skip
    watch = LoadWatch()
    report: Report = importlib.import_module(f"robot_rl.workbench.bench_{name}").run(options)
    during, after = watch.others(unseen_s=report.unseen_s), os.getloadavg()[0]
    overloaded = overloaded or is_overloaded(during, load=after, cpus=cpus, own_load=True)
    refused = overloaded and not force and bool(report.comparisons)
    return {
        "measurements": [measurement.to_json() for measurement in report.measurements],
        "ratios": [] if refused else ratios(report),
        "facts": report.facts,
        "load": {
            "average_before": before, "average_after": after, "others_before_cores": others,
            "others_during_cores": during, "others_allowed_cores": OTHERS_ALLOWED * cpus, "allowed_cpus": cpus,
            "usable_cores": usable_cores(),
        },
        "overloaded": overloaded,
        "refused": refused,
    }  # fmt: skip


def ratios(report: Report) -> list[dict[str, Any]]:
    """The comparisons of a report; see `bench_timing.compare`."""
    found = {measurement.name: measurement for measurement in report.measurements}
    return [compare(found[c.ours], found[c.peer], target=c.target) for c in report.comparisons]


def as_table(name: str, result: Mapping[str, Any]) -> str:
    """Times, rates, ratios and load of one benchmark, for people."""
    rows = [(name, "min ms", "p50 ms", "p99 ms", "rate at p50")]
    for m in result["measurements"]:
        times = [f"{m[key]:.4g}" for key in ("min_ms", "p50_ms", "p99_ms")]
        rows.append((m["name"], times[0], times[1], times[2], f"{m['rate_p50']:,.5g} {m['unit']}/s"))
    parts = [as_columns(rows)]
    for own in ("table", "episodes_table"):  # first row the heading
        if own in result["facts"]:
            parts.append(as_columns([tuple(row) for row in result["facts"][own]]))
    if result["ratios"]:
        lines = [("ratio", "p50", "95 %", "of minima", "target", "met")]
        for r in result["ratios"]:
            interval = "-" if r["low"] is None else f"{r['low']:.3g}-{r['high']:.3g}"
            target = "-" if r["target"] is None else f">= {r['target']:g}"
            met = {None: "-", True: "yes", False: "NO"}[r["met"]]
            lines.append(
                (f"{r['ours']} / {r['peer']}", f"{r['ratio']:.3g}", interval, f"{r['ratio_best']:.3g}", target, met)
            )
        parts.append(as_columns(lines))
    load = result["load"]
    state = "OVERLOADED" if result["overloaded"] else "quiet"
    parts.append(
        f"machine {state}: load average {load['average_before']:.2f} before, {load['average_after']:.2f} after; others "
        f"used {load['others_before_cores']:.2f} cores before, {load['others_during_cores']:.2f} during "
        f"(limit {load['others_allowed_cores']:g} of {load['allowed_cpus']})"
    )
    if result["refused"]:
        parts.append("ratios refused: other processes disturbed the measurement; times above are no result either")
    return "\n".join([*parts, ""])


def write_json(path: Path, results: Mapping[str, Any], words: Sequence[str]) -> None:
    """Write all results with command, machine, versions and time; through a temporary file, so never half.

    Raises:
        BenchError: the file can't be written.
    """
    from robot_rl.runs import directory
    from robot_rl.runs.provenance import collect

    document = {"command": ["robot-rl", "bench", *words], "provenance": collect(), "results": results}
    try:
        directory.write_json(path, document)
    except OSError as error:
        raise BenchError(
            str(path), expected="a file that can be written", got=str(error), hint="Check folder and permissions."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*BENCHMARKS, *ALONE, "all"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    parser.add_argument("--force", action="store_true", help="show ratios although the machine is overloaded")
    parser.add_argument("--rounds", type=_positive, default=15, help="rounds of every contender (default 15)")
    parser.add_argument("--threads", type=_positive, default=1, help="of torch and onnxruntime (default 1)")
    parser.add_argument("--env", default="pick_cube", help="config choice for `env` and `scale` (default pick_cube)")
    parser.add_argument("--dataset", help="EpisodeStore for `sample`, `data` and `train` (default: random numbers)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the echo at 500 Hz of `ros2` (default 60)")
    parser.add_argument("--image-size", type=_positive, default=128, help="pixels a side of `vision` (default 128)")
    parser.add_argument(
        "--peer", metavar="PYTHON", help="of LeRobot's environment, for `lerobot` (tests/peers/lerobot.sh)"
    )
    infer = parser.add_argument_group("infer")
    infer.add_argument("--nets", default="", help="some of mlp,unet5,unet65 (default: all)")
    infer.add_argument("--compile", action="store_true", help="torch.compile too (minutes; needs a C++ compiler)")
    infer.add_argument(
        "--policy", metavar="RUN", help="a trained diffusion policy in place of random weights, with --env, --dataset"
    )
    infer.add_argument("--one-step", metavar="RUN", help="a one-step head to show with --policy")
    infer.add_argument("--episodes", type=_positive, help="that every setting of --policy plays (default 100)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"1 or more expected, got {text}")
    return value
