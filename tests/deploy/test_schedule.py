"""Schedule, jitter histogram, real-time wishes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from robot_rl.deploy.realtime import RealtimeConfig, as_text, realtime
from robot_rl.deploy.schedule import Jitter, ManualClock, MonotonicClock, Schedule, Slot, TimeHistogram
from robot_rl.errors import ConfigError


def test_slots_keep_their_phase_however_long_the_work_takes() -> None:
    clock = ManualClock(100.0)
    schedule = Schedule(10.0, clock=clock)
    slots = []
    for work_s in (0.0, 0.05, 0.09, 0.0):
        slots.append(schedule.wait())
        clock.advance(work_s)
    assert [slot.index for slot in slots] == [0, 1, 2, 3]
    np.testing.assert_allclose([slot.due_s for slot in slots], [100.1, 100.2, 100.3, 100.4], rtol=0, atol=1e-9)
    assert all(slot.late_s < 1e-9 and slot.skipped == 0 for slot in slots)


def test_slots_that_cannot_be_kept_are_skipped_and_counted() -> None:
    clock = ManualClock(0.0)
    schedule = Schedule(10.0, clock=clock)
    assert schedule.wait().index == 0  # at 0.1
    clock.advance(0.15)  # 0.25: slot 1 (0.2) is late, slot 2 (0.3) is not due
    late = schedule.wait()
    assert (late.index, late.skipped) == (1, 0)
    assert late.late_s == pytest.approx(0.05)
    clock.advance(0.38)  # 0.63: slots 2, 3, 4 (0.3, 0.4, 0.5) are gone, slot 5 is due at 0.6
    after = schedule.wait()
    assert (after.index, after.skipped) == (5, 3)
    assert after.late_s == pytest.approx(0.03)
    assert schedule.wait().index == 6
    assert schedule.jitter.skipped == 3
    assert schedule.jitter.handled == 4


@pytest.mark.parametrize("rate_hz", [100.0, 30.0, 1000.0 / 3.0])
def test_no_rounding_adds_up_over_a_million_slots(rate_hz: float) -> None:
    schedule = Schedule(rate_hz, clock=ManualClock(0.0))
    assert schedule.due_s(10**6) == pytest.approx((10**6 + 1) / rate_hz, rel=1e-12)


def test_a_relative_sleep_drifts_where_the_schedule_does_not() -> None:
    """Each turn wakes up 0.1 ms late and works 1 ms: the peers' sleep(period - work) loses 0.1 ms a turn."""

    class LateClock(ManualClock):
        def sleep_until(self, deadline_s: float) -> None:
            if deadline_s > self.now():
                super().sleep_until(deadline_s + 1e-4)

    clock = LateClock(0.0)
    schedule = Schedule(100.0, clock=clock)
    for _ in range(1001):
        schedule.wait()
        clock.advance(1e-3)
    assert schedule.jitter.drift_s == pytest.approx(0.0, abs=1e-9)
    assert schedule.jitter.late.percentile_s(50.0) == pytest.approx(1e-4, rel=0.02)
    clock, began = LateClock(0.0), 0.0
    for _ in range(1000):
        turn_s = clock.now()
        clock.advance(1e-3)
        clock.sleep_until(clock.now() + 0.01 - (clock.now() - turn_s))
    assert clock.now() - began - 1000 * 0.01 == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_rates_that_are_none(rate_hz: float) -> None:
    with pytest.raises(ConfigError, match="rate_hz"):
        Schedule(rate_hz, clock=ManualClock())


