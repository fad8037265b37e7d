"""sweep: the grid, the pooling, and real members that fail, stop and continue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from robot_rl.workbench.sweep import expand, summarize

# A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
HEARS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from robot_rl.cli import main
sys.exit(main(sys.argv[1:]))
"""
COMMAND = [sys.executable, "-c", HEARS_CTRL_C, "sweep"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_grid() -> None:
    assert expand(["a=1,2", "b=x", "c=[1,2]", "d=p,q"]) == [
        ("a=1", "d=p"),
        ("a=1", "d=q"),
        ("a=2", "d=p"),
        ("a=2", "d=q"),
    ]
    assert expand(["b=x"]) == [()]


def plan_of(*summaries: dict[str, Any]) -> dict[str, Any]:
    return {
        "members": [{"setting": [], "seed": seed} for seed in range(len(summaries))],
        "results": {f"seed={seed}": {"code": 0, "summary": summary} for seed, summary in enumerate(summaries)},
    }


def test_pooling_by_hand() -> None:
    plan = plan_of({"success_once": {"k": 9, "n": 10}, "x": 1.0}, {"success_once": {"k": 7, "n": 10}, "x": 3.0})
    plan["members"].append({"setting": [], "seed": 2})
    plan["results"]["seed=2"] = {"code": 1}
    (row,) = summarize(plan)
    assert (row["seeds"], row["of"]) == ([0, 1], 3)
    assert row["values"]["x"] == {"mean": 2.0, "min": 1.0, "max": 3.0}
    success = row["success_once"]
    assert (success["k"], success["n"], success["rate_min"], success["rate_max"]) == (16, 20, 0.7, 0.9)
    assert success["low"] == pytest.approx(0.584, abs=1e-3)  # Wilson, 16 of 20
    assert success["high"] == pytest.approx(0.919, abs=1e-3)


def test_a_pipeline_counts_its_last_stage() -> None:
    stages = [{"success_once": {"k": 1, "n": 10}}, {"success_once": {"k": 8, "n": 10}}]
    (row,) = summarize(plan_of({"stages": stages}))
    assert (row["success_once"]["k"], row["success_once"]["n"]) == (8, 10)


def sweep(*words: str, cwd: Path, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


WORDS = ["evaluate", "env=point_reach", "expert=point_reach", "num_episodes=5"]


def test_members_run_fail_by_name_and_continue_after_ctrl_c(tmp_path: Path) -> None:
    words = [*WORDS, "num_envs=1,0", "--seeds", "0,1", "--folder", "s"]
    child = subprocess.Popen([*COMMAND, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "s").glob("members/*/*/status.json")):
        assert time.monotonic() < deadline
        assert child.poll() is None, "ended before it could be interrupted"
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130, errors
    assert "--resume s" in errors
    done = sweep("--resume", "s", "--json", cwd=tmp_path, code=1)
    first, second = json.loads(done.stdout)["rows"]
    assert first["setting"] == "num_envs=1"
    assert first["seeds"] == [0, 1]
    assert first["success_once"]["n"] == 10
    assert (second["seeds"], second["of"]) == ([], 2)
    assert "num_envs of at least 1" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["evaluat"], 2, "evaluate"),
        ([*WORDS, "seed=3"], 2, "--seeds"),
        ([*WORDS, "--seeds", "a"], 2, "--seeds 0,1,2"),
        (["--resume", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], code: int, part: str) -> None:
    assert part in sweep(*words, cwd=tmp_path, code=code).stderr
