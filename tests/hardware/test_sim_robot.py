"""The simulated robot against the environment it is made of: same scene, same goals, same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mani_skill")

import torch

from robot_rl.deploy.robot_card import CommandKind, load_robot_card
from robot_rl.deploy.schedule import ManualClock
from robot_rl.envs.maniskill import ManiSkillConfig, make_env
from robot_rl.errors import ConfigError, DeployError, EnvError
from robot_rl.hardware.sim_robot import SimRobot, SimRobotConfig, moved
from robot_rl.hardware.sim_scene import live_scene
from robot_rl.types import ActionChunk, Goal

PERIOD_S = 0.05
STEP_S = 0.01
SEED = 900_000
HOME_X = 0.615  # of the tool before the base, when the arm is at rest


@pytest.fixture(scope="module")
def scene() -> Iterator[Any]:
    scene = live_scene("pick_cube", {})
    yield scene
    scene.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(50.0)


@pytest.fixture
def robot(scene: Any, clock: ManualClock) -> SimRobot:
    robot = SimRobot(SimRobotConfig(seed=SEED), clock=clock, scene=scene)
    robot.connect()
    return robot


def actions(count: int) -> np.ndarray:
    """Random actions of pd_ee_delta_pos, and a gripper that opens and closes."""
    # Not further: a stretched arm makes the solver's answer as uncertain as its tolerance.
    return np.random.default_rng(4).uniform([-0.5, -0.5, -0.5, -1], [0.5, 0.5, 0.3, 1], (count, 4)).astype(np.float32)


def goal_of(robot: SimRobot, action: np.ndarray) -> Goal:
    """What pd_ee_delta_pos makes of an action, by its definition: 1 = 0.1 m, -1 .. 1 = -0.01 .. 0.04 m."""
    pose = robot.read().pose
    assert pose is not None
    moved_to = np.concatenate([pose[:3] + 0.1 * action[:3].astype(np.float64), pose[3:]])
    return Goal(pose=moved_to, gripper=0.015 + 0.025 * float(action[3]))


def test_goals_of_a_step_give_the_targets_and_the_way_of_the_environment(robot: SimRobot, clock: ManualClock) -> None:
    env = make_env(ManiSkillConfig(task="PickCube-v1"), num_envs=1, history=1)
    env.reset([SEED])
    joints = env._env._envs[0].agent.robot._objs[0].active_joints  # type: ignore[attr-defined]
    first = env._env._envs[0].get_obs()[0].numpy()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(robot.read().frames["state"], first)
    for number, action in enumerate(actions(20)):
        robot.command(goal_of(robot, action))
        result = env.step(ActionChunk(torch.from_numpy(action)[None, None], execute=1))
        targets = [float(joint.drive_target[0]) for joint in joints]
        np.testing.assert_allclose(robot._scene.driven, targets, atol=1e-5, err_msg=f"step {number}")
        clock.advance(PERIOD_S)
        np.testing.assert_allclose(
            robot.read().frames["state"], result.final_observation.state[0, -1].numpy(), atol=1e-4
        )
    env.close()


def test_reading_is_the_observation_by_parts(robot: SimRobot, clock: ManualClock) -> None:
    robot.command(goal_of(robot, np.array([1, 0.5, -1, -1], np.float32)))
    clock.advance(0.128)  # inside the 13th step
    reading = robot.read()
    proprio, state = reading.frames["proprio"], reading.frames["state"]
    assert proprio.dtype == state.dtype == np.float32
    np.testing.assert_array_equal(state[:18], proprio)
    np.testing.assert_allclose(reading.position, proprio[:7])
    assert reading.velocity is not None
    assert reading.pose is not None
    np.testing.assert_allclose(reading.velocity, proprio[9:16])
    assert reading.gripper == pytest.approx(float(proprio[7]))
    world = state[19:26].astype(np.float64)  # extra.tcp_pose, world frame; the base stands at x = -0.615
    np.testing.assert_allclose(reading.pose[:3], world[:3] + np.array([HOME_X, 0, 0]), atol=1e-6)
    np.testing.assert_allclose(abs(reading.pose[3:] @ world[3:]), 1, atol=1e-6)
    assert set(reading.stamps) == {"joints", "pose", "state"}
    assert reading.stamps["joints"] == pytest.approx(50.12)


def test_a_goal_acts_when_it_arrives_and_is_held(robot: SimRobot, clock: ManualClock) -> None:
    """Between two goals physics goes on: the same total time in one stretch or in ten gives the same numbers."""
    ends = []
    for parts in (1, 10):
        robot.reset(SEED)
        robot.command(goal_of(robot, np.array([0.5, 0, -0.5, 1], np.float32)))
        for _ in range(parts):
            clock.advance(0.1 / parts)
            robot.read()
        ends.append(robot.read().position)
    np.testing.assert_array_equal(*ends)
    robot.reset(SEED)
    start = robot.read().position
    clock.advance(0.1)
    assert np.abs(robot.read().position - start).max() < 1e-4, "without a goal it must stay"
    assert np.abs(ends[0] - start).max() > 0.02


def test_joint_goals_and_gripper(scene: Any, clock: ManualClock) -> None:
    robot = SimRobot(SimRobotConfig(card="sim_panda_joints", seed=SEED), clock=clock, scene=scene)
    robot.connect()
    target = robot.read().position + np.array([0.1, -0.05, 0.05, 0.1, -0.1, 0.05, 0.1])
    sent = robot.command(Goal(position=target, gripper=0.9))
    assert sent.gripper == 0.04, "the card's range"
    np.testing.assert_allclose(scene.driven, [*target, 0.04, 0.04], atol=1e-6)
    for _ in range(40):  # well before the watchdog
        robot.command(Goal(position=target, gripper=-0.01))
        clock.advance(PERIOD_S)
    np.testing.assert_allclose(robot.read().position, target, atol=0.01)
    assert robot.read().gripper == pytest.approx(0.0, abs=2e-3), "closed on nothing"


def test_twist_moves_at_its_speed_until_the_watchdog_holds(scene: Any, clock: ManualClock) -> None:
    card = replace(load_robot_card("sim_panda"), command=CommandKind.twist)
    robot = SimRobot(SimRobotConfig(seed=SEED), card=card, clock=clock, scene=scene)
    robot.connect()
    start = robot.read().pose
    assert start is not None
    robot.command(Goal(twist=np.array([0.0, 0.1, 0.0, 0.0, 0.0, 0.0])))
    clock.advance(3.0)
    end = robot.read().pose
    assert end is not None
    # Drives of stiffness 1000 and damping 100 follow with a lag of 0.1 s: v (t - lag (1 - exp(-t / lag))) after command_s.
    assert end[1] - start[1] == pytest.approx(0.1 * (0.2 - 0.1 * (1 - np.exp(-2))), abs=2e-3)
    assert robot.holds == 1
    clock.advance(1.0)
    again = robot.read().pose
    assert again is not None
    np.testing.assert_allclose(again, end, atol=1e-4)


def test_watchdog_holds_when_goals_end(robot: SimRobot, clock: ManualClock) -> None:
    robot.command(goal_of(robot, np.array([1, 0, 0, 1], np.float32)))
    clock.advance(0.2 - STEP_S)
    robot.read()
    assert robot.holds == 0
    clock.advance(0.1)
    robot.read()
    assert robot.holds == 1
    arm = robot._scene.driven[:7]
    clock.advance(2.0)
    np.testing.assert_allclose(robot.read().position, arm, atol=5e-3)
    assert robot.holds == 1, "once a silence"


def test_episode_counts_from_its_first_goal(robot: SimRobot, clock: ManualClock) -> None:
    clock.advance(1.0)
    assert robot.episode().steps == 0
    still = robot.read().pose
    assert still is not None
    for number in range(50):
        assert robot.episode().steps == number
        assert not robot.episode().is_over
        robot.command(Goal(pose=still))
        clock.advance(PERIOD_S)
    over = robot.episode()
    assert (over.seed, over.steps, over.success, over.is_over) == (SEED, 50, False, True)
    clock.advance(1.0)
    assert robot.episode() == over


def test_reset_leaves_nothing_of_the_episode_before(robot: SimRobot, clock: ManualClock) -> None:
    frames = []
    for _ in range(2):
        robot.reset(SEED + 1)
        clock.advance(0.1)
        frames.append(robot.read().frames["state"])
        for action in actions(5):
            robot.command(goal_of(robot, action))
            clock.advance(PERIOD_S)
    np.testing.assert_array_equal(*frames)


def test_out_of_reach_stays(robot: SimRobot, clock: ManualClock) -> None:
    before = robot.read().position
    robot.command(Goal(pose=np.array([5.0, 0, 0, 1, 0, 0, 0])))
    clock.advance(0.1)
    assert robot.unreachable == 1
    np.testing.assert_allclose(robot.read().position, before, atol=1e-3)


def test_long_silence_is_left_out_and_told(robot: SimRobot, clock: ManualClock) -> None:
    clock.advance(100.0)
    robot.read()
    assert robot.lost_s == pytest.approx(90.0)


def test_real_time() -> None:
    """On the machine's clock, physics keeps up: stamps are never older than a step and the time of a call."""
    robot = SimRobot(SimRobotConfig(seed=1, options={"fast_cpu": True}))
    robot.connect()
    ages = []
    began = robot._clock.now()
    while robot._clock.now() - began < 0.5:
        before = robot._clock.now()
        ages.append(before - robot.read().stamps["joints"])
    assert np.median(ages) < STEP_S + 1e-6
    assert robot.lost_s == 0
    robot.close()


