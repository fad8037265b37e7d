"""metrics.jsonl: exact numbers back, nothing that is no number, and a resume that forgets the future."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from robot_rl.errors import RunError
from robot_rl.runs.metrics import MetricsWriter, read_metrics


def test_round_trip_is_exact_and_visible_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write(1, {"imitate/train_loss": 0.1 + 0.2, "imitate/episodes": 3})
        assert read_metrics(path) == [{"step": 1, "imitate/train_loss": 0.30000000000000004, "imitate/episodes": 3}]
        metrics.write(1, {"eval/success_once": 0.5})
    assert [line["step"] for line in read_metrics(path)] == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_names_metric_and_step(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        with pytest.raises(RunError, match=r"metric 'imitate/grad_norm', step 7: expected a finite number"):
            metrics.write(7, {"imitate/train_loss": 1.0, "imitate/grad_norm": value})
        with pytest.raises(RunError, match="'step'"):
            metrics.write(7, {"step": 1.0})
    assert path.read_text() == ""


def write_steps(path: Path, *steps: int) -> None:
    with MetricsWriter(path) as metrics:
        for step in steps:
            metrics.write(step, {"a": float(step)})


def test_resume_cuts_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 10, 20, 20, 30, 40)
    with open(path, "a") as file:
        file.write('{"step": 50, "a": 5')
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 20, 30, 40]
    with MetricsWriter(path, resume_step=20) as metrics:
        metrics.write(25, {"a": 1.0})
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 20, 25]


def test_reopening_drops_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 2)
    # Complete JSON without its newline may have lost digits: it counts as torn.
    with open(path, "a") as file:
        file.write('{"step": 3, "a": 1}')
    write_steps(path, 4)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 4]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1)
    with open(path, "a") as file:
        file.write("garbage\n")
        file.write('{"step": 2}\n')
    for reader in (read_metrics, MetricsWriter):
        with pytest.raises(RunError, match="line 2"):
            reader(path)
    with pytest.raises(RunError, match="absent"):
        read_metrics(tmp_path / "absent")
