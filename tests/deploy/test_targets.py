"""Actions as goals: ManiSkill's own controllers as the second implementation, hand numbers, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from robot_rl.deploy.robot_card import CommandKind, GripperCard, RobotCard, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Goal, Reading

CARD = load_robot_card("sim_panda")
BY_JOINTS = replace(CARD, command=CommandKind.joint_position)
BY_TWIST = replace(CARD, command=CommandKind.twist)
XYZ = ("arm x", "arm y", "arm z")
GRIPPER = "-1 closed (-0.01 m) .. 1 open (0.04 m)"


def spec(
    units: tuple[str, ...], meanings: tuple[str, ...], *, bounds: float | None = None, **semantics: Any
) -> EnvSpec:
    size, limit = len(meanings), None if bounds is None else (bounds,) * len(meanings)
    low = None if limit is None else tuple(-x for x in limit)
    options = {
        "kind": ActionKind.delta, "delta_reference": DeltaReference.measured, "frame": "base", "rotation": "none",
        "gripper": "none", "control_mode": "test",
    }  # fmt: skip
    return EnvSpec(
        env_id="test", observation={}, action=ArraySpec("action", (size,), low=low, high=limit, units=units, meanings=meanings),
        action_semantics=ActionSemantics(**(options | semantics)), joint_names=(), robot="panda", control_hz=20.0,
        max_episode_steps=1,
    )  # fmt: skip


def reading(place: Any = (0.4, 0.1, 0.2), rotvec: Any = (0.0, 0.0, 0.0), *, joints: int = 7) -> Reading:
    return Reading({}, {}, position=np.linspace(-0.3, 0.3, joints), pose=pose(place, rotvec), gripper=0.02)


def pose(place: Any, rotvec: Any) -> np.ndarray:
    return np.concatenate([np.array(place, np.float64), np.roll(Rotation.from_rotvec(rotvec).as_quat(), 1)])


def matrix(pose: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = Rotation.from_quat(np.roll(pose[3:], -1)).as_matrix(), pose[:3]
    return out


def read(reader: ActionReader, action: Any, at: Reading, sent: Goal | None = None) -> Any:
    return reader.read(np.asarray(action, np.float32), reading=at, sent=sent)


def test_a_delta_in_the_base_frame_by_hand() -> None:
    """0.5 * 0.1 m on x; 0.5 rad about the base's z; the gripper half open: card -0.01 .. 0.04 -> 0.015."""
    units = ("1 = 0.1 m",) * 3 + ("1 = -0.1 rad",) * 3 + ("-1 = -0.01 m, 1 = 0.04 m",)
    names = (*XYZ, "rx", "ry", "rz", "gripper: position of the fingers")
    reader = ActionReader(spec(units, names, rotation="rotvec", gripper=GRIPPER, bounds=1.0), CARD)
    target = read(reader, [0.5, -1, 0, 0, 0, -0.5, 0], reading())
    assert target.reasons is Reason.none
    np.testing.assert_allclose(target.goal.pose, pose((0.45, 0.0, 0.2), (0, 0, 0.05)), atol=1e-7)
    assert target.goal.gripper == pytest.approx(0.015)
    beyond = read(reader, [3.0, 0, 0, 0, 0, 0, 9], reading())
    assert beyond.reasons is Reason.range
    np.testing.assert_allclose(beyond.goal.pose[:3], (0.5, 0.1, 0.2))
    assert beyond.goal.gripper == pytest.approx(0.04)


