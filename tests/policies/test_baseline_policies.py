"""Actors of the baselines, rebuilt without their library: hand numbers for every head."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import unit_actions
from robot_rl.errors import EnvError, PolicyError
from robot_rl.policies.baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy, GaussianHead
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Observation

SPEC = EnvSpec(
    env_id="Two",
    observation={"proprio": ArraySpec("proprio", (1,)), "state": ArraySpec("state", (2,))},
    action=ArraySpec("action", (1,), low=(10.0,), high=(30.0,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "two"),
    joint_names=("j",),
    robot="two",
    control_hz=4.0,
    max_episode_steps=6,
)
# state (1, 2) -> hidden tanh/relu(0.5) -> mean 2 * hidden, spread layer: constant.
X = Observation(proprio=torch.zeros(1, 1, 1), state=torch.tensor([[[1.0, 2.0]]]))


def actor(head: GaussianHead, *, activation: str, spread: float, is_stochastic: bool = True) -> BaselineMlpPolicy:
    config = BaselineMlpConfig(head=head, hidden=(1,), activation=activation, is_stochastic=is_stochastic)
    policy = BaselineMlpPolicy(config, SPEC, unit_actions(SPEC, ("state",)))
    with torch.no_grad():
        policy.body[0].weight.copy_(torch.tensor([[-0.5, 0.5]]))
        policy.body[0].bias.zero_()
        policy.mean.weight.fill_(2.0)
        policy.mean.bias.fill_(-1.4)
        if head is GaussianHead.clipped:
            policy.log_std.fill_(spread)
        else:
            policy.spread.weight.zero_()
            policy.spread.bias.fill_(spread)
    return policy


def test_clipped_head_is_ppo() -> None:
    """m = 2 tanh(0.5) - 1.4, s = exp(-1): m + s e, clipped to [-1, 1], then to 10..30."""
    mean = 2 * math.tanh(0.5) - 1.4
    policy = actor(GaussianHead.clipped, activation="tanh", spread=-1.0)
    drawn = policy.act(X, torch.full((1, 1, 1, 1), 0.7)).actions
    assert drawn.shape == (1, 1, 1)
    assert float(drawn) == pytest.approx(20 + 10 * (mean + 0.7 / math.e), abs=1e-5)
    assert float(policy.act(X, torch.full((1, 1, 1, 1), 9.0)).actions) == 30.0
    centre = policy.with_mode(SamplingMode.mean)
    assert centre.noise_shape == (0, 1, 1)
    assert float(centre.act(X, torch.zeros(1, 0, 1, 1)).actions) == pytest.approx(20 + 10 * mean, abs=1e-5)
    assert policy.noise_shape == (1, 1, 1)  # with_mode changed a copy


def test_squashed_head_is_sac() -> None:
    """m = 2 * 0.5 - 1.4 = -0.4, log s = 3 clamped to 2: tanh(m + e^2 e)."""
    policy = actor(GaussianHead.squashed, activation="relu", spread=3.0)
    drawn = float(policy.act(X, torch.full((1, 1, 1, 1), 0.1)).actions)
    assert drawn == pytest.approx(20 + 10 * math.tanh(-0.4 + 0.1 * math.exp(2)), abs=1e-5)
    centre = float(policy.with_mode(SamplingMode.mean).act(X, torch.zeros(1, 0, 1, 1)).actions)
    assert centre == pytest.approx(20 + 10 * math.tanh(-0.4), abs=1e-5)


def test_bounded_mean_head_is_robomimic() -> None:
    """tanh(m) + s e with s = 0.3 softplus(n) / log 2, 0.3 at n = 0, and at least 0.007."""
    policy = actor(GaussianHead.bounded_mean, activation="relu", spread=0.0)
    drawn = float(policy.act(X, torch.full((1, 1, 1, 1), 0.5)).actions)
    assert drawn == pytest.approx(20 + 10 * (math.tanh(-0.4) + 0.5 * 0.3), abs=1e-5)
    narrow = actor(GaussianHead.bounded_mean, activation="relu", spread=-20.0)
    drawn = float(narrow.act(X, torch.full((1, 1, 1, 1), 10.0)).actions)
    assert drawn == pytest.approx(20 + 10 * (math.tanh(-0.4) + 0.07), abs=1e-5)


def test_the_exported_graph_says_what_act_says() -> None:
    policy = actor(GaussianHead.clipped, activation="tanh", spread=-1.0)
    noise = torch.full((1, 1, 1, 1), 0.3)
    assert torch.equal(policy({"state": X.state}, noise), policy.act(X, noise).actions)


def test_refusals() -> None:
    policy = actor(GaussianHead.clipped, activation="tanh", spread=0.0)
    with pytest.raises(PolicyError, match="eta0"):
        policy.with_mode(SamplingMode.eta0)
    with pytest.raises(PolicyError, match="noise"):
        policy.act(X, torch.zeros(1, 0, 1, 1))
    with pytest.raises(PolicyError, match="horizon=execute=1"):
        BaselineMlpPolicy(BaselineMlpConfig(horizon=4), SPEC, unit_actions(SPEC, ("state",)))
    from dataclasses import replace

    with pytest.raises(EnvError, match="bounds"):
        unit_actions(replace(SPEC, action=ArraySpec("action", (1,))), ("state",))
