"""distill_onestep loss=consistency through the command line: resume bit-equal, nearer to its teacher, exported with parity."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import distill_onestep
from robot_rl.stages.distill_onestep import DistillConfig, DistillLoss

TRAIN = ["train.batch_size=64", "train.threads=1", "train.warmup_steps=5", "train.log_every_steps=10"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def robot_rl(*words: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_killed_and_continued_then_exported(tmp_path: Path) -> None:
    point = ["env=point_reach", "dataset=demos.zarr"]
    robot_rl("collect", *point, "expert=point_reach", "num_episodes=60", cwd=tmp_path)
    words = ["policy.hidden_width=64", *TRAIN, "train.num_steps=800", "train.checkpoint_every_steps=800"]
    robot_rl("imitate", *point, *words, "run_root=teacher", cwd=tmp_path)
    words = ["distill_onestep", *point, f"teacher={only(tmp_path / 'teacher')}", "loss=consistency", *TRAIN]
    words += ["train.num_steps=800", "train.checkpoint_every_steps=100", "rollout_episodes=3"]
    robot_rl(*words, "run_root=whole", cwd=tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-m", "robot_rl", *words, "run_root=killed"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/*/checkpoints/step_000200")):
        assert time.monotonic() < deadline
        assert child.poll() is None, "finished before it could be killed"
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed, whole = only(tmp_path / "killed"), only(tmp_path / "whole")
    assert not (killed / "checkpoints/step_000800").exists()
    robot_rl("distill_onestep", f"resume={killed}", cwd=tmp_path)
    for name in ("policy", "raw", "target", "optimizer", "random"):
        first = load_file(whole / f"checkpoints/step_000800/{name}.safetensors")
        second = load_file(killed / f"checkpoints/step_000800/{name}.safetensors")
        assert first.keys() == second.keys()
        for key in first:
            assert np.array_equal(first[key], second[key]), f"{name} {key} differs after the resume"
    target, raw = (load_file(whole / f"checkpoints/step_000800/{name}.safetensors") for name in ("target", "raw"))
    assert any(not np.array_equal(target[key], raw[key]) for key in raw)

    robot_rl("export", f"policy={whole}", "dataset=demos.zarr", "latency_calls=20", "run_root=export", cwd=tmp_path)
    onnx = only(tmp_path / "export") / "export/policy.onnx"
    robot_rl("evaluate", "env=point_reach", f"policy={onnx}", "num_episodes=20", "run_root=eval", cwd=tmp_path)
    summary = json.loads((only(tmp_path / "eval") / "summary.json").read_text())
    assert summary["episodes"] == 20
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    distance = {line["step"]: line["distill/teacher_rmse"] for line in lines if "distill/teacher_rmse" in line}
    assert distance[800] < 0.6 * distance[100], distance


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        (DistillLoss.regression, {"critic": "runs/offline"}),
        (DistillLoss.regression, {"reward_weight": 0.1}),
        (DistillLoss.regression, {"samples": 4}),
        (DistillLoss.regression, {"target_decay": 0.0}),
        (DistillLoss.consistency, {"samples": 4}),
        (DistillLoss.consistency, {"critic": "runs/offline"}),
        (DistillLoss.distribution, {"target_decay": 0.9}),
    ],
)
def test_fields_of_another_loss_are_refused(loss: DistillLoss, fields: dict[str, Any], tmp_path: Path) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(ConfigError, match=f"{name}={value} with loss={loss.value}"):
        distill_onestep.run(DistillConfig(teacher="none", loss=loss, **fields), RunDirectory(tmp_path))


def test_a_teacher_that_draws_is_refused_for_every_loss() -> None:
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    teacher = DiffusionPolicy(DiffusionPolicyConfig(hidden_width=8), spec, Normalizer.identity(sizes))
    for head in ("plain", "consistency"):  # that of distribution is plain
        with pytest.raises(PolicyError, match="eta1"):
            teacher.with_mode(SamplingMode.eta1).one_step_student(head=head)


def test_distribution_matching_through_the_stage(tmp_path: Path) -> None:
    point = ["env=point_reach", "dataset=demos.zarr"]
    robot_rl("collect", *point, "expert=point_reach", "num_episodes=20", cwd=tmp_path)
    words = ["policy.hidden_width=32", *TRAIN, "train.num_steps=200", "train.checkpoint_every_steps=200"]
    robot_rl("imitate", *point, *words, "run_root=teacher", cwd=tmp_path)
    words = ["distill_onestep", *point, f"teacher={only(tmp_path / 'teacher')}", "loss=distribution", *TRAIN]
    robot_rl(
        *words, "train.num_steps=200", "train.checkpoint_every_steps=200", "samples=4", "run_root=head", cwd=tmp_path
    )
    head = only(tmp_path / "head")
    lines = [json.loads(line) for line in (head / "metrics.jsonl").read_text().splitlines()]
    distances = [line["distill/energy_distance"] for line in lines if "distill/energy_distance" in line]
    assert np.mean(distances[-3:]) < 0.5 * np.mean(distances[:1])
    robot_rl("evaluate", "env=point_reach", f"policy={head}", "num_episodes=2", cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", *words, "reward_weight=0.1"], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "exactly when a critic is given" in done.stderr