def test_a_gripper_that_closes_at_1_meets_a_card_that_closes_at_0() -> None:
    names = (*XYZ, "gripper, 1 closes")
    card = replace(CARD, gripper=GripperCard(closed=0.0, open=0.085, velocity=0.1))
    reader = ActionReader(spec(("m", "m", "m", "1"), names, gripper="-1 open .. 1 closed"), card)
    openings = [read(reader, [0, 0, 0, number], reading()).goal.gripper for number in (-1, 0, 1)]
    np.testing.assert_allclose(openings, [0.085, 0.0425, 0.0])


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("rotation", ["rotvec", "euler_xyz", "euler_XYZ", "quat_wxyz", "quat_xyzw", "rot6d"])
def test_deltas_compose_as_matrices_do(frame: str, rotation: str) -> None:
    """Homogeneous matrices are the second implementation: T_here T_delta in the tool's frame; in the base frame, R R_here
    and p + d."""
    rng = np.random.default_rng(0)
    size = {"quat_wxyz": 4, "quat_xyzw": 4, "rot6d": 6}.get(rotation, 3)
    unit = "1" if size > 3 else "rad"
    names = (*XYZ, *(f"rotation[{index}]" for index in range(size)))
    reader = ActionReader(spec(("m",) * 3 + (unit,) * size, names, frame=frame, rotation=rotation), CARD)
    for _ in range(20):
        turn, at = (
            Rotation.random(random_state=int(rng.integers(1 << 30))),
            reading(rng.normal(0, 0.3, 3), rng.normal(0, 1, 3)),
        )
        numbers = {
            "rotvec": turn.as_rotvec(), "euler_xyz": turn.as_euler("xyz"), "euler_XYZ": turn.as_euler("XYZ"),
            "quat_wxyz": -np.roll(turn.as_quat(), 1), "quat_xyzw": turn.as_quat(),
            "rot6d": turn.as_matrix()[:, :2].T.ravel(),
        }[rotation]  # fmt: skip
        step = rng.normal(0, 0.1, 3)
        got = matrix(read(reader, [*step, *numbers], at).goal.pose)
        here, delta = matrix(at.pose), np.eye(4)  # type: ignore[arg-type]
        delta[:3, :3], delta[:3, 3] = turn.as_matrix(), step
        expected = here @ delta
        if frame == "base":
            expected[:3, :3], expected[:3, 3] = turn.as_matrix() @ here[:3, :3], here[:3, 3] + step
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_references_absolutes_and_velocities() -> None:
    last = Goal(pose=pose((0.5, 0.5, 0.5), (0, 0, 1.0)))
    by_target = ActionReader(spec(("m",) * 3, XYZ, delta_reference=DeltaReference.target), CARD)
    np.testing.assert_allclose(
        read(by_target, [0.1, 0, 0], reading(), last).goal.pose, pose((0.6, 0.5, 0.5), (0, 0, 1))
    )
    np.testing.assert_allclose(read(by_target, [0.1, 0, 0], reading()).goal.pose[:3], (0.5, 0.1, 0.2))
    measured = ActionReader(spec(("m",) * 3, XYZ), CARD)
    np.testing.assert_allclose(read(measured, [0.1, 0, 0], reading(), last).goal.pose[:3], (0.5, 0.1, 0.2))
    none = {"kind": ActionKind.absolute, "delta_reference": DeltaReference.none}
    absolute = ActionReader(spec(("mm",) * 3, XYZ, **none), CARD)
    np.testing.assert_allclose(read(absolute, [300, 0, 100], reading(), last).goal.pose, pose((0.3, 0, 0.1), (0, 0, 1)))
    none["kind"] = ActionKind.velocity
    twist = spec(("m/s",) * 3 + ("1 = 2 rad/s",) * 3, (*XYZ, "wx", "wy", "wz"), rotation="rotvec", **none)
    moved = read(ActionReader(twist, CARD), [0.2, 0, 0, 0, 0, 0.5], reading(), last).goal
    np.testing.assert_allclose(moved.pose, pose((0.51, 0.5, 0.5), (0, 0, 1.05)), atol=1e-7)
    sent = read(ActionReader(twist, BY_TWIST), [0.2, 0, 0, 0, 0, 0.5], reading(), last).goal
    np.testing.assert_allclose(sent.twist, [0.2, 0, 0, 0, 0, 1.0], atol=1e-7)
    in_tool = ActionReader(replace(twist, action_semantics=replace(twist.action_semantics, frame="tool")), BY_TWIST)
    turned = read(in_tool, [0.2, 0, 0, 0.5, 0, 0], reading(rotvec=(0, 0, math.pi / 2))).goal
    np.testing.assert_allclose(turned.twist, [0, 0.2, 0, 0, 1.0, 0], atol=1e-7)
    joints = spec(("rad/s",) * 7, tuple(f"arm: velocity of {name}" for name in CARD.joints), frame="joint", **none)
    at = reading()
    np.testing.assert_allclose(read(ActionReader(joints, BY_JOINTS), np.ones(7), at).goal.position, at.position + 0.05)


