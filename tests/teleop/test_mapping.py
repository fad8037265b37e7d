"""Commands as actions: read back by ActionReader, against scipy's matrices, closed forms and hand numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from robot_rl.deploy.robot_card import CommandKind, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.mapping import ActionMapping, Mapped
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.types import Goal, Reading

CARD = load_robot_card("sim_panda")
BY_JOINTS = replace(CARD, command=CommandKind.joint_position)
BY_TWIST = replace(CARD, command=CommandKind.twist)
GRIPPER = "-1 closed (-0.01 m) .. 1 open (0.04 m)"
XYZ = ("arm: change of end-effector x", "arm: change of end-effector y", "arm: change of end-effector z")
TURN = ("arm: rotation x", "arm: rotation y", "arm: rotation z")
FINGERS = ("gripper: position of the fingers",)
DELTA = {"kind": ActionKind.delta, "delta_reference": DeltaReference.measured, "frame": "base", "rotation": "none"}


def spec(units: tuple[str, ...], meanings: tuple[str, ...], *, bound: float | None = None, **semantics: Any) -> EnvSpec:
    size, limit = len(meanings), None if bound is None else (bound,) * len(meanings)
    low = None if limit is None else tuple(-number for number in limit)
    meaning = ActionSemantics(**(DELTA | {"gripper": "none", "control_mode": "test"} | semantics))
    action = ArraySpec("action", (size,), low=low, high=limit, units=units, meanings=meanings)
    return EnvSpec("test", {}, action, meaning, (), "panda", 20.0, 100)


# As envs/maniskill_spec.py declares PickCube's pd_ee_delta_pos and pd_ee_delta_pose.
PICK_CUBE = spec(("1 = 0.1 m",) * 3 + ("-1 = -0.01 m, 1 = 0.04 m",), XYZ + FINGERS, bound=1.0, gripper=GRIPPER)
POSE_UNITS = ("1 = 0.1 m",) * 3 + ("1 = -0.1 rad, norm <= 1",) * 3 + ("-1 = -0.01 m, 1 = 0.04 m",)
DELTA_POSE = spec(POSE_UNITS, XYZ + TURN + FINGERS, bound=1.0, rotation="euler_XYZ", gripper=GRIPPER)
QUAT = tuple(f"quat {letter}" for letter in "wxyz")
ABSOLUTE = {"kind": ActionKind.absolute, "delta_reference": DeltaReference.none}
VELOCITY = {"kind": ActionKind.velocity, "delta_reference": DeltaReference.none, "rotation": "rotvec"}
JOINTS = tuple(f"arm: {name}" for name in CARD.joints)
CARTESIAN = {
    "pick_cube": PICK_CUBE,
    "delta_pose": DELTA_POSE,
    "delta_pose_tool": replace(DELTA_POSE, action_semantics=replace(DELTA_POSE.action_semantics, frame="tool")),
    "delta_target": spec(("m",) * 3 + ("rad",) * 3, XYZ + TURN, rotation="rotvec", delta_reference=DeltaReference.target),
    "delta_target_tool": spec(
        ("cm",) * 3 + ("deg",) * 3, XYZ + TURN, rotation="rotvec", frame="tool", delta_reference=DeltaReference.target
    ),
    "delta_rot6d": spec(("m",) * 3 + ("1",) * 6, XYZ + tuple(f"rot6d {n}" for n in range(6)), rotation="rot6d"),
    "absolute": spec(("m",) * 3 + ("1",) * 4, XYZ + QUAT, rotation="quat_wxyz", **ABSOLUTE),
    "velocity": spec(("m/s",) * 3 + ("rad/s",) * 3, XYZ + TURN, **VELOCITY),
    "velocity_tool": spec(("m/s",) * 3 + ("rad/s",) * 3, XYZ + TURN, frame="tool", **VELOCITY),
}  # fmt: skip


def pose(place: Any, rotvec: Any) -> np.ndarray:
    return np.concatenate([np.array(place, np.float64), np.roll(Rotation.from_rotvec(rotvec).as_quat(), 1)])


def reading(at: np.ndarray | None = None, *, joints: Any = None, gripper: float | None = 0.04) -> Reading:
    at = pose((0.4, 0.1, 0.3), (0.0, 0.0, 0.0)) if at is None else at
    return Reading(
        {}, {}, np.linspace(-0.3, 0.3, 7) if joints is None else np.array(joints, float), pose=at, gripper=gripper
    )


def turn_of(quaternion: np.ndarray) -> Rotation:
    return Rotation.from_quat(np.roll(quaternion, -1))


def held(motion: Any = (0.0,) * 6, **changes: Any) -> TeleopCommand:
    return TeleopCommand(1, 0.0, True, np.array(motion, np.float32), **changes)


def settings(**changes: Any) -> MappingConfig:
    return MappingConfig(**({"speed_m_s": 0.5, "speed_rad_s": 1.0, "smoothing_s": 0.0} | changes))


def steps(
    mapping: ActionMapping, commands: list[TeleopCommand], at: Reading, *, period_s: float = 0.05
) -> list[Mapped]:
    return [mapping.action(command, reading=at, period_s=period_s) for command in commands]


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("name", CARTESIAN)
def test_what_is_written_is_read_back_where_scipy_puts_the_tool(name: str, frame: str) -> None:
    """Tool- and base-frame deltas, whatever frame the person thinks in (rail-berkeley/serl!38)."""
    declared, rng = CARTESIAN[name], np.random.default_rng(3)
    for _ in range(20):
        at = pose(rng.uniform((0.3, -0.2, 0.2), (0.5, 0.2, 0.5)), rng.uniform(-1.5, 1.5, 3))
        motion = rng.uniform(-0.5, 0.5, 6)
        mapping = ActionMapping(declared, CARD, settings(frame=frame))
        mapping.reset(reading(at))
        mapped = mapping.action(held(motion), reading=reading(at), period_s=0.05)
        assert mapped.action.dtype == np.float32
        target = ActionReader(declared, CARD).read(mapped.action, reading=reading(at), sent=None)
        assert target.reasons is Reason.none
        here, turn = turn_of(at[3:]), Rotation.from_rotvec(motion[3:] * 0.05)
        way = motion[:3] * 0.5 * 0.05
        there = at[:3] + (here.apply(way) if frame == "tool" else way)
        facing = here * turn if frame == "tool" else turn * here
        assert target.goal.pose is not None
        np.testing.assert_allclose(target.goal.pose[:3], there, atol=2e-7)
        expected = here if declared.action_semantics.rotation == "none" else facing
        assert (turn_of(target.goal.pose[3:]) * expected.inv()).magnitude() < 1e-6
        np.testing.assert_allclose(mapped.raw, mapped.action, atol=1e-6)


def test_a_robot_of_twists_gets_the_speed_that_was_asked() -> None:
    mapping, at = ActionMapping(DELTA_POSE, BY_TWIST, settings()), reading()
    mapped = mapping.action(held((0.4, 0, 0, 0, 0, -0.5)), reading=at, period_s=0.05)
    goal = ActionReader(DELTA_POSE, BY_TWIST).read(mapped.action, reading=at, sent=None).goal
    np.testing.assert_allclose(goal.twist, [0.2, 0, 0, 0, 0, -0.5], atol=1e-6)


def test_pick_cube_in_hand_numbers() -> None:
    """0.5 m/s for 50 ms is 25 mm: a quarter of 0.1 m."""
    mapping = ActionMapping(PICK_CUBE, CARD, settings())
    mapped = mapping.action(held((1, 0, 0, 0, 0, 0)), reading=reading(), period_s=0.05)
    np.testing.assert_allclose(mapped.action, [0.25, 0, 0, 1], atol=1e-6)
    mapped = mapping.action(held((1, 1, 0, 0, 0, 0)), reading=reading(), period_s=0.05)
    np.testing.assert_allclose(mapped.action, [0.25 / math.sqrt(2)] * 2 + [0, 1], atol=1e-6)
    assert not mapped.clamped
    mapped = mapping.action(held((0, 0, 0, 0, 0, 1)), reading=reading(), period_s=0.05)
    assert mapped.clamped == ("no rotation",)


def test_nothing_is_asked_for_while_nobody_is_engaged() -> None:
    for name, declared in CARTESIAN.items():
        mapping, at = ActionMapping(declared, CARD, settings()), reading()
        motion = np.ones(6, np.float32)
        for command in (TeleopCommand(motion=motion), held(motion), TeleopCommand(motion=motion)):
            share = 0.0 if command.engaged else 1.0
            action = mapping.action(command, reading=at, period_s=0.05, share=share).action
            goal = ActionReader(declared, CARD).read(action, reading=at, sent=None).goal
            np.testing.assert_allclose(goal.pose, at.pose, atol=1e-7, err_msg=name)


def test_the_clutch_s_share_slows_motion_down() -> None:
    mapping = ActionMapping(PICK_CUBE, CARD, settings())
    moved = mapping.action(held((1, 0, 0, 0, 0, 0)), reading=reading(), period_s=0.05, share=0.5)
    assert moved.action[0] == pytest.approx(0.125, abs=1e-6)


def test_axes_rotation_and_locks() -> None:
    at = reading()
    mapping = ActionMapping(PICK_CUBE, CARD, settings(axes=("-y", "x", "z", "roll", "pitch", "yaw")))
    action = mapping.action(held((0.5, 1.0, 0, 0, 0, 0)), reading=at, period_s=0.02).action
    np.testing.assert_allclose(
        action[:3] / np.linalg.norm(action[:3]), np.array([-1, 0.5, 0]) / math.sqrt(1.25), atol=1e-6
    )
    quarter = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))  # +90 degrees about z: x becomes y
    mapping = ActionMapping(DELTA_POSE, CARD, settings(rotation=quarter))
    action = mapping.action(held((1.0, 0, 0, 1.0, 0, 0)), reading=at, period_s=0.05).action
    np.testing.assert_allclose(action[:6], [0, 0.25, 0, 0, -0.5, 0], atol=1e-6)  # ManiSkill: 1 = -0.1 rad
    mapping = ActionMapping(DELTA_POSE, CARD, settings(locked=("z", "yaw")))
    action = mapping.action(held((0.5, 0, 0.5, 0, 0, 1.0)), reading=at, period_s=0.05).action
    np.testing.assert_allclose(action[:6], [0.125, 0, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": ("x", "y", "z")}, "one for each of"), ({"axes": ("x", "y", "up", "roll", "pitch", "yaw")}, "'up'"),
        ({"rotation": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))}, "determinant 1"), ({"locked": ("jaw",)}, "yaw"),
        ({"gripper": "snap"}, "rate"), ({"jog": ("panda_joint1",)}, "mapping.jog"),
        ({"input": "pose", "axes": ("-x", "y", "z", "roll", "pitch", "yaw")}, "mirror"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ActionMapping(PICK_CUBE, CARD, settings(**options))


@pytest.mark.parametrize(
    "options",
    [{"speed_m_s": 0.0}, {"smoothing_s": -1.0}, {"speed_rad_s": math.nan}, {"input": "thought"}, {"frame": "world"}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mapping"):
        settings(**options)


@pytest.mark.parametrize("hz", [20.0, 50.0, 100.0])
def test_smoothing_is_the_same_at_every_rate(hz: float) -> None:
    """A step of velocity u behind a lag of tau: x(t) = u (t - tau (1 - exp(-t / tau))), and back to rest on release."""
    declared = replace(CARTESIAN["absolute"], control_hz=hz)
    mapping, at, tau, speed = ActionMapping(declared, CARD, settings(smoothing_s=0.15)), reading(), 0.15, 0.5
    mapping.reset(at)
    for step in range(1, int(0.6 * hz) + 1):
        time_s = step / hz
        x = mapping.action(held((1, 0, 0, 0, 0, 0)), reading=at, period_s=1 / hz).action[0]
        expected = 0.4 + speed * (time_s - tau * (1 - math.exp(-time_s / tau)))
        assert x == pytest.approx(expected, abs=1e-6)
    back = mapping.action(held(), reading=at, period_s=1 / hz).action[0]
    rest = speed * (1 - math.exp(-0.6 / tau)) * tau * (1 - math.exp(-1 / hz / tau))
    assert back - x == pytest.approx(rest, abs=1e-6)


@pytest.mark.parametrize("hz", [20.0, 50.0, 100.0])
def test_a_hand_is_followed_the_same_at_every_rate(hz: float) -> None:
    """A hand that jumps by d is followed as d (1 - exp(-t / tau)) where the speed allows it."""
    declared = replace(CARTESIAN["absolute"], control_hz=hz)
    mapping = ActionMapping(declared, CARD, settings(input="pose", smoothing_s=0.2, speed_m_s=50.0))
    mapping.action(held(pose=pose((0, 0, 0), (0, 0, 0))), reading=reading(), period_s=1 / hz)
    for step in range(1, int(0.4 * hz) + 1):
        y = mapping.action(held(pose=pose((0, 0.1, 0), (0, 0, 0))), reading=reading(), period_s=1 / hz).action[1]
        assert y == pytest.approx(0.1 + 0.1 * (1 - math.exp(-step / hz / 0.2)), abs=1e-6)


def test_the_box_holds_back_axis_by_axis_and_says_so() -> None:
    box = ((0.0, -0.2, 0.1), (0.5, 0.2, 0.6))
    assert CARD.pose is not None
    card = replace(CARD, pose=replace(CARD.pose, box=box))
    mapping, at = ActionMapping(PICK_CUBE, card, settings()), reading(pose((0.49, 0.0, 0.105), (0, 0, 0)))
    mapped = mapping.action(held((1, 0.0, -0.5, 0, 0, 0)), reading=at, period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], [0.1, 0.0, -0.05], atol=1e-6)
    assert mapped.clamped == ("workspace +x", "workspace -z")
    assert mapped.raw[0] > 0.2
    outside = reading(pose((0.6, 0.0, 0.3), (0, 0, 0)))
    assert mapping.action(held((1, 0, 0, 0, 0, 0)), reading=outside, period_s=0.05).action[0] == pytest.approx(
        0, abs=1e-6
    )
    assert mapping.action(held((-1, 0, 0, 0, 0, 0)), reading=outside, period_s=0.05).action[0] == pytest.approx(
        -0.25, abs=1e-6
    )


def test_bounds_shorten_a_vector_and_keep_its_direction() -> None:
    mapping = ActionMapping(PICK_CUBE, CARD, settings(speed_m_s=5.0))
    mapped = mapping.action(held((0.8, 0.4, 0, 0, 0, 0)), reading=reading(), period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], [1.0, 0.5, 0.0], atol=1e-6)
    assert mapped.clamped == ("action bounds",)
    np.testing.assert_allclose(mapped.raw[:3], [2.0, 1.0, 0.0], atol=1e-5)


def test_a_hand_is_followed_from_where_it_was_engaged_and_nothing_jumps() -> None:
    declared, at = CARTESIAN["absolute"], reading(pose((0.4, 0.1, 0.3), (0.0, 0.5, 0.0)))
    mapping = ActionMapping(declared, CARD, settings(input="pose", speed_m_s=2.0, speed_rad_s=20.0))
    mapping.reset(at)
    far = pose((7.0, -3.0, 1.0), (2.0, 1.0, 0.0))
    first = mapping.action(held(pose=far), reading=at, period_s=0.05)
    np.testing.assert_allclose(first.action, at.pose, atol=1e-6)
    turned = np.concatenate(
        [far[:3] + np.array([0.05, 0, 0]), np.roll((Rotation.from_rotvec([0, 0, 0.3]) * turn_of(far[3:])).as_quat(), 1)]
    )
    second = mapping.action(held(pose=turned), reading=at, period_s=0.05)
    np.testing.assert_allclose(second.action[:3], [0.45, 0.1, 0.3], atol=1e-6)
    expected = Rotation.from_rotvec([0, 0, 0.3]) * Rotation.from_rotvec([0, 0.5, 0])
    assert (turn_of(second.action[3:].astype(float)) * expected.inv()).magnitude() < 1e-6
    released = TeleopCommand(3, 0.0, False, pose=far)
    np.testing.assert_allclose(mapping.action(released, reading=at, period_s=0.05).action, second.action, atol=1e-6)
    again = mapping.action(held(pose=far), reading=reading(np.asarray(second.action, np.float64)), period_s=0.05)
    np.testing.assert_allclose(again.action, second.action, atol=1e-6)


def test_a_hand_that_leaps_is_followed_at_the_greatest_speed() -> None:
    mapping = ActionMapping(PICK_CUBE, CARD, settings(input="pose"))
    mapping.action(held(pose=pose((0, 0, 0), (0, 0, 0))), reading=reading(), period_s=0.05)
    mapped = mapping.action(held(pose=pose((0, 3.0, 0), (0, 0, 0))), reading=reading(), period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], [0, 0.25, 0], atol=1e-6)
    assert "speed" in mapped.clamped


def test_a_place_asked_for_before_the_arm_was_moved_is_not_gone_back_to() -> None:
    mapping = ActionMapping(CARTESIAN["absolute"], CARD, settings())
    mapping.reset(reading())
    elsewhere = reading(pose((0.2, 0.1, 0.3), (0, 0, 0)))
    mapped = mapping.action(held((0, 0, 0, 0, 0, 0)), reading=elsewhere, period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], [0.2, 0.1, 0.3], atol=1e-6)
    sent = Goal(pose=pose((0.21, 0.1, 0.3), (0, 0, 0)))
    mapped = mapping.action(held((1, 0, 0, 0, 0, 0)), reading=elsewhere, period_s=0.05, sent=sent)
    assert mapped.action[0] == pytest.approx(0.235, abs=1e-6)


LEADER = spec(("rad",) * 7, JOINTS, frame="joint", **ABSOLUTE)


def test_a_leader_arm_is_come_to_slowly_and_then_followed() -> None:
    config = settings(input="joints", leader_ramp_rad_s=0.4, speed_rad_s=5.0)
    mapping, at = ActionMapping(LEADER, BY_JOINTS, config), reading(joints=[0, 0, 0, -1, 0, 1, 0])
    leader = np.array([0.1, 0, 0, -1, 0, 1, -0.04])
    mapping.reset(at)
    actions = [m.action for m in steps(mapping, [held(joints=leader)] * 10, at)]
    np.testing.assert_allclose([a[0] for a in actions], np.minimum(0.02 * np.arange(1, 11), 0.1), atol=1e-6)
    np.testing.assert_allclose([a[6] for a in actions], np.maximum(-0.02 * np.arange(1, 11), -0.04), atol=1e-6)
    moved = leader + 0.01
    np.testing.assert_allclose(mapping.action(held(joints=moved), reading=at, period_s=0.05).action, moved, atol=1e-6)
    kept = mapping.action(TeleopCommand(joints=moved + 0.3), reading=at, period_s=0.05)
    np.testing.assert_allclose(kept.action, moved, atol=1e-6)


def test_a_leader_arm_that_is_elsewhere_is_not_engaged_and_a_turn_is_named() -> None:
    """wuphilipp/gello_software#19, NVIDIA/IsaacTeleop#734: never folded in silence."""
    config = settings(input="joints")
    mapping, at = ActionMapping(LEADER, BY_JOINTS, config), reading(joints=[0, 0, 0, -1, 0, 1, 0])
    mapping.reset(at)
    wrong = np.array([2 * math.pi + 0.1, 0.7, 0, -1, 0, 1, 0])
    for command in (
        held(joints=wrong, opening=0.0),
        held(joints=wrong * 0),
    ):  # also not when it comes near while it is held
        mapped = mapping.action(command, reading=at, period_s=0.05)
        np.testing.assert_allclose(mapped.action, at.position, atol=1e-6)
        assert "panda_joint1 is +6.38" in mapped.clamped[0]
        assert "+1 whole turn(s) and +0.10" in mapped.clamped[0]
        assert "panda_joint2 is +0.70" in mapped.clamped[1]
        assert "turn" not in mapped.clamped[1]
    mapping.action(TeleopCommand(), reading=at, period_s=0.05)
    near = np.array([0.0, 0.2, 0, -1, 0, 1, 0])
    assert mapping.action(held(joints=near), reading=at, period_s=0.05).action[1] > 0


