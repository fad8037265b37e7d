"""The table of the offline stage: `robot-rl rl100 --seeds 0,1,2 --folder runs/rl100` (hours; continues when called again).

For each training seed: flawed demonstrations, imitation of all of them (the baseline), roll-outs of that policy with and
without extra noise, then on the merged data, from the baseline's weights and for equal iterations: plain imitation
(merged), success-only imitation, AWR, and the offline stage with its gate. Every policy is evaluated on the same fresh
seeds in one sampling mode that was fixed beforehand (eta1, the one that RL optimises), and compared with the baseline by
the exact McNemar test. Writes `docs/results/rl100_<task>.json` (or --output).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.algorithms.comparison import count_pairs, mcnemar_p
from robot_rl.algorithms.statistics import proportion
from robot_rl.errors import ConfigError, RunError, closest
from robot_rl.runs.directory import write_json
from robot_rl.runs.provenance import origin

MODE = "eta1"
METHODS = ("merged", "success_only", "awr")
# About every second demonstration succeeds; StackCube's time limit is too short for the slow ones of PickCube.
FLAWS = {
    "pick_cube": (
        "expert.speed_low=0.35", "expert.speed_high=1.0", "expert.grasp_offset_m=0.011", "expert.goal_offset_m=0.017",
        "expert.action_noise=0.1", "expert.early_close_probability=0.15", "expert.drop_probability=0.15",
    ),
    "stack_cube": (
        "expert.speed_low=0.7", "expert.speed_high=1.0", "expert.grasp_offset_m=0.010", "expert.goal_offset_m=0.013",
        "expert.action_noise=0.1", "expert.early_close_probability=0.1", "expert.drop_probability=0.1",
    ),
    "bowling": ("expert=bowling_flawed",),
    "peg_insertion": ("expert=peg_insertion_flawed",),
}  # fmt: skip
# env.fast_cpu has no parity test for their controllers.
NOT_FAST = ("peg_insertion",)


def main(words: Sequence[str]) -> int:
    """Run what is missing and write the table; 0 when all of it is there.

    Raises:
        ConfigError: a task without a flawed expert.
        RunError: a stage failed; it is named with its last message.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl rl100", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="pick_cube", help="config of env, also the task's name (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/rl100"), help="where the runs lie (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=500_000, help="of the evaluation (%(default)s)")
    parser.add_argument("--episodes", type=int, default=200, help="of the evaluation (%(default)s)")
    parser.add_argument("--imitate-steps", type=int, default=8_000)
    parser.add_argument("--rollouts", type=int, default=200, help="of the imitation policy (%(default)s)")
    parser.add_argument("--noisy-rollouts", type=int, default=300, help="with extra noise (%(default)s)")
    parser.add_argument("--output", type=Path, help="of the table")
    asked = parser.parse_args(list(words))
    if asked.env not in FLAWS:
        raise ConfigError(
            "rl100 --env", expected=f"a task with a flawed expert: {', '.join(FLAWS)}", got=asked.env,
            hint=closest(asked.env, FLAWS),
        )  # fmt: skip
    seeds, rows = [], []
    for seed in map(int, asked.seeds.split(",")):
        policies = _policies(asked, asked.folder / asked.env / f"s{seed}", seed)
        result = _compared(_evaluations(asked, asked.folder / asked.env / f"s{seed}", seed, policies))
        kept = json.loads((policies["offline"] / "summary.json").read_text(encoding="utf-8"))["accepted"]
        seeds.append({"seed": seed, **result, "kept_by_the_gate": kept})
        last = asked.first_seed + asked.episodes - 1
        evaluated = f"training {seed}; evaluation {asked.first_seed}-{last}"
        facts = origin(f"robot-rl rl100 {' '.join(words)}".strip(), seeds=evaluated)
        rows += [_row(seed, name, values) | facts for name, values in result.items()]
    output = asked.output or Path(f"docs/results/rl100_{asked.env}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    title = f"Offline RL on {asked.env}: imitation, its controls and the gated stage (mode {MODE})"
    write_json(output, {"title": title, "rows": rows, "seeds": seeds})
    print(f"wrote {output}")
    return 0


def _policies(asked: argparse.Namespace, place: Path, seed: int) -> dict[str, Path]:
    """Train everything of a training seed; what finished is not run again."""
    env = [*env_words(asked.env), f"seed={seed}"]
    demos, plain, noisy = (str(place / f"{name}.zarr") for name in ("demos", "rollouts", "noisy_rollouts"))
    first = 10_000 * seed
    finished_stage(
        place / "collect", "collect", *env, *FLAWS[asked.env], f"expert.seed={seed}", "num_episodes=150",
        f"first_seed={first}", f"dataset={demos}",
    )  # fmt: skip
    imitation = finished_stage(
        place / "imitate", "imitate", *env, f"dataset={demos}", "only_success=false", "policy=mlp", "train.threads=1",
        f"train.num_steps={asked.imitate_steps}", f"train.checkpoint_every_steps={asked.imitate_steps}",
    )  # fmt: skip
    for name, dataset, words in (
        ("rollouts", plain, [f"num_episodes={asked.rollouts}", f"first_seed={first + 2_000}"]),
        (
            "noisy_rollouts", noisy,
            [f"num_episodes={asked.noisy_rollouts}", f"first_seed={first + 4_000}", "sigma_min=0.1"],
        ),
    ):  # fmt: skip
        finished_stage(
            place / name, "collect", *env, f"policy={imitation}", f"mode={MODE}", f"dataset={dataset}", *words
        )
    data = [f"policy={imitation}", f"datasets=['{demos}','{plain}','{noisy}']", f"seed={seed}"]
    controls = finished_stage(
        place / "controls", "offline", *data, f"methods=[{','.join(METHODS)}]", "gate.rule=never", "ppo.proposals=0"
    )
    found = {"imitation": imitation} | {method: controls / "round_00" / method for method in METHODS}
    return found | {"offline": finished_stage(place / "offline", "offline", *data)}


def _evaluations(asked: argparse.Namespace, place: Path, seed: int, policies: dict[str, Path]) -> dict[str, list[bool]]:
    """Success of every policy on the evaluation seeds, in their order."""
    out = {}
    for name, policy in policies.items():
        run = finished_stage(
            place / f"evaluate_{name}", "evaluate", *env_words(asked.env), f"policy={policy}", f"mode={MODE}",
            f"num_episodes={asked.episodes}", f"first_seed={asked.first_seed}", f"seed={seed}",
        )  # fmt: skip
        lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]
        out[name] = [line["success_once"] for line in sorted(lines, key=lambda line: line["seed"])]
    return out


