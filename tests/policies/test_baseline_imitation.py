"""Cloning of a teacher and DAgger: a linear teacher is recovered, its noise is measured, and the right one plays."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from robot_rl.algorithms.guidance import GuidanceConfig
from robot_rl.envs.history import HistoryEnv
from robot_rl.envs.point_reach import PointReachConfig, PointReward, make_env
from robot_rl.errors import ConfigError, DeployError
from robot_rl.policies.baseline_gaussian import GaussianPpoConfig
from robot_rl.policies.baseline_imitation import ImitationConfig, TeacherImitation
from robot_rl.policies.baseline_mlp import BaselineMlpPolicy
from robot_rl.policies.guided_gaussian import GuidedGaussian
from robot_rl.runs.config import config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import baseline, evaluate
from robot_rl.types import ActionChunk, Observation

# a = 0.4 goal - 0.3 point: at most 0.7 in the square of 1 m, so no bound clips it.
LINEAR = torch.tensor([[-0.3, 0.0, 0.4, 0.0], [0.0, -0.3, 0.0, 0.4]])
TINY = {"hidden": (32,), "learning_rate": 3e-3, "num_steps": 20, "batch_size": 128}
WORDS = [
    "env=point_reach", "teacher=point_reach", "algo.hidden=[16]", "algo.learning_rate=3e-3", "algo.num_steps=20",
    "algo.batch_size=128", "num_envs=16", "rollout_episodes=24", "num_steps=3200", "evaluate_every_steps=1600",
]  # fmt: skip


def linear(observation: Observation) -> torch.Tensor:
    assert observation.state is not None
    return observation.state[:, -1] @ LINEAR.T


class Recorded:
    """An environment, and the actions that were played in it."""

    def __init__(self) -> None:
        config = PointReachConfig(reward_mode=PointReward.dense, terminate_on_success=False)
        self.env: HistoryEnv = make_env(config, num_envs=16, history=2)
        self.actions: list[torch.Tensor] = []
        self.seen: list[torch.Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def label(self, observation: Observation) -> torch.Tensor:
        self.seen.append(linear(observation))
        return self.seen[-1]

    def step(self, chunk: ActionChunk) -> Any:
        self.actions.append(torch.as_tensor(chunk.actions)[:, 0].clone())
        return self.env.step(chunk)


def learned(teacher: Any, env: Any, **settings: Any) -> tuple[BaselineMlpPolicy, list[tuple[int, dict[str, float]]]]:
    kept: list[Any] = []
    learner = TeacherImitation(ImitationConfig(**(TINY | settings)))
    numbers: list[tuple[int, dict[str, float]]] = []

    def note(steps: int, policy: BaselineMlpPolicy, values: Any) -> None:
        kept.append(policy)
        numbers.append((steps, dict(values)))

    learner.learn(
        env, teacher=teacher, num_steps=3200, seed=0, first_env_seed=0, evaluate_every=1600, on_evaluation=note
    )
    return kept[-1], numbers


@pytest.mark.parametrize("teacher_rollouts", [None, 1])
def test_a_linear_teacher_is_recovered_and_the_right_one_plays(teacher_rollouts: int | None) -> None:
    env = Recorded()
    policy, numbers = learned(env.label, env, teacher_rollouts=teacher_rollouts)
    fresh = make_env(PointReachConfig(), num_envs=200, history=1).reset(range(10_000, 10_200))
    centre = torch.as_tensor(policy.act(fresh, torch.zeros(200, *policy.noise_shape)).actions)[:, 0]
    wanted = linear(fresh)
    missed = float((centre - wanted).square().mean().sqrt())
    assert missed < 0.03 < 0.2 < float(wanted.square().mean().sqrt()), missed
    assert [steps for steps, _ in numbers] == [0, 1600, 3200]
    assert numbers[-1][1]["std"] == pytest.approx(numbers[-1][1]["distill_loss"] ** 0.5, rel=0.5)
    # 10 roll-outs of 20 steps: the teacher in the first, and in the others where it is cloned.
    same = [torch.equal(played, said) for played, said in zip(env.actions, env.seen, strict=True)]
    assert len(same) == 200
    assert all(same[:20])
    assert all(same[20:]) if teacher_rollouts is None else not any(same[20:])


def test_the_student_keeps_the_spread_of_its_teacher() -> None:
    """Noise of 0.2 that no input explains: the centre misses it, and it becomes the student's standard deviation."""
    env, generator = Recorded(), torch.Generator().manual_seed(5)

    def noisy(observation: Observation) -> torch.Tensor:
        exact = linear(observation)
        return exact + 0.2 * (2 * torch.randint(2, exact.shape, generator=generator) - 1)

    policy, _ = learned(noisy, env, teacher_rollouts=None)
    assert policy.log_std.exp().tolist() == pytest.approx([0.2, 0.2], rel=0.1)


