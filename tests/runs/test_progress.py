"""Progress lines with a clock of our own, and Ctrl-C with real signals."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from robot_rl.runs import provenance
from robot_rl.runs.progress import Progress, interruptible


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_line_a_minute_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO), Progress("imitate", total=1000, clock=clock, use_bar=False) as progress:
        progress.advance(100)  # resumed
        for _ in range(121):
            clock.now += 1.0
            progress.advance(2, "loss 0.5")
        assert len(caplog.records) == 2
    # 240 steps in 120 s after the resumed 100: 2/s; 1000 - 220 are left after 60 s.
    assert caplog.messages[0] == "imitate 220/1000, 1:00, 2/s, 6:30 left, loss 0.5"
    assert caplog.messages[1] == "imitate 340/1000, 2:00, 2/s, 5:30 left, loss 0.5"
    assert caplog.messages[2].startswith("imitate 342/1000, 2:01, 2/s")


def test_shares_add_up(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO), Progress("collect", total=10, clock=clock, use_bar=False) as progress:
        for seconds in (1.0, 2.0):
            with progress.share("simulation"):
                clock.now += seconds
        with suppress(ValueError), progress.share("policy"):
            clock.now += 1.0
            raise ValueError("an error inside is timed too")
    assert progress.shares == {"simulation": 3.0, "policy": 1.0}
    assert caplog.messages[-1].endswith("; of the time: simulation 75 %, policy 25 %")


def test_bar_does_not_need_a_terminal_to_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("export", total=3, use_bar=True) as progress:
        progress.advance(3, "parity 1e-6")
    assert progress.done == 3


def test_first_signal_sets_the_flag_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with interruptible() as stop:
            assert not stop.requested
            os.kill(os.getpid(), number)
            assert stop.requested
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="boom"), interruptible():
        raise ValueError("boom")
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_get_a_flag_that_stays_down() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interruptible() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_provenance_of_a_repository(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    run = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "code.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "first"]):
        subprocess.run([*run, *words], check=True)
    commit = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert provenance.git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("x = 2\n")
    assert provenance.git_state(tmp_path) == {"commit": commit, "dirty": True}
    # A folder that git ignores or does not know, e.g. site-packages inside somebody's repository.
    (tmp_path / "unknown").mkdir()
    assert provenance.git_state(tmp_path / "unknown") is None


def test_provenance_names_versions_and_machine_but_not_the_host() -> None:
    import json
    import platform

    import numpy

    facts = provenance.collect()
    assert facts["packages"]["numpy"] == numpy.__version__
    assert facts["python"] == platform.python_version()
    assert facts["cpu_count"] == os.cpu_count()
    assert facts["argv"] == sys.argv
    assert facts["memory_gib"] > 0.1
    assert {"git", "platform", "cpu_model", "usable_cpus", "gpus", "time"} <= facts.keys()
    json.dumps(facts, allow_nan=False)
    without_arguments = json.dumps({k: v for k, v in facts.items() if k != "argv"})
    assert platform.node() not in without_arguments or platform.node() in facts["platform"]
