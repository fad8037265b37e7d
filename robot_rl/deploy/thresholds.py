"""The one table of times after which silence means something; every part of the product reads it here.

A robot's card may name its own (`thresholds:`), a command line may not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from robot_rl.errors import ConfigError


@dataclass(frozen=True)
class Thresholds:
    """Seconds.

    Attributes:
        observation_s: age of a stream beyond which the robot holds.
        streams_s: stream -> its own age, where it differs.
        robot_lost_s: how long a robot may tell nothing fresh before people must look at it (sessions, RL on a robot).
        heartbeat_s: silence of the control loop after which the watchdog stops the robot.
        command_s: silence of commands after which a robot-side watchdog holds.
        operator_release_s: silence of an operator's device that counts as letting go.
        operator_fault_s: silence of an operator's device that stops.
        connect_s: wait for a robot, a topic or a service to appear.
        qos_s: wait for a first message before both QoS profiles are printed.
    """

    observation_s: float = 0.2
    streams_s: Mapping[str, float] = field(default_factory=dict)
    robot_lost_s: float = 1.0
    heartbeat_s: float = 0.2
    command_s: float = 0.2
    operator_release_s: float = 0.1
    operator_fault_s: float = 0.5
    connect_s: float = 10.0
    qos_s: float = 2.0

    def __post_init__(self) -> None:
        numbers = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "streams_s"}
        numbers |= {f"streams_s.{stream}": age for stream, age in self.streams_s.items()}
        for name, value in numbers.items():
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ConfigError(
                    f"thresholds.{name}", expected="seconds, above 0", got=repr(value), hint="Correct it."
                )

    def age_s(self, stream: str) -> float:
        """Largest age of a stream."""
        return float(self.streams_s.get(stream, self.observation_s))
