"""Leader arms: real datagrams, a real ROS 2 topic, stand-ins of the servos' libraries, and calibration in hand numbers."""

from __future__ import annotations

import json
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.checks.findings import has_errors
from robot_rl.checks.teleop import check_teleop
from robot_rl.deploy.robot_card import CommandKind, load_robot_card
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware.calibrate_leader import main as calibrate_main
from robot_rl.hardware.leader_arm import LeaderArm, LeaderArmConfig, source_of
from robot_rl.hardware.leader_calibration import (
    TICK,
    LeaderCalibration,
    LeaderJoint,
    calibrated,
    check_direction,
    direction,
    gripper_joint,
    load_calibration,
)
from robot_rl.hardware.leader_drivers import DynamixelSource, FeetechSource, Numbers, SocketSource
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.teleop.mapping import ActionMapping, require_same_joints
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.types import Reading


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.002)


class HeldClutch:
    """A clutch that a test holds."""

    name = "clutch"

    def __init__(self) -> None:
        self.engaged, self.is_open, self.is_silent = False, False, False
        self.buttons: frozenset[str] = frozenset()
        self.problems: tuple[str, ...] = ()
        self._last = TeleopCommand()

    def connect(self) -> None:
        self.is_open = True

    def read(self) -> TeleopCommand:
        if self.is_open and not self.is_silent:
            self._last = TeleopCommand(self._last.sequence + 1, time.monotonic(), self.engaged, buttons=self.buttons)
        return self._last

    def status(self) -> DeviceStatus:
        return DeviceStatus(self.name, self.is_open, problems=self.problems, help={"hand": "clutch"})

    def close(self) -> None:
        self.is_open = False


class ToldSource:
    """Says what a test says, every millisecond."""

    def __init__(self, numbers: Numbers | None) -> None:
        self.numbers, self.trouble, self.error = numbers, "", ""
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def poll(self) -> Numbers | None:
        time.sleep(0.001)
        if self.error:
            raise OSError(self.error)
        return None if self.numbers is None else dict(self.numbers)

    def close(self) -> None:
        self.is_open = False


@contextmanager
def arm(source: Any, *, joints: tuple[str, ...] = ("a", "b"), **options: Any) -> Iterator[tuple[LeaderArm, HeldClutch]]:
    clutch = HeldClutch()
    device = LeaderArm(LeaderArmConfig(joints=joints, **options), source=source, clutch=clutch)
    device.connect()
    try:
        yield device, clutch
    finally:
        device.close()
    assert not clutch.is_open


def test_datagrams_are_joints_in_the_card_s_order_and_bad_ones_are_told() -> None:
    source = SocketSource(0)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    clutch = HeldClutch()
    device = LeaderArm(LeaderArmConfig(joints=("b", "a", "gripper")), source=source, clutch=clutch)

    def send(data: bytes) -> None:
        sender.sendto(data, ("127.0.0.1", source.port))

    source.open()  # the port is known before the device waits for what comes to it
    send(json.dumps({"joints": {"a": 0.1, "b": -0.2, "gripper": 0.25, "more": 1}}).encode())
    source.open, opened = (lambda: None), source.open  # type: ignore[method-assign]
    device.connect()
    try:
        command = device.read()
        assert command.joints is not None
        np.testing.assert_allclose(command.joints, [-0.2, 0.1])
        assert command.opening == 0.25
        assert not command.engaged
        clutch.engaged = True
        send(json.dumps({"joints": {"a": 0.2, "b": -0.2, "gripper": 0.5}}).encode())
        until(lambda: device.read().engaged)
        last = device.read()
        for bad in (b"\xff\x00", b"[]", b'{"joints": 3}', b'{"joints": {"a": NaN, "b": 0, "gripper": 0}}', b"{" * 9000):
            send(bad)
            until(lambda: any("no joint reading" in text for text in device.status().problems))
            send(json.dumps({"joints": {"a": 0.2, "b": -0.2, "gripper": 0.5}}).encode())
            until(lambda: device.status().problems == ())
        send(b'{"joints": {"a": 1.0}}')
        until(lambda: any("no b, gripper in the stream" in text for text in device.status().problems))
        assert device.read().sequence > last.sequence
    finally:
        device.close()
        sender.close()
    assert callable(opened)


def test_a_stream_that_ends_grows_old_but_its_emergency_stop_is_heard() -> None:
    source = ToldSource({"a": 0.0, "b": 0.0})
    with arm(source) as (device, clutch):
        clutch.engaged = True
        until(lambda: device.read().engaged)
        source.numbers = None
        until(lambda: device.status().age_s > 0.3)
        assert device.read().engaged  # and old: the clutch sees a fault
        clutch.buttons = frozenset({"event:estop"})
        until(lambda: "event:estop" in device.read().buttons)
        assert device.status().age_s > 0.3
        source.error = "unplugged"
        until(lambda: not device.status().is_connected)
        assert "the leader arm is gone (unplugged)" in device.status().problems
        clutch.buttons = frozenset()
        until(lambda: not device.read().buttons)


