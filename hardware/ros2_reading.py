"""From the newest messages of a robot's topics to a Reading, and what a robot offers as an EnvSpec; without ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.element_names import units_of
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.errors import ConfigError, DeployError, closest
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Reading

from .ros2_cloud import CloudReader
from .ros2_messages import Joints, NotFiniteError, joints_of, number_of, numbers_of, pose_of, wrench_of
from .ros2_pictures import colour_of, points_of

POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
_UNITS = {"position": ("rad", "m"), "velocity": ("rad/s", "m/s"), "gripper": ()}
_ALWAYS = ("joints", "pose", "wrench", "gripper")


@dataclass(frozen=True)
class Heard:
    """The newest message of a stream.

    Attributes:
        message: as it came.
        received_s, captured_s: CLOCK_MONOTONIC.
    """

    message: Any
    received_s: float
    captured_s: float


class ReadingMaker:
    """Makes Readings of a robot's messages; a picture is decoded once.

    Args:
        card: of the robot, with topics.
        keys: key of the observation ("state", "points", "image/<camera>") -> stream of the card.
        cloud: makes a policy's points; None: every measured point, in the frame of the message.
    """

    def __init__(self, card: RobotCard, keys: Mapping[str, str], *, cloud: CloudReader | None = None) -> None:
        self._points_of = points_of if cloud is None else cloud.read
        assert card.ros2 is not None
        self._card, self._keys, self._ros2 = card, keys, card.ros2
        elements = [key.split("/", 1) for key in card.proprio]
        named = dict.fromkeys(element[1] for element in elements if element[0] in ("position", "velocity"))
        others = [name for name in named if name not in card.joints]
        if card.gripper is not None and card.gripper.joint and card.gripper.joint not in (*card.joints, *others):
            others.append(card.gripper.joint)
        topic = self._ros2.inputs.get("gripper")
        self._is_gripper_apart = topic is not None and topic.type == "JointState"
        self._joints = (*card.joints, *(() if self._is_gripper_apart else others))
        self._others = tuple(others) if self._is_gripper_apart else ()
        self._decoded: dict[str, tuple[Any, np.ndarray]] = {}

    def make(self, heard: Mapping[str, Heard]) -> Reading:
        """A Reading of what was heard; numbers that are not finite become NaN, which the safety layer stops at.

        Args:
            heard: stream -> newest message; a stream that is missing is missing in the Reading.

        Raises:
            DeployError: joints are missing, another frame, a broken picture: the message can't be read.
        """
        count = len(self._card.joints)
        parts = self._parts(heard)
        joints = parts[0][1] if parts else Joints(np.full(count, np.nan), None)
        known = _by_name(parts)
        pose = _or_nan(lambda: pose_of(heard["pose"].message, frame=self._ros2.base_frame), 7, "pose" in heard)
        gripper = self._opening(heard, known)
        frames = {"proprio": self._proprio(known, pose, gripper)}
        frames |= {key: self._frame(key, heard[stream]) for key, stream in self._keys.items() if stream in heard}
        frames_of_wrench = (self._ros2.base_frame, self._ros2.tool_frame) if self._ros2.tool_frame else ()
        return Reading(
            frames=frames,
            stamps={self._stream(name): entry.captured_s for name, entry in heard.items()},
            position=joints.position[:count],
            velocity=None if joints.velocity is None else joints.velocity[:count],
            pose=pose,
            gripper=gripper,
            wrench=_or_nan(lambda: wrench_of(heard["wrench"].message, frames=frames_of_wrench), 6, "wrench" in heard),
        )

    def _stream(self, name: str) -> str:
        """The name under which the loop knows a stream: the policy's key of it where it has one."""
        return next((key for key, stream in self._keys.items() if stream == name), name)

    def _parts(self, heard: Mapping[str, Heard]) -> list[tuple[tuple[str, ...], Joints]]:
        """Names and joints of each message that tells joints; the arm's come first. Empty before the first of the arm."""
        parts: list[tuple[tuple[str, ...], Joints]] = []
        for stream, names in (("joints", self._joints), ("gripper", self._others)):
            if stream == "joints" and stream not in heard:
                return []
            if names and stream in heard:
                try:
                    parts.append((names, joints_of(heard[stream].message, names)))
                except NotFiniteError:
                    bad = np.full(len(names), np.nan)
                    parts.append((names, Joints(bad, bad)))
        return parts

    def _opening(self, heard: Mapping[str, Heard], known: Mapping[str, float]) -> float | None:
        card = self._card.gripper
        if card is None:
            return None
        if "gripper" in heard and not self._is_gripper_apart:
            try:
                return number_of(heard["gripper"].message) * card.scale
            except NotFiniteError:
                return float("nan")
        position = known.get(f"position/{card.joint}")
        return None if position is None else position * card.scale

    def _proprio(self, known: Mapping[str, float], pose: np.ndarray | None, gripper: float | None) -> np.ndarray:
        values = dict(known)
        if pose is not None:
            values |= {f"pose/{name}": float(value) for name, value in zip(POSE, pose, strict=True)}
        if gripper is not None:
            values["gripper"] = gripper
        kinds = [key.partition("/") for key in self._card.proprio]
        wanted = [name for kind, _, name in kinds if kind == "velocity" and f"position/{name}" in known]
        untold = [f"velocity/{name}" for name in wanted if f"velocity/{name}" not in known]
        if untold:
            raise DeployError(
                "JointState, velocity", expected=f"velocities for proprio: {', '.join(untold)}", got="none",
                hint="The driver tells no velocities: add that interface to it, or train without them.",
            )  # fmt: skip
        return np.array([values.get(key, np.nan) for key in self._card.proprio], np.float32)

    def _frame(self, key: str, heard: Heard) -> np.ndarray:
        if key == "state":
            state: np.ndarray = numbers_of(heard.message).astype(np.float32)
            return state
        before = self._decoded.get(key)
        if before is None or before[0] is not heard.message:
            read = self._points_of if key == "points" else colour_of
            before = self._decoded[key] = (heard.message, read(heard.message))
        frame: np.ndarray = before[1]
        return frame


