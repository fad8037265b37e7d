"""Numbers out of ROS 2 messages and into them, without ROS: messages are read by their fields, classes are passed in.

Joints are found by name, never by place: drivers order them as they like, and may change the order from one message to the
next. Nothing that is not finite gets through in either direction. Images and clouds: ros2_pictures.py.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.robot_card import GripperCard
from robot_rl.errors import DeployError, closest

# Quaternions of float32 drivers are this far from unit length at most; what is further is no rotation.
_NORM = 1e-3


class NotFiniteError(DeployError):
    """A message or a goal holds NaN or infinity."""


@dataclass(frozen=True)
class Joints:
    """What a JointState says of some joints.

    Attributes:
        position: rad or m, float64 (n,), in the order that was asked for.
        velocity: rad/s or m/s, float64 (n,), or None where the message says nothing of it.
    """

    position: Float64[Array, " n"]
    velocity: Float64[Array, " n"] | None


def joints_of(message: Any, names: Sequence[str]) -> Joints:
    """Some joints of a JointState.

    Args:
        message: sensor_msgs/JointState; it may have more joints, in any order, and no velocity or effort.
        names: of the joints wanted, in order. A velocity that is NaN for all of them counts as not said: that is how
            joint_state_broadcaster tells that a joint has no such interface.

    Raises:
        DeployError: a name is missing or comes twice, or there are not as many numbers as names.
        NotFiniteError: a number of a joint that is wanted.
    """
    found = list(message.name)
    twice = sorted(name for name, count in Counter(found).items() if count > 1)
    if twice:
        raise DeployError(
            "JointState", expected="every joint once", got=f"{', '.join(twice)} more than once in {found}",
            hint="Two drivers may write into one message; give each a topic of its own.",
        )  # fmt: skip
    missing = [name for name in names if name not in found]
    if missing:
        raise DeployError(
            "JointState", expected=f"joints {', '.join(names)}", got=f"no {', '.join(missing)} among {found}",
            hint=f"{closest(missing[0], found)} Correct `joints` in the robot's card, or the driver.",
        )  # fmt: skip
    places = [found.index(name) for name in names]
    position = _picked(message.position, places, found, "position")
    if position is None:
        raise DeployError(
            "JointState, position", expected=f"{len(found)} numbers", got="none", hint="The driver must measure."
        )
    velocity = _picked(message.velocity, places, found, "velocity")
    if velocity is not None and velocity.size and np.isnan(velocity).all():
        velocity = None
    _require_finite(position, "JointState, position", names)
    if velocity is not None:
        _require_finite(velocity, "JointState, velocity", names)
    return Joints(position, velocity)


def _picked(values: Any, places: list[int], found: list[str], what: str) -> np.ndarray | None:
    numbers = np.asarray(values, np.float64)
    if not numbers.size:
        return None
    if numbers.shape != (len(found),):
        raise DeployError(
            f"JointState, {what}", expected=f"{len(found)} numbers for {found}", got=str(numbers.size),
            hint="The driver is broken.",
        )  # fmt: skip
    return numbers[places]


def pose_of(message: Any, *, frame: str) -> Float64[Array, "7"]:
    """A PoseStamped as m and quaternion wxyz (ROS has xyzw).

    Args:
        message: geometry_msgs/PoseStamped.
        frame: it must be in; "" for any.

    Raises:
        DeployError: another frame, or a quaternion that is not of unit length.
        NotFiniteError: a number.
    """
    _require_frame(message, "PoseStamped", (frame,))
    p, q = message.pose.position, message.pose.orientation
    pose = np.array([p.x, p.y, p.z, q.w, q.x, q.y, q.z], np.float64)
    _require_finite(pose, "PoseStamped", ("x", "y", "z", "qw", "qx", "qy", "qz"))
    norm = float(np.linalg.norm(pose[3:]))
    if abs(norm - 1) > _NORM:
        raise DeployError(
            "PoseStamped, orientation", expected="a quaternion of length 1", got=f"length {norm:.6g}",
            hint="All zeros mean that the driver has not filled it.",
        )  # fmt: skip
    pose[3:] /= norm
    return pose


def wrench_of(message: Any, *, frames: tuple[str, ...] = ()) -> Float64[Array, "6"]:
    """A WrenchStamped as force N and torque N m, in its own frame.

    Args:
        message: geometry_msgs/WrenchStamped.
        frames: it must be in one of them; () for any.

    Raises:
        DeployError: another frame.
        NotFiniteError: a number.
    """
    _require_frame(message, "WrenchStamped", frames)
    f, t = message.wrench.force, message.wrench.torque
    wrench = np.array([f.x, f.y, f.z, t.x, t.y, t.z], np.float64)
    _require_finite(wrench, "WrenchStamped", ("fx", "fy", "fz", "tx", "ty", "tz"))
    return wrench


def numbers_of(message: Any) -> Float64[Array, " n"]:
    """A Float64MultiArray, Float64 or Bool as float64 (n,).

    Raises:
        DeployError: a layout that does not fit the data.
        NotFiniteError: a number.
    """
    data = message.data
    numbers = np.atleast_1d(np.asarray(data, np.float64))
    dims = list(getattr(getattr(message, "layout", None), "dim", ()))
    size = math.prod(int(dim.size) for dim in dims) if dims else numbers.size
    if size != numbers.size or numbers.ndim != 1:
        raise DeployError(
            "Float64MultiArray", expected=f"{size} numbers, as its layout says", got=str(numbers.size),
            hint="The sender is broken; leave its layout empty.",
        )  # fmt: skip
    _require_finite(numbers, type(message).__name__, [str(place) for place in range(numbers.size)])
    return numbers


def number_of(message: Any) -> float:
    """The one number of a Float64, Bool (0 or 1) or Float64MultiArray.

    Raises:
        DeployError: not one number.
        NotFiniteError: it is not finite.
    """
    numbers = numbers_of(message)
    if numbers.shape != (1,):
        raise DeployError(type(message).__name__, expected="one number", got=str(numbers.size), hint="See the card.")
    return float(numbers[0])


def stamp_of(message: Any) -> float | None:
    """Seconds of the header on the sender's clock; None without a header, or where the stamp is zero."""
    header = getattr(message, "header", None)
    if header is None or (header.stamp.sec == 0 and header.stamp.nanosec == 0):
        return None
    return float(header.stamp.sec) + 1e-9 * float(header.stamp.nanosec)


