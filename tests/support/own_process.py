"""Tests that need a process of their own: libraries that end, or may end, the process they are loaded in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 400


def run_cases(cases: str, folder: Path) -> None:
    """Run a file of tests by pytest in a new process and session; its output is the error when one fails.

    Args:
        cases: path below the repository.
        folder: for its files, empty.
    """
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_XDIST", "PYTEST_CURRENT"))}
    words = ["-X", "faulthandler", "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(folder / "cases"), cases]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=plain | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