def test_leader_and_jog_in_joint_deltas_and_velocities_are_read_back() -> None:
    at = reading(joints=[0.1, -0.2, 0.3, -1, 0.5, 1, -0.6])
    delta = spec(("1 = 0.2 rad",) * 7, tuple(reversed(JOINTS)), bound=1.0, frame="joint")
    speed = spec(("deg/s",) * 7, JOINTS, frame="joint", kind=ActionKind.velocity, delta_reference=DeltaReference.none)
    for declared in (delta, speed, LEADER):
        reader, leader = ActionReader(declared, BY_JOINTS), np.zeros(7)
        mapping = ActionMapping(
            declared, BY_JOINTS, settings(input="joints", leader_ramp_rad_s=0.0, leader_gap_rad=2.0)
        )
        mapping.action(held(joints=leader), reading=at, period_s=0.05)
        mapped = mapping.action(held(joints=leader + np.array([0.04, 0, 0, 0, 0, 0, -0.03])), reading=at, period_s=0.05)
        goal = reader.read(mapped.action, reading=at, sent=None).goal
        np.testing.assert_allclose(goal.position - at.position, [0.04, 0, 0, 0, 0, 0, -0.03], atol=1e-6)
        jog = ActionMapping(declared, BY_JOINTS, settings(jog=("", "panda_joint6", "panda_joint1")))
        mapped = jog.action(held((1, -0.5, 1, 0, 0, 0)), reading=at, period_s=0.05)
        goal = reader.read(mapped.action, reading=at, sent=None).goal
        np.testing.assert_allclose(goal.position - at.position, [0.05, 0, 0, 0, 0, -0.025, 0], atol=1e-6)


