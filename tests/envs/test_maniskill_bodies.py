"""Pushes and shifted starts in ManiSkill's own physics."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch

pytest.importorskip("mani_skill", reason="ManiSkill is not installed (extra sim)")

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.envs.experts import ExpertConfig, ScriptedExpert
from robot_rl.envs.maniskill import ManiSkillConfig, SimBackend, make_env
from robot_rl.errors import EnvError
from robot_rl.rollout import rollout
from robot_rl.types import ActionChunk

GOAL, CUBE = slice(26, 29), slice(29, 32)  # of PickCube's state
MASS_KG = 0.064  # a cube of 4 cm and 1000 kg/m3
FRICTION, GRAVITY = 0.3, 9.81  # ManiSkill's default material


def cube_path(push: Push | None, *, fast: bool, num_envs: int = 1, seed: int = 100_000) -> torch.Tensor:
    """Where the cube is after each of 12 zero actions, relative to its start, (N, 12, 3)."""
    env = make_env(ManiSkillConfig("PickCube-v1", fast_cpu=fast, push=push), num_envs=num_envs, history=1)
    start = env.reset(itertools.count(seed)).state[:, -1:, CUBE]
    result = env.step(ActionChunk(actions=torch.zeros(num_envs, 12, 4), execute=12))
    env.close()
    return result.frames["state"][..., CUBE] - start


@pytest.mark.parametrize("fast", [False, True])
def test_an_impulse_gives_the_cube_the_velocity_and_the_way_of_the_textbook(fast: bool) -> None:
    push = Push(body="cube", impulse_n_s=0.03, first_step=3, last_step=3)
    path = cube_path(push, fast=fast)[0]
    angle = push.draw(100_000)[1]
    along = path[:, :2] @ torch.tensor([np.cos(angle), np.sin(angle)]).float()
    across = path[:, :2] @ torch.tensor([-np.sin(angle), np.cos(angle)]).float()
    assert float(along[:3].abs().max()) < 1e-4  # nothing before the push
    speed = 0.03 / MASS_KG
    # After one control step of 0.05 s, and at rest: v t - a t^2 / 2 and v^2 / 2a.
    assert float(along[3]) == pytest.approx(speed * 0.05 - FRICTION * GRAVITY * 0.05**2 / 2, rel=0.12)
    assert float(along[11]) == pytest.approx(speed**2 / (2 * FRICTION * GRAVITY), rel=0.12)
    assert float(across.abs().max()) < 2e-3
    assert float(path[:, 2].abs().max()) < 1e-3  # it stays on the table


def test_two_halves_of_an_impulse_are_given_in_two_steps() -> None:
    whole, halves = (Push(body="cube", impulse_n_s=0.08, steps=n, first_step=3, last_step=3) for n in (1, 2))
    one, two = (cube_path(push, fast=True)[0, :, :2].norm(dim=1) for push in (whole, halves))
    assert float(two[3]) == pytest.approx(0.04 / MASS_KG * 0.05 - FRICTION * GRAVITY * 0.05**2 / 2, rel=0.12)
    assert float(two[3]) < 0.55 * float(one[3])
    assert float(two[4] - two[3]) > 1.5 * float(two[3])


def test_a_pushed_episode_is_the_same_in_any_batch() -> None:
    push = Push(body="cube", impulse_n_s=0.05, first_step=1, last_step=6)
    batch = cube_path(push, fast=True, num_envs=3)
    assert (batch[..., :2].norm(dim=2).amax(dim=1) > 0.01).all()
    assert torch.equal(batch[2], cube_path(push, fast=True, seed=100_002)[0])


def test_records_of_pushed_experts_do_not_depend_on_num_envs() -> None:
    push = Push(body="cube", impulse_n_s=0.04, first_step=2, last_step=12)
    tables = []
    for num_envs in (1, 2):
        env = make_env(ManiSkillConfig("PickCube-v1", fast_cpu=True, push=push), num_envs=num_envs, history=1)
        records = rollout(env, ScriptedExpert(ExpertConfig(), env.spec), range(300, 303))
        tables.append([record.to_json() for record in records])
        assert env.protocol()["push"] == push.to_json()
        env.close()
    assert tables[0] == tables[1]


@cache
def pick_cube_starts(shift: Shift | None) -> list[torch.Tensor]:
    """The first states of two episodes, one after the other in one env."""
    config = ManiSkillConfig("PickCube-v1", shift=shift, fast_cpu=True, max_episode_steps=1)
    env = make_env(config, num_envs=1, history=1)
    first = env.reset([40, 41]).state[0, 0]
    second = env.step(ActionChunk(actions=torch.zeros(1, 1, 4), execute=1)).observation.state[0, 0]
    env.close()
    return [first, second]


@pytest.mark.parametrize(
    ("shift", "moves_cube", "moves_goal"),
    [
        (Shift(xy_m=(0.05, -0.02)), lambda p: p + torch.tensor([0.05, -0.02]), lambda p: p + torch.tensor([0.05, -0.02])),
        (Shift(xy_m=(0.05, 0.0), bodies=("cube",)), lambda p: p + torch.tensor([0.05, 0.0]), lambda p: p),
        (Shift(scale=1.5), lambda p: 1.5 * p, lambda p: 1.5 * p),
    ],
)  # fmt: skip
def test_starts_of_pick_cube_move_by_exactly_that(shift: Shift, moves_cube, moves_goal) -> None:
    for plain, moved in zip(pick_cube_starts(None), pick_cube_starts(shift), strict=True):
        torch.testing.assert_close(moved[29:31], moves_cube(plain[29:31]), atol=1e-6, rtol=0)
        torch.testing.assert_close(moved[26:28], moves_goal(plain[26:28]), atol=1e-6, rtol=0)
        same = [28, 31, *range(7), *range(32, 36)]  # heights, the robot's joints and the cube's rotation
        torch.testing.assert_close(moved[same], plain[same], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("task", "parts"),
    [("PushCube-v1", (25, 28)), ("PullCube-v1", (25, 28)), ("StackCube-v1", (25, 32))],
)
def test_starts_of_the_other_tasks_move_together(task: str, parts: tuple[int, int]) -> None:
    shift = Shift(xy_m=(-0.03, 0.02))
    states = []
    for setting in (None, shift):
        env = make_env(ManiSkillConfig(task, shift=setting), num_envs=1, history=1)
        states.append(env.reset([9]).state[0, 0])
        env.close()
    for part in parts:
        moved = states[1][part : part + 2] - states[0][part : part + 2]
        torch.testing.assert_close(moved, torch.tensor(shift.xy_m), atol=1e-6, rtol=0)


def test_a_shift_that_reaches_the_goal_counts_as_solved_at_reset() -> None:
    """The signals of the first frame are those of the shifted start: PushCube with the cube on its goal."""
    env = make_env(
        ManiSkillConfig("PushCube-v1", shift=Shift(xy_m=(0.2, 0.0), bodies=("cube",))), num_envs=1, history=1
    )
    env.reset([9])
    assert env.success_at_reset.tolist() == [True]
    env.close()


CUDA = SimBackend.physx_cuda


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ManiSkillConfig("PegInsertionSide-v1", shift=Shift(xy_m=(0.1, 0.0))), "one of PickCube-v1"),
        (ManiSkillConfig("PickCube-v1", push=Push(body="goal", impulse_n_s=1.0)), "can be pushed"),
        (ManiSkillConfig("PickCube-v1", shift=Shift(xy_m=(0.1, 0.0), bodies=("box",))), "cube, goal"),
        (ManiSkillConfig("PushCube-v1", shift=Shift(scale=1.2)), "depend on each other"),
        (ManiSkillConfig("StackCube-v1", shift=Shift(scale=0.9)), "1.0 or more"),
        (ManiSkillConfig("PickCube-v1", sim_backend=CUDA, shift=Shift(scale=1.2)), "physx_cuda"),
        (ManiSkillConfig("PickCube-v1", sim_backend=CUDA, push=Push(body="cube", impulse_n_s=1.0)), "physx_cuda"),
    ],
)
def test_what_a_task_can_not_do_is_refused(config: ManiSkillConfig, says: str) -> None:
    with pytest.raises(EnvError, match=says):
        make_env(config, num_envs=1, history=1)
