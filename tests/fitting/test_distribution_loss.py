"""Distribution matching as a loss: every level that a student plays is trained."""

from __future__ import annotations

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import Normalizer
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.fitting.distribution_loss import DistributionLoss
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.types import Observation


@pytest.mark.parametrize("num_steps", [1, 2])
def test_every_step_of_the_head_is_in_the_loss(num_steps: int) -> None:
    torch.manual_seed(0)
    spec = make_env(PointReachConfig(), num_envs=1, history=1).spec
    sizes = {key: array.size for key, array in spec.observation.items()} | {"action": spec.action.size}
    config = DiffusionPolicyConfig(
        mode=SamplingMode.eta0, num_steps=4, horizon=2, execute=2, hidden_width=8, level_embedding=8
    )
    teacher = DiffusionPolicy(config, spec, Normalizer.identity(sizes)).eval().requires_grad_(False)
    head = teacher.one_step_student(num_steps)
    levels: list[int] = []
    head.denoiser.register_forward_hook(lambda _module, given, _output: levels.append(int(given[1][0])))
    observation = Observation(proprio=torch.zeros(3, 1, 2), state=torch.rand(3, 1, 4))
    loss = DistributionLoss(teacher, lambda _generator: observation, samples=4, critic=None, reward_weight=0.0)
    value, _ = loss(head, torch.Generator().manual_seed(0))
    value.backward()
    trained, _ = levels.copy(), levels.clear()
    head.normalized_action(observation, torch.zeros(3, *head.noise_shape))
    assert trained == levels == list(head.sampler.levels)
