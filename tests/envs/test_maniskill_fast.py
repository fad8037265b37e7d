"""The fast CPU step against ManiSkill's own, step by step and over whole episodes of the scripted experts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill", reason="ManiSkill is not installed (extra sim)")

import robot_rl.envs.bowling_sim
from robot_rl.envs.experts import ExpertConfig, ScriptedExpert
from robot_rl.envs.maniskill import ManiSkillConfig, RewardMode, SimBackend, make_env
from robot_rl.envs.maniskill_fast import SUPPORTED_TASKS
from robot_rl.errors import EnvError
from robot_rl.rollout import rollout
from robot_rl.types import ActionChunk


@pytest.mark.parametrize("task", SUPPORTED_TASKS)
def test_random_actions_give_the_same_numbers(task: str) -> None:
    """Differences come from the last bit of the tool position that goes into the iterative inverse kinematics."""
    has_dense = task != robot_rl.envs.bowling_sim.ENV_ID
    reward = RewardMode.normalized_dense if has_dense else RewardMode.sparse
    envs = [
        make_env(
            ManiSkillConfig(task, reward_mode=reward, terminate_on_success=False, fast_cpu=fast),
            num_envs=1, history=1,
        )
        for fast in (False, True)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for env in envs:
        env.reset(itertools.count(700))
    worst = 0.0
    for _ in range(100):
        actions = (torch.randn(1, 1, 4, generator=generator) * 0.5).clamp(-1, 1)
        plain, fast = (env.step(ActionChunk(actions=actions, execute=1)) for env in envs)
        assert torch.equal(plain.success, fast.success)
        assert torch.equal(plain.truncated, fast.truncated)
        assert abs(float(plain.rewards) - float(fast.rewards)) < 1e-4
        assert plain.final_observation.state is not None
        assert fast.final_observation.state is not None
        difference = (plain.final_observation.state - fast.final_observation.state).abs()[0, 0]
        difference[9:18] *= 0.05  # rad/s over one control step of 0.05 s
        worst = max(worst, float(difference.max()))
    assert worst < 1e-3
    for env in envs:
        env.close()


@pytest.mark.parametrize("task", ["PickCube-v1", "StackCube-v1"])
def test_grasping_episodes_end_alike(task: str) -> None:
    """The experts look at the grasp signal and at success, so one wrong flag would part the episodes."""
    tables = []
    for fast in (False, True):
        env = make_env(ManiSkillConfig(task, fast_cpu=fast), num_envs=2, history=1)
        records = list(rollout(env, ScriptedExpert(ExpertConfig(), env.spec), range(800, 808)))
        tables.append({record.seed: record for record in records})
        assert env.protocol()["fast_cpu"] is fast
        env.close()
    plain, fast_table = tables
    assert {s: r.success_once for s, r in plain.items()} == {s: r.success_once for s, r in fast_table.items()}
    assert [r.initial_state for r in plain.values()] == [fast_table[s].initial_state for s in plain]
    lengths = np.array([[plain[seed].length, fast_table[seed].length] for seed in plain])
    assert np.abs(lengths[:, 0] - lengths[:, 1]).max() <= 1


@pytest.mark.parametrize(
    "config",
    [
        ManiSkillConfig("PegInsertionSide-v1", fast_cpu=True),
        ManiSkillConfig("PickCube-v1", control_mode="pd_joint_delta_pos", fast_cpu=True),
        ManiSkillConfig("PickCube-v1", sim_backend=SimBackend.physx_cuda, fast_cpu=True),
    ],
)
def test_without_parity_it_is_refused(config: ManiSkillConfig) -> None:
    with pytest.raises(EnvError, match="parity"):
        make_env(config, num_envs=1, history=1)
