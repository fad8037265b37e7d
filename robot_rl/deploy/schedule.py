"""An absolute schedule for loops of 20-1000 Hz: slot k is due at start + k * period, whatever happened before.

A relative sleep loses the time of waking up at every cycle (10 % at 1 kHz); an absolute one keeps its phase. A slot that
can't be kept is skipped and counted, never made up for by a burst. How late each slot began goes into a histogram.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.errors import ConfigError

# Bins of lateness: 2 % wide from 1 us to 100 s, one below and one above.
_FIRST_S, _LAST_S, _GROWTH = 1e-6, 100.0, 1.02
_BINS = math.ceil(math.log(_LAST_S / _FIRST_S) / math.log(_GROWTH)) + 2
# Upper edges of the bins that a person reads, microseconds.
_SHOWN_US = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


@runtime_checkable
class Clock(Protocol):
    """Seconds of CLOCK_MONOTONIC, or of a test."""

    def now(self) -> float:
        """Seconds."""
        ...

    def sleep_until(self, deadline_s: float) -> None:
        """Return at the deadline or later; at once when it is past."""
        ...


class MonotonicClock:
    """The machine's CLOCK_MONOTONIC. `time.sleep` waits for an absolute time of it (clock_nanosleep) from Python 3.11."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def sleep_until(self, deadline_s: float) -> None:
        """Sleep, again when woken too early."""
        while (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(left_s)


class ManualClock:
    """A clock that moves only when somebody sleeps or calls `advance`: exact times in tests.

    Args:
        now_s: where it begins.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        """Seconds."""
        return self._now_s

    def sleep_until(self, deadline_s: float) -> None:
        """Go to the deadline."""
        self._now_s = max(self._now_s, deadline_s)

    def advance(self, seconds: float) -> None:
        """Let time pass, as a slow call does."""
        self._now_s += seconds


@dataclass(frozen=True)
class Slot:
    """One turn of a loop.

    Attributes:
        index: 0, 1, 2 ...; skipped ones are missing.
        due_s: when it was due.
        late_s: how much later it began.
        skipped: slots left out since the one before.
    """

    index: int
    due_s: float
    late_s: float
    skipped: int


class Schedule:
    """Turns of one loop; the first slot is due one period after it is made.

    Args:
        rate_hz: slots a second.
        clock: see Clock.

    Raises:
        ConfigError: the rate is no number above 0.
    """

    def __init__(self, rate_hz: float, *, clock: Clock) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError("rate_hz", expected="a number above 0", got=str(rate_hz), hint="Slots a second.")
        self.period_s, self.start_s = 1.0 / rate_hz, clock.now() + 1.0 / rate_hz
        self.jitter = Jitter(self.period_s)
        self._clock, self._last = clock, -1

    def wait(self) -> Slot:
        """Sleep until the next slot; when later ones are due already, take the newest and count the others as skipped."""
        index = self._last + 1
        self._clock.sleep_until(self.due_s(index))
        now_s = self._clock.now()
        newest = math.floor((now_s - self.start_s) / self.period_s)
        # The newest may seem one behind where now is the due time itself, rounded.
        skipped = max(newest - index, 0)
        index += skipped
        slot = Slot(index, self.due_s(index), max(now_s - self.due_s(index), 0.0), skipped)
        self._last = index
        self.jitter.add(slot)
        return slot

    def due_s(self, index: int) -> float:
        """When a slot is due, by one multiplication, so that no rounding adds up."""
        return self.start_s + index * self.period_s


class TimeHistogram:
    """Many times in constant memory: percentiles to 2 %, the largest exactly."""

    def __init__(self) -> None:
        self.count, self.most_s = 0, 0.0
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, seconds: float) -> None:
        """Count one time; below zero counts as zero."""
        place = 0 if seconds <= _FIRST_S else 1 + int(math.log(min(seconds, _LAST_S) / _FIRST_S) / math.log(_GROWTH))
        self._counts[min(place, _BINS - 1)] += 1
        self.count += 1
        self.most_s = max(self.most_s, seconds)

    def percentile_s(self, percent: float) -> float:
        """The time that `percent` of all did not exceed: the upper edge of its bin; 0 without any."""
        if not self.count:
            return 0.0
        rank = max(math.ceil(percent / 100 * self.count), 1)
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_FIRST_S * _GROWTH**place, self.most_s)

    def to_json(self) -> dict[str, Any]:
        """Count, percentiles and the histogram for people, microseconds: `histogram_us` upper edge -> count."""
        edges = _FIRST_S * _GROWTH ** np.arange(_BINS)
        shown = [*_SHOWN_US, math.inf]
        places = np.searchsorted(1e-6 * np.array(shown), edges / _GROWTH**0.5)
        summed = np.bincount(places, weights=self._counts, minlength=len(shown))
        return {
            "count": self.count,
            **{f"p{q:g}_us": 1e6 * self.percentile_s(q) for q in (50.0, 99.0, 99.9)},
            "max_us": 1e6 * self.most_s,
            "histogram_us": {f"{edge:g}": int(count) for edge, count in zip(shown, summed, strict=True)},
        }


class Jitter:
    """How late slots began, how many were skipped, and whether the schedule drifted.

    A slot behind skipped ones counts as late since the first of them was due: a stall shows at its full length.

    Args:
        period_s: between two slots.
    """

    def __init__(self, period_s: float) -> None:
        self.period_s, self.skipped, self.late = period_s, 0, TimeHistogram()
        self._first: tuple[int, float] | None = None
        self._newest = (0, 0.0)

    def add(self, slot: Slot) -> None:
        """Count one slot."""
        self.late.add(slot.late_s + slot.skipped * self.period_s)
        self.skipped += slot.skipped
        self._newest = (slot.index, slot.due_s + slot.late_s)
        if self._first is None:
            self._first = self._newest

    @property
    def handled(self) -> int:
        """Slots that were not skipped."""
        return self.late.count

    @property
    def drift_s(self) -> float:
        """Time between first and newest handled slot, less what the schedule says: stays about 0 on an absolute one."""
        if self._first is None:
            return 0.0
        return self._newest[1] - self._first[1] - (self._newest[0] - self._first[0]) * self.period_s

    def to_json(self) -> dict[str, Any]:
        """Lateness (TimeHistogram), slots handled and skipped, and drift in microseconds."""
        counts = {"handled": self.handled, "skipped": self.skipped, "drift_us": 1e6 * self.drift_s}
        return counts | {key: value for key, value in self.late.to_json().items() if key != "count"}