def test_problems_of_the_clutch_are_shown_while_it_has_them() -> None:
    with arm(ToldSource({"a": 0.0, "b": 0.0})) as (device, clutch):
        clutch.problems = ("unplugged", "no battery")
        assert device.status().problems == ("clutch: unplugged; no battery",)
        clutch.problems = ()
        assert device.status().problems == ()


def test_a_clutch_that_falls_silent_makes_the_command_old() -> None:
    with arm(ToldSource({"a": 0.0, "b": 0.0})) as (device, clutch):
        clutch.engaged = True
        until(lambda: device.read().engaged)
        clutch.is_silent = True
        until(lambda: device.status().age_s > 0.3)


def test_a_joint_that_leaps_and_a_gripper_a_turn_off_stop_the_device() -> None:
    """A counter that wraps inside the travel; NVIDIA/IsaacTeleop#734: a closed gripper that reads a turn more."""
    source = ToldSource({"a": 3.1, "b": 0.0})
    with arm(source) as (device, clutch):
        clutch.engaged = True
        until(lambda: device.read().engaged)
        source.numbers = {"a": 3.1 - 2 * math.pi, "b": 0.0}
        until(lambda: not device.read().engaged)
        assert device.read().joints is None
        assert "a leapt by 6.28 rad" in device.status().problems[0]
        source.numbers = {"a": 3.1, "b": 0.0}
        time.sleep(0.05)
        assert not device.read().engaged
        device.close()
        device.connect()
        until(lambda: device.read().engaged)
    source = ToldSource({"a": 0.0, "gripper": 0.02 + 2 * math.pi})
    with arm(source, joints=("a", "gripper")) as (device, clutch):
        clutch.engaged = True
        time.sleep(0.05)
        assert not device.read().engaged
        assert "the gripper reads 6.30" in device.status().problems[0]


def test_a_whole_turn_is_handed_on_as_it_is_and_refused_by_the_mapping() -> None:
    card = replace(load_robot_card("sim_panda"), command=CommandKind.joint_position)
    from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

    meaning = ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "test")
    action = ArraySpec("action", (7,), units=("rad",) * 7, meanings=card.joints)
    spec = EnvSpec("test", {}, action, meaning, (), "panda", 20.0, 100)
    mapping = ActionMapping(spec, card, MappingConfig(input="joints"))
    position = np.array([0, 0, 0, -1.0, 0, 1, 0])
    values = dict(zip(card.joints, (position + np.array([0, 0, 2 * math.pi, 0, 0, 0, 0])).tolist(), strict=True))
    with arm(ToldSource(values), joints=card.joints) as (device, clutch):
        clutch.engaged = True
        until(lambda: device.read().engaged)
        mapped = mapping.action(device.read(), reading=Reading({}, {}, position), period_s=0.05)
    np.testing.assert_allclose(mapped.action, position)
    assert len(mapped.clamped) == 1
    assert "panda_joint3 is +6.28" in mapped.clamped[0]
    assert "+1 whole turn(s) and +0.00: calibrate" in mapped.clamped[0]


def test_a_silent_leader_and_one_without_a_joint_are_refused_at_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robot_rl.hardware.leader_arm._FIRST_S", 0.1)
    for source, words in ((ToldSource(None), "got none"), (ToldSource({"a": 0.0}), "no b in the stream, which has a")):
        clutch = HeldClutch()
        device = LeaderArm(LeaderArmConfig(joints=("a", "b")), source=source, clutch=clutch)
        with pytest.raises(DeployError, match=words):
            device.connect()
        assert not source.is_open
        assert not clutch.is_open


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "calibration file, or joints"), ({"joints": ("gripper",)}, "calibration file, or joints"),
        ({"joints": ("a",), "source": "rs232"}, "ros2"), ({"joints": ("a",), "clutch": "none"}, "gamepad"),
        ({"joints": ("a",), "source": "feetech"}, "port and ids"), ({"calibration": "/none.json"}, "calibrate_leader"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LeaderArm(LeaderArmConfig(**options))


def test_a_leader_arm_keeps_the_contract() -> None:
    clutch = HeldClutch()
    device = LeaderArm(LeaderArmConfig(joints=("a", "b")), source=ToldSource({"a": 0.0, "b": 0.0}), clutch=clutch)
    findings = check_teleop(device, seconds=0.5)
    assert not has_errors(findings), findings
    assert device.status().help["calibration"] == device.calibration.digest


def test_a_ros2_topic_is_heard() -> None:
    rclpy = pytest.importorskip("rclpy")
    from sensor_msgs.msg import JointState

    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=91)
    node = rclpy.create_node("leader_test", context=context)
    publisher = node.create_publisher(JointState, "/leader/joint_states", 10)
    from robot_rl.hardware.leader_drivers import Ros2Source

    source = Ros2Source("/leader/joint_states", domain_id=91)
    source.open()
    try:
        heard: list[Numbers] = []

        def is_heard() -> bool:
            message = JointState(name=["b", "a"], position=[0.5, -0.25])
            message.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(message)
            heard.extend(filter(None, [source.poll()]))
            return bool(heard)

        until(is_heard, 30.0)
        assert heard[0] == {"b": 0.5, "a": -0.25}
    finally:
        source.close()
        node.destroy_node()
        context.try_shutdown()


