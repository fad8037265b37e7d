"""Readings of hand-made messages, and a policy's declaration against a robot's; no ROS here."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.robot_card import RobotCard, TopicCard, load_robot_card
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware.ros2_reading import (
    Heard,
    ReadingMaker,
    keys_of,
    require_spec,
    spec_of,
    streams_for,
    with_measured,
)  # fmt: skip
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.specs import ActionKind, ArraySpec, EnvSpec
from robot_rl.types import Goal, Reading

FR3 = load_robot_card("franka_fr3")
UR5E = load_robot_card("ur5e")
PANDA = load_robot_card("sim_panda")


def tree(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def joints(names: list[str], position: list[float], velocity: list[float] | None = None) -> SimpleNamespace:
    return tree(name=names, position=position, velocity=velocity or [])


def pose(frame: str, *values: float) -> SimpleNamespace:
    x, y, z, qx, qy, qz, qw = values
    place, turn = tree(x=x, y=y, z=z), tree(x=qx, y=qy, z=qz, w=qw)
    return tree(header=tree(frame_id=frame), pose=tree(position=place, orientation=turn))


def wrench(frame: str, force: float) -> SimpleNamespace:
    return tree(header=tree(frame_id=frame), wrench=tree(force=tree(x=force, y=0, z=0), torque=tree(x=0, y=0, z=1)))


def picture(value: int) -> SimpleNamespace:
    return tree(encoding="rgb8", height=1, width=2, step=6, is_bigendian=0, data=bytes([value] * 6))


def heard(**messages: Any) -> dict[str, Heard]:
    return {
        name.replace("__", "/"): Heard(message, 11.0 + place, 10.0 + place)
        for place, (name, message) in enumerate(messages.items())
    }


def fr3_messages() -> dict[str, Any]:
    names = list(FR3.joints)
    return {
        "joints": joints(names[::-1], [7.0, 6, 5, 4, 3, 2, 1], [70.0, 60, 50, 40, 30, 20, 10]),
        "gripper": joints(["fr3_finger_joint2", "fr3_finger_joint1"], [0.031, 0.03]),
        "pose": pose("base", 0.4, 0, 0.3, 1, 0, 0, 0),
        "wrench": wrench("base", 3.0),
        "image__wrist": picture(9),
    }


def test_a_gripper_on_a_topic_of_its_own() -> None:
    reading = ReadingMaker(FR3, keys_of(FR3, None, {})).make(heard(**fr3_messages()))
    assert reading.position.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert reading.velocity is not None
    assert reading.velocity.tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert reading.gripper == 0.06, "twice the finger"
    assert reading.pose is not None
    assert reading.pose.tolist() == [0.4, 0, 0.3, 0, 1, 0, 0]
    assert reading.wrench is not None
    assert reading.wrench.tolist() == [3, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(
        reading.frames["proprio"], np.float32([1, 2, 3, 4, 5, 6, 7, 10, 20, 30, 40, 50, 60, 70, 0.06])
    )
    assert reading.frames["proprio"].dtype == np.float32
    assert reading.frames["image/wrist"].tolist() == [[[9, 9, 9], [9, 9, 9]]]
    assert reading.stamps == {"joints": 10, "gripper": 11, "pose": 12, "wrench": 13, "image/wrist": 14}


def test_a_mimic_joint_need_not_be_told() -> None:
    messages = fr3_messages() | {"gripper": joints(["fr3_finger_joint1"], [0.02])}
    assert ReadingMaker(FR3, {}).make(heard(**messages)).gripper == 0.04


@pytest.mark.parametrize("kind", ["Float64", "Bool"])
def test_a_gripper_as_one_number(kind: str) -> None:
    assert FR3.ros2 is not None
    inputs = {**FR3.ros2.inputs, "gripper": TopicCard("g", kind)}
    card = replace(FR3, ros2=replace(FR3.ros2, inputs=inputs), gripper=replace(FR3.gripper, joint="", scale=0.08))
    messages = fr3_messages() | {"gripper": tree(data=True if kind == "Bool" else 1.0)}
    assert ReadingMaker(card, {}).make(heard(**messages)).gripper == 0.08
    if kind == "Float64":
        messages["gripper"] = tree(data=math.nan)
        assert math.isnan(ReadingMaker(card, {}).make(heard(**messages)).gripper or 0.0)


def test_numbers_that_are_not_finite_are_handed_to_the_safety_layer() -> None:
    maker = ReadingMaker(FR3, {})
    bad = fr3_messages()
    bad["joints"].position[3] = math.nan
    bad["pose"].pose.position.x = math.inf
    bad["wrench"].wrench.force.x = math.nan
    reading = maker.make(heard(**bad))
    assert np.isnan(reading.position).all()
    assert reading.pose is not None
    assert np.isnan(reading.pose).all()
    assert reading.wrench is not None
    assert np.isnan(reading.wrench).all()
    assert np.isnan(reading.frames["proprio"][:14]).all()
    fine = maker.make(heard(**fr3_messages()))
    assert fine.position.tolist() == [1, 2, 3, 4, 5, 6, 7], "nothing of it stays"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"joints": joints(["fr3_joint1"], [0.0])}, "no fr3_joint2"),
        ({"joints": joints(list(FR3.joints), [0.0] * 7)}, "velocity/fr3_joint1"),
        ({"pose": pose("world", 0, 0, 0, 0, 0, 0, 1)}, "expected 'base', got 'world'"),
        ({"pose": pose("base", 0, 0, 0, 0, 0, 0, 0)}, "length 0"),
        ({"wrench": wrench("flange", 0)}, "'base' or 'fr3_hand_tcp', got 'flange'"),
        ({"image__wrist": tree(encoding="yuv422", height=1, width=2, step=6, data=b"123456")}, "'yuv422'"),
    ],
)
def test_what_can_not_be_read_is_an_error(change: dict, words: str) -> None:
    with pytest.raises(DeployError, match=words):
        ReadingMaker(FR3, keys_of(FR3, None, {})).make(heard(**(fr3_messages() | change)))


def test_a_picture_is_decoded_once_and_its_key_may_differ() -> None:
    maker = ReadingMaker(FR3, keys_of(FR3, None, {"image/hand": "image/wrist"}))
    messages = fr3_messages()
    first, second = maker.make(heard(**messages)), maker.make(heard(**messages))
    assert first.frames["image/hand"] is second.frames["image/hand"]
    assert "image/hand" in first.stamps
    assert "image/wrist" not in first.stamps
    third = maker.make(heard(**(messages | {"image__wrist": picture(5)})))
    assert third.frames["image/hand"].max() == 5


def test_keys_and_streams() -> None:
    assert keys_of(FR3, None, {}) == {"image/wrist": "image/wrist"}
    spec = policy_spec(FR3, {"image/hand": (1, 2, 3), "state": (4,)})
    assert keys_of(FR3, spec, {"image/hand": "image/wrist"}) == {"image/hand": "image/wrist"}
    assert keys_of(FR3, spec, {}) == {}, (
        "a key without a stream is not offered, and the loop refuses policies that want it"
    )
    assert streams_for(FR3, {}) == ("joints", "pose", "wrench", "gripper")
    with pytest.raises(ConfigError, match="Did you mean 'image/wrist'"):
        keys_of(FR3, spec, {"image/hand": "image/wrst"})


def policy_spec(card: RobotCard, more: dict[str, tuple[int, ...]] | None = None) -> EnvSpec:
    spec = spec_of(card)
    arrays = {
        key: ArraySpec(key, shape, dtype="uint8" if len(shape) == 3 else "float32")
        for key, shape in (more or {}).items()
    }
    return replace(spec, observation={**spec.observation, **arrays})


@pytest.mark.parametrize("name", ["sim_panda", "sim_panda_joints", "franka_fr3", "ur5e", "xarm6", "so101"])
def test_a_cards_own_action_is_one_that_can_be_read(name: str) -> None:
    """The action of `spec_of` goes through the reader of actions and comes out as the goal that it names."""
    card = load_robot_card(name)
    spec = spec_of(card)
    reader = ActionReader(spec, card)
    action = np.zeros(spec.action.size, np.float32)
    if card.command.value == "pose":
        action[3] = 1.0
    reading = Reading(frames={}, stamps={}, position=np.zeros(len(card.joints)), pose=np.array([0.0, 0, 0, 1, 0, 0, 0]))
    goal = reader.read(action, reading=reading, sent=None).goal
    assert isinstance(goal, Goal)
    assert (goal.pose if card.command.value == "pose" else goal.position) is not None


def test_a_spec_gets_the_sizes_that_were_heard() -> None:
    reading = ReadingMaker(FR3, keys_of(FR3, None, {})).make(heard(**fr3_messages()))
    spec = with_measured(spec_of(FR3), reading.frames)
    assert (spec.observation["image/wrist"].shape, spec.observation["image/wrist"].dtype) == ((1, 2, 3), "uint8")
    assert spec.observation["proprio"].shape == (15,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda spec: replace(spec, robot="ur5e"), "robot: policy 'ur5e', card 'franka_fr3'"),
        (lambda spec: with_proprio(spec, shape=(3,), meanings=("a", "b", "c")), "proprio: policy 3 numbers, card 15"),
        (
            lambda spec: with_proprio(spec, meanings=tuple(reversed(spec.observation["proprio"].meanings))),
            r"proprio means: policy \('gripper'",
        ),
        (
            lambda spec: with_proprio(spec, units=("deg",) * 15),
            "unit of position/fr3_joint1: policy 'deg', card rad or m",
        ),
        (lambda spec: replace(spec, joint_names=("fr3_joint1", "elbow")), "does not know elbow"),
        (
            lambda spec: replace(spec, action_semantics=replace(spec.action_semantics, frame="joint")),
            "action",
        ),
        (
            lambda spec: replace(spec, action_semantics=replace(spec.action_semantics, kind=ActionKind.delta, rotation="euler")),
            "action",
        ),
    ],
    ids=["robot", "size", "order", "unit", "joints", "frame", "rotation"],
)  # fmt: skip
def test_a_policy_of_another_robot_is_refused_with_both_declarations(change: Any, words: str) -> None:
    require_spec(policy_spec(FR3), FR3)
    Ros2Robot(Ros2RobotConfig(), card=FR3, spec=policy_spec(FR3))
    with pytest.raises(DeployError, match=words):
        Ros2Robot(Ros2RobotConfig(), card=FR3, spec=change(policy_spec(FR3)))


def with_proprio(spec: EnvSpec, **fields: Any) -> EnvSpec:
    proprio = replace(spec.observation["proprio"], **fields)
    return replace(spec, observation={**spec.observation, "proprio": proprio})


def test_the_policys_spec_is_taken_less_what_the_robot_can_not_give() -> None:
    spec = policy_spec(FR3, {"image/wrist": (480, 640, 3), "state": (42,)})
    robot = Ros2Robot(Ros2RobotConfig(), card=FR3, spec=spec)
    assert set(robot.spec.observation) == {"proprio", "image/wrist"}
    assert robot.spec.action == spec.action
    assert robot.spec.env_id == spec.env_id


def test_a_real_arm_says_what_it_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for card in (FR3, UR5E, load_robot_card("xarm6"), load_robot_card("so101")):
        assert "Not tried on hardware" in card.notes
        assert card.thresholds.observation_s == 0.2
        assert max(card.limits.velocity) <= 1.0, "rad/s; the vendors allow more"