def test_joints_are_found_by_name() -> None:
    order = CARD.joints[::-1]
    absolute = {"kind": ActionKind.absolute, "delta_reference": DeltaReference.none, "frame": "joint"}
    names = ("gripper", *(f"{name}.pos" for name in order))
    reader = ActionReader(spec(("1",) + ("deg",) * 7, names, gripper="0 closed .. 1 open", **absolute), BY_JOINTS)
    goal = read(reader, [0.5, 70, 60, 50, 40, 30, 20, 10], reading()).goal
    np.testing.assert_allclose(goal.position, np.radians([10, 20, 30, 40, 50, 60, 70]))
    with pytest.raises(DeployError, match="'panda_joint1'"):
        ActionReader(spec(("rad",) * 7, tuple("abcdefg"), **absolute), BY_JOINTS)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([np.nan, 0, 0], Reason.not_finite), ([0, 0], Reason.wrong_size), (None, Reason.wrong_size),
        (["a"] * 3, Reason.wrong_size),
    ],
)  # fmt: skip
def test_what_is_no_action_is_a_goal_that_stops(action: Any, reason: Reason) -> None:
    target = ActionReader(spec(("m",) * 3, XYZ), CARD).read(action, reading=reading(), sent=None)
    assert target.reasons is reason
    assert np.isnan(target.goal.pose).all()


def test_no_pose_and_no_rotation_stop_too() -> None:
    blind = replace(reading(), pose=None)
    assert read(ActionReader(spec(("m",) * 3, XYZ), CARD), [0, 0, 0], blind).reasons is Reason.measured_not_finite
    quaternion = spec(("m",) * 3 + ("1",) * 4, (*XYZ, *"wxyz"), rotation="quat_wxyz")
    target = read(ActionReader(quaternion, CARD), [0, 0, 0, 5, 0, 0, 0], reading())
    assert target.reasons is Reason.not_a_rotation
    assert np.isnan(target.goal.pose).all()


def test_a_declared_norm_shortens_the_vector() -> None:
    units = ("m",) * 3 + ("1 = -0.1 rad, norm <= 1",) * 3
    reader = ActionReader(spec(units, (*XYZ, "rx", "ry", "rz"), rotation="rotvec", bounds=1.0), CARD)
    target = read(reader, [0, 0, 0, 1, 0, 1], reading())
    assert target.reasons is Reason.range
    np.testing.assert_allclose(target.goal.pose[3:], pose((0, 0, 0), np.array([-1, 0, -1]) * 0.1 / math.sqrt(2))[3:])


