"""What the processes of one mock robot know of each other."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


class SharedState:
    """What the processes of one mock robot know of each other, in a file: times of the last stop and the last command.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            fresh = path.with_suffix(f".{os.getpid()}")
            np.zeros(4).tofile(fresh)
            fresh.replace(path)
        self._numbers = np.memmap(path, np.float64, "r+", shape=(4,))

    @property
    def stopped_s(self) -> float:
        """When it was stopped first since the last release; 0: it was not."""
        return float(self._numbers[0])

    @property
    def commanded_s(self) -> float:
        """When the last command came that was followed."""
        return float(self._numbers[2])

    @property
    def commands(self) -> int:
        """How many were followed."""
        return int(self._numbers[3])

    @property
    def stopper(self) -> int:
        """Process that stopped it; 0: none."""
        return int(self._numbers[1]) if self._numbers[0] else 0

    @property
    def stopped_by_other(self) -> bool:
        """Whether another process stopped the robot."""
        return self.stopper not in (0, os.getpid())

    def stop(self, now_s: float) -> None:
        """The first stop stays."""
        if not self._numbers[0]:
            self._numbers[1] = os.getpid()
            self._numbers[0] = now_s

    def commanded(self, now_s: float) -> None:
        """One more command; the process that stopped the robot may move it again."""
        if self.stopper == os.getpid():
            self._numbers[0:2] = 0.0
        self._numbers[2] = now_s
        self._numbers[3] += 1

    def release(self) -> None:
        """A person lets the robot move again."""
        self._numbers[0:2] = 0.0
