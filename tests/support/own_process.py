"""Tests that need a process of their own: libraries that end, or may end, the process they are loaded in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 400


def run_session(words: list[str], *, cwd: Path, env: dict[str, str], seconds: float) -> tuple[int, str, str]:
    """Exit code and what was printed; at the end all that it started and left is killed.

    Raises:
        AssertionError: it took longer than `seconds`.
    """
    process = subprocess.Popen(
        words, cwd=cwd, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as late:
        said = [b"" if text is None else text for text in (late.stdout, late.stderr)]
        raise AssertionError(f"still running after {seconds} s\n{said[0][-3000:]!r}\n{said[1][-3000:]!r}") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, out, err


def run_cases(cases: str, folder: Path) -> None:
    """Run a file of tests by pytest in a new process and session; its output is the error when one fails.

    Args:
        cases: path below the repository.
        folder: for its files, empty.
    """
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_XDIST", "PYTEST_CURRENT"))}
    words = ["-X", "faulthandler", "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(folder / "cases"), cases]
    code, out, err = run_session(
        [sys.executable, *words], cwd=ROOT, env=plain | {"OMP_NUM_THREADS": "1"}, seconds=SECONDS
    )
    assert code == 0, out[-6000:] + err[-6000:]
