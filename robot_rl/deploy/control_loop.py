"""The control loop of a robot: observe -> check ages -> ask the policy -> action that is due -> goal -> safety -> command.

It runs on an absolute schedule in a process of its own and imports no torch. When no action is due (the policy is late, an
observation is stale), the robot decelerates within its limits and holds, and goes on when there is one again. What must not
go on by itself is latched: the robot comes to rest, holds by its own means, and waits for a person. Ctrl-C, `stop` and every
such reason take one path: brake, robot.stop(), and only then is anything torn down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from robot_rl.contracts import Robot
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.chunking import AgeCheck, DueAction
from robot_rl.deploy.decisions import Decisions, Timing
from robot_rl.deploy.goal_safety import GoalSafety, Judged, safety_of
from robot_rl.deploy.inference import PolicyRunner
from robot_rl.deploy.loop_checks import actions_every, fresh_reading, require_fits, streams_of
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts, Targets, interrupts
from robot_rl.deploy.loop_summary import EpisodeSummary, Tally
from robot_rl.deploy.policy_words import hello
from robot_rl.deploy.realtime import as_text, realtime
from robot_rl.deploy.reasons import names_of
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.deploy.schedule import Schedule, Slot
from robot_rl.deploy.targets import Target
from robot_rl.errors import DeployError, RobotRlError
from robot_rl.types import Goal, Reading

log = logging.getLogger("robot_rl.control_loop")

# rad/s or m/s: faster is motion, slower may be the noise of an encoder.
MOVING = 0.05


class ControlLoop:
    """One robot and one policy; see the text of this module.

    Args:
        robot: connected and closed here.
        policy: started and closed here.
        targets: action -> Goal.
        safety: card and first reading -> safety layer; `goal_safety.safety_of` makes it of the card alone.
        config: see LoopConfig.
        parts: see LoopParts.
    """

    def __init__(
        self, robot: Robot, policy: PolicyRunner, targets: Targets,
        safety: Callable[[RobotCard, Reading], GoalSafety] = safety_of, *,
        config: LoopConfig | None = None, parts: LoopParts | None = None,
    ) -> None:  # fmt: skip
        self._robot, self._policy, self._targets, self._make_safety = robot, policy, targets, safety
        self.config, self.parts = config or LoopConfig(), parts or LoopParts()
        self._safety: GoalSafety | None = None
        self._is_success, self._is_interrupted, self._asked_end, self._what = False, False, "", ""
        self._newest_target: tuple[int, int, Target] | None = None  # request and index of the action that it reads

    def bring_up(self) -> None:
        """In this order: policy loaded and warm, robot connected (nothing moves), both compared, safety where it stands.

        Raises:
            RobotRlError: any of it fails; the robot has not moved, and everything is closed.
        """
        try:
            info = self._info = self._policy.start()
            self._robot.connect()
            card, config = self._robot.card, self.config
            require_fits(info, self._robot.spec, card)
            self._period_s = 1.0 / card.control_hz
            timing = Timing(
                self._period_s, actions_every(card.control_hz, info.spec.control_hz), execution=config.execution,
                chunks=config.chunks, wait_s=0.5 * self._period_s if config.wait_s is None else config.wait_s,
                late_s=card.thresholds.observation_s if config.late_s is None else config.late_s,
            )  # fmt: skip
            self._every = timing.every
            self._ages = AgeCheck({name: card.thresholds.age_s(name) for name in streams_of(info.keys, card)})
            self._decisions = Decisions(
                self._policy, info, timing, streams=tuple(self._ages.thresholds_s), clock=self.parts.clock, latch=self._latch
            )  # fmt: skip
            self._fresh_safety(keep=False)
            self._warm_up(info.spec.action.size)
        except BaseException:
            self.close()
            raise
        if self.parts.heart is None:
            log.warning("no watchdog: when this process dies, nobody stops robot %s", card.name)

    def _warm_up(self, action_size: int) -> None:
        """Whatever is imported at its first use is so before a slot: scipy took 0.4 s of one on a busy machine."""
        target = self._targets.read(np.ones(action_size, np.float32), reading=self._reading, sent=None)
        self._make_safety(self._robot.card, self._reading).judge(target.goal, self._period_s, self._reading)

    def run_episode(
        self, *, seed: int = 0, max_steps: int | None = None, reset: Callable[[], None] | None = None
    ) -> EpisodeSummary:
        """Play one episode; returns with the robot at rest, held by its own means.

        Args:
            seed: of the policy's noise, see deploy/noise.py.
            max_steps: actions; None: the limit of the robot's spec.
            reset: called first, to bring scene and robot to the start. Nothing watches the robot meanwhile.

        Raises:
            DeployError: before `bring_up`, a latched stop that nobody released, a robot that tells nothing new, or a black
                box that must be written and was not.
        """
        self._require_ready()
        heart = self.parts.heart
        if reset is not None:
            reset()
        safety = self._begin(seed, self._robot.spec.max_episode_steps if max_steps is None else max_steps)
        with realtime(self.config.realtime) as grants, interrupts(self._interrupt):
            log.info("real time: %s", as_text(grants))
            schedule = Schedule(self._robot.card.control_hz, clock=self.parts.clock)
            self._tally = Tally(schedule.jitter, grants)
            if heart is not None:
                heart.arm()
            try:
                while self._step(schedule.wait(), safety):
                    pass
            except BaseException as error:
                self._latch(Reason.emergency, f"{type(error).__name__}: {error}")
                raise
            finally:
                self._robot.stop()
                if heart is not None:
                    heart.disarm()
                self._asked_end = ""
                files = self._write(safety.latched)
        if self.config.stop_without_log and any(file.startswith("NOT WRITTEN") for file in files):
            raise DeployError("black box", expected="the file of this episode", got=files[0], hint="The robot holds.")
        is_success = self._is_success and not safety.latched
        counts = self._tally.to_json(self._decisions)
        return EpisodeSummary(
            self._ending, is_success, safety.latched, self._is_interrupted, self._steps, counts, files
        )

    def _step(self, slot: Slot, safety: GoalSafety) -> bool:
        """One slot, from reading to command; False when the robot is at rest at the end, or stopped by the watchdog."""
        if not self._may_command(safety):
            return False
        reading = self._read()
        now_s = self.parts.clock.now()
        age = self._ages.judge(reading, now_s)
        may_move = not (age.is_stale or self._ending or safety.latched)
        self._decisions.update(slot, reading, may_ask=may_move)
        due = None if self._ending or safety.latched else self._decisions.due(slot, is_stale=age.is_stale)
        target = self._target(due, reading)
        goal = None if target is None or safety.latched else target.goal
        why = Reason.stale if age.is_stale else self._why_nothing(slot) if may_move and due is None else Reason.none
        judged = safety.judge(goal, (1 + slot.skipped) * self._period_s, reading, reason=why)
        self._command(judged.goal)
        action, request, index = (None, -1, -1) if due is None else (due.action, due.request, due.index)
        reasons = judged.reasons | safety.latched | (Reason.none if target is None else target.reasons)
        record = StepRecord(
            slot.index, slot.skipped, slot.late_s, now_s, reading, age.age_s, action, request, index, goal, self._sent,
            reasons, self._decisions.latency_s(due),
        )  # fmt: skip
        self._tell(record)
        return not self._is_over(slot, judged, safety)

    def _may_command(self, safety: GoalSafety) -> bool:
        """Look after what may end while the loop runs; after the watchdog's stop nothing may be commanded."""
        if self._is_interrupted and not safety.latched & Reason.emergency:
            self._latch(Reason.emergency, "interrupted")
        if self._policy.failure and not safety.latched & Reason.policy_lost:
            self._latch(Reason.policy_lost, self._policy.failure)
        heart = self.parts.heart
        if heart is None:
            return True
        if heart.failure and not safety.latched & Reason.loop_lost:
            self._latch(Reason.loop_lost, heart.failure)
        if heart.has_tripped:
            self._latch(Reason.loop_lost, "the watchdog found the loop silent and stopped the robot")
            self._ending = "stop"
            return False
        heart.beat()
        return True

    def _read(self) -> Reading:
        """The robot's reading; when it fails, the last one, whose age tells."""
        try:
            self._reading = self._robot.read()
        except (RobotRlError, OSError) as error:
            self._latch(Reason.robot_lost, str(error))
        return self._reading

    def _target(self, due: DueAction | None, reading: Reading) -> Target | None:
        """What the due action asks for; read once, so that a delta is added once however many commands it gets."""
        if due is None:
            return None
        if self._newest_target is None or self._newest_target[:2] != (due.request, due.index):
            sent = self._sent if self._has_sent else None
            target = self._targets.read(due.action, reading=reading, sent=sent)
            self._newest_target = (due.request, due.index, target)
            if target.reasons & STOPS:
                self._latch(target.reasons, f"action {due.action} of request {due.request}")
        return self._newest_target[2]

    def _why_nothing(self, slot: Slot) -> Reason:
        return Reason.none if self._decisions.is_waiting(slot) else Reason.policy_late

    def _command(self, goal: Goal) -> None:
        try:
            self._sent, self._has_sent = self._robot.command(goal), True
        except (RobotRlError, OSError) as error:
            self._latch(Reason.robot_lost, str(error))
            self._robot.stop()

    def _tell(self, record: StepRecord) -> None:
        self._tally.add(record)
        if self.parts.black_box is not None:
            self.parts.black_box.add(record)
        if self.parts.observer is not None:
            self.parts.observer(record)

    def _is_over(self, slot: Slot, judged: Judged, safety: GoalSafety) -> bool:
        """Whether the episode has ended and the robot is at rest, or took too long to come to rest."""
        was_ending = bool(self._ending)
        if not was_ending:
            is_last = self._decisions.steps >= self._max_steps and slot.index % self._every == self._every - 1
            self._ending = "success" * self._is_success or self._asked_end or "time_limit" * is_last
            self._ended_s, self._steps = slot.due_s, self._decisions.steps
        if safety.latched:
            self._ending = "stop"
        is_at_rest = judged.is_at_rest and (was_ending or bool(safety.latched))
        return is_at_rest or (was_ending and slot.due_s - self._ended_s > self.config.rest_s)

    @property
    def latched(self) -> Reason:
        """Why the robot is stopped; none when it may move, or before `bring_up`."""
        return Reason.none if self._safety is None else self._safety.latched

    def stop(self, reason: Reason = Reason.emergency) -> None:
        """E-stop: from any thread, also twice, also before an episode. Latched until `release`."""
        self._latch(reason, "stop was called")

    def release(self) -> None:
        """A person allows motion again; a policy that died is started and warm before this returns.

        Raises:
            RobotRlError: the robot moves, is outside its limits, tells nothing new, or the policy does not start, or another
                one does.
        """
        if hello(self._policy.start()) != hello(self._info):  # at once where it runs already
            raise DeployError(
                "release", expected="the policy that the loop was brought up with", got="one of another spec, horizon or history",
                hint="Another one is behind its name now; the robot stays stopped. Start the loop anew.",
            )  # fmt: skip
        moving = fresh_reading(self._robot, self._ages, clock=self.parts.clock).velocity
        if moving is not None and not np.abs(moving).max() < MOVING:
            raise DeployError(
                "release", expected="a robot at rest", got=f"velocities {moving}", hint="Wait, or stop it."
            )
        self._fresh_safety(keep=False)
        if self.parts.heart is not None:
            self.parts.heart.reset()

    def mark_success(self) -> None:
        """The task is done: the episode ends. From any thread."""
        self._is_success = True

    def end_episode(self, word: str = "asked") -> None:
        """End the episode within the limits; `word` says why. From any thread; before its first step it ends there."""
        self._asked_end = word

    def _interrupt(self) -> None:
        self._is_interrupted = True

    def close(self) -> None:
        """Hold the robot first, then end the policy and the connection. Also twice."""
        self._robot.stop()
        self._policy.close()
        self._robot.close()

    def _require_ready(self) -> None:
        safety = self._safety
        if safety is None or safety.latched or (self.parts.heart is not None and self.parts.heart.has_tripped):
            why = "bring_up was not called" if safety is None else f"a robot stopped by {safety.latched!r}"
            raise DeployError(
                "control loop", expected="a robot that may move", got=why, hint="A person calls release()."
            )

    def _begin(self, seed: int, max_steps: int) -> GoalSafety:
        self._is_success, self._is_interrupted, self._ending = False, False, ""
        self._max_steps, self._steps, self._ended_s = max_steps, 0, 0.0
        self._newest_target, self._sent, self._has_sent = None, Goal(), False
        self._decisions.begin(seed=seed)
        return self._fresh_safety(keep=True)

    def _fresh_safety(self, *, keep: bool) -> GoalSafety:
        """A safety layer that goes on from where the robot is; `keep`: with what latched the one before."""
        self._reading, before = fresh_reading(self._robot, self._ages, clock=self.parts.clock), self._safety
        self._safety = self._make_safety(self._robot.card, self._reading)
        if keep and before is not None and before.latched:
            self._safety.stop(before.latched)
        return self._safety

    def _latch(self, reason: Reason, what: str) -> None:
        if self._safety is not None:
            if self._safety.latched & reason == reason:
                return
            self._safety.stop(reason)
        self._what = what
        log.error("stop, %s: %s", " ".join(names_of(reason)), what)

    def _write(self, reasons: Reason) -> tuple[str, ...]:
        """Have the black box written, now that the robot is held."""
        box = self.parts.black_box
        if box is None or not (reasons or box.config.at_episode_end):
            return ()
        box.write(reasons, self._what if reasons else self._ending)
        results = box.written(self.config.write_s)
        for _, why in results:
            if why:
                log.error("black box: %s", why)
        return tuple(f"NOT WRITTEN: {why}" if path is None else str(path) for path, why in results)