def as_multi_array(kind: Any, values: Float64[Array, " n"]) -> Any:
    """A Float64MultiArray, as ros2_control's forward controllers take it: in the order of the controller's joints.

    Args:
        kind: the message class.
        values: float64 (n,).

    Raises:
        NotFiniteError: a number; so in every function that makes a message.
    """
    _require_finite(values, "command", [str(place) for place in range(len(values))])
    message = kind()
    message.data = array("d", values.tolist())
    return message


def as_trajectory(
    kind: Any, point_kind: Any, names: Sequence[str], position: Float64[Array, " J"], *, time_s: float,
    velocity: Float64[Array, " J"] | None = None,
) -> Any:  # fmt: skip
    """A JointTrajectory of one point; its stamp 0 means "from now on" to joint_trajectory_controller.

    Args:
        kind, point_kind: trajectory_msgs' JointTrajectory and JointTrajectoryPoint.
        names: of the joints.
        position, velocity: at the point, float64 (J,); velocity None: the controller ends at rest there.
        time_s: until the point.
    """
    _require_finite(position, "command, position", names)
    message, point = kind(), point_kind()
    message.joint_names = list(names)
    point.positions = array("d", position.tolist())
    if velocity is not None:
        _require_finite(velocity, "command, velocity", names)
        point.velocities = array("d", velocity.tolist())
    _set_time(point.time_from_start, time_s)
    message.points = [point]
    return message


def as_joint_state(kind: Any, names: Sequence[str], position: Float64[Array, " J"]) -> Any:
    """A JointState of positions by name, as controllers that take targets by name want them."""
    _require_finite(position, "command, position", names)
    message = kind()
    message.name = list(names)
    message.position = array("d", position.tolist())
    return message


def as_pose(kind: Any, pose: Float64[Array, "7"], *, frame: str, stamp_s: float) -> Any:
    """A PoseStamped of m and quaternion wxyz.

    Args:
        kind: the message class.
        pose: float64 (7,).
        frame: of the header.
        stamp_s: of the header, on the receiver's clock.
    """
    _require_finite(pose, "command, pose", ("x", "y", "z", "qw", "qx", "qy", "qz"))
    message = kind()
    message.header.frame_id = frame
    _set_time(message.header.stamp, stamp_s)
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z, q.w, q.x, q.y, q.z = pose.tolist()
    return message


def as_twist(kind: Any, twist: Float64[Array, "6"], *, frame: str, stamp_s: float) -> Any:
    """A TwistStamped of m/s and rad/s; arguments as `as_pose`. MoveIt Servo drops old stamps."""
    _require_finite(twist, "command, twist", ("vx", "vy", "vz", "wx", "wy", "wz"))
    message = kind()
    message.header.frame_id = frame
    _set_time(message.header.stamp, stamp_s)
    v, w = message.twist.linear, message.twist.angular
    v.x, v.y, v.z, w.x, w.y, w.z = twist.tolist()
    return message


def as_gripper(kind: Any, opening: float, card: GripperCard) -> Any:
    """A gripper's command: Float64MultiArray or Float64 of the opening, Bool of whether it is nearer to open.

    Raises:
        NotFiniteError: the opening.
        DeployError: another kind of message.
    """
    _require_finite(np.array([opening], np.float64), "command, gripper", ("opening",))
    name = kind.__name__
    if name == "Float64MultiArray":
        return as_multi_array(kind, np.array([opening], np.float64))
    message = kind()
    if name == "Float64":
        message.data = float(opening)
    elif name == "Bool":
        message.data = abs(opening - card.open) < abs(opening - card.closed)
    else:
        raise DeployError(
            "gripper topic", expected="Float64MultiArray, Float64 or Bool", got=name, hint="Correct the robot's card."
        )
    return message


def _set_time(time: Any, seconds: float) -> None:
    nanoseconds = round(seconds * 1e9)
    time.sec, time.nanosec = nanoseconds // 10**9, nanoseconds % 10**9


def _require_frame(message: Any, what: str, frames: tuple[str, ...]) -> None:
    wanted = [frame for frame in frames if frame]
    got = message.header.frame_id.lstrip("/")
    if wanted and got not in wanted:
        raise DeployError(
            f"{what}, frame_id", expected=" or ".join(map(repr, wanted)), got=repr(got),
            hint="Have the driver publish in that frame, or correct base_frame and tool_frame in the robot's card.",
        )  # fmt: skip


def _require_finite(values: np.ndarray, where: str, names: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NotFiniteError(
            where, expected="finite numbers", got=", ".join(f"{names[place]} = {values[place]}" for place in bad),
            hint="It was refused.",
        )  # fmt: skip
