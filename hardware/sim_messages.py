"""What the simulated arm says and hears as ROS 2 messages; its own noise on top of what physics gives."""

from __future__ import annotations

import io
import time
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from robot_rl.errors import DeployError
from robot_rl.types import Goal

from .ros2_link import message_type
from .ros2_messages import as_joint_state, as_multi_array, as_pose, numbers_of, pose_of

STREAMS = ("joints", "pose", "state")
IMAGE = "image/"


class Noise:
    """Normal noise of a robot's sensors, from a seed.

    Args:
        joints_rad, place_m, state: standard deviations: of joint positions, of the tool's place, of scene_state.
        seed: of all of it.
    """

    def __init__(self, joints_rad: float, place_m: float, state: float, *, seed: int) -> None:
        self.joints_rad, self.place_m, self.state = joints_rad, place_m, state
        self._rng = np.random.default_rng(seed)

    def on(self, values: np.ndarray, deviation: float) -> np.ndarray:
        """Values with noise; the very same where there is none."""
        return values + self._rng.normal(0.0, deviation, values.shape) if deviation else values


class SimMessages:
    """Makes the messages of one step.

    Args:
        names: of all joints.
        frame: base frame.
        noise: see Noise.
        clock: of the node.
    """

    def __init__(self, names: tuple[str, ...], frame: str, noise: Noise, *, clock: Any) -> None:
        self.frame, self._names, self._noise, self._clock = frame, names, noise, clock

    def make(self, state: Any, *, stamp_s: float, streams: Iterable[str]) -> dict[str, Any]:
        """Stream -> message.

        Args:
            state: LiveState of envs/maniskill_live.py.
            stamp_s: of its capture, CLOCK_MONOTONIC.
            streams: those wanted; what the robot does not have is left out.
        """
        makers = {"joints": self._joints, "pose": self._pose, "state": self._state}
        out = {}
        for stream in streams:
            if stream in makers:
                made = makers[stream](state)
            else:
                made = _jpeg(state.frames[stream]) if stream.startswith(IMAGE) and stream in state.frames else None
            if made is not None:
                out[stream] = made
                if hasattr(made, "header"):
                    made.header.stamp = self._stamp(stamp_s)
        return out

    def _joints(self, state: Any) -> Any:
        position = self._noise.on(state.position, self._noise.joints_rad)
        message = as_joint_state(message_type("JointState"), self._names, position)
        message.velocity = array("d", state.velocity.tolist())
        return message

    def _pose(self, state: Any) -> Any:
        pose = np.concatenate([self._noise.on(state.pose[:3], self._noise.place_m), state.pose[3:]])
        return as_pose(message_type("PoseStamped"), pose, frame=self.frame, stamp_s=0.0)

    def _state(self, state: Any) -> Any:
        if "state" not in state.frames:
            return None
        values = self._noise.on(state.frames["state"].astype(np.float64), self._noise.state)
        return as_multi_array(message_type("Float64MultiArray"), values)

    def _stamp(self, stamp_s: float) -> Any:
        """A time of CLOCK_MONOTONIC on the node's clock."""
        from builtin_interfaces.msg import Time

        nanoseconds = self._clock.now().nanoseconds - round((time.monotonic() - stamp_s) * 1e9)
        return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def goal_of(message: Any, joints: tuple[str, ...], *, frame: str) -> Goal:
    """What a command message asks of the arm.

    Args:
        message: PoseStamped, TwistStamped, Float64MultiArray or JointTrajectory (its last point).
        joints: of the arm, in order.
        frame: the base frame; a pose or twist of another one is refused. An empty one is taken as it.

    Raises:
        DeployError: another frame, other joints, or numbers that are not finite.
    """
    kind = type(message).__name__
    if kind == "PoseStamped":
        return Goal(pose=pose_of(message, frame=frame if message.header.frame_id else ""))
    if kind == "TwistStamped":
        if message.header.frame_id not in ("", frame):
            raise DeployError(
                kind, expected=f"frame {frame!r}", got=message.header.frame_id, hint="Send it in base_frame."
            )
        v, w = message.twist.linear, message.twist.angular
        return Goal(twist=np.array([v.x, v.y, v.z, w.x, w.y, w.z], np.float64))
    if kind == "JointTrajectory":
        names = list(message.joint_names)
        if sorted(names) != sorted(joints) or not message.points or len(message.points[-1].positions) != len(names):
            raise DeployError(kind, expected=f"a point of joints {list(joints)}", got=str(names), hint="By name.")
        last = message.points[-1].positions
        return Goal(position=np.array([last[names.index(joint)] for joint in joints], np.float64))
    numbers = numbers_of(message)
    if len(numbers) != len(joints):
        raise DeployError(kind, expected=f"{len(joints)} numbers", got=str(len(numbers)), hint="In the card's order.")
    return Goal(position=numbers)


def _jpeg(image: np.ndarray) -> Any:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return message_type("CompressedImage")(format="rgb8; jpeg compressed bgr8", data=array("B", buffer.getvalue()))
