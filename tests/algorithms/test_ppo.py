"""PPO over denoising: the policy-gradient identity, hand numbers, and chains whose ratio is one."""

from __future__ import annotations

import math

import pytest
import torch

from robot_rl.algorithms.diffusion import (
    Prediction,
    Sampler,
    SamplingMode,
    leading_levels,
    reverse_step,
    sample_chain,
    step_coefficients,
)  # fmt: skip
from robot_rl.algorithms.ppo import (
    AdvantageRule,
    clip_schedule,
    clipped_loss,
    dominating_steps,
    executed_log_prob,
    scale_advantage,
    step_statistics,
    value_loss,
)  # fmt: skip


@pytest.mark.parametrize("baseline", [0.0, -1.7])
def test_gradient_of_the_surrogate_is_the_policy_gradient(baseline: float) -> None:
    """a ~ N(g x + h, s^2), r = -(a - c)^2: dJ/dh = -2 (g mx + h - c), for any constant baseline."""
    g, s, c, mean_x, std_x = 0.7, 0.3, 0.5, 0.2, 0.4
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(100_000, 2, generator=generator, dtype=torch.float64)
    # Antithetic pairs: odd moments vanish exactly, so a constant baseline drops out as it does in expectation.
    x, z = (torch.cat([half, -half])[:, i] for i in (0, 1))
    x = mean_x + std_x * x
    h = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    action = (g * x + h + s * z).detach()
    new = executed_log_prob((g * x + h)[:, None, None], s, action[:, None, None], execute=1)[:, None]
    advantage = -((action - c) ** 2) - baseline
    clip = torch.tensor([0.2], dtype=torch.float64)
    clipped_loss(new, new.detach(), advantage, clip=clip).backward()
    assert h.grad is not None
    assert -float(h.grad) == pytest.approx(-2 * (g * mean_x + 0.1 - c), abs=0.01)


def test_clipped_loss_by_hand() -> None:
    """Ratios 1.5 and 0.5 with e = 0.2: a gain stops at 1.2, a loss does not stop when it would help."""
    new = torch.log(torch.tensor([[1.5, 0.5], [1.5, 0.5]]))
    clip = torch.tensor([0.2, 0.2])
    loss = clipped_loss(new, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), clip=clip)
    # A=1: min(1.5, 1.2) + min(0.5, 0.8); A=-1: min(-1.5, -1.2) + min(-0.5, -0.8).
    assert float(loss) == pytest.approx(-((1.2 + 0.5) + (-1.5 - 0.8)) / 2)


def test_clip_range_belongs_to_its_step() -> None:
    new = torch.log(torch.tensor([[1.5, 1.5]]))
    loss = clipped_loss(new, torch.zeros(1, 2), torch.tensor([1.0]), clip=torch.tensor([0.1, 0.4]))
    assert float(loss) == pytest.approx(-(1.1 + 1.4))


def test_schedule_of_dppo() -> None:
    schedule = clip_schedule(10, last=0.01, first=0.001, rate=3.0)
    assert schedule[[0, 5, 9]].tolist() == pytest.approx([0.001, 0.003025, 0.01], abs=1e-6)
    assert clip_schedule(3, last=0.2, first=0.1, rate=0.0).tolist() == pytest.approx([0.1, 0.15, 0.2])
    assert clip_schedule(1, last=0.2, first=0.1, rate=3.0).tolist() == pytest.approx([0.2])


