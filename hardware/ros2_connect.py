"""Waiting for a robot's topics and judging what they bring, before anything is sent."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.deploy.robot_card import RobotCard
from robot_rl.errors import DeployError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Reading

from .ros2_link import Ros2Link, Stream, as_text

log = logging.getLogger("robot_rl.ros2")

# Messages of every stream before a robot counts as connected.
_HEARD = 3
_POLL_S = 0.02


class Connecting:
    """One robot's topics while they are looked for.

    Args:
        link: the node.
        card: of the robot, with topics.
        streams: to be heard.
        publishers: output -> publisher.
    """

    def __init__(
        self, link: Ros2Link, card: RobotCard, streams: Mapping[str, Stream], publishers: Mapping[str, Any]
    ) -> None:
        self._link, self._card, self._streams, self._publishers = link, card, streams, publishers

    def wait(self) -> None:
        """Until every stream was heard a few times and is fresh, and every output has a listener.

        Raises:
            DeployError: not within thresholds.connect_s, or at once: a type or a QoS profile that can't fit.
        """
        thresholds, began_s, told = self._card.thresholds, time.monotonic(), False
        while True:
            now_s = time.monotonic()
            waiting = [stream for stream in self._streams.values() if not self._is_ready(stream)]
            deaf = [name for name in self._publishers if not self._is_heard(name)]
            if not waiting and not deaf:
                return
            if not self._link.is_alive:
                raise DeployError("ROS 2 robot", expected="a live node", got=self._link.failure, hint="Connect again.")
            silent = [stream for stream in waiting if stream.profile is not None and stream.count == 0]
            silent = [stream for stream in silent if now_s - stream.subscribed_s > thresholds.qos_s]
            if silent and not told:
                told = True
                log.warning("still silent: %s", "; ".join(map(self._profiles, silent)))
            if now_s - began_s > thresholds.connect_s:
                raise self._refusal(waiting, deaf)
            time.sleep(_POLL_S)

    def check_streams(self) -> None:
        """Tell of clocks that are not ours.

        Raises:
            DeployError: a stream is so slow that it is too old between two messages.
        """
        for stream in self._streams.values():
            limit_s = self._card.thresholds.age_s(stream.name)
            if stream.rate_hz and 1 / stream.rate_hz > limit_s:
                raise DeployError(
                    f"stream {stream.name!r}", expected=f"more than {1 / limit_s:.3g} Hz for an age of {limit_s:g} s",
                    got=f"{stream.rate_hz:.3g} Hz", hint="Raise the driver's rate, or the stream's age in the card.",
                )  # fmt: skip
            if not stream.clock.is_same_clock and not math.isnan(stream.clock.offset_s):
                text = "%s: its clock is %.3f s behind ours; ages count from its quickest message"
                log.warning(text, stream.topic, stream.clock.away_s)

    def _is_ready(self, stream: Stream) -> bool:
        if not self._link.listen(stream) or stream.count < _HEARD or stream.newest is None:
            return False
        age_s = time.monotonic() - stream.newest.captured_s
        return stream.clock.is_moving and age_s <= self._card.thresholds.age_s(stream.name)

    def _is_heard(self, name: str) -> bool:
        # Who is known need not be connected yet, and what is sent before is lost.
        assert self._card.ros2 is not None
        topic, publisher = self._card.ros2.outputs[name], self._publishers[name]
        return self._link.has_listener(topic) and publisher.get_subscription_count() > 0

    def _profiles(self, stream: Stream) -> str:
        offered = [as_text(info.qos_profile) for info in self._link.node.get_publishers_info_by_topic(stream.topic)]
        return f"{stream.topic}: we ask {as_text(stream.profile)}; offered: {' | '.join(offered) or 'gone'}"

    def _refusal(self, waiting: list[Stream], deaf: list[str]) -> DeployError:
        outputs = [self._publishers[name].topic_name for name in deaf]
        ours = [*outputs, *(stream.topic for stream in waiting)]
        names = [topic for topic in self._link.topics() if topic not in ours] or ["none"]
        found = [f"{stream.name}: {self._state(stream)}" for stream in waiting]
        found += [f"{name}: nobody listens to {topic}" for name, topic in zip(deaf, outputs, strict=True)]
        missing = [stream.topic for stream in waiting if stream.profile is None] + outputs
        hint = closest(missing[0], names) if missing else "Look at the driver."
        return DeployError(
            f"robot {self._card.name!r}",
            expected=f"all its topics within {self._card.thresholds.connect_s:g} s",
            got="\n  ".join(["", *found]) + "\n",
            hint=f"{hint} Is the driver up yet (a simulated arm says so), on the same ROS_DOMAIN_ID and discovery range?",
        )

    def _state(self, stream: Stream) -> str:
        if stream.profile is None:
            return f"nobody publishes {stream.topic}"
        if stream.count < _HEARD or stream.newest is None:
            return f"{stream.count} messages; {self._profiles(stream)}"
        age_s, limit_s = time.monotonic() - stream.newest.captured_s, self._card.thresholds.age_s(stream.name)
        trouble = stream.clock.trouble or ("stale clock" if not stream.clock.is_moving else "too late")
        return f"{age_s:.3f} s old ({trouble}, {stream.rate_hz:.3g} Hz), limit {limit_s:g} s"


def require_numbers(card: RobotCard, reading: Reading, *, has_joints: bool, has_proprio: bool) -> None:
    """What a robot tells first must be whole.

    Args:
        card: of the robot.
        reading: of it.
        has_joints, has_proprio: whether these are listened to at all.

    Raises:
        DeployError: naming what is NaN or not told.
    """
    values: dict[str, float] = {}
    if has_joints:
        values |= dict(zip(card.joints, reading.position.tolist(), strict=True))
    if has_proprio:
        values |= dict(zip(card.proprio, reading.frames["proprio"].tolist(), strict=True))
    for name, array in (("pose", reading.pose), ("wrench", reading.wrench)):
        values |= {f"{name}[{place}]": float(value) for place, value in enumerate([] if array is None else array)}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise DeployError(
            f"robot {card.name!r}", expected="finite numbers", got=f"NaN or nothing for {', '.join(bad)}",
            hint="The driver does not measure it, or the card's `proprio` asks for what the topics do not tell.",
        )  # fmt: skip


def require_sizes(spec: EnvSpec, reading: Reading) -> None:
    """Frames must be of the policy's shapes.

    Raises:
        DeployError: naming the key, with both shapes.
    """
    for key, array in spec.observation.items():
        frame = reading.frames.get(key)
        if frame is not None and (frame.shape != array.shape or np.dtype(frame.dtype) != np.dtype(array.dtype)):
            raise DeployError(
                f"observation {key!r}", expected=f"the policy's {array.dtype} {array.shape}",
                got=f"{frame.dtype} {frame.shape} from the robot", hint="Set the camera to the policy's size.",
            )  # fmt: skip


def facts_of(stream: Stream, now_s: float) -> dict[str, Any]:
    """What is known of a stream, JSON types."""
    clock, newest = stream.clock, stream.newest
    return {
        "topic": stream.topic,
        "type": stream.card.type,
        "count": stream.count,
        "rate_hz": stream.rate_hz,
        "age_s": None if newest is None else now_s - newest.captured_s,
        "qos": "" if stream.profile is None else as_text(stream.profile),
        "incompatible": stream.incompatible,
        "has_stamps": not math.isnan(clock.offset_s),
        "is_same_clock": clock.is_same_clock,
        "clock_behind_s": None if math.isnan(clock.offset_s) else clock.away_s,
        "clock_jumps_s": list(clock.jumps),
        "clock_trouble": clock.trouble,
        "unused": stream.unused,
    }
