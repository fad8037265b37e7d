"""Pushes and shifted starts in real environments: what moves, by how much, and the same in any batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.envs.history import HistoryEnv
from robot_rl.envs.perturbations import PushedSteps
from robot_rl.envs.point_reach import PointReach, PointReachConfig, PointReachExpert, PointReachExpertConfig, make_env
from robot_rl.errors import ConfigError, EnvError
from robot_rl.rollout import rollout
from robot_rl.types import ActionChunk

POINT_PUSH = Push(action_offset=1.5, steps=2, first_step=1, last_step=4)


def point_actions(env: HistoryEnv, steps: int) -> torch.Tensor:
    """Displacements / 0.1 m of the point with zero actions: what the push alone does, (N, steps, 2)."""
    start = env.reset(itertools.count(7)).state[:, -1, :2]
    zeros = torch.zeros(env.num_envs, steps, 2)
    path = env.step(ActionChunk(actions=zeros, execute=steps)).frames["state"][..., :2]
    return torch.diff(torch.cat([start[:, None], path], dim=1), dim=1) / 0.1


def test_the_point_is_pushed_when_and_where_the_draw_says() -> None:
    # Starts away from the walls of the square, which would stop the point.
    config = PointReachConfig(push=POINT_PUSH, shift=Shift(scale=0.5), terminate_on_success=False)
    env = make_env(config, num_envs=5, history=1)
    moved = point_actions(env, 8)
    for row, seed in enumerate(range(7, 12)):
        start, angle = POINT_PUSH.draw(seed)
        expected = torch.zeros(8, 2)
        # The point takes no more than 1 along an axis.
        plane = torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32)
        expected[start : start + 2] = (1.5 * plane).clamp(-1, 1)
        torch.testing.assert_close(moved[row], expected, atol=2e-6, rtol=0)
    assert env.protocol()["push"] == POINT_PUSH.to_json()


def test_the_offset_comes_behind_the_clip_of_the_action() -> None:
    push = Push(action_offset=0.5, first_step=0, last_step=0)
    sim = PointReach(PointReachConfig(), num_envs=1)
    seen: list[torch.Tensor] = []
    inner_step = sim.step_envs
    sim.step_envs = lambda action, active: (seen.append(action.clone()), inner_step(action, active))[1]  # type: ignore[method-assign]
    env = HistoryEnv(PushedSteps(sim, push), history=1, terminate_on_success=True)
    env.reset([3])
    env.step(ActionChunk(actions=torch.tensor([[[3.0, -3.0], [3.0, -3.0]]]), execute=2))
    angle = push.draw(3)[1]
    torch.testing.assert_close(seen[0][0], torch.tensor([1 + 0.5 * np.cos(angle), -1 + 0.5 * np.sin(angle)]).float())
    torch.testing.assert_close(seen[1][0], torch.tensor([3.0, -3.0]))  # as it came


@pytest.mark.parametrize("push", [None, POINT_PUSH])
def test_episodes_are_the_same_in_any_batch_and_a_push_changes_them(push: Push | None) -> None:
    tables = []
    for num_envs in (1, 3, 8):
        env = make_env(PointReachConfig(push=push), num_envs=num_envs, history=1)
        expert = PointReachExpert(PointReachExpertConfig(), env.spec)
        tables.append([record.to_json() for record in rollout(env, expert, range(20))])
    assert tables[0] == tables[1] == tables[2]
    plain = make_env(PointReachConfig(), num_envs=4, history=1)
    records = rollout(plain, PointReachExpert(PointReachExpertConfig(), plain.spec), range(20))
    same = [record.to_json() for record in records] == tables[0]
    assert same is (push is None)


@pytest.mark.parametrize(
    ("shift", "moves"),
    [
        (Shift(xy_m=(0.05, -0.1)), lambda start: start + torch.tensor([0.05, -0.1, 0.05, -0.1])),
        (Shift(scale=0.5), lambda start: start * 0.5),
        (Shift(xy_m=(0.1, 0.0), bodies=("goal",)), lambda start: start + torch.tensor([0.0, 0.0, 0.1, 0.0])),
    ],
)
def test_point_starts_move_by_exactly_that(shift: Shift, moves) -> None:
    plain, shifted = (make_env(PointReachConfig(shift=s), num_envs=3, history=1) for s in (None, shift))
    starts, moved = (env.reset(itertools.count(50)).state[:, 0] for env in (plain, shifted))
    torch.testing.assert_close(moved, moves(starts), atol=1e-7, rtol=1e-6)
    assert shifted.protocol()["shift"] == shift.to_json()
    assert "shift" not in plain.protocol()


def test_only_the_envs_that_start_are_shifted() -> None:
    """An env that goes on keeps its state when its neighbour starts anew."""
    sim = PointReach(PointReachConfig(shift=Shift(xy_m=(0.1, 0.0))), num_envs=2)
    seeds = np.array([1, 2])
    first = sim.reset_envs(np.array([True, True]), seeds).observation["state"]
    second = sim.reset_envs(np.array([True, False]), seeds).observation["state"]
    torch.testing.assert_close(second, first, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (PointReachConfig(push=Push(body="point", impulse_n_s=1.0)), EnvError, "action_offset"),
        (PointReachConfig(push=Push()), ConfigError, "above 0"),
        (PointReachConfig(shift=Shift(xy_m=(0.2, 0.0))), EnvError, "1.1 m"),
        (PointReachConfig(shift=Shift(xy_m=(0.1, 0.0), bodies=("gaol",))), EnvError, "Did you mean 'goal'"),
    ],
)
def test_what_the_point_can_not_do_is_refused(config: PointReachConfig, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make_env(config, num_envs=1, history=1)


def test_pusht_is_pushed_through_its_target() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra pusht)")
    from robot_rl.envs.pusht import PushTConfig
    from robot_rl.envs.pusht import make_env as make_pusht

    push = Push(action_offset=60.0, steps=3, first_step=2, last_step=2)
    paths = []
    for setting in (None, push):
        env = make_pusht(PushTConfig(push=setting), num_envs=1, history=1)
        target = env.reset([5]).proprio[:, -1:].repeat(1, 5, 1)  # stay where you are
        paths.append(env.step(ActionChunk(actions=target, execute=5)).frames["proprio"][0])
        env.close()
    away = paths[1] - paths[0]
    torch.testing.assert_close(away[:2], torch.zeros(2, 2))
    angle = push.draw(5)[1]
    direction = torch.tensor([np.cos(angle), np.sin(angle)]).float()
    assert float(away[4] @ direction) > 10  # px
    assert abs(float(away[4] @ torch.tensor([-direction[1], direction[0]]))) < 1
