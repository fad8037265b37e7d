"""Asking a teacher: late ones lose their connection, comparisons come in parts, costs by the row, outcomes that last."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.data.teacher_card import card_of
from robot_rl.envs.point_reach import PointReachConfig, make_env
from robot_rl.errors import DeployError
from robot_rl.fitting.guided_env import GuidedEnv
from robot_rl.fitting.teacher_calls import AskedTeacher, CallConfig
from robot_rl.fitting.teacher_quality import ShownSteps, compare, cost_of, measure_teacher
from robot_rl.types import ActionChunk, Observation

SPEC = make_env(PointReachConfig(), num_envs=1, history=1).spec


class Remote:
    """Says 0; the first `late` calls hang until `release`."""

    history = 1

    def __init__(self, *, late: int = 0, is_one_frame: bool = False, is_remote: bool = True) -> None:
        self.card = card_of(SPEC, name="remote", history=1, keys=())
        self.late, self.is_one_frame, self.is_remote = late, is_one_frame, is_remote
        self.release, self.told = threading.Event(), list[Any]()

    def label(self, observation: Observation) -> ActionChunk:
        self.told.append(len(observation.proprio))
        if len([each for each in self.told if each != "closed"]) <= self.late:
            self.release.wait(60)
        return ActionChunk(torch.zeros(len(observation.proprio), 1, 2), execute=1)

    def close(self) -> None:
        self.told.append("closed")


def seen(number: int) -> Observation:
    return Observation(proprio=torch.zeros(number, 1, 2), state=torch.zeros(number, 1, 4))


def test_a_late_call_is_closed_before_the_next_one() -> None:
    teacher = Remote(late=2)
    asked = AskedTeacher(teacher, CallConfig(retries=2, wait_s=0.0, timeout_s=0.2))
    try:
        assert asked.label(seen(3)).shape == (3, 2)
        assert teacher.told == [3, "closed", 3, "closed", 3]
    finally:
        teacher.release.set()


@pytest.mark.parametrize(("is_one_frame", "limit"), [(False, 0.1), (True, 0.4)])
def test_a_limit_says_how_long_it_was(is_one_frame: bool, limit: float) -> None:
    teacher = Remote(late=1, is_one_frame=is_one_frame)
    asked = AskedTeacher(teacher, CallConfig(retries=0, wait_s=0.0, timeout_s=0.1))
    try:
        with pytest.raises(DeployError, match=f"an answer within {limit:g} s"):
            asked.label(seen(4))
    finally:
        teacher.release.set()


@pytest.mark.parametrize(
    ("is_remote", "number", "parts"),
    [(True, 10, [4, 3, 3]), (True, 3, [3]), (False, 10, [10]), (False, 511, [256, 255])],
)
def test_what_was_shown_is_asked_in_parts(is_remote: bool, number: int, parts: list[int]) -> None:
    """Of a remote teacher as many rows as in training, whose batch has the time limit."""
    teacher = Remote(is_remote=is_remote)
    env = make_env(PointReachConfig(), num_envs=4, history=1)
    shown = ShownSteps(seen(number), np.zeros((number, 2), dtype=np.float32))
    compare(AskedTeacher(teacher, CallConfig()), shown, env)
    assert teacher.told == parts
    env.close()


@pytest.mark.parametrize(("is_one_frame", "seconds"), [(True, 3.0), (False, 12.0)])
def test_the_cost_of_a_foreign_server_is_that_of_its_rows(is_one_frame: bool, seconds: float) -> None:
    """120 ms for 8 rows; 800 steps in 8 envs, two of which are asked: 200 rows in 100 calls."""
    report = {"latency_ms": {"p50": 120.0, "rows": 8, "is_one_frame": is_one_frame}}
    found = cost_of(report, env_steps=800, num_envs=8, config=CallConfig(envs=2))
    assert found == {"answers": 200.0, "calls": 100.0, "seconds": pytest.approx(seconds)}


def test_the_report_says_whether_rows_are_messages() -> None:
    env = make_env(PointReachConfig(max_episode_steps=3), num_envs=2, history=1)
    asked = AskedTeacher(Remote(is_one_frame=True), CallConfig())
    report, _ = measure_teacher(asked, env, range(2), shown=None)
    assert (report["latency_ms"]["rows"], report["latency_ms"]["is_one_frame"]) == (2, True)
    env.close()


def guided(outcomes: list[list[bool]] | None = None) -> GuidedEnv:
    env = GuidedEnv(
        make_env(PointReachConfig(max_episode_steps=2), num_envs=2, history=1), history=1,
        teachers=[AskedTeacher(Remote(is_remote=False), CallConfig())], reference=None, config=CallConfig(),
        on_demand=True, fail_window=3,
    )  # fmt: skip
    if outcomes is not None:
        env.outcomes = outcomes
    return env


def test_outcomes_last_over_an_evaluation_and_can_be_kept() -> None:
    env = guided([[False, True], [False]])
    env.reset(iter(range(100)))  # what an update behind an evaluation begins with
    assert env.due().tolist() == [False, True]
    for _ in range(4):  # two episodes that go nowhere
        env.step(ActionChunk(torch.zeros(2, 1, 2), execute=1))
    assert env.outcomes == [[True, False, False], [False, False, False]]
    for _ in range(2):
        env.step(ActionChunk(torch.zeros(2, 1, 2), execute=1))
    assert env.due().tolist() == [True, True]
    assert guided(env.outcomes).outcomes == [[False] * 3] * 2
    assert guided().outcomes == [[], []]  # without a finished episode an env counts as failing
    env.close()