def test_joint_limits_hold_back_and_say_so() -> None:
    high = np.array(CARD.limits.high)
    at = reading(joints=high - [0.01, *[1.0] * 6])
    mapping = ActionMapping(LEADER, BY_JOINTS, settings(jog=("panda_joint1",)))
    mapped = mapping.action(held((1, 0, 0, 0, 0, 0)), reading=at, period_s=0.05)
    assert mapped.action[0] == pytest.approx(high[0], abs=1e-6)
    assert mapped.clamped == ("joint panda_joint1",)


def grip(mode: str, commands: list[TeleopCommand]) -> list[float]:
    mapping = ActionMapping(PICK_CUBE, CARD, settings(gripper=mode))
    return [round(float(mapped.action[3]), 4) for mapped in steps(mapping, commands, reading())]


def test_gripper_by_rate_by_ends_and_by_toggle() -> None:
    none, close, opened, weak = held(), held(gripper=-1.0), held(gripper=1.0), held(gripper=-0.5)
    rate = grip("rate", [none, close, close, none, weak, opened, opened, opened])
    assert rate == [1, 0.8, 0.6, 0.6, 0.5, 0.7, 0.9, 1]
    assert grip("ends", [none, weak, close, none, opened, weak, close]) == [1, 1, -1, -1, 1, 1, -1]
    assert grip("toggle", [none, close, close, weak, close, none, close]) == [1, -1, -1, -1, -1, -1, 1]
    assert grip("toggle", [none, close, TeleopCommand(gripper=-1.0)]) == [1, -1, -1]
    assert grip("rate", [none, TeleopCommand(gripper=-1.0)]) == [1, 1]


