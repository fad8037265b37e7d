"""Do the judges of the offline stage judge well? `robot-rl judge calibrate ...` and `robot-rl judge sabotage ...`.

    robot-rl judge calibrate runs/<offline run> runs/<policy> runs/<policy>/checkpoints/step_001000 ... --env pick_cube
    robot-rl judge sabotage --env point_reach env.max_episode_steps=20 expert=point_reach expert.noise_sd=0.4 --runs 20

calibrate rebuilds the judges of an offline run, scores every given policy with each of them, plays the policies, and
prints Spearman's rank correlation of judge and true success. sabotage breaks the optimiser's part of the offline stage
on purpose and counts what the gate still let through. The simulator measures here; in the stage it never chooses.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robot_rl.engines.tasks import EngineKind
from robot_rl.errors import ConfigError
from robot_rl.runs.directory import write_json
from robot_rl.runs.provenance import origin
from robot_rl.workbench import judge_calibrate, judge_sabotage
from robot_rl.workbench.judge_breaks import SABOTAGES
from robot_rl.workbench.judge_play import environment


def main(words: Sequence[str]) -> int:
    """Run one of the two studies and print its table.

    Raises:
        ConfigError: wrong words.
        RobotRlError: a run, policy or dataset that can't be used.
    """
    asked = _parser().parse_intermixed_args(list(words))
    torch.set_num_threads(1)
    command = f"robot-rl judge {shlex.join(words)}"
    overrides = [word for word in asked.words if "=" in word]
    paths = [word for word in asked.words if "=" not in word]
    document = (_calibrate if asked.study == "calibrate" else _sabotage)(asked, paths, overrides, command)
    print(json.dumps(document, indent=2) if asked.json else document["text"])
    return 0


def _calibrate(
    asked: argparse.Namespace, paths: Sequence[str], overrides: Sequence[str], command: str
) -> dict[str, Any]:
    if len(paths) < 1 + judge_calibrate.FEWEST:
        raise ConfigError(
            "judge calibrate", expected=f"an offline run and at least {judge_calibrate.FEWEST} policies",
            got=f"{len(paths)} paths", hint="A rank correlation of fewer says nothing; 20 give a usable interval.",
        )  # fmt: skip
    first, number = asked.first_seed, asked.episodes
    env = environment(asked.env, overrides)
    document = judge_calibrate.calibrate(
        Path(paths[0]), paths[1:], env=env, seeds=range(first, first + number), num_envs=asked.num_envs,
        engine=EngineKind(asked.engine), workers=asked.engine_workers, address=asked.engine_address,
    )  # fmt: skip
    document |= origin(command, seeds=f"episodes {first}-{first + number - 1}; judges {document['judge_seed']}")
    output = asked.output or Path(paths[0]) / "ope" / "calibration.json"
    return _written(document, output, judge_calibrate.as_text(document))


def _sabotage(
    asked: argparse.Namespace, paths: Sequence[str], overrides: Sequence[str], command: str
) -> dict[str, Any]:
    kinds = len(SABOTAGES)
    if paths or asked.runs < kinds or asked.runs % kinds:
        raise ConfigError(
            "judge sabotage", expected=f"key=value words, and --runs a multiple of {kinds} (kinds of sabotage)",
            got=f"words {list(paths)}, --runs {asked.runs}", hint="Use --runs 20.",
        )  # fmt: skip
    if EngineKind(asked.engine) is not EngineKind.local:
        raise ConfigError(
            "judge sabotage --engine",
            expected="local",
            got=asked.engine,
            hint="Only judge calibrate has another engine.",
        )
    seeds = range(asked.seed, asked.seed + asked.runs // kinds)
    with tempfile.TemporaryDirectory() as temporary:
        document = judge_sabotage.study(
            [f"env={asked.env}", *overrides], seeds, folder=asked.folder or Path(temporary),
            evaluation=range(asked.first_seed, asked.first_seed + asked.episodes), num_envs=asked.num_envs,
        )  # fmt: skip
    last = asked.first_seed + asked.episodes - 1
    document |= origin(command, seeds=f"runs {seeds[0]}-{seeds[-1]}; evaluation {asked.first_seed}-{last}")
    output = asked.output or Path(f"docs/results/sabotage_{asked.env}.json")
    return _written(document, output, judge_sabotage.as_text(document))


def _written(document: dict[str, Any], output: Path, text: str) -> dict[str, Any]:
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, document)
    return document | {"text": f"{text}\nwrote {output}"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("study", choices=("calibrate", "sabotage"))
    parser.add_argument(
        "words", nargs="*",
        help="calibrate: the offline run, policies (runs or checkpoint folders), env.key=value; sabotage: env.key=value, "
        "expert=name, expert.key=value, num_episodes=N (demonstrations, and roll-outs), policy.key=value and train.key=value of "
        "imitation, and any key=value of offline",
    )  # fmt: skip
    parser.add_argument("--env", required=True, help="configuration of env")
    parser.add_argument("--episodes", type=int, default=100, help="roll-outs a policy (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=900_000, help="of the roll-outs (%(default)s)")
    parser.add_argument("--num-envs", type=int, default=8, help="envs side by side; changes no figure (%(default)s)")
    parser.add_argument(
        "--engine", choices=[kind.value for kind in EngineKind], default="local",
        help="calibrate: who scores and plays, a policy a task (%(default)s); changes no figure",
    )  # fmt: skip
    parser.add_argument("--engine-workers", type=int, default=1, help="processes of --engine ray (%(default)s)")
    parser.add_argument("--engine-address", default="", help="of a running Ray, host:port; empty: one of our own")
    parser.add_argument("--runs", type=int, default=20, help="sabotage: runs, honest ones come on top (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="sabotage: first seed of the runs (%(default)s)")
    parser.add_argument("--folder", type=Path, help="sabotage: keep the runs there")
    parser.add_argument("--output", type=Path, help="of the JSON")
    parser.add_argument("--json", action="store_true", help="print the JSON")
    return parser
