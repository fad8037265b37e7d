"""A session of collecting episodes: device -> mapping -> safety -> robot -> rows, at a fixed rate, with people in charge.

Every turn reads robot and device, hears what people ask for, moves or holds, and notes the row. Limits stand between
whatever is asked and the robot, as in deploy/control_loop.py. Ctrl-C, a device or a panel that raises, a camera that dies
and a robot that is lost all end the same way: the robot comes to rest, and nothing that was recorded is lost.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.contracts import Robot, TeleopDevice
from robot_rl.deploy.loop_checks import actions_every
from robot_rl.deploy.loop_parts import interrupts
from robot_rl.deploy.realtime import RealtimeConfig, as_text, realtime
from robot_rl.deploy.schedule import Clock, MonotonicClock, Schedule, Slot
from robot_rl.teleop.camera_watch import CameraWatch
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.driving import Driver
from robot_rl.teleop.effects import Effects
from robot_rl.teleop.episode_machine import EpisodeMachine, State, Transition
from robot_rl.teleop.hearing import Hearing
from robot_rl.teleop.loop_watch import LoopWatch
from robot_rl.teleop.panel import OperatorPanel, PanelEvent
from robot_rl.teleop.pilots import Choice, Pilot, Turn
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.resetting import ResetConfig, Resetter
from robot_rl.teleop.rows import IMAGE, Row
from robot_rl.teleop.session_view import view_of
from robot_rl.types import Goal, Reading

log = logging.getLogger(__name__)

_MOVING = (State.ready, State.recording)


@dataclass(frozen=True)
class SessionConfig:
    """How a session runs.

    Attributes:
        total: episodes that the dataset shall hold; the session ends with the last of them.
        first_seed: of the scene; the next ones follow, behind those that the dataset has.
        keep_failures: False: an episode that is not labelled a success is dropped instead of saved.
        auto_start: recording begins as soon as a reset is done.
        auto_save: an episode that has a label and no problem is saved without asking.
        end_on_success: the scene's own signal ends an episode as a success.
        time_limit_s: of an episode; None: none, for people are slow.
        camera_hz: what cameras should give; None: a new frame at every reading.
        view_hz: how often panels get a view.
        reset: see ResetConfig.
        realtime: see RealtimeConfig.
    """

    total: int = 50
    first_seed: int = 0
    keep_failures: bool = True
    auto_start: bool = False
    auto_save: bool = False
    end_on_success: bool = True
    time_limit_s: float | None = None
    camera_hz: float | None = None
    view_hz: float = 15.0
    reset: ResetConfig = field(default_factory=ResetConfig)
    realtime: RealtimeConfig = field(default_factory=lambda: RealtimeConfig(lock_memory=False))


@dataclass(frozen=True)
class SessionParts:
    """What may stand beside a session; closed by the caller.

    Attributes:
        panels: that show it and hear people.
        scene: who resets and judges: `reset(seed)` and `episode().success`; None: people do both.
        facts: reading -> more of SessionView ("scene", "pictures", "ages_ms"), of a simulator.
        observer: called with every transition.
        clock: see Clock.
    """

    panels: Sequence[OperatorPanel] = ()
    scene: Any = None
    facts: Callable[[Reading], dict[str, Any]] | None = None
    observer: Callable[[Transition], None] | None = None
    clock: Clock = field(default_factory=MonotonicClock)


class Session:
    """See the text of this module.

    Args:
        robot: connected by `run`, closed by the caller.
        device: likewise.
        pilot: who chooses actions.
        recorder: of the dataset; closed by the caller.
        config: see SessionConfig.
        parts: see SessionParts.

    Raises:
        DeployError: actions that the robot can't be told, or rates that do not fit.
    """

    def __init__(
        self, robot: Robot, device: TeleopDevice, pilot: Pilot, recorder: Recorder, *,
        config: SessionConfig | None = None, parts: SessionParts | None = None,
    ) -> None:  # fmt: skip
        self.config, self.parts = config or SessionConfig(), parts or SessionParts()
        self.machine, self.recorder, self.pilot = EpisodeMachine(), recorder, pilot
        self.driver = Driver(robot, self.parts.clock)
        self.hearing = Hearing(device, self.parts.panels)
        self._device, self._spec, self.hz = device, robot.spec, robot.card.control_hz
        self._every = actions_every(self.hz, robot.spec.control_hz)
        self.cameras = CameraWatch(
            tuple(key for key in robot.spec.observation if key.startswith(IMAGE)), camera_hz=self.config.camera_hz
        )
        resetter = Resetter(self.driver, self.parts.scene, self.parts.clock, self.config.reset)
        self.effects = Effects(self.machine, self.driver, recorder, resetter, self.config)
        self.is_interrupted, self._clutch, self._shown_s = False, "fault", -np.inf
        self._choice: Choice | None = None
        self.loop, self._stalled, self._was_stale = LoopWatch(self.hz), "", False

    def run(self) -> dict[str, Any]:
        """Until the dataset is full or somebody quits; the robot holds by its own means then.

        Returns:
            Counts: saved, discarded, transitions, skipped slots, lateness.

        Raises:
            RobotRlError: robot or device can't be connected; nothing has moved.
        """
        self._device.connect()
        self.driver.connect()
        self.effects.begin()
        with realtime(self.config.realtime) as grants, interrupts(self._interrupt):
            log.info("real time: %s", as_text(grants))
            if self.config.realtime.fifo_priority is not None:
                self.recorder.prioritise(max(self.config.realtime.fifo_priority - 1, 1))
            self.schedule, self._is_new_schedule = Schedule(self.hz, clock=self.parts.clock), False
            try:
                while not self._is_over:
                    self._turn(self.schedule.wait())
                    if self._is_new_schedule:
                        self.schedule, self._is_new_schedule = Schedule(self.hz, clock=self.parts.clock), False
            finally:
                self.driver.robot.stop()
        self.recorder.close()
        for outcome in self.recorder.poll():
            self.effects.ended(outcome)
        self.effects.end_edits()
        return self.effects.counts()

    @property
    def _is_over(self) -> bool:
        return self.machine.state is State.closed

    def _interrupt(self) -> None:
        self.is_interrupted = True

    def _turn(self, slot: Slot) -> None:
        period_s = (1 + slot.skipped) / self.hz
        command, asked_s = self.hearing.command(), self.parts.clock.now()
        reading = self.driver.read()
        now_s = self.driver.read_s
        self._stalled = self.loop.turn(now_s, asked_s=asked_s)
        self.pilot.judge(command, now_s)
        self._hear(reading, command, now_s)
        is_step = slot.index % self._every == 0 or slot.skipped >= self._every
        if self.machine.state in _MOVING and not self.recorder.is_editing:
            own_period_s, stale = 1.0 / self._spec.control_hz, bool(self.driver.stale)
            turn = Turn(slot, reading, command, now_s, own_period_s, self.driver.sent, stale)
            self._move(turn, period_s, is_step=is_step)
        elif self.machine.state is State.resetting:
            done, problem = self.effects.resetter.step(reading, period_s)
            if problem:
                self._apply(PanelEvent("reset_failed", problem, now_s), reading)
            elif done:
                self._apply(PanelEvent("reset_done", stamp_s=now_s), reading)
        else:
            self.driver.hold(reading, period_s)
        if now_s - self._shown_s >= 1.0 / self.config.view_hz:
            self._shown_s = now_s
            self.hearing.show(view_of(self, reading, now_s, self._choice))

    def _move(self, turn: Turn, period_s: float, *, is_step: bool) -> None:
        """One command; at the step of an action also a row of the recording."""
        if is_step or self._choice is None:
            self._choice = self.pilot.choose(turn)
            self._use_s, self._is_noted = self.parts.clock.now(), False
        if self._choice.is_still:
            self.driver.hold(turn.reading, period_s)
        else:
            self.driver.act(None if self._is_noted else self._choice.action, turn.reading, period_s)
        if self._is_noted:
            return
        self._is_noted = True
        row = self._row(turn, self._choice, self._use_s)
        if self.machine.state is State.recording:
            self.recorder.add(row)
        else:
            self.recorder.keep(row)

    def _row(self, turn: Turn, choice: Choice, use_s: float) -> Row:
        judged = self.driver.judged
        has_command = np.isfinite(turn.command.stamp_s)
        return Row(
            frames=_kept(turn.reading), capture_s=turn.reading.stamps, read_s=turn.now_s, use_s=use_s,
            command_s=self.parts.clock.now(), device_s=turn.command.stamp_s if has_command else np.nan,
            device_sequence=turn.command.sequence, policy=choice.policy, operator=choice.operator,
            action=choice.action, sent=self.driver.sent or Goal(), reasons=0 if judged is None else int(judged.reasons),
            source=int(choice.source), intervention=choice.intervention, slot=turn.slot.index, late_s=turn.slot.late_s,
            skipped=turn.slot.skipped,
        )  # fmt: skip

    def _hear(self, reading: Reading, command: TeleopCommand, now_s: float) -> None:
        """What has happened, then what people ask for."""
        for event, text in self._found_out(reading, command, now_s):
            self._apply(PanelEvent(event, text, now_s), reading)
        for asked in self.hearing.events(now_s):
            self._apply(asked, reading)
        if self.effects.end_edits() and self.machine.state in _MOVING:
            self._from_here(reading)
        while event := self.effects.next_event():
            before = self.machine.state
            self._apply(PanelEvent(event, stamp_s=now_s, by="session"), reading)
            if self.machine.state is before:  # refused; the next turn asks again
                break

    def _found_out(self, reading: Reading, command: TeleopCommand, now_s: float) -> list[tuple[str, str]]:
        found, state = list[tuple[str, str]](), self.machine.state
        if self.is_interrupted:
            return [("quit", "interrupted")]
        if self._stalled and state is State.recording:  # before what ends the episode
            found.append(("camera_problem", self._stalled))
        for outcome in self.recorder.poll():
            found.append((self.effects.ended(outcome), outcome.problem))
        if state in _MOVING:
            self.driver.require_alive()
        if self.driver.stale and state is State.recording and not self._was_stale:
            found.append(("camera_problem", f"{self.driver.stale}: the robot held"))
        self._was_stale = bool(self.driver.stale) and state is State.recording
        if self.driver.latched and state not in (State.fault, State.estop):
            found.append(("robot_stop", f"{self.driver.latched.name}: {self.driver.why}"))
        if self.pilot.problem and state in _MOVING:
            found.append(("robot_stop", self.pilot.problem))
        before, self._clutch = self._clutch, self.pilot.engagement
        if self._clutch == "fault" and before != "fault" and state in _MOVING:
            found.append(("device_fault", self.loop.explains(command.stamp_s) or "no command from the device"))
        problems = self.cameras.see(reading.stamps, now_s)
        if state is State.recording:
            found += [("camera_problem", text) for text in problems.values()]
            found += self.effects.watch_recording(now_s)
            if self.config.end_on_success and self._is_solved():
                found.append(("success", "the scene's signal"))
        return found

    def _is_solved(self) -> bool:
        scene = self.parts.scene
        return scene is not None and bool(scene.episode().success)

    def _apply(self, asked: PanelEvent, reading: Reading) -> None:
        event, refusal = self.effects.meant(asked.name, is_solved=self._is_solved)
        if refusal:
            self.effects.message = refusal
            return
        text = asked.text
        transition = self.machine.apply(event, asked.stamp_s, text=text, by=asked.by, episode=asked.episode)
        if not transition.is_known:
            log.info("%r means nothing in %s", event, transition.before.value)
            return
        log.info("%s: %s -> %s%s", event, transition.before.value, transition.after.value, f" ({text})" if text else "")
        self.effects.carry_out(transition, closing=lambda: self._closing(reading))
        if transition.after is State.resetting and transition.before is not State.resetting:
            gc.collect()  # it is off in the loop, and nothing moves now
        if transition.after in _MOVING and transition.before not in _MOVING:
            self._from_here(reading)
        if transition.after is State.recording and transition.before is not State.recording:
            self.pilot.start(seed=self.effects.seed, is_new=transition.before is State.ready)
            self._choice = None
            self.cameras.reset()
        # A reset may take a second: what was due meanwhile is not made up for.
        self._is_new_schedule = self._is_new_schedule or transition.after is State.resetting
        if self.parts.observer is not None:
            self.parts.observer(transition)

    def _from_here(self, reading: Reading) -> None:
        self.pilot.begin(reading, sent=self.driver.sent, seed=self.effects.seed)
        self._choice = None

    def _closing(self, reading: Reading) -> Row:
        """What the last action led to, as a row."""
        choice = self._choice or Choice(np.zeros(self._spec.action.size, np.float32), None, None, self.effects.source)
        turn = Turn(Slot(-1, 0.0, 0.0, 0), reading, self.hearing.command(), self.driver.read_s, 0.0, None)
        return self._row(turn, choice, self.driver.read_s)


def _kept(reading: Reading) -> dict[str, Any]:
    """Frames that nobody writes to any more: small ones are copied, pictures are new arrays by contract."""
    return {
        key: frame if key.startswith(IMAGE) else np.array(frame, copy=True) for key, frame in reading.frames.items()
    }