def _by_name(parts: Sequence[tuple[tuple[str, ...], Joints]]) -> dict[str, float]:
    out: dict[str, float] = {}
    for names, joints in parts:
        for kind, values in (("position", joints.position), ("velocity", joints.velocity)):
            if values is not None:
                out |= {f"{kind}/{name}": float(value) for name, value in zip(names, values, strict=True)}
    return out


def _or_nan(read: Any, size: int, is_there: bool) -> np.ndarray | None:
    if not is_there:
        return None
    try:
        out: np.ndarray = read()
    except NotFiniteError:
        return np.full(size, np.nan)
    return out


def keys_of(card: RobotCard, spec: EnvSpec | None, renamed: Mapping[str, str]) -> dict[str, str]:
    """Which stream fills each key of the observation but "proprio".

    Args:
        card: of the robot, with topics.
        spec: of the policy; None: everything that the card has.
        renamed: key of the observation -> stream, where they differ.

    Raises:
        ConfigError: a stream that the card does not have.
    """
    assert card.ros2 is not None
    inputs = card.ros2.inputs
    for key, stream in renamed.items():
        if stream not in inputs:
            raise ConfigError(
                f"streams, {key}", expected=f"an input of robot {card.name!r}", got=stream, hint=closest(stream, inputs)
            )
    if spec is None:
        free = [name for name in inputs if name not in _ALWAYS and name not in renamed.values()]
        return {**renamed, **{name: name for name in free}}
    wanted = {key: renamed.get(key, key) for key in spec.observation if key != "proprio"}
    return {key: stream for key, stream in wanted.items() if stream in inputs}


