"""The pipeline with both RL stages, on the point task: what `make demo` does, where it takes a minute to learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WORDS = [
    "env=point_reach", "expert=point_reach", "env.max_episode_steps=20", "~env.fast_cpu", "expert.noise_sd=0.3",
    *(f"~expert.{name}" for name in ("speed_low", "speed_high", "grasp_offset_m", "goal_offset_m", "action_noise")),
    "~expert.early_close_probability", "~expert.drop_probability", "task=point", "policy.hidden_width=64",
    "policy.execute=2", "policy.horizon=4", "policy.num_steps=5", "collect.num_episodes=60", "imitate.train.num_steps=1500",
    "imitate.train.checkpoint_every_steps=1500", "imitate.train.batch_size=64", "rollouts.num_episodes=60",
    "critic.hidden_width=32", "dynamics.hidden_width=32", "dynamics.num_members=2", "offline.critic_fit.num_steps=200",
    "offline.critic_fit.check_every_steps=100", "offline.model_fit.num_steps=100", "offline.judge.fqe_bootstrap=50",
    "offline.imitation.train.num_steps=300", "online.max_env_steps=16000", "online.max_kl=1.0", "online.episodes_per_iteration=60",
    "online.ppo.batch_size=256", "online.ppo.learning_rate=3e-4", "distill_onestep.train.num_steps=1000",
    "distill_onestep.train.batch_size=64", "distill_onestep.rollout_episodes=30", "evaluate.num_episodes=60",
    "export.latency_calls=20",
]  # fmt: skip


def test_every_stage_runs_and_the_last_policy_is_better_than_imitation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robot_rl", "pipeline", *WORDS, "--json"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)["stages"]}
    assert list(entries) == ["collect", "imitate", "offline", "online", "distill_onestep", "export"]
    assert entries["offline"]["episodes"] == 60
    assert entries["online"]["env_steps"] >= 16000
    rate = {name: entry["success_once"]["rate"] for name, entry in entries.items()}
    assert rate["export"] > rate["imitate"] + 0.1, rate
