"""Few-shot adaptation: `robot-rl adapt policy=RUN env=pick_cube shift.xy_m=[0.1,0] --demonstrations 10`.

The words are those of `robot-rl evaluate`: they describe the policy and the changed setting. The policy is evaluated
there as it is (zero-shot); demonstrations are played there by the expert (or taken from --dataset); imitation goes on
from the policy's weights on them alone; the result is evaluated on the same seeds. Before and after are compared as pairs
(exact McNemar test, Tango's interval). With --home both are also evaluated without push and shift, for what was
forgotten. Writes adapt.json beside the runs in --folder; what finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError
from robot_rl.runs.config import config_to_json, load_config
from robot_rl.runs.directory import RunDirectory, write_json
from robot_rl.runs.kept_run import finished_run
from robot_rl.runs.provenance import origin
from robot_rl.runs.training import TrainConfig
from robot_rl.stages import collect, evaluate, imitate
from robot_rl.stages.collect import CollectConfig, Keep
from robot_rl.stages.evaluate import EvaluateConfig, disturbed_env
from robot_rl.stages.imitate import ImitateConfig
from robot_rl.workbench.compare import Options, compare
from robot_rl.workbench.compare_page import as_text
from robot_rl.workbench.evaluations import check_protocols, read_evaluation

log = logging.getLogger(__name__)

SETTINGS = ("here", "home")


def main(words: Sequence[str]) -> int:
    """Evaluate, adapt, evaluate again, and print the paired comparison.

    Raises:
        ConfigError: wrong words, or demonstrations on seeds of the evaluation.
        RunError: a run of another configuration lies in the folder.
        RobotRlError: whatever a stage raises.
    """
    asked = _parser().parse_intermixed_args(list(words))
    config = load_config(EvaluateConfig, asked.words, name="evaluate")
    _check(asked, config)
    folder = asked.folder
    child = _evaluated(folder, config, asked, name="before")
    before = {name: child(name) for name in _settings(asked)}
    dataset = asked.dataset or str(folder / "demonstrations.zarr")
    demonstrations = None if asked.dataset else _demonstrations(folder, config, asked, dataset=dataset)
    adapted = _stage(folder / "imitate", "imitate", imitate.run, _fine_tuning(config, asked, dataset=dataset))
    child = _evaluated(folder, replace(config, policy=str(adapted)), asked, name="after")
    after = {name: child(name) for name in _settings(asked)}
    results = {name: _compared(before[name], after[name]) for name in before}
    last = config.first_seed + config.num_episodes - 1
    seeds = f"training {asked.seed}; demonstrations from {asked.first_seed}; evaluation {config.first_seed}-{last}"
    document = {
        "title": f"Few-shot adaptation with {asked.demonstrations if demonstrations else 'given'} demonstrations",
        "rows": [_row(name, result) for name, result in results.items()],
        "demonstrations": demonstrations, "dataset": dataset, "policy": config.policy, "adapted": str(adapted),
        "train": config_to_json(_train(asked)), "comparison": results,
    }  # fmt: skip
    document |= origin(f"robot-rl adapt {shlex.join(words)}", seeds=seeds)
    write_json(folder / "adapt.json", document)
    print(json.dumps(document, indent=2) if asked.json else _text(results, folder))
    return 0


def _check(asked: argparse.Namespace, config: EvaluateConfig) -> None:
    numbers = (asked.demonstrations, asked.steps, asked.batch_size)
    if not config.policy or config.policy.endswith(".onnx") or min(numbers) < 1 or asked.learning_rate <= 0:
        raise ConfigError(
            "adapt", expected="policy=<run or checkpoint of a diffusion policy>, and numbers above 0",
            got=f"policy={config.policy!r}, {numbers} and {asked.learning_rate}",
            hint="E.g. robot-rl adapt policy=runs/<run> env=pick_cube shift.xy_m=[0.1,0] --demonstrations 10.",
        )  # fmt: skip
    # A flawed expert may need more tries than demonstrations: collect gives up at ten times as many.
    tries = range(asked.first_seed, asked.first_seed + 10 * asked.demonstrations)
    evaluated = range(config.first_seed, config.first_seed + config.num_episodes)
    if not asked.dataset and tries.start < evaluated.stop and evaluated.start < tries.stop:
        raise ConfigError(
            "--first-seed", expected="seeds of demonstrations apart from those of the evaluation",
            got=f"{tries.start} to {tries.stop - 1} and {evaluated.start} to {evaluated.stop - 1}",
            hint="Choose another --first-seed.",
        )  # fmt: skip


def _settings(asked: argparse.Namespace) -> tuple[str, ...]:
    return SETTINGS if asked.home else SETTINGS[:1]


def _evaluated(folder: Path, config: EvaluateConfig, asked: argparse.Namespace, *, name: str) -> Callable[[str], Path]:
    """A function from the name of a setting to the evaluation run there."""

    def child(setting: str) -> Path:
        wanted = config
        if setting == "home":
            env = config.env | {key: None for key in ("push", "shift") if config.env.get(key) is not None}
            wanted = replace(config, push=None, shift=None, env=env)
        return _stage(folder / f"{name}_{setting}", "evaluate", evaluate.run, replace(wanted, seed=asked.seed))

    return child


def _demonstrations(folder: Path, config: EvaluateConfig, asked: argparse.Namespace, *, dataset: str) -> dict[str, Any]:
    """Successful episodes of the expert in the changed setting; returns the summary of that run."""
    wanted = CollectConfig(
        env=disturbed_env(config)[0], expert=config.expert, dataset=dataset, num_episodes=asked.demonstrations,
        keep=Keep.success, num_envs=config.num_envs, first_seed=asked.first_seed, seed=asked.seed,
    )  # fmt: skip
    path = _stage(folder / "collect", "collect", collect.run, wanted)
    summary: dict[str, Any] = RunDirectory.open(path).read_json("summary.json")
    return {key: summary[key] for key in ("stored", "episodes", "env_steps", "content_hash")}


def _train(asked: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        num_steps=asked.steps, batch_size=asked.batch_size, learning_rate=asked.learning_rate,
        warmup_steps=min(100, asked.steps // 10), checkpoint_every_steps=asked.steps, threads=1,
    )  # fmt: skip


def _fine_tuning(config: EvaluateConfig, asked: argparse.Namespace, *, dataset: str) -> ImitateConfig:
    return ImitateConfig(
        dataset=dataset, init=config.policy, train=_train(asked), validation_fraction=0.0, seed=asked.seed
    )


def _stage(root: Path, name: str, function: Callable[..., dict[str, Any]], config: Any) -> Path:
    words = ["robot-rl", name, f"(of robot-rl adapt, {root})"]
    hint = "Give another --folder, or the words of then."
    return finished_run(root, name, function, config, task="adapt", command=words, hint=hint).path


def _compared(before: Path, after: Path) -> dict[str, Any]:
    a, b = read_evaluation(before), read_evaluation(after)
    check_protocols(a, b)
    return compare(a, b, options=Options())


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    interval = result["interval"]
    return {
        "setting": "changed" if name == "here" else "without push and shift",
        "before": result["a"]["success"], "after": result["b"]["success"],
        "after - before (95 %)": f"{100 * interval['difference']:+.1f} points "
        f"({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})",
        "p (McNemar)": result["test"]["p_value"],
    }  # fmt: skip


def _text(results: dict[str, dict[str, Any]], folder: Path) -> str:
    heads = {"here": "In the changed setting (A before, B after):", "home": "Without push and shift:"}
    parts = [f"{heads[name]}\n{as_text(result, None)}" for name, result in results.items()]
    return "\n\n".join([*parts, f"wrote {folder / 'adapt.json'}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl adapt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="*", help="overrides of `robot-rl evaluate`: policy, env, shift, push, mode, ..."
    )
    parser.add_argument("--demonstrations", type=int, default=10, help="how many (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=700_000, help="of the demonstrations (%(default)s)")
    parser.add_argument("--dataset", default="", help="EpisodeStore of the changed setting, in place of the expert")
    parser.add_argument("--steps", type=int, default=1_000, help="gradient steps (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="peak (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="windows a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the fine-tuning (%(default)s)")
    parser.add_argument("--home", action="store_true", help="also evaluate without push and shift: what was forgotten")
    parser.add_argument("--folder", type=Path, default=Path("runs/adapt"), help="where the runs lie (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the JSON")
    return parser