def streams_for(card: RobotCard, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Streams to listen to: what the robot says of itself, and what fills the keys."""
    assert card.ros2 is not None
    return tuple(name for name in card.ros2.inputs if name in _ALWAYS or name in keys.values())


def spec_of(card: RobotCard) -> EnvSpec:
    """What a robot offers by its card alone: proprio, and its own command as the action.

    Cameras, points and state are not in it: their sizes are known when they were heard (`with_measured`).
    """
    names: tuple[str, ...] = card.joints
    units, rotation, kind = ("rad",) * len(names), "none", ActionKind.absolute
    if card.command is CommandKind.pose:
        names, units, rotation = POSE, ("m",) * 3 + ("1",) * 4, "quat_wxyz"
    if card.command is CommandKind.twist:
        names, units, rotation = ("vx", "vy", "vz", "wx", "wy", "wz"), ("m/s",) * 3 + ("rad/s",) * 3, "rotvec"
        kind = ActionKind.velocity
    frame, gripper = "joint" if names == card.joints else "base", "none"
    if card.gripper is not None:
        gripper = f"{card.gripper.closed:g} closed .. {card.gripper.open:g} open"
        names, units = (*names, "gripper"), (*units, "1")
    meanings = tuple(card.proprio.values())
    return EnvSpec(
        env_id=f"robot-{card.name}",
        observation={"proprio": ArraySpec("proprio", (len(meanings),), meanings=meanings)},
        action=ArraySpec("action", (len(names),), units=units, meanings=names),
        action_semantics=ActionSemantics(kind, DeltaReference.none, frame, rotation, gripper, card.command.value),
        joint_names=card.joints,
        robot=card.robot,
        control_hz=card.control_hz,
        max_episode_steps=1000,
        has_success=False,
    )


def with_measured(spec: EnvSpec, frames: Mapping[str, Array]) -> EnvSpec:
    """A spec with the arrays that a robot was heard to send."""
    known = {
        key: ArraySpec(key, tuple(frame.shape), dtype=str(frame.dtype))
        for key, frame in frames.items()
        if key not in spec.observation
    }
    return replace(spec, observation={**spec.observation, **known})


def require_spec(spec: EnvSpec, card: RobotCard) -> None:
    """Compare a policy's declaration of robot and proprioception with the robot's card.

    Raises:
        DeployError: with both declarations.
    """
    found: list[str] = []
    if spec.robot != card.robot:
        found.append(f"robot: policy {spec.robot!r}, card {card.robot!r}")
    proprio, ours = spec.observation.get("proprio"), tuple(card.proprio.values())
    if proprio is None or proprio.size != len(ours):
        found.append(f"proprio: policy {proprio and proprio.size} numbers, card {len(ours)}")
    else:
        if len(proprio.meanings) == len(ours) and proprio.meanings != ours:
            found.append(f"proprio means: policy {proprio.meanings}, card {ours}")
        found += _unit_differences(units_of(proprio), list(card.proprio))
    joints = (*card.joints, *card.mimic, *(() if card.gripper is None else (card.gripper.joint,)))
    strangers = [name for name in spec.joint_names if name not in joints]
    if strangers:
        found.append(f"joints: policy {spec.joint_names}, card {joints}; it does not know {', '.join(strangers)}")
    if found:
        raise DeployError(
            "policy and robot", expected=f"a policy made for robot card {card.name!r}",
            got="differences:\n  " + "\n  ".join(found) + "\n",
            hint="Use the policy of this robot, or correct the card. Nothing has moved.",
        )  # fmt: skip


def _unit_differences(units: Sequence[str], elements: Sequence[str]) -> list[str]:
    out = []
    for unit, element in zip(units, elements, strict=True):
        kind, _, name = element.partition("/")
        valid = _UNITS.get(kind, ("m",) if name in ("x", "y", "z") else ("1",))
        if valid and unit not in (*valid, "1"):
            out.append(f"unit of {element}: policy {unit!r}, card {' or '.join(valid)}")
    return out
