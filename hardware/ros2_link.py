"""A ROS 2 node in a thread of its own that keeps the newest message of each topic; plain rclpy, from Humble on.

It has a context of its own that no signal shuts down, so that a robot can still be told to hold after Ctrl-C. Callbacks only
note message and time. A subscription is made when its publisher is seen, with a profile that the publisher can serve; where
none can, both profiles are told at once.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from robot_rl.deploy.robot_card import TopicCard
from robot_rl.errors import ConfigError, DeployError, closest

from .ros2_clock import StampClock
from .ros2_messages import stamp_of
from .ros2_reading import Heard

log = logging.getLogger("robot_rl.ros2")

PACKAGES = {
    "JointState": "sensor_msgs", "Image": "sensor_msgs", "CompressedImage": "sensor_msgs", "CameraInfo": "sensor_msgs",
    "PointCloud2": "sensor_msgs", "PoseStamped": "geometry_msgs", "WrenchStamped": "geometry_msgs",
    "TwistStamped": "geometry_msgs", "JointTrajectory": "trajectory_msgs", "JointTrajectoryPoint": "trajectory_msgs",
    "Float64MultiArray": "std_msgs", "Float64": "std_msgs", "Bool": "std_msgs",
}  # fmt: skip
# Messages of many packets: best effort loses nearly all of them on default transports (ros2.md section 3).
_LARGE = ("Image", "PointCloud2")
_JOIN_S = 2.0
_ENDLESS_NS = 2**62


def message_type(name: str) -> Any:
    """A message class by its name in a card.

    Raises:
        ConfigError: not one of PACKAGES.
        DeployError: ROS 2 or that package is not installed.
    """
    if name not in PACKAGES:
        raise ConfigError("topic type", expected="a message that we know", got=repr(name), hint=closest(name, PACKAGES))
    try:
        return getattr(importlib.import_module(f"{PACKAGES[name]}.msg"), name)
    except ImportError as error:
        raise _no_ros(error) from error


def _no_ros(error: ImportError) -> DeployError:
    return DeployError(
        "ROS 2", expected="rclpy and the common message packages", got=str(error),
        hint="Source /opt/ros/<distribution>/setup.bash; without apt: pip install -r constraints/ros2-jazzy.txt.",
    )  # fmt: skip


class Stream:
    """One input topic.

    Args:
        name: of the stream.
        card: its topic.
        topic: full name.

    Attributes:
        newest: message heard last whose time is known.
        count, unused: messages that came, and those of them whose clock was in doubt.
        incompatible: both profiles, when a publisher came later that can't be heard; "" for none.
        first_s, last_s, subscribed_s: first and last message, and subscription, CLOCK_MONOTONIC; 0 before.
        profile: QoS that we asked for; None before the subscription.
        notify: called after every message that counts.
    """

    def __init__(self, name: str, card: TopicCard, topic: str) -> None:
        self.name, self.card, self.topic = name, card, topic
        self.clock = StampClock()
        self.count, self.unused, self.incompatible = 0, 0, ""
        self.first_s, self.last_s, self.subscribed_s = 0.0, 0.0, 0.0
        self.profile: Any = None
        self.notify: Callable[[], None] | None = None
        self.newest: Heard | None = None

    def hear(self, message: Any) -> None:
        """Note a message; called by the executor."""
        now_s = time.monotonic()
        captured_s = self.clock.captured_s(stamp_of(message), now_s)
        self.first_s, self.last_s = self.first_s or now_s, now_s
        self.count += 1
        if captured_s is None:
            self.unused += 1
            return
        self.newest = Heard(message, now_s, captured_s)
        if self.notify is not None:
            self.notify()

    @property
    def rate_hz(self) -> float:
        """Messages a second since the first one; 0 before the second."""
        passed_s = self.last_s - self.first_s
        return (self.count - 1) / passed_s if passed_s > 0 else 0.0


class Ros2Link:
    """See the text of this module.

    Args:
        name: of the node.
        namespace: of the node; relative topic names are in it.
        domain_id: None: ROS_DOMAIN_ID of the environment.

    Raises:
        DeployError: ROS 2 is not installed.
    """

    def __init__(self, name: str, *, namespace: str = "", domain_id: int | None = None) -> None:
        try:
            import rclpy
            from rclpy.executors import SingleThreadedExecutor
            from rclpy.signals import SignalHandlerOptions
        except ImportError as error:
            raise _no_ros(error) from error
        self._rclpy, self.failure = rclpy, ""
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(
            name, context=self._context, namespace=namespace.strip("/"), use_global_arguments=False,
            enable_rosout=False, start_parameter_services=False,
        )  # fmt: skip
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=f"ros2 {name}", daemon=True)
        self._thread.start()
        # A thread that waits in rcl while the interpreter ends is torn out of C++: "terminate called", and SIGABRT.
        atexit.register(self.close)

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException, ShutdownException

        try:
            self._executor.spin()
        except (ExternalShutdownException, ShutdownException, KeyboardInterrupt):
            self.failure = self.failure or "the ROS 2 context was shut down"
        except BaseException as error:  # told by whoever reads next
            self.failure = f"{type(error).__name__}: {error}"
            log.exception("the executor ended")

    @property
    def is_alive(self) -> bool:
        """Whether messages can still come and go."""
        return self._thread.is_alive() and bool(self._context.ok())

    def full(self, topic: str) -> str:
        """A topic's full name."""
        return str(self.node.resolve_topic_name(topic))

    def topics(self) -> list[str]:
        """Names of all topics seen."""
        return sorted(name for name, _ in self.node.get_topic_names_and_types())

    def listen(self, stream: Stream) -> bool:
        """Subscribe to a stream when a publisher is there; returns whether it is.

        Raises:
            DeployError: every publisher has another type, or a QoS profile that can't serve us; both are told.
        """
        if stream.profile is not None:
            return True
        kind = message_type(stream.card.type)
        publishers = self.node.get_publishers_info_by_topic(stream.topic)
        if not publishers:
            return False
        _require_type(stream.topic, stream.card.type, publishers)
        profile = _wanted(stream.card, [info.qos_profile for info in publishers])
        troubles = [_trouble(info.qos_profile, profile) for info in publishers]
        if all(troubles):
            raise DeployError(
                f"topic {stream.topic}, QoS", expected=f"a publisher that serves {as_text(profile)}",
                got=f"{as_text(publishers[0].qos_profile)} from {_node(publishers[0])} ({troubles[0]})",
                hint=f"Set reliability, durability of {stream.name!r} in the robot's card to what the publisher offers.",
            )  # fmt: skip
        stream.profile, stream.subscribed_s = profile, time.monotonic()
        events = _events("subscription", lambda status: self._incompatible(stream, status))
        self.node.create_subscription(kind, stream.topic, stream.hear, profile, event_callbacks=events)
        return True

    def _incompatible(self, stream: Stream, status: Any) -> None:
        publishers = self.node.get_publishers_info_by_topic(stream.topic)
        offered = "; ".join(f"{_node(info)}: {as_text(info.qos_profile)}" for info in publishers)
        stream.incompatible = f"ours: {as_text(stream.profile)}; {offered}"
        log.error("topic %s: a publisher can't serve us: %s", stream.topic, stream.incompatible)

    def advertise(self, card: TopicCard) -> Any:
        """A publisher."""
        return self.node.create_publisher(message_type(card.type), self.full(card.topic), _profile(card, depth=1))

    def has_listener(self, card: TopicCard) -> bool:
        """Whether anybody hears a topic of ours.

        Raises:
            DeployError: every listener has another type, or wants a QoS profile that we do not offer; both are told.
        """
        topic, ours = self.full(card.topic), _profile(card, depth=1)
        listeners = self.node.get_subscriptions_info_by_topic(topic)
        if not listeners:
            return False
        _require_type(topic, card.type, listeners)
        troubles = [_trouble(ours, info.qos_profile) for info in listeners]
        if all(troubles):
            raise DeployError(
                f"topic {topic}, QoS", expected=f"a listener for {as_text(ours)}",
                got=f"{as_text(listeners[0].qos_profile)} of {_node(listeners[0])} ({troubles[0]})",
                hint="Set reliability, durability of this output in the robot's card to what the listener wants.",
            )  # fmt: skip
        return True

    def wall_s(self) -> float:
        """Seconds of the node's clock, for stamps."""
        return float(self.node.get_clock().now().nanoseconds) * 1e-9

    def close(self, *, flush: tuple[Any, ...] = (), flush_s: float = 1.0) -> None:
        """Let publishers finish, then end; also twice.

        Args:
            flush: publishers whose last message must have arrived.
            flush_s: at most this long for each.
        """
        from rclpy.duration import Duration

        atexit.unregister(self.close)
        for publisher in flush:
            with contextlib.suppress(Exception):  # a lost network must not keep a process from ending
                if not publisher.wait_for_all_acked(Duration(seconds=flush_s)):
                    log.error("topic %s: the last message was not acknowledged in %g s", publisher.topic_name, flush_s)
        self.failure = self.failure or "closed"
        self._executor.shutdown(timeout_sec=_JOIN_S)
        with contextlib.suppress(Exception):
            self.node.destroy_node()
        self._rclpy.try_shutdown(context=self._context)
        self._thread.join(_JOIN_S)


