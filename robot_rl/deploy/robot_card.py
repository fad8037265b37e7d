"""One YAML a robot (configs/robot/<name>.yaml): joints, how it is commanded, limits, ages, gripper, topics.

Everything that differs between two arms stands there and nowhere else. Reading it needs PyYAML (extra `ros2`); unknown
and missing keys are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Any

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.errors import ConfigError, closest


class CommandKind(str, Enum):
    """What a robot takes: which field of Goal, and how it is carried."""

    joint_position = "joint_position"
    joint_trajectory = "joint_trajectory"
    pose = "pose"
    twist = "twist"

    @property
    def is_joint(self) -> bool:
        """Whether it is of joints; else of the end effector."""
        return self in (CommandKind.joint_position, CommandKind.joint_trajectory)


@dataclass(frozen=True)
class PoseLimits:
    """Limits of the end effector in the base frame.

    Attributes:
        box: lowest and highest corner, m; None: no box.
        half_spaces: rows (nx, ny, nz, d): n . x <= d must hold, m.
        speed_m_s, acceleration_m_s2, jerk_m_s3: of the translation.
        rotation_rad_s, rotation_rad_s2: geodesic rate of the rotation and its change.
        step_m, step_rad: largest distance between a command and the measured pose; None: any.
    """

    speed_m_s: float
    acceleration_m_s2: float
    jerk_m_s3: float
    rotation_rad_s: float
    rotation_rad_s2: float
    box: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    half_spaces: tuple[tuple[float, float, float, float], ...] = ()
    step_m: float | None = None
    step_rad: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("box", "half_spaces") or value is None:
                continue
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"pose.{entry.name}", expected="a number above 0", got=str(value), hint="Correct it.")
        if self.box is not None and any(low >= high for low, high in zip(*self.box, strict=True)):
            raise ConfigError(
                "pose.box", expected="lowest below highest corner", got=str(self.box), hint="In metres, base frame."
            )


@dataclass(frozen=True)
class GripperCard:
    """A gripper as one number, in its own unit.

    Attributes:
        closed, open: the number at either end; `closed` may be the larger one.
        velocity: largest change a second.
        joint: name in JointState whose position is the opening; "" when it has a topic of its own.
        scale: opening = position of `joint` times scale (2 for two mimic fingers told by their distance).
    """

    closed: float
    open: float
    velocity: float
    joint: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class TopicCard:
    """One ROS 2 topic.

    Attributes:
        topic: name, taken relative to the robot's namespace unless it begins with "/".
        type: message type without package, e.g. "JointState".
        reliability: "best_effort" or "reliable"; inputs subscribe best effort as it matches both kinds of publishers.
        durability: "volatile" or "transient_local".
        depth: of the queue.
    """

    topic: str
    type: str
    reliability: str = "best_effort"
    durability: str = "volatile"
    depth: int = 5

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("reliability", self.reliability, ("best_effort", "reliable")),
            ("durability", self.durability, ("volatile", "transient_local")),
        ):
            if value not in valid:
                raise ConfigError(
                    f"topic {self.topic!r}, {name}",
                    expected="a QoS policy",
                    got=repr(value),
                    hint=closest(value, valid),
                )


@dataclass(frozen=True)
class Ros2Card:
    """Topics of a robot.

    Attributes:
        base_frame, tool_frame: frame ids; messages of another frame are refused.
        inputs: stream ("joints", "pose", "wrench", "gripper", "state", "image/<camera>", "points") -> topic.
        outputs: "arm" and "gripper" -> topic.
        namespace: in front of relative topic names, for several arms.
        servo: MoveIt Servo: services to call before motion; empty when it is not used.
    """

    base_frame: str
    inputs: Mapping[str, TopicCard]
    outputs: Mapping[str, TopicCard]
    tool_frame: str = ""
    namespace: str = ""
    servo: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RobotCard:
    """One robot.

    Attributes:
        name: of this card.
        robot: model, as EnvSpec.robot has it.
        command: what it takes.
        joints: names of the arm's joints in the order of every array; a message is mapped to it by name.
        limits: of the joints, in that order.
        control_hz: rate of commands.
        proprio: element of the policy's "proprio" in order: "position/<joint>", "velocity/<joint>", "pose/<x y z qw qx qy
            qz>", "gripper" -> the meaning by which the policy's spec knows it.
        mimic: joints of JointState that follow another one and are not commanded.
        pose: limits of the end effector; needed for the commands pose and twist.
        gripper: None without one.
        force_n, torque_nm: ceilings of the measured wrench; None: not looked at.
        tracking: largest difference between command and measured joints, one a joint; None: any.
        thresholds: ages and times.
        home: joint positions to start from; None: where it is.
        ros2: topics; None for a robot without ROS 2.
        calibrations: camera -> file of `robot-rl calibrate hand-eye`, from the card's own folder; whether it is of this
            camera, card and size is looked at before anything moves.
        notes: what a person should know, and what was never tried on hardware.
    """

    name: str
    robot: str
    command: CommandKind
    joints: tuple[str, ...]
    limits: JointLimits
    control_hz: float
    proprio: Mapping[str, str]
    mimic: tuple[str, ...] = ()
    pose: PoseLimits | None = None
    gripper: GripperCard | None = None
    force_n: float | None = None
    torque_nm: float | None = None
    tracking: tuple[float, ...] | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    home: tuple[float, ...] | None = None
    ros2: Ros2Card | None = None
    calibrations: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        if self.limits.names != self.joints:
            raise ConfigError(
                f"robot {self.name!r}, limits", expected=f"joints {self.joints}", got=str(self.limits.names),
                hint="Both in one order.",
            )  # fmt: skip
        if not self.command.is_joint and self.pose is None:
            raise ConfigError(
                f"robot {self.name!r}, pose", expected=f"limits of the end effector for command {self.command.value}",
                got="none", hint="Limits are never left out; see configs/robot/sim_panda.yaml.",
            )  # fmt: skip
        for camera in self.calibrations:
            if self.ros2 is not None and f"image/{camera}" not in self.ros2.inputs:
                raise ConfigError(
                    f"robot {self.name!r}, calibrations", expected="a camera of ros2.inputs", got=repr(camera),
                    hint=closest(f"image/{camera}", self.ros2.inputs),
                )  # fmt: skip
        for name, values in (("tracking", self.tracking), ("home", self.home)):
            if values is not None and len(values) != len(self.joints):
                raise ConfigError(
                    f"robot {self.name!r}, {name}", expected=f"{len(self.joints)} numbers", got=str(len(values)),
                    hint=f"One for each of {', '.join(self.joints)}.",
                )  # fmt: skip


def load_robot_card(path: str | Path) -> RobotCard:
    """Read a card.

    Args:
        path: a YAML file, or the name of a card that comes with robot-rl ("sim_panda").

    Raises:
        ConfigError: no such file, no YAML, an unknown or missing key, or a value that does not fit.
    """
    file = _find(str(path))
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ConfigError(
            str(file), expected="PyYAML to read it", got="not installed", hint="pip install 'robot-rl[ros2]'."
        ) from error
    try:
        plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(str(file), expected="a YAML file", got=str(error), hint="Correct it.") from error
    card = card_from(plain, where=str(file))
    found = {camera: str(file.resolve().parent / name) for camera, name in card.calibrations.items()}
    return replace(card, calibrations=found)


def card_from(plain: Any, *, where: str) -> RobotCard:
    """A card of what its YAML says.

    Raises:
        ConfigError: naming the key.
    """
    values = _keys(RobotCard, plain, where)
    parts: tuple[tuple[str, type], ...] = (
        ("pose", PoseLimits), ("gripper", GripperCard), ("thresholds", Thresholds), ("ros2", Ros2Card),
    )  # fmt: skip
    for name, kind in parts:
        if values.get(name) is not None:
            values[name] = _built(kind, values[name], f"{where}, {name}")
    values["limits"] = _built(JointLimits, _with_names(values, where), f"{where}, limits")
    card: RobotCard = _built(RobotCard, values, where)
    return card


def _with_names(values: Mapping[str, Any], where: str) -> Any:
    limits = values["limits"]
    if not isinstance(limits, Mapping):
        raise ConfigError(f"{where}, limits", expected="a mapping", got=repr(limits), hint="low, high, velocity, ...")
    return {"names": values["joints"], **limits}


def _find(name: str) -> Path:
    file = Path(name)
    if file.suffix in (".yaml", ".yml") and file.is_file():
        return file
    folder = Path(str(files("robot_rl.configs"))) / "robot"
    cards = {found.stem: found for found in sorted(folder.glob("*.yaml"))}
    if name in cards:
        return cards[name]
    raise ConfigError(
        f"robot {name!r}", expected="a YAML file or a known name", got="neither", hint=closest(name, cards)
    )


def _keys(kind: type, plain: Any, where: str) -> dict[str, Any]:
    """What a mapping says of a dataclass: no unknown key, none missing."""
    if not isinstance(plain, Mapping):
        raise ConfigError(
            where, expected="a mapping", got=type(plain).__name__, hint="See configs/robot/sim_panda.yaml."
        )
    known = {entry.name: entry for entry in fields(kind)}
    for key in plain:
        if key not in known:
            raise ConfigError(where, expected="a known key", got=repr(key), hint=closest(str(key), known))
    missing = [
        name for name, entry in known.items()
        if name not in plain and entry.default is MISSING and entry.default_factory is MISSING
    ]  # fmt: skip
    if missing and not (kind is JointLimits and missing == ["names"]):
        raise ConfigError(where, expected=f"key {missing[0]!r}", got=f"{sorted(plain)}", hint="Add it.")
    return dict(plain)


def _built(kind: Any, plain: Any, where: str) -> Any:
    values = {key: _tuples(value) for key, value in _keys(kind, plain, where).items()}
    if kind is Ros2Card:
        for side in ("inputs", "outputs"):
            if not isinstance(values[side], Mapping):
                raise ConfigError(f"{where}.{side}", expected="a mapping", got=repr(values[side]), hint="name: topic")
            values[side] = {k: _built(TopicCard, v, f"{where}.{side}.{k}") for k, v in values[side].items()}
    if kind is RobotCard:
        try:
            values["command"] = CommandKind(values["command"])
        except ValueError as error:
            options = [kind.value for kind in CommandKind]
            hint = closest(str(values["command"]), options)
            raise ConfigError(f"{where}, command", expected="a kind", got=repr(values["command"]), hint=hint) from error
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            where, expected="numbers and names where they belong", got=str(error), hint="Correct it."
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
