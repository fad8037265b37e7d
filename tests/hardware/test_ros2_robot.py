"""Ros2Robot against another process over real DDS, on the loopback, in a ROS domain of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from robot_rl.contracts import Robot
from robot_rl.deploy.robot_card import CommandKind, RobotCard, TopicCard, load_robot_card
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.errors import ConfigError, DeployError
from robot_rl.types import Goal

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from fake_arm import FakeArm, until

from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig, ros2_stop

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 6
_DOMAINS = itertools.cycle(range(20 + 10 * _WORKER, 30 + 10 * _WORKER))
JOINTS = 0.1 * np.arange(1, 8)
ARM_TYPES = {"joint_trajectory": "JointTrajectory", "pose": "PoseStamped", "twist": "TwistStamped"}
POSE = np.array([0.4, 0.1, 0.3, 0.8, 0.6, 0, 0])


def domain() -> int:
    return next(_DOMAINS)


def patient(card: RobotCard, **thresholds: float) -> RobotCard:
    """A card for a busy test machine: ages of seconds instead of 200 ms."""
    values = {"observation_s": 3.0, "connect_s": 20.0, "command_s": 5.0} | thresholds
    return replace(card, thresholds=Thresholds(**values))


CARD = patient(load_robot_card("sim_panda_joints"))


@pytest.fixture(scope="module")
def arm_domain() -> int:
    return domain()


@pytest.fixture(scope="module")
def arm(arm_domain: int) -> Iterator[FakeArm]:
    arm = FakeArm("sim_panda_joints", arm_domain, also={name: [name, kind] for name, kind in ARM_TYPES.items()})
    yield arm
    arm.kill()


@pytest.fixture(scope="module")
def robot(arm: FakeArm, arm_domain: int) -> Iterator[Ros2Robot]:
    robot = Ros2Robot(Ros2RobotConfig(domain_id=arm_domain), card=CARD)
    robot.connect()
    yield robot
    robot.close()


def refused(card: RobotCard, domain: int) -> str:
    robot = Ros2Robot(Ros2RobotConfig(domain_id=domain), card=card)
    with pytest.raises(DeployError) as caught:
        robot.connect()
    robot.close()
    return str(caught.value)


def with_topic(card: RobotCard, side: str, name: str, **fields: object) -> RobotCard:
    assert card.ros2 is not None
    topics = dict(getattr(card.ros2, side))
    topics[name] = TopicCard(**{**(vars(topics[name]) if name in topics else {}), **fields})
    return replace(card, ros2=replace(card.ros2, **{side: topics}))


def test_a_reading_has_everything_by_name_and_with_its_time(robot: Ros2Robot) -> None:
    assert isinstance(robot, Robot)
    before = time.monotonic()
    until(lambda: robot.read().stamps["joints"] > before, what="a newer reading")
    reading = robot.read()
    np.testing.assert_allclose(reading.position, JOINTS)
    np.testing.assert_allclose(reading.velocity, 10 * JOINTS)
    np.testing.assert_allclose(reading.pose, POSE)
    assert reading.gripper == 0.02
    expected = [*JOINTS, 0.02, 0.02, *(10 * JOINTS), 0.2, 0.2]
    np.testing.assert_allclose(reading.frames["proprio"], np.array(expected, np.float32))
    np.testing.assert_array_equal(reading.frames["state"], np.arange(5, dtype=np.float32))
    assert set(reading.stamps) == {"joints", "pose", "state"}
    assert all(before - 5 < stamp <= time.monotonic() for stamp in reading.stamps.values())
    assert robot.spec.observation["state"].shape == (5,)
    facts = robot.facts()["joints"]
    assert facts["is_same_clock"], "the arm runs on this machine"
    assert facts["rate_hz"] > 1
    assert "BEST_EFFORT" in facts["qos"]


@pytest.mark.parametrize("change", ["reverse", "shuffle", "extra"])
def test_joints_are_found_by_name(robot: Ros2Robot, arm: FakeArm, change: str) -> None:
    arm.set(**{change: True, "shift": 1.0})
    try:
        until(lambda: robot.read().position[0] > 1, what="the change")
        for _ in range(20):
            np.testing.assert_allclose(robot.read().position, JOINTS + 1)
            time.sleep(0.005)
    finally:
        arm.set(**{change: False, "shift": 0.0})
        until(lambda: robot.read().position[0] < 1, what="the end of the change")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"drop": "panda_joint3"}, "no panda_joint3"), ({"twice": "panda_joint3"}, "panda_joint3 more than once")],
    ids=["missing", "twice"],
)
def test_missing_and_doubled_joints_stop(robot: Ros2Robot, arm: FakeArm, change: dict, words: str) -> None:
    arm.set(**change)

    def is_refused() -> bool:
        try:
            robot.read()
        except DeployError as error:
            return words in str(error)
        return False

    try:
        until(is_refused, what=words)
        assert words in refused(CARD, robot.config.domain_id or 0)
    finally:
        arm.set(drop="", twice="")
    until(lambda: not is_refused(), what="whole messages again")


def test_nan_reaches_the_safety_layer_and_never_a_connection(robot: Ros2Robot, arm: FakeArm) -> None:
    arm.set(nan=True)
    try:
        until(lambda: bool(np.isnan(robot.read().position).all()), what="NaN")
        assert np.isnan(robot.read().frames["proprio"]).any()
        assert "panda_joint1" in refused(CARD, robot.config.domain_id or 0)
    finally:
        arm.set(nan=False)


def test_a_pose_in_another_frame_is_refused(robot: Ros2Robot, arm: FakeArm) -> None:
    arm.set(frame="world")
    try:
        assert "expected 'panda_link0', got 'world'" in refused(CARD, robot.config.domain_id or 0)
    finally:
        arm.set(frame="")
    until(lambda: reads(robot), what="the right frame again")


def reads(robot: Ros2Robot) -> bool:
    """Whether the newest messages can be read."""
    try:
        robot.read()
    except DeployError:
        return False
    return True


@pytest.mark.parametrize("jump_s", [-10.0, 10.0, -3600.0])
def test_a_set_clock_is_followed_and_told(robot: Ros2Robot, arm: FakeArm, jump_s: float) -> None:
    before = robot.facts()["joints"]
    until(lambda: robot.facts()["joints"]["is_same_clock"], what="one clock")
    arm.set(clock_s=jump_s)
    try:
        jumps = before["clock_jumps_s"]
        until(lambda: len(robot.facts()["joints"]["clock_jumps_s"]) == len(jumps) + 1, what="the jump")
        facts = robot.facts()["joints"]
        assert facts["clock_jumps_s"][-1] == pytest.approx(jump_s, abs=0.5)
        assert facts["unused"] == before["unused"] + 2, "until the third message confirms it"
        assert not facts["is_same_clock"]
        assert facts["clock_behind_s"] == pytest.approx(-jump_s, abs=0.5)
        assert time.monotonic() - robot.read().stamps["joints"] < 2
    finally:
        arm.set(clock_s=0.0)
    until(lambda: robot.facts()["joints"]["is_same_clock"], what="the old clock")


def test_a_stale_clock_makes_readings_old(robot: Ros2Robot, arm: FakeArm) -> None:
    arm.set(frozen=True)
    try:
        until(lambda: robot.facts()["joints"]["clock_trouble"] == "stale clock", what="the trouble")
        until(lambda: time.monotonic() - robot.read().stamps["joints"] > 0.5, what="growing age")
    finally:
        arm.set(frozen=False)


@pytest.mark.slow
def test_a_stale_clock_is_no_connection(robot: Ros2Robot, arm: FakeArm, arm_domain: int) -> None:
    arm.set(frozen=True)
    try:
        assert "stale clock" in refused(patient(CARD, connect_s=8.0), arm_domain)
    finally:
        arm.set(frozen=False)


def test_zero_stamps_count_from_their_receipt(arm: FakeArm, arm_domain: int) -> None:
    arm.set(zero_stamp=True)
    try:
        robot = Ros2Robot(Ros2RobotConfig(domain_id=arm_domain), card=CARD)
        robot.connect()
        assert not robot.facts()["joints"]["has_stamps"]
        assert time.monotonic() - robot.read().stamps["joints"] < 3
        robot.close()
    finally:
        arm.set(zero_stamp=False)


def test_what_is_missing_is_named_with_what_there_is(arm: FakeArm, arm_domain: int) -> None:
    card = with_topic(patient(CARD, connect_s=5.0), "inputs", "wrench", topic="joint_stats", type="WrenchStamped")
    card = with_topic(card, "outputs", "arm", topic="forward_position_controler/commands")
    text = refused(card, arm_domain)
    assert "wrench: nobody publishes /joint_stats" in text
    assert "arm: nobody listens to /forward_position_controler/commands" in text
    assert "pose:" not in text
    assert "Did you mean '/joint_states'?" in text
    assert "/forward_position_controller/commands" in text


def test_another_type_is_named(arm: FakeArm, arm_domain: int) -> None:
    card = with_topic(CARD, "inputs", "pose", type="WrenchStamped")
    text = refused(card, arm_domain)
    assert "expected type geometry_msgs/msg/WrenchStamped" in text
    assert "geometry_msgs/msg/PoseStamped" in text


def test_incompatible_qos_is_told_with_both_profiles_and_restart_is_survived() -> None:
    """The error takes less than two seconds from when the publisher can be seen; with room for a busy machine here."""
    number = domain()
    arm = FakeArm("sim_panda_joints", number, reliability="best_effort")
    robot = Ros2Robot(Ros2RobotConfig(domain_id=number), card=CARD)
    try:
        robot.connect()
        assert robot.read().position[0] == 0.1, "a best-effort publisher is heard"
        began = time.monotonic()
        text = refused(with_topic(CARD, "inputs", "joints", reliability="reliable"), number)
        assert time.monotonic() - began < 2 + 8
        assert "expected a publisher that serves reliability RELIABLE, durability VOLATILE" in text
        assert "got reliability BEST_EFFORT, durability VOLATILE" in text
        robot.command(Goal(position=JOINTS))
        arm.expect(lambda entry: "arm" in entry)
        arm.kill()
        last = robot.read().stamps["joints"]
        arm = FakeArm("sim_panda_joints", number, reliability="best_effort", shift=0.5)
        until(
            lambda: robot.read().stamps["joints"] > last + 0.1 and robot.read().position[0] > 0.5, what="new readings"
        )

        def commands_arrive() -> bool:
            with contextlib.suppress(DeployError):
                robot.command(Goal(position=JOINTS + 2))
            return not arm.heard.empty()

        until(commands_arrive, what="commands")
        assert robot.facts()["joints"]["clock_jumps_s"] == []
    finally:
        robot.close()
        arm.kill()


def test_commands_nobody_is_served_by_are_told_with_both_profiles(arm: FakeArm, arm_domain: int) -> None:
    text = refused(with_topic(CARD, "outputs", "arm", reliability="best_effort"), arm_domain)
    assert "BEST_EFFORT" in text
    assert "RELIABLE" in text


def test_goals_arrive_and_what_does_not_fit_is_not_sent(robot: Ros2Robot, arm: FakeArm) -> None:
    for bad in (
        Goal(position=np.full(7, np.nan)),
        Goal(position=np.zeros(6)),
        Goal(pose=POSE),
        Goal(position=JOINTS, gripper=np.nan),
    ):
        with pytest.raises(DeployError):
            robot.command(bad)
    sent = robot.command(Goal(position=JOINTS + 0.25, gripper=0.5))
    assert sent.gripper == 0.04, "the card's range"
    told = [arm.expect(lambda entry: "options" not in entry) for _ in range(2)]
    assert {key: entry["data"] for each in told for key, entry in each.items()} == {
        "arm": (JOINTS + 0.25).tolist(), "gripper": [0.04],
    }  # fmt: skip
    robot.stop()
    np.testing.assert_allclose(arm.expect(lambda entry: "arm" in entry)["arm"]["data"], JOINTS)


def test_hold_is_where_it_was_sent_when_what_was_measured_is_old(arm: FakeArm, arm_domain: int) -> None:
    robot = Ros2Robot(Ros2RobotConfig(domain_id=arm_domain), card=patient(CARD, observation_s=0.5))
    robot.connect()
    robot.command(Goal(position=JOINTS + 0.5))
    arm.set(silent=True)
    try:
        until(lambda: time.monotonic() - robot.read().stamps["joints"] > 0.6, what="age")
        robot.stop()
        arm.expect(lambda entry: "arm" in entry and np.allclose(entry["arm"]["data"], JOINTS + 0.5))
        robot.stop()
        arm.expect(lambda entry: "arm" in entry and np.allclose(entry["arm"]["data"], JOINTS + 0.5))
    finally:
        arm.set(silent=False)
        robot.close()


@pytest.mark.parametrize("command", ["joint_trajectory", "pose", "twist"])
def test_every_kind_of_command_arrives(command: str, arm: FakeArm, arm_domain: int, tmp_path: Path) -> None:
    plain = yaml.safe_load((Path(__file__).parents[2] / "configs/robot/sim_panda.yaml").read_text())
    plain |= {"command": command, "thresholds": {"observation_s": 3.0, "connect_s": 20.0}}
    plain["ros2"]["outputs"]["arm"] = {"topic": command, "type": ARM_TYPES[command], "reliability": "reliable"}
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump(plain))
    card = load_robot_card(file)
    robot = Ros2Robot(Ros2RobotConfig(card=str(file), domain_id=arm_domain))
    try:
        robot.connect()
        twist = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        moved = np.array([0.5, 0.1, 0.3, 0, 0, 0, 2]) / [1, 1, 1, 2, 2, 2, 2]
        goal = {
            CommandKind.joint_trajectory: Goal(position=JOINTS, velocity=2 * JOINTS),
            CommandKind.pose: Goal(pose=moved),
            CommandKind.twist: Goal(twist=twist),
        }[card.command]
        robot.command(goal)
        told = arm.expect(lambda entry: command in entry)[command]
        if command == "joint_trajectory":
            assert told["header"]["stamp"] == {"sec": 0, "nanosec": 0}
            assert told["joint_names"] == list(card.joints)
            (point,) = told["points"]
            np.testing.assert_allclose(point["positions"], JOINTS)
            np.testing.assert_allclose(point["velocities"], 2 * JOINTS)
            assert point["time_from_start"] == {"sec": 0, "nanosec": 50_000_000}
        else:
            assert told["header"]["frame_id"] == "panda_link0"
            assert abs(told["header"]["stamp"]["sec"] - time.time()) < 30
        if command == "pose":
            assert told["pose"]["position"] == {"x": 0.5, "y": 0.1, "z": 0.3}
            assert told["pose"]["orientation"] == {"x": 0, "y": 0, "z": 1, "w": 0}
        if command == "twist":
            assert told["twist"]["linear"] == {"x": 0.1, "y": 0.2, "z": 0.3}
            assert told["twist"]["angular"] == {"x": 0.4, "y": 0.5, "z": 0.6}
        stop = ros2_stop({"card": str(file), "domain_id": arm_domain})
        stop()
        held = arm.expect(lambda entry: command in entry)[command]
        if command == "joint_trajectory":
            np.testing.assert_allclose(held["points"][0]["positions"], JOINTS)
        if command == "pose":
            assert held["pose"]["position"] == {"x": 0.4, "y": 0.1, "z": 0.3}
            assert held["pose"]["orientation"] == {"x": 0.6, "y": 0, "z": 0, "w": 0.8}
        if command == "twist":
            assert held["twist"]["linear"] == held["twist"]["angular"] == {"x": 0, "y": 0, "z": 0}
    finally:
        robot.close()


def test_stop_and_close_are_safe_at_any_time(arm_domain: int, arm: FakeArm) -> None:
    robot = Ros2Robot(Ros2RobotConfig(domain_id=arm_domain), card=CARD)
    robot.stop()
    robot.close()
    for call in (robot.read, lambda: robot.command(Goal(position=JOINTS))):
        with pytest.raises(DeployError, match="connect"):
            call()
    for _ in range(2):
        robot.connect()
        robot.connect()
        assert robot.read().position.shape == (7,)
        robot.stop()
        robot.stop()
        robot.close()
        robot.close()


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background of a shell inherits SIG_IGN
from dataclasses import replace
import numpy as np
from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.types import Goal
card = replace(load_robot_card("sim_panda_joints"), thresholds=Thresholds(observation_s=5.0, connect_s=20.0))
robot = Ros2Robot(Ros2RobotConfig(domain_id=int(sys.argv[1]), node="interrupted"), card=card)
try:
    robot.connect()
    while True:
        robot.command(Goal(position=np.full(7, 0.25)))
        time.sleep(0.1)  # so few that a busy arm keeps up
except KeyboardInterrupt:
    pass
finally:
    robot.close()
"""


