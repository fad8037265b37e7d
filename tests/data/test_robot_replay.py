"""Recorded actions on a robot that is a formula, on a clock that only tests move: no drift, known drift, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robot_rl.data.drift import drift_of, thresholds_of
from robot_rl.data.robot_replay import RobotReplay
from robot_rl.deploy.loop_parts import LoopParts
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import DataError, DeployError
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.rollout import rollout
from robot_rl.runs.config import build
from robot_rl.types import Episode, Source

STEPS = 20


def robot_of(clock: ManualClock, **config: Any) -> MockRobot:
    return MockRobot(MockRobotConfig(card="sim_panda_joints", **config), clock=clock)


def slow_wave(robot: MockRobot) -> np.ndarray:
    """Targets of the joints around the middle of their limits, slow enough for every limit; gripper open."""
    limits = robot.card.limits
    middle = (np.array(limits.low) + np.array(limits.high)) / 2
    wave = 0.05 * np.sin(np.arange(STEPS)[:, None] / 5 + np.arange(7))
    joints = middle + wave - wave[0]
    return np.concatenate([joints, np.ones((STEPS, 1))], axis=1).astype(np.float32)


def recorded(action: np.ndarray, frames: np.ndarray) -> Episode:
    return Episode(
        observation={"proprio": frames[:-1]}, final_observation={"proprio": frames[-1]}, action=action,
        reward=np.zeros(STEPS, np.float32), success=np.zeros(STEPS, bool), terminated=False, truncated=True,
        source=np.zeros(STEPS, np.uint8), time=np.arange(STEPS) / 20, metadata={},
    )  # fmt: skip


def played(action: np.ndarray, frames: np.ndarray, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the robot and their steps."""
    clock = ManualClock()
    robot = robot_of(clock, **changes)
    parts = LoopParts(clock=clock)
    with RobotReplay(robot, robot.spec, longest=STEPS + 5, start_tolerance=0.05, parts=parts) as replay:
        out, steps = replay.play(recorded(action, frames))
    return out["proprio"], steps


@pytest.fixture
def demo() -> tuple[np.ndarray, np.ndarray]:
    """Actions, and what the robot measured while they were played the first time."""
    clock = ManualClock()
    robot = robot_of(clock)
    robot.connect()
    start = robot.read().frames["proprio"]
    action = slow_wave(robot)
    frames, steps = played(action, np.tile(start, (STEPS + 1, 1)))
    np.testing.assert_array_equal(steps, np.arange(STEPS + 1))
    return action, frames


def refusal(kind: type[Exception], action: Callable[[], Any]) -> str:
    with pytest.raises(kind) as error:
        action()
    return str(error.value)


def test_the_same_robot_does_not_drift(demo: tuple[np.ndarray, np.ndarray]) -> None:
    action, before = demo
    assert np.abs(np.diff(before, axis=0)).max() > 1e-3  # it moved
    after, steps = played(action, before)
    robot = robot_of(ManualClock())
    drift = drift_of(
        recorded(action, before), {"proprio": after}, None, spec=robot.spec, index=0, seed=None, at=steps,
        thresholds=thresholds_of({}, robot.spec),
    )  # fmt: skip
    assert drift.keys["proprio"].max_difference == 0
    assert drift.replayed_success is None
    assert (drift.played, drift.is_same) == (STEPS, True)


def test_a_slower_robot_drifts(demo: tuple[np.ndarray, np.ndarray]) -> None:
    """It starts as before and lags behind later."""
    action, before = demo
    after, steps = played(action, before, lag_s=0.2)
    robot = robot_of(ManualClock())
    drift = drift_of(
        recorded(action, before), {"proprio": after}, None, spec=robot.spec, index=0, seed=None, at=steps,
        thresholds=thresholds_of({}, robot.spec),
    ).keys["proprio"]  # fmt: skip
    assert drift.max_per_step[0] == 0
    assert drift.first_over is not None
    assert drift.max_difference > 0.005


def test_what_is_refused_before_anything_moves(demo: tuple[np.ndarray, np.ndarray]) -> None:
    action, frames = demo
    clock = ManualClock()
    robot = robot_of(clock)
    far = frames.copy()
    far[0, 2] += 0.5
    text = refusal(DataError, lambda: played(action, far))
    assert "proprio[2]" in text
    assert "Nothing has moved" in text
    semantics = replace(robot.spec.action_semantics, control_mode="another")
    spec = replace(robot.spec, action_semantics=semantics)
    text = refusal(DataError, lambda: RobotReplay(robot, spec, longest=STEPS, start_tolerance=1.0))
    assert "another" in text
    assert "<- differs" in text
    assert not robot.commands


def test_a_stop_is_an_error(demo: tuple[np.ndarray, np.ndarray]) -> None:
    """An action that is no number stops the robot; the replay says why."""
    action, frames = demo
    bad = action.copy()
    bad[7, 3] = np.nan
    assert "not_finite" in refusal(DeployError, lambda: played(bad, frames))


def test_demonstrations_succeed_on_the_simulated_robot() -> None:
    """PickCube recorded in the environment, played through loop, limits and Robot contract: it succeeds there too."""
    pytest.importorskip("mani_skill")
    from robot_rl.hardware.sim_robot import SimRobot, SimRobotConfig

    env = build(
        {"_target_": "robot_rl.envs.maniskill.make_env", "task": "PickCube-v1", "fast_cpu": True},
        num_envs=1, history=1,
    )  # fmt: skip
    expert = build({"_target_": "robot_rl.envs.experts.ScriptedExpert"}, spec=env.spec)
    episodes = list[Episode]()
    rollout(env, expert, [2], on_episode=lambda _record, episode: episodes.append(episode), source=Source.scripted)  # type: ignore[arg-type]
    env.close()
    (episode,) = episodes
    assert episode.success.any()
    clock = ManualClock()
    robot = SimRobot(SimRobotConfig(card="sim_panda", options={"fast_cpu": True}), clock=clock)
    parts = LoopParts(clock=clock)
    with RobotReplay(robot, env.spec, longest=len(episode), start_tolerance=1e-3, parts=parts) as replay:
        frames, steps = replay.play(episode, reset=lambda: robot.reset(2))
        success = robot.episode().success
    assert steps.tolist() == list(range(len(episode) + 1))
    drift = drift_of(
        episode, frames, success, spec=env.spec, thresholds=thresholds_of({}, env.spec), index=0, seed=2, at=steps
    )  # fmt: skip
    assert drift.replayed_success is True
    positions = frames["proprio"][:-1, :7] - np.asarray(episode.observation["proprio"])[:, :7]
    assert np.abs(positions[0]).max() < 1e-6
    assert np.abs(positions).max() < 0.05
