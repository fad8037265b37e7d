"""What the students of refine_teacher do with eyes that nobody trained, regularisers, limits, and how they are saved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.guidance import Guidance, GuidanceConfig
from robot_rl.algorithms.guidance_labels import GuidanceLabels
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import PolicyError
from robot_rl.fitting import guided_denoising
from robot_rl.fitting.guided_denoising import GuidedDenoising, GuidedDenoisingConfig
from robot_rl.fitting.guided_term import TeacherTerm, teacher_slope
from robot_rl.fitting.online_update import UpdateConfig
from robot_rl.policies.baseline_gaussian import GaussianPpoConfig, new_actor
from robot_rl.policies.diffusion import config_to_json
from robot_rl.policies.encoder_fusion import EncoderConfig, RepresentationConfig
from robot_rl.policies.encoder_images import ImageEncoderConfig
from robot_rl.policies.guided_gaussian import GuidedGaussian
from robot_rl.policies.resnet import ResNet
from robot_rl.runs.config import load_config
from robot_rl.stages import refine_teacher

LOOKS = ("proprio", "image/top")
SPEC = make_env(PointReachConfig(image_size=16), num_envs=1, history=1).spec
ENCODER = EncoderConfig(images=ImageEncoderConfig(width=8, num_stages=2, keypoints=4, size=12), proprio_size=12)


def carded(folder: Path) -> tuple[EncoderConfig, ResNet]:
    """Weights of a narrow ResNet, their card, and an encoder that names them."""
    torch.manual_seed(3)
    source, path = ResNet("resnet18", width=8, num_stages=2, is_frozen=True), folder / "weights.safetensors"
    source.load_state_dict({name: torch.rand_like(value) for name, value in source.state_dict().items()})
    save_file(source.state_dict(), path)
    stated = {"licence": "MIT", "image_size": 16, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
    card = {"architecture": "resnet18", "source": "a test", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "weights.safetensors.json").write_text(json.dumps(stated | card))
    images = replace(
        ENCODER.images, pretrained=str(path), licence="MIT", image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)
    )
    return replace(ENCODER, images=images), source


def gaussian(encoder: EncoderConfig) -> GaussianPpoConfig:
    return GaussianPpoConfig(hidden=(8,), observation_keys=LOOKS, encoder=encoder)


def student_config(**changes: Any) -> GuidedDenoisingConfig:
    words = [
        "env=point_reach", "student=denoising", "student.policy.hidden_width=16", "student.policy.level_embedding=8",
        "student.critic.hidden_width=8", "student.num_steps=4",
    ]  # fmt: skip
    node = load_config(refine_teacher.CONFIG, words, name="refine_teacher").student
    known = GuidedDenoisingConfig(policy=node["policy"], critic=node["critic"], num_steps=4)
    return replace(known, policy={**node["policy"], **changes})


def denoising(**changes: Any) -> tuple[GuidedDenoising, Any]:
    env = make_env(PointReachConfig(), num_envs=2, history=1)
    return GuidedDenoising(student_config(**changes), spec=env.spec, device="cpu", seed=0), env


def test_pretrained_weights_are_in_every_student(tmp_path: Path) -> None:
    encoder, source = carded(tmp_path)
    looking = student_config(observation_keys=LOOKS, encoder=config_to_json(encoder))
    for policy in (
        GuidedGaussian(gaussian(encoder), spec=SPEC, device="cpu", seed=0).policy,
        new_actor(gaussian(encoder), SPEC),
        GuidedDenoising(looking, spec=SPEC, device="cpu", seed=0).policy,
    ):
        found = policy.encoder.parts["image/top"].backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in source.state_dict().items())
    missing = replace(encoder, images=replace(encoder.images, pretrained="/nowhere.pt"))
    with pytest.raises(PolicyError, match="card"):
        new_actor(gaussian(missing), SPEC)


@pytest.mark.parametrize("name", ["reconstruction", "bottleneck", "dropout"])
def test_the_gaussian_refuses_regularisers_that_it_would_not_add(name: str) -> None:
    encoder = replace(ENCODER, representation=replace(RepresentationConfig(), **{name: 0.1}))
    with pytest.raises(PolicyError, match=f"representation.{name}.*points_regularised"):
        new_actor(gaussian(encoder), SPEC)
    new_actor(gaussian(ENCODER), SPEC)


def test_a_denoising_student_is_saved_as_it_is_played_and_explores_otherwise() -> None:
    student, _ = denoising(mode="eta0", sigma_min=0.02)
    assert (student.policy.config.mode, student.policy.config.sigma_min) == (SamplingMode.eta1, 0.1)
    assert (student.deployed.config.mode, student.deployed.config.sigma_min) == (SamplingMode.eta0, 0.02)
    assert student.deployed.denoiser is student.policy.denoiser


def labels(value: float) -> GuidanceLabels:
    asked = torch.ones(4, 1, 2, dtype=torch.bool)
    return GuidanceLabels(torch.full((4, 1, 2, 2), value), asked, torch.ones(4, 2, dtype=torch.bool))


def test_what_a_teacher_says_beyond_the_bounds_is_what_would_be_played() -> None:
    student, env = denoising()
    batch, config = next(student.rollouts(env, iter(range(100)))), student.config
    update = UpdateConfig(config.gamma, config.trace, config.ppo, config.value)
    losses = [
        TeacherTerm(student.learner, batch, labels(value), GuidanceConfig(), update=update)(
            student.policy, torch.Generator().manual_seed(0)
        ).detach()
        for value in (50.0, float(student.policy.action_high[0]))
    ]
    assert losses[0] == losses[1]


def test_the_gates_of_a_denoising_student_look_at_centred_advantages_and_whole_returns() -> None:
    student, env = denoising()
    batch, config = next(student.rollouts(env, iter(range(100)))), student.config
    update = UpdateConfig(0.0, 0.0, config.ppo, config.value)
    played = batch.decisions
    # Rewards of about 100, and the better the further a step was from the teacher: it does not help.
    told = labels(float(student.policy.action_high[0]) / 2)
    said = student.policy.normalizer.apply("action", told.teacher[:, 0].transpose(0, 1).flatten(0, 1))
    slope = teacher_slope(student.policy, played, said, torch.ones(8))
    for sign, helps in ((-1.0, 0.0), (1.0, 1.0)):
        reward = 100 + sign * (slope - slope.mean()) / slope.std()
        other = replace(batch, decisions=replace(played, reward=reward))
        gated = GuidanceConfig(option=Guidance.gated, gate_z=0.0)
        assert TeacherTerm(student.learner, other, told, gated, update=update).numbers()["helps"] == helps
    # The reward comes at the last of four steps alone: with GAE's trace of 0 the first step's return would be V.
    ended = torch.tensor([False, False, False, True]).repeat(2)
    whole = UpdateConfig(1.0, 0.0, config.ppo, config.value)
    for better, rows in ((0, [0, 1, 2, 3]), (1, [4, 5, 6, 7])):
        reward = torch.zeros(8)
        reward[[3, 7]] = torch.tensor([2.0, 1.0]).roll(better)
        late = replace(played, reward=reward, terminated=ended, truncated=torch.zeros_like(ended))
        kepo = GuidanceConfig(option=Guidance.kepo)
        term = TeacherTerm(student.learner, replace(batch, decisions=late), told, kepo, update=whole)
        assert term._rows.tolist() == rows  # all of the env whose return is above the quantile


@pytest.mark.parametrize(("final", "expected"), [(0.03, 0.65), (None, 1.0)])
def test_the_kl_limit_of_a_denoising_student_goes_to_its_own(
    final: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-way: (1 + 0.3) / 2, not (1 + 0.03) / 2, which is of the Gaussian."""
    student, env = denoising()
    used: list[float] = []
    improve = guided_denoising.improve

    def seen(*words: Any, config: UpdateConfig, **more: Any) -> Any:
        used.append(config.ppo.kl_stop)
        return improve(*words, config=config, **more)

    monkeypatch.setattr(guided_denoising, "improve", seen)
    guidance = GuidanceConfig(option=Guidance.annealed, anneal_steps=100, final_kl_stop=final)
    student.learn(next(student.rollouts(env, iter(range(100)))), None, guidance=guidance, env_steps=50)
    assert used == [pytest.approx(expected)]
