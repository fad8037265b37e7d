"""Deltas from where the arm will be, not from where it was: for robots whose readings and goals travel for a while.

A policy trained on "measured pose + delta" adds its delta to the pose of that very moment. Behind a network the reading is
late and the goal acts late, so every delta starts too far back, the arm is slow, and episodes end at their time limit. An
arm that follows its goals with a time constant can be foreseen: from the reading on, each goal x* that was in force for dt
brings x to x* + (x - x*) exp(-dt / response_s). This is the delayed-plant part of a Smith predictor (O. J. M. Smith, 1957).
It is off by default: it gained in replays on a manual clock with a control period of delay (96 against 84 of 100), not in
real runs (docs/ros2.md). Only what deltas start from is foreseen; policy, ages and safety layer see what was measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.loop_parts import Targets
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.deploy.targets import Target
from robot_rl.errors import ConfigError
from robot_rl.types import Goal, Reading

_KEPT = 50


@dataclass(frozen=True)
class AheadConfig:
    """What is known of the robot.

    Attributes:
        response_s: time constant with which it follows a goal (ManiSkill's arms: damping / stiffness = 0.1 s).
        command_s: until a goal acts.
    """

    response_s: float
    command_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.response_s < math.inf and 0 <= self.command_s < math.inf):
            raise ConfigError(
                "ahead", expected="response_s above 0 and command_s of 0 or more", got=str(self), hint="In seconds."
            )


class Ahead:
    """Reads actions as another reader does, with the reading brought forward to when the goal acts.

    Positions and the place of a pose are brought forward; rotations stay as measured.

    Args:
        targets: that reader.
        config: see AheadConfig.
        clock: of the loop and of the stamps.
    """

    def __init__(self, targets: Targets, config: AheadConfig, *, clock: Clock | None = None) -> None:
        self._targets, self._config, self._clock = targets, config, clock or MonotonicClock()
        self._goals: deque[tuple[float, Goal]] = deque(maxlen=_KEPT)
        self._asked_s = math.nan

    def read(self, action: Sequence[float] | Array, *, reading: Reading, sent: Goal | None) -> Target:
        """See loop_parts.Targets; `sent` is taken as sent at the read before."""
        now_s = self._clock.now()
        if sent is None:
            self._goals.clear()  # an episode begins
        else:
            self._goals.append((self._asked_s, sent))
        self._asked_s = now_s
        return self._targets.read(action, reading=self.foreseen(reading, now_s), sent=sent)

    def foreseen(self, reading: Reading, now_s: float) -> Reading:
        """The reading when a goal of `now_s` acts; unchanged where its time is not known."""
        end_s = now_s + self._config.command_s
        pose = reading.pose
        if pose is not None and "pose" in reading.stamps:
            place = self._moved(pose[:3], reading.stamps["pose"], end_s, "pose")
            pose = np.concatenate([place, pose[3:]])
        position = reading.position
        if "joints" in reading.stamps:
            position = self._moved(position, reading.stamps["joints"], end_s, "position")
        return replace(reading, pose=pose, position=position)

    def _moved(self, start: np.ndarray, start_s: float, end_s: float, name: str) -> np.ndarray:
        here, times = start, [sent_s + self._config.command_s for sent_s, _ in self._goals]
        for number, (_, goal) in enumerate(self._goals):
            from_s = max(times[number], start_s)
            to_s = min(times[number + 1] if number + 1 < len(times) else end_s, end_s)
            towards = getattr(goal, name)
            if to_s > from_s and towards is not None:
                aim = towards[: len(here)]
                here = aim + (here - aim) * math.exp(-(to_s - from_s) / self._config.response_s)
        return here
