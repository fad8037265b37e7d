"""What a round of offline RL reads: rewards of another kind than the critic is told are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robot_rl.data.normalizer import Normalizer
from robot_rl.data.store import EpisodeStore
from robot_rl.envs.point_reach import PointReachConfig, PointReachExpert, PointReachExpertConfig, make_env
from robot_rl.errors import DataError
from robot_rl.fitting.round_data import load_round
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.rollout import rollout
from robot_rl.types import Episode, Source


def test_a_reward_that_comes_again_and_again_is_no_sparse_one(tmp_path: Path) -> None:
    """With targets clamped to [0, 1] all returns above would look alike (P8)."""
    env = make_env(PointReachConfig(), num_envs=4, history=1)
    episodes: list[Episode] = []
    rollout(
        env, PointReachExpert(PointReachExpertConfig(), env.spec), range(20), source=Source.scripted,
        on_episode=lambda _record, episode: episodes.append(episode) if episode else None,
    )  # fmt: skip
    sizes = {key: array.size for key, array in env.spec.observation.items()} | {"action": env.spec.action.size}
    policy = DiffusionPolicy(DiffusionPolicyConfig(hidden_width=8), env.spec, Normalizer.identity(sizes)).eval()

    def loaded(name: str, number: int, *, only_success_rewarded: bool) -> tuple[float, float]:
        with EpisodeStore.create(tmp_path / name, env.spec, metadata={}) as store:
            for index, episode in enumerate(episodes):
                store.append(replace(episode, reward=np.ones_like(episode.reward)) if index < number else episode)
        round_data = load_round(
            [str(tmp_path / name)], policy, gamma=0.98, only_success_rewarded=only_success_rewarded, seed=0,
            device=torch.device("cpu"),
        )  # fmt: skip
        return round_data.bounds

    assert loaded("once.zarr", 0, only_success_rewarded=True) == (0.0, 1.0)
    with pytest.raises(DataError, match="2 of 20 episodes with more, up to"):
        loaded("often.zarr", 2, only_success_rewarded=True)
    assert loaded("dense.zarr", 2, only_success_rewarded=False)[1] > 1