def test_histogram_percentiles_agree_with_numpy_to_two_percent() -> None:
    seconds = np.random.default_rng(0).lognormal(-8, 1.5, 20_000)
    histogram = TimeHistogram()
    for value in seconds.tolist():
        histogram.add(value)
    for percent in (1.0, 50.0, 90.0, 99.0, 99.9):
        exact = np.percentile(seconds, percent, method="inverted_cdf")
        assert exact <= histogram.percentile_s(percent) <= exact * 1.0201
    assert histogram.most_s == seconds.max()
    plain = histogram.to_json()
    edges = [float(edge) for edge in plain["histogram_us"]]
    counted = np.histogram(1e6 * seconds, [0.0, *edges])[0]
    # Bins are 2 % wide, so a count may lie on the other side of a shown edge by that much.
    near = [((1e6 * seconds > 0.98 * edge) & (1e6 * seconds < 1.02 * edge)).sum() for edge in edges]
    off = np.abs(np.array(list(plain["histogram_us"].values())) - counted)
    assert (off <= np.add(near, [0, *near[:-1]])).all()
    assert plain["count"] == 20_000 == sum(plain["histogram_us"].values())


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9, 1e3])
def test_histogram_takes_any_time(seconds: float) -> None:
    histogram = TimeHistogram()
    assert histogram.percentile_s(50.0) == 0.0
    histogram.add(seconds)
    assert 0.0 <= histogram.percentile_s(99.0) <= max(seconds, 1e-6)


def test_jitter_as_json() -> None:
    jitter = Jitter(0.1)
    for index, late_s in ((0, 0.001), (1, 0.002), (4, 0.004)):
        jitter.add(Slot(index, 0.1 * index, late_s, 2 if index == 4 else 0))
    plain = json.loads(json.dumps(jitter.to_json()))
    assert (plain["handled"], plain["skipped"]) == (3, 2)
    assert plain["max_us"] == pytest.approx(204_000)  # the third slot stands for two that were skipped, 0.2 s before
    assert plain["p50_us"] == pytest.approx(2000, rel=0.02)
    assert plain["drift_us"] == pytest.approx(3000)  # newest 4 ms late, first 1 ms


def test_the_machines_clock_is_absolute_and_monotonic() -> None:
    clock = MonotonicClock()
    deadline_s = clock.now() + 0.02
    clock.sleep_until(deadline_s)
    woke_s = clock.now()
    clock.sleep_until(deadline_s)  # past: at once
    assert woke_s >= deadline_s
    assert clock.now() - woke_s < 0.5


def test_wishes_are_answered_and_taken_back() -> None:
    before = os.sched_getscheduler(0), os.sched_getaffinity(0), gc.isenabled()
    config = RealtimeConfig(fifo_priority=None, lock_memory=False, cpus=(min(os.sched_getaffinity(0)),))
    with realtime(config) as grants:
        assert [grant.wish for grant in grants if grant.is_granted][-1] == "gc frozen"
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    assert (os.sched_getscheduler(0), os.sched_getaffinity(0), gc.isenabled()) == before
    assert gc.get_freeze_count() == 0


def test_what_is_not_granted_is_said() -> None:
    with realtime(RealtimeConfig(freeze_gc=False, fifo_priority=1000, lock_memory=False, cpus=(4095,))) as grants:
        assert [grant.is_granted for grant in grants] == [False, False]
        assert "SCHED_FIFO 1000: NO" in as_text(grants)
        assert "CPUs 4095: NO" in as_text(grants)
    with realtime(RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)) as grants:
        assert as_text(grants) == "nothing asked for"


def test_priority_and_memory_in_a_process_of_their_own() -> None:
    """Either granted and true, or refused and said; children do not inherit the priority."""
    code = """
import json, os, subprocess, sys
from robot_rl.deploy.realtime import RealtimeConfig, realtime
with realtime(RealtimeConfig(fifo_priority=5)) as grants:
    child = subprocess.run([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True)
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    inside = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    print(json.dumps([[g.wish, g.is_granted] for g in grants] + [inside, int(child.stdout), status["VmLck"].split()[0]]))
print(os.sched_getscheduler(0), os.SCHED_FIFO)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    memory, fifo, frozen, inside, child, locked_kb = json.loads(first)
    assert (memory[0], fifo[0], frozen[0]) == ("mlockall", "SCHED_FIFO 5", "gc frozen")
    assert frozen[1]
    assert (inside == os.SCHED_FIFO) == fifo[1]
    assert (int(locked_kb) > 1000) == memory[1]
    assert child == 0
    assert second.split() == ["0", str(os.SCHED_FIFO)]
