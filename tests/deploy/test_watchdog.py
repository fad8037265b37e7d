"""The watchdog against real loops that are killed, stopped and hung; and its rule by numbers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from small_robot import HERE

from robot_rl.deploy.watchdog import Heart, Judge, Watchdog, WatchdogConfig
from robot_rl.errors import DeployError
from robot_rl.hardware.mock_shared import SharedState

PATIENCE_S = 60.0
# A machine that runs other work too may keep a process from running for this long; the exact bound is tested in numbers.
LOADED_S = 3.0


def words(*, beat: float, armed: float = 1.0, stopped: float = 0.0) -> dict[str, np.ndarray]:
    return {"beat": np.array([beat]), "armed": np.array([armed]), "stopped": np.array([stopped])}


@pytest.mark.parametrize(
    ("state", "now_s", "is_silent"),
    [
        (words(beat=100.0), 100.0, False),
        (words(beat=100.0), 100.1999, False),
        (words(beat=100.0), 100.2001, True),
        (words(beat=100.0, armed=0.0), 999.0, False),
        (words(beat=100.0, stopped=100.3), 999.0, False),
        (words(beat=math.nan), 100.0, True),
        (words(beat=101.0), 100.0, True),  # a heartbeat of the future is none
        (words(beat=100.01), 100.0, False),
    ],
)
def test_the_rule(state: dict[str, np.ndarray], now_s: float, is_silent: bool) -> None:
    assert Judge(0.2).is_silent(state, now_s) is is_silent


def test_the_hold_begins_within_threshold_one_period_and_20_ms() -> None:
    """A loop of 50 Hz dies at any phase; the watchdog looks every 5 ms: worst case by simulation in exact time."""
    for death_s in np.arange(1.0, 1.02, 0.0007):
        beat_s = math.floor(death_s / 0.02) * 0.02
        looks = np.arange(0.0, 3.0, 0.005) + 0.0013
        judge = Judge(0.2)
        stop_s = next(t for t in looks if t >= death_s and judge.is_silent(words(beat=beat_s), float(t)))
        assert stop_s - death_s <= 0.2 + 0.02 + 0.020


def wait_for(holds: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.002)


@contextmanager
def watched(
    shared: Path, stop: str = "robot_rl.hardware.mock_robot:mock_stop", heartbeat_s: float = 0.2
) -> Iterator[Watchdog]:
    dog = Watchdog(WatchdogConfig(stop, {"shared": str(shared)}, heartbeat_s=heartbeat_s))
    try:
        yield dog
    finally:
        dog.disarm()
        dog.close()


def test_it_stops_the_robot_once_and_stays_so_until_a_person_resets_it(tmp_path: Path) -> None:
    state = SharedState(tmp_path / "robot")
    with watched(tmp_path / "robot") as dog:
        assert isinstance(dog, Heart)
        assert dog.fifo
        time.sleep(0.3)  # longer than the threshold, and not armed
        assert not dog.has_tripped
        dog.arm()
        for _ in range(20):
            dog.beat()
            time.sleep(0.005)
        last_s = time.monotonic()
        wait_for(lambda: dog.stopped_s)
        assert dog.has_tripped
        assert state.stopper == dog.pid
        assert 0.15 < state.stopped_s - last_s < 0.2 + LOADED_S
        first_s = state.stopped_s
        dog.beat()  # a loop that comes back does not lift it
        dog.arm()
        state.release()
        time.sleep(0.3)
        assert dog.has_tripped
        assert state.stopped_s == 0.0
        dog.reset()
        assert not dog.has_tripped
        dog.arm()
        wait_for(lambda: dog.stopped_s)
        assert state.stopped_s > first_s
        assert dog.failure == ""


def test_a_driver_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    with watched(tmp_path / "robot", stop="small_robot:stop_at_the_third_try") as dog:
        dog.arm()
        wait_for(lambda: dog.stopped_s)
        assert SharedState(tmp_path / "robot").stopped_s > 0


@pytest.mark.parametrize(
    ("stop", "says"), [("small_robot:no_such", "no_such"), ("small_robot:cannot_connect", "no route to the robot")]
)
def test_without_its_own_connection_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, says: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    with pytest.raises(DeployError, match=says), watched(tmp_path / "robot", stop=stop):
        raise AssertionError("it began")


def test_its_own_death_is_seen(tmp_path: Path) -> None:
    with watched(tmp_path / "robot") as dog:
        os.kill(dog.pid, signal.SIGKILL)
        wait_for(lambda: dog.failure)
        assert "exit code -9" in dog.failure


LOOP = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small_robot import small_card, SmallPolicy
from robot_rl.deploy.black_box import BlackBox, BlackBoxConfig
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.loop_parts import LoopParts
from robot_rl.deploy.targets import ActionReader
from robot_rl.deploy.watchdog import Watchdog, WatchdogConfig
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig

shared, box = sys.argv[2], sys.argv[3]
robot = MockRobot(MockRobotConfig(streams=("joints",), shared=shared), card=small_card())
policy = ProcessPolicy(PolicySource(target="small_robot:small_policy", config={"rate": 0.01}))
dog = Watchdog(WatchdogConfig("robot_rl.hardware.mock_robot:mock_stop", {"shared": shared}, heartbeat_s=0.2))
black_box = BlackBox(BlackBoxConfig(box, seconds=5.0), robot.card, action_size=2)
loop = ControlLoop(robot, policy, ActionReader(SmallPolicy({}).spec, robot.card), parts=LoopParts(heart=dog, black_box=black_box))
loop.bring_up()
print(policy.pid, dog.pid, black_box.pid, flush=True)
summary = loop.run_episode(max_steps=10**6)
print(summary.reasons.name, summary.ended_by, len(summary.black_box), flush=True)
loop.close(); dog.close(); black_box.close()
"""


