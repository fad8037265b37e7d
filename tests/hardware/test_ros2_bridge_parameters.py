"""The bridge's parameters for runtime and chunk execution, through its launch file: real processes, real DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_onnx import write_policy

from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.hardware.mock_robot import MockRobotConfig, mock_spec

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from fake_arm import FakeArm

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 60 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
CARD = "sim_panda"  # its mock is told poses with quaternions
POSE = [0.4, 0.1, 0.34, 0.8, 0.6, 0.0, 0.0, 1.0]


def launched(folder: Path, *words: str) -> subprocess.Popen:
    spec = mock_spec(load_robot_card(CARD), MockRobotConfig(streams=("joints", "pose")))
    policy = write_policy(folder / "policy.onnx", spec, np.tile(np.float32(POSE), (8, 1)), execute=4, draws=1)
    environment = os.environ | {
        "ROS_DOMAIN_ID": str(DOMAIN), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "PYTHONUNBUFFERED": "1"
    }  # fmt: skip
    command = [
        sys.executable, "-m", "robot_rl", "ros2", "up", "deploy.launch.py", f"policy:={policy}", f"robot:={CARD}",
        f"log_folder:={folder / 'black_box'}", "activate:=false", *words,
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runtime:=fast"], "expected one of onnx, openvino, tensorrt, auto, got 'fast'"),
        (["threads:=0"], "expected 1 or more, got 0"),
        (["execution:=naive"], "expected one of sync, async, ensemble, rtc, got 'naive'"),
        (["blend_steps:=-1"], "expected 0 or more, got -1"),
        (["blend_steps:=2"], "actions that may be averaged element by element, got rotation 'quat_wxyz'"),
        (["chunks_every:=9"], "at most 8 steps between two questions"),
        (["execution:=rtc"], "a policy that can continue a chunk"),
        (["policy:=ws://127.0.0.1:1"], "ws://127.0.0.1:1: expected a policy server"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_refused_at_configure(words: list[str], says: str, tmp_path: Path) -> None:
    if words[0].startswith("policy"):
        pytest.importorskip("websockets")
    arm = (
        FakeArm(CARD, DOMAIN, still=True)
        if words[0].split(":")[0] in ("blend_steps", "chunks_every", "execution")
        else None
    )
    bridge = launched(tmp_path, *words)
    try:
        out, _ = bridge.communicate(timeout=120)
    finally:
        bridge.kill()
        if arm is not None:
            arm.kill()
    assert bridge.returncode == 1, out
    assert says in out, out


def test_a_runtime_and_an_execution_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    arm = FakeArm(CARD, DOMAIN, still=True)
    bridge = launched(tmp_path, "runtime:=openvino", "execution:=sync", "chunks_every:=2")
    try:
        assert bridge.stdout is not None
        lines = []
        for line in bridge.stdout:
            lines.append(line)
            if "is warm and fits sim_panda" in line:
                break
        children = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        policies = [line.split()[0] for line in children.splitlines() if "robot_rl.deploy.policy_process" in line]
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in policies if _is_below(int(pid), bridge.pid)]
        assert len(maps) == 1, "".join(lines)
        assert "openvino" in maps[0]
        bridge.send_signal(signal.SIGINT)
        assert bridge.wait(60) == 0
    finally:
        bridge.kill()
        bridge.wait()
        arm.kill()


def _is_below(pid: int, above: int) -> bool:
    import psutil

    return above in [parent.pid for parent in psutil.Process(pid).parents()]
