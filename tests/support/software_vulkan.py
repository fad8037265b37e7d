"""Where this machine has a Vulkan in software, for tests that render, and a process of its own for each scene."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from robot_rl.envs import headless


def software_icd() -> str | None:
    """SwiftShader's ICD file, or that of ROBOT_RL_TEST_VULKAN_ICD; None without one."""
    places = (os.environ.get("ROBOT_RL_TEST_VULKAN_ICD", ""), *headless._SWIFTSHADER)
    return next((place for place in places if place and Path(place).is_file()), None)


def run_rendered(script: str, *words: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a script whose first argument is the ICD file, `words` behind it; the test is skipped where there is none."""
    icd = software_icd()
    if icd is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, icd, *words], capture_output=True, text=True, timeout=timeout_s
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What such a script said behind "RESULT ", JSON; fails with the end of its errors where it said nothing."""
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert found, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(found[0].removeprefix("RESULT "))
    return result