@contextmanager
def loop_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], SharedState]]:
    """A control loop with policy, watchdog and black box, each in a process; yields when it has commanded for a while."""
    script, shared = folder / "loop.py", folder / "robot"
    script.write_text(LOOP, encoding="utf-8")
    state = SharedState(shared)
    environment = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), HERE, str(shared), str(folder / "box")]
    pids: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            pids += [int(word) for word in process.stdout.readline().split()]
            assert len(pids) == 3
            wait_for(lambda: state.commands > 25)
            yield process, pids, state
        finally:
            for pid in [process.pid, *pids]:
                with_signal(pid, signal.SIGCONT)
                with_signal(pid, signal.SIGKILL)


def with_signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return True


def test_a_killed_loop_is_stopped_and_leaves_its_black_box(tmp_path: Path) -> None:
    from robot_rl.deploy.black_box import read_black_box

    with loop_process(tmp_path) as (process, pids, state):
        killed_s = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: state.stopped_s)
        assert state.stopper == pids[1]
        assert state.stopped_s - killed_s < 0.2 + 0.02 + 0.020 + LOADED_S
        assert state.commanded_s <= killed_s + 0.05
        wait_for(lambda: all(is_gone(pid) for pid in pids))  # policy, watchdog and black box end with it
    (path,) = (tmp_path / "box").glob("*.mcap")
    assert path.name.endswith("-loop_lost.mcap")
    steps, messages, _ = read_black_box(path)
    assert len(steps) > 20
    assert steps[-1]["monotonic_s"] <= killed_s + 0.05
    assert messages == ["loop_lost: the control loop was lost"]


def test_a_loop_that_is_stopped_and_comes_back_commands_nothing_more(tmp_path: Path) -> None:
    with loop_process(tmp_path) as (process, _, state):
        os.kill(process.pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        wait_for(lambda: state.stopped_s)
        assert state.stopped_s - stopped_s < 0.2 + 0.02 + 0.020 + LOADED_S
        commands = state.commands
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["loop_lost", "stop", "1"]
        assert state.commands <= commands + 1  # one that was on its way
        assert process.wait(PATIENCE_S) == 0


def test_a_killed_policy_stops_the_robot_by_the_loop(tmp_path: Path) -> None:
    with loop_process(tmp_path) as (process, pids, state):
        os.kill(pids[0], signal.SIGKILL)
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["policy_lost", "stop", "1"]
        assert process.wait(PATIENCE_S) == 0
        assert state.stopper == process.pid


def test_ctrl_c_reaches_the_loop_alone_and_stops_it_in_order(tmp_path: Path) -> None:
    with loop_process(tmp_path) as (process, _, state):
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["emergency", "stop", "1"]
        assert process.wait(PATIENCE_S) == 0
        assert state.stopper == process.pid


def test_a_policy_that_is_stopped_for_a_while_holds_the_robot_and_it_goes_on(tmp_path: Path) -> None:
    """SIGSTOP of the policy until the loop has held for 0.6 s, then SIGCONT: its late answer is dropped, new ones are used."""
    from robot_rl.deploy.black_box import read_black_box

    with loop_process(tmp_path) as (process, pids, state):
        os.kill(pids[0], signal.SIGSTOP)
        begun = state.commands
        wait_for(lambda: state.commands > begun + 40)
        os.kill(pids[0], signal.SIGCONT)
        begun = state.commands
        wait_for(lambda: state.commands > begun + 40)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    (path,) = (tmp_path / "box").glob("*.mcap")
    steps, _, _ = read_black_box(path)
    late = [step for step in steps if "policy_late" in step["reason_names"]]
    # The old chunk lasts 8 actions of 20 ms at most, and what was sent then came to rest.
    assert len(late) > 20
    assert late[-1]["sent"] == late[-2]["sent"]
    after = [step for step in steps if step["slot"] > late[-1]["slot"] and step["request"] > 0]
    assert after
    before = max(step["request"] for step in steps if 0 < step["slot"] < late[0]["slot"])
    assert min(step["request"] for step in after) > before + 1
