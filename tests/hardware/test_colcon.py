"""`colcon build` of the ament package (colcon from PyPI, tests/peers/colcon.sh) and a node started from its workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robot_rl.hardware import launch_words

COLCON = os.environ.get("ROBOT_RL_PEER_COLCON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COLCON, reason="ROBOT_RL_PEER_COLCON does not name a colcon (tests/peers/colcon.sh)"),
]


def test_the_workspace_has_executables_launch_files_and_an_index(tmp_path: Path) -> None:
    package = Path(launch_words.__file__).parent / "ros2"
    command = [COLCON, "build", "--base-paths", str(package)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    prefix = tmp_path / "install" / "robot_rl_bridge"
    assert (prefix / "share/ament_index/resource_index/packages/robot_rl_bridge").is_file()
    launch = sorted(file.name for file in (prefix / "share/robot_rl_bridge/launch").iterdir())
    assert launch == sorted(file.name for file in (package / "launch").glob("*.launch.py"))
    for name in ("bridge", "sim_robot", "recorder"):
        script = prefix / "lib/robot_rl_bridge" / name
        assert os.access(script, os.X_OK)
        assert script.read_text().splitlines()[0] == "#!/usr/bin/env python3"
    environment = os.environ | {
        "AMENT_PREFIX_PATH": str(prefix),
        "PYTHONPATH": str(prefix / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ROS_DOMAIN_ID": "79",
    }
    # Without a dataset the node says what is missing: it was found, started and has read its parameters.
    command = [sys.executable, "-m", "robot_rl", "ros2", "up", "record.launch.py", "robot:=sim_panda", "dataset:="]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"{prefix}/lib/robot_rl_bridge/recorder" in done.stdout
    assert "expected parameters robot and dataset" in done.stdout + done.stderr
