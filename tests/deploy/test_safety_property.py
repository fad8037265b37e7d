"""Whatever commands come, whenever they come, what leaves either safety layer breaks no limit (tests/support/command_streams)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import command_streams
import numpy as np
import pytest

pytest.importorskip("ruckig")
QUICK, ALL, PART = 200, 10_000, 500
STREAMS = Path(command_streams.__file__)


def test_the_judge_sees_a_limit_broken_by_two_percent() -> None:
    """Constant jerk 6 from rest: x = t^3, v = 3 t^2, a = 6 t; over uneven steps each is seen with its largest value."""
    gaps = np.random.default_rng(0).uniform(0.01, 0.03, 60)
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    places, end = times[:, None] ** 3, times[-1]
    true = (3 * end**2, 6 * end, 6.0)
    assert command_streams.worst(places, gaps, true, 0.0) <= 1.0
    for index in range(3):
        limits = [1e9] * 3
        limits[index] = true[index] / (1.02 if index == 2 else 1.08)  # averages over a step lag behind v and a
        assert command_streams.worst(places, gaps, tuple(limits), 1e-9) > 1.0


def run(stream: str, first: int, stop: int) -> float:
    """In a process of its own, without checked annotations."""
    words = [sys.executable, str(STREAMS), stream, str(first), str(stop)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("stream", ["joint_stream", "pose_stream"])
def test_hundreds_of_streams_break_no_limit(stream: str) -> None:
    worst = run(stream, 0, QUICK)
    # Speeds are used to the full: the judge looks at motion, not at a robot that stands.
    assert 0.99 < worst <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(ALL // PART))
@pytest.mark.parametrize("stream", ["joint_stream", "pose_stream"])
def test_ten_thousand_streams_break_no_limit(stream: str, part: int) -> None:
    assert run(stream, part * PART, (part + 1) * PART) <= 1.0
