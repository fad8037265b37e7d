"""An independent DDS implementation feeds our subscriptions and reads our commands: the wire is what ROS 2 says it is."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.types import Goal

pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytest.importorskip("cyclonedds", reason="cyclonedds is not installed")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig

PROGRAM = Path(__file__).parents[1] / "support" / "cyclone_arm.py"
DOMAIN = 10 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
JOINTS = 0.1 * np.arange(1, 8)


def test_another_dds_implementation_feeds_us_and_hears_us() -> None:
    card = load_robot_card("sim_panda_joints")
    card = replace(card, thresholds=Thresholds(observation_s=3.0, connect_s=20.0))
    names = [*card.joints, "panda_finger_joint1", "panda_finger_joint2"]
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps(names), str(DOMAIN)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    heard: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            heard.put(json.loads(line))

    threading.Thread(target=listen, daemon=True).start()
    robot = Ros2Robot(Ros2RobotConfig(domain_id=DOMAIN), card=card)
    try:
        robot.connect()
        reading = robot.read()
        np.testing.assert_allclose(reading.position, JOINTS)
        np.testing.assert_allclose(reading.velocity, 10 * JOINTS)
        np.testing.assert_allclose(reading.pose, [0.4, 0.1, 0.3, 0.8, 0.6, 0, 0])
        assert reading.gripper == pytest.approx(0.8)
        np.testing.assert_array_equal(reading.frames["state"], [1, 2])
        told: dict[str, Any] = {}
        end = time.monotonic() + 20
        while len(told) < 2:  # its readers may find our writers a moment after we found its readers
            assert time.monotonic() < end
            robot.command(Goal(position=JOINTS + 1, gripper=0.01))
            with contextlib.suppress(queue.Empty):
                told |= heard.get(timeout=0.05)
        assert told == {"forward_position_controller": (JOINTS + 1).tolist(), "gripper_controller": [0.01]}
        robot.stop()
        while (last := heard.get(timeout=20)) != {"forward_position_controller": reading.position.tolist()}:
            assert last in ({"forward_position_controller": (JOINTS + 1).tolist()}, {"gripper_controller": [0.01]})
    finally:
        robot.close()
        process.kill()
        process.wait()
