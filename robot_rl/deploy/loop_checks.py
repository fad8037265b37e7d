"""Whether a policy, a robot and its card belong together; looked at before anything may move."""

from __future__ import annotations

from dataclasses import fields

from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.errors import DeployError
from robot_rl.specs import ActionSemantics, EnvSpec


def actions_every(command_hz: float, action_hz: float) -> int:
    """How many commands a robot gets for one action of its policy.

    Raises:
        DeployError: no whole number.
    """
    every = command_hz / action_hz
    if every < 1 or abs(every - round(every)) > 1e-6:
        raise DeployError(
            "control_hz", expected=f"commands at a multiple of the policy's {action_hz:g} Hz", got=f"{command_hz:g} Hz",
            hint="Change control_hz in the robot's card.",
        )  # fmt: skip
    return round(every)


def streams_of(keys: tuple[str, ...], card: RobotCard) -> tuple[str, ...]:
    """Streams whose age matters: what the policy sees, and what the safety layer measures."""
    names = {key for key in keys if key not in ("proprio", "instruction")}
    parts = {key.split("/")[0] for key in card.proprio} if "proprio" in keys else set()
    is_joint = card.command.is_joint
    if is_joint or parts & {"position", "velocity"}:
        names.add("joints")
    if not is_joint or "pose" in parts:
        names.add("pose")
    if card.force_n is not None or card.torque_nm is not None:
        names.add("wrench")
    return tuple(sorted(names))


def require_fits(info: PolicyInfo, robot: EnvSpec, card: RobotCard) -> None:
    """Compare what a policy was made for with what the robot is.

    Args:
        info: of the policy.
        robot: spec of the robot.
        card: of the robot.

    Raises:
        DeployError: with every difference.
    """
    policy, found = info.spec, list[str]()
    for key in info.keys:
        ours, theirs = policy.observation.get(key), robot.observation.get(key)
        if theirs is None:
            found.append(f"{key}: the robot has only {sorted(robot.observation)}")
        elif ours is None or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            found.append(f"{key}: {ours and (ours.shape, ours.dtype)}, robot {(theirs.shape, theirs.dtype)}")
        elif ours.meanings != theirs.meanings and "unspecified" not in (ours.meanings[0], theirs.meanings[0]):
            found.append(f"{key}: means {ours.meanings}, robot {theirs.meanings}")
    if policy.action.shape != robot.action.shape:
        found.append(f"action: shape {policy.action.shape}, robot {robot.action.shape}")
    for field in fields(ActionSemantics):
        wanted, got = getattr(policy.action_semantics, field.name), getattr(robot.action_semantics, field.name)
        if wanted != got:
            found.append(
                f"action, {field.name}: {getattr(wanted, 'value', wanted)}, robot {getattr(got, 'value', got)}"
            )
    if policy.robot != robot.robot:
        found.append(f"robot: {policy.robot}, robot {robot.robot}")
    if found:
        raise DeployError(
            "policy and robot", expected=f"a policy made for {card.name!r}", got="differences:\n  " + "\n  ".join(found),
            hint="\nUse the policy of this robot, or correct the robot's card. Nothing has moved.",
        )  # fmt: skip
    if not card.control_hz * card.thresholds.heartbeat_s > 2:
        raise DeployError(
            "thresholds.heartbeat_s", expected="more than two periods of commands",
            got=f"{card.thresholds.heartbeat_s:g} s at {card.control_hz:g} Hz", hint="A healthy loop would trip its watchdog.",
        )  # fmt: skip