def test_ctrl_c_holds_and_ends(arm: FakeArm, arm_domain: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(arm_domain)], stderr=subprocess.PIPE, text=True)
    try:
        arm.expect(lambda entry: "arm" in entry and entry["arm"]["data"] == [0.25] * 7)
        process.send_signal(signal.SIGINT)
        arm.expect(lambda entry: "arm" in entry and np.allclose(entry["arm"]["data"], JOINTS))
        _, words = process.communicate(timeout=20)
        assert process.returncode == 0, words
        assert "Traceback" not in words
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_inside_the_first_command_holds_too(
    arm: FakeArm, arm_domain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = Ros2Robot(Ros2RobotConfig(domain_id=arm_domain), card=CARD)
    robot.connect()
    publisher = robot._publishers["arm"]
    publish = publisher.publish

    def interrupted(message: Any) -> None:
        publish(message)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(publisher, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        robot.command(Goal(position=np.full(7, 0.25)))
    robot.close()
    arm.expect(lambda entry: "arm" in entry and entry["arm"]["data"] == [0.25] * 7)
    arm.expect(lambda entry: "arm" in entry and np.allclose(entry["arm"]["data"], JOINTS))


def test_a_card_that_contradicts_itself_is_refused() -> None:
    assert CARD.ros2 is not None
    with pytest.raises(ConfigError, match="Float64MultiArray or JointState for joint_position"):
        Ros2Robot(Ros2RobotConfig(), card=with_topic(CARD, "outputs", "arm", type="PoseStamped"))
    with pytest.raises(ConfigError, match="topics"):
        Ros2Robot(Ros2RobotConfig(), card=replace(CARD, ros2=None))
    with pytest.raises(ConfigError, match="'joints'"):
        Ros2Robot(Ros2RobotConfig(), card=replace(CARD, ros2=replace(CARD.ros2, inputs={})))
