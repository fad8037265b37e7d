"""Every stage on a policy that sees points, and on one that sees pictures: imitation, offline RL with cached features,
online RL with an encoder that learns, one step, export. What they are worth is not asked here, only that each does what it
says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robot_rl.runs.checkpoint import load_checkpoint

ENV = ["env=point_reach", "env.max_episode_steps=20"]
SENSES = {
    "points": (
        ["env.num_points=16"],
        ["encoder=points_regularised", "policy.encoder.points.widths=[32,64]", "policy.encoder.representation.points=8"],
    ),
    "image/top": (
        ["env.image_size=16"],
        ["encoder=rgb", "policy.observation_keys=[proprio,image/top]", "policy.encoder.images.width=8",
         "policy.encoder.images.num_stages=1", "policy.encoder.images.keypoints=8", "policy.encoder.images.jitter=0.05",
         "policy.encoder.representation.reconstruction=0.5", "policy.encoder.representation.bottleneck=0.001"],
    ),
}  # fmt: skip
SHORT = [
    "critic.hidden_width=32", "dynamics.hidden_width=32", "dynamics.num_members=3", "critic_fit.num_steps=60",
    "critic_fit.check_every_steps=30", "model_fit.num_steps=60", "judge.fqe_bootstrap=20", "judge.num_starts=20",
    "ppo.num_states=32", "ppo.batch_size=64", "ppo.proposals=1", "ppo.iterations=1", "methods=[ppo]",
]  # fmt: skip


def robot_rl(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", *words], cwd=cwd, capture_output=True, text=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sense", SENSES)
def test_the_whole_chain(sense: str, tmp_path: Path) -> None:
    env, encoder = [*ENV, *SENSES[sense][0]], SENSES[sense][1]
    words = ["expert=point_reach", "expert.noise_sd=0.2", "num_episodes=40", "dataset=demos.zarr"]
    robot_rl("collect", *env, *words, cwd=tmp_path)
    words = [
        *encoder, "policy.encoder.representation.anneal_steps=50", "policy.hidden_width=32", "policy.execute=2", "policy.horizon=4",
        "policy.num_steps=4", "policy.num_levels=20", "train.num_steps=500", "train.batch_size=64", "train.threads=1",
        "policy.prediction=sample", "train.learning_rate=0.003", "train.ema_max=0.95", "train.warmup_steps=10",
        "only_success=false", "dataset=demos.zarr", "run_root=imitate",
    ]  # fmt: skip
    robot_rl("imitate", *env, *words, cwd=tmp_path)
    first = only(tmp_path / "imitate")

    words = [f"policy={first}", "datasets=[demos.zarr]", "feature_cache=features", *SHORT]
    logs = [robot_rl("offline", *words, f"run_root=offline_{i}", cwd=tmp_path) for i in range(2)]
    (kept,) = (tmp_path / "features").glob("*.safetensors")
    assert f"from features/{kept.name}" not in logs[0]
    assert f"features/{kept.name}" in logs[1]
    decisions = [(only(tmp_path / f"offline_{i}") / "ope/decisions.jsonl").read_text() for i in range(2)]
    assert decisions[0] == decisions[1]
    offline = only(tmp_path / "offline_0")
    was, now = load_checkpoint(first).tensors["policy"], load_checkpoint(offline).tensors["policy"]
    assert all(torch.equal(was[name], now[name]) for name in was if name.startswith("encoder."))

    words = [f"policy={offline}", "train_encoder=true", "max_env_steps=700", "episodes_per_iteration=20", "num_envs=20"]
    words += ["warmup_iterations=1", "max_kl=1000", "run_root=online"]
    robot_rl("online", *env, *words, cwd=tmp_path)
    online = only(tmp_path / "online")
    learned = load_checkpoint(online).tensors["policy"]
    # Features, their bottleneck and the decoders: PPO moves the first two, only the penalty the last.
    for part in (f"parts.{sense}", f"bottlenecks.{sense}.mean", f"decoders.{sense}"):
        moved = [name for name in now if name.startswith(f"encoder.{part}")]
        assert moved
        assert any(not torch.equal(now[name], learned[name]) for name in moved), part

    words = [f"policy={online}", "train.num_steps=20", "train.threads=1", "dataset=demos.zarr", "run_root=student"]
    robot_rl("distill_onestep", *env, *(w.replace("policy=", "teacher=") for w in words), cwd=tmp_path)
    robot_rl(
        "export", f"policy={only(tmp_path / 'student')}", "dataset=demos.zarr", "latency_calls=3", "run_root=export",
        cwd=tmp_path,
    )  # fmt: skip
    assert (only(tmp_path / "export") / "export/policy.onnx").is_file()