def _compared(episodes: dict[str, list[bool]]) -> dict[str, dict[str, Any]]:
    """Counts, Wilson interval and exact McNemar test against imitation of every policy."""
    out = {}
    for name, wins in episodes.items():
        found, pairs = proportion(sum(wins), len(wins)), count_pairs(wins, episodes["imitation"])
        p_value = None if name == "imitation" else mcnemar_p(pairs["only_a"], pairs["only_b"])
        out[name] = {
            "k": found.k, "n": found.n, "low": found.low, "high": found.high, "p_value_vs_imitation": p_value,
        }  # fmt: skip
    return out


def _row(seed: int, name: str, values: dict[str, Any]) -> dict[str, Any]:
    p_value = values["p_value_vs_imitation"]
    return {
        "training seed": seed, "policy": name, "success once": f"{values['k']}/{values['n']}",
        "Wilson 95 %": f"{values['low']:.1%} to {values['high']:.1%}",
        "p against imitation": "-" if p_value is None else f"{p_value:.2g}",
    }  # fmt: skip


def env_words(env: str) -> list[str]:
    """Overrides that choose the environment: the fast CPU step wherever it is tested."""
    return [f"env={env}"] if env in NOT_FAST else [f"env={env}", "env.fast_cpu=true"]


def finished_stage(root: Path, stage: str, *words: str) -> Path:
    """The finished run of a stage below `root`; made, or continued, when it is not there."""
    found = sorted(root.glob("*/status.json"))
    for status in found:
        if json.loads(status.read_text(encoding="utf-8"))["state"] == "finished":
            return status.parent
    command = [sys.executable, "-m", "robot_rl", stage, "--quiet"]
    command += [f"resume={found[-1].parent}"] if found else [*words, f"run_root='{root}'"]
    print(f"{root}: robot-rl {' '.join(command[3:])}", file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RunError(
            str(root), expected=f"`robot-rl {stage}` to finish", got=lines[-1] if lines else f"exit {done.returncode}",
            hint="Look at log.txt there; call again to continue.",
        )  # fmt: skip
    return sorted(root.glob("*/status.json"))[-1].parent