class FakeLine:
    """PortHandler of both libraries."""

    def __init__(self, port: str) -> None:
        self.port = port
        self.is_open = False

    def openPort(self) -> bool:
        if self.port == "/dev/locked":
            raise PermissionError(13, "Permission denied", self.port)
        self.is_open = self.port == "/dev/servo"
        return self.is_open

    def setBaudRate(self, baud: int) -> bool:
        return baud == 1000000

    def closePort(self) -> None:
        self.is_open = False


def test_dynamixel_positions_are_signed_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for dynamixel_sdk: Present Position is 4 bytes at 132, two's complement."""
    answers = {1: 2048, 2: 2**32 - 100}

    class Reader:
        def __init__(self, line: Any, packets: Any, address: int, size: int) -> None:
            assert (packets, address, size) == (2.0, 132, 4)
            self.ids: list[int] = []

        def addParam(self, servo: int) -> bool:
            self.ids.append(servo)
            return True

        def txRxPacket(self) -> int:
            return 0 if answers else -3001

        def isAvailable(self, servo: int, address: int, size: int) -> bool:
            return servo in answers and servo in self.ids

        def getData(self, servo: int, address: int, size: int) -> int:
            return answers[servo]

    module = SimpleNamespace(PortHandler=FakeLine, PacketHandler=lambda version: version, GroupSyncRead=Reader)
    monkeypatch.setitem(sys.modules, "dynamixel_sdk", module)
    source = DynamixelSource("/dev/servo", 1000000, {"a": 1, "b": 2})
    source.open()
    assert source.poll() == {"a": 2048.0, "b": -100.0}
    del answers[2]
    assert source.poll() is None
    assert source.trouble == "no answer of b"
    answers.clear()
    assert source.poll() is None
    assert "code -3001" in source.trouble
    source.close()
    with pytest.raises(DeployError, match="dialout"):
        DynamixelSource("/dev/locked", 1000000, {"a": 1}).open()
    with pytest.raises(DeployError, match="an open line"):
        DynamixelSource("/dev/servo", 9600, {"a": 1}).open()