@pytest.mark.parametrize("batch_size", [128, 200, 1000])
def test_an_update_takes_as_many_minibatches_as_ppo(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """320 rows: PPO cuts each of its epochs into 3, 2 or 1 minibatches."""
    taken: list[int] = []

    def fit(self: Any, *_: Any, batches: int, **__: Any) -> dict[str, float]:
        taken.append(batches)
        return {}

    monkeypatch.setattr(TeacherImitation, "_fit", fit)
    env = Recorded()
    learned(env.label, env, batch_size=batch_size, epochs=5)
    network = GuidedGaussian(
        GaussianPpoConfig(hidden=(8,), num_steps=20, batch_size=batch_size, epochs=5, kl_stop=1e9), spec=env.env.spec,
        device="cpu", seed=0,
    )  # fmt: skip
    played = next(network.rollouts(make_env(PointReachConfig(), num_envs=16, history=1), itertools.count()))
    numbers = network.learn(played, None, guidance=GuidanceConfig(weight=0.0), env_steps=0)
    assert taken == [int(numbers["minibatches"])] * 10


def stage(folder: Path, *words: str) -> tuple[RunDirectory, dict[str, Any]]:
    config = load_config(baseline.CONFIG, [*WORDS, *words], name="baseline")
    run = RunDirectory.create(
        folder, stage="baseline", task="point", seed=0, config_yaml=config_to_yaml(config), command=["baseline"]
    )
    return run, baseline.run(config, run)


@pytest.mark.parametrize(("algo", "least"), [("bc_teacher", 0.1), ("dagger", 0.5)])  # an untrained one: 0
def test_the_stage_counts_and_plays_as_refine_teacher_does(algo: str, least: float, tmp_path: Path) -> None:
    run, summary = stage(tmp_path, f"algo={algo}")
    assert summary["env_steps"] == 3200
    assert summary["teachers"][0]["answers"] == 3200
    assert summary["success_once_deterministic"]["rate"] > least
    assert [each["target"] for each in summary["to_target"]] == [0.8, 0.95]
    words = ["env=point_reach", f"policy={run.path}", "num_episodes=24", "first_seed=50000"]
    config = load_config(evaluate.CONFIG, words, name="evaluate")
    played = RunDirectory.create(
        tmp_path / "e", stage="evaluate", task="point", seed=0, config_yaml=config_to_yaml(config), command=["evaluate"]
    )
    assert evaluate.run(config, played)["success_once"]["k"] == summary["success_once_deterministic"]["k"]


@pytest.mark.parametrize(
    "words",
    [
        ["algo=dagger", "~teacher"], ["algo=gaussian_ppo"], ["algo=dagger", "calls.every=2"],
        ["algo=dagger", "algo.epochs=0"],
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(words: list[str], tmp_path: Path) -> None:
    kept = [word for word in WORDS if not (word.startswith("algo.") and "gaussian_ppo" in words[0])]
    config = load_config(baseline.CONFIG, [*kept, *words], name="baseline")
    run = RunDirectory.create(tmp_path, stage="baseline", task="point", seed=0, config_yaml="", command=[])
    with pytest.raises(ConfigError, match=r"baseline\.teacher|calls|algo"):
        baseline.run(config, run)


def test_a_teacher_that_dies_ends_the_run_with_its_error(tmp_path: Path) -> None:
    words = ["algo=dagger", "~teacher", "+teacher={_target_: odd_teachers.DyingTeacher, answers: 13}"]
    with pytest.raises(DeployError, match="connection refused"):
        stage(tmp_path, *words)
