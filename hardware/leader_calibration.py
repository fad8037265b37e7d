"""How the numbers of a leader arm become the robot's joints: sense, zero and scale of each, in a file with a checksum.

Made by a person once, and again after a servo was taken off: `python -m robot_rl.hardware.calibrate_leader --help`. The file is
read whole or not at all: its checksum goes into the help of the device, and so beside what is recorded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from robot_rl.errors import ConfigError, DeployError

TICK = 2 * math.pi / 4096


@dataclass(frozen=True)
class LeaderJoint:
    """One joint: value = sign * (number - zero) * scale.

    Attributes:
        source: its name in the stream.
        sign: 1 or -1.
        zero: number of the source where the robot's joint is 0, or the gripper closed.
        scale: rad (or m, or openings) for 1 of the source.
    """

    source: str
    sign: float = 1.0
    zero: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if (
            self.sign not in (1, -1)
            or not math.isfinite(self.zero)
            or not (math.isfinite(self.scale) and self.scale > 0)
        ):
            raise ConfigError(
                f"leader joint {self.source!r}", expected="sign 1 or -1, a finite zero, scale above 0",
                got=f"{self.sign}, {self.zero}, {self.scale}", hint="Calibrate it anew.",
            )  # fmt: skip

    def value(self, number: float) -> float:
        """Of the robot's joint."""
        return self.sign * (number - self.zero) * self.scale


@dataclass(frozen=True)
class LeaderCalibration:
    """All joints of a leader arm.

    Attributes:
        joints: the robot's joint -> how it is read, in the order of the robot's card; "gripper" is its opening, 0..1.
    """

    joints: Mapping[str, LeaderJoint]

    @property
    def digest(self) -> str:
        """Of its content; another one means that recorded joints mean something else."""
        plain = {name: asdict(joint) for name, joint in self.joints.items()}
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write it whole."""
        plain = {"joints": {name: asdict(joint) for name, joint in self.joints.items()}, "digest": self.digest}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        part.replace(path)


def load_calibration(path: Path) -> LeaderCalibration:
    """Read a file that `save` wrote.

    Raises:
        ConfigError: no file, not one of ours, or changed since.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        calibration = LeaderCalibration({name: LeaderJoint(**joint) for name, joint in plain["joints"].items()})
        digest = plain["digest"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            str(path), expected="a calibration of a leader arm", got=f"{type(error).__name__}: {error}",
            hint="Make one: python -m robot_rl.hardware.calibrate_leader --help.",
        ) from error  # fmt: skip
    if digest != calibration.digest:
        raise ConfigError(
            str(path), expected=f"the checksum {calibration.digest}", got=repr(digest),
            hint="It was changed by hand or damaged; calibrate the leader arm anew.",
        )  # fmt: skip
    return calibration


def calibrated(
    at_pose: Mapping[str, float], moved: Mapping[str, Mapping[str, float]], pose: Mapping[str, float], *,
    sources: Mapping[str, str], scale: float,
) -> LeaderCalibration:  # fmt: skip
    """A calibration from one pose and one motion of each joint.

    Args:
        at_pose: numbers of the stream with the leader arm in `pose`.
        moved: joint -> numbers after this joint alone was moved the way that is positive on the robot, by 0.2 rad or more.
        pose: joint -> rad, of the robot.
        sources: joint -> its name in the stream.
        scale: rad for 1 of the stream.

    Raises:
        DeployError: another joint moved than was asked for, or none.
    """
    joints = {}
    for name, source in sources.items():
        sign = direction(at_pose, moved[name], source, scale=scale)
        # value(at_pose) = pose
        joints[name] = LeaderJoint(source, sign, at_pose[source] - sign * pose[name] / scale, scale)
    return LeaderCalibration(joints)


def gripper_joint(source: str, *, closed: float, opened: float) -> LeaderJoint:
    """The gripper as an opening, from the numbers of the stream at both ends.

    Raises:
        DeployError: they are the same.
    """
    if abs(opened - closed) < 1e-9:
        raise DeployError(
            "leader gripper", expected="two ends", got=f"{closed:g} twice", hint="Close it, then open it."
        )
    return LeaderJoint(source, 1.0 if opened > closed else -1.0, closed, 1.0 / abs(opened - closed))


def direction(before: Mapping[str, float], after: Mapping[str, float], source: str, *, scale: float) -> float:
    """1 or -1: whether the numbers of `source` rise in a motion that is positive on the robot.

    Raises:
        DeployError: another joint moved most, or none did.
    """
    ways = {name: (after[name] - before[name]) * scale for name in before}
    most = max(ways, key=lambda name: abs(ways[name]))
    if abs(ways[most]) < 0.2 or most != source:
        raise DeployError(
            f"leader joint {source!r}", expected="that this joint moves most, by 0.2 rad or more",
            got=f"{most!r} by {ways[most]:+.2f} rad, {source!r} by {ways[source]:+.2f}",
            hint="Move this joint alone. If you did, two servos have each other's id.",
        )  # fmt: skip
    return math.copysign(1.0, ways[source])


def check_direction(
    calibration: LeaderCalibration, before: Mapping[str, float], after: Mapping[str, float], name: str
) -> None:
    """Look that a joint runs the right way: `after` is behind a motion of joint `name` that is positive on the robot.

    Raises:
        DeployError: it runs the other way, or another joint moved.
    """
    joint = calibration.joints[name]
    if direction(before, after, joint.source, scale=joint.scale) != joint.sign:
        raise DeployError(
            f"leader joint {name!r}", expected="the robot's sense", got="the other one",
            hint="Calibrate it anew; do not engage it before.",
        )  # fmt: skip
