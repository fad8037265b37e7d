"""Real gym-pusht: states, the planner's copy of the simulator against the real one, and the planner itself."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from robot_rl.contracts import VectorEnv
from robot_rl.envs.history import HistoryEnv
from robot_rl.envs.pusht import CAMERA, PushTConfig, make_env
from robot_rl.envs.pusht_expert import PlannerConfig, PushTPlanner
from robot_rl.envs.pusht_routes import free_of_block, route
from robot_rl.envs.pusht_sim import GOAL_POSE, KEYPOINTS, PushSim, coverage, distance_to_goal, pose_of, to_world
from robot_rl.errors import ConfigError, EnvError
from robot_rl.specs import ActionKind, EnvSpec
from robot_rl.types import ActionChunk

POSE = np.array([200.0, 300.0, 0.7])


def raw_env(**options: Any) -> Any:
    make_env(PushTConfig(), num_envs=1, history=1)  # imports gym-pusht without a window
    from gym_pusht.envs.pusht import PushTEnv

    return PushTEnv(obs_type="state", **options)


def play(env: HistoryEnv, expert: PushTPlanner, seeds: list[int]) -> dict[int, tuple[bool, list[list[float]]]]:
    """Seed -> success and all actions."""
    observation, new = env.reset(seeds), np.ones(env.num_envs, dtype=bool)
    played: dict[int, tuple[bool, list[list[float]]]] = {seed: (False, []) for seed in seeds}
    while (env.episode_seeds >= 0).any():
        before = env.episode_seeds
        chunk = expert.act(observation, episode_seeds=before, new_episode=new)
        result = env.step(chunk)
        for row in np.flatnonzero(before >= 0):
            success, actions = played[int(before[row])]
            played[int(before[row])] = (
                success or result.success[row].item(),
                [*actions, chunk.actions[row, 0].tolist()],
            )
        observation, new = result.observation, (result.terminated | result.truncated).numpy()
    return played


def test_pose_and_corners_are_inverse_and_those_of_gym_pusht():
    corners = to_world(KEYPOINTS, POSE)
    np.testing.assert_allclose(pose_of(corners), POSE, atol=1e-9)
    env = raw_env()
    env.reset(seed=5)
    theirs = env.get_keypoints(env._block_shapes)
    np.testing.assert_allclose(to_world(KEYPOINTS, env._get_info()["block_pose"]), theirs, atol=1e-9)


def test_coverage_and_distance_against_the_env_and_closed_forms():
    goal = np.array(GOAL_POSE)
    assert coverage(goal) == pytest.approx(1.0)
    assert distance_to_goal(goal + np.array([3.0, 4.0, 0.0])) == pytest.approx(5.0)
    # Shifted by 30 px along its bar, the T's two bars (120 x 30 and 30 x 90) keep 90 x 30 and nothing of the stem.
    along = 30.0 * np.array([np.cos(np.pi / 4), np.sin(np.pi / 4), 0.0])
    assert coverage(goal + along) == pytest.approx(90 * 30 / (120 * 30 + 30 * 90))
    env = raw_env()
    env.reset(seed=5)
    env.block.angle = 0.5
    env.block.position = (250.0, 260.0)
    assert coverage(np.array([250.0, 260.0, 0.5])) == pytest.approx(env._get_coverage())


@pytest.mark.parametrize(("seed", "tolerance"), [(0, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (1, 0.1), (6, 1.0)])
def test_the_copy_plays_the_same_steps_as_the_real_env(seed, tolerance):
    """From the state after reset, through contacts: the same bits.

    Seeds 1 and 6 start in contact (wall, pusher): the real space then keeps impulses that no observation shows.
    """
    env, copy = raw_env(), PushSim()
    first, _ = env.reset(seed=seed)
    copy.set(np.array([*first[:2], 0.0, 0.0]), np.array([*env.block.position, env.block.angle]))
    moved = 0.0
    for step in range(40):
        # Through the middle of the block and out at the other side, again and again.
        target = np.array(env.block.position) + (80.0 if step // 8 % 2 else -80.0)
        env.step(target)
        copy.step(target)
        real = [*env.agent.position, *env.agent.velocity, *env.block.position, env.block.angle]
        np.testing.assert_allclose([*copy.agent, *copy.block], real, rtol=0.0, atol=tolerance)
        moved = max(moved, float(np.abs(copy.block[:2] - first[2:4]).max()))
    assert moved > 10.0


def test_any_state_can_be_set_unlike_the_legacy_reset():
    copy = PushSim()
    copy.set(np.array([50.0, 60.0, 7.0, -8.0]), POSE)
    np.testing.assert_allclose(copy.agent, [50.0, 60.0, 7.0, -8.0], atol=1e-9)
    np.testing.assert_allclose(copy.block, POSE, atol=1e-9)
    legacy, _ = raw_env().reset(options={"reset_to_state": [50.0, 60.0, *POSE]})
    # The position is set first, then the turn about the centre of mass (0, 45) moves it by c - R c.
    centre = np.array([0.0, 45.0])
    moved = POSE[:2] + centre - to_world(centre[None], np.array([0.0, 0.0, POSE[2]]))[0]
    np.testing.assert_allclose(legacy[2:4], moved, atol=1e-3)
    assert np.abs(legacy[2:4] - POSE[:2]).max() > 5.0


def test_route_goes_around_the_block():
    import shapely

    ends = to_world(np.array([[-120.0, 15.0], [120.0, 15.0]]), POSE)
    way = route(ends[0], ends[1], POSE, step_px=20.0)
    assert np.allclose(way[-1], ends[1])
    steps = np.linalg.norm(np.diff(np.concatenate([ends[:1], way]), axis=0), axis=1)
    assert steps.max() <= 20.0 + 1e-6
    block = shapely.Polygon(to_world(KEYPOINTS[[0, 1, 2, 5, 6, 7, 4, 3]], POSE))
    assert block.distance(shapely.LineString(way)) > 15.0
    far = route(np.array([30.0, 30.0]), np.array([30.0, 90.0]), POSE, step_px=20.0)
    np.testing.assert_allclose(far, [[30.0, 50.0], [30.0, 70.0], [30.0, 90.0]])
    assert not free_of_block(to_world(np.array([[0.0, 60.0]]), POSE)[0], POSE)
    assert not free_of_block(np.array([5.0, 250.0]), POSE)
    assert free_of_block(np.array([100.0, 100.0]), POSE)


def test_env_spec_state_and_limit():
    env = make_env(PushTConfig(max_episode_steps=5), num_envs=2, history=2)
    assert isinstance(env, VectorEnv)
    assert env.spec.control_hz == 10.0
    assert env.spec.action.low == (0.0, 0.0)
    assert env.spec.action.high == (512.0, 512.0)
    assert env.spec.action_semantics.kind is ActionKind.absolute
    assert EnvSpec.from_json(env.spec.to_json()) == env.spec
    observation = env.reset([5, 6, 7])
    raw, _ = raw_env().reset(seed=6)
    np.testing.assert_allclose(observation.proprio[1, -1].numpy(), raw[:2], rtol=1e-6)
    corners = observation.state[1, -1, 2:].numpy().astype(np.float64).reshape(8, 2)
    np.testing.assert_allclose(pose_of(corners)[:2], raw[2:4], atol=1e-3)
    result = env.step(ActionChunk(torch.full((2, 6, 2), 256.0), execute=6))
    assert result.truncated.all()
    assert not result.terminated.any()
    assert not result.success.any()
    assert result.executed.tolist() == [5, 5]
    assert env.episode_seeds.tolist() == [7, -1]


def test_images_show_the_scene_without_the_marker_of_the_action():
    env = make_env(PushTConfig(images=True), num_envs=1, history=1)
    first = env.reset([3]).images["top"]
    assert CAMERA in env.spec.observation
    assert first.shape == (1, 1, 96, 96, 3)
    assert first.dtype == torch.uint8
    from gym_pusht.envs.pusht import PushTEnv

    theirs, _ = PushTEnv(obs_type="pixels").reset(seed=3)
    np.testing.assert_array_equal(first[0, 0].numpy(), theirs)
    assert env.reset([3]).state.shape == (1, 1, 18)


def test_planner_solves_and_does_not_depend_on_the_number_of_envs():
    config = PlannerConfig(samples=48, refined=24, rounds=1)
    spec = make_env(PushTConfig(), num_envs=1, history=1).spec
    alone = play(make_env(PushTConfig(), num_envs=1, history=1), PushTPlanner(config, spec), [15, 17])
    beside = play(make_env(PushTConfig(), num_envs=2, history=1), PushTPlanner(config, spec), [15, 17])
    assert all(success for success, _ in alone.values())
    assert alone == beside


def test_planner_takes_up_a_state_that_it_did_not_expect():
    """The block is moved by hand: the planner sees it and plans from there."""
    config = PlannerConfig(samples=24, refined=1, rounds=0, finalists=2)
    env = make_env(PushTConfig(), num_envs=1, history=1)
    expert = PushTPlanner(config, env.spec)
    observation = env.reset([15])
    seeds = env.episode_seeds
    expert.act(observation, episode_seeds=seeds, new_episode=np.array([True]))
    moved = to_world(KEYPOINTS, np.array([150.0, 150.0, 0.3])).reshape(-1)
    state = observation.state.clone()
    state[0, 0, 2:] = torch.from_numpy(moved.astype(np.float32))
    expert.act(replace(observation, state=state), episode_seeds=seeds, new_episode=np.array([False]))
    _, episode = expert._episodes[0]
    assert np.linalg.norm(episode._mirror.block[:2] - 150.0) < 60.0


def test_planner_errors():
    env = make_env(PushTConfig(), num_envs=1, history=1)
    with pytest.raises(EnvError, match="PushT-v0"):
        PushTPlanner(PlannerConfig(), replace(env.spec, env_id="PickCube-v1"))
    with pytest.raises(ConfigError, match=r"expert\.samples"):
        PushTPlanner(PlannerConfig(samples=0), env.spec)
    with pytest.raises(EnvError, match="new_episode"):
        PushTPlanner(PlannerConfig(), env.spec).act(
            env.reset([1]), episode_seeds=env.episode_seeds, new_episode=np.array([False])
        )


def test_seeds_give_different_starts():
    env = make_env(PushTConfig(), num_envs=4, history=1)
    state = env.reset([0, 1, 0, 2]).state
    assert torch.equal(state[0], state[2])
    assert all(not torch.equal(state[a], state[b]) for a, b in itertools.combinations([0, 1, 3], 2))
