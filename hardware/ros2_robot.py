"""A robot behind ROS 2 topics: Franka, UR, xArm, SO-101, the simulated arm, or whatever a card describes.

`connect` names every topic that is missing, silent, of another type or of a QoS profile that can't serve us, every joint that
the driver does not tell, and every stream that is too slow or too old. Until the first `command`, nothing is published.
Commands go out as the card has it: Float64MultiArray or JointState (joint_position), JointTrajectory, PoseStamped, TwistStamped,
and the gripper's own topic. A number that is not finite is never published.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from robot_rl.deploy.robot_card import CommandKind, RobotCard, load_robot_card
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import Goal, Reading

from .ros2_cloud import cloud_reader
from .ros2_commands import arm_message, fitting, hold_goal, require_topics
from .ros2_connect import Connecting, facts_of, require_numbers, require_sizes
from .ros2_link import Ros2Link, Stream, message_type
from .ros2_messages import as_gripper
from .ros2_reading import Heard, ReadingMaker, keys_of, require_spec, spec_of, streams_for, with_measured

log = logging.getLogger("robot_rl.ros2")


@dataclass(frozen=True)
class Ros2RobotConfig:
    """How to reach the robot.

    Attributes:
        card: a YAML file or the name of a robot card.
        domain_id: null: ROS_DOMAIN_ID of the environment.
        node: name of our node.
        namespace: of relative topic names; null: the card's.
        streams: key of the policy's observation -> input of the card, where they differ.
        inputs: inputs of the card to listen to, where not all are wanted (a watchdog needs few); null: what is needed.
        points_camera: camera of the card whose hand-eye calibration brings clouds into the base frame; "": they come in it.
    """

    card: str = "sim_panda"
    domain_id: int | None = None
    node: str = "robot_rl"
    namespace: str | None = None
    streams: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] | None = None
    points_camera: str = ""


class Ros2Robot:
    """See the text of this module, and contracts.Robot.

    Args:
        config: see Ros2RobotConfig.
        card: instead of the one that the config names.
        spec: the policy's; then `spec` is that one, less the keys that this robot can't give. None: `spec` is made of the
            card, and has cameras and state from `connect` on.

    Raises:
        ConfigError: no such card, a card without topics, one that contradicts itself, or a points_camera that is no use.
        DataError: a calibration of points_camera that can't be read.
        DeployError: a policy that was made for another robot, with both declarations.
    """

    def __init__(self, config: Ros2RobotConfig, *, card: RobotCard | None = None, spec: EnvSpec | None = None) -> None:
        self.config = config
        self.card = load_robot_card(config.card) if card is None else card
        require_topics(self.card)
        keys = keys_of(self.card, spec, config.streams)
        self._names = streams_for(self.card, keys) if config.inputs is None else config.inputs
        self._has_spec = spec is not None
        if spec is None:
            self.spec = spec_of(self.card)
        else:
            require_spec(spec, self.card)
            ActionReader(spec, self.card)  # refuses what this robot can't be told
            known = {key: array for key, array in spec.observation.items() if key == "proprio" or key in keys}
            self.spec = replace(spec, observation=known)
        heard = {key: stream for key, stream in keys.items() if stream in self._names}
        self._maker = ReadingMaker(self.card, heard, cloud=cloud_reader(self.card, spec, config.points_camera))
        self._link: Ros2Link | None = None
        self._streams: dict[str, Stream] = {}
        self._publishers: dict[str, Any] = {}
        self._sent: Goal | None = None
        self._may_move = False

    def connect(self) -> None:
        """Find every topic, hear every stream, and check what it says; nothing is published.

        Raises:
            DeployError: naming topic, stream or joint; see the text of this module.
        """
        if self._link is not None:
            return
        ros2 = self.card.ros2
        assert ros2 is not None
        namespace = ros2.namespace if self.config.namespace is None else self.config.namespace
        link = self._link = Ros2Link(self.config.node, namespace=namespace, domain_id=self.config.domain_id)
        try:
            inputs = {name: ros2.inputs[name] for name in self._names}
            self._streams = {name: Stream(name, topic, link.full(topic.topic)) for name, topic in inputs.items()}
            self._publishers = {name: link.advertise(topic) for name, topic in ros2.outputs.items()}
            connecting = Connecting(link, self.card, self._streams, self._publishers)
            connecting.wait()
            connecting.check_streams()
            self._check(self.read())
        except BaseException:
            self.close()
            raise
        for name, facts in self.facts().items():
            where = f"{facts['topic']}, {facts['rate_hz']:.4g} Hz, {facts['age_s']:.3f} s old, {facts['qos']}"
            log.info("%s: %s", name, where)

    def read(self) -> Reading:
        """The newest of every stream, with the time of its capture.

        Raises:
            DeployError: before `connect`, after the connection ended, or a message that can't be read: a joint is missing,
                another frame. Numbers that are not finite are handed on as NaN; the safety layer stops at them.
        """
        self._require_link()
        return self._maker.make(self._heard())

    def command(self, goal: Goal) -> Goal:
        """Publish one goal; returns it with the gripper inside its range.

        Raises:
            DeployError: before `connect`, a goal that does not fit the card or is not finite, or nobody listens any more.
        """
        self._require_link()
        sent, arm = fitting(self.card, goal), self._publishers["arm"]
        if not arm.get_subscription_count():
            raise DeployError(
                f"topic {arm.topic_name}", expected="the robot's controller to listen", got="nobody",
                hint="Its node ended or its controller was stopped; start it, then deploy again.",
            )  # fmt: skip
        message, gripper = self._message(sent), self._publishers.get("gripper")
        self._may_move = True  # noted before: Ctrl-C may come between publishing and the next line
        if sent.gripper is not None and gripper is not None:
            assert self.card.gripper is not None
            gripper.publish(as_gripper(gripper.msg_type, sent.gripper, self.card.gripper))
        arm.publish(message)
        self._sent = sent
        return sent

    def stop(self) -> None:
        """Hold: zero twist, or the joints or pose as measured; where they were measured too long ago, as sent last."""
        if self._link is None or "arm" not in self._publishers:
            return
        try:
            goal = hold_goal(self.card, self._heard(), self._sent, now_s=time.monotonic())
            if goal is None:
                log.error("robot %s can't be told where to hold: nothing fresh was measured", self.card.name)
                return
            self._publishers["arm"].publish(self._message(goal))
        except Exception:  # whoever stops has nobody left to tell but the log
            log.exception("robot %s could not be told to hold", self.card.name)

    def close(self) -> None:
        """Hold if it was commanded, and end the connection; also twice."""
        link, was_commanded = self._link, self._may_move
        if link is None:
            return
        if was_commanded:
            self.stop()
        self._link = None
        link.close(flush=tuple(self._publishers.values()) if was_commanded else ())
        self._publishers, self._streams, self._sent, self._may_move = {}, {}, None, False

    def when_heard(self, stream: str, call: Callable[[], None]) -> None:
        """Have something quick called in the node's thread whenever a stream brings something new."""
        self._streams[stream].notify = call

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is known of every stream, JSON types: topic, type, rate, age, QoS, clock."""
        now_s = time.monotonic()
        return {name: facts_of(stream, now_s) for name, stream in self._streams.items()}

    def _require_link(self) -> Ros2Link:
        if self._link is None:
            raise DeployError("ROS 2 robot", expected="connect() first", got="no connection", hint="Call connect().")
        if not self._link.is_alive:
            raise DeployError(
                "ROS 2 robot", expected="a node that is alive", got=self._link.failure or "its context was shut down",
                hint="Connect again.",
            )  # fmt: skip
        return self._link

    def _heard(self) -> dict[str, Heard]:
        newest = ((name, stream.newest) for name, stream in self._streams.items())
        return {name: heard for name, heard in newest if heard is not None}

    def _check(self, reading: Reading) -> None:
        """What a first reading shows.

        Raises:
            DeployError: as `connect`.
        """
        require_numbers(self.card, reading, has_joints="joints" in self._names, has_proprio=self.config.inputs is None)
        if self._has_spec:
            require_sizes(self.spec, reading)
        else:
            self.spec = with_measured(self.spec, reading.frames)

    def _message(self, goal: Goal) -> Any:
        assert self._link is not None
        kind = self._publishers["arm"].msg_type
        point_kind = message_type("JointTrajectoryPoint") if kind.__name__ == "JointTrajectory" else None
        return arm_message(self.card, goal, kind=kind, point_kind=point_kind, stamp_s=self._link.wall_s())


def ros2_stop(config: Mapping[str, Any]) -> Callable[[], None]:
    """A connection of its own for a watchdog (deploy/watchdog.py): returns a function that has the robot hold.

    Args:
        config: "card", "namespace" of its topics where it is not the card's, and whatever else Ros2RobotConfig has.

    Raises:
        RobotRlError: as Ros2Robot and its `connect`.
    """
    card, own = load_robot_card(str(config["card"])), dict(config)
    if (namespace := own.pop("namespace", "")) and card.ros2 is not None:
        card = replace(card, ros2=replace(card.ros2, namespace=str(namespace)))
    needed = {CommandKind.twist: (), CommandKind.pose: ("pose",)}.get(card.command, ("joints",))
    robot = Ros2Robot(Ros2RobotConfig(**{"node": "robot_rl_watchdog", "inputs": needed, **own}), card=card)
    robot.connect()
    return robot.stop
