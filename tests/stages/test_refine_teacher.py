"""refine_teacher on the point task: passes a wrong teacher, resumes to the bit, survives liars and teachers that die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd_teachers import SlowTeacher
from refinement_runs import check_resumed, numbers, resumed, start

from robot_rl.data.store import EpisodeStore
from robot_rl.errors import ConfigError, DataError, DeployError, PolicyError
from robot_rl.policies.baseline_gaussian import GaussianPpo, GaussianPpoConfig
from robot_rl.runs.checkpoint import load_checkpoint, load_policy
from robot_rl.runs.config import build, config_to_yaml, load_config
from robot_rl.runs.directory import RunDirectory
from robot_rl.stages import collect, evaluate, refine_teacher

ENV = ["env=point_reach", "env.reward_mode=dense"]
STUDENT = [
    "student.hidden=[32]", "student.learning_rate=3e-3", "student.num_steps=20", "student.batch_size=160", "num_envs=16",
    "rollout_episodes=32",
]  # fmt: skip
# It believes the goal 0.12 m aside: success, within 0.05 m, is an accident of its path.
WRONG = ["teacher=point_reach", "teacher.belief_elements=[2]", "teacher.belief_offset=[0.12]"]
TINY = [
    "student.hidden=[8]", "student.num_steps=10", "student.batch_size=40", "num_envs=4", "rollout_episodes=2",
    "quality_episodes=4", "num_steps=160", "evaluate_every_steps=80", "env.max_episode_steps=10",
]  # fmt: skip
DYING = ["~teacher", "+teacher={_target_: odd_teachers.DyingTeacher, answers: 13}", "quality_episodes=0"]


def refined(folder: Path, *overrides: str) -> tuple[RunDirectory, dict[str, Any]]:
    return start(refine_teacher, "refine_teacher", folder, *ENV, *overrides)


def test_the_student_passes_a_systematically_wrong_teacher(tmp_path: Path) -> None:
    run, summary = refined(
        tmp_path, *STUDENT, *WRONG, "expert=point_reach", "guidance=annealed", "guidance.anneal_steps=4800",
        "guidance.final_learning_rate=1e-3", "num_steps=9600", "evaluate_every_steps=4800", "quality_episodes=30",
    )  # fmt: skip
    (teacher,) = summary["teacher_success_once"]
    student = summary["success_once_stochastic"]
    assert student["low"] > teacher["high"], (teacher, student)
    (report,) = json.loads((run.path / "teacher.json").read_text())
    assert report["success_once"] == teacher
    assert 0 < report["agreement"]["error_half_ranges"] < 1
    assert report["cost"]["answers"] == 4800
    lines = numbers(run)
    weights = [line["refine_teacher/weight"] for line in lines if "refine_teacher/weight" in line]
    rates = [line["refine_teacher/learning_rate"] for line in lines if "refine_teacher/learning_rate" in line]
    assert (weights[0], weights[-1], rates[0]) == (1.0, 0.0, 3e-3)
    assert rates[-1] == pytest.approx(1e-3)
    assert weights == sorted(weights, reverse=True)
    # Once the weight is 0 it is not asked any more: 15 roll-outs of 320, its episodes and the comparison before.
    (asked,) = summary["teachers"]
    assert 4800 < asked["answers"] <= 4800 + report["agreement"]["rows"] + 2 * 30 * 30
    assert [each["target"] for each in summary["to_target"]] == [0.8, 0.95]
    assert all(each["env_steps"] <= 9_920 for each in summary["to_target"])

    _, result = start(
        evaluate, "evaluate", tmp_path / "e", *ENV, f"policy={run.path}", "num_episodes=32", "first_seed=50000"
    )
    assert result["success_once"]["k"] == summary["success_once_deterministic"]["k"]
    assert result["protocol"]["policy"]["class"] == "BaselineMlpPolicy"


def test_weight_zero_is_plain_ppo_to_the_bit_and_builds_no_teacher(tmp_path: Path) -> None:
    run, summary = refined(
        tmp_path,
        *TINY,
        "evaluate_every_steps=160",
        "guidance=none",
        "~teacher",
        "+teacher={_target_: odd_teachers.Untouchable}",
    )
    assert (summary["teachers"], (run.path / "teacher.json").exists()) == ([], False)
    learner = GaussianPpo(GaussianPpoConfig(hidden=(8,), num_steps=10, batch_size=40))
    env = build(load_config(refine_teacher.CONFIG, [*ENV, *TINY], name="refine_teacher").env, num_envs=4, history=1)
    found: list[dict[str, torch.Tensor]] = []
    learner.learn(
        env, num_steps=160, seed=0, first_env_seed=1_000_000, evaluate_every=160,
        on_evaluation=lambda _steps, policy, _numbers: found.append({k: v.clone() for k, v in policy.state_dict().items()}),
    )  # fmt: skip
    mine = load_checkpoint(run.path).tensors["policy"]
    assert all(torch.equal(mine[name], tensor) for name, tensor in found[-1].items())
    assert not all(torch.equal(mine[name], tensor) for name, tensor in found[0].items())


EXACT = "_target_: robot_rl.policies.teacher_scripted.ScriptedTeacher, expert: {_target_: robot_rl.envs.point_reach.PointReachExpert}"
OPTIONS = {
    "rpd": [], "gated": ["guidance.gate_z=-100"], "rlad": [], "adpo": [], "kepo": [], "distil": [], "redi": [],
    "g_opd": [f"reference={{{EXACT}, lie_probability: 1.0}}"], "ampo": [f"other_teachers=[{{{EXACT}}}]"],
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains_and_resumes_to_the_bit(option: str, tmp_path: Path) -> None:
    words = [*TINY, *WRONG, f"guidance={option}", *OPTIONS[option]]
    run, summary = refined(tmp_path / "a", *words)
    lines = numbers(run)
    losses = [line["refine_teacher/distill_loss"] for line in lines if "refine_teacher/distill_loss" in line]
    assert len(losses) == 4
    assert [line["refine_teacher/gate"] for line in lines[1:]] != [0.0] * 4
    assert summary["guidance"] == option
    check_resumed(run, tmp_path / "b", [*ENV, *words])


@pytest.mark.parametrize("option", ["annealed", "redi"])
def test_a_run_whose_weight_is_gone_goes_on_without_opening_a_teacher(option: str, tmp_path: Path) -> None:
    words = [*TINY, f"guidance={option}", "guidance.anneal_steps=80"]
    run, summary = refined(tmp_path / "a", *words, *WRONG)
    gone = [*ENV, *words, "~teacher", "+teacher={_target_: odd_teachers.Untouchable}"]
    again, other = resumed(run, tmp_path / "b", gone)
    assert numbers(again) == numbers(run)
    assert (summary["lost_teacher"], other["lost_teacher"], other["teachers"]) == (False, False, [])


@pytest.mark.parametrize("option", ["rpd", "redi"])
def test_a_teacher_that_is_not_there_when_a_run_goes_on_is_a_lost_one(option: str, tmp_path: Path) -> None:
    words = [*TINY, f"guidance={option}"]
    run, _ = refined(tmp_path / "a", *words, *WRONG)
    away = [*ENV, *words, "~teacher", "+teacher={_target_: odd_teachers.AwayTeacher}"]
    with pytest.raises(DeployError, match="not there"):
        resumed(run, tmp_path / "b", away)
    again, summary = resumed(run, tmp_path / "c", [*away, "go_on_without_teacher=true"])
    assert (summary["env_steps"], summary["lost_teacher"]) == (160, True)
    weights = [line["refine_teacher/weight"] for line in numbers(again) if "refine_teacher/weight" in line]
    assert weights == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(DeployError, match="not there"):  # a new run has to have it
        refined(tmp_path / "d", *away[len(ENV) :], "go_on_without_teacher=true")


def test_redi_with_a_teacher_that_dies_while_its_episodes_are_played_again(tmp_path: Path) -> None:
    words = [*TINY, "guidance=redi", "go_on_without_teacher=true"]
    run, _ = refined(tmp_path / "a", *words, *WRONG)
    dying = ["~teacher", "+teacher={_target_: odd_teachers.DyingTeacher, answers: 3}"]
    _, summary = resumed(run, tmp_path / "b", [*ENV, *words, *dying])
    assert (summary["env_steps"], summary["lost_teacher"]) == (160, True)


@pytest.mark.parametrize("history", [1, 2])
def test_redi_teaches_students_with_other_frames(history: int, tmp_path: Path) -> None:
    two_frames, _ = refined(tmp_path / "t", *TINY, "guidance=none", "student.history=2", "num_steps=80")
    words = [*TINY, "guidance=redi", f"student.history={history}"]
    teachers = {1: ["teacher=checkpoint", f"teacher.policy={two_frames.path}"], 2: WRONG}
    run, _ = refined(tmp_path / "s", *words, *teachers[history])
    assert "refine_teacher/distill_loss" in numbers(run)[-1]


def test_the_reference_is_counted_timed_and_closed(tmp_path: Path) -> None:
    closed = SlowTeacher.closed
    words = [*TINY, "quality_episodes=0", *WRONG, "guidance=g_opd", "reference={_target_: odd_teachers.SlowTeacher}"]
    _, summary = refined(tmp_path, *words)
    assert [each["teacher"] for each in summary["teachers"]] == ["scripted", "dying"]
    reference = summary["teachers"][1]
    assert (reference["calls"], reference["answers"]) == (40, 160)
    assert summary["seconds_teacher"] >= reference["seconds"] >= 40 * 0.02
    assert SlowTeacher.closed == closed + 1


def test_outcomes_are_in_the_checkpoint_and_come_back(tmp_path: Path) -> None:
    words = [*TINY, *WRONG, "guidance=ampo", "guidance.fail_window=3"]
    run, _ = refined(tmp_path, *words)
    saved = {
        step: load_checkpoint(run.path / "checkpoints" / f"step_{step:06d}").documents["refinement"]["outcomes"]
        for step in (0, 80, 160)
    }
    assert saved[0] == [[]] * 4
    # 80 steps in 4 envs, 10 at most an episode: two or more of each are over, and an evaluation forgets none of them.
    assert all(len(row) >= 2 for row in saved[80])
    assert all(len(row) == 3 for row in saved[160])


def test_the_gate_refuses_a_liar_and_lets_a_good_teacher_in(tmp_path: Path) -> None:
    words = [*STUDENT, "num_steps=6400", "evaluate_every_steps=6400", "teacher=point_reach", "quality_episodes=0"]
    asked = {
        "plain": ["guidance=none"],
        "liar, gated": ["guidance=gated", "teacher.lie_probability=1.0"],
        "liar, rpd": ["guidance=rpd", "teacher.lie_probability=1.0"],
        "good, gated": ["guidance=gated", "num_steps=3200"],
    }
    found = {name: refined(tmp_path / name, *words, *more) for name, more in asked.items()}
    score = {name: summary["success_once_stochastic"] for name, (_, summary) in found.items()}
    assert score["liar, gated"]["high"] >= score["plain"]["rate"], score
    assert score["liar, rpd"]["high"] < score["plain"]["low"], score  # without the gate it does harm

    def opened(name: str) -> float:
        lines = numbers(found[name][0])
        return float(np.mean([line["refine_teacher/helps"] for line in lines if "refine_teacher/helps" in line]))

    assert opened("liar, gated") == 0
    assert opened("good, gated") > 0.1


def test_a_teacher_that_dies_stops_the_run_and_leaves_it_whole(tmp_path: Path) -> None:
    config = load_config(refine_teacher.CONFIG, [*ENV, *TINY, *DYING], name="refine_teacher")
    run = RunDirectory.create(
        tmp_path, stage="refine_teacher", task="point", seed=0, config_yaml=config_to_yaml(config), command=["x"]
    )
    with pytest.raises(DeployError, match="connection refused"):
        refine_teacher.run(config, run)
    # 13 answers: one roll-out of 10 steps in 4 envs is learned from, the second is not.
    saved = load_checkpoint(run.path)
    assert saved.step == saved.documents["refinement"]["env_steps"] == 40
    policy, spec, _ = load_policy(run.path)
    assert (type(policy).__name__, spec.env_id) == ("BaselineMlpPolicy", "PointReach")
    _, result = start(evaluate, "evaluate", tmp_path / "e", *ENV, f"policy={run.path}", "num_episodes=4")
    assert result["episodes"] == 4
    with pytest.raises(DeployError, match="connection refused"):  # the next one dies too, 13 answers on
        refine_teacher.run(config, RunDirectory.open(run.path))
    assert load_checkpoint(run.path).step == 80


def test_or_goes_on_without_it(tmp_path: Path) -> None:
    run, summary = refined(tmp_path, *TINY, *DYING, "go_on_without_teacher=true")
    assert (summary["env_steps"], summary["lost_teacher"]) == (160, True)
    weights = [line["refine_teacher/weight"] for line in numbers(run) if "refine_teacher/weight" in line]
    assert weights == [1.0, 0.0, 0.0, 0.0]
    # Gone on with, there is a teacher again, and the summary still says that there was none for a time.
    lively = [*TINY, "~teacher", "+teacher={_target_: odd_teachers.DyingTeacher, answers: 99}", "quality_episodes=0"]
    again, other = resumed(run, tmp_path / "b", [*ENV, *lively, "go_on_without_teacher=true"])
    assert other["lost_teacher"]
    weights = [line["refine_teacher/weight"] for line in numbers(again) if "refine_teacher/weight" in line]
    assert weights == [1.0, 0.0, 1.0, 1.0]


def test_a_student_teaches_and_demonstrations_judge_it(tmp_path: Path) -> None:
    store = tmp_path / "shown.zarr"
    start(
        collect,
        "collect",
        tmp_path / "c",
        *ENV,
        "expert=point_reach",
        f"dataset={store}",
        "num_episodes=5",
        "num_envs=5",
    )
    with EpisodeStore.open(store, mode="r") as opened:
        steps = int(opened.episode_ends[-1])
    first, _ = refined(tmp_path / "a", *TINY, *WRONG)
    run, _ = refined(
        tmp_path / "b", *TINY, "teacher=checkpoint", f"teacher.policy={first.path}", f"demonstrations={store}",
        "calls.envs=2", "calls.every=2", "calls.cache_entries=100",
    )  # fmt: skip
    (report,) = json.loads((run.path / "teacher.json").read_text())
    assert report["teacher"] == str(first.path)
    assert report["agreement"]["rows"] == steps
    shares = [line["refine_teacher/asked_share"] for line in numbers(run) if "refine_teacher/asked_share" in line]
    assert shares == [0.25] * 4
    assert report["cost"]["answers"] == 160 / 4
    with pytest.raises(
        DataError, match=r"(?s)shown\.zarr: expected episodes of the environment \(PointReach\).*image/top"
    ):
        refined(tmp_path / "o", *TINY, *WRONG, f"demonstrations={store}", "env.image_size=16")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for words, says in [
        (["num_steps=0"], "num_steps"),
        (["guidance=annealed", "guidance.anneal_steps=0"], "anneal_steps"),
        (["guidance=g_opd"], "reference"),
        (["guidance=redi", "quality_episodes=0"], "quality_episodes"),
        (["calls.every=0"], "calls"),
        ([f"other_teachers=[{{{EXACT}}}]"], "other_teachers.*ampo"),
        (["guidance=redi", f"other_teachers=[{{{EXACT}}}]"], "other_teachers.*ampo"),
        ([f"reference={{{EXACT}}}"], "reference.*g_opd"),
        (["guidance=ampo", f"reference={{{EXACT}}}"], "reference.*g_opd"),
    ]:
        with pytest.raises(ConfigError, match=says):
            refined(tmp_path, *WRONG, *words)
    run, _ = refined(tmp_path / "a", *TINY, *WRONG)
    with pytest.raises(PolicyError, match="action"):  # a teacher of another task
        start(
            refine_teacher,
            "refine_teacher",
            tmp_path,
            "env=pusht",
            "teacher=checkpoint",
            f"teacher.policy={run.path}",
            *TINY,
        )