def test_kl_estimate_of_a_shifted_gaussian_is_the_closed_form() -> None:
    """E[(r-1) - log r] under the old policy is d^2 / (2 s^2)."""
    generator = torch.Generator().manual_seed(1)
    d, s = 0.05, 0.2
    half = torch.randn(200_000, generator=generator, dtype=torch.float64)
    following = s * torch.cat([half, -half])[:, None, None]
    old = executed_log_prob(torch.zeros_like(following), s, following, execute=1)[:, None]
    new = executed_log_prob(torch.full_like(following, d), s, following, execute=1)[:, None]
    found = step_statistics(new, old, clip=torch.tensor([0.2], dtype=torch.float64))
    assert float(found["kl"]) == pytest.approx(d**2 / (2 * s**2), rel=0.01)
    assert float((new - old).exp().mean()) == pytest.approx(1.0, abs=2e-3)
    # |r - 1| > 0.2 where z lies outside (log(0.8 or 1.2) + d^2/2s^2) s/d of a standard normal.
    low, high = ((math.log(x) + d**2 / (2 * s**2)) * s / d for x in (0.8, 1.2))
    normal = torch.distributions.Normal(0.0, 1.0)
    outside = 1 - float(normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low)))
    assert float(found["clip_share"]) == pytest.approx(outside, abs=3e-3)


def test_ratio_is_one_when_nothing_changed_and_the_kl_formula_holds_when_it_did() -> None:
    """KL_k = ce^2 |d eps|^2 / (2 s^2) exactly while no clamp is active (algorithms.md 6.1)."""
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 6).double()

    def denoise(latent: torch.Tensor, level: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        return net(latent.double().flatten(1)).view_as(latent).to(latent.dtype) * 0.1 + shift

    sampler = Sampler(
        levels=leading_levels(100, 10), prediction=Prediction.epsilon, mode=SamplingMode.eta1, clip_sample=None
    )
    noise = torch.randn(32, 11, 3, 2)
    chain = sample_chain(denoise, noise, sampler)
    rows = step_coefficients(sampler)
    for step, row in enumerate(rows):
        latent, following = chain.latents[:, step], chain.latents[:, step + 1]
        level = chain.levels[step].expand(32)
        mean, std = reverse_step(sampler, latent, denoise(latent, level), step)
        again = executed_log_prob(mean, std, following, execute=3)
        assert float((again - chain.log_prob[:, step]).abs().max()) < 1e-3
        moved, _ = reverse_step(sampler, latent, denoise(latent, level, shift=0.01), step)
        ce = row.direction - row.next_signal * row.noise / row.signal
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(moved.double(), std), torch.distributions.Normal(mean.double(), std)
        ).sum(dim=(1, 2))
        assert kl.tolist() == pytest.approx(
            [ce**2 * 6 * 0.01**2 / (2 * std**2)] * 32, rel=1e-2
        )  # float32 means differ by 1e-2


def test_the_tail_that_is_not_played_has_no_log_probability() -> None:
    mean, following = torch.zeros(2, 4, 3), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    changed = following.clone()
    changed[:, 2:] = 99.0
    assert torch.equal(
        executed_log_prob(mean, 0.5, following, execute=2), executed_log_prob(mean, 0.5, changed, execute=2)
    )


def test_advantage_rules() -> None:
    bad = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    assert bool((scale_advantage(bad, rule=AdvantageRule.scale) < 0).all())
    centred = scale_advantage(bad, rule=AdvantageRule.centre)
    assert centred.tolist() == pytest.approx([1.2247449, 0.0, -1.2247449])
    assert not centred.requires_grad
    assert scale_advantage(torch.zeros(3), rule=AdvantageRule.centre).tolist() == [0.0, 0.0, 0.0]
    assert scale_advantage(bad, rule=AdvantageRule.none).tolist() == [-1.0, -2.0, -3.0]


def test_a_step_that_eats_the_trust_region_is_named() -> None:
    assert dominating_steps(torch.tensor([0.01, 0.01, 0.4, 0.01, 0.02])) == [2]
    assert dominating_steps(torch.tensor([0.01, 0.02, 0.04])) == []


def test_value_loss_by_hand() -> None:
    value, target, old = torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.5])
    assert float(value_loss(value, target, old=None, clip=0.2)) == 0.5
    # Clipped to 0.7: the larger loss counts.
    assert float(value_loss(value, target, old=old, clip=0.2)) == 0.5
    assert float(value_loss(torch.tensor([0.1]), target, old=old, clip=0.2)) == pytest.approx(0.5 * 0.3**2)
