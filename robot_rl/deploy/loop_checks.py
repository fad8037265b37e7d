"""Whether a policy, a robot and its card belong together, and what is measured is fresh; before anything may move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from robot_rl.contracts import Robot
from robot_rl.data.same_cameras import camera_differences, pose_differences
from robot_rl.data.same_spec import observing
from robot_rl.deploy.calibration import load_hand_eye
from robot_rl.deploy.chunking import AgeCheck
from robot_rl.deploy.point_cloud import point_differences
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.schedule import Clock
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import ActionSemantics, EnvSpec
from robot_rl.types import Reading


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
        DataError: a calibration of a camera that is not there, or of another camera, robot or size.
    """
    for error in wrong_calibrations(card, robot):
        raise error
    policy, found = info.spec, list(_moved_cameras(info, card))
    for key in info.keys:
        ours, theirs = policy.observation.get(key), robot.observation.get(key)
        if theirs is None:
            found.append(f"{key}: the robot has only {sorted(robot.observation)}")
        elif ours is None or (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            found.append(f"{key}: {ours and (ours.shape, ours.dtype)}, robot {(theirs.shape, theirs.dtype)}")
        elif ours.meanings != theirs.meanings and "unspecified" not in (ours.meanings[0], theirs.meanings[0]):
            found.append(f"{key}: means {ours.meanings}, robot {theirs.meanings}")
    seen = observing(policy, info.keys)
    found += point_differences(seen, robot)
    for name in seen.cameras.keys() & robot.cameras.keys():  # a simulated robot describes them itself
        found += (f"camera {name}: {text}" for text in camera_differences(seen.cameras[name], robot.cameras[name]))
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


def _moved_cameras(info: PolicyInfo, card: RobotCard) -> Iterator[str]:
    """Cameras that the policy looks through and that stand or see otherwise than in its training, by the card's calibrations."""
    tool_frame = card.ros2.tool_frame if card.ros2 is not None else ""
    for camera, file in card.calibrations.items():
        trained = info.spec.cameras.get(camera)
        if trained is None or not {f"image/{camera}", f"depth/{camera}", "points"} & set(info.keys):
            continue
        here = load_hand_eye(Path(file), camera=camera, robot=card.name).camera_spec(tool_frame=tool_frame)
        # Points are told apart by where the camera stands; a cloud has no pixels.
        is_seen = bool({f"image/{camera}", f"depth/{camera}"} & set(info.keys))
        found = camera_differences(trained, here) if is_seen else pose_differences(trained, here)
        yield from (f"camera {camera}: {text}" for text in found)


def wrong_calibrations(card: RobotCard, robot: EnvSpec) -> Iterator[DataError]:
    """What is wrong with the calibrations that a card names, of the cameras that are used.

    Args:
        card: of the robot.
        robot: spec of the connected robot, which has the size of each camera's pictures.
    """
    for camera, file in card.calibrations.items():
        spec = robot.observation.get(f"image/{camera}")
        if spec is None:
            continue
        height, width = spec.shape[:2]
        try:
            load_hand_eye(Path(file), camera=camera, robot=card.name, width=width, height=height)
        except DataError as error:
            yield error


def fresh_reading(robot: Robot, ages: AgeCheck, *, clock: Clock) -> Reading:
    """A reading to begin from; waits for it, as a driver may pause while a scene is reset.

    The first command holds where the robot is measured: of an old reading that would be where it was.

    Args:
        robot: connected; waited for at most `thresholds.connect_s` of its card.
        ages: see AgeCheck.
        clock: of the loop.

    Raises:
        DeployError: the robot can't be read, or a stream stays stale.
    """
    deadline_s, period_s = clock.now() + robot.card.thresholds.connect_s, 1.0 / robot.card.control_hz
    while True:
        reading = robot.read()
        age = ages.judge(reading, clock.now())
        if not age.is_stale:
            return reading
        if clock.now() > deadline_s:
            raise DeployError(
                f"stream {age.stream!r}", expected=f"at most {ages.thresholds_s[age.stream]:g} s old", got=f"{age.age_s:g} s",
                hint="Where the robot is now is not known, so nothing may begin. Is its driver up?",
            )  # fmt: skip
        clock.sleep_until(clock.now() + period_s)
