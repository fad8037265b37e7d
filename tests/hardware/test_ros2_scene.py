"""Who resets behind topics: a node that is gone is told at once, and is found again; people have no time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("mani_skill")
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

from ros_sessions import domain, sim_node

from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.errors import DeployError
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.hardware.ros2_scene import Ros2Scene, Ros2SceneConfig
from robot_rl.types import Goal

pytestmark = pytest.mark.slow  # two nodes with a simulator
CARD = load_robot_card("sim_panda")


def until(holds: Callable[[], bool], *, what: str, act: Callable[[], object] = lambda: None) -> None:
    end_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end_s, what
        act()
        time.sleep(0.01)


def test_a_node_is_told_that_people_are_slow_and_is_missed_when_it_ends(tmp_path: Path) -> None:
    number = domain()
    node = sim_node(number, tmp_path)
    scene = Ros2Scene(Ros2SceneConfig(domain_id=number), card=CARD)
    robot = Ros2Robot(Ros2RobotConfig(domain_id=number), card=CARD)
    try:
        robot.connect()
        here = robot.read().pose
        assert here is not None

        def play(*, steps: int) -> None:
            until(lambda: scene.episode().steps >= steps, what="time", act=lambda: robot.command(Goal(pose=here)))

        scene.reset(3)
        play(steps=50)
        until(lambda: scene.episode().is_over, what="a policy's limit")
        scene.time_limit = False
        scene.reset(4)
        play(steps=60)
        assert not scene.episode().is_over
        scene.time_limit = True
        scene.reset(5)
        play(steps=50)
        until(lambda: scene.episode().is_over, what="the limit again")
        node.process.send_signal(signal.SIGINT)
        node.end()
        began_s = time.monotonic()
        until(lambda: not scene._trigger.service_is_ready(), what="the service to go")
        with pytest.raises(DeployError, match=r"nobody has the service 'reset' any more"):
            scene.reset(6)
        assert time.monotonic() - began_s < 30
        node = sim_node(number, tmp_path)
        until(lambda: scene._trigger.service_is_ready() and scene._parameters.service_is_ready(), what="the services")
        scene.reset(7)
        assert scene.episode().seed == 7
        assert np.isfinite(robot.read().position).all()
    finally:
        robot.close()
        scene.close()
        node.kill()
