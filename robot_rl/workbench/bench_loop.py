"""`bench loop`: how late the turns of a control loop begin at 100, 250, 500 and 1000 Hz, and what helps.

Each contender is a loop in a process of its own (bench_loop_case.py); the contenders of one rate run in turns. Peers pace
by a relative sleep, restated from what they do: `time.sleep(period - time used)`, counted anew in every turn (lerobot's
precise_sleep on Linux, openpi's runtime, hil-serl). Ours is the absolute schedule of deploy/schedule.py. A busy neighbour
is pure Python: as a thread in the loop's process, as a peer's inference or recording thread, or as a process beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.workbench.bench_timing import BenchError, Comparison, Measurement, Options, Report

RATES_HZ = (100, 250, 500, 1000)
ROUND_S = 0.5
OURS = "ours: all of it, process beside"
ISOLATED, THREAD = "absolute, busy process beside", "absolute, busy thread"
# What a loop is: absolute or relative; garbage: makes cycles on a heap of 400,000 objects; beside: busy neighbour.
CONTENDERS: dict[str, dict[str, Any]] = {
    "relative sleep (peers)": {"pacing": "relative"},
    "relative, busy thread (peers)": {"pacing": "relative", "beside": "thread"},
    "absolute": {},
    "absolute, garbage, gc on": {"garbage": True},
    "absolute, garbage, gc frozen": {"garbage": True, "freeze_gc": True},
    "absolute, FIFO": {"fifo": 80},
    "absolute, FIFO, mlockall": {"fifo": 80, "lock_memory": True},
    THREAD: {"beside": "thread"},
    ISOLATED: {"beside": "process"},
    OURS: {"fifo": 80, "lock_memory": True, "freeze_gc": True, "beside": "process"},
}
TARGET = 10.0
MOST_DRIFT = 1e-3


@dataclass
class Case:
    """One contender: its process, and what came of its rounds.

    Attributes:
        name: with its rate.
        rate_hz: of the loop.
        process: answers every line on stdin with one JSON line.
        rounds: what it answered.
    """

    name: str
    rate_hz: int
    process: subprocess.Popen[str]
    rounds: list[Mapping[str, Any]] = field(default_factory=list)

    def play(self) -> None:
        """One round.

        Raises:
            BenchError: the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{ROUND_S}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(
                f"bench loop, {self.name}", expected="a round", got=f"exit code {self.process.wait()}",
                hint="Its messages are above.",
            )  # fmt: skip
        self.rounds.append(json.loads(line))

    @property
    def late_s(self) -> Float64[Array, " n"]:
        """Of every turn behind the first round, which warms up."""
        return np.concatenate([np.array(turn["late_s"], np.float64) for turn in self.rounds[1:]])

    def measurement(self) -> Measurement:
        """The p99 of each round, so that rounds can be compared."""
        p99 = [max(float(np.percentile(turn["late_s"], 99)), 1e-9) for turn in self.rounds[1:]]
        return Measurement(self.name, 1, "p99 lateness", np.array(p99, np.float64)[:, None])

    def row(self) -> dict[str, Any]:
        """Percentiles in microseconds, drift as a share of the time, turns lost."""
        late_us, kept = 1e6 * self.late_s, self.rounds[1:]
        p50, p99, p999 = np.percentile(late_us, [50, 99, 99.9]).tolist()
        # Rounds begin anew, so drift adds up only inside each of them.
        drift = sum(turn["drift_s"] for turn in kept) / sum(turn["turns"] / self.rate_hz for turn in kept)
        return {
            "name": self.name, "turns": int(late_us.size), "p50_us": p50, "p99_us": p99, "p99.9_us": p999,
            "max_us": float(late_us.max()), "drift_percent": 100 * drift, "lost": sum(turn["lost"] for turn in kept),
            "granted": kept[0]["granted"],
        }  # fmt: skip


def run(options: Options) -> Report:
    """Measure all contenders at all rates.

    Raises:
        BenchError: a loop's process ended.
    """
    measurements, comparisons, rows = [], [], []
    for rate_hz in RATES_HZ:
        cases = measure(rate_hz, rounds=options.rounds)
        measurements += [case.measurement() for case in cases]
        rows += [case.row() for case in cases]
        # Without a priority a process beside only helps where a core is free for it, so it has no target of its own.
        for name, target in ((OURS, TARGET), (ISOLATED, None)):
            comparisons.append(Comparison(f"{rate_hz} Hz {name}", f"{rate_hz} Hz {THREAD}", target))
    facts = {
        "round_s": ROUND_S, "times": "of each round's p99 lateness; the ratio says how many times smaller ours is",
        "rows": rows, "table": table(rows),
        "drift_target_percent": 100 * MOST_DRIFT,
        "drift_met": {row["name"]: abs(row["drift_percent"]) < 100 * MOST_DRIFT for row in rows},
    }  # fmt: skip
    return Report(tuple(measurements), tuple(comparisons), facts)


def measure(rate_hz: int, *, rounds: int) -> list[Case]:
    """All contenders of one rate in turns; the first round warms up.

    Args:
        rate_hz: of the loops.
        rounds: measured ones.
    """
    with ExitStack() as stack:
        cases = [Case(f"{rate_hz} Hz {name}", rate_hz, _start(rate_hz, what)) for name, what in CONTENDERS.items()]
        for case in cases:
            stack.callback(_end, case.process)
        for _ in range(rounds + 1):
            for case in cases:
                case.play()
    return cases


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for people, a heading first."""
    heading = ("lateness, us", "p50", "p99", "p99.9", "max", "drift %", "lost", "not granted")
    lines = [
        (
            row["name"], *(f"{row[key]:.0f}" for key in ("p50_us", "p99_us", "p99.9_us", "max_us")),
            f"{row['drift_percent']:.3f}", str(row["lost"]),
            ", ".join(wish for wish, is_granted in row["granted"].items() if not is_granted) or "-",
        )
        for row in rows
    ]  # fmt: skip
    return [heading, *lines]


def _start(rate_hz: int, what: Mapping[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robot_rl.workbench.bench_loop_case", json.dumps({"rate_hz": rate_hz, **what})]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
