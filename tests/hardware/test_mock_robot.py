"""The mock robot: a formula with known answers, and every fault as it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_robot import small_card

from robot_rl.contracts import Robot
from robot_rl.deploy.robot_card import CommandKind, load_robot_card
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig, mock_spec
from robot_rl.hardware.mock_shared import SharedState
from robot_rl.types import Goal, Reading


def robot(clock: ManualClock, *faults: Fault, **changes: object) -> MockRobot:
    config = replace(MockRobotConfig(streams=("joints",), faults=faults, lag_s=0.0), **changes)
    made = MockRobot(config, card=small_card(), clock=clock)
    made.connect()
    return made


def position(clock: ManualClock, made: MockRobot, seconds: float) -> np.ndarray:
    clock.advance(seconds)
    return made.read().position


def test_it_is_a_robot_of_the_contract() -> None:
    made = MockRobot(MockRobotConfig(), clock=ManualClock())
    assert isinstance(made, Robot)
    with pytest.raises(DeployError, match="connect"):
        made.read()
    made.stop()
    made.stop()
    made.close()


def test_joints_follow_at_their_speed_and_stay() -> None:
    clock = ManualClock()
    made = robot(clock)
    made.command(Goal(position=np.array([1.0, -0.1])))
    np.testing.assert_allclose(position(clock, made, 0.25), [0.5, -0.1], atol=1e-9)  # 2 rad/s
    np.testing.assert_allclose(made.read().velocity, [2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(position(clock, made, 1.0), [1.0, -0.1], atol=1e-9)


def test_lag_is_a_line_then_an_exponential() -> None:
    """Speed 2 rad/s, lag 0.1 s: a line until 0.2 rad are left (0.4 s), then 0.2 exp(-t / 0.1)."""
    clock = ManualClock()
    made = robot(clock, lag_s=0.1)
    made.command(Goal(position=np.array([1.0, 0.0])))
    assert position(clock, made, 0.4)[0] == pytest.approx(0.8)
    assert position(clock, made, 0.1)[0] == pytest.approx(1 - 0.2 * math.exp(-1))


def test_what_it_does_does_not_depend_on_how_often_it_is_read() -> None:
    ends = []
    for reads in (1, 50):
        clock = ManualClock()
        made = robot(clock, lag_s=0.05, jitter_s=0.004, rate_hz=100.0, seed=3)
        for goal in (0.7, -0.3, 0.1):
            made.command(Goal(position=np.array([goal, goal])))
            for _ in range(reads):
                clock.advance(0.1 / reads)
                made.read()
        last = made.read()
        ends.append((last.position, last.stamps["joints"] - 1000.0))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-9)
    assert ends[0][1] == pytest.approx(ends[1][1])


def test_latency_rate_and_command_latency() -> None:
    clock = ManualClock()
    made = robot(clock, latency_s=0.03, rate_hz=100.0, command_latency_s=0.02)
    made.command(Goal(position=np.array([1.0, 0.0])))
    clock.advance(0.105)
    reading = made.read()
    assert reading.stamps["joints"] - 1000.0 == pytest.approx(0.07)  # newest frame that is 30 ms old: 70 ms
    assert reading.position[0] == pytest.approx(2.0 * (0.07 - 0.02))


def test_stop_holds_where_it_is() -> None:
    clock = ManualClock()
    made = robot(clock)
    made.command(Goal(position=np.array([1.0, 0.0])))
    clock.advance(0.2)
    made.stop()
    assert position(clock, made, 1.0)[0] == pytest.approx(0.4)
    assert made.stops == made.stops.__class__([1000.2], maxlen=100)


def test_pose_moves_on_a_line_and_turns_the_short_way() -> None:
    clock, card = ManualClock(), load_robot_card("sim_panda")
    made = MockRobot(MockRobotConfig(lag_s=0.0), clock=clock)
    made.connect()
    start = made.read().pose
    assert start is not None
    np.testing.assert_allclose(start, [0.4, 0, 0.3, 0, 1, 0, 0])
    # A quarter turn about z, and 3-4-0 mm: 5 mm at 4 m/s.
    half = math.sqrt(0.5)
    made.command(Goal(pose=np.array([0.403, 0.004, 0.3, 0.0, half, half, 0.0]), gripper=card.gripper.closed))
    clock.advance(0.05)  # turned 0.5 of 1.571 rad; the way took 1.25 ms
    pose = made.read().pose
    np.testing.assert_allclose(pose[:3], [0.403, 0.004, 0.3], atol=1e-9)
    np.testing.assert_allclose(pose[3:], [0, math.cos(0.25), math.sin(0.25), 0], atol=1e-9)
    assert made.read().gripper == pytest.approx(0.04 - 0.2 * 0.05)
    clock.advance(1.0)
    np.testing.assert_allclose(made.read().pose[3:], [0, half, half, 0], atol=1e-9)


def test_a_twist_ends_with_its_commands() -> None:
    clock = ManualClock()
    card = replace(load_robot_card("sim_panda"), command=CommandKind.twist)
    made = MockRobot(MockRobotConfig(), card=card, clock=clock)
    made.connect()
    made.command(Goal(twist=np.array([0.1, 0, 0, 0, 0, 0.5])))
    clock.advance(1.0)  # thresholds.command_s is 0.2
    np.testing.assert_allclose(made.read().pose[:3], [0.42, 0, 0.3], atol=1e-9)


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (Goal(), "position"),
        (Goal(position=np.zeros(3)), "shape"),
        (Goal(position=np.array([np.nan, 0.0])), "finite"),
        (Goal(pose=np.zeros(7)), "position"),
    ],
)
def test_goals_that_are_none_are_refused(goal: Goal, says: str) -> None:
    with pytest.raises(DeployError, match=says):
        robot(ManualClock()).command(goal)


def test_an_unknown_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="streams"):
        MockRobot(MockRobotConfig(streams=("joint",)))


@pytest.mark.parametrize(
    ("fault", "holds"),
    [
        (Fault(FaultKind.nan), lambda r: np.isnan(r.position).all() and np.isnan(r.frames["proprio"]).all()),
        (Fault(FaultKind.nan, stream="wrench"), lambda r: np.isnan(r.wrench).all() and np.isfinite(r.position).all()),
        (Fault(FaultKind.permuted), lambda r: r.position.tolist() == [0.0, 0.2]),
        (Fault(FaultKind.extra_joint), lambda r: r.position.shape == (3,)),
        (Fault(FaultKind.missing_joint), lambda r: r.position.shape == (1,)),
        (Fault(FaultKind.bias, value=0.5), lambda r: r.position.tolist() == [0.7, 0.5]),
        (
            Fault(FaultKind.missing, stream="image/wrist"),
            lambda r: set(r.stamps) == {"joints", "wrench"} and "image/wrist" not in r.frames,
        ),
        (Fault(FaultKind.stale, stream="image/wrist", value=0.4), lambda r: r.stamps["image/wrist"] == 1000.1 - 0.4),
        (Fault(FaultKind.clock_jump, value=-10.0), lambda r: set(r.stamps.values()) == {990.1}),
        (Fault(FaultKind.force, value=40.0), lambda r: r.wrench.tolist() == [40.0, 0, 0, 0, 0, 0]),
        (Fault(FaultKind.wrong_shape, stream="image/wrist"), lambda r: r.frames["image/wrist"].shape == (2, 6, 3)),
    ],
    ids=lambda value: value.kind.value if isinstance(value, Fault) else "",
)
def test_faults_of_a_reading_come_and_go(fault: Fault, holds: object) -> None:
    """There from 50 ms to 150 ms, and only then."""
    clock = ManualClock()
    timed = replace(fault, start_s=0.05, end_s=0.15)
    made = robot(clock, timed, cameras={"wrist": (4, 6)}, streams=("joints", "wrench"))
    made.command(Goal(position=np.array([1.0, 0.0])))
    for at_s, is_there in ((0.0, False), (0.1, True), (0.2, False)):
        clock.sleep_until(1000.0 + at_s)
        if is_there:
            made.stop()
            reading = made.read()
            np.testing.assert_allclose(made._at(clock.now())[0], [0.2, 0.0])
            rounded = replace(reading, position=np.round(reading.position, 9))
            assert holds(rounded)
        else:
            assert set(made.read().stamps.values()) == {clock.now()}


def test_a_frozen_camera_repeats_its_frame_and_its_stamp() -> None:
    clock = ManualClock()
    made = robot(clock, Fault(FaultKind.frozen, 0.1, 0.3, "image/wrist"), cameras={"wrist": (4, 6)}, rate_hz=100.0)
    seen: list[Reading] = []
    for _ in range(5):
        clock.advance(0.1)
        seen.append(made.read())
    stamps = [reading.stamps["image/wrist"] - 1000.0 for reading in seen]
    np.testing.assert_allclose(stamps, [0.1, 0.1, 0.3, 0.4, 0.5], atol=1e-9)
    assert seen[0].frames["image/wrist"].tolist() == seen[1].frames["image/wrist"].tolist()
    assert seen[1].frames["image/wrist"].tolist() != seen[2].frames["image/wrist"].tolist()
    np.testing.assert_allclose([reading.stamps["joints"] - 1000.0 for reading in seen], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_faults_of_the_connection() -> None:
    clock = ManualClock()
    lost = robot(clock, Fault(FaultKind.command_lost))
    lost.command(Goal(position=np.array([1.0, 1.0])))
    assert position(clock, lost, 1.0).tolist() == [0.0, 0.0]
    broken = robot(clock, Fault(FaultKind.command_error), Fault(FaultKind.read_error))
    with pytest.raises(DeployError, match="connection"):
        broken.command(Goal(position=np.array([1.0, 1.0])))
    with pytest.raises(DeployError, match="reading"):
        broken.read()


def test_a_stop_of_another_process_outranks_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, path = ManualClock(), tmp_path / "robot"
    made = robot(clock, shared=str(path))
    made.stop()
    made.command(Goal(position=np.array([1.0, 0.0])))  # its own stop it may end
    state = SharedState(path)
    assert (state.commands, state.stopped_s, state.commanded_s) == (1, 0.0, 1000.0)
    own = __import__("os").getpid()
    monkeypatch.setattr("os.getpid", lambda: own + 1)
    state.stop(1000.5)
    state.stop(1000.7)
    monkeypatch.undo()
    assert state.stopped_s == 1000.5
    clock.advance(0.1)
    sent = made.command(Goal(position=np.array([1.5, 0.0])))
    np.testing.assert_allclose(sent.position, [0.2, 0.0])
    assert state.commands == 1
    state.release()
    made.command(Goal(position=np.array([1.5, 0.0])))
    assert state.commands == 2


@pytest.mark.parametrize("kind", list(CommandKind))
def test_its_spec_can_be_read(kind: CommandKind) -> None:
    card = replace(load_robot_card("sim_panda"), command=kind)
    ActionReader(mock_spec(card, MockRobotConfig()), card)
