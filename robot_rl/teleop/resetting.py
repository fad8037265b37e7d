"""Between two episodes: the scene is reset, the robot goes to its start, and people get time to put things back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.rotation_motion import difference
from robot_rl.deploy.schedule import Clock
from robot_rl.errors import RobotRlError
from robot_rl.teleop.driving import Driver
from robot_rl.types import Goal, Reading


def without_time_limit(scene: Any) -> Any:
    """The same scene or robot; where it knows a task's step limit, that ends no episode: it is for policies, people are slower."""
    if hasattr(scene, "time_limit"):
        scene.time_limit = False
    return scene


@dataclass(frozen=True)
class ResetConfig:
    """How an episode begins.

    Attributes:
        countdown_s: for people, once the robot is at rest; "start" leaves it out.
        settle_s: behind the reset of a scene, for readings of before that are still under way.
        longest_s: for scene and robot together; then it is a fault.
        home: goes to the joint positions `home` of the robot's card, where the card is commanded by joints.
        pose: of the tool to go to, m and quaternion wxyz, for a robot commanded by poses; (): none.
        reached: so near is there, rad or m.
    """

    countdown_s: float = 0.0
    settle_s: float = 0.05
    longest_s: float = 30.0
    home: bool = True
    pose: tuple[float, ...] = ()
    reached: float = 0.02


class Resetter:
    """Carries out one reset, a little in every turn.

    Args:
        driver: of the robot.
        scene: who resets it, with `reset(seed)`; None: people do.
        clock: of the loop.
        config: see ResetConfig.
    """

    def __init__(self, driver: Driver, scene: Any, clock: Clock, config: ResetConfig) -> None:
        self._driver, self._scene, self._clock, self._config = driver, scene, clock, config
        self._goal = None if scene is not None else _goal(driver, config)
        self._phase, self._began_s, self._still_s = "", 0.0, 0.0
        self._is_hurried = False

    def begin(self, seed: int) -> str:
        """Start; returns what went wrong, "" for nothing."""
        self._began_s, self._is_hurried = self._clock.now(), False
        self._phase = "motion"
        if self._scene is None:
            return ""
        try:
            self._scene.reset(seed)
        except RobotRlError as error:
            return str(error)
        # The safety layer knows the place before the reset: nothing may be commanded until readings show the new one.
        self._phase, self._since_s = "settle", self._clock.now()
        return ""

    def hurry(self) -> None:
        """Leave out the countdown."""
        self._is_hurried = True

    @property
    def seconds_left(self) -> float:
        """Of the countdown."""
        if self._phase != "countdown" or self._is_hurried:
            return 0.0
        return max(self._still_s + self._config.countdown_s - self._clock.now(), 0.0)

    def step(self, reading: Reading, period_s: float) -> tuple[bool, str]:
        """One turn. Returns whether it is done, and what went wrong."""
        now_s, driver = self._clock.now(), self._driver
        if self._phase != "countdown" and now_s - self._began_s > self._config.longest_s:
            return False, f"the reset took longer than {self._config.longest_s:g} s ({self._phase})"
        if self._phase == "settle":
            is_new = all(stamp_s >= self._since_s for stamp_s in reading.stamps.values())
            if not is_new or now_s - self._since_s < self._config.settle_s:
                return False, ""
            try:
                driver.fresh()
            except RobotRlError as error:
                return False, str(error)
            self._phase = "motion"
            return False, ""
        if self._phase == "motion":
            if self._goal is not None and not _is_there(reading, self._goal, self._config.reached):
                driver.go(self._goal, reading, period_s)
                return False, driver.why if driver.latched else ""
            self._phase, self._still_s = "countdown", now_s
        driver.hold(reading, period_s)
        return self.seconds_left == 0.0 and driver.is_at_rest, ""


def _goal(driver: Driver, config: ResetConfig) -> Goal | None:
    card = driver.robot.card
    if config.pose and not card.command.is_joint:
        return Goal(pose=np.array(config.pose, np.float64), gripper=None if card.gripper is None else card.gripper.open)
    if config.home and card.home is not None and card.command.is_joint:
        return Goal(
            position=np.array(card.home, np.float64), gripper=None if card.gripper is None else card.gripper.open
        )
    return None


def _is_there(reading: Reading, goal: Goal, reached: float) -> bool:
    if goal.position is not None:
        return _near(reading.position, goal.position, reached)
    if reading.pose is None or goal.pose is None:
        return False
    turn = math.hypot(*difference(goal.pose[3:], reading.pose[3:]).tolist())
    return turn <= reached and _near(reading.pose[:3], goal.pose[:3], reached)


def _near(here: Float64[Array, " J"], there: Float64[Array, " J"], reached: float) -> bool:
    return bool(np.abs(here - there).max() <= reached)
