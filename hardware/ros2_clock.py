"""Stamps of another clock as CLOCK_MONOTONIC seconds, from the times at which messages came.

A message comes after its stamp, so the least of (received - stamp) over a while is the offset of the two clocks but for the
quickest way of a message. Where it agrees with this machine's own wall clock, the sender has the same clock, and that one is
taken: then ages hold the whole way. Else ages count from the quickest message on, and `is_same_clock` says so.

A clock that is set (back, or forward) shows as stamps that go backwards or come from the future. Such messages are not used,
so ages grow, until a few of them in a row agree with each other; then they are the new clock, and the jump is told. Messages
that are merely late, singly or for ever, are never taken for a jump: their ages say how late they are.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# Less is the scatter of several senders, more is a clock that was set.
JUMP_S = 0.1
# Messages that must agree before a new clock is believed.
CONFIRM = 3
# The quickest message of this long counts, so that clocks may drift.
_WINDOW_S = 10.0
# The quickest message of a sender on the same clock takes no longer.
_SAME_S = 0.1
_EARLY_S = 0.005
# Stamps that stand still for this long are a stale clock.
_STILL_S = 0.2


def wall_minus_monotonic() -> float:
    """Seconds between this machine's wall clock and its CLOCK_MONOTONIC."""
    before = time.monotonic()
    wall = time.time()
    return wall - (before + time.monotonic()) / 2


class StampClock:
    """The clock of one sender; see the text of this module.

    Args:
        wall: see wall_minus_monotonic.

    Attributes:
        jumps: seconds by which it was set, each time; backwards is negative.
    """

    def __init__(self, *, wall: Callable[[], float] = wall_minus_monotonic) -> None:
        self._wall = wall
        self._quickest: deque[tuple[float, float]] = deque()  # (received, received - stamp), rising
        self._offset_s, self._wall_s, self._same, self._count, self._advanced = math.nan, math.nan, False, 0, False
        self._stamp_s, self._received_s, self._still_since_s = math.nan, math.nan, math.nan
        self._suspects: list[tuple[float, float]] = []
        self.jumps: list[float] = []

    @property
    def is_same_clock(self) -> bool:
        """Whether the sender's clock is this machine's wall clock, or agrees with it."""
        return self._same

    @property
    def offset_s(self) -> float:
        """CLOCK_MONOTONIC minus the sender's clock; NaN before the first message."""
        return self._offset_s

    @property
    def away_s(self) -> float:
        """How far the sender's clock is behind this machine's wall clock; the way of the quickest message counts as behind."""
        return self._offset_s - self._wall_s

    @property
    def is_moving(self) -> bool:
        """Whether its stamps have advanced, or it has none."""
        return math.isnan(self._offset_s) or self._advanced

    @property
    def trouble(self) -> str:
        """ "clock jump", "stale clock", or "" when all is well."""
        if self._suspects:
            return "clock jump"
        return "stale clock" if self._received_s - self._still_since_s > _STILL_S else ""

    def captured_s(self, stamp_s: float | None, received_s: float) -> float | None:
        """When a message was captured, CLOCK_MONOTONIC; never after it was received.

        Args:
            stamp_s: of the message, seconds of the sender's clock; None: it has none, then the time of receipt counts.
            received_s: CLOCK_MONOTONIC.

        Returns:
            None while the clock seems to have been set and it is not confirmed: the message must not be used.
        """
        if stamp_s is None:
            return received_s
        raw_s = received_s - stamp_s
        if self._is_new(raw_s):
            self._begin(received_s)
        elif self._is_jump(stamp_s, raw_s):
            if not self._is_confirmed(stamp_s, received_s):
                return None
            self.jumps.append(self._offset_s - raw_s)
            self._begin(received_s)
        self._suspects = []
        self._follow(stamp_s, received_s)
        return min(stamp_s + self._offset_s, received_s)

    def _is_new(self, raw_s: float) -> bool:
        """Whether there was nothing before, or only messages that had waited somewhere."""
        is_first = not self.jumps and self._count < CONFIRM
        return math.isnan(self._offset_s) or (is_first and raw_s < self._offset_s - JUMP_S)

    def _is_jump(self, stamp_s: float, raw_s: float) -> bool:
        return stamp_s < self._stamp_s - JUMP_S or raw_s < self._offset_s - JUMP_S

    def _is_confirmed(self, stamp_s: float, received_s: float) -> bool:
        """Whether the last few messages advanced together on the new clock."""
        if self._suspects:
            last_stamp_s, last_received_s = self._suspects[-1]
            agrees = abs((stamp_s - last_stamp_s) - (received_s - last_received_s)) < JUMP_S and stamp_s > last_stamp_s
            if not agrees:
                self._suspects = []
        self._suspects.append((stamp_s, received_s))
        return len(self._suspects) >= CONFIRM

    def _begin(self, received_s: float) -> None:
        self._quickest.clear()
        self._wall_s, self._same, self._count, self._advanced = -self._wall(), False, 0, False
        self._stamp_s, self._still_since_s = math.nan, received_s

    def _follow(self, stamp_s: float, received_s: float) -> None:
        if not stamp_s <= self._stamp_s:
            self._still_since_s, self._advanced = received_s, not math.isnan(self._stamp_s)
        self._stamp_s, self._received_s, self._count = stamp_s, received_s, self._count + 1
        raw_s = received_s - stamp_s
        while self._quickest and self._quickest[-1][1] >= raw_s:
            self._quickest.pop()
        self._quickest.append((received_s, raw_s))
        while self._quickest[0][0] < received_s - _WINDOW_S:
            self._quickest.popleft()
        way_s = self._quickest[0][1] - self._wall_s
        self._same = way_s >= -_EARLY_S and (self._same or way_s <= _SAME_S)
        self._offset_s = self._wall_s + (min(way_s, 0.0) if self._same else way_s)
