"""Our Gaussian PPO: densities and one update against closed forms, and a task it must solve."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.normalizer import unit_actions
from robot_rl.envs.point_reach import PointReachConfig, PointReward, make_env
from robot_rl.errors import RunError
from robot_rl.policies.baseline_gaussian import (
    GaussianPpo,
    GaussianPpoConfig,
    play,
    update,
)
from robot_rl.policies.baseline_mlp import BaselineMlpConfig, BaselineMlpPolicy
from robot_rl.policies.gaussian_actor_critic import GaussianActorCritic

KEYS = ("state",)
SMALL = GaussianPpoConfig(hidden=(32,), num_steps=10, batch_size=64, observation_keys=KEYS)


def network_and_env(num_envs: int = 4) -> tuple[GaussianActorCritic, Any]:
    env = make_env(PointReachConfig(), num_envs=num_envs, history=1)
    policy = BaselineMlpPolicy(
        BaselineMlpConfig(hidden=(32,), observation_keys=KEYS), env.spec, unit_actions(env.spec, KEYS)
    )
    generator = torch.Generator().manual_seed(0)
    return GaussianActorCritic(policy, log_std_init=-0.5, generator=generator), env


def test_log_prob_is_torchs() -> None:
    network, env = network_and_env()
    feature = torch.randn(7, network.policy.encoder.size)
    action = torch.randn(7, env.spec.action.size)
    mean = network.policy.mean(network.policy.body(feature))
    expected = torch.distributions.Normal(mean, network.policy.log_std.exp()).log_prob(action).sum(-1)
    assert torch.allclose(network.log_prob(feature, action), expected, atol=1e-5)
    env.close()


def test_a_batch_is_what_was_played() -> None:
    """Old log-probabilities are those of the actor that played; frames follow each other but over an end."""
    network, env = network_and_env()
    batches = play(network, env, itertools.count(0), steps=60, generator=torch.Generator().manual_seed(1))
    batch = next(batches)
    again = network.log_prob(batch.feature.flatten(0, 1), batch.action.flatten(0, 1))
    assert torch.allclose(again, batch.log_prob.flatten(), atol=1e-5)
    ended = batch.terminated | batch.truncated
    assert ended.any()
    same = (batch.next_feature[:-1] == batch.feature[1:]).all(-1)
    assert bool(same[~ended[:-1]].all())
    assert not bool(same[ended[:-1]].any())
    # The next roll-out goes on where this one stopped.
    following = next(batches)
    goes_on = ~ended[-1]
    assert bool((following.feature[0] == batch.next_feature[-1]).all(-1)[goes_on].all())
    env.close()


def test_the_first_step_follows_the_policy_gradient() -> None:
    """One minibatch of one epoch at ratio 1: the gradient of -A log p, advantages centred; V apart."""
    network, env = network_and_env()
    batch = next(play(network, env, itertools.count(0), steps=10, generator=torch.Generator().manual_seed(1)))
    config = replace(SMALL, epochs=1, batch_size=10_000, max_grad_norm=1e9, learning_rate=0.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    update(network, batch, optimizer, config=config, generator=torch.Generator().manual_seed(0))
    found = network.policy.mean.weight.grad
    assert found is not None
    found = found.clone()
    # Second implementation: GAE by its definition as a sum, step by step and env by env.
    with torch.no_grad():
        value, behind = network.value(batch.feature).squeeze(-1), network.value(batch.next_feature).squeeze(-1)
    gain = torch.zeros_like(batch.reward)
    for env_row in range(gain.shape[1]):
        for start in range(gain.shape[0]):
            factor = 1.0
            for row in range(start, gain.shape[0]):
                alive = float(~batch.terminated[row, env_row])
                delta = batch.reward[row, env_row] + 0.8 * alive * behind[row, env_row] - value[row, env_row]
                gain[start, env_row] += factor * delta
                if batch.terminated[row, env_row] or batch.truncated[row, env_row]:
                    break
                factor *= 0.8 * 0.9
    gain = (gain - gain.mean()) / gain.std(unbiased=False)
    network.zero_grad()
    log_prob = network.log_prob(batch.feature.flatten(0, 1), batch.action.flatten(0, 1))
    (-(gain.flatten() * log_prob).mean()).backward()
    expected = network.policy.mean.weight.grad
    assert expected is not None
    assert torch.allclose(found, expected, atol=1e-5)
    env.close()


def test_kl_stop_ends_an_update() -> None:
    network, env = network_and_env()
    batch = next(play(network, env, itertools.count(0), steps=20, generator=torch.Generator().manual_seed(1)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    numbers = update(
        network, batch, optimizer, config=replace(SMALL, kl_stop=0.01), generator=torch.Generator().manual_seed(0)
    )
    assert numbers["kl"] > 0.01
    assert numbers["minibatches"] < SMALL.epochs
    env.close()


@pytest.mark.parametrize(
    ("reward", "term", "says"),
    [
        (
            0.0,
            float("nan"),
            r"ratio -?[\d.e-]+, value [\d.e-]+, teacher term nan.*student\.learning_rate.*check teacher",
        ),
        (float("nan"), 0.0, r"ratio nan, value nan, teacher term 0\..*scale of the rewards"),
        (float("nan"), None, r"ratio nan, value nan\..*algo\.learning_rate.*scale of the rewards"),
    ],
)
def test_a_loss_that_is_no_number_is_named(reward: float, term: float | None, says: str) -> None:
    network, env = network_and_env()
    generator = torch.Generator().manual_seed(1)
    batch = next(play(network, env, itertools.count(), steps=10, generator=generator))
    optimizer = torch.optim.Adam(network.parameters())
    added = None if term is None else (lambda rows, scaled: torch.tensor(term))
    with pytest.raises(RunError, match=says):
        update(
            network,
            replace(batch, reward=batch.reward + reward),
            optimizer,
            config=SMALL,
            generator=generator,
            term=added,
        )


def learned(num_steps: int) -> list[tuple[int, float]]:
    """(env steps, success of 32 deterministic episodes) before and after `num_steps` on PointReach with dense reward."""
    config = PointReachConfig(reward_mode=PointReward.dense)
    env, trial = make_env(config, num_envs=16, history=1), make_env(config, num_envs=32, history=1)
    found: list[tuple[int, float]] = []

    def on_evaluation(steps: int, policy: BaselineMlpPolicy, numbers: Any) -> None:
        played = policy.with_mode(SamplingMode.mean)
        observation, won = trial.reset(range(32)), torch.zeros(32, dtype=torch.bool)
        while bool((trial.episode_seeds >= 0).any()):
            result = trial.step(played.act(observation, torch.zeros(32, *played.noise_shape)))
            observation, won = result.observation, won | result.success
        found.append((steps, float(won.float().mean())))

    learner = GaussianPpo(replace(SMALL, learning_rate=3e-3, batch_size=160, num_steps=20))
    learner.learn(
        env, num_steps=num_steps, seed=0, first_env_seed=1000, evaluate_every=num_steps, on_evaluation=on_evaluation
    )
    env.close()
    trial.close()
    return found


def test_it_learns() -> None:
    (start, before), (end, after) = learned(12_000)
    assert start == 0
    assert 12_000 <= end < 12_000 + 16 * 20
    assert before < 0.5
    assert after > 0.8


def test_it_repeats() -> None:
    assert learned(640) == learned(640)
