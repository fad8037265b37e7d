"""ContinuingPolicy around a small network: nothing to continue, something to continue, and a caller's inference_mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.contracts import Policy
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReach, PointReachConfig
from robot_rl.errors import PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.types import Observation


@pytest.fixture
def policy() -> DiffusionPolicy:
    torch.manual_seed(0)
    spec = PointReach(PointReachConfig(), num_envs=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = DiffusionPolicyConfig(horizon=6, execute=3, hidden_width=16, level_embedding=8)
    return DiffusionPolicy(config, spec, Normalizer.identity(sizes))


def inputs(policy: DiffusionPolicy, rows: int = 1) -> tuple[Observation, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    observation = Observation(proprio=torch.zeros(rows, 1, 2), state=torch.rand(rows, 1, 4, generator=generator))
    return observation, torch.randn(rows, *policy.noise_shape, generator=generator)


@pytest.mark.parametrize("mode", [SamplingMode.eta0, SamplingMode.eta1])
@pytest.mark.parametrize("is_inference", [False, True])
def test_it_continues_once_and_then_is_the_policy_inside(
    policy: DiffusionPolicy, mode: SamplingMode, is_inference: bool
) -> None:
    policy = policy.with_mode(mode)
    continuing = policy.continuing(5.0)
    assert isinstance(continuing, Policy)
    observation, noise = inputs(policy)
    known = np.float32(0.6 * np.sin(np.arange(12)).reshape(6, 2))
    weight = np.array([1.0, 1, 1, 0.2, 0, 0])
    with torch.inference_mode(is_inference):
        plain = policy.act(observation, noise).actions
        continuing.continue_from(known, weight)
        continuing.reset(np.array([False]))  # PolicyActor calls it before every decision
        got = continuing.act(observation.map(lambda x: x + 0), noise + 0)
        after = continuing.act(observation, noise).actions
        continuing.continue_from(known, weight)
        continuing.reset(np.array([True]))
        reset = continuing.act(observation, noise).actions
    assert torch.equal(plain, after)
    assert torch.equal(plain, reset)
    assert got.execute == 3
    before = (plain[0, :3].numpy() - known[:3]).__abs__().max()
    assert np.abs(got.actions[0, :3].numpy() - known[:3]).max() < 0.5 * before
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_one_env_at_a_time(policy: DiffusionPolicy) -> None:
    continuing = policy.continuing(5.0)
    observation, noise = inputs(policy, rows=2)
    continuing.continue_from(np.zeros((6, 2), np.float32), np.ones(6))
    with pytest.raises(PolicyError, match="one env"):
        continuing.act(observation, noise)
