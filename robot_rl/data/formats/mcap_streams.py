"""What a user states of a bag (topics, clock, rate, gaps, episodes), and rows of numbers of ROS 2 messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from robot_rl.data.formats.hdf5_source import decode_image
from robot_rl.errors import DataError, closest

CLOCKS = ("log", "header")
TAKES = ("last", "next")
_STATE, _TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
BY_NAME = (_STATE, _TRAJECTORY)
_IMAGE, _PACKED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
EVENTS = ("std_msgs/msg/Bool", "std_msgs/msg/String")
_NUMBERS: dict[str, Callable[[Any], list[float]]] = {
    "std_msgs/msg/Float64MultiArray": lambda message: list(message.data),
    "std_msgs/msg/Float64": lambda message: [message.data],
    "std_msgs/msg/Float32": lambda message: [message.data],
    "std_msgs/msg/Bool": lambda message: [float(message.data)],
    "geometry_msgs/msg/PoseStamped": lambda message: [*_xyz(message.pose.position), *_quat(message.pose.orientation)],
    "geometry_msgs/msg/WrenchStamped": lambda message: [*_xyz(message.wrench.force), *_xyz(message.wrench.torque)],
    "geometry_msgs/msg/TwistStamped": lambda message: [*_xyz(message.twist.linear), *_xyz(message.twist.angular)],
}
TYPES = (*BY_NAME, _IMAGE, _PACKED, *_NUMBERS)
_STAMPED = (*BY_NAME, _IMAGE, _PACKED, *(name for name in _NUMBERS if name.endswith("Stamped")))


@dataclass(frozen=True)
class Stream:
    """One array of a bag.

    Attributes:
        name: key of the source.
        topic: where it comes from.
        field: of joints: position, velocity or effort.
        joints: of a JointState or JointTrajectory: names, in the order of the row.
        align: clock of its messages: "log" (when the recorder got them) or "header" (their own stamp).
        take: "last": the latest message not newer than the grid time; "next": the first one not older, for commands
            that answer what was seen at that time.
        max_gap_s: largest distance between grid time and message; None: no limit, for a state that is said once.
        initial: value before the first message; None: there is none.
    """

    name: str
    topic: str
    align: str
    take: str = "last"
    max_gap_s: float | None = None
    field: str = "position"
    joints: tuple[str, ...] = ()
    initial: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What was stated, as JSON types."""
        return {entry.name: _json(getattr(self, entry.name)) for entry in fields(self) if entry.name != "name"}


def streams_of(given: Mapping[str, Any], *, align: str, max_gap_s: float, where: str) -> tuple[Stream, ...]:
    """The streams that a user states: name -> {topic: ..., joints: [...], ...}.

    Args:
        given: by name; a text alone is a topic.
        align, max_gap_s: for streams that do not say.
        where: for errors.

    Raises:
        DataError: naming the entry that is unknown, missing or of another kind.
    """
    known = [entry.name for entry in fields(Stream) if entry.name != "name"]
    out = []
    for name, said in given.items():
        place = f"{where}, streams, {name}"
        stated = {"topic": said} if isinstance(said, str) else dict(said) if isinstance(said, Mapping) else {}
        for word in stated:
            if word not in known:
                raise DataError(place, expected="an entry of a stream", got=repr(word), hint=closest(word, known))
        if not isinstance(stated.get("topic"), str) or name == "time" or str(name).startswith("age/"):
            raise DataError(
                place, expected="a topic, under a name other than time and age/...", got=repr(said),
                hint="For example proprio: {topic: /joint_states, joints: [a, b]}.",
            )  # fmt: skip
        entry: dict[str, Any] = {
            "align": align,
            "max_gap_s": max_gap_s,
            **stated,
            "joints": tuple(stated.get("joints", ())),
        }
        for word, options in (("align", CLOCKS), ("take", TAKES), ("field", ("position", "velocity", "effort"))):
            if entry.get(word, options[0]) not in options:
                raise DataError(f"{place}, {word}", expected=" or ".join(options), got=repr(entry[word]), hint="")
        require_number(entry["max_gap_s"], where=f"{place}, max_gap_s", optional=True)
        if len(set(entry["joints"])) < len(entry["joints"]):
            raise DataError(f"{place}, joints", expected="each name once", got=str(list(entry["joints"])), hint="")
        out.append(Stream(name=str(name), **entry))
    return tuple(out)


