"""Messages that arrive late, at odd times, or not at all: what a network does to a robot, from a seed."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from robot_rl.errors import ConfigError


@dataclass(frozen=True)
class Delay:
    """How late the messages of a channel are.

    Attributes:
        latency_s: mean delay.
        jitter_s: the delay is uniform in latency_s -+ jitter_s. Messages of a channel do not overtake each other.
        drop: share of the messages that are lost.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        fits = 0 <= self.jitter_s <= self.latency_s < math.inf and 0 <= self.drop < 1
        if not fits:
            raise ConfigError(
                "delay", expected="0 <= jitter_s <= latency_s and 0 <= drop < 1", got=str(self), hint="Correct it."
            )


class Channel:
    """When the messages of one channel arrive; the same seed and the same sending times give the same answers.

    Args:
        delay: see Delay.
        seed: of jitter and losses.
    """

    def __init__(self, delay: Delay, *, seed: int) -> None:
        self.delay, self._rng, self._last_s = delay, np.random.default_rng(seed), -math.inf
        self.lost = 0

    def arrival_s(self, now_s: float) -> float | None:
        """When a message sent now arrives, seconds of the same clock; None: never."""
        turn, luck = self._rng.uniform(-1, 1), self._rng.random()
        if luck < self.delay.drop:
            self.lost += 1
            return None
        self._last_s = max(self._last_s, now_s + self.delay.latency_s + turn * self.delay.jitter_s)
        return self._last_s


class DelayLine:
    """Calls functions when they are due, in one thread of its own, in the order of their times.

    Args:
        priority: entered by that thread, for its scheduling.
    """

    def __init__(self, *, priority: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._priority = priority
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._wake, self._is_open = itertools.count(), threading.Condition(), True
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="delay line", daemon=True)
        self._thread.start()

    def put(self, due_s: float | None, call: Callable[[], None]) -> None:
        """Have `call` called at `due_s` of CLOCK_MONOTONIC; None: never."""
        if due_s is None:
            return
        with self._wake:
            heapq.heappush(self._due, (due_s, next(self._numbers), call))
            self._wake.notify()

    def close(self) -> None:
        """Forget what is not due yet, and end the thread."""
        with self._wake:
            self._is_open = False
            self._due.clear()
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def _run(self) -> None:
        with self._priority():
            self._serve()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while self._is_open and not (self._due and self._due[0][0] <= time.monotonic()):
                    self._wake.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if not self._is_open:
                    return
                _, _, call = heapq.heappop(self._due)
            try:
                call()
            except BaseException as error:
                self.failure = error
                return
