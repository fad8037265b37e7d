"""One loop of `bench loop` in its process: a line on stdin starts a round of so many seconds, a JSON line answers it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robot_rl.deploy.realtime import RealtimeConfig, realtime
from robot_rl.deploy.schedule import MonotonicClock, Schedule

_HEAP = 400_000
_BUSY = "while True:\n    sum(range(1000))\n"


class Cell:
    """Holds itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


def main(words: list[str]) -> int:
    """Answer rounds until stdin ends.

    Args:
        words: one JSON text: rate_hz, and what CONTENDERS of bench_loop says.
    """
    case = json.loads(words[0])
    heap = [[number] for number in range(_HEAP)] if case.get("garbage") else []
    config = RealtimeConfig(
        freeze_gc=case.get("freeze_gc", False),
        fifo_priority=case.get("fifo"),
        lock_memory=case.get("lock_memory", False),
    )
    for line in sys.stdin:
        with busy(case.get("beside", "")), realtime(config) as grants:
            loop = relative if case.get("pacing") == "relative" else absolute
            found = loop(case["rate_hz"], float(line), has_garbage=bool(heap))
        print(json.dumps(found | {"granted": {grant.wish: grant.is_granted for grant in grants}}), flush=True)
    return 0


def absolute(rate_hz: float, seconds: float, *, has_garbage: bool) -> dict[str, Any]:
    """Our schedule.

    Returns:
        Lateness of every turn, since the first lost one was due where some were lost; number of turns with the lost ones;
        turns lost; drift.
    """
    schedule = Schedule(float(rate_hz), clock=MonotonicClock())
    late_s, turns = list[float](), round(seconds * rate_hz)
    while True:
        slot = schedule.wait()
        late_s.append(slot.late_s + slot.skipped * schedule.period_s)
        _work(has_garbage)
        if slot.index + 1 >= turns:
            break
    jitter = schedule.jitter
    return {"late_s": late_s, "turns": slot.index + 1, "lost": jitter.skipped, "drift_s": jitter.drift_s}


def relative(rate_hz: float, seconds: float, *, has_garbage: bool) -> dict[str, Any]:
    """The peers' way: sleep for what is left of the period since this turn began. Returns as `absolute`."""
    period_s, late_s, turns = 1.0 / rate_hz, list[float](), round(seconds * rate_hz)
    began_s = first_s = time.monotonic()
    for _ in range(turns):
        _work(has_garbage)
        time.sleep(max(period_s - (time.monotonic() - began_s), 0.0))
        now_s = time.monotonic()
        late_s.append(max(now_s - began_s - period_s, 0.0))
        began_s = now_s
    drift_s = began_s - first_s - turns * period_s
    return {"late_s": late_s, "turns": turns, "lost": int(drift_s / period_s), "drift_s": drift_s}


def _work(has_garbage: bool) -> None:
    if has_garbage:
        for _ in range(20):
            Cell()


@contextmanager
def busy(beside: str) -> Iterator[None]:
    """A neighbour that computes in pure Python: "thread", "process" or ""."""
    if beside == "process":
        with subprocess.Popen([sys.executable, "-c", _BUSY]) as process:
            try:
                yield
            finally:
                process.kill()
    elif beside == "thread":
        is_over = threading.Event()

        def compute() -> None:
            while not is_over.is_set():
                sum(range(1000))

        thread = threading.Thread(target=compute, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
    else:
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
