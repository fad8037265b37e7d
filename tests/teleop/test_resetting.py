"""When a robot is where an episode begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from robot_rl.deploy.robot_card import CommandKind
from robot_rl.deploy.rotation_motion import from_vector, multiply
from robot_rl.deploy.schedule import ManualClock
from robot_rl.teleop.driving import Driver
from robot_rl.teleop.resetting import ResetConfig, Resetter
from robot_rl.types import Goal, Reading

POSE = (0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0)


class Noted(Driver):
    """Only notes where it is told to go."""

    is_at_rest = True

    def __init__(self) -> None:
        self.robot: Any = SimpleNamespace(card=SimpleNamespace(command=CommandKind.pose, gripper=None, home=None))
        self.why, self.went = "", list[Goal]()

    def go(self, goal: Goal, *_: Any, **__: Any) -> Any:
        self.went.append(goal)

    def hold(self, *_: Any, **__: Any) -> Any:
        pass

    latched: Any = False


def test_a_pose_is_reached_with_its_rotation() -> None:
    driver = Noted()
    resetter = Resetter(driver, None, ManualClock(), ResetConfig(pose=POSE))

    def step(turned_rad: float) -> bool:
        here = np.array(POSE)
        here[3:] = multiply(from_vector(np.array([0.0, 0.0, turned_rad])), here[3:])
        reading = Reading(frames={}, stamps={}, position=np.zeros(7), velocity=None, pose=here)
        done, problem = resetter.step(reading, 0.02)
        assert problem == ""
        return done

    assert resetter.begin(0) == ""
    assert not step(0.5)
    assert len(driver.went) == 1, "the place is right, the tool is turned"
    assert step(0.01)
    assert len(driver.went) == 1
