"""Watchdog and black box of env=real_robot: a killed actor's robot is stopped, and what led there is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from reaching_robot import Person, ReachExpert, ReachExpertConfig, reach_env
from small_robot import HERE

from robot_rl.deploy.black_box import read_black_box
from robot_rl.deploy.schedule import ManualClock, MonotonicClock
from robot_rl.envs.real_robot import By, RealRobotConfig, make_env
from robot_rl.envs.robot_guard import Guard
from robot_rl.errors import DeployError, EnvError
from robot_rl.hardware.mock_shared import SharedState
from robot_rl.rollout import rollout
from robot_rl.types import ActionChunk

PATIENCE_S = 60.0
# A machine that runs other work too may keep a process from running for this long; test_watchdog has the exact bound.
LOADED_S = 3.0
HEARTBEAT_S = 0.2


class FakeHeart:
    """Says what a test wants, and keeps what it was told."""

    def __init__(self) -> None:
        self.has_tripped, self.failure, self.told = False, "", list[str]()

    def arm(self) -> None:
        self.told.append("arm")

    def beat(self) -> None:
        self.told.append("beat")

    def disarm(self) -> None:
        self.told.append("disarm")

    def reset(self) -> None:
        self.told.append("reset")
        self.has_tripped = False


def guarded(**more: Any) -> tuple[Any, Any, FakeHeart]:
    env, robot = reach_env(**more)
    heart = FakeHeart()
    guard: Guard = env._player.guard
    guard.heart = heart
    return env, robot, heart


def chunk(*actions: tuple[float, float]) -> ActionChunk:
    return ActionChunk(torch.tensor([actions], dtype=torch.float32), execute=len(actions))


def test_it_beats_once_a_turn_and_is_disarmed_where_the_robot_holds_by_itself() -> None:
    env, robot, heart = guarded(max_episode_steps=4)
    rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [0, 1])
    told = heart.told
    arms = [number for number, word in enumerate(told) if word == "arm"]
    rests = [number for number, word in enumerate(told) if word == "disarm"]
    # Two episodes: armed at the first turn of each, disarmed before the scene is put back and behind the last one.
    assert len(arms) == len(rests) == 2
    assert arms[0] < rests[0] < arms[1] < rests[1] == len(told) - 1
    assert told.count("beat") >= len(robot.commands)
    env.close()


def test_nothing_is_commanded_behind_its_stop_until_a_person_releases_it() -> None:
    looked: list[int] = []

    def rule(view: Any) -> list[str]:
        if view.state == "recording" and view.episode["steps"] == 2 and not looked:
            heart.has_tripped = True
        if view.state == "fault":
            assert "watchdog" in view.message
            looked.append(len(robot.commands))
            return ["release"] if len(looked) == 30 else []
        return ["start"] if view.state == "ready" else []

    person = Person(rule)
    env, robot, heart = guarded(panel=person, reward=By.person, resets=By.person, has_scene=False, max_episode_steps=6)
    first, second = rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [7, 8])
    assert first.truncated
    assert first.length == 3
    assert len(looked) >= 30
    assert len(set(looked)) == 1
    assert "reset" in heart.told
    assert second.length == 6
    env.close()


def test_a_watchdog_that_died_stops_the_run() -> None:
    env, robot, heart = guarded(release_stops=True)
    env.reset([0])
    env.step(chunk((1.0, 0.0)))
    heart.failure = "the watchdog's process ended with exit code -9"
    result = env.step(chunk((1.0, 0.0), (1.0, 0.0)))
    assert bool(result.truncated[0])
    with pytest.raises(DeployError, match="exit code -9"):
        env.reset([1])
    env.close()
    assert robot.stops


def test_a_watchdog_needs_real_time() -> None:
    driver = {"robot": {"_target_": "robot_rl.hardware.mock_robot.MockRobot"}, "watchdog": "x:y"}
    config = RealRobotConfig(
        driver=driver, reward=By.person, resets=By.person, panel={"_target_": "reaching_robot.Person"},
        as_fast_as_possible=True,
    )  # fmt: skip
    env, robot = reach_env(clock=ManualClock())
    from robot_rl.envs.real_robot import RobotParts

    with pytest.raises(EnvError, match="machine's clock"):
        make_env(config, num_envs=1, history=1, parts=RobotParts(robot=robot, scene=robot, panel=Person()))
    env.close()


def test_a_stop_leaves_its_black_box(tmp_path: Path) -> None:
    def rule(view: Any) -> list[str]:
        if view.state == "fault":
            return ["release"]
        if view.state == "recording" and view.episode["steps"] == 2 and view.episode["seed"] == 5:
            return ["estop"]
        return ["start"] if view.state == "ready" else []

    env, _ = reach_env(
        clock=MonotonicClock(), panel=Person(rule), reward=By.person, resets=By.person, has_scene=False,
        max_episode_steps=4,
    )  # fmt: skip
    env.log_to(tmp_path)
    rollout(env, ReachExpert(ReachExpertConfig(), env.spec), [5, 6])
    env.close()
    (path,) = tmp_path.glob("*.mcap")  # one for the stop, none for the episode that ended
    assert "emergency" in path.name
    steps, logs, facts = read_black_box(path)
    asked = [step for step in steps if step["request"] >= 0]
    assert [step["request"] for step in asked] == sorted(step["request"] for step in asked)
    assert {step["index"] for step in asked} == set(range(5))  # 50 commands a second, 10 actions
    assert all(len(step["sent"]) == 2 for step in asked)
    assert "a person asked for it" in logs[0]
    assert facts["robot"] == "small"


def test_time_that_only_the_loop_moves_leaves_none(tmp_path: Path) -> None:
    env, _ = reach_env(clock=ManualClock())
    env.log_to(tmp_path / "box")
    env.reset([0])
    env.close()
    assert not (tmp_path / "box").exists()


ACTOR = """
import sys
from pathlib import Path
import torch
from reaching_robot import reach_env
from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.types import ActionChunk