def require_number(value: Any, *, where: str, optional: bool = False) -> None:
    """Raise DataError unless `value` is a number above 0 (or None where `optional`)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    if not (is_number or (optional and value is None)):
        raise DataError(where, expected="a number above 0", got=repr(value), hint="Correct the options of the bag.")


def require_readable(stream: Stream, kind: str, *, where: str) -> None:
    """Refuse a stream whose topic has a type that is not read, or no header where its clock needs one.

    Raises:
        DataError: naming the topic, its type and what can be done.
    """
    place = f"{where}, topic {stream.topic}"
    if kind not in TYPES:
        raise DataError(place, expected=f"one of {', '.join(TYPES)}", got=kind, hint="Leave this stream out.")
    if stream.align == "header" and kind not in _STAMPED:
        raise DataError(
            place, expected=f"a message with a header, as stream {stream.name!r} is aligned by it", got=kind,
            hint=f"State `align: log` for stream {stream.name!r}: {kind} says no time of its own.",
        )  # fmt: skip


def header_ns(data: bytes, *, where: str) -> int:
    """The stamp of a message that begins with a header, from its CDR bytes; int nanoseconds.

    Raises:
        DataError: the message is too short, or the stamp is zero.
    """
    order = "<" if data[1:2] == b"\x01" else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4) if len(data) >= 12 else (0, 0)
    if seconds <= 0 and nanoseconds == 0:
        raise DataError(
            where, expected="a stamp in its header", got="zero" if len(data) >= 12 else f"{len(data)} bytes",
            hint="Its publisher does not fill it: state `align: log` for this stream.",
        )  # fmt: skip
    return int(seconds * 1_000_000_000 + nanoseconds)


def row_of(message: Any, stream: Stream, kind: str, *, where: str) -> np.ndarray:
    """One message as a row: float64 (n,), or uint8 (H, W, 3) of an image, RGB.

    Raises:
        DataError: joints are missing or named twice, numbers are missing, or an image of another encoding; see `where`.
    """
    if kind in BY_NAME:
        return _joints(message, stream, where)
    if kind == _IMAGE:
        return _image(message, where)
    if kind == _PACKED:
        if "compressedDepth" in message.format:
            raise DataError(where, expected="a JPEG or PNG in colour", got=message.format, hint="Leave depth out.")
        image = decode_image(np.frombuffer(message.data, np.uint8), where=where)
        if image.ndim != 3:
            raise DataError(where, expected="an image in colour", got="a grey one", hint="Leave this stream out.")
        return image
    return np.asarray(_NUMBERS[kind](message), np.float64)


def has_joints(message: Any, stream: Stream) -> bool:
    """Whether a message is about any joint of a stream: an arm and a gripper may share a topic."""
    return not set(stream.joints).isdisjoint(joint_names(message))


def joint_names(message: Any) -> list[str]:
    """Of a JointState or a JointTrajectory."""
    return list(message.name if hasattr(message, "name") else message.joint_names)


def _joints(message: Any, stream: Stream, where: str) -> np.ndarray:
    names, values = joint_names(message), _field(message, stream.field, where)
    twice = sorted({name for name in names if names.count(name) > 1})
    missing = [name for name in stream.joints if name not in names]
    if twice or missing:
        problem = f"{', '.join(twice)} twice" if twice else f"no {', '.join(missing)}"
        raise DataError(
            where, expected=f"joints {', '.join(stream.joints)}, each once", got=f"{problem} in {', '.join(names)}",
            hint="Correct `joints`, or leave the episode out with --skip-bad.",
        )  # fmt: skip
    if len(values) != len(names):
        raise DataError(
            where, expected=f"a {stream.field} for each of {len(names)} names", got=f"{len(values)} numbers",
            hint=f"This robot does not measure {stream.field}: leave the stream out.",
        )  # fmt: skip
    by_name = dict(zip(names, values, strict=True))
    return np.array([by_name[name] for name in stream.joints], np.float64)


def _field(message: Any, name: str, where: str) -> list[float]:
    """Numbers of a JointState, or of the one point of a trajectory that is a command."""
    if not hasattr(message, "points"):
        return list(getattr(message, name))
    if len(message.points) != 1:
        raise DataError(
            where, expected="a trajectory of one point, as a command", got=f"{len(message.points)} points",
            hint="A plan of several points is no action of one step: leave this stream out.",
        )  # fmt: skip
    plural = {"position": "positions", "velocity": "velocities"}.get(name, name)
    return list(getattr(message.points[0], plural))


def _image(message: Any, where: str) -> np.ndarray:
    if message.encoding not in ("rgb8", "bgr8"):
        raise DataError(
            where, expected="an image rgb8 or bgr8", got=message.encoding,
            hint="Leave this stream out, or convert it with image_proc while recording.",
        )  # fmt: skip
    height, width, step = int(message.height), int(message.width), int(message.step)
    flat = np.frombuffer(message.data, np.uint8)
    if step < 3 * width or flat.size != height * step or not flat.size:
        raise DataError(
            where, expected=f"{height} rows of {step} bytes, at least {3 * width}", got=f"{flat.size} bytes",
            hint="The frame is damaged: leave the episode out with --skip-bad.",
        )  # fmt: skip
    image = flat.reshape(height, step)[:, : 3 * width].reshape(height, width, 3)
    return image if message.encoding == "rgb8" else image[..., ::-1]


def _xyz(vector: Any) -> Sequence[float]:
    return (vector.x, vector.y, vector.z)


def _quat(rotation: Any) -> Sequence[float]:
    return (rotation.x, rotation.y, rotation.z, rotation.w)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
