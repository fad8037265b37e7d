"""Records a robot's topics as episodes: one raw MCAP file each, as they came, inputs and commands.

Services (std_srvs): ~/start_episode, ~/stop_episode, ~/discard_episode (Trigger) and ~/mark_success (SetBool). The dataset
is made from the files afterwards, on a machine that has the `data` extra, by `robot-rl data import` (the node prints the
line): so nothing is resampled while the robot moves, and a wrong choice of rate or alignment can be taken back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import SetBool, Trigger

from robot_rl.deploy.robot_card import RobotCard, TopicCard, load_robot_card
from robot_rl.errors import DeployError, RobotRlError

from .raw_log import RawLog
from .ros2_definitions import definition
from .ros2_link import message_type
from .ros2_signals import init_until_signal


class Recorder:
    """One recorder node; its topics are those of a robot card.

    Args:
        node: to subscribe and to serve with.
        card: of the robot, with ros2 topics.
        folder: for episode_<number>.mcap; numbering goes on where it ended.

    Raises:
        DeployError: a card without topics.
        ConfigError: a message type that is not known.
    """

    def __init__(self, node: Node, card: RobotCard, folder: Path) -> None:
        if card.ros2 is None:
            raise DeployError(
                f"robot {card.name!r}", expected="ros2 topics", got="none", hint="Add `ros2:` to its card."
            )
        self._node, self._card, self._folder = node, card, folder
        self._log: RawLog | None = None
        self._success: bool | None = None
        self._began_s = 0.0
        self._topics: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        for topic in [*card.ros2.inputs.values(), *card.ros2.outputs.values()]:
            self._subscribe(topic, card.ros2.namespace)
        for name, kind, call in (
            ("start_episode", Trigger, self.start), ("stop_episode", Trigger, self.stop),
            ("discard_episode", Trigger, self.discard), ("mark_success", SetBool, self.mark),
        ):  # fmt: skip
            node.create_service(kind, f"~/{name}", call)
        self._say(f"ready: {len(self._topics)} topics of {card.name} into {folder}")

    def _subscribe(self, card: TopicCard, namespace: str) -> None:
        kind = message_type(card.type)
        topic = card.topic if card.topic.startswith("/") or not namespace else f"/{namespace.strip('/')}/{card.topic}"
        full = self._node.resolve_topic_name(topic)
        self._topics[full], self._counts[full] = f"{kind.__module__.split('.')[0]}/msg/{card.type}", 0
        # Best effort matches publishers of either kind; durability and depth as the card has them.
        durability = DurabilityPolicy.VOLATILE if card.durability == "volatile" else DurabilityPolicy.TRANSIENT_LOCAL
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=max(card.depth, 50),
            reliability=ReliabilityPolicy.BEST_EFFORT, durability=durability,
        )  # fmt: skip
        self._node.create_subscription(kind, full, lambda data: self._hear(full, data), qos, raw=True)

    def _hear(self, topic: str, data: bytes) -> None:
        self._counts[topic] += 1
        if self._log is not None:
            self._log.add(topic, bytes(data))

    def start(self, _request: Any, response: Any) -> Any:
        """Begin an episode; refused while one runs, or while a topic of the inputs is silent."""
        if self._log is not None:
            return self._answer(response, False, f"{self._log.path.name} runs already; stop or discard it first")
        silent = [topic for topic, count in self._counts.items() if count == 0 and topic in self._inputs()]
        if silent:
            return self._answer(response, False, f"nothing came yet on {', '.join(silent)}")
        numbers = [int(file.name[8:14]) for file in self._folder.glob("episode_??????.mcap*")]
        path = self._folder / f"episode_{max(numbers, default=-1) + 1:06d}.mcap"
        try:
            log = RawLog(path)
            for topic, type_name in self._topics.items():
                log.add_topic(topic, type_name, definition(type_name))
        except (RobotRlError, OSError) as error:
            return self._answer(response, False, str(error))
        self._log, self._success, self._began_s = log, None, time.monotonic()
        return self._answer(response, True, f"recording {path.name}")

    def _inputs(self) -> set[str]:
        count = len(self._card.ros2.inputs) if self._card.ros2 is not None else 0
        return set(list(self._topics)[:count])

    def mark(self, request: Any, response: Any) -> Any:
        """Say whether the running episode succeeded."""
        if self._log is None:
            return self._answer(response, False, "no episode runs")
        self._success = bool(request.data)
        return self._answer(response, True, f"success {self._success}")

    def stop(self, _request: Any, response: Any) -> Any:
        """End the episode and keep it."""
        return self._end(response, keep=True)

    def discard(self, _request: Any, response: Any) -> Any:
        """End the episode and throw it away."""
        return self._end(response, keep=False)

    def _end(self, response: Any, *, keep: bool) -> Any:
        if self._log is None:
            return self._answer(response, False, "no episode runs")
        log, self._log = self._log, None
        facts = {
            "robot": self._card.name,
            "success": "not said" if self._success is None else str(self._success).lower(),
            "duration_s": f"{time.monotonic() - self._began_s:.3f}",
            "dropped": str(sum(log.dropped.values())),
        }
        try:
            path = log.close(facts, keep=keep)
        except RobotRlError as error:
            return self._answer(response, False, str(error))
        lost = {topic: count for topic, count in log.dropped.items() if count}
        words = f"{path} " if path else "discarded "
        return self._answer(
            response, not lost, words + (f"LOST messages: {lost}" if lost else f"{sum(log.written.values())} messages")
        )

    def _answer(self, response: Any, success: bool, message: str) -> Any:
        response.success, response.message = success, message
        self._say(message)
        return response

    def _say(self, message: str) -> None:
        self._node.get_logger().info(message)

    def close(self) -> None:
        """Keep an episode that still runs."""
        if self._log is not None:
            self._end(Trigger.Response(), keep=True)
        self._say(f"import: robot-rl data import {self._folder} demos.zarr --help")


def main(words: Sequence[str] | None = None) -> int:
    """Run the node until a signal comes."""
    ended = init_until_signal(words)
    node = rclpy.create_node("robot_rl_recorder")
    recorder: Recorder | None = None
    try:
        robot = node.declare_parameter("robot", "").value
        folder = node.declare_parameter("dataset", "").value
        if not robot or not folder:
            raise DeployError(
                "recorder",
                expected="parameters robot and dataset",
                got=f"{robot!r} and {folder!r}",
                hint="-p robot:=NAME",
            )
        recorder = Recorder(node, load_robot_card(str(robot)), Path(str(folder)))
        while not ended.is_set():
            rclpy.spin_once(node, timeout_sec=0.1)
    except RobotRlError as error:
        node.get_logger().fatal(str(error))
        return error.exit_code
    finally:
        if recorder is not None:
            recorder.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