def _profile(card: TopicCard, *, depth: int | None = None, reliability: str = "") -> Any:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    is_reliable = (reliability or card.reliability) == "reliable"
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth or card.depth,
        reliability=ReliabilityPolicy.RELIABLE if is_reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE if card.durability == "volatile" else DurabilityPolicy.TRANSIENT_LOCAL,
    )


def _wanted(card: TopicCard, offered: list[Any]) -> Any:
    """Best effort as the card says, but for large messages what the publishers offer, if they all do."""
    from rclpy.qos import ReliabilityPolicy

    all_reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in offered)
    return _profile(card, reliability="reliable" if card.type in _LARGE and all_reliable else "")


def _trouble(publisher: Any, subscription: Any) -> str:
    """Why a publisher's profile can't serve a subscription's; "" when it can.

    rclpy's qos_check_compatible takes the endless deadlines of what was discovered for deadlines.
    """
    for name, strict in (
        ("reliability", "RELIABLE"),
        ("durability", "TRANSIENT_LOCAL"),
        ("liveliness", "MANUAL_BY_TOPIC"),
    ):
        offered, wanted = getattr(publisher, name).name, getattr(subscription, name).name
        if wanted == strict and offered != strict:
            return f"{name} {offered} offered, {wanted} wanted"
    for name in ("deadline", "liveliness_lease_duration"):
        offered_ns, wanted_ns = (getattr(profile, name).nanoseconds for profile in (publisher, subscription))
        if 0 < wanted_ns < _ENDLESS_NS and not 0 < offered_ns <= wanted_ns:
            return f"{name} of {wanted_ns * 1e-9:g} s wanted"
    return ""


