"""How processes with a node in a thread end when nobody closed it: in order, with their own exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
from fake_arm import FakeArm

from robot_rl.deploy.watchdog import Watchdog, WatchdogConfig

DOMAIN = 1 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 9
# A node that wakes up often, so that its thread is on its way into or out of C++ when the interpreter ends.
PROGRAM = """
import sys, time
from robot_rl.hardware.ros2_link import Ros2Link
link = Ros2Link("left_open", domain_id=int(sys.argv[1]))
link.node.create_timer(0.0005, lambda: None)
time.sleep(0.2)
sys.exit(3)
"""


def test_a_link_that_nobody_closed_ends_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(DOMAIN)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")


def test_a_watchdog_ends_in_order(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its process opened a connection of its own and has no moment at which to close it."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    arm = FakeArm("sim_panda_joints", DOMAIN, still=True, rate_hz=1000.0)
    try:
        config = {"card": "sim_panda_joints", "domain_id": DOMAIN}
        dog = Watchdog(WatchdogConfig("robot_rl.hardware.ros2_robot:ros2_stop", config, heartbeat_s=5.0))
        dog.close()
    finally:
        arm.kill()
    assert dog.failure.endswith("exit code 0")
    assert "terminate called" not in capfd.readouterr().err