def test_gripper_of_a_device_that_knows_an_opening() -> None:
    assert grip("rate", [held(opening=0.0)] * 3) == [0.8, 0.6, 0.4]  # at most 2 strokes a second: 0.1 in 50 ms
    wanted = [held(opening=x) for x in (0.55, 0.45, 0.39, 0.55, 0.61)]
    assert grip("ends", wanted) == [1, 1, -1, -1, 1]


def test_a_grasp_is_kept_over_a_reset_when_it_is_known_what_was_sent() -> None:
    mapping = ActionMapping(PICK_CUBE, CARD, settings())
    mapping.reset(reading(gripper=0.015), sent=Goal(pose=reading().pose, gripper=-0.01))
    assert mapping.action(held(), reading=reading(gripper=0.015), period_s=0.05).action[3] == -1
    mapping.reset(reading(gripper=0.015))
    assert mapping.action(held(), reading=reading(), period_s=0.05).action[3] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("declared", "by_joints", "options", "words"),
    [
        (PICK_CUBE, False, {"input": "joints"}, "action of joints for a leader arm"),
        (LEADER, True, {"input": "pose"}, "Cartesian action for a tracked hand"),
        (LEADER, True, {}, "mapping.jog to name"),
        (spec(("m",) * 3 + ("rad",) * 3, XYZ + TURN, rotation="euler_xyz", **ABSOLUTE), False, {}, "to write poses"),
        (spec(("-1 = 0.1 m, 1 = 0.3 m",) * 3, XYZ, bound=1.0), False, {}, "stand still"),
        (spec(("ounce",) * 3, XYZ), False, {}, "ounce"),
    ],
)  # fmt: skip
def test_what_can_t_be_said_is_refused_with_the_declaration(
    declared: EnvSpec, by_joints: bool, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DeployError, match=words) as refused:
        ActionMapping(declared, BY_JOINTS if by_joints else CARD, settings(**options))
    assert "Declared: kind" in str(refused.value)


def test_a_reading_without_a_pose_is_refused_first_and_stands_still_later() -> None:
    mapping = ActionMapping(CARTESIAN["absolute"], CARD, settings())
    blind = replace(reading(), pose=np.full(7, np.nan))
    with pytest.raises(DeployError, match="where its tool is"):
        mapping.reset(blind)
    delta = ActionMapping(PICK_CUBE, CARD, settings())
    delta.reset(reading())
    mapped = delta.action(held((1, 0, 0, 0, 0, 0)), reading=blind, period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], 0, atol=1e-7)
    assert mapped.clamped == ("no reading",)


def test_numbers_of_a_device_that_are_none_move_nothing() -> None:
    mapping = ActionMapping(PICK_CUBE, CARD, settings())
    mapped = mapping.action(held((np.nan, 9.0, 0, 0, 0, np.inf)), reading=reading(), period_s=0.05)
    np.testing.assert_allclose(mapped.action[:3], [0, 0.25, 0], atol=1e-6)
