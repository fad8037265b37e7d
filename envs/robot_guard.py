"""What looks after a robot from outside the process that plays it: `robot-rl deploy`'s watchdog and black box.

The watchdog is armed from the first turn of a loop until the robot holds by its own means: when the process dies, hangs or is
stopped meanwhile, it stops the robot by a connection of its own. The black box keeps every command, and is written at a stop and
when the process dies.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from robot_rl.deploy.black_box import BlackBox, BlackBoxConfig, StepRecord
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Slot
from robot_rl.deploy.watchdog import Heart, Watchdog, WatchdogConfig
from robot_rl.errors import DeployError
from robot_rl.teleop.driving import Driver
from robot_rl.types import Goal, Reading

log = logging.getLogger(__name__)

_WRITE_S = 5.0


class Guard:
    """See the text of this module; with neither it does nothing.

    Args:
        watchdog: how silence is answered; None: nobody looks after the loop.
        black_box: what is kept; None: nothing.
    """

    def __init__(self, watchdog: WatchdogConfig | None = None, black_box: BlackBoxConfig | None = None) -> None:
        self.watchdog, self.black_box = watchdog, black_box
        self.heart: Heart | None = None
        self._dog: Watchdog | None = None
        self._box: BlackBox | None = None
        self._is_armed = False

    def bring_up(self, card: RobotCard, *, action_size: int) -> None:
        """Start both processes; before the robot is connected, so that nothing moves without them.

        Raises:
            DeployError: one does not come up.
        """
        if self.black_box is not None:
            self._box = BlackBox(self.black_box, card, action_size=action_size)
        if self.watchdog is not None:
            self._dog = Watchdog(self.watchdog)
            self.heart = self._dog

    def beat(self, driver: Driver) -> None:
        """A turn of the loop, whatever it commands; stops the driver where the watchdog has acted or is gone."""
        heart = self.heart
        if heart is None:
            return
        if not self._is_armed:
            self._is_armed = True
            heart.arm()
        heart.beat()
        if driver.latched & Reason.loop_lost:
            return
        if heart.has_tripped:
            driver.stop(Reason.loop_lost, "the watchdog found the loop silent and stopped the robot")
            driver.leave()
        elif heart.failure:
            driver.stop(Reason.loop_lost, heart.failure)

    def rest(self) -> None:
        """The robot holds by its own means; silence means nothing."""
        self._is_armed = False
        if self.heart is not None:
            self.heart.disarm()

    def release(self) -> None:
        """A person has looked: the watchdog may act again.

        Raises:
            DeployError: it is gone.
        """
        if self.heart is None:
            return
        if self.heart.failure:
            raise DeployError(
                "watchdog", expected="one that looks after the robot", got=self.heart.failure,
                hint="The robot holds. Go on with resume=<run>.",
            )  # fmt: skip
        self._is_armed = False
        self.heart.reset()

    def note(self, slot: Slot, driver: Driver, reading: Reading, played: tuple[Any, int, int, float]) -> None:
        """Keep one command.

        Args:
            slot: of the loop.
            driver: whose newest command it is.
            reading: that it answers.
            played: action (float32 (A,) or None), its number in the run, the command's number in it, and seconds of age.
        """
        if self._box is None or driver.judged is None:
            return
        action, number, index, age_s = played
        self._box.add(
            StepRecord(
                slot.index, slot.skipped, slot.late_s, driver.read_s, reading, age_s, action, number, index, driver.goal,
                driver.sent or Goal(), driver.judged.reasons | driver.latched, math.nan,
            )
        )  # fmt: skip

    def write(self, driver: Driver) -> None:
        """Have what led to a stop written, and say where it lies."""
        if self._box is not None:
            self._box.write(driver.latched, driver.why)
            self._say()

    def close(self) -> None:
        """End both, the robot holds; also twice."""
        self.rest()
        self.heart = None
        if self._dog is not None:
            self._dog.close()
        if self._box is not None:
            self._say()
            self._box.close()
        self._dog = self._box = None

    def _say(self) -> None:
        assert self._box is not None
        for path, why in self._box.written(_WRITE_S):
            if path is None:
                log.error("black box: NOT WRITTEN: %s", why)
            else:
                log.warning("black box: %s", path)
