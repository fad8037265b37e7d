"""Timing for `robot-rl bench`: contenders measured in turns, ratios of paired rounds, and how busy the machine was.

Speed of a shared machine drifts, so contenders that are compared run in turns (A B A B ...) in one process. A ratio is
the median over rounds of the ratio inside a round, with a bootstrap interval; the ratio of the minima stands beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import RobotRlError
from robot_rl.workbench.cores import allowed_cpus

# Of the allowed CPUs, others may take this share; a busy neighbour also takes memory bandwidth and clock rate.
OTHERS_ALLOWED = 0.25
PROBE_S = 1.0


class BenchError(RobotRlError):
    """A benchmark can't be measured, or not be trusted, on this machine as it is now."""


@dataclass(frozen=True)
class Contender:
    """One thing to time.

    Attributes:
        name: in tables, and in comparisons.
        call: does `work` units of work; its result is thrown away.
        work: units done by one call.
        unit: of the work, e.g. "windows".
        repeats: calls in a round, each timed by itself.
        prepare: called before each round, not timed.
        settle_s: pause behind each round, so that work left in the background does not fall on the next contender.
        most_rounds: it plays no more than the first so many; None for all.
    """

    name: str
    call: Callable[[], object]
    work: int | float
    unit: str
    repeats: int = 1
    prepare: Callable[[], object] | None = None
    settle_s: float = 0.0
    most_rounds: int | None = None