shared, box = sys.argv[1:]
driver = {"robot": {}, "watchdog": "robot_rl.hardware.mock_robot:mock_stop", "watchdog_config": {"shared": shared}}
env, robot = reach_env(clock=MonotonicClock(), mock={"shared": shared}, driver=driver, max_episode_steps=10**6, terminate_on_success=False)
env.log_to(Path(box))
try:
    env.reset([0, 1])
    print(env._player.guard.heart.pid, flush=True)
    while True:
        env.step(ActionChunk(torch.tensor([[[0.1, 0.0], [-0.1, 0.0]]]), 2))
finally:
    env.close()
"""


def wait_for(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_robot_of_a_killed_actor_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    script, shared, box = tmp_path / "actor.py", tmp_path / "robot", tmp_path / "box"
    script.write_text(ACTOR, encoding="utf-8")
    state = SharedState(shared)
    environment = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(shared), str(box)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as actor:
        try:
            assert actor.stdout is not None
            dog = int(actor.stdout.readline())
            wait_for(lambda: state.commands > 25)
            assert state.stopper != dog
            actor.send_signal(number)
            killed_s = time.monotonic()
            wait_for(lambda: state.stopper == dog)
            assert state.stopped_s - killed_s > HEARTBEAT_S - 0.07
            assert state.stopped_s - killed_s < HEARTBEAT_S + 0.04 + LOADED_S
            count = state.commands
            if number == signal.SIGSTOP:  # what comes back does not move it again
                actor.send_signal(signal.SIGCONT)
                actor.wait(PATIENCE_S)  # nobody is there to release it: it ends, the robot held
                assert actor.returncode != 0
                assert state.commands == count
                assert state.stopper == dog
            wait_for(lambda: list(box.glob("*loop_lost*.mcap")))
        finally:
            with suppress(ProcessLookupError):
                actor.send_signal(signal.SIGCONT)
                actor.kill()
    steps, logs, _ = read_black_box(next(box.glob("*loop_lost*.mcap")))
    assert len(steps) > 25
    assert "lost" in logs[0] or "watchdog" in logs[0]
