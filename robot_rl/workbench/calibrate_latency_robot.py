"""Steps of a real arm for `robot-rl calibrate latency`: small, back and forth, through the safety layer of its card."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from robot_rl.contracts import Robot
from robot_rl.data.delays import RobotDelays
from robot_rl.deploy.chunking import AgeCheck
from robot_rl.deploy.goal_safety import GoalSafety, safety_of
from robot_rl.deploy.loop_checks import fresh_reading
from robot_rl.deploy.loop_parts import interrupts
from robot_rl.deploy.reasons import names_of
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Clock, Schedule, Slot
from robot_rl.deploy.step_response import Step, measure_response
from robot_rl.errors import ConfigError, DeployError
from robot_rl.types import Goal, Reading

AXES = ("x", "y", "z")
# Default and largest step: m for a pose, rad for a joint.
POSE_STEP, JOINT_STEP = (0.02, 0.05), (0.05, 0.15)
METHOD = (
    "step response: least squares of a delayed first-order lag to each step, commands as sent behind the safety layer"
)
# Readings are asked for so often in a period of commands; reading never waits, and the same one again is left out.
_READS = 4
# Of two of those, by which the readings of each step are shifted: else all steps would see the same moments of the motion.
_GOLDEN = 0.618033988749895
_BRAKE_S = 2.0


@dataclass(frozen=True)
class StepPlan:
    """What to do.

    Attributes:
        part: joint of the card, or "x", "y", "z" of a pose; "": the last joint, or z.
        size: of the step, rad or m; None: 0.05 rad or 0.02 m.
        repeats: how often there and back.
        hold_s: time of each step.
    """

    part: str = ""
    size: float | None = None
    repeats: int = 10
    hold_s: float = 1.0


@dataclass(frozen=True)
class Motion:
    """One planned motion: which element of position (or pose) goes from where to where."""

    index: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class _Recorded:
    """All readings and commands, as they came; `changes`: when the first command of a step was sent, and which."""

    read: list[tuple[float, float]]
    command: list[tuple[float, float]]
    changes: list[tuple[float, int]]
    ages: list[float]


def plan_motion(card: RobotCard, reading: Reading, plan: StepPlan) -> Motion:
    """Where to step to, within the card's limits, to the side with more room (z: up).

    Raises:
        ConfigError: an unknown joint or axis, a step that is too large, or a robot that is commanded by twists.
        DeployError: no room on either side.
    """
    if card.command is CommandKind.twist:
        raise ConfigError(
            f"robot {card.name!r}", expected="a robot commanded by joints or poses", got="one commanded by twists",
            hint="A step of its place can't be commanded; measure it with another controller of the same arm.",
        )  # fmt: skip
    is_joint = card.command.is_joint
    parts, unit = (card.joints, "rad") if is_joint else (AXES, "m")
    default, most = JOINT_STEP if is_joint else POSE_STEP
    part, size = plan.part or parts[-1], default if plan.size is None else plan.size
    if part not in parts:
        raise ConfigError("--part", expected=f"one of {', '.join(parts)}", got=repr(part), hint="")
    if not (math.isfinite(size) and 0 < size <= most):
        raise ConfigError("--step", expected=f"above 0, {most:g} {unit} at most", got=f"{size:g}", hint="It is a test.")
    index = parts.index(part)
    if is_joint and card.tracking is not None and size >= card.tracking[index]:
        raise ConfigError(
            "--step", expected=f"less than the card's tracking of {part}, {card.tracking[index]:g} rad", got=f"{size:g}",
            hint="A command further away than that stops the robot.",
        )  # fmt: skip
    if not is_joint and reading.pose is None:
        raise DeployError(
            f"robot {card.name!r}", expected="its pose in every reading", got="none", hint="See the card."
        )
    place = reading.position if is_joint else reading.pose
    assert place is not None
    start, (low, high) = float(place[index]), _range(card, index)
    sides = [(high - start, 1.0), (start - low, -1.0)]
    room, side = max(sides, key=lambda entry: entry[0]) if is_joint or part != "z" else sides[0]
    if room < 1.5 * size:
        room, side = max(sides, key=lambda entry: entry[0])
    if room < 1.5 * size:
        raise DeployError(
            f"step of {part}", expected=f"{1.5 * size:g} {unit} of room within the card's limits {low:g} .. {high:g}",
            got=f"{part} at {start:g}", hint="Move the arm to where it has room, or give another --part or --step.",
        )  # fmt: skip
    return Motion(index, start, start + side * size, f"{part} by {side * size:g} {unit}")


def measure_robot(
    robot: Robot, plan: StepPlan, *, clock: Clock, confirm: Callable[[str], None], say: Callable[[str], None]
) -> RobotDelays:
    """Move a connected robot and say how late it follows. It is held at the end, however that comes.

    Args:
        robot: connected, at rest, with room around it.
        plan: see StepPlan.
        clock: see Clock.
        confirm: is told what will move before anything does; raises to call it off.
        say: told how far it is.

    Raises:
        ConfigError, DeployError: as `plan_motion` and `step_response.measure_response`; stale readings; a stop by the
            safety layer.
        KeyboardInterrupt: Ctrl-C, after the robot has come to rest and holds.
    """
    card = robot.card
    if plan.repeats < 2 or not plan.hold_s * card.control_hz >= 8:
        raise ConfigError(
            "calibrate latency", expected=f"--repeats 2 or more, --hold-s {8 / card.control_hz:g} or more",
            got=f"{plan.repeats}, {plan.hold_s:g}", hint="",
        )  # fmt: skip
    stream = "joints" if card.command.is_joint else "pose"
    ages = AgeCheck({stream: card.thresholds.age_s(stream)})
    motion = plan_motion(card, fresh_reading(robot, ages, clock=clock), plan)
    confirm(
        f"robot {card.name!r} will move {motion.text} and back, {plan.repeats} times, {_total_s(plan):.0f} s in all"
    )
    # A person may have waited long, or moved the arm.
    reading = fresh_reading(robot, ages, clock=clock)
    motion = plan_motion(card, reading, plan)
    wizard = _Stepper(robot, safety_of(card, reading), ages, motion, reading, clock)
    recorded = wizard.run(plan, say)
    found = measure_response(_cut(recorded, motion, plan))
    return RobotDelays(
        card.name, found.delay_s.median, found.delay_s.spread, found.time_constant_s.median, found.time_constant_s.spread,
        max(float(np.median(recorded.ages)), 0.0), found.resolution_s, found.steps, motion.text, METHOD,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


class _Stepper:
    """Commands and reads on one absolute schedule."""

    def __init__(
        self, robot: Robot, safety: GoalSafety, ages: AgeCheck, motion: Motion, reading: Reading, clock: Clock
    ) -> None:
        self._robot, self._safety, self._ages, self._motion, self._clock = robot, safety, ages, motion, clock
        self._is_joint, self._stream = robot.card.command.is_joint, next(iter(ages.thresholds_s))
        place = reading.position if self._is_joint else reading.pose
        assert place is not None
        self._place = np.array(place, np.float64)
        self._period_s, self._is_interrupted, self._reading = 1.0 / robot.card.control_hz, False, reading
        self._out = _Recorded([], [], [], [])

    def run(self, plan: StepPlan, say: Callable[[str], None]) -> _Recorded:
        """One hold, then steps there and back; held at the end by the robot's own means."""
        holds = round(plan.hold_s * self._robot.card.control_hz)
        before, last = -1, 2 * plan.repeats
        schedule = Schedule(self._robot.card.control_hz, clock=self._clock)
        with interrupts(self._interrupt):
            try:
                while (number := (slot := schedule.wait()).index // holds) <= last:
                    target = self._motion.end if number % 2 else self._motion.start
                    self._slot(slot, target, number=number, is_new=number != before)
                    if number != before and number > 1 and number % 2:
                        say(f"{number // 2}/{plan.repeats} there and back")
                    before = number
            except BaseException:
                self._brake()
                raise
            finally:
                self._robot.stop()
        return self._out

    def _slot(self, slot: Slot, target: float, *, number: int, is_new: bool) -> None:
        """One command, then the readings of a period; `number`: of the step."""
        clock, index = self._clock, self._motion.index
        if self._is_interrupted:
            raise KeyboardInterrupt
        reading, now_s = self._read(), clock.now()
        age = self._ages.judge(reading, now_s)
        if age.is_stale:
            raise DeployError(
                f"stream {self._stream!r}", expected=f"at most {self._ages.thresholds_s[self._stream]:g} s old",
                got=f"{age.age_s:g} s", hint="The robot holds. Is its driver up, and the machine not too busy?",
            )  # fmt: skip
        self._out.ages.append(age.age_s)
        place = self._place.copy()
        place[index] = target
        goal = Goal(position=place) if self._is_joint else Goal(pose=place)
        judged = self._safety.judge(goal, (1 + slot.skipped) * self._period_s, reading)
        if self._safety.latched:
            raise DeployError(
                "safety layer", expected="a step within every limit", got=f"a stop: {' '.join(names_of(self._safety.latched))}",
                hint="The robot holds. Look at it before you start again.",
            )  # fmt: skip
        sent_s = clock.now()
        sent = self._robot.command(judged.goal)
        where = sent.position if self._is_joint else sent.pose
        assert where is not None
        self._out.command.append((sent_s, float(where[index])))
        if is_new:
            self._out.changes.append((sent_s, number))
        shift = (number * _GOLDEN) % 1.0
        for part in range(_READS):
            clock.sleep_until(slot.due_s + (part + shift) * self._period_s / _READS)
            self._read()

    def _read(self) -> Reading:
        """Read, and keep what is new."""
        self._reading = reading = self._robot.read()
        place = reading.position if self._is_joint else reading.pose
        stamp_s = reading.stamps.get(self._stream, -math.inf)
        if place is not None and stamp_s > (self._out.read[-1][0] if self._out.read else -math.inf):
            self._out.read.append((stamp_s, float(place[self._motion.index])))
        return reading

    def _brake(self) -> None:
        """Come to rest within the limits, as every stop of deploy does; the caller holds it then."""
        self._safety.stop(Reason.emergency)
        due_s = self._clock.now()
        until_s = due_s + _BRAKE_S
        while due_s < until_s:
            judged = self._safety.judge(None, self._period_s, self._reading)
            if judged.is_at_rest:
                return
            self._robot.command(judged.goal)
            due_s += self._period_s
            self._clock.sleep_until(due_s)

    def _interrupt(self) -> None:
        self._is_interrupted = True


def delta_gain_for(found: RobotDelays) -> tuple[float, float]:
    """What `delta_gain` of `robot-rl deploy` should be (docs/ros2.md), and before it was bounded to 2."""
    gain = 1.0 + found.reading_age_s / (2.0 * max(found.time_constant_s, 1e-6))
    return min(gain, 2.0), gain


def _total_s(plan: StepPlan) -> float:
    return (2 * plan.repeats + 1) * plan.hold_s


def _range(card: RobotCard, index: int) -> tuple[float, float]:
    """Limits of a joint, or of an axis of the workspace; without a box any place is allowed."""
    if card.command.is_joint:
        return card.limits.low[index], card.limits.high[index]
    box = None if card.pose is None else card.pose.box
    return (-math.inf, math.inf) if box is None else (box[0][index], box[1][index])


def _cut(recorded: _Recorded, motion: Motion, plan: StepPlan) -> list[Step]:
    """The steps, each with a fifth of its time from before."""
    read, command = (np.array(rows, np.float64).T for rows in (recorded.read, recorded.command))
    before_s, size = 0.2 * plan.hold_s, motion.end - motion.start
    steps = []
    ends = [began_s for began_s, _ in recorded.changes[2:]] + [math.inf]
    for (began_s, number), end_s in zip(recorded.changes[1:], ends, strict=True):
        seen = (read[0] >= began_s - before_s) & (read[0] < end_s)
        told = (command[0] >= began_s - before_s) & (command[0] < end_s)
        signed = size if number % 2 else -size
        steps.append(Step(read[0][seen], read[1][seen], command[0][told], command[1][told], began_s, signed))
    return steps
