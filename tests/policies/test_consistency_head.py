"""Consistency distillation: the scalings, and students of exact Gaussian teachers against their closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robot_rl.algorithms.consistency import boundary_scalings, consistency_loss, distance_to_end
from robot_rl.algorithms.diffusion import FinalAlpha, Prediction, SamplingMode, squared_cosine_alpha_bar
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.policies.diffusion import DiffusionPolicy, DiffusionPolicyConfig
from robot_rl.policies.onestep import OneStepHead, OneStepPolicy
from robot_rl.runs.training import TargetLoss, follow
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.stages.distill_onestep import ConsistencyLoss
from robot_rl.types import Observation

MEAN, STD = 0.3, 0.2
SCHEDULE = squared_cosine_alpha_bar(100).float()
SPEC = EnvSpec(
    env_id="Gaussian",
    observation={"proprio": ArraySpec("proprio", (1,)), "state": ArraySpec("state", (1,))},
    action=ArraySpec("action", (1,), low=(-1.0,), high=(1.0,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "toy"),
    joint_names=(),
    robot="none",
    control_hz=20.0,
    max_episode_steps=50,
)


class ExactDenoiser(nn.Module):
    """The best prediction for data N(MEAN, STD^2), of any kind (algorithms.md 6.2)."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, latent: torch.Tensor, level: torch.Tensor, _condition: torch.Tensor) -> torch.Tensor:
        ab = SCHEDULE[level][:, None, None]
        spread = ab * STD**2 + 1 - ab
        epsilon = (1 - ab).sqrt() * (latent - ab.sqrt() * MEAN) / spread
        x0 = MEAN + ab.sqrt() * STD**2 * (latent - ab.sqrt() * MEAN) / spread
        kinds = {
            Prediction.epsilon: epsilon,
            Prediction.sample: x0,
            Prediction.v: ab.sqrt() * epsilon - (1 - ab).sqrt() * x0,
        }
        return kinds[self.prediction]


