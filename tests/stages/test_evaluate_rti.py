"""`evaluate rti.level=...` through the command line, on the point task, with the checkpoint of an untrained policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.runs.checkpoint import load_policy, save_checkpoint
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages.evaluate import EvaluateConfig, run


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = DiffusionPolicyConfig(horizon=4, execute=2, hidden_width=16, level_embedding=8)
    policy = DiffusionPolicy(config, spec, Normalizer.identity(sizes))
    node = {"_target_": "robot_rl.policies.diffusion.DiffusionPolicy", "config": config.to_json()}
    documents = {"policy": node, "spec": spec.to_json(), "normalizer": policy.normalizer.to_json()}
    return save_checkpoint(tmp_path, step=1, tensors={"policy": policy.state_dict()}, documents=documents)


def evaluate(place: Path, root: str, *words: str) -> dict[str, Any]:
    """Summary; an untrained policy lasts the 20 steps of an episode, 10 decisions."""
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", "evaluate", "env=point_reach", "env.max_episode_steps=20", "num_episodes=3",
         f"run_root={root}", *words],
        cwd=place, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    (folder,) = (place / root).iterdir()
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_protocol_and_counts(checkpoint: Path, tmp_path: Path) -> None:
    policy = f"policy={checkpoint}"
    summary = evaluate(tmp_path, "rti", policy, "num_envs=1", "rti.level=25", "rti.steps=3", "rti.max_jump=100.0")
    told = summary["protocol"]["policy"]
    assert told["class"] == "WarmStartedPolicy"
    assert told["sampling"] == "rti (noised) at levels 25, 13, 1; first eta0, 10 steps"
    assert told["rti"] == {
        "level": 25, "steps": 3, "start": "noised", "discrete_at": [], "discrete_scale": 1.0, "max_jump": 100.0,
        "levels": [25, 13, 1],
    }  # fmt: skip
    assert summary["env_steps"] == 60
    assert summary["rti_decisions"] == {"warm": 27, "first": 3, "jump": 0, "full": 0}
    full = evaluate(tmp_path, "full", policy, "rti.level=91")
    plain = evaluate(tmp_path, "plain", policy)
    assert "rti_decisions" not in plain
    assert full["total_reward_mean"] == plain["total_reward_mean"]
    assert full["action_jerk_rms"] == plain["action_jerk_rms"] != summary["action_jerk_rms"]


def test_the_jump_that_was_measured_on_the_run_counts(checkpoint: Path, tmp_path: Path) -> None:
    found = {}
    for name, measured in (("small", 1e-6), ("large", 100.0)):
        (tmp_path / "rti.json").write_text(json.dumps({"chosen": "a setting", "max_jump": measured}))
        found[name] = evaluate(tmp_path, name, f"policy={checkpoint}", "rti.level=25", "rti.steps=3")
        assert found[name]["protocol"]["policy"]["rti"]["max_jump"] == measured
    assert found["small"]["rti_decisions"] == {"warm": 0, "first": 3, "jump": 27, "full": 0}
    assert found["large"]["rti_decisions"] == {"warm": 27, "first": 3, "jump": 0, "full": 0}


@pytest.mark.parametrize("num_steps", [None, 1, 3])
def test_an_expert_and_a_head_are_refused(checkpoint: Path, tmp_path: Path, num_steps: int | None) -> None:
    """A head of 3 steps has a chain too, but not the levels of its teacher."""
    config = EvaluateConfig(env={"_target_": "robot_rl.envs.point_reach.PointReach"}, rti=WarmStart(level=25))
    if num_steps is not None:
        head = load_policy(checkpoint)[0].one_step_student(num_steps)
        node = {"_target_": "robot_rl.policies.onestep.OneStepPolicy", "config": head.config.to_json()}
        documents = {"policy": node, "spec": head.spec.to_json(), "normalizer": head.normalizer.to_json()}
        path = save_checkpoint(tmp_path, step=2, tensors={"policy": head.state_dict()}, documents=documents)
        config = replace(config, policy=str(path))
    with pytest.raises(PolicyError, match="a diffusion policy for rti"):
        run(config, RunDirectory(tmp_path))
