"""`bench ros2` without ROS: what the echo returns is told as it is, and judged by the promise."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from robot_rl.workbench import bench, bench_ros2
from robot_rl.workbench.bench_timing import Options


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    calls: list[tuple] = []

    def echo(rate_hz: float, *, seconds: float, in_loop: bool) -> dict[str, Any]:
        calls.append(("echo", rate_hz, seconds, in_loop))
        return {"handled": 0.998 if in_loop else 0.9995, "times_s": [0.001, 0.002], "p99_ms": 2.0}

    def camera(kind: str, reliability: str, *, seconds: float) -> dict[str, Any]:
        calls.append((kind, reliability, seconds))
        return {"delivered": 0.0 if (kind, reliability) == ("raw", "best_effort") else 1.0, "times_s": []}

    monkeypatch.setitem(sys.modules, "fake_echo", SimpleNamespace(echo=echo, camera=camera))
    monkeypatch.setattr(bench_ros2, "ECHO", "fake_echo")
    return calls


def test_500_hz_takes_the_time_and_all_is_told(played: list[tuple]) -> None:
    report = bench_ros2.run(Options(seconds=12.0))
    assert played[:2] == [("echo", 500.0, 12.0, False), ("echo", 500.0, 12.0, True)]
    assert {call[2] for call in played[2:]} == {2.0}
    assert report.facts["echo_500_hz_node"]["met"]
    assert not report.facts["echo_500_hz_loop"]["met"], "99.8 % is less than 99.9 %"
    first = report.measurements[0].to_json()
    assert first["name"] == "echo 500 Hz, node, 99.950 % came back"
    assert (first["min_ms"], first["p50_ms"]) == (1.0, 1.5)
    assert report.measurements[-2].name == "camera raw, best_effort publisher, 0.0 % delivered"
    assert report.measurements[-2].seconds.shape == (1, 1), "nothing came: not a number, and no crash"


def test_it_is_asked_for_by_name_only() -> None:
    assert "ros2" in bench.ALONE
    assert "ros2" not in bench.BENCHMARKS