def _node(info: Any) -> str:
    """Whose endpoint it is, as far as that is known yet."""
    return "a node" if "UNKNOWN" in info.node_name else f"node {info.node_name!r}"


def as_text(profile: Any) -> str:
    """A QoS profile for people."""
    parts = [f"{name} {getattr(profile, name).name}" for name in ("reliability", "durability", "history")]
    deadline_ns = profile.deadline.nanoseconds
    if 0 < deadline_ns < _ENDLESS_NS:
        parts.append(f"deadline {deadline_ns * 1e-9:g} s")
    return f"{', '.join(parts)}, depth {profile.depth}"


def _events(side: str, incompatible: Callable[[Any], None]) -> Any:
    try:
        module = importlib.import_module("rclpy.event_handler")
    except ModuleNotFoundError:  # Humble
        module = importlib.import_module("rclpy.qos_event")
    return getattr(module, f"{side.capitalize()}EventCallbacks")(incompatible_qos=incompatible)


def _require_type(topic: str, kind: str, endpoints: list[Any]) -> None:
    wanted = f"{PACKAGES[kind]}/msg/{kind}"
    types = sorted({info.topic_type for info in endpoints})
    if wanted not in types:
        raise DeployError(
            f"topic {topic}",
            expected=f"type {wanted}",
            got=", ".join(types),
            hint="Correct `type` in the robot's card.",
        )
