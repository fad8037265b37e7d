"""Calibrate a leader arm, or test its directions, with a person who moves it:

    python -m robot_rl.hardware.calibrate_leader leader.json --robot so101 --source feetech --port /dev/ttyACM0 \\
        --servo shoulder_pan=1 --servo shoulder_lift=2 ... --servo gripper=6
    python -m robot_rl.hardware.calibrate_leader leader.json --robot so101 ... --test

Joints are those of the robot's card; a servo, or name in a stream, is called like its joint. The pose is the card's `home`, or zeros.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.errors import DeployError, RobotRlError

from .leader_arm import GRIPPER, SOURCES, LeaderArmConfig, source_of
from .leader_calibration import (
    TICK,
    LeaderCalibration,
    calibrated,
    check_direction,
    gripper_joint,
    load_calibration,
)
from .leader_drivers import LeaderSource, Numbers

Ask = Callable[[str], object]


def main(words: Sequence[str] | None = None, *, ask: Ask = input, source: LeaderSource | None = None) -> int:
    """Ask a person through it; returns the exit code.

    Args:
        words: arguments.
        ask: shows a text and waits for Enter.
        source: instead of the one that `words` name. For tests.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--robot", required=True, help="card: name or YAML file")
    parser.add_argument("--source", choices=SOURCES, default="feetech")
    parser.add_argument("--port", default="")
    parser.add_argument("--baud", type=int, default=1000000)
    parser.add_argument("--servo", action="append", default=[], metavar="JOINT=ID")
    parser.add_argument("--udp-port", type=int, default=8765)
    parser.add_argument("--topic", default="/leader/joint_states")
    parser.add_argument("--test", action="store_true", help="only look that every joint runs the right way")
    options = parser.parse_args(words)
    try:
        ids = {name: int(number) for name, _, number in (word.partition("=") for word in options.servo)}
    except ValueError:
        parser.error("--servo JOINT=ID wants a number")
    config = LeaderArmConfig(
        source=options.source,
        port=options.port,
        baud=options.baud,
        ids=ids,
        udp_port=options.udp_port,
        topic=options.topic,
    )
    source = source_of(config) if source is None else source
    try:
        card = load_robot_card(options.robot)
        source.open()
        if options.test:
            try_directions(load_calibration(options.file), source, ask)
        else:
            scale = TICK if options.source in ("dynamixel", "feetech") else 1.0
            calibration = calibrate(card, source, ask, scale=scale)
            calibration.save(options.file)
            sys.stdout.write(f"{options.file}: {calibration.digest}\n")
        return 0
    except RobotRlError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        source.close()


def calibrate(card: RobotCard, source: LeaderSource, ask: Ask, *, scale: float) -> LeaderCalibration:
    """All joints of a card, and its gripper.

    Args:
        card: of the robot that will be driven.
        source: open.
        ask: shows a text and waits.
        scale: rad for 1 of the source.

    Raises:
        DeployError: the source is silent, lacks a joint, or another joint moved than was asked for.
    """
    pose = dict(zip(card.joints, card.home or (0.0,) * len(card.joints), strict=True))
    ask(
        "Put the leader arm as the robot is at " + ", ".join(f"{k} {v:.2f}" for k, v in pose.items()) + ", then Enter: "
    )
    at_pose, moved = newest(source), {}
    missing = [joint for joint in card.joints if joint not in at_pose]
    if missing:
        raise DeployError(
            "leader arm", expected=f"numbers of {missing}", got=str(list(at_pose)), hint="--servo JOINT=ID."
        )
    before = dict.fromkeys(card.joints, at_pose)
    for joint in card.joints:
        before[joint] = newest(source)
        ask(
            f"Move {joint} alone, the way that is positive on the robot, by a hand's width; hold it there, then Enter: "
        )
        moved[joint] = {name: at_pose[name] + number - before[joint][name] for name, number in newest(source).items()}
    joints = calibrated(at_pose, moved, pose, sources={joint: joint for joint in card.joints}, scale=scale).joints
    if card.gripper is None or GRIPPER not in at_pose:
        return LeaderCalibration(joints)
    ask("Close the gripper, then Enter: ")
    closed = newest(source)[GRIPPER]
    ask("Open the gripper, then Enter: ")
    return LeaderCalibration({**joints, GRIPPER: gripper_joint(GRIPPER, closed=closed, opened=newest(source)[GRIPPER])})


def try_directions(calibration: LeaderCalibration, source: LeaderSource, ask: Ask) -> None:
    """Look that every joint runs the right way.

    Raises:
        DeployError: one does not.
    """
    for name in calibration.joints:
        if name == GRIPPER:
            continue
        before = newest(source)
        ask(f"Move {name} alone, the way that is positive on the robot, by a hand's width, then Enter: ")
        check_direction(calibration, before, newest(source), name)
        sys.stdout.write(f"{name}: right\n")


def newest(source: LeaderSource, *, wait_s: float = 3.0) -> Numbers:
    """Numbers that came after now.

    Raises:
        DeployError: none came.
    """
    end_s, numbers = time.monotonic() + wait_s, None
    source.poll()
    while numbers is None and time.monotonic() < end_s:
        numbers = source.poll()
    if numbers is None:
        raise DeployError("leader arm", expected="numbers", got=source.trouble or "none", hint="Is it switched on?")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
