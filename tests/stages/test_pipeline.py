"""`robot-rl pipeline` on the real ManiSkill task, tiny: the command path of `make demo`, killed once in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mani_skill", reason="ManiSkill is not installed (extra sim)")

STAGES = ["collect", "imitate", "offline", "distill_onestep", "export"]
COMMAND = [sys.executable, "-m", "robot_rl", "pipeline"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_tiny_demo_resumes_after_sigkill(tmp_path: Path) -> None:
    words = [*COMMAND, "experiment=pick_cube_tiny", f"run_root={tmp_path}"]
    child = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("*/stages/*_imitate_*/checkpoints/step_000020")):
        assert time.monotonic() < deadline
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (run,) = tmp_path.iterdir()
    children = json.loads((run / "pipeline.json").read_text())
    assert children["collect"]["state"] == "finished"
    demonstrations = children["collect"]["run"]

    done = subprocess.run(
        [*COMMAND, f"resume={run}"], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT, timeout=900
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    assert [entry["name"] for entry in summary["stages"]] == STAGES
    for entry in summary["stages"]:
        assert set(entry) == {"name", "success_once", "env_steps", "episodes", "seconds", "run"}
        assert set(entry["success_once"]) == {"k", "n", "rate", "low", "high"}
        assert entry["seconds"] > 0
    assert summary["stages"][0]["run"] == demonstrations, "the finished stage was run again"
    assert summary["stages"][0]["episodes"] >= 4
    # 40 gradient steps teach nothing: the control that a policy can fail here.
    assert summary["stages"][-1]["success_once"]["k"] <= 1
    assert summary["parity_max_error"] <= 1e-4
    assert (run / "status.json").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    for word in (*STAGES, "Wilson"):
        assert word in done.stdout
