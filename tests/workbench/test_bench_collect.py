"""`bench collect`: a short session counts what it should; the figures themselves are for a quiet machine."""

from __future__ import annotations

from robot_rl.workbench import bench_collect


def test_a_short_session_records_and_counts() -> None:
    row = bench_collect.measure(20.0, 1.0)
    # 20 steps on a quiet machine; a busy one skips, and says so.
    assert 1 <= row["steps"] <= 25
    assert row["steps"] + row["skipped"] >= 19
    assert 0 <= row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] * 1.02
    picture = bench_collect.WIDTH * bench_collect.HEIGHT * 3
    assert row["bytes"] >= row["steps"] * picture, "a new picture of at least one camera in every row was written"
    heading, line = bench_collect.table([row])
    assert len(heading) == len(line)
