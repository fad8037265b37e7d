"""One robot as an environment: conformance, executed actions, people, stops, and holding between decisions."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from reaching_robot import STEP, Person, ReachExpert, ReachExpertConfig, SideBySide, quick_card, reach_env
from small_robot import JOINTS
from small_teleop import ScriptedDevice

from robot_rl.checks.env import check_env
from robot_rl.deploy.schedule import ManualClock, MonotonicClock
from robot_rl.envs.real_robot import By, RealRobotConfig, make_env
from robot_rl.errors import ConfigError, DeployError, EnvError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.rollout import rollout
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.types import ActionChunk, Source


def chunk(*actions: tuple[float, float]) -> ActionChunk:
    return ActionChunk(torch.tensor([actions], dtype=torch.float32), execute=len(actions))


def test_it_keeps_the_contract() -> None:
    def make(number: int) -> Any:
        return SideBySide([reach_env(history=2, max_episode_steps=9)[0] for _ in range(number)])

    assert check_env(make) == []


def test_the_expert_reaches_the_goals_on_schedule() -> None:
    clock = ManualClock()
    env, robot = reach_env(clock=clock)
    records = rollout(env, ReachExpert(ReachExpertConfig(), env.spec), range(5))
    assert all(record.success_once and record.terminated for record in records)
    # 50 commands a second on one grid; a scene that is put back takes slots without any.
    gaps = np.diff([stamp_s for stamp_s, _ in robot.commands]) / 0.02
    assert np.allclose(gaps, np.round(gaps), atol=1e-6)
    assert np.isclose(gaps, 1).mean() > 0.8
    assert env.measures()["late_decisions_share"] == 0
    env.close()
    assert robot.stops


def test_what_is_kept_is_what_was_sent_behind_the_limits() -> None:
    env, robot = reach_env(card=quick_card(0.2))
    env.reset([3])
    start = robot.read().position.copy()
    result = env.step(chunk((1.0, 0.0), (1.0, 0.0)))
    played = result.played
    assert played is not None
    # 0.2 rad/s for 0.1 s, from where the joint is measured: 2 ms behind what was sent (lag 10 ms) at this speed.
    assert (played[0, :, 0] * STEP <= 0.02 + 0.2 * 0.02).all()
    assert (played[0, :, 0] * STEP > 0.015).all()
    assert played[0, :, 1].tolist() == [0.0, 0.0]
    sent = robot.commands[-1][1].position
    assert np.isclose(sent[0] - start[0], float(played[0].sum(dim=0)[0]) * STEP, atol=0.006)
    assert env.measures()["bent_share"] == 1
    env.close()


def test_within_the_limits_it_is_what_was_asked_bit_for_bit() -> None:
    env, _ = reach_env(mock={"lag_s": 0.001})
    env.reset([3])
    asked = chunk((0.3, -0.2), (0.1, 0.25))
    result = env.step(asked)
    assert torch.equal(result.played, asked.actions)
    env.close()


def test_episodes_hold_the_executed_actions() -> None:
    env, _ = reach_env(card=quick_card(0.2), max_episode_steps=4)
    episodes = []
    rollout(
        env,
        ReachExpert(ReachExpertConfig(), env.spec),
        [0],
        on_episode=lambda _, e: episodes.append(e),
        source=Source.policy,
    )
    assert np.abs(episodes[0].action).max() * STEP <= 0.02 + 0.2 * 0.02
    assert episodes[0].truncated
    assert not episodes[0].terminated
    env.close()


def by_keys(rule: Any, **more: Any) -> Any:
    person = Person(rule)
    env, robot = reach_env(panel=person, reward=By.person, resets=By.person, has_scene=False, **more)
    return env, robot, person


@pytest.mark.parametrize(
    ("word", "terminated", "success"), [("success", True, True), ("failure", True, False), ("stop", False, False)]
)
def test_a_person_resets_and_judges_by_key(word: str, terminated: bool, success: bool) -> None:
    def rule(view: Any) -> list[str]:
        if view.state == "ready":
            return ["start"]
        return [word] if view.state == "recording" and view.episode["steps"] == 3 else []

    env, _, person = by_keys(rule)
    (record,) = rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [7])
    assert (record.terminated, record.truncated, record.success_once) == (terminated, not terminated, success)
    # Said at the view of step 3, heard in step 4.
    assert record.length == 4
    assert record.total_reward == float(success)
    assert [view.state for view in person.views][:1] == ["ready"]
    env.close()


def test_a_pause_takes_no_step() -> None:
    waited = []

    def rule(view: Any) -> list[str]:
        if view.state == "paused":
            waited.append(1)
            return ["resume"] if len(waited) == 30 else []
        if view.state == "recording" and view.episode["steps"] == 2 and not waited:
            return ["pause"]
        return ["start"] if view.state == "ready" else []

    env, robot, _ = by_keys(rule, max_episode_steps=5)
    env.reset([1])
    env.step(chunk((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))
    place = robot.read().position.copy()
    assert len(waited) == 30
    assert env.measures()["stops"] == 0
    result = env.step(chunk((0.0, 0.0)))
    assert int(result.executed[0]) == 1
    assert np.abs(robot.read().position - place).max() < 0.01
    env.close()


def test_a_stop_truncates_and_waits_for_a_person() -> None:
    stopped, seen = [], []

    def rule(view: Any) -> list[str]:
        if view.state == "fault":
            seen.append(view.message)
            return ["release"] if len(seen) == 20 else []
        if view.state == "recording" and view.episode["steps"] == 2 and not stopped:
            stopped.append(1)
            return ["estop"]
        return ["start"] if view.state == "ready" else []

    env, _, _ = by_keys(rule, max_episode_steps=6)
    first, second = rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [7, 8])
    assert first.truncated
    assert not first.success_once
    assert first.length == 3
    assert second.length == 6  # it went on behind the release
    assert len(seen) >= 20
    assert "emergency" in seen[0]
    assert env.measures()["stops"] == 1
    env.close()


def test_a_stop_with_nobody_there_ends_the_run_with_the_robot_held() -> None:
    env, robot = reach_env(mock={"faults": (Fault(FaultKind.command_error, 0.0, 1e9),)})
    with pytest.raises(DeployError, match="person who releases"):
        env.reset([0])
    env.close()
    assert robot.stops


class Slow:
    """A policy that thinks for 150 ms."""

    def __init__(self, clock: Any) -> None:
        self.clock, self.calls = clock, 0

    def act(self, observation: Any, **_: Any) -> ActionChunk:
        self.calls += 1
        self.clock.sleep_until(self.clock.now() + 0.15)
        return chunk((0.6, 0.0), (0.6, 0.0))


def test_a_slow_policy_costs_a_hold_and_never_a_short_action() -> None:
    clock = ManualClock()
    env, _ = reach_env(clock=clock, max_episode_steps=6)
    records = rollout(env, Slow(clock), [0])
    assert records[0].length == 6
    assert env.measures()["late_decisions_share"] == 0.5
    env.close()


def test_the_robot_is_held_between_decisions() -> None:
    env, robot = reach_env(clock=MonotonicClock(), max_episode_steps=50)
    env.reset([0])
    env.step(chunk((1.0, 0.0), (1.0, 0.0)))
    count, deadline_s = len(robot.commands), time.monotonic() + 20
    while len(robot.commands) < count + 10 and time.monotonic() < deadline_s:
        time.sleep(0.01)  # nobody plays
    assert len(robot.commands) >= count + 10
    place = robot.commands[-1][1].position
    assert np.allclose(place, robot.commands[-3][1].position)
    env.step(chunk((0.0, 0.0)))
    env.close()
    count = len(robot.commands)
    time.sleep(0.1)
    assert len(robot.commands) == count  # nothing commands a closed robot


def test_who_holds_the_clutch_drives() -> None:
    clock = ManualClock()

    def say(since_s: float) -> TeleopCommand:
        return TeleopCommand(engaged=since_s > 1.0, motion=np.float32([1, 0, 0, 0, 0, 0]))

    device = ScriptedDevice(clock, say)
    device.connect()
    env, robot = reach_env(clock=clock, device=device, mapping=_jog(), max_episode_steps=40, terminate_on_success=False)
    observation = env.reset([0])
    humans, moved = [], []
    hand = env.intervener
    assert hand is not None
    for step in range(25):
        human, action = hand.take_over(observation, episode_seeds=env.episode_seeds, new_episode=np.array([step == 0]))
        humans.append(bool(human[0]))
        before = robot.read().position.copy()
        result = env.step(
            ActionChunk(torch.from_numpy(action if human[0] else np.zeros((1, 2), np.float32))[:, None], 1)
        )
        moved.append(robot.read().position - before)
        observation = result.observation
    assert humans == sorted(humans)
    assert any(humans)
    assert not all(humans)
    assert all(np.abs(way).max() < 1e-3 for way, human in zip(moved, humans, strict=True) if not human)
    assert moved[-1][0] > 0.01
    assert abs(moved[-1][1]) < 1e-3
    assert env.measures()["takeover"] == sum(humans) / 25
    assert env.measures()["takeovers"] == 1
    env.close()


def test_a_device_that_falls_silent_while_it_drives_stops_the_robot() -> None:
    clock = ManualClock()
    push = TeleopCommand(engaged=True, motion=np.float32([1, 0, 0, 0, 0, 0]))

    def say(since_s: float) -> TeleopCommand | None:
        return TeleopCommand() if since_s < 0.5 else push if since_s < 1.5 else None

    device = ScriptedDevice(clock, say)
    device.connect()
    env, _ = reach_env(clock=clock, device=device, mapping=_jog(), max_episode_steps=80, terminate_on_success=False)
    observation, hand, humans = env.reset([0]), env.intervener, []
    assert hand is not None
    for step in range(60):
        human, action = hand.take_over(observation, episode_seeds=env.episode_seeds, new_episode=np.array([step == 0]))
        humans.append(bool(human[0]))
        result = env.step(ActionChunk(torch.from_numpy(action)[:, None], 1))
        observation = result.observation
        if bool(result.truncated[0]):
            break
    assert humans[-2:] == [True, False]
    assert bool(result.truncated[0])
    assert "operator's device" in env._player.driver.why
    env.close()


def _jog() -> Any:
    from robot_rl.teleop.mapping_config import MappingConfig

    return MappingConfig(jog=(JOINTS[0], JOINTS[1], "", "", "", ""))


def test_a_detector_judges_in_place_of_the_scene() -> None:
    class Third:
        def reset(self, mask: np.ndarray) -> None:
            self.count = 0

        def update(self, frames: Any) -> np.ndarray:
            self.count += 1
            return np.array([self.count == 3])

    env, _ = reach_env()
    judged = env.judged_by(Third())
    (record,) = rollout(judged, Slow(ManualClock()), [5])
    assert record.length == 3
    assert record.success_once
    judged.close()


def test_a_simulated_robot_plays_as_the_simulator_does() -> None:
    pytest.importorskip("mani_skill")
    from robot_rl.envs.expert_flaws import ExpertConfig
    from robot_rl.envs.experts import ScriptedExpert

    driver = {
        "robot": {
            "_target_": "robot_rl.hardware.sim_robot.SimRobot", "env": "pick_cube", "options": {"fast_cpu": True},
        }
    }  # fmt: skip
    env = make_env(RealRobotConfig(driver=driver, as_fast_as_possible=True), num_envs=1, history=1)
    records = rollout(env, ScriptedExpert(ExpertConfig(), env.spec), range(900_000, 900_003))
    assert [record.success_once for record in records] == [True] * 3
    assert env.measures()["bent_share"] < 0.2
    env.close()


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ConfigError, match="one robot"):
        make_env(RealRobotConfig(), num_envs=3, history=1)
    with pytest.raises(ConfigError, match="driver"):
        make_env(RealRobotConfig(), num_envs=1, history=1)
    mock = {"robot": {"_target_": "robot_rl.hardware.mock_robot.MockRobot"}}
    with pytest.raises(ConfigError, match="no scene"):
        make_env(RealRobotConfig(driver=mock), num_envs=1, history=1)
    with pytest.raises(ConfigError, match="neither"):
        make_env(RealRobotConfig(driver=mock, reward=By.person, resets=By.person), num_envs=1, history=1)
    fast = {"robot": {"_target_": "robot_rl.hardware.ros2_robot.Ros2Robot"}}
    with pytest.raises(EnvError, match="takes a clock"):
        make_env(RealRobotConfig(driver=fast, as_fast_as_possible=True), num_envs=1, history=1)
