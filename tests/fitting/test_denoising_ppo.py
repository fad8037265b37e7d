"""PPO over denoising on a small policy: ratio, estimators, tail, and that it goes where the critic says (or away)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from robot_rl.algorithms.diffusion import SamplingMode, leading_levels, reverse_step
from robot_rl.algorithms.ppo import (
    AdvantageRule,
    StepBalance,
    clipped_loss,
    executed_log_prob,
    step_sensitivity,
    step_weights,
)
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.errors import ConfigError, PolicyError, RunError
from robot_rl.fitting.denoising_ppo import (
    Baseline,
    Decisions,
    LogProbReduction,
    PpoConfig,
    StepSampling,
    chain_log_prob,
    decision_kl,
    executed_action,
    ppo_iteration,
    sample_decisions,
    sample_latents,
)
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

SPEC = EnvSpec(
    env_id="Toy",
    observation={"proprio": ArraySpec("proprio", (2,)), "state": ArraySpec("state", (2,))},
    action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "toy"),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)


def make(num_steps: int = 5, horizon: int = 4, execute: int = 2, **other: object) -> DiffusionPolicy:
    torch.manual_seed(0)
    config = DiffusionPolicyConfig(
        mode=SamplingMode.eta1, num_steps=num_steps, horizon=horizon, execute=execute, hidden_width=32, level_embedding=16,
        **other,  # type: ignore[arg-type]
    )  # fmt: skip
    unit = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    modes = {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range}
    policy = DiffusionPolicy(config, SPEC, Normalizer.fit(dict.fromkeys(modes, unit), modes))
    return policy


class NearTarget:
    """Q = -|a - 0.3|^2, V = 0: where a policy must go."""

    def q(self, feature: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -(action - 0.3).square().mean(1)[None].repeat(2, 1)

    def value(self, feature: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(feature))


SMALL = PpoConfig(num_states=64, group=8, epochs=2, batch_size=128, learning_rate=1e-3, kl_stop=50.0, anchor=0.0)


def features(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def mean_q(policy: DiffusionPolicy) -> float:
    latents = sample_latents(policy, features(512, 9), torch.Generator().manual_seed(9))
    return float(NearTarget().q(features(512, 9), executed_action(policy, latents[:, -1]))[0].mean())


def learn(policy: DiffusionPolicy, config: PpoConfig, *, sign: float = 1.0, iterations: int = 12) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=config.learning_rate)
    out = []
    for _ in range(iterations):
        decisions, _ = sample_decisions(policy, NearTarget(), features(200), config=config, generator=generator)
        decisions = replace(decisions, advantage=sign * decisions.advantage)
        out.append(ppo_iteration(policy, decisions, optimizer, config=config, generator=generator))
    return out


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"baseline": Baseline.value, "advantage": AdvantageRule.centre},
        {"steps": StepSampling.uniform},
        {"balance": StepBalance.none},
        {"reduction": LogProbReduction.mean, "clip": 0.02},
    ],
)
def test_policy_goes_where_the_critic_says(change: dict) -> None:
    policy = make()
    before = mean_q(policy)
    log = learn(policy, replace(SMALL, **change))
    assert mean_q(policy) > before + 0.05
    assert all(entry["gradient_steps"] == 8 for entry in log)
    assert len(log[0]["kl"]) == 5


def test_flipped_advantages_go_the_other_way() -> None:
    policy = make()
    before = mean_q(policy)
    learn(policy, SMALL, sign=-1.0)
    assert mean_q(policy) < before


def test_ratio_is_one_before_the_first_step_whatever_the_batches() -> None:
    """float32 through the policy at most 1e-3; float64 through the same step rule at most 1e-5 (P3)."""
    policy = make()
    feature = features(70)
    latents = sample_latents(policy, feature, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = chain_log_prob(policy, latents, feature, reduction=LogProbReduction.sum)
        parts = [
            chain_log_prob(policy, latents[rows], feature[rows], reduction=LogProbReduction.sum)
            for rows in torch.arange(70).split(9)
        ]
    assert float((whole - torch.cat(parts)).abs().max()) < 1e-3
    net = torch.nn.Sequential(torch.nn.Linear(11, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8)).double()

    def output(latent: torch.Tensor, level: int, condition: torch.Tensor) -> torch.Tensor:
        inputs = [latent.flatten(1), condition.double(), torch.full((len(latent), 1), level / 100)]
        return net(torch.cat(inputs, 1)).view_as(latent)

    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(70, 4, 2, dtype=torch.float64, generator=generator)
    for step, level in enumerate(policy.sampler.levels):
        with torch.no_grad():
            mean, std = reverse_step(policy.sampler, latent, output(latent, level, feature), step)
            following = mean + std * torch.randn(mean.shape, dtype=torch.float64, generator=generator)
            old = executed_log_prob(mean, std, following, execute=2)
            again = []
            for rows in torch.arange(70).split(9):
                moved, _ = reverse_step(policy.sampler, latent[rows], output(latent[rows], level, feature[rows]), step)
                again.append(executed_log_prob(moved, std, following[rows], execute=2))
        assert float(((torch.cat(again) - old).exp() - 1).abs().max()) < 1e-5
        latent = following


def test_sampling_under_another_rule_is_caught() -> None:
    policy = make()
    decisions = Decisions(
        features(64), sample_latents(policy, features(64), torch.Generator().manual_seed(0)), torch.ones(64)
    )
    optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=1e-3)

    class Dropout(torch.nn.Module):
        """A denoiser that answers differently each time, as one with dropout does (P16)."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(*inputs) + 0.1 * torch.randn(1)

    policy.denoiser = Dropout(policy.denoiser)
    with pytest.raises(RunError, match="ratios of 1"):
        ppo_iteration(policy, decisions, optimizer, config=SMALL, generator=torch.Generator().manual_seed(0))


