"""How regularly a session's own loop turns, so that its standstill is not taken for a device that says nothing."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

# A turn that comes so late is a standstill: people feel it, and it is worth a word in the episode.
STALL_S = 0.25


class LoopWatch:
    """Times of the last turns.

    Args:
        hz: turns a second that are wanted.
        kept: turns that are remembered.
    """

    def __init__(self, hz: float, *, kept: int = 100) -> None:
        self._period_s = 1.0 / hz
        self._times: deque[float] = deque(maxlen=kept)
        self._read_s = 0.0

    @property
    def rate(self) -> float:
        """Turns a second, of the last ones."""
        times = self._times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def turn(self, now_s: float, *, asked_s: float) -> str:
        """Note one turn; gives what is said of it when the loop stood still before it, else "".

        Args:
            now_s: when the robot was read.
            asked_s: when it was asked.
        """
        late_s = now_s - self._times[-1] - self._period_s if self._times else 0.0
        self._times.append(now_s)
        self._read_s = now_s - asked_s
        return self._text(late_s) if late_s > STALL_S else ""

    def explains(self, command_s: float) -> str:
        """Why the device's newest command is old: what is said when the loop stood still for half of its age, else "".

        Args:
            command_s: stamp of that command.
        """
        since = [max(time_s, command_s) for time_s in self._times]
        still_s = sum(max(0.0, after - before - self._period_s) for before, after in pairwise(since))
        return self._text(still_s) if still_s > 0.5 * (since[-1] - command_s) else ""

    def _text(self, still_s: float) -> str:
        read = f", {min(self._read_s, still_s):.2f} s of it to read the robot" if self._read_s > 0.5 * still_s else ""
        return f"the session's own loop stood still for {still_s:.2f} s{read}: the machine is too busy, or a disk or driver hangs"
