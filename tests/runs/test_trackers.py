"""Trackers: every line arrives once, and none of their failures reaches the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from robot_rl.errors import ConfigError
from robot_rl.runs import trackers
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.trackers import Follower


class Recorder:
    """Keeps what it is given."""

    seen: ClassVar[list[tuple[str, int, dict[str, float]]]] = []
    closed: ClassVar[list[str]] = []

    def __init__(self, run: Path, *, project: str) -> None:
        self.name = run.name

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((self.name, step, dict(values)))

    def close(self) -> None:
        self.closed.append(self.name)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "seen", [])
    monkeypatch.setattr(Recorder, "closed", [])
    monkeypatch.setitem(trackers.TRACKERS, "recorder", Recorder)
    return Recorder


def write(path: Path, *steps: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with MetricsWriter(path) as metrics:
        for step in steps:
            metrics.write(step, {"a/b": step / 2})


def test_every_line_of_run_and_children_arrives_once(tmp_path: Path, recorder: type[Recorder]) -> None:
    write(tmp_path / "metrics.jsonl", 1)
    with Follower(tmp_path, ["recorder"], poll_s=0.01):
        write(tmp_path / "metrics.jsonl", 2, 3)
        write(tmp_path / "stages/child/metrics.jsonl", 10)
        with open(tmp_path / "stages/child/metrics.jsonl", "a") as file:
            file.write('{"step": 11, "a/b"')  # torn: must wait for its newline
            file.flush()
            time.sleep(0.1)
            file.write(": 5.5}\n")
    here = [(step, values["a/b"]) for name, step, values in recorder.seen if name == tmp_path.name]
    child = [(step, values["a/b"]) for name, step, values in recorder.seen if name == "child"]
    assert here == [(2, 1.0), (3, 1.5)]  # line 1 belongs to the process before
    assert child == [(10, 5.0), (11, 5.5)]
    assert sorted(recorder.closed) == sorted(set(recorder.closed))
    assert recorder.closed[-1] == "child"


def test_a_resumed_stage_cuts_its_file_back(tmp_path: Path, recorder: type[Recorder]) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20, 30)
    with Follower(tmp_path, ["recorder"], poll_s=0.01), MetricsWriter(path, resume_step=10) as metrics:
        time.sleep(0.1)
        metrics.write(20, {"a/b": 7.0})
    assert [(step, values["a/b"]) for _, step, values in recorder.seen] == [(20, 7.0)]


@pytest.mark.parametrize("kind", ["init", "write", "exit", "missing"])
def test_a_failing_tracker_is_one_warning(
    tmp_path: Path,
    recorder: type[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    class Broken(Recorder):
        def __init__(self, run: Path, *, project: str) -> None:
            if kind == "init":
                raise ConnectionError("no network")
            if kind == "missing":
                raise ModuleNotFoundError("no", name="wandb")

        def write(self, step: int, values: Mapping[str, float]) -> None:
            raise SystemExit(1) if kind == "exit" else OSError("disk full")

    monkeypatch.setitem(trackers.TRACKERS, "broken", Broken)
    with caplog.at_level(logging.WARNING), Follower(tmp_path, ["broken", "recorder"], poll_s=0.01):
        write(tmp_path / "metrics.jsonl", 1, 2, 3)
    assert len([record for record in caplog.records if "tracker broken is off" in record.getMessage()]) == 1
    assert [step for _, step, _ in recorder.seen] == [1, 2, 3]


def test_a_hanging_tracker_does_not_hold_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    class Hanging(Recorder):
        def __init__(self, run: Path, *, project: str) -> None:
            super().__init__(run, project=project)
            release.wait(30)

    monkeypatch.setitem(trackers.TRACKERS, "hanging", Hanging)
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.2)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), Follower(tmp_path, ["hanging"], poll_s=0.01):
        write(tmp_path / "metrics.jsonl", 1)
        time.sleep(0.1)
    assert time.monotonic() - began < 20
    assert "left behind" in caplog.text
    release.set()
    for thread in threading.enumerate():
        if thread.name == "trackers":
            thread.join(20)


def test_unknown_tracker_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensorboard, wandb, trackio.*tensorboard"):
        Follower(tmp_path, ["tensorbord"])


def test_tensorboard_reads_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Follower(tmp_path, ["tensorboard"], poll_s=0.01):
        write(tmp_path / "metrics.jsonl", 5, 6)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a/b")] == [(5, 2.5), (6, 3.0)]
