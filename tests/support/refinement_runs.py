"""Runs of refine_teacher on the point task, as the command line would make them, and the same run resumed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robot_rl.runs.checkpoint import load_checkpoint
from robot_rl.runs.config import config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import read_metrics
from robot_rl.stages import refine_teacher


def start(stage: Any, name: str, folder: Path, *overrides: str) -> tuple[RunDirectory, dict[str, Any]]:
    """Compose the configuration as the command line does and call the stage."""
    config = load_config(stage.CONFIG, overrides, name=name)
    run = RunDirectory.create(
        folder, stage=name, task="point", seed=config.seed, config_yaml=config_to_yaml(config), command=[name]
    )
    return run, stage.run(config, run)


def numbers(run: RunDirectory) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without wall times."""
    lines = read_metrics(run.path / "metrics.jsonl")
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


def resumed(run: RunDirectory, folder: Path, words: Sequence[str]) -> tuple[RunDirectory, dict[str, Any]]:
    """A copy of a run of 160 steps, killed behind the evaluation at 80 in the middle of the next one's metrics, and gone on with."""
    copy = folder / run.path.name
    shutil.copytree(run.path, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "step_000160")
    (copy / "checkpoints" / "last").unlink()
    again = RunDirectory.open(copy)
    return again, refine_teacher.run(load_config(refine_teacher.CONFIG, words, name="refine_teacher"), again)


def check_resumed(run: RunDirectory, folder: Path, words: Sequence[str]) -> None:
    """The copy ends as the run did: to the bit."""
    lines, (again, _) = numbers(run), resumed(run, folder, words)
    assert numbers(again) == lines
    one, other = (load_checkpoint(each.path) for each in (run, again))
    assert one.step == other.step == 160
    for group, tensors in one.tensors.items():
        assert all(torch.equal(other.tensors[group][name], tensor) for name, tensor in tensors.items()), group
