"""The stage `success`, and online RL whose reward and ends of episodes are the classifier's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.envs.detected import DetectedEnv
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import ConfigError
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, imitate, online, success
from robot_rl.types import ActionChunk

QUICK = ["train.num_steps=50", "train.batch_size=32", "train.checkpoint_every_steps=50", "policy.num_steps=3"]


def run_stage(stage: Any, name: str, words: list[str], folder: Path) -> tuple[Path, dict[str, Any]]:
    config = load_config(stage.CONFIG, [*words, f"run_root={folder}"], name=name)
    run = RunDirectory.create(folder, stage=name, task="point", seed=0, config_yaml="", command="")
    return run.path, stage.run(config, run)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Noisy demonstrations of PointReach (both kinds), a classifier of them, and an imitation policy."""
    folder = tmp_path_factory.mktemp("success")
    demos = folder / "demos.zarr"
    words = ["env=point_reach", "expert=point_reach", f"dataset={demos}", "num_episodes=80", "keep=all"]
    run_stage(collect, "collect", [*words, "expert.noise_sd=1.5", "env.max_episode_steps=14"], folder)
    judge, _ = run_stage(success, "success", [f"dataset={demos}", "fitter.fit.num_steps=300"], folder)
    policy, _ = run_stage(imitate, "imitate", ["env=point_reach", f"dataset={demos}", *QUICK], folder)
    return {"demos": demos, "judge": judge, "policy": policy}


def test_the_stage_leaves_a_classifier_and_its_figures(made: dict[str, Path]) -> None:
    summary = json.loads((made["judge"] / "summary.json").read_text())
    assert summary["auc"] > 0.85
    assert summary["detected"]["rate"] > 0.5
    assert summary["false_positives"]["n"] >= 3
    classifier, spec, _ = load_policy(made["judge"])
    assert spec.env_id == "PointReach"
    assert classifier.config.on == summary["on"]
    with EpisodeStore.open(made["demos"]) as store:
        assert summary["content_hash"] == store.content_hash()


def test_reward_and_end_come_from_the_detector() -> None:
    """A detector that calls the third frame of every episode a success: reward 0, 0, 1, and the episode ends there."""

    class Third:
        def __init__(self) -> None:
            self.count = np.zeros(2, dtype=np.int64)

        def reset(self, mask: np.ndarray) -> None:
            self.count[mask] = 0

        def update(self, frames: Any) -> np.ndarray:
            assert set(frames) == {"proprio", "state"}
            self.count += 1
            return self.count == 3

    env = make_env(PointReachConfig(), num_envs=2, history=1).judged_by(Third())
    env.reset([0, 1, 2, 3])
    result = env.step(ActionChunk(actions=torch.zeros(2, 4, 2), execute=4))
    assert result.rewards.tolist() == [[0, 0, 1, 0]] * 2
    assert result.executed.tolist() == [3, 3]
    assert result.terminated.tolist() == [True, True]
    assert env.episode_seeds.tolist() == [2, 3]
    again = env.step(ActionChunk(actions=torch.zeros(2, 4, 2), execute=4))
    assert again.step_success.tolist() == [[False, False, True, False]] * 2
    assert env.protocol()["success"] == "success classifier"
    assert isinstance(env._env, DetectedEnv)
    env.close()


def test_online_learns_from_the_classifier(made: dict[str, Path], tmp_path: Path) -> None:
    words = ["env=point_reach", f"policy={made['policy']}", f"success={made['judge']}", "critic=iql"]
    small = ["max_env_steps=600", "episodes_per_iteration=10", "warmup_iterations=0", "ppo.epochs=1", "value.epochs=1"]
    _, summary = run_stage(online, "online", [*words, *small], tmp_path)
    assert summary["protocol"]["reward_mode"] == "success classifier"
    assert summary["env_steps"] >= 600


def test_a_run_of_seconds_is_not_resumed(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="again without resume"):
        run_stage(success, "success", [f"dataset={made['demos']}", "resume=x"], tmp_path)
