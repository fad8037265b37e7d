"""The robot's side of a session: reading, ages, action -> goal -> safety -> command, once a turn, as a control loop does.

Without an action the robot brakes within its limits and holds. What must not go on by itself is latched by the safety layer:
the robot comes to rest, holds by its own means, and waits for a person.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from robot_rl.arrays import Array
from robot_rl.contracts import Robot
from robot_rl.deploy.chunking import AgeCheck
from robot_rl.deploy.control_loop import MOVING
from robot_rl.deploy.goal_safety import GoalSafety, Judged, safety_of
from robot_rl.deploy.loop_checks import streams_of
from robot_rl.deploy.loop_parts import Targets
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.deploy.schedule import Clock
from robot_rl.deploy.targets import ActionReader, Target
from robot_rl.errors import DeployError, RobotRlError
from robot_rl.types import Goal, Reading

log = logging.getLogger(__name__)


class Driver:
    """One robot; see the text of this module.

    Args:
        robot: connected and closed here.
        clock: of the loop.
        targets: action -> Goal; None: as the robot's spec says.
        safety: see goal_safety.safety_of.

    Raises:
        DeployError: actions of the robot's spec that can't be read.
    """

    def __init__(
        self, robot: Robot, clock: Clock, *, targets: Targets | None = None,
        safety: Callable[[RobotCard, Reading], GoalSafety] = safety_of,
    ) -> None:  # fmt: skip
        self.robot, self._clock, self._make_safety = robot, clock, safety
        self._targets: Targets = ActionReader(robot.spec, robot.card) if targets is None else targets
        card = robot.card
        # Cameras are not among them: people see that they stand still, and the episode is marked.
        self._ages = AgeCheck({name: card.thresholds.age_s(name) for name in streams_of(("proprio",), card)})
        self.why, self._is_held, self.read_s = "", False, 0.0
        self.stale, self._fresh_s = "", 0.0  # which stream is too old; when all were fresh
        self.judged: Judged | None = None
        self.sent: Goal | None = None
        self._target: Target | None = None

    def connect(self) -> None:
        """Open the robot; nothing moves. Whatever is imported at its first use is so now, not in a turn.

        Raises:
            RobotRlError: it can't be reached, or stands outside its limits.
        """
        self.robot.connect()
        self._reading = self.robot.read()
        self.fresh()
        action = np.zeros(self.robot.spec.action.size, np.float32)
        target = self._targets.read(action, reading=self._reading, sent=None)
        self._make_safety(self.robot.card, self._reading).judge(target.goal, 0.01, self._reading)

    def fresh(self) -> None:
        """Go on from where the robot is: after a reset or a release.

        Raises:
            RobotRlError: it stands outside its limits, or can't be read.
        """
        self._reading = self.robot.read()
        self._safety = self._make_safety(self.robot.card, self._reading)
        self.sent, self._target, self._is_held, self.why = None, None, False, ""
        self.stale, self._fresh_s = "", self._clock.now()

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move."""
        return self._safety.latched

    @property
    def goal(self) -> Goal | None:
        """What the action that is played asks for; None while it holds."""
        return None if self._target is None else self._target.goal

    @property
    def is_at_rest(self) -> bool:
        """Whether the newest command asks for no motion."""
        return self._is_held or self.judged is None or self.judged.is_at_rest

    def read(self) -> Reading:
        """The robot's reading; when it fails, the last one, whose age tells."""
        try:
            self._reading = self.robot.read()
        except (RobotRlError, OSError) as error:
            self.stop(Reason.robot_lost, str(error))
        self.read_s = self._clock.now()
        self.stale = self._stale(self._reading, self.read_s)
        self._fresh_s = self._fresh_s if self.stale else self.read_s
        return self._reading

    def require_alive(self) -> None:
        """Stop a robot of which nothing fresh was read for thresholds.robot_lost_s; behind a shorter silence it goes on."""
        if self.stale and self.read_s - self._fresh_s > self.robot.card.thresholds.robot_lost_s:
            self.stop(Reason.robot_lost, f"{self.stale}: the robot or its driver is gone")

    def act(self, action: Array | None, reading: Reading, period_s: float) -> Judged:
        """Command one action; None goes on with the one before (several commands for one action).

        Args:
            action: float32 (A,), as the spec declares it.
            reading: of this turn.
            period_s: since the turn before.
        """
        if action is not None or self._target is None:
            numbers = np.zeros(self.robot.spec.action.size, np.float32) if action is None else action
            self._target = self._targets.read(numbers, reading=reading, sent=self.sent)
            if self._target.reasons & STOPS:
                self.stop(self._target.reasons, f"action {numbers}")
        return self.go(self._target.goal, reading, period_s, reasons=self._target.reasons)

    def go(self, goal: Goal, reading: Reading, period_s: float, *, reasons: Reason = Reason.none) -> Judged:
        """Command a goal, within the limits; holds instead where a reading is too old or the robot is stopped."""
        stale = self._stale(reading, self._clock.now())
        if stale or self.latched:
            self.why = stale or self.why
            return self.hold(reading, period_s, reason=Reason.stale if stale else Reason.none)
        return self._command(self._safety.judge(goal, period_s, reading), reading, reasons)

    def hold(self, reading: Reading, period_s: float, *, reason: Reason = Reason.none) -> Judged:
        """Brake within the limits and hold; a stopped robot that is at rest is left to its own means."""
        self._target = None
        judged = self._safety.judge(None, period_s, reading, reason=reason)
        if self._is_held:
            self.judged = judged
            return judged
        judged = self._command(judged, reading, Reason.none)
        if self.latched and judged.is_at_rest:
            self.robot.stop()
            self._is_held = True
        return judged

    def stop(self, reason: Reason, what: str) -> None:
        """Brake and stay stopped until `release`."""
        if not self._safety.latched & reason:
            log.error("stop: %r (%s)", reason, what)
            self.why = what
            self._safety.stop(reason)

    def leave(self) -> None:
        """Leave a stopped robot to its own means at once: somebody else has stopped it, so nothing more may be commanded."""
        self.robot.stop()
        self._is_held = True

    def release(self) -> None:
        """A person allows motion again.

        Raises:
            RobotRlError: the robot moves, is outside its limits, or can't be read, or where it is now is not known.
        """
        reading = self.robot.read()
        if stale := self._stale(reading, self._clock.now()):
            raise DeployError(
                "release", expected="fresh readings", got=stale, hint="Bring the robot's driver up again."
            )
        moving = reading.velocity
        if moving is not None and not np.abs(moving).max() < MOVING:
            raise DeployError(
                "release", expected="a robot at rest", got=f"velocities {moving}", hint="Wait, or stop it."
            )
        self.fresh()

    def close(self) -> None:
        """Hold, then end the connection. Also twice."""
        self.robot.stop()
        self.robot.close()

    def _stale(self, reading: Reading, now_s: float) -> str:
        """Which stream is too old, for people; "" where all are fresh."""
        age = self._ages.judge(reading, now_s)
        return f"the reading of {age.stream!r} is {age.age_s:.2f} s old" if age.is_stale else ""

    def _command(self, judged: Judged, reading: Reading, reasons: Reason) -> Judged:
        judged = Judged(judged.goal, judged.reasons | reasons | self.latched, judged.is_at_rest)
        self.judged = judged
        try:
            self.sent = self.robot.command(judged.goal)
        except (RobotRlError, OSError) as error:
            self.stop(Reason.robot_lost, str(error))
            self.robot.stop()
            self._is_held = True
        return judged
