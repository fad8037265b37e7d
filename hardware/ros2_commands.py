"""From goals to the messages that a card asks for, and where to hold; the classes come from the publishers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.errors import ConfigError, DeployError
from robot_rl.types import Goal

from .ros2_messages import (
    as_joint_state,
    as_multi_array,
    as_pose,
    as_trajectory,
    as_twist,
    joints_of,
    pose_of,
)  # fmt: skip
from .ros2_reading import Heard

# What each command may be carried by.
TYPES: Mapping[CommandKind, tuple[str, ...]] = {
    CommandKind.joint_position: ("Float64MultiArray", "JointState"),
    CommandKind.joint_trajectory: ("JointTrajectory",),
    CommandKind.pose: ("PoseStamped",),
    CommandKind.twist: ("TwistStamped",),
}
_FIELDS = {CommandKind.pose: ("pose", 7), CommandKind.twist: ("twist", 6)}


def require_topics(card: RobotCard) -> None:
    """Refuse a card whose topics do not fit its command.

    Raises:
        ConfigError: no topics, a stream is missing that limits are judged by, or another type of message.
    """
    if card.ros2 is None:
        raise ConfigError(f"robot {card.name!r}", expected="topics (ros2:)", got="none", hint="See sim_panda.yaml.")
    inputs, outputs, valid = card.ros2.inputs, card.ros2.outputs, TYPES[card.command]
    needed = ["joints"] + ["pose"] * (not card.command.is_joint)
    needed += ["wrench"] * (card.force_n is not None or card.torque_nm is not None)
    for name in needed:
        if name not in inputs:
            raise ConfigError(
                f"robot {card.name!r}, ros2.inputs", expected=f"the stream {name!r} for its command and limits",
                got=str(sorted(inputs)), hint="Every limit is judged by what is measured.",
            )  # fmt: skip
    arm = outputs.get("arm")
    if arm is None or arm.type not in valid:
        raise ConfigError(
            f"robot {card.name!r}, ros2.outputs.arm", expected=f"{' or '.join(valid)} for {card.command.value}",
            got="none" if arm is None else arm.type, hint="Correct `type`, or the card's `command`.",
        )  # fmt: skip
    if card.ros2.servo:
        raise ConfigError(
            f"robot {card.name!r}, ros2.servo", expected="nothing: its services are not called yet",
            got=str(dict(card.ros2.servo)), hint="Call switch_command_type and pause_servo before, and leave it out.",
        )  # fmt: skip


def fitting(card: RobotCard, goal: Goal) -> Goal:
    """What of a goal goes to this robot, with the gripper inside its range.

    Raises:
        DeployError: the field that the card's command needs is missing, of another size, or not finite.
    """
    name, size = _FIELDS.get(card.command, ("position", len(card.joints)))
    value = getattr(goal, name)
    if value is None or np.shape(value) != (size,) or not np.isfinite(value).all():
        raise DeployError(
            f"goal for robot {card.name!r}", expected=f"a {name} of {size} finite numbers", got=str(goal),
            hint="Nothing was sent. Goals pass the safety layer before they come here.",
        )  # fmt: skip
    values: dict[str, Any] = {name: np.asarray(value, np.float64)}
    if card.command is CommandKind.joint_trajectory and goal.velocity is not None:
        values["velocity"] = goal.velocity
    if card.gripper is not None and goal.gripper is not None:
        if not math.isfinite(goal.gripper):
            raise DeployError("gripper", expected="a finite opening", got=str(goal.gripper), hint="Not sent.")
        low, high = sorted((card.gripper.closed, card.gripper.open))
        values["gripper"] = min(max(goal.gripper, low), high)
    return Goal(**values)


def arm_message(card: RobotCard, goal: Goal, *, kind: Any, point_kind: Any, stamp_s: float) -> Any:
    """The message of a goal that fits the card.

    Args:
        card: of the robot.
        goal: see `fitting`.
        kind: class of the message.
        point_kind: JointTrajectoryPoint; looked at for trajectories only.
        stamp_s: of the header of poses and twists.
    """
    assert card.ros2 is not None
    frame = card.ros2.base_frame
    if goal.position is not None:
        if card.command is CommandKind.joint_trajectory:
            time_s = 1 / card.control_hz
            return as_trajectory(kind, point_kind, card.joints, goal.position, time_s=time_s, velocity=goal.velocity)
        if kind.__name__ == "JointState":
            return as_joint_state(kind, card.joints, goal.position)
        return as_multi_array(kind, goal.position)
    if goal.twist is not None:
        return as_twist(kind, goal.twist, frame=frame, stamp_s=stamp_s)
    assert goal.pose is not None
    return as_pose(kind, goal.pose, frame=frame, stamp_s=stamp_s)


def hold_goal(card: RobotCard, heard: Mapping[str, Heard], sent: Goal | None, *, now_s: float) -> Goal | None:
    """Where to hold: zero twist, or the joints or pose as measured.

    What was measured too long ago, or can't be read, would move the arm: then where it was sent last.

    Args:
        card: of the robot.
        heard: newest messages.
        sent: last goal.
        now_s: CLOCK_MONOTONIC.

    Returns:
        None when nothing is known.
    """
    assert card.ros2 is not None
    if card.command is CommandKind.twist:
        return Goal(twist=np.zeros(6))
    name = "pose" if card.command is CommandKind.pose else "joints"
    newest = heard.get(name)
    if newest is not None and now_s - newest.captured_s <= card.thresholds.age_s(name):
        try:
            if name == "pose":
                return Goal(pose=pose_of(newest.message, frame=card.ros2.base_frame))
            return Goal(position=joints_of(newest.message, card.joints).position)
        except DeployError:
            pass
    return None if sent is None else Goal(position=sent.position, pose=sent.pose)
