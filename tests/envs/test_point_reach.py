"""PointReach and its expert."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from robot_rl.contracts import VectorEnv
from robot_rl.envs.point_reach import PointReachConfig, PointReachExpert, PointReachExpertConfig, PointReward, make_env
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation


def roll(num_envs: int, seeds: list[int], *, noise_sd: float = 0.0, config: PointReachConfig | None = None) -> dict:
    env = make_env(config or PointReachConfig(), num_envs=num_envs, history=1)
    expert = PointReachExpert(PointReachExpertConfig(noise_sd=noise_sd), env.spec)
    observation, new = env.reset(seeds), np.ones(num_envs, dtype=bool)
    ends: dict[int, tuple] = {}
    for steps in itertools.count(1):
        before = env.episode_seeds
        if (before < 0).all():
            return ends
        assert steps < 1000
        result = env.step(expert.act(observation, episode_seeds=before, new_episode=new))
        observation, new = result.observation, (result.terminated | result.truncated).numpy()
        for row in np.flatnonzero(new):
            end = (result.success[row].item(), result.truncated[row].item())
            ends[int(before[row])] = (*end, result.final_observation.state[row, -1].tolist())


def test_expert_reaches_every_goal():
    ends = roll(4, list(range(20)))
    assert sorted(ends) == list(range(20))
    assert all(success for success, _, _ in ends.values())


def test_noise_depends_on_the_episode_alone():
    noisy = roll(1, list(range(8)), noise_sd=0.3)
    assert roll(3, list(range(8)), noise_sd=0.3) == noisy
    assert roll(1, list(range(8))) != noisy


def test_hand_numbers():
    env = make_env(PointReachConfig(reward_mode=PointReward.dense), num_envs=1, history=1)
    assert isinstance(env, VectorEnv)
    start = env.reset([3]).state[0, 0]
    actions = torch.tensor([[[0.5, -0.25], [2.0, 0.0]]])  # the second is beyond 1 and is clipped to 1
    result = env.step(ActionChunk(actions=actions, execute=2))
    expected = start[:2] + torch.tensor([0.05 + 0.1, -0.025])
    torch.testing.assert_close(result.observation.state[0, 0, :2], expected.clamp(-1, 1))
    torch.testing.assert_close(result.observation.state[0, 0, 2:], start[2:])
    torch.testing.assert_close(result.rewards[0, 1], -(start[2:] - expected).norm())
    torch.testing.assert_close(result.observation.proprio[0, 0], expected)


def test_time_limit_and_sparse_reward():
    env = make_env(PointReachConfig(), num_envs=1, history=1)
    env.reset([0])
    result = env.step(ActionChunk(actions=torch.zeros(1, 40, 2), execute=40))
    assert result.executed.item() == 30
    assert (result.truncated.item(), result.terminated.item()) == (True, False)
    assert result.rewards.abs().sum() == 0


@pytest.mark.parametrize("has_obstacle", [False, True])
def test_obstacle_kills(has_obstacle):
    env = make_env(PointReachConfig(has_obstacle=has_obstacle), num_envs=1, history=1)
    died = []
    for seed in range(5):
        state = env.reset([seed]).state
        for _ in range(12):  # straight to the middle
            result = env.step(ActionChunk(actions=(-state[:, -1:, :2] / 0.1).clamp(-1, 1), execute=1))
            state = result.observation.state
            if env.episode_seeds[0] < 0:
                break
        died.append(result.terminated.item() and not result.success.item())
    assert died == [has_obstacle] * 5


def test_spec_round_trip_and_start_states():
    env = make_env(PointReachConfig(), num_envs=5, history=2)
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    state = env.reset(range(5)).state
    assert state.shape == (5, 2, 4)
    distance = (state[:, 0, 2:] - state[:, 0, :2]).norm(dim=1)
    assert (distance > 0.3).all()
    assert len({tuple(row) for row in state[:, 0].tolist()}) == 5


def test_expert_leaves_its_observation_alone():
    env = make_env(PointReachConfig(), num_envs=2, history=1)
    observation: Observation = env.reset([1, 2])
    before = observation.state.clone()
    expert = PointReachExpert(PointReachExpertConfig(noise_sd=0.5), env.spec)
    chunk = expert.act(observation, episode_seeds=np.array([1, -1]), new_episode=np.array([True, False]))
    assert torch.equal(observation.state, before)
    assert chunk.actions.shape == (2, 1, 2)
    assert chunk.actions.abs().max() <= 1