@dataclass(frozen=True)
class Measurement:
    """All times of one contender.

    Attributes:
        name, work, unit: of the contender.
        seconds: float64 (R, n): R rounds of n calls.
    """

    name: str
    work: int | float
    unit: str
    seconds: Float64[Array, "R n"]

    @property
    def round_seconds(self) -> Float64[Array, " R"]:
        """Median time of a call in each round."""
        return np.median(self.seconds, axis=1)

    @property
    def rate(self) -> float:
        """Units of work per second, at the median time."""
        return self.work / float(np.median(self.seconds))

    def to_json(self) -> dict[str, Any]:
        """Times of one call in milliseconds, and rates in units per second."""
        milliseconds = 1e3 * self.seconds
        p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
        rounds, repeats = self.seconds.shape
        return {
            "name": self.name, "unit": self.unit, "work_per_call": self.work, "rounds": rounds, "repeats": repeats,
            "min_ms": float(milliseconds.min()), "p50_ms": p50, "p99_ms": p99,
            "rate_p50": self.rate, "rate_best": self.work / float(self.seconds.min()),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A ratio of rates that is to be shown.

    Attributes:
        ours, peer: names of contenders.
        target: least ratio ours / peer that the project promises; None for no promise.
    """

    ours: str
    peer: str
    target: float | None = None


@dataclass(frozen=True)
class Report:
    """What a benchmark returns.

    Attributes:
        measurements: of all contenders.
        comparisons: ratios to show.
        facts: JSON types: sizes, versions, checks.
        unseen_s: CPU seconds of its own processes that no system clock of this process has any more, see own_seconds.
    """

    measurements: tuple[Measurement, ...]
    comparisons: tuple[Comparison, ...]
    facts: dict[str, Any]
    unseen_s: float = 0.0


@dataclass(frozen=True)
class Options:
    """What the command line says to every benchmark.

    Attributes:
        rounds: of every contender; one more is played and thrown away.
        threads: of torch and onnxruntime.
        env: config group choice of the `env` benchmark.
        dataset: EpisodeStore for `sample` and `train`; None makes one of random numbers.
        seconds: of the longest measurement of `ros2`.
        image_size: pixels a side of `vision`.
        peer: Python of LeRobot's environment, for `lerobot`.
        nets: of `infer`; empty for all.
        compiled: `infer` measures torch.compile too, which takes minutes.
        policy: run of a diffusion policy for `infer`, in place of random weights; needs `dataset`.
        one_step: run of a one-step head for `infer` with `policy`.
        episodes: a setting plays in `env`, for `infer` with `policy`; None: 100.
    """

    rounds: int = 15
    threads: int = 1
    env: str = "pick_cube"
    dataset: str | None = None
    seconds: float = 60.0
    image_size: int = 128
    peer: str | None = None
    nets: tuple[str, ...] = ()
    compiled: bool = False
    policy: str | None = None
    one_step: str | None = None
    episodes: int | None = None


def interleave(
    contenders: Sequence[Contender], *, rounds: int, on_turn: Callable[[str], None] = lambda name: None
) -> tuple[Measurement, ...]:
    """Time the contenders in turns; the first round warms up and is thrown away.

    Args:
        contenders: at least one; names differ.
        rounds: R, measured rounds.
        on_turn: called with the name of a contender behind each of its rounds, not timed.

    Raises:
        BenchError: no rounds, or two contenders of one name.
    """
    names = [contender.name for contender in contenders]
    if rounds < 1 or len(set(names)) < len(names):
        raise BenchError(
            "bench", expected="at least one round and different names", got=f"{rounds} rounds of {names}",
            hint="Use --rounds 15.",
        )  # fmt: skip
    seconds = {name: list[list[float]]() for name in names}
    for turn in range(rounds + 1):
        for contender in contenders:
            if contender.most_rounds is not None and turn > contender.most_rounds:
                continue
            row = _round(contender)
            if turn:
                seconds[contender.name].append(row)
            on_turn(contender.name)
    return tuple(Measurement(c.name, c.work, c.unit, np.array(seconds[c.name], np.float64)) for c in contenders)


def _round(contender: Contender) -> list[float]:
    if contender.prepare is not None:
        contender.prepare()
    row = []
    for _ in range(contender.repeats):
        began = time.perf_counter()
        contender.call()
        row.append(time.perf_counter() - began)
    if contender.settle_s:
        time.sleep(contender.settle_s)
    return row


def compare(ours: Measurement, peer: Measurement, *, target: float | None) -> dict[str, Any]:
    """Ratio of the rates ours / peer, over the rounds that both played.

    Returns:
        `ratio`: median over rounds of the ratio of the round medians; `low`, `high`: its 95 % percentile bootstrap
        interval over rounds (Efron 1979; 2,000 resamples, seed 0), None below 5 rounds; `ratio_best`: of the fastest
        calls; `target`; `met`: ratio >= target, None without one.
    """
    both = min(len(ours.seconds), len(peer.seconds))
    rates = np.stack([m.work / m.round_seconds[:both] for m in (ours, peer)])
    ratios = rates[0] / rates[1]
    low = high = None
    if len(ratios) >= 5:
        picks = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
        low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5]).tolist()
    ratio = float(np.median(ratios))
    best = (ours.work / float(ours.seconds.min())) / (peer.work / float(peer.seconds.min()))
    met = None if target is None else ratio >= target
    return {
        "ours": ours.name, "peer": peer.name, "ratio": ratio, "low": low, "high": high, "ratio_best": best,
        "target": target, "met": met,
    }  # fmt: skip


class LoadWatch:
    """How many cores other processes used since it was made, from the system's CPU clocks."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), own_seconds()

    def others(self, *, unseen_s: float = 0.0) -> float:
        """Cores in use by other processes, mean since it was made; this process and its children are taken out.

        Args:
            unseen_s: see Report.
        """
        passed = max(time.monotonic() - self._began, 1e-9)
        return max(0.0, (_busy_seconds() - self._busy - (own_seconds() - self._own) - unseen_s) / passed)


def probe_others() -> float:
    """Cores in use by other processes over one second in which this one sleeps."""
    watch = LoadWatch()
    time.sleep(PROBE_S)
    return watch.others()


def is_overloaded(others: float, *, load: float, cpus: int, own_load: bool) -> bool:
    """Whether ratios can't be trusted.

    Args:
        others: cores in use by other processes.
        load: 1-minute load average.
        cpus: allowed ones. Not less where a container has a quota: other processes can't take from that, and both
            figures above count all the CPUs.
        own_load: whether the load average holds this process's own work (behind a benchmark); it is then no evidence.
    """
    return others > OTHERS_ALLOWED * cpus or (not own_load and load > cpus + 0.5)


def _busy_seconds() -> float:
    """CPU seconds in use on the allowed CPUs since boot; time stolen by the host counts as used."""
    import psutil

    clocks = psutil.cpu_times(percpu=True)
    idle = ("idle", "iowait", "guest", "guest_nice")  # guest time is in user time already
    return sum(
        sum(value for name, value in clocks[i]._asdict().items() if name not in idle)
        for i in allowed_cpus()
        if i < len(clocks)
    )


def own_seconds() -> float:
    """CPU seconds of this process and its children, ended or not.

    Of a child's children that ended before it waited for them nothing is known any more: then it falls (Ray's workers).
    """
    import psutil

    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            clocks = child.cpu_times()
        except psutil.Error:  # it ended meanwhile; then it is among the ended ones at the next look
            continue
        total += clocks.user + clocks.system
    return float(total)
