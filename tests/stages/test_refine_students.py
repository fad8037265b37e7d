"""refine_teacher with its other students: PPO over denoising, and eyes for both; from the first weights to evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refinement_runs import check_resumed, numbers, start

from robot_rl.algorithms.guidance import GuidanceConfig
from robot_rl.algorithms.guidance_labels import GuidanceLabels
from robot_rl.algorithms.returns import generalized_advantage
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.fitting.guided_denoising import OPTIONS, GuidedDenoising
from robot_rl.fitting.guided_term import TeacherTerm, teacher_slope
from robot_rl.fitting.on_policy import advantages
from robot_rl.fitting.online_update import UpdateConfig
from robot_rl.fitting.refinement import Seeds
from robot_rl.runs.checkpoint import load_checkpoint, load_policy
from robot_rl.runs.config import build, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import evaluate, refine_teacher
from robot_rl.types import Source, Window

ENV = ["env=point_reach", "env.reward_mode=dense", "quality_episodes=0"]
DENOISING = [
    "student=denoising", "student.policy.hidden_width=128", "num_envs=16", "student.num_steps=20", "student.sigma_min=0.05",
    "student.ppo.learning_rate=1e-3", "student.ppo.batch_size=64", "student.ppo.kl_stop=5", "student.max_kl=20",
    "rollout_episodes=50",
]  # fmt: skip
TINY = ["student.num_steps=10", "num_envs=4", "rollout_episodes=2", "env.max_episode_steps=10"]
TINY_DENOISING = [
    "student=denoising", "student.policy.hidden_width=16", "student.ppo.batch_size=20", "student.critic.hidden_width=8",
    "student.policy.level_embedding=8",
]  # fmt: skip
LOOKING = [
    "env.image_size=16", "student.encoder.images.backbone=vit", "student.encoder.images.width=16",
    "student.encoder.images.num_blocks=1", "student.encoder.images.heads=2",
]  # fmt: skip
TWO = ["num_steps=160", "evaluate_every_steps=80"]
EXACT = ["teacher=point_reach"]


def refined(folder: Path, *overrides: str) -> tuple[RunDirectory, dict[str, Any]]:
    return start(refine_teacher, "refine_teacher", folder, *ENV, *overrides)


def student_of(*overrides: str, num_envs: int = 3) -> tuple[GuidedDenoising, Any]:
    config = load_config(
        refine_teacher.CONFIG, [*ENV, *TINY_DENOISING, *TINY, *EXACT, *overrides], name="refine_teacher"
    )
    env = build(config.env, num_envs=num_envs, history=1)
    return build(config.student, spec=env.spec, device="cpu", seed=0), env


def test_a_roll_out_is_gae_over_every_env_and_its_first_ratio_is_one() -> None:
    student, env = student_of("student.num_steps=25")
    batch = next(student.rollouts(env, Seeds(0)))
    rows, steps = batch.decisions, 25
    assert (batch.executed.shape, len(rows)) == ((steps, 3), 75)
    assert bool(rows.truncated.any())  # episodes of 10 steps end inside the roll-out
    value, behind = torch.randn(75), torch.randn(75)
    found, _ = advantages(rows, value, behind, gamma=0.8, trace=0.9)

    def grid(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[env * steps : (env + 1) * steps] for env in range(3)], 1)

    assert torch.equal(grid(rows.reward), batch.reward)
    expected, _ = generalized_advantage(
        batch.reward, grid(value), grid(behind), executed=batch.executed, terminated=grid(rows.terminated),
        truncated=grid(rows.truncated), gamma=0.8, trace=0.9,
    )  # fmt: skip
    assert torch.allclose(grid(found), expected)
    # A row's next feature is the next row's feature, unless its episode ended there.
    inner = ~(rows.terminated | rows.truncated).view(3, steps)[:, :-1]
    after = rows.feature.view(3, steps, -1)[:, 1:]
    assert torch.equal(rows.next_feature.view(3, steps, -1)[:, :-1][inner], after[inner])
    assert bool((rows.next_feature.view(3, steps, -1)[:, :-1][~inner] != after[~inner]).any())


def test_the_term_is_the_denoising_loss_on_what_the_teacher_said(tmp_path: Path) -> None:
    student, env = student_of("student.num_steps=4", "student.ppo.batch_size=6")
    batch = next(student.rollouts(env, Seeds(0)))
    said = torch.rand(4, 1, 3, 2) * 2 - 1
    asked = torch.zeros(4, 1, 3, dtype=torch.bool)
    asked[1::2, 0, 1] = True  # env 1, steps 1 and 3: rows 5 and 7
    config, told = student.config, GuidanceLabels(said, asked, torch.ones(4, 3, dtype=torch.bool))
    update = UpdateConfig(config.gamma, config.trace, config.ppo, config.value)
    term = TeacherTerm(student.learner, batch, told, GuidanceConfig(), update=update)
    found = term(student.policy, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    rows = torch.tensor([5, 7])[torch.randint(2, (6,), generator=generator)]
    truth = torch.where(rows == 5, 0, 1)
    window = Window(
        observation=batch.decisions.observation.map(lambda array: array[rows]),
        actions=torch.stack([said[1, 0, 1], said[3, 0, 1]])[truth][:, None], valid=torch.ones(6, 1, dtype=torch.bool),
        reward=torch.zeros(6, 1), next_observation=None, discount=None,
        source=torch.full((6,), int(Source.policy), dtype=torch.uint8),
    )  # fmt: skip
    expected, _ = student.policy.loss(window, generator)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert term.numbers() == {"gate": 1.0, "distill_loss": pytest.approx(float(expected), rel=1e-6)}


def test_the_gate_is_the_slope_of_the_density_towards_the_teacher() -> None:
    student, env = student_of("student.num_steps=4")
    batch = next(student.rollouts(env, Seeds(0))).decisions
    teacher, advantage = torch.rand(12, 2) * 2 - 1, torch.randn(12)
    last = student.policy.sampler.num_steps - 1
    mean, std = student.policy.reverse_step(batch.latents[:, -2], last, batch.feature)
    mean = mean.detach().requires_grad_(True)
    density = torch.distributions.Normal(mean, std).log_prob(batch.latents[:, -1]).sum()
    (slope,) = torch.autograd.grad(density, mean)
    expected = advantage * (slope * (teacher[:, None] - mean)).sum((1, 2))
    assert torch.allclose(teacher_slope(student.policy, batch, teacher, advantage), expected, rtol=1e-4, atol=1e-5)


def test_an_exact_teacher_is_followed_from_the_first_weights_on(tmp_path: Path) -> None:
    run, summary = refined(tmp_path, *DENOISING, *EXACT, "num_steps=3200", "evaluate_every_steps=3200")
    lines = numbers(run)
    before = lines[0]["refine_teacher/success_once_stochastic"]
    assert summary["success_once_stochastic"]["low"] > max(before, 0.25), (before, summary)
    losses = [line["refine_teacher/distill_loss"] for line in lines if "refine_teacher/distill_loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    _, result = start(
        evaluate,
        "evaluate",
        tmp_path / "e",
        *ENV[:2],
        f"policy={run.path}",
        "num_episodes=50",
        "first_seed=50000",
        "mode=mean",
    )
    assert result["success_once"]["k"] == summary["success_once_deterministic"]["k"]
    other, _ = refined(
        tmp_path / "o", *DENOISING, *EXACT, f"student.start={run.path}", "num_steps=320", "evaluate_every_steps=320",
        "guidance=none",
    )  # fmt: skip
    assert numbers(other)[0]["refine_teacher/success_once_deterministic"] == result["success_once"]["rate"]


@pytest.mark.parametrize("words", [
    *([*TINY_DENOISING, f"guidance={option.value}", "guidance.gate_z=-100"] for option in sorted(OPTIONS, key=str)),
    [*TINY_DENOISING, "+encoder@student.policy=rgb", "student.policy.observation_keys=[proprio,image/top]",
     *(word.replace("student.", "student.policy.") for word in LOOKING)],
    ["student.hidden=[8]", "student.batch_size=40", "+encoder@student=rgb", "student.observation_keys=[proprio,image/top]",
     *LOOKING],
], ids=lambda words: " ".join(word for word in words if "guidance=" in word or "keys" in word))  # fmt: skip
def test_every_student_trains_and_resumes_to_the_bit(words: list[str], tmp_path: Path) -> None:
    annealed = ["guidance.anneal_steps=120"] if "guidance=annealed" in words else []
    words = [*TINY, *TWO, *EXACT, *words, *annealed]
    run, _ = refined(tmp_path / "a", *words)
    lines = numbers(run)
    assert len([line for line in lines if "refine_teacher/distill_loss" in line]) == (3 if annealed else 4)
    first, last = (
        load_checkpoint(run.path / "checkpoints" / f"step_{step:06d}").tensors["policy"] for step in (0, 160)
    )
    moved = {name.split(".")[0] for name in last if not torch.equal(first[name], last[name])}
    assert moved >= ({"encoder"} if any("image/top" in word for word in words) else {"denoiser"})
    check_resumed(run, tmp_path / "b", [*ENV, *words])
    _, result = start(
        evaluate, "evaluate", tmp_path / "e", *(word for word in [*ENV[:2], *words] if word.startswith("env")),
        f"policy={run.path}", "num_episodes=2",
    )  # fmt: skip
    assert result["episodes"] == 2


def test_what_a_denoising_student_can_not_do_is_refused(tmp_path: Path) -> None:
    for option in ("rlad", "adpo", "redi"):
        with pytest.raises(ConfigError, match="student=gaussian"):
            refined(tmp_path, *TINY, *TINY_DENOISING, *EXACT, f"guidance={option}", "quality_episodes=4")
    with pytest.raises(PolicyError, match="horizon 4"):
        refined(tmp_path, *TINY, *TINY_DENOISING, *EXACT, "student.policy.horizon=4")
    run, _ = refined(tmp_path / "a", *TINY, *TWO, "student.hidden=[8]", "student.batch_size=40", *EXACT)
    with pytest.raises(PolicyError, match="BaselineMlpPolicy"):
        refined(tmp_path, *TINY, *TINY_DENOISING, *EXACT, f"student.start={run.path}")
    assert load_policy(run.path)[1].env_id == "PointReach"
