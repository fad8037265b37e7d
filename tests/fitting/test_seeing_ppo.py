"""RL with an encoder that learns: the ratio begins at exactly one, and a tenth of the regularisers joins the loss."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import Normalizer
from robot_rl.fitting.denoising_ppo import Decisions, PpoConfig, ppo_iteration, sample_latents
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.encoder_fusion import EncoderConfig, RepresentationConfig
from robot_rl.policies.encoder_points import PointEncoderConfig
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

SPEC = EnvSpec(
    env_id="Seen",
    observation={"proprio": ArraySpec("proprio", (2,)), "points": ArraySpec("points", (12, 3))},
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "none", "d"),
    joint_names=(),
    robot="r",
    control_hz=1.0,
    max_episode_steps=1,
)
RULES = RepresentationConfig(reconstruction=0.5, bottleneck=1e-2, anneal_steps=1000, points=6, dropout=0.3)
BATCH = 24


def seeing(rules: RepresentationConfig = RULES) -> DiffusionPolicy:
    torch.manual_seed(0)
    encoder = EncoderConfig(points=PointEncoderConfig(widths=(8,), size=8), proprio_size=8, representation=rules)
    config = DiffusionPolicyConfig(
        horizon=2, execute=2, hidden_width=16, level_embedding=8, num_levels=20, num_steps=3,
        observation_keys=("proprio", "points"), encoder=encoder, mode=SamplingMode.eta1,
    )  # fmt: skip
    return DiffusionPolicy(config, SPEC, Normalizer.identity({"proprio": 2, "points": 3, "action": 2})).train()


def decisions(policy: DiffusionPolicy, *, advantage: float) -> Decisions:
    g = torch.Generator().manual_seed(1)
    seen = Observation(proprio=torch.randn(BATCH, 1, 2, generator=g), points=torch.randn(BATCH, 1, 12, 3, generator=g))
    with torch.no_grad():
        feature = policy.encode(seen)
    return Decisions(feature, sample_latents(policy, feature, g), torch.full((BATCH,), advantage), observation=seen)


def iterated(policy: DiffusionPolicy, batch: Decisions) -> dict[str, Any]:
    """One gradient step of plain SGD, so that a change of weights is minus the gradient."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    config = PpoConfig(batch_size=BATCH, grad_norm=1e9, anchor=0.0)
    return ppo_iteration(policy, batch, optimizer, config=config, generator=torch.Generator().manual_seed(2))


def test_the_ratio_begins_at_exactly_one_in_training_mode() -> None:
    policy = seeing()
    assert iterated(policy, decisions(policy, advantage=1.0))["ratio_error"] == 0.0


def test_without_advantage_the_step_is_a_tenth_of_the_penalty() -> None:
    policy = seeing()
    batch = decisions(policy, advantage=0.0)
    before = copy.deepcopy(policy)
    iterated(policy, batch)
    g = torch.Generator().manual_seed(2)
    rows = torch.randperm(BATCH, generator=g)  # what the iteration drew before the penalty: order, then batches
    torch.randperm(1, generator=g)
    assert batch.observation is not None
    whole = replace(RULES, anneal_steps=0)
    fresh = seeing(whole)
    fresh.load_state_dict(before.state_dict())
    penalty = fresh.encoder.training_condition(batch.observation.map(lambda x: x[rows]), g)[1]
    penalty.backward()  # type: ignore[no-untyped-call]
    named = dict(before.named_parameters())
    moved = 0
    for (name, after), source in zip(policy.named_parameters(), fresh.parameters(), strict=True):
        step = torch.zeros_like(after) if source.grad is None else 0.1 * source.grad
        torch.testing.assert_close(after, named[name] - step, rtol=1e-4, atol=1e-6)
        moved += int(not torch.equal(after, named[name]))
    assert moved > 10


@pytest.mark.parametrize("how", ["frozen", "features"])
def test_an_encoder_that_does_not_learn_gets_no_penalty(how: str) -> None:
    policy = seeing()
    batch = decisions(policy, advantage=0.0)
    if how == "frozen":
        policy.encoder.requires_grad_(False)
    else:
        batch = replace(batch, observation=None)
    before = copy.deepcopy(policy.encoder.state_dict())
    iterated(policy, batch)
    assert all(torch.equal(value, policy.encoder.state_dict()[name]) for name, value in before.items())
