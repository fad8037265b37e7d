"""A robot driver's topics, and nothing behind them: a ROS 2 node in a process of its own for tests of what talks to one.

Started by `FakeArm(card, domain)`. It publishes the inputs of a card and prints every command it hears as a JSON line; a
JSON object a line on its stdin changes what it does (see Options). Position of joint i of the card is 0.1 * (i + 1).
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

WAIT_S = 20.0


@dataclass
class Options:
    """What the arm does; every field may be changed while it runs."""

    rate_hz: float = 100.0
    reverse: bool = False  # joints in the opposite order
    shuffle: bool = False  # in another order in every message
    drop: str = ""  # a joint left out
    twice: str = ""  # a joint told twice
    extra: bool = False  # a joint nobody asked for
    nan: bool = False  # position of the first joint
    velocity: bool = True
    still: bool = False  # velocities of zero; else 10 times the position
    clock_s: float = 0.0  # its clock before ours
    frozen: bool = False  # stamps stand still
    zero_stamp: bool = False
    silent: bool = False
    mute: str = ""  # a stream that is not told
    camera_every: int = 1  # ticks between two pictures
    follow: bool = False  # its pose is that of the last command
    frame: str = ""  # of the pose; "": the card's
    shift: float = 0.0  # added to every position


class FakeArm:
    """The other process, seen from the test.

    Args:
        card: name or YAML file of a robot card.
        domain: its ROS domain.
        reliability, durability: of its publishers.
        also: more topics to listen to: name in `heard` -> [topic, type].
        inside: words before its command line, for example those that enter a network namespace.
        options: first values of Options.
    """

    def __init__(
        self, card: str | Path, domain: int, *, reliability: str = "reliable", durability: str = "volatile",
        also: dict[str, list[str]] | None = None, inside: tuple[str, ...] = (), **options: Any,
    ) -> None:  # fmt: skip
        settings = {"card": str(card), "reliability": reliability, "durability": durability, "options": options}
        settings["also"] = also or {}
        discovery = "SUBNET" if inside else "LOCALHOST"  # a namespace of its own has no other machine in it
        self._process = subprocess.Popen(
            [*inside, sys.executable, __file__, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": discovery}, text=True,
        )  # fmt: skip
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.heard.put(json.loads(line))

    def set(self, **options: Any) -> float:
        """Change options; returns when the arm has taken them, and tells when that was (CLOCK_MONOTONIC)."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(options) + "\n")
        self._process.stdin.flush()
        return float(self.expect(lambda entry: "options" in entry)["monotonic_s"])

    def expect(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next thing told that fits; what comes before is thrown away."""
        end = time.monotonic() + WAIT_S
        while True:
            entry = self.heard.get(timeout=max(end - time.monotonic(), 0.01))
            if fits(entry):
                return entry

    def kill(self) -> None:
        """As a power cut would."""
        self._process.kill()
        self._process.wait()


def until(holds: Callable[[], bool], *, what: str) -> None:
    """Wait for a fact."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"not within {WAIT_S} s: {what}"
        time.sleep(0.005)


def _main(settings: dict[str, Any]) -> None:
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    from robot_rl.deploy.robot_card import load_robot_card
    from robot_rl.hardware.ros2_link import message_type

    card, options = load_robot_card(settings["card"]), Options(**settings["options"])
    rclpy.init()
    node = rclpy.create_node("fake_arm")
    qos = QoSProfile(
        depth=10, reliability=ReliabilityPolicy[settings["reliability"].upper()],
        durability=DurabilityPolicy[settings["durability"].upper()],
    )  # fmt: skip
    publishers = {
        name: (node.create_publisher(message_type(topic.type), topic.topic, qos), message_type(topic.type))
        for name, topic in card.ros2.inputs.items()
    }

    def say(entry: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()

    followed: dict[str, Any] = {}

    def hear(name: str, message: Any) -> None:
        followed[name] = message
        say({name: plain(message)})

    topics = {name: [topic.topic, topic.type] for name, topic in card.ros2.outputs.items()} | settings["also"]
    for name, (topic, kind) in topics.items():
        node.create_subscription(message_type(kind), topic, partial(hear, name), qos)

    count, last_stamp = 0, [0, 0]

    def tick() -> None:
        nonlocal count
        if options.silent:
            return
        count += 1
        if not options.follow:
            followed.clear()
        if not options.frozen:
            nanoseconds = node.get_clock().now().nanoseconds + round(options.clock_s * 1e9)
            last_stamp[:] = divmod(nanoseconds, 10**9)
        for name, (publisher, kind) in publishers.items():
            if name.startswith("image/") and count % options.camera_every:
                continue
            message = _message(name, kind, card, options, count)
            if message is not None and name != options.mute:
                if (place := followed.get("arm")) is not None and type(place) is kind:
                    message.pose = place.pose
                if hasattr(message, "header") and not options.zero_stamp:
                    message.header.stamp.sec, message.header.stamp.nanosec = last_stamp
                publisher.publish(message)

    timer = node.create_timer(1 / options.rate_hz, tick)

    def commands() -> None:
        for line in sys.stdin:
            for key, value in json.loads(line).items():
                setattr(options, key, value)
            timer.timer_period_ns = round(1e9 / options.rate_hz)
            say({"options": dataclasses.asdict(options), "monotonic_s": time.monotonic()})
        os._exit(0)  # the test is gone

    threading.Thread(target=commands, daemon=True).start()
    rclpy.spin(node)


def _message(name: str, kind: Any, card: Any, options: Options, count: int) -> Any:
    message = kind()
    if kind.__name__ == "JointState":
        joints = {joint: 0.1 * (place + 1) + options.shift for place, joint in enumerate(card.joints)}
        if card.gripper is not None:
            joints[card.gripper.joint] = 0.02
        joints |= dict.fromkeys(card.mimic, 0.02)
        if options.nan:
            joints[card.joints[0]] = float("nan")
        if options.extra:
            joints["a_stranger"] = 9.0
        names = [joint for joint in joints if joint != options.drop]
        if options.reverse:
            names.reverse()
        if options.shuffle:
            turn = count % len(names)
            names = names[turn:] + names[:turn]
        if options.twice:
            names.append(options.twice)
        message.name, message.position = names, [joints[joint] for joint in names]
        speed = 0.0 if options.still else 10.0
        message.velocity = [speed * joints[joint] for joint in names] if options.velocity else []
    elif kind.__name__ == "PoseStamped":
        message.header.frame_id = options.frame or card.ros2.base_frame
        message.pose.position.x, message.pose.position.y, message.pose.position.z = 0.4, 0.1, 0.3
        message.pose.orientation.x, message.pose.orientation.w = 0.6, 0.8
    elif kind.__name__ == "WrenchStamped":
        message.header.frame_id, message.wrench.force.z = card.ros2.tool_frame, 5.0
    elif kind.__name__ == "Float64MultiArray":
        message.data = [float(value) for value in range(5)]
    elif kind.__name__ == "Image":
        message.height, message.width, message.encoding, message.step = 4, 6, "bgr8", 18
        message.data = bytes([1, 2, 3] * 24)
    else:
        return None
    return message


def plain(message: Any) -> Any:
    """JSON types of a message."""
    if hasattr(message, "get_fields_and_field_types"):
        return {name: plain(getattr(message, name)) for name in message.get_fields_and_field_types()}
    if isinstance(message, str | bool | int | float):
        return message
    return [plain(entry) for entry in message]


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