SIX = (*XYZ, "rx", "ry", "rz")
REFUSED = [
    (spec(("furlong",) * 3, XYZ), CARD, "furlong"),
    (spec(("1 = 0.1 m, 2 = 0.2 m, 3 = 0.3 m",) * 3, XYZ), CARD, "units"),
    (spec(("1 = 0.1 m, 1 = 0.2 m",) * 3, XYZ), CARD, "units"),
    (spec(("0 = 0.1 m",) * 3, XYZ), CARD, "units"),
    (spec(("m/s",) * 3, XYZ), CARD, "units"),
    (spec(("rad",) * 3, XYZ), CARD, "element 0"),
    (spec(("m",) * 6, SIX, rotation="rotvec"), CARD, "element 3"),
    (spec(("m",) * 6, SIX), CARD, "3 elements of the arm"),
    (spec(("m",) * 3 + ("rad",) * 3, SIX, rotation="euler_abc"), CARD, "euler_abc"),
    (spec(("m",) * 3, XYZ, frame="world"), CARD, "'world'"),
    (spec(("m",) * 3, XYZ, delta_reference=DeltaReference.none), CARD, "delta_reference"),
    (spec(("m",) * 3, XYZ, kind=ActionKind.absolute), CARD, "delta_reference"),
    (spec(("m",) * 3, XYZ), BY_JOINTS, "joint_position"),
    (spec(("rad",) * 7, CARD.joints, frame="joint"), CARD, "'pose'"),
    (spec(("m",) * 3, XYZ, gripper="0 closed .. 1 open"), CARD, "gripper"),
    (spec(("m",) * 4, (*XYZ, "gripper")), CARD, "gripper"),
    (spec(("m",) * 4, (*XYZ, "gripper"), gripper="opening"), CARD, "'opening'"),
    (spec(("m",) * 4, (*XYZ, "gripper: change of position"), gripper=GRIPPER), CARD, "gripper"),
    (spec(("m",) * 4, (*XYZ, "gripper"), gripper=GRIPPER), replace(CARD, gripper=None), "without one"),
    (spec(("m/s",) * 3 + ("rad/s",) * 3, SIX, kind=ActionKind.velocity, delta_reference=DeltaReference.none,
          rotation="euler_xyz"), CARD, "angular velocity"),
    (spec(("m",) * 3, XYZ, kind=ActionKind.absolute, delta_reference=DeltaReference.none), BY_TWIST, "absolute"),
    (spec(("m, norm <= 1", "m", "m"), XYZ), CARD, "one norm"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "card", "says"), REFUSED)
def test_what_cannot_be_read_is_refused_with_the_declaration(declared: EnvSpec, card: RobotCard, says: str) -> None:
    with pytest.raises(DeployError, match=says) as caught:
        ActionReader(declared, card)
    assert "Declared: kind" in str(caught.value)


MODES = ["pd_ee_delta_pos", "pd_ee_target_delta_pos", "pd_ee_delta_pose", "pd_ee_target_delta_pose"]
MODES += ["pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_joint_pos"]


@pytest.mark.parametrize("mode", MODES)
def test_goals_are_the_targets_of_maniskills_controllers(mode: str) -> None:
    """PickCube-v1, 30 random actions, a third of them beyond the bounds: the Goal is the controller's own target."""
    pytest.importorskip("mani_skill")
    from mani_skill.utils.registration import REGISTERED_ENVS

    from robot_rl.envs import headless
    from robot_rl.envs.maniskill_spec import describe_env

    raw = REGISTERED_ENVS["PickCube-v1"].make(
        num_envs=1, obs_mode="state", control_mode=mode, reward_mode="none", sim_backend="physx_cpu",
        render_backend=headless.prepare_rendering("state", vulkan_icd=None).render_backend,
    )  # fmt: skip
    raw.reset(seed=3)
    declared = describe_env(raw, task="PickCube-v1", max_episode_steps=50)
    reader = ActionReader(declared, BY_JOINTS if declared.action_semantics.frame == "joint" else CARD)
    arm, gripper = (raw.agent.controller.controllers[name] for name in ("arm", "gripper"))
    rng, sent, scale = np.random.default_rng(1), None, 1.5 if arm._normalize_action else 1.0
    for _ in range(30):
        action = (scale * declared.action.sample(rng)).astype(np.float32)
        qpos = raw.agent.robot.get_qpos()[0].double().numpy()
        at = Reading({}, {}, position=qpos[:7], pose=arm.ee_pose_at_base.raw_pose[0].double().numpy()
                     if hasattr(arm, "ee_pose_at_base") else None)  # fmt: skip
        sent = read(reader, action, at, sent).goal
        raw.step(action)
        if sent.pose is None:
            np.testing.assert_allclose(sent.position, arm._target_qpos[0].numpy(), atol=1e-5)
        else:
            theirs = arm._target_pose.raw_pose[0].numpy()
            np.testing.assert_allclose(sent.pose[:3], theirs[:3], atol=1e-5)
            assert abs(float(sent.pose[3:] @ theirs[3:])) == pytest.approx(np.linalg.norm(theirs[3:]), abs=1e-6)
            np.testing.assert_allclose(sent.pose[3:] * np.sign(sent.pose[3:] @ theirs[3:]), theirs[3:], atol=1e-5)
        assert sent.gripper == pytest.approx(float(gripper._target_qpos[0, 0]), abs=1e-6)
    raw.close()


