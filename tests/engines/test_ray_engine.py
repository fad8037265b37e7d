"""The cases of ray_cases.py, in a process of their own: Ray ends the process of a driver whose node is gone, without an exception."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs the extra `ray`", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def test_every_case_of_ray(tmp_path: Path) -> None:
    names = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID", "PYTEST_CURRENT_TEST")
    plain = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "cases"),
         "tests/engines/ray_cases.py"],
        cwd=ROOT, env=plain | {"OMP_NUM_THREADS": "1"}, start_new_session=True, capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert " passed" in done.stdout or "100%" in done.stdout
