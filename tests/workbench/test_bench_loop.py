"""bench loop: its loops count right, its table has every contender, and the neighbours really compute."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from robot_rl.workbench import bench, bench_loop, bench_loop_case
from robot_rl.workbench.bench_loop import CONTENDERS, Case
from robot_rl.workbench.bench_timing import BenchError, Options


def case(*rounds: dict[str, object]) -> Case:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return Case("100 Hz a", 100, process, [{"late_s": [9.0]}, *rounds])


def test_numbers_of_a_row_by_hand() -> None:
    """Two rounds of 100 turns at 100 Hz: 2 ms and 4 ms of drift in 2 s are 0.3 %; the warm-up round does not count."""
    late_s = (np.arange(1, 101) * 1e-6).tolist()
    granted = {"SCHED_FIFO 80": False, "mlockall": True}
    made = case(
        {"late_s": late_s, "turns": 100, "lost": 1, "drift_s": 0.002, "granted": granted},
        {"late_s": late_s, "turns": 100, "lost": 2, "drift_s": 0.004, "granted": granted},
    )
    row = made.row()
    assert (row["turns"], row["lost"]) == (200, 3)
    assert row["p50_us"] == pytest.approx(50.5)
    assert row["max_us"] == pytest.approx(100)
    assert row["drift_percent"] == pytest.approx(0.3)
    heading, line = bench_loop.table([row])
    assert len(heading) == len(line)
    assert line[-1] == "SCHED_FIFO 80"
    measured = made.measurement()
    assert measured.seconds.shape == (2, 1)
    assert measured.seconds[0, 0] == pytest.approx(np.percentile(late_s, 99))


def test_our_loop_counts_every_turn() -> None:
    found = bench_loop_case.absolute(200.0, 0.2, has_garbage=True)
    assert len(found["late_s"]) + found["lost"] == found["turns"] >= 40
    assert min(found["late_s"]) >= 0.0


def test_a_relative_sleep_drifts_by_what_its_turns_are_late() -> None:
    found = bench_loop_case.relative(200.0, 0.2, has_garbage=False)
    assert (len(found["late_s"]), found["turns"]) == (40, 40)
    assert found["drift_s"] == pytest.approx(sum(found["late_s"]), abs=1e-3)
    assert found["drift_s"] > 0.0


@pytest.mark.parametrize("beside", ["thread", "process", ""])
def test_neighbours_come_and_go(beside: str) -> None:
    before = threading.active_count()
    with bench_loop_case.busy(beside):
        assert threading.active_count() == before + (beside == "thread")
    deadline_s = time.monotonic() + 30.0
    while threading.active_count() > before:
        assert time.monotonic() < deadline_s


def test_one_rate_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loop, "ROUND_S", 0.05)
    monkeypatch.setattr(bench_loop, "RATES_HZ", (500,))
    few = {name: CONTENDERS[name] for name in (bench_loop.OURS, bench_loop.THREAD, bench_loop.ISOLATED)}
    monkeypatch.setattr(bench_loop, "CONTENDERS", few)
    report = bench_loop.run(Options(rounds=1))
    assert [row["name"] for row in report.facts["rows"]] == [f"500 Hz {name}" for name in few]
    assert {c.ours for c in report.comparisons} | {c.peer for c in report.comparisons} == {f"500 Hz {n}" for n in few}
    json.dumps(report.facts)
    load = dict.fromkeys(
        ("average_before", "average_after", "others_before_cores", "others_during_cores", "others_allowed_cores"), 0.0
    )
    result = {
        "measurements": [m.to_json() for m in report.measurements], "ratios": bench.ratios(report),
        "facts": report.facts, "load": load | {"allowed_cpus": 2}, "overloaded": False, "refused": False,
    }  # fmt: skip
    text = bench.as_table("loop", result)
    assert "lateness, us" in text
    assert f"500 Hz {bench_loop.OURS}" in text


def test_a_loop_that_dies_is_said() -> None:
    made = Case("100 Hz a", 100, bench_loop._start(100, {"rate_hz": "nonsense"}))
    with pytest.raises(BenchError, match="exit code"):
        made.play()
    bench_loop._end(made.process)


def test_every_contender_is_known() -> None:
    keys = {key for what in CONTENDERS.values() for key in what}
    assert keys == {"pacing", "beside", "garbage", "freeze_gc", "fifo", "lock_memory"}
    assert {what.get("beside", "") for what in CONTENDERS.values()} == {"", "thread", "process"}