def test_longer_deltas_for_late_readings() -> None:
    units = ("1 = 0.1 m",) * 3 + ("rad",) * 3
    late = ActionReader(spec(units, (*XYZ, "x", "y", "z"), rotation="rotvec", bounds=1.0), CARD, delta_gain=1.2)
    at = reading(rotvec=(0.0, 0.3, 0.0))
    target = read(late, [0.5, -2.0, 0.0, 0.5, 0.0, 0.0], at)
    # 0.1 m x 0.5 x 1.2; the second is clipped to the range of training first
    np.testing.assert_allclose(target.goal.pose[:3], [0.46, -0.02, 0.2], atol=1e-9)
    turn = Rotation.from_rotvec([0.6, 0, 0]) * Rotation.from_rotvec([0, 0.3, 0])
    np.testing.assert_allclose(np.roll(target.goal.pose[3:], -1), turn.as_quat(canonical=False), atol=1e-9)
    assert target.reasons is Reason.range
    joints = ActionReader(spec(("rad",) * 7, BY_JOINTS.joints, frame="joint"), BY_JOINTS, delta_gain=1.5)
    np.testing.assert_allclose(read(joints, np.full(7, 0.1), at).goal.position, at.position + 0.15, atol=1e-8)


@pytest.mark.parametrize(("age", "gain"), [(0, 1.0), (40, 1.0), (40, 1.4)])
def test_an_arm_with_late_readings_is_slow_and_the_gain_makes_up_for_it(age: int, gain: float) -> None:
    reader = ActionReader(spec(("m",) * 3, XYZ), CARD, delta_gain=gain)
    places, lag_ms = [0.0] * 41, 100.0
    for _ in range(1000):  # steps of 1 ms
        goal = read(reader, [0.01, 0, 0], reading((places[-1 - age], 0, 0))).goal.pose[0]
        places.append(places[-1] + (goal - places[-1]) / lag_ms)
    assert places[-1] - places[-2] == pytest.approx(gain * 0.01 / (lag_ms + age), rel=1e-3)


@pytest.mark.parametrize("gain", [0.9, 2.1, math.nan])
def test_a_gain_that_makes_no_sense(gain: float) -> None:
    with pytest.raises(ConfigError, match="delta_gain: expected 1 to 2"):
        ActionReader(spec(("m",) * 3, XYZ), CARD, delta_gain=gain)


def test_a_gain_for_actions_that_age_does_not_shorten() -> None:
    for declared, card in (
        (spec(("m",) * 3, XYZ, delta_reference=DeltaReference.target), CARD),
        (spec(("m",) * 3, XYZ, kind=ActionKind.absolute, delta_reference=DeltaReference.none), CARD),
        (spec(("m",) * 3, XYZ), BY_TWIST),
    ):
        with pytest.raises(ConfigError, match="only deltas from what is measured"):
            ActionReader(declared, card, delta_gain=1.2)
