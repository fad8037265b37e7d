"""The two ends of `robot-rl bench ros2`: a fake arm in a process of its own, and a loop around Ros2Robot in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from robot_rl.arrays import Array, UInt8
from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.robot_card import CommandKind, RobotCard, Ros2Card, TopicCard
from robot_rl.deploy.schedule import Clock, MonotonicClock, Schedule
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.errors import DeployError
from robot_rl.types import Goal

from .ros2_link import message_type
from .ros2_robot import Ros2Robot, Ros2RobotConfig

JOINTS = tuple(f"joint{number}" for number in range(1, 8))
SHAPE = (480, 640, 3)
CAMERA_HZ = 30.0
_DOMAIN = 101
_CONNECT_S = 30.0


def echo(rate_hz: float, *, seconds: float, in_loop: bool = True, domain_id: int = _DOMAIN) -> dict[str, Any]:
    """Joint states out, commands back.

    Args:
        rate_hz: of the joint states.
        seconds: how long.
        in_loop: commands come from a loop in a thread of its own that reads the newest state, as the control loop does; else
            from the node's thread, once for every message.
        domain_id: ROS domain; only this machine hears it.

    Returns:
        JSON types: `sent`, `heard` (by Ros2Robot), `handled` (share that came back), `times_s` of the whole ways, `p50_ms`,
        `p99_ms`, `p99.9_ms`, `max_ms` of them, `own_p99_ms` from receipt to command sent in this process, `interval_p99_ms`
        how far the intervals between two echoes are from the period.

    Raises:
        DeployError: ROS 2 is not installed, or the processes do not find each other.
    """
    told, heard, own_s = _play(
        {"kind": "joints", "rate_hz": rate_hz, "seconds": seconds},
        "JointState",
        domain_id,
        _commanding,
        in_loop=in_loop,
    )
    times = np.array(told["times_s"])
    intervals = np.abs(np.diff(np.array(told["came_s"])) - 1 / rate_hz)
    return {
        "rate_hz": rate_hz, "seconds": seconds, "in_loop": in_loop, "sent": told["sent"], "heard": heard,
        "handled": len(times) / told["sent"], "times_s": times.tolist(), **_spread(times),
        "own_p99_ms": _ms(own_s, 99.0), "interval_p99_ms": _ms(intervals, 99.0), "sender_late_p99_ms": told["late_p99_ms"],
    }  # fmt: skip


def camera(kind: str, reliability: str, *, seconds: float, domain_id: int = _DOMAIN) -> dict[str, Any]:
    """Pictures of 640 x 480 at 30 Hz.

    Args:
        kind: "raw" (rgb8) or "compressed" (JPEG of quality 90).
        reliability: of the publisher, "best_effort" or "reliable".
        seconds: how long.
        domain_id: as in `echo`.

    Returns:
        JSON types: `sent`, `delivered` (share), `times_s` from stamp to pixels in a Reading, and their spread in ms.

    Raises:
        DeployError: as `echo`.
    """
    topic = {"raw": "Image", "compressed": "CompressedImage"}[kind]
    job = {"kind": kind, "rate_hz": CAMERA_HZ, "seconds": seconds, "reliability": reliability}
    told, _, pictures = _play(job, topic, domain_id, _looking)
    ages = dict(pictures)
    numbers = [number for number in ages if number >= 0]
    times = np.array([ages[number] for number in numbers])
    return {
        "kind": kind, "reliability": reliability, "sent": told["sent"], "delivered": len(numbers) / told["sent"],
        "times_s": times.tolist(), **_spread(times), "sender_late_p99_ms": told["late_p99_ms"],
    }  # fmt: skip


def _spread(times: np.ndarray) -> dict[str, float | None]:
    most = float(1e3 * times.max()) if times.size else None
    return {f"p{percent:g}_ms": _ms(times, percent) for percent in (50.0, 99.0, 99.9)} | {"max_ms": most}


def _ms(seconds: Any, percent: float) -> float | None:
    return float(1e3 * np.percentile(seconds, percent)) if len(seconds) else None


def _card(topic: str) -> RobotCard:
    ones = (1.0,) * len(JOINTS)
    inputs = {"joints": TopicCard("bench/joint_states", "JointState")}
    if topic != "JointState":
        inputs["image/camera"] = TopicCard("bench/camera", topic)
    return RobotCard(
        name="bench", robot="bench", command=CommandKind.joint_position, joints=JOINTS, control_hz=100.0, proprio={},
        limits=JointLimits(JOINTS, tuple(-1e9 for _ in ones), tuple(1e9 for _ in ones), ones, ones, ones),
        thresholds=Thresholds(observation_s=5.0, connect_s=_CONNECT_S),
        ros2=Ros2Card("", inputs, {"arm": TopicCard("bench/commands", "Float64MultiArray", reliability="reliable")}),
    )  # fmt: skip


def _play(
    job: dict[str, Any], topic: str, domain_id: int, act: Callable[[Ros2Robot], Any], *, in_loop: bool = True
) -> tuple[dict[str, Any], int, list[Any]]:
    """Run the fake arm, act on everything new until it ends; what it told, messages heard, and what `act` returned."""
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    arm = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"ROS_DOMAIN_ID": str(domain_id)},
    )  # fmt: skip
    robot, news, acted = (
        Ros2Robot(Ros2RobotConfig(domain_id=domain_id, node="bench_robot"), card=_card(topic)),
        threading.Event(),
        [],
    )
    try:
        robot.connect()
        stream = "joints" if topic == "JointState" else "image/camera"
        robot.when_heard(stream, news.set if in_loop else lambda: acted.append(act(robot)))
        assert arm.stdin is not None
        assert arm.stdout is not None
        arm.stdin.write("go\n")
        arm.stdin.flush()
        told: list[str] = []
        words = arm.stdout
        reader = threading.Thread(target=lambda: told.append(words.read()), daemon=True)
        reader.start()
        while reader.is_alive():
            if news.wait(0.2):
                news.clear()
                acted.append(act(robot))
        count = robot.facts()[stream]["count"]
    finally:
        robot.close()
        arm.kill()
        arm.wait()
    if not told or not told[0].strip():
        raise DeployError(
            "bench ros2",
            expected="an answer of the fake arm",
            got=f"exit {arm.returncode}",
            hint="See its words above.",
        )
    return json.loads(told[0].splitlines()[-1]), count, acted


def _commanding(robot: Ros2Robot) -> float:
    reading = robot.read()
    robot.command(Goal(position=reading.position))
    return time.monotonic() - reading.stamps["joints"]


def _looking(robot: Ros2Robot) -> tuple[int, float]:
    """Number and age of the newest picture."""
    reading = robot.read()
    age_s = time.monotonic() - reading.stamps["image/camera"]
    return number_in(reading.frames["image/camera"]), age_s


def number_in(pixels: UInt8[Array, "H W 3"]) -> int:
    """The number that `picture` has written."""
    blocks = pixels[:16, : 16 * 16, 0].reshape(16, 16, 16).mean(axis=(0, 2)) > 127
    return sum(1 << place for place, bit in enumerate(blocks.tolist()) if bit) - 1


def picture(number: int) -> UInt8[Array, "H W 3"]:
    """A picture that tells its number (-1 to 65,534) through JPEG: 16 blocks of 16 x 16 pixels, white for a one; noise below."""
    noise = np.random.default_rng(0).integers(0, 64, (SHAPE[0] // 8, SHAPE[1] // 8, 3), dtype=np.uint8)
    out: np.ndarray = (
        np.repeat(np.repeat(noise, 8, axis=0), 8, axis=1)
        + np.linspace(0, 180, SHAPE[1]).astype(np.uint8)[None, :, None]
    )
    for place in range(16):
        out[:16, 16 * place : 16 * place + 16] = 255 if (number + 1) >> place & 1 else 0
    return out


class _Arm:
    """The other process: sends on an absolute schedule, notes what comes back."""

    def __init__(self, job: dict[str, Any]) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy

        rclpy.init(args=[])
        self.node = rclpy.create_node("bench_arm", enable_rosout=False, start_parameter_services=False)
        reliability = ReliabilityPolicy[job.get("reliability", "reliable").upper()]
        self.joints = self.node.create_publisher(message_type("JointState"), "bench/joint_states", 10)
        topic = {"raw": "Image", "compressed": "CompressedImage"}.get(job["kind"])
        qos = QoSProfile(depth=5, reliability=reliability)
        self.camera = self.node.create_publisher(message_type(topic), "bench/camera", qos) if topic else None
        self.node.create_subscription(message_type("Float64MultiArray"), "bench/commands", self._came, 10)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.clock: Clock = MonotonicClock()
        self.sent_s: dict[int, float] = {}
        self.came: list[tuple[int, float]] = []

    def _came(self, message: Any) -> None:
        number = int(message.data[0])
        if number >= 0:
            self.came.append((number, time.monotonic()))

    def send(self, number: int, job: dict[str, Any]) -> None:
        if job["kind"] == "joints" or number < 0 or number % 3 == 0:
            self.send_joints(number if job["kind"] == "joints" else -1)
        if self.camera is not None:
            self.send_picture(number, job["kind"])

    def send_joints(self, number: int) -> None:
        message = message_type("JointState")(name=list(JOINTS))
        values = array("d", [float(number), *[0.5] * 6])
        message.position, message.velocity, message.effort = values, values, values
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.sent_s[number] = time.monotonic()
        self.joints.publish(message)

    def send_picture(self, number: int, kind: str) -> None:
        assert self.camera is not None
        pixels = picture(number)
        stamp = self.node.get_clock().now().to_msg()
        if kind == "raw":
            message = message_type("Image")(height=SHAPE[0], width=SHAPE[1], step=SHAPE[1] * 3, encoding="rgb8")
            message.data = array("B", pixels.tobytes())
        else:
            from PIL import Image

            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
            message = message_type("CompressedImage")(
                format="rgb8; jpeg compressed bgr8", data=array("B", buffer.getvalue())
            )
        message.header.stamp = stamp
        self.camera.publish(message)

    def rest(self, until_s: float) -> None:
        """Hear what comes until a time."""
        while (left_s := until_s - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left_s)


def _main(job: dict[str, Any]) -> None:
    arm, started = _Arm(job), threading.Event()
    threading.Thread(target=lambda: started.set() if sys.stdin.readline() else os._exit(1), daemon=True).start()
    while not started.is_set():
        arm.send(-1, job)
        arm.rest(time.monotonic() + 1 / job["rate_hz"])
    count = round(job["seconds"] * job["rate_hz"])
    schedule = Schedule(job["rate_hz"], clock=arm.clock)
    for number in range(count):
        arm.rest(schedule.due_s(number))
        schedule.jitter.late.add(max(time.monotonic() - schedule.due_s(number), 0.0))
        arm.send(number, job)
    arm.rest(time.monotonic() + 0.5)
    times = [came_s - arm.sent_s[number] for number, came_s in dict(reversed(arm.came)).items()]
    sys.stdout.write(
        json.dumps({
            "sent": count, "times_s": times, "came_s": [at for _, at in arm.came],
            "late_p99_ms": 1e3 * schedule.jitter.late.percentile_s(99),
        }) + "\n"
    )  # fmt: skip
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
