"""The teacher term of the Gaussian student: which advantages and returns its gates look at, and traces that it encodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from robot_rl.algorithms.guidance import Guidance, GuidanceConfig
from robot_rl.algorithms.guidance_labels import GuidanceLabels, TeacherTraces
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.policies.baseline_gaussian import GaussianBatch, GaussianPpoConfig
from robot_rl.policies.encoder_fusion import EncoderConfig
from robot_rl.policies.encoder_images import ImageEncoderConfig
from robot_rl.policies.guided_gaussian import GuidedGaussian, _Term

ENCODER = EncoderConfig(images=ImageEncoderConfig(width=8, num_stages=2, keypoints=4, size=12), proprio_size=12)
STEPS, ENVS = 10, 4


def made(*, image_size: int = 0, **settings: Any) -> tuple[GuidedGaussian, Any]:
    config = GaussianPpoConfig(**({"hidden": (8,), "num_steps": STEPS, "batch_size": 20, "epochs": 2} | settings))
    env = make_env(PointReachConfig(image_size=image_size), num_envs=ENVS, history=config.history)
    return GuidedGaussian(config, spec=env.spec, device="cpu", seed=0), env


def told(batch: GaussianBatch, teacher: torch.Tensor) -> GuidanceLabels:
    """One teacher, asked about everything."""
    every = torch.ones(STEPS, 1, ENVS, dtype=torch.bool)
    return GuidanceLabels(teacher[:, None], every, every[:, 0])


def test_the_gate_of_a_roll_out_looks_at_centred_advantages() -> None:
    """All advantages are about +100, and the better the further the action was from the teacher: it does not help."""
    student, env = made(gamma=0.0)
    batch = next(student.rollouts(env, iter(range(1000))))
    with torch.no_grad():
        mean = student.policy.mean(student.policy.body(batch.feature))
    score = (batch.action - mean) / student.policy.log_std.detach().exp().square()
    way = torch.sign(score.sum((0, 1)))  # chance took the roll-out's actions that way on the whole
    teacher = (mean + 0.3 * way).clamp(-1, 1)
    towards = (score * (teacher - mean)).sum(-1)
    assert float(towards.mean()) > 0
    batch = replace(batch, reward=100.0 - towards)  # gamma 0: the advantage is the reward less V of the first weights
    assert float(batch.reward.min()) > 50
    physical = teacher * student.policy.action_high
    guidance = GuidanceConfig(option=Guidance.gated, gate_z=0.0)
    term = _Term(student, batch, told(batch, physical), guidance, None)
    assert (term.numbers()["helps"], term.is_on) == (0.0, False)
    turned = _Term(student, replace(batch, reward=100.0 + towards), told(batch, physical), guidance, None)
    assert (turned.numbers()["helps"], turned.is_on) == (1.0, True)


def test_kepo_ranks_trajectories_by_whole_returns() -> None:
    """The reward comes at the last step alone: with GAE's trace of 0 the first step's return would be V, not the reward."""
    student, env = made(gamma=1.0, trace=0.0)
    batch = next(student.rollouts(env, iter(range(1000))))
    reward = torch.zeros(STEPS, ENVS)
    reward[-1] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    ended = torch.zeros(STEPS, ENVS, dtype=torch.bool)
    ended[-1] = True
    batch = replace(batch, reward=reward, terminated=ended, truncated=torch.zeros_like(ended))
    guidance = GuidanceConfig(option=Guidance.kepo, quantile=0.5)
    term = _Term(student, batch, told(batch, torch.zeros(STEPS, ENVS, 2)), guidance, None)
    inputs = term._inputs(torch.arange(STEPS * ENVS), torch.zeros(STEPS * ENVS))
    segments = inputs.segment_return.view(STEPS, ENVS)
    assert torch.allclose(segments, reward[-1].expand(STEPS, ENVS), atol=1e-5)
    assert (segments >= inputs.return_floor)[0].tolist() == [True, True, False, False]


def traces(spec_env: Any, *, history: int, number: int = 30) -> TeacherTraces:
    """Steps that go to the upper right from wherever the point is."""
    env = make_env(spec_env, num_envs=number, history=history)
    return TeacherTraces(env.reset(range(number)), torch.full((number, 2), 0.5), torch.ones(number, dtype=torch.bool))


def learned(
    student: GuidedGaussian, env: Any, known: TeacherTraces
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    before = {name: tensor.clone() for name, tensor in student.policy.state_dict().items()}
    batch = next(student.rollouts(env, iter(range(1000))))
    nothing = torch.zeros(STEPS, 0, ENVS, 2)
    labels = GuidanceLabels(nothing, nothing[..., 0].bool(), torch.ones(STEPS, ENVS, dtype=torch.bool))
    guidance = GuidanceConfig(option=Guidance.redi, trace_batch=8)
    return student.learn(batch, labels, guidance=guidance, env_steps=0, traces=known), before


def test_redi_teaches_an_encoder_that_learns() -> None:
    student, env = made(image_size=16, encoder=ENCODER, observation_keys=("proprio", "image/top"))
    numbers, before = learned(student, env, traces(PointReachConfig(image_size=16), history=1))
    assert numbers["minibatches"] == 4
    now = student.policy.state_dict()
    assert any(not torch.equal(now[name], before[name]) for name in before if name.startswith("encoder."))


@pytest.mark.parametrize("extra", [0, 2])
def test_redi_cuts_traces_to_the_students_newest_frames(extra: int) -> None:
    student, env = made(history=2)
    numbers, _ = learned(student, env, traces(PointReachConfig(), history=2 + extra))
    assert numbers["minibatches"] == 4
    # What it saw is what the student's encoder takes: two frames, the newest.
    known = traces(PointReachConfig(), history=2 + extra)
    frames = known.observation.arrays()["state"].clone()
    frames[:, -2:] += torch.arange(2)[:, None]  # 0 at the last but one, 1 at the last
    frames[:, :-2] = float("nan")
    batch = next(student.rollouts(env, iter(range(1000))))
    labels = told(batch, torch.zeros(STEPS, ENVS, 2))
    seen = replace(known, observation=replace(known.observation, state=frames))
    term = _Term(student, batch, labels, GuidanceConfig(option=Guidance.redi), seen)
    inputs = term._inputs(torch.arange(4), torch.zeros(4))
    assert inputs.trace_mean is not None
    assert bool(torch.isfinite(inputs.trace_mean).all())
