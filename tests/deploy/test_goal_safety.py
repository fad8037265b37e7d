"""One interface over the safety layers of joints and poses, and the checks before anything moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_robot import small_card, small_spec

from robot_rl.deploy.goal_safety import GoalSafety, SafetyHooks, safety_of
from robot_rl.deploy.loop_checks import actions_every, require_fits, streams_of
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.robot_card import CommandKind, GripperCard, PoseLimits, RobotCard, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import ArraySpec
from robot_rl.types import Goal, Reading

PERIOD_S = 0.02
POSE = np.array([0.4, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0])


def reading(**changes: object) -> Reading:
    return replace(Reading(frames={}, stamps={}, position=np.zeros(2), pose=POSE, gripper=0.02), **changes)


def pose_card(command: CommandKind = CommandKind.pose) -> RobotCard:
    return replace(load_robot_card("sim_panda"), command=command, control_hz=50.0)


def with_gripper() -> RobotCard:
    return small_card(gripper=GripperCard(closed=0.0, open=0.04, velocity=0.1))


def test_joint_goals_go_through_the_joint_layer() -> None:
    safety = safety_of(small_card(), reading(gripper=None))
    assert isinstance(safety, GoalSafety)
    for _ in range(100):
        judged = safety.judge(Goal(position=np.array([0.1, 9.0])), PERIOD_S, reading())
    assert judged.goal.position is not None
    np.testing.assert_allclose(judged.goal.position, [0.1, 2.0])
    assert judged.reasons & Reason.position
    assert judged.is_at_rest
    assert judged.goal.gripper is None


@pytest.mark.parametrize("command", [CommandKind.joint_position, CommandKind.pose, CommandKind.twist])
def test_without_a_goal_it_brakes_for_the_given_reason_and_latches_nothing(command: CommandKind) -> None:
    card = small_card() if command is CommandKind.joint_position else pose_card(command)
    safety = safety_of(card, reading())
    goals = {
        CommandKind.joint_position: Goal(position=np.array([1.0, 1.0])),
        CommandKind.pose: Goal(pose=np.array([0.5, 0.0, 0.3, 1.0, 0.0, 0.0, 0.0])),
        CommandKind.twist: Goal(twist=np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.2])),
    }
    moving = safety.judge(goals[command], PERIOD_S, reading())
    assert not moving.is_at_rest
    for _ in range(50):
        held = safety.judge(None, PERIOD_S, reading(), reason=Reason.policy_late)
        assert held.reasons == Reason.policy_late
    assert held.is_at_rest
    assert safety.latched == Reason.none
    if command is CommandKind.twist:
        assert held.goal.twist is not None
        assert held.goal.twist.tolist() == [0.0] * 6
    assert not safety.judge(goals[command], PERIOD_S, reading()).is_at_rest


def test_a_twist_is_sent_as_a_twist_and_kept_in_the_box() -> None:
    """0.5 m/s for 2 s would leave the box of 0.9 m; the twist that is sent ends at its wall."""
    safety, place = safety_of(pose_card(CommandKind.twist), reading()), POSE.copy()
    for _ in range(100):
        judged = safety.judge(Goal(twist=np.array([0.5, 0, 0, 0, 0, 0])), PERIOD_S, reading(pose=place))
        assert judged.goal.twist is not None
        place = place + np.r_[judged.goal.twist[:3] * PERIOD_S, np.zeros(4)]
    assert 0.85 < place[0] <= 0.9 + 0.01
    assert judged.reasons & (Reason.workspace | Reason.position)
    assert judged.is_at_rest


@pytest.mark.parametrize(
    ("card", "goal", "reason"),
    [
        (small_card(), Goal(), Reason.wrong_size),
        (small_card(), Goal(pose=POSE), Reason.wrong_size),
        (small_card(), Goal(position=np.zeros(3)), Reason.wrong_size),
        (small_card(), Goal(position=np.array([np.nan, 0.0])), Reason.not_finite),
        (with_gripper(), Goal(position=np.zeros(2), gripper=float("nan")), Reason.not_finite),
        (pose_card(), Goal(), Reason.wrong_size),
        (pose_card(), Goal(pose=np.full(7, np.nan)), Reason.not_finite),
        (pose_card(), Goal(pose=np.zeros(7)), Reason.not_a_rotation),
        (pose_card(CommandKind.twist), Goal(pose=POSE), Reason.wrong_size),
        (pose_card(CommandKind.twist), Goal(twist=np.full(6, np.inf)), Reason.not_finite),
    ],
)
def test_goals_that_are_none_stop(card: RobotCard, goal: Goal, reason: Reason) -> None:
    safety = safety_of(card, reading())
    judged = safety.judge(goal, PERIOD_S, reading())
    assert safety.latched & reason
    assert judged.is_at_rest
    assert safety.judge(Goal(position=np.ones(2)), PERIOD_S, reading()).is_at_rest


@pytest.mark.parametrize("position", [np.full(2, np.nan), np.zeros(3), np.zeros(1)])
def test_a_reading_that_is_none_stops_with_and_without_a_goal(position: np.ndarray) -> None:
    for goal in (None, Goal(position=np.zeros(2))):
        safety = safety_of(small_card(), reading())
        safety.judge(goal, PERIOD_S, reading(position=position))
        assert safety.latched == Reason.measured_not_finite


def test_a_pose_robot_without_a_pose_stops() -> None:
    safety = safety_of(pose_card(), reading())
    safety.judge(None, PERIOD_S, reading(pose=None))
    assert safety.latched == Reason.measured_not_finite
    with pytest.raises(ConfigError, match="pose in every reading"):
        safety_of(pose_card(), reading(pose=None))


def test_the_gripper_of_a_joint_robot_has_its_limits_too() -> None:
    """0.1 a second: 0.002 in a step; held while it is stopped."""
    safety = safety_of(with_gripper(), reading())
    judged = safety.judge(Goal(position=np.zeros(2), gripper=1.0), PERIOD_S, reading())
    assert judged.goal.gripper == pytest.approx(0.022)
    assert judged.reasons & Reason.gripper
    safety.stop(Reason.emergency)
    for _ in range(3):
        assert safety.judge(Goal(position=np.zeros(2), gripper=0.0), PERIOD_S, reading()).goal.gripper == pytest.approx(
            0.022
        )


def test_a_workspace_of_a_joint_robot_needs_kinematics() -> None:
    walls = PoseLimits(1.0, 1.0, 1.0, 1.0, 1.0, box=((-0.5, -1.0, -1.0), (0.5, 1.0, 1.0)))
    with pytest.raises(ConfigError, match="forward"):
        safety_of(small_card(pose=walls), reading())
    hooks = SafetyHooks(
        forward=lambda joints: np.array([joints[0], joints[1], 0.0]), collides=lambda joints: joints[1] > 0.3
    )
    safety = safety_of(small_card(pose=walls), reading(), hooks)
    for _ in range(100):
        judged = safety.judge(Goal(position=np.array([1.0, 0.0])), PERIOD_S, reading())
    assert judged.goal.position is not None
    assert 0.45 < judged.goal.position[0] <= 0.5
    safety.judge(Goal(position=np.array([0.0, 0.4])), PERIOD_S, reading())
    assert safety.latched == Reason.collision


def test_streams_that_matter() -> None:
    assert streams_of(("proprio",), small_card()) == ("joints",)
    assert streams_of(("proprio", "image/wrist"), small_card(force_n=1.0)) == ("image/wrist", "joints", "wrench")
    assert streams_of(("image/wrist",), pose_card()) == ("image/wrist", "pose")
    assert streams_of(("proprio", "state"), pose_card()) == ("joints", "pose", "state")
    only_pose = replace(pose_card(), proprio={"pose/x": "x"})
    assert streams_of(("proprio",), only_pose) == ("pose",)


@pytest.mark.parametrize(("commands", "actions", "every"), [(50.0, 50.0, 1), (500.0, 20.0, 25), (20.0, 10.0, 2)])
def test_commands_are_a_multiple_of_actions(commands: float, actions: float, every: int) -> None:
    assert actions_every(commands, actions) == every


@pytest.mark.parametrize(("commands", "actions"), [(50.0, 20.0), (10.0, 20.0)])
def test_other_rates_are_refused(commands: float, actions: float) -> None:
    with pytest.raises(DeployError, match="multiple"):
        actions_every(commands, actions)


def test_a_policy_of_another_robot_is_refused_with_every_difference() -> None:
    spec = small_spec()
    info = PolicyInfo(spec, ("proprio",), 2, 8, 4)
    require_fits(info, spec, small_card())
    require_fits(info, replace(spec, control_hz=100.0), small_card())  # more commands than actions is no difference
    wider = replace(spec.observation["proprio"], shape=(3,), meanings=("a", "b", "c"))
    swapped = replace(spec.observation["proprio"], meanings=tuple(reversed(spec.observation["proprio"].meanings)))
    other = replace(spec.action_semantics, rotation="rotvec", control_mode="pd_ee")
    for robot, says in (
        (replace(spec, observation={"state": ArraySpec("state", (3,))}), r"proprio: the robot has only \['state'\]"),
        (replace(spec, observation={"proprio": wider}), r"\(3,\)"),
        (replace(spec, observation={"proprio": swapped}), "means"),
        (replace(spec, action=ArraySpec("action", (7,))), "action: shape"),
        (replace(spec, action_semantics=other), "rotation: none, robot rotvec"),
        (replace(spec, robot="ur5e"), "robot: small, robot ur5e"),
    ):
        with pytest.raises(DeployError, match=says):
            require_fits(info, robot, small_card())
    with pytest.raises(DeployError, match="heartbeat"):
        require_fits(info, spec, small_card(thresholds=Thresholds(heartbeat_s=0.04)))
