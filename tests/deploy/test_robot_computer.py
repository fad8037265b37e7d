"""What a robot runs, in a robot computer's own environment: Python 3.10, no torch (tests/peers/robot_computer.sh)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("ROBOT_RL_PEER_ROBOT", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="ROBOT_RL_PEER_ROBOT names no python (tests/peers/robot_computer.sh)"),
]
LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
assert sys.version_info[:2] == (3, 10), sys.version
assert not {"torch", "zarr", "hydra", "jaxtyping"} & set(sys.modules)
print("loaded", len(sys.argv) - 1)
"""


def run(*words: str, folder: Path) -> subprocess.CompletedProcess:
    # The wheels' bootstrapper leaves these to children; the other environment finds its own.
    leaks = ("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "LD_LIBRARY_PATH", "AMENT_PREFIX_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in leaks}
    return subprocess.run(
        [PYTHON, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_part_of_the_robot_loads_without_torch(tmp_path: Path) -> None:
    names = [f"robot_rl.deploy.{file.stem}" for file in (ROOT / "robot_rl" / "deploy").glob("*.py")]
    kinds = ("ros2_", "launch_", "mock_", "raw_log")
    names += [f"robot_rl.hardware.{f.stem}" for f in (ROOT / "hardware").glob("*.py") if f.stem.startswith(kinds)]
    names = sorted(name for name in names if not name.endswith("__init__"))
    done = run("-c", LOAD, *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"loaded {len(names)}\n"


def test_the_command_line_works(tmp_path: Path) -> None:
    done = run("-m", "robot_rl", "ros2", "up", "deploy.launch.py", "--show-args", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "policy" in done.stdout