class AffineDenoiser(nn.Module):
    """slope * latent + offset, free at every level."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(100, 2))

    def forward(self, latent: torch.Tensor, level: torch.Tensor, _condition: torch.Tensor) -> torch.Tensor:
        slope, offset = self.weights[level].unbind(dim=1)
        return slope[:, None, None] * latent + offset[:, None, None]


def exact_teacher(
    prediction: Prediction, mode: SamplingMode, final_alpha: FinalAlpha
) -> tuple[DiffusionPolicy, OneStepPolicy]:
    """A teacher that predicts perfectly, and its student with one free line per level."""
    config = DiffusionPolicyConfig(
        prediction=prediction,
        mode=mode,
        final_alpha=final_alpha,
        horizon=1,
        execute=1,
        clip_sample=None,
        hidden_width=8,
    )
    unit = torch.tensor([[-1.0], [1.0]])
    normalizer = Normalizer.fit(
        {"state": unit, "proprio": unit, "action": unit},
        {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range},
    )
    teacher = DiffusionPolicy(config, SPEC, normalizer).eval().requires_grad_(False)
    student = OneStepPolicy.from_teacher(teacher, head=OneStepHead.consistency)
    teacher.denoiser, student.denoiser = ExactDenoiser(prediction), AffineDenoiser()
    return teacher, student


def windows(generator: torch.Generator) -> list[SimpleNamespace]:
    observation = Observation(proprio=torch.zeros(60, 1, 1), state=torch.zeros(60, 1, 1))
    actions = MEAN + STD * torch.randn(60, 1, 1, generator=generator)
    return [SimpleNamespace(observation=observation, actions=actions)]


def distil(pair: tuple[DiffusionPolicy, OneStepPolicy], *, decay: float = 0.95, steps: int = 600) -> OneStepPolicy:
    teacher, student = pair
    loss = ConsistencyLoss(teacher, student, windows, decay=decay)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        value, metrics = loss(student, generator)
        assert metrics["consistency_mse"] == pytest.approx(float(value.detach()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        follow(loss.target, student, decay=loss.decay)
    return student


def slope_and_offset(student: OneStepPolicy) -> tuple[float, float]:
    observation = Observation(proprio=torch.zeros(2, 1, 1), state=torch.zeros(2, 1, 1))
    ends = student.normalized_action(observation, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)).flatten()
    return float(ends[1] - ends[0]), float(ends[0])


@pytest.mark.parametrize("prediction", list(Prediction))
def test_student_learns_the_slope_of_the_sampler_not_of_the_data(prediction: Prediction) -> None:
    """eta0 with K = 10 keeps 0.15857 of STD = 0.2 (6.2); a head that mixes up x0 and epsilon lands elsewhere (P20)."""
    student = distil(exact_teacher(prediction, SamplingMode.eta0, FinalAlpha.alpha_bar_0))
    slope, offset = slope_and_offset(student)
    assert slope == pytest.approx(0.15857, abs=1e-3)
    assert offset == pytest.approx(0.29399, abs=1e-3)


@pytest.mark.parametrize(
    ("mode", "final_alpha", "slope", "offset"),
    [
        (SamplingMode.eta0, FinalAlpha.one, 0.15455, 0.29423),
        (SamplingMode.mean, FinalAlpha.alpha_bar_0, 0.00513, 0.29971),
    ],
)
def test_other_ends_and_the_mean_path(mode: SamplingMode, final_alpha: FinalAlpha, slope: float, offset: float) -> None:
    found = slope_and_offset(distil(exact_teacher(Prediction.epsilon, mode, final_alpha)))
    assert found == pytest.approx((slope, offset), abs=1e-3)


def test_a_target_that_never_moves_learns_one_step_only() -> None:
    """Sabotage: with the target stuck at its start, level 91 regresses to that start, not to the sampler."""
    pair = exact_teacher(Prediction.epsilon, SamplingMode.eta0, FinalAlpha.alpha_bar_0)
    slope, offset = slope_and_offset(distil(pair, decay=0.999999999, steps=200))
    assert abs(slope - 0.15857) > 0.02 or abs(offset - 0.29399) > 0.02


def test_scalings_by_hand() -> None:
    skip, out = boundary_scalings(torch.tensor([0.0, 1.0, 91.0]))
    assert skip[0] == 1
    assert out[0] == 0
    assert float(skip[1]) == pytest.approx(0.0024938, abs=1e-6)  # algorithms.md 6.7
    assert float(out[1]) == pytest.approx(0.998752, abs=1e-6)
    level = torch.tensor([0, 1, 91])
    assert distance_to_end(level, FinalAlpha.alpha_bar_0).tolist() == [0, 1, 91]
    assert distance_to_end(level, FinalAlpha.one).tolist() == [1, 2, 92]


def test_head_is_the_identity_at_the_end_of_the_chain() -> None:
    _teacher, student = exact_teacher(Prediction.epsilon, SamplingMode.eta0, FinalAlpha.alpha_bar_0)
    nn.init.constant_(student.denoiser.weights, 7.0)
    latent = torch.randn(3, 1, 1, generator=torch.Generator().manual_seed(0))
    observation = Observation(proprio=torch.zeros(3, 1, 1), state=torch.zeros(3, 1, 1))
    assert torch.equal(student.jump(observation, latent, torch.zeros(3, dtype=torch.int64)), latent)


def test_pairs_are_neighbouring_latents_of_the_teacher() -> None:
    teacher, _student = exact_teacher(Prediction.epsilon, SamplingMode.eta0, FinalAlpha.alpha_bar_0)
    observation = Observation(proprio=torch.zeros(20, 1, 1), state=torch.zeros(20, 1, 1))
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(20, 1, 1, generator=generator), torch.randn(20, 1, 1, generator=generator)
    latent, level, following, next_level = teacher.consistency_pairs(observation, x0, noise)
    assert level.tolist() == [91, 81, 71, 61, 51, 41, 31, 21, 11, 1] * 2
    assert next_level.tolist() == [81, 71, 61, 51, 41, 31, 21, 11, 1, -1] * 2
    for row in range(20):
        ab = SCHEDULE[level[row]]
        ahead = SCHEDULE[max(int(next_level[row]), 0)]
        assert torch.allclose(latent[row], ab.sqrt() * x0[row] + (1 - ab).sqrt() * noise[row], atol=1e-6)
        epsilon = (1 - ab).sqrt() * (latent[row] - ab.sqrt() * MEAN) / (ab * STD**2 + 1 - ab)
        clean = (latent[row] - (1 - ab).sqrt() * epsilon) / ab.sqrt()
        assert torch.allclose(following[row], ahead.sqrt() * clean + (1 - ahead).sqrt() * epsilon, atol=1e-5)


def test_a_teacher_with_all_levels_that_ends_at_the_clean_sample_has_a_student() -> None:
    """Level 0 is among its levels, which is no sampler unless the student's describes the same end."""
    config = DiffusionPolicyConfig(num_steps=100, final_alpha=FinalAlpha.one, horizon=1, execute=1, hidden_width=8)
    teacher = DiffusionPolicy(config, SPEC, Normalizer.identity({"state": 1, "proprio": 1, "action": 1}))
    assert OneStepPolicy.from_teacher(teacher).sampler.levels == (99,)


def test_target_gets_no_gradient_and_follows_by_its_decay() -> None:
    student, target = torch.tensor([[[1.0]]], requires_grad=True), torch.tensor([[[3.0]]], requires_grad=True)
    loss, metrics = consistency_loss(student, target)
    loss.backward()
    assert metrics == {"consistency_mse": 4.0}
    assert (float(student.grad), target.grad) == (-4.0, None)
    slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    before, now = slow.weight.item(), fast.weight.item()
    follow(slow, fast, decay=0.95)
    assert slow.weight.item() == pytest.approx(0.95 * before + 0.05 * now)


def test_refusals() -> None:
    teacher, _student = exact_teacher(Prediction.epsilon, SamplingMode.eta0, FinalAlpha.alpha_bar_0)
    with pytest.raises(ConfigError, match="target_decay"):
        ConsistencyLoss(teacher, nn.Linear(1, 1), windows, decay=1.0)
    assert isinstance(ConsistencyLoss(teacher, nn.Linear(1, 1), windows, decay=0.5), TargetLoss)
    assert not isinstance(consistency_loss, TargetLoss)
    stochastic = teacher.with_mode(SamplingMode.eta1)
    observation = Observation(proprio=torch.zeros(2, 1, 1), state=torch.zeros(2, 1, 1))
    with pytest.raises(PolicyError, match="eta1"):
        stochastic.consistency_pairs(observation, torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