def test_uniform_steps_estimate_the_sum_over_steps() -> None:
    """The mean over draws of the gradient with one step in K equals that with all."""
    policy = make()
    feature = features(400)
    latents = sample_latents(policy, feature, torch.Generator().manual_seed(0))
    advantage = torch.randn(400, generator=torch.Generator().manual_seed(3))
    clip = torch.full((5,), 0.2)

    def gradient(only: torch.Tensor | None) -> torch.Tensor:
        policy.zero_grad()
        new = chain_log_prob(policy, latents, feature, reduction=LogProbReduction.sum, only=only)
        if only is not None:
            with torch.no_grad():
                old = chain_log_prob(policy, latents, feature, reduction=LogProbReduction.sum)
            new = torch.where(torch.nn.functional.one_hot(only, 5).bool(), new, old)
        clipped_loss(new, new.detach(), advantage, clip=clip).backward()
        return torch.cat([p.grad.flatten() for p in policy.denoiser.parameters()])

    whole = gradient(None)
    shifts = [(torch.arange(400) + k) % 5 for k in range(5)]  # every row takes every step once
    drawn = sum(5 * gradient(only) for only in shifts) / 5
    assert torch.allclose(drawn, whole, atol=1e-4 * float(whole.abs().max()))


def test_unexecuted_actions_do_not_count() -> None:
    policy = make()
    feature = features(20)
    latents = sample_latents(policy, feature, torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, -1, 2:] += 5.0
    same = [chain_log_prob(policy, x, feature, reduction=LogProbReduction.sum)[:, -1] for x in (latents, changed)]
    assert torch.equal(*same)
    total, mean = (
        chain_log_prob(policy, latents, feature, reduction=r) for r in (LogProbReduction.sum, LogProbReduction.mean)
    )
    assert torch.allclose(total / 4, mean)  # two executed actions of two dimensions


def test_anchor_at_zero_asks_and_draws_nothing() -> None:
    def fit(anchor: object) -> list[torch.Tensor]:
        policy, generator = make(), torch.Generator().manual_seed(2)
        decisions, _ = sample_decisions(policy, NearTarget(), features(50), config=SMALL, generator=generator)
        optimizer = torch.optim.Adam(policy.denoiser.parameters(), lr=1e-3)
        ppo_iteration(policy, decisions, optimizer, config=SMALL, generator=generator, anchor=anchor)
        return [p.detach() for p in policy.denoiser.parameters()]

    def forbidden(_policy: object, _generator: torch.Generator) -> torch.Tensor:
        raise AssertionError("asked for")

    assert all(torch.equal(a, b) for a, b in zip(fit(None), fit(forbidden), strict=True))


def test_kl_between_policies_is_exact_for_a_shifted_output() -> None:
    """KL_k = s_k^2 |shift|^2 / 2 over the executed actions, without the clamp (algorithms.md 6.1)."""
    incumbent = make(clip_sample=None)
    moved = copy.deepcopy(incumbent)

    class Shifted(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(*inputs) + 0.1

    moved.denoiser = Shifted(moved.denoiser)
    found = decision_kl(moved, incumbent, features(30), torch.Generator().manual_seed(0))
    expected = step_sensitivity(incumbent.sampler).square() * 4 * 0.1**2 / 2
    assert torch.allclose(found, expected, rtol=1e-3)
    assert float(decision_kl(incumbent, incumbent, features(30), torch.Generator().manual_seed(0)).max()) == 0.0


def test_sensitivity_against_the_tables() -> None:
    ten = make(num_steps=10).sampler
    # algorithms.md 6.1; the first sigma, 0.8652, is clipped to 0.8.
    table = [1.79112 / 0.8, 1.273, 1.040, 0.950, 0.935, 0.986, 1.134, 1.542, 4.717, 1.331]
    assert step_sensitivity(ten).tolist() == pytest.approx(table, abs=1e-3)
    five = replace(make().sampler, levels=leading_levels(100, 5))
    assert float(step_sensitivity(five).max()) == pytest.approx(8.8, abs=0.05)  # 21 -> 1 (measured.md)
    weights = step_weights(five, StepBalance.fisher)
    assert float(weights.mean()) == pytest.approx(1.0)
    balanced = weights * step_sensitivity(five).square()
    assert float(balanced.max() / balanced.min()) == pytest.approx(1.0, rel=1e-4)
    assert step_weights(five, StepBalance.none).tolist() == [1.0] * 5
    with pytest.raises(PolicyError, match="eta1"):
        step_sensitivity(replace(five, mode=SamplingMode.eta0))


def test_kl_stop_ends_the_iteration_and_one_action_has_no_group() -> None:
    log = learn(make(), replace(SMALL, kl_stop=1e-6, epochs=4), iterations=1)
    assert log[0]["gradient_steps"] == 1
    with pytest.raises(ConfigError, match="at least 2"):
        learn(make(), replace(SMALL, group=1), iterations=1)