def test_feetech_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for scservo_sdk: Present Position is 2 bytes at 56, bit 15 the sign."""
    answers = {1: (1000, 0, 0), 2: (0x8000 | 20, 0, 0)}

    def read(line: Any, servo: int, address: int) -> tuple[int, int, int]:
        assert address == 56
        return answers[servo]

    module = SimpleNamespace(PortHandler=FakeLine, PacketHandler=lambda end: SimpleNamespace(read2ByteTxRx=read))
    monkeypatch.setitem(sys.modules, "scservo_sdk", module)
    source = FeetechSource("/dev/servo", 1000000, {"a": 1, "b": 2})
    source.open()
    assert source.poll() == {"a": 1000.0, "b": -20.0}
    answers[2] = (0, -6, 0)
    assert source.poll() is None
    assert source.trouble == "b (servo 2) does not answer (code -6)"
    source.close()
    monkeypatch.setitem(sys.modules, "scservo_sdk", None)
    with pytest.raises(DeployError, match="feetech-servo-sdk"):
        source_of(LeaderArmConfig(source="feetech", port="/dev/servo", ids={"a": 1})).open()


def test_calibration_in_hand_numbers(tmp_path: Path) -> None:
    at_pose, sources = {"s1": 2048.0, "s2": 1000.0}, {"a": "s1", "b": "s2"}
    moved = {"a": {"s1": 2348.0, "s2": 1004.0}, "b": {"s1": 2040.0, "s2": 700.0}}
    made = calibrated(at_pose, moved, {"a": 0.5, "b": -1.0}, sources=sources, scale=TICK)
    assert (made.joints["a"].sign, made.joints["b"].sign) == (1.0, -1.0)
    assert made.joints["a"].value(2048.0) == pytest.approx(0.5)
    assert made.joints["b"].value(1000.0) == pytest.approx(-1.0)
    assert made.joints["a"].value(2048.0 + 1024) == pytest.approx(0.5 + math.pi / 2)
    assert made.joints["b"].value(1000.0 - 1024) == pytest.approx(-1.0 + math.pi / 2)
    grip = gripper_joint("s3", closed=3000.0, opened=2000.0)
    assert [grip.value(number) for number in (3000.0, 2000.0, 2250.0)] == pytest.approx([0.0, 1.0, 0.75])
    made.save(tmp_path / "leader.json")
    read = load_calibration(tmp_path / "leader.json")
    assert read == made
    assert read.digest == made.digest
    other = LeaderCalibration({**made.joints, "a": LeaderJoint("s1", -1.0, 2048.0, TICK)})
    assert other.digest != made.digest
    text = (tmp_path / "leader.json").read_text()
    (tmp_path / "leader.json").write_text(text.replace('"sign": 1.0', '"sign": -1.0'))
    with pytest.raises(ConfigError, match="checksum"):
        load_calibration(tmp_path / "leader.json")


def test_a_reversed_or_swapped_joint_is_found() -> None:
    """huggingface/lerobot#930: a joint that runs reversed."""
    before, made = {"s1": 0.0, "s2": 0.0}, LeaderCalibration({"a": LeaderJoint("s1", -1.0), "b": LeaderJoint("s2")})
    check_direction(made, before, {"s1": -0.4, "s2": 0.02}, "a")
    with pytest.raises(DeployError, match="the other one"):
        check_direction(made, before, {"s1": 0.4, "s2": 0.02}, "a")
    with pytest.raises(DeployError, match="each other's id"):
        direction(before, {"s1": 0.1, "s2": 0.5}, "s1", scale=1.0)
    with pytest.raises(DeployError, match="each other's id"):
        direction(before, {"s1": 0.1, "s2": 0.0}, "s1", scale=1.0)


def test_joints_in_another_order_than_the_cards_are_refused() -> None:
    """They are followed by their place: the gap at the engage alone does not show two joints that were exchanged at 0."""
    card, config = load_robot_card("so101"), MappingConfig(input="joints")

    def device(*joints: str) -> LeaderArm:
        return LeaderArm(LeaderArmConfig(joints=joints), source=ToldSource({}), clutch=HeldClutch())

    require_same_joints(device(*card.joints, "gripper"), card, config)
    exchanged = (card.joints[1], card.joints[0], *card.joints[2:])
    for wrong in (exchanged, card.joints[:-1], tuple(f"other_{name}" for name in card.joints)):
        with pytest.raises(ConfigError, match="in this order"):
            require_same_joints(device(*wrong, "gripper"), card, config)
    require_same_joints(device(*exchanged), card, replace(config, input="motion"))
    require_same_joints(HeldClutch(), card, config)


class MovedArm(ToldSource):
    """A person's hand: each time it is asked, the leader is where it was told to be."""

    def __init__(self, senses: dict[str, float]) -> None:
        super().__init__({**dict.fromkeys(senses, 0.0), "gripper": 5.0})
        self.senses, self.said = senses, list[str]()

    def ask(self, text: str) -> None:
        self.said.append(text)
        assert self.numbers is not None
        for name, sense in self.senses.items():
            if text.startswith(f"Move {name} alone"):
                self.numbers[name] += 0.6 * sense
        if text.startswith("Open"):
            self.numbers["gripper"] = 7.0


def test_a_person_is_asked_through_a_calibration_and_its_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, file = load_robot_card("so101"), tmp_path / "leader.json"
    senses = {joint: -1.0 if index % 2 else 1.0 for index, joint in enumerate(card.joints)}
    words = [str(file), "--robot", "so101", "--source", "socket"]
    hand = MovedArm(senses)
    assert calibrate_main(words, ask=hand.ask, source=hand) == 0
    made = load_calibration(file)
    home = card.home or (0.0,) * len(card.joints)
    for (joint, sense), place in zip(senses.items(), home, strict=True):
        assert made.joints[joint].sign == sense
        assert made.joints[joint].value(0.0) == pytest.approx(place)
    if card.gripper is not None:
        assert made.joints["gripper"].value(7.0) == pytest.approx(1.0)
    assert made.digest in capsys.readouterr().out
    hand = MovedArm(senses)
    assert calibrate_main([*words, "--test"], ask=hand.ask, source=hand) == 0
    hand = MovedArm({**senses, card.joints[1]: 1.0})
    assert calibrate_main([*words, "--test"], ask=hand.ask, source=hand) == 1
    assert "the other one" in capsys.readouterr().err
