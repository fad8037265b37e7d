"""The table of the online stage: `robot-rl rl100_online --seeds 0,1,2 --folder runs/rl100`, behind `robot-rl rl100`.

For each training seed, from the offline stage's policy: online RL, a one-step head distilled from it, and its ONNX export.
Every policy is played on the same fresh seeds; the diffusion policies in mode mean, the path without sampling noise that
the head copies, fixed beforehand. Says how many env steps and minutes it took, success over all seeds together, and the
paired difference of the ONNX head to its teacher (Tango). Writes `docs/results/online_<task>.json` (or --output).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.algorithms.comparison import count_pairs, paired_interval
from robot_rl.algorithms.statistics import proportion
from robot_rl.algorithms.throughput import longest_run
from robot_rl.errors import RunError
from robot_rl.runs.directory import read_json, write_json
from robot_rl.runs.provenance import origin
from robot_rl.workbench.rl100 import env_words, finished_stage

POLICIES = ("offline", "online", "one step, ONNX")


def main(words: Sequence[str]) -> int:
    """Run what is missing and write the table; 0 when all of it is there.

    Raises:
        RunError: no offline run of a seed, or a stage that failed.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl rl100_online", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="pick_cube", help="as for rl100 (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/rl100"), help="that of rl100 (%(default)s)")
    parser.add_argument("--env-steps", type=int, default=150_000, help="of online training (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=800_000, help="of the evaluation (%(default)s)")
    parser.add_argument("--episodes", type=int, default=500, help="of the evaluation (%(default)s)")
    parser.add_argument("--output", type=Path, help="of the table")
    asked = parser.parse_args(list(words))
    found = {}
    for seed in map(int, asked.seeds.split(",")):
        place = asked.folder / asked.env / f"s{seed}"
        runs = _policies(asked, place, seed)
        found[seed] = (_evaluated(asked, place, seed, runs), _cost(runs))
    last = asked.first_seed + asked.episodes - 1
    seeds = f"training {asked.seeds}; evaluation {asked.first_seed}-{last}"
    facts = origin(f"robot-rl rl100_online {' '.join(words)}".strip(), seeds=seeds)
    output = asked.output or Path(f"docs/results/online_{asked.env}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    title = (
        f"Online RL on {asked.env}: from the offline policy to a one-step ONNX head (diffusion policies in mode mean)"
    )
    write_json(output, {"title": title, "rows": [row | facts for row in table(found)]})
    print(f"wrote {output}")
    return 0


def _policies(asked: argparse.Namespace, place: Path, seed: int) -> dict[str, Path]:
    """Runs of offline, online, distillation and export of a training seed; what finished is not run again."""
    finished = [
        path.parent for path in sorted(place.glob("offline/*/status.json")) if read_json(path)["state"] == "finished"
    ]
    if not finished:
        raise RunError(
            str(place / "offline"), expected="a finished offline run", got="none",
            hint=f"Run first: robot-rl rl100 --env {asked.env} --seeds {seed} --folder {asked.folder}",
        )  # fmt: skip
    env, demos = [*env_words(asked.env), f"seed={seed}"], place / "demos.zarr"
    online = finished_stage(
        place / "online", "online", *env, f"policy={finished[0]}", f"max_env_steps={asked.env_steps}",
        f"demonstrations=['{demos}','{place / 'rollouts.zarr'}']",
    )  # fmt: skip
    head = finished_stage(
        place / "one_step", "distill_onestep", *env, f"teacher={online}", "mode=mean", f"dataset={demos}",
        "rollout_episodes=100", "train.num_steps=6000", "train.checkpoint_every_steps=6000", "train.threads=1",
    )  # fmt: skip
    export = finished_stage(place / "export", "export", f"policy={head}", f"dataset={demos}", f"seed={seed}")
    return {"offline": finished[0], "online": online, "one_step": head, "export": export}


def _evaluated(asked: argparse.Namespace, place: Path, seed: int, runs: Mapping[str, Path]) -> dict[str, list[bool]]:
    """Success of every policy on the evaluation seeds, in their order."""
    mode, out = "mode=mean", {}
    played = {
        POLICIES[0]: (runs["offline"], mode), POLICIES[1]: (runs["online"], mode),
        POLICIES[2]: (runs["export"] / "export" / "policy.onnx", "runtime=onnx"),
    }  # fmt: skip
    for name, (policy, how) in played.items():
        run = finished_stage(
            place / f"fresh_{name.replace(', ', '_').replace(' ', '_')}", "evaluate", *env_words(asked.env),
            f"policy={policy}", how, f"num_episodes={asked.episodes}",
            f"first_seed={asked.first_seed}", f"seed={seed}",
        )  # fmt: skip
        lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
        out[name] = [line["success_once"] for line in sorted(lines, key=lambda line: line["seed"])]
    return out


def _cost(runs: Mapping[str, Path]) -> dict[str, tuple[int, float]]:
    """Env steps and seconds of training behind each policy's own stage."""
    online, head = (read_json(runs[name] / "summary.json") for name in ("online", "one_step"))
    return {
        POLICIES[0]: (0, 0.0), POLICIES[1]: (online["env_steps"], online["seconds"]),
        POLICIES[2]: (head["env_steps"], head["seconds"]),
    }  # fmt: skip


def table(
    found: Mapping[int, tuple[Mapping[str, Sequence[bool]], Mapping[str, tuple[int, float]]]],
) -> list[dict[str, Any]]:
    """Rows: every policy of every training seed, then all seeds together.

    Args:
        found: training seed -> (success of each policy in the order of the evaluation seeds, (env steps, seconds) of each).
    """
    rows = []
    for seed, (wins, cost) in found.items():
        for name in POLICIES:
            steps, seconds = cost[name]
            rows.append(_row(str(seed), name, wins[name], wins[POLICIES[1]]) | {
                "env steps": steps or "-", "minutes": round(seconds / 60, 1) or "-",
            })  # fmt: skip
    for name in POLICIES:
        pooled, teacher = (
            [won for wins, _cost_of in found.values() for won in wins[which]] for which in (name, POLICIES[1])
        )
        rows.append(_row("all", name, pooled, teacher) | {"env steps": "-", "minutes": "-"})
    return rows


def _row(seed: str, name: str, wins: Sequence[bool], teacher: Sequence[bool]) -> dict[str, Any]:
    share = proportion(sum(wins), len(wins))
    shown = "-"
    if name == POLICIES[2]:
        pairs = count_pairs(teacher, wins)
        gap = paired_interval(pairs["only_a"], pairs["only_b"], n=len(wins))
        shown = f"{100 * gap.difference:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    return {
        "training seed": seed, "policy": name, "success once": f"{share.k}/{share.n}",
        "Wilson 95 %": f"{share.low:.1%} to {share.high:.1%}", "against its teacher": shown,
        "longest run": longest_run(wins)[0],
    }  # fmt: skip
