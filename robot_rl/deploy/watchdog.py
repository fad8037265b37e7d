"""A process that stops the robot by its own connection when the control loop falls silent.

The loop writes the time of its last heartbeat into shared memory; the watchdog reads it. It neither belongs to the loop's
process nor to the policy's, so it acts when either is killed, stopped or hung. Once it has acted it stays so until a person
calls `reset`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.deploy.child_process import Child, SharedArrays
from robot_rl.deploy.policy_words import read_reply
from robot_rl.errors import DeployError

# Aligned words of 8 bytes: each is written and read whole. `armed` and `tripped` are times, 0 for no.
LAYOUT = [(name, (1,), "float64") for name in ("beat", "armed", "tripped", "stopped")]


@dataclass(frozen=True)
class WatchdogConfig:
    """How silence is answered.

    Attributes:
        stop: "package.module:function": called once with `config`, in the watchdog's process; it opens a connection of its
            own and returns a function without arguments that stops the robot.
        config: JSON types, for `stop`.
        heartbeat_s: silence that is too long; the robot's thresholds.heartbeat_s.
        poll_s: how often it looks.
        fifo_priority: SCHED_FIFO priority asked for; above the loop's.
        start_s: how long its connection may take.
    """

    stop: str
    config: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_s: float = 0.2
    poll_s: float = 0.005
    fifo_priority: int | None = 85
    start_s: float = 30.0


@runtime_checkable
class Heart(Protocol):
    """What a control loop needs of a watchdog."""

    def arm(self) -> None:
        """From now on silence stops the robot."""
        ...

    def beat(self) -> None:
        """The loop lives."""
        ...

    def disarm(self) -> None:
        """The robot holds by itself; silence means nothing."""
        ...

    @property
    def has_tripped(self) -> bool:
        """Whether it stopped the robot."""
        ...

    @property
    def failure(self) -> str:
        """Why it watches no longer; "" while it does."""
        ...

    def reset(self) -> None:
        """A person has looked: it may act again."""
        ...


class Watchdog:
    """The loop's side: starts the process, and gives the heartbeats.

    Args:
        config: see WatchdogConfig.

    Raises:
        DeployError: its connection to the robot does not come up.
    """

    def __init__(self, config: WatchdogConfig) -> None:
        self._memory = SharedArrays(LAYOUT)
        self._words = {name: self._memory[name] for name, _, _ in LAYOUT}
        plain = {**vars(config), "config": dict(config.config)}
        self._child = Child("robot_rl.deploy.watchdog_process", plain, fds=[self._memory.fd])
        try:
            self._wait_until_ready(config.start_s)
        except BaseException:
            self._child.close()
            raise
        finally:
            self._memory.close_fd()

    def _wait_until_ready(self, start_s: float) -> None:
        if (message := self._child.first_message(start_s)) is not None:
            self.fifo = str(read_reply(message)["fifo"])
            return
        raise DeployError(
            "watchdog", expected=f"its own connection to the robot within {start_s:g} s",
            got=f"exit code {self._child.exit_code}", hint="Its messages are above; the robot must not move without it.",
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    @property
    def has_tripped(self) -> bool:
        """See Heart."""
        return bool(self._words["tripped"][0])

    @property
    def tripped_s(self) -> float:
        """When it found the loop silent; 0: it did not."""
        return float(self._words["tripped"][0])

    @property
    def stopped_s(self) -> float:
        """When its stop function had returned; 0: not yet."""
        return float(self._words["stopped"][0])

    @property
    def failure(self) -> str:
        """See Heart."""
        code = self._child.exit_code
        return "" if code is None else f"the watchdog's process ended with exit code {code}"

    def arm(self) -> None:
        """See Heart."""
        self.beat()
        self._words["armed"][0] = time.monotonic()

    def beat(self) -> None:
        """See Heart."""
        self._words["beat"][0] = time.monotonic()

    def disarm(self) -> None:
        """See Heart."""
        self._words["armed"][0] = 0.0

    def reset(self) -> None:
        """See Heart."""
        self.disarm()
        self._words["stopped"][0] = 0.0
        self._words["tripped"][0] = 0.0

    def close(self) -> None:
        """End it. Disarm first: armed, it takes this for the death of the loop and stops the robot."""
        self._child.close(grace_s=5.0)


class Judge:
    """The watchdog's rule, by numbers alone.

    Args:
        heartbeat_s: silence that is too long.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s

    def is_silent(self, words: Mapping[str, np.ndarray], now_s: float) -> bool:
        """Whether the robot must be stopped now: armed, not stopped yet, and no heartbeat within the threshold.

        A heartbeat that is not finite or lies in the future is none: the memory is damaged, or another clock.
        """
        if not words["armed"][0] or words["stopped"][0]:
            return False
        beat_s = float(words["beat"][0])
        return not (math.isfinite(beat_s) and -self._heartbeat_s <= now_s - beat_s <= self._heartbeat_s)


def ready(fifo: str) -> bytes:
    """First message of the process."""
    return json.dumps({"fifo": fifo}).encode()