def test_moved_turns_and_shifts() -> None:
    pose = np.array([1.0, 2, 3, 1, 0, 0, 0])
    quarter = moved(pose, np.array([1.0, 0, 0, 0, 0, np.pi / 2]), 1.0)
    np.testing.assert_allclose(quarter, [2, 2, 3, np.sqrt(0.5), 0, 0, np.sqrt(0.5)], atol=1e-12)
    upside_down = moved(quarter, np.array([0, 0, 0, np.pi, 0, 0.0]), 1.0)
    np.testing.assert_allclose(upside_down[3:], [0, np.sqrt(0.5), -np.sqrt(0.5), 0], atol=1e-12)


@pytest.mark.parametrize(
    ("env", "options", "error", "says"),
    [
        ("pick_cub", {}, ConfigError, "pick_cube"),
        ("point_reach", {}, ConfigError, "live form"),
        ("pick_cube", {"tusk": 1}, ConfigError, "task"),
        ("pick_cube", {"sim_backend": "gpu"}, ConfigError, "physx_cpu"),
        ("pick_cube", {"control_mode": "pd_nothing"}, EnvError, "pd_ee_delta_pos"),
    ],
)
def test_wrong_scene(env: str, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        live_scene(env, options)


def test_wrong_card_goal_and_order(scene: Any, clock: ManualClock) -> None:
    card = load_robot_card("sim_panda")
    with pytest.raises(DeployError, match="finger_joint9"):
        SimRobot(SimRobotConfig(), card=replace(card, mimic=("finger_joint9",)), clock=clock, scene=scene)
    robot = SimRobot(SimRobotConfig(), card=card, clock=clock, scene=scene)
    with pytest.raises(DeployError, match="connect"):
        robot.read()
    robot.stop()
    robot.connect()
    with pytest.raises(DeployError, match="a pose"):
        robot.command(Goal(position=np.zeros(7)))
    with pytest.raises(DeployError, match="finite"):
        robot.command(Goal(pose=np.full(7, np.nan)))
    with pytest.raises(DeployError, match="finite"):
        robot.command_gripper(float("nan"))
