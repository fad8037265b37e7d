"""One robot as a StepEnv: actions on an absolute schedule through reader and safety layer, resets, people, and stops.

An action is commanded at every slot of its period; the frame is what is read at the slot behind it. When a decision takes so
long that the slot is gone, the robot holds within its limits and the action begins at the next slot. A stop ends the
episode, and nothing begins again until a person releases it.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.deploy.chunking import AgeCheck
from robot_rl.deploy.loop_checks import actions_every, streams_of
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Clock, Schedule
from robot_rl.errors import DeployError, EnvError, RobotRlError
from robot_rl.specs import EnvSpec
from robot_rl.teleop.driving import Driver
from robot_rl.teleop.resetting import Resetter
from robot_rl.types import Reading

from .executed_actions import ExecutedAction
from .history import Frame
from .robot_guard import Guard
from .robot_keeper import Keeper
from .robot_people import People
from .robot_plan import Counts, PlayConfig

log = logging.getLogger(__name__)

# Share of a period that must be left for an action to begin in its slot.
_LEFT = 0.25


class RobotPlayer:
    """See the text of this module.

    Args:
        robot: connected at the first reset, closed by `close`.
        scene: who resets and judges, or None.
        people: who is asked and heard.
        config: see PlayConfig.
        clock: of robot and loop.
        guard: watchdog and black box; None: neither.

    Raises:
        DeployError: actions that the robot can't be told, or rates that do not fit.
    """

    def __init__(
        self, robot: Any, scene: Any, people: People, *, config: PlayConfig, clock: Clock, guard: Guard | None = None
    ) -> None:
        self.spec: EnvSpec = robot.spec
        self.num_envs, self.device = 1, torch.device("cpu")
        self.driver, self.scene, self.people, self.clock, self.config = (
            Driver(robot, clock),
            scene,
            people,
            clock,
            config,
        )
        self.guard = guard or Guard()
        self.counts, self.played = Counts(), list[np.ndarray]()
        self.card = robot.card
        self._every = actions_every(self.card.control_hz, self.spec.control_hz)
        self._executed = ExecutedAction(self.spec, self.card)
        self._ages = AgeCheck({name: self.card.thresholds.age_s(name) for name in self._streams()})
        self._resetter = Resetter(self.driver, None if config.asks_person else scene, clock, config.reset)
        self.schedule = Schedule(self.card.control_hz, clock=clock)
        self._index, self._connected, self._closed = -1, False, False
        self.reading: Reading | None = None
        self.steps, self.seed, self._label, self._asked_pause = 0, -1, "", False
        self.late = self.schedule.jitter.late
        self.keeper = Keeper(self._keep, self._due_s, clock=clock, is_threaded=config.is_threaded)

    def reset_envs(self, mask: Bool[Array, " 1"], seeds: Int64[Array, " 1"]) -> Frame:
        """Bring robot and scene to the start of an episode; waits for people where they are asked.

        Raises:
            DeployError: the robot can't be reached, or the reset fails.
        """
        with self.keeper.busy(then_hold=True):
            if bool(mask[0]):
                self._reset(int(seeds[0]))
            return self._frame()

    def step_envs(self, action: Float32[Array, "1 A"], active: Bool[Array, " 1"]) -> Frame:
        """Play one action."""
        with self.keeper.busy(then_hold=True):
            if bool(active[0]):
                self._play(np.asarray(action[0], np.float32))
            return self._frame()

    def rest(self) -> None:
        """Brake within the limits, then hold by the robot's own means: nobody plays for a while."""
        if not self._connected or self._closed:
            return
        with self.keeper.busy(then_hold=False):
            began_s = self.clock.now()
            while self.clock.now() - began_s < self.config.rest_s:
                self._turn(1)
                if self.driver.is_at_rest:
                    break
            self.driver.robot.stop()
            self.guard.rest()

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        return {
            "task": self.spec.env_id, "robot": self.card.name, "real_time": self.config.is_threaded,
            "control_hz": self.card.control_hz, "reward_mode": "scene" if self.config.judges else "person",
            "resets": "person" if self.config.asks_person else "scene" if self.scene is not None else "home",
            "executed_actions": "as sent after safety", "versions": {"numpy": np.__version__, "torch": torch.__version__},
        }  # fmt: skip

    def close(self) -> None:
        """Bring the robot to rest, hold it, end every connection. Also twice."""
        if self._closed:
            return
        try:
            self.rest()
        finally:
            self._closed = True
            self.keeper.close()
            self.driver.close()
            log.warning("robot held")
            self.guard.close()
            if self.scene is not None and self.scene is not self.driver.robot:
                self.scene.close()
            self.people.close()

    def _streams(self) -> tuple[str, ...]:
        return streams_of(tuple(self.spec.observation), self.card)

    def _due_s(self) -> float:
        return self.schedule.due_s(self._index + 1)

    def _keep(self) -> None:
        """One turn of the keeper: the slot is due."""
        self._turn(1)

    def _wait(self) -> None:
        self._slot = slot = self.schedule.wait()
        self._index, self._period_s = slot.index, (1 + slot.skipped) / self.card.control_hz
        self.guard.beat(self.driver)

    def _turn(self, count: int) -> Reading:
        """Hold for so many slots."""
        for _ in range(count):
            self._wait()
            self.driver.hold(self._read(), self._period_s)
            self._note(None, -1)
        assert self.reading is not None
        return self.reading

    def _read(self) -> Reading:
        self.reading = self.driver.read()
        return self.reading

    def _play(self, asked: np.ndarray) -> None:
        assert self.reading is not None
        if self._due_s() - self.clock.now() < _LEFT / self.card.control_hz:
            self.counts.late_decisions += 1
            self._turn(1)
        self._executed.begin(self.reading, self.driver.sent)
        self._label, period_s = "", 1 / self.card.control_hz
        for number in range(self._every):
            if self._ages.judge(self.reading, self.clock.now()).is_stale:
                self.counts.stale += 1
                self.driver.hold(self.reading, period_s, reason=Reason.stale)
            else:
                self.driver.act(asked if number == 0 else None, self.reading, period_s)
            self._note(asked, number)
            if self.driver.sent is not None:
                self._executed.add(self.driver.sent, 1 / self.card.control_hz)
            self._wait()
            period_s = self._period_s
            self._read()
            self.driver.require_alive()
            self._hear(self.people.hear(self.clock.now()))
        self._count(asked)
        while self._asked_pause:
            self._turn(1)
            self._show("paused", "resume to go on")
            self._hear(self.people.hear(self.clock.now()))

    def _note(self, asked: np.ndarray | None, index: int) -> None:
        """Tell the black box of the command of this slot."""
        assert self.reading is not None
        number = -1 if asked is None else self.counts.steps
        age_s = self._ages.judge(self.reading, self.driver.read_s).age_s
        self.guard.note(self._slot, self.driver, self.reading, (asked, number, index, age_s))

    def _count(self, asked: np.ndarray) -> None:
        self.played.append(self._executed.action(asked))
        self.steps += 1
        self.counts.steps += 1
        self.counts.bent += int((self.played[-1] != asked).any())
        self._show("recording", "success, failure or stop")

    def _hear(self, events: list[str]) -> None:
        for name in events:
            if name in ("success", "failure", "stop", "discard"):
                self._label, self._asked_pause = name, False
            elif name == "estop":
                self.driver.stop(Reason.emergency, "a person asked for it")
                self._asked_pause = False
            elif name in ("pause", "resume"):
                self._asked_pause = name == "pause"

    def _frame(self) -> Frame:
        reading = self.reading
        if reading is None:
            raise EnvError("robot", expected="reset first", got="no reading", hint="Call env.reset(seeds).")
        observation = {}
        for key, spec in self.spec.observation.items():
            if key not in reading.frames:
                raise DeployError(
                    f"reading, key {key!r}", expected="a frame", got=f"only {sorted(reading.frames)}",
                    hint="The stream did not come, or the robot has no such sensor.",
                )  # fmt: skip
            frame = np.array(reading.frames[key], dtype=spec.dtype, copy=True)
            observation[key] = torch.from_numpy(frame)[None]
        is_success = self._label == "success" or (
            self.config.judges and self.scene is not None and self.steps > 0 and bool(self.scene.episode().success)
        )
        is_stop = bool(self.driver.latched)
        success = torch.tensor([is_success and self._label != "failure" and not is_stop])
        cut = torch.tensor([is_stop or self._label in ("stop", "discard")])
        return Frame(observation, success.float(), success, torch.tensor([self._label == "failure"]), cut)

    def _reset(self, seed: int) -> None:
        if not self._connected:
            self.guard.bring_up(self.card, action_size=self.spec.action.size)
            self.driver.connect()
            # What is imported at its first use is so now: in a turn, the watchdog takes it for a lost loop.
            self._executed.begin(self.driver.read(), None)
            self._executed.action(np.zeros(self.spec.action.size, np.float32))
            self._connected = True
            self._restart()
        else:
            self.rest()
        self.seed, self.steps, self._label, self._asked_pause = seed, 0, "", False
        while True:
            if self.driver.latched:
                self._wait_for_release()
            self.driver.fresh()
            if self._is_reset(seed):
                self._label = ""
                return

    def _restart(self) -> None:
        """A new schedule, for what took long is not made up for."""
        late = self.late
        self.schedule = Schedule(self.card.control_hz, clock=self.clock)
        self.schedule.jitter.late, self._index = late, -1

    def _is_reset(self, seed: int) -> bool:
        """One try; False when the robot was stopped meanwhile."""
        problem = self._resetter.begin(seed)
        self._restart()
        is_asked, is_done = self.config.asks_person, False
        while not problem and not self.driver.latched:
            self._wait()
            reading = self._read()
            if not is_done:
                is_done, problem = self._resetter.step(reading, self._period_s)
            else:
                self.driver.hold(reading, self._period_s)
            self._note(None, -1)
            events = self.people.hear(self.clock.now())
            self._hear([name for name in events if name == "estop"])
            if is_done and (not is_asked or "start" in events):
                return not self.driver.latched
            if is_asked:
                self._show("ready", "put the scene back, then start")
        if problem and not self.driver.latched:
            raise DeployError(
                f"reset to seed {seed}", expected="robot and scene at the start", got=problem, hint="See it."
            )
        return False

    def _wait_for_release(self) -> None:
        """The robot is stopped: it comes to rest and stays there until a person says so."""
        self.counts.stops += 1
        why = f"stopped: {self.driver.latched.name or ''} {self.driver.why}"
        log.error("%s; waiting for a release", why)
        self.guard.write(self.driver)
        is_alone = not (self.people.is_there or self.config.release_stops)
        if is_alone:
            raise DeployError(
                "robot", expected="a person who releases it", got=f"{why}, and neither panel nor device",
                hint="The robot holds. Give panel= or device=, look at the robot, then resume the run.",
            )  # fmt: skip
        self._restart()
        while self.driver.latched:
            is_released = self.config.release_stops
            while not (is_released and self.driver.is_at_rest):
                self._turn(1)
                self._show("fault", f"{why}: look at the robot, then release")
                is_released = is_released or "release" in self.people.hear(self.clock.now())
            self.guard.release()
            why = self._release(why)

    def _release(self, why: str) -> str:
        """Go on, or say why a person must look again: the robot moves, or tells nothing."""
        try:
            self.driver.release()
        except RobotRlError as error:
            if self.config.release_stops:
                raise
            log.error("%s", error)
            why = str(error)
        return why

    def _show(self, state: str, message: str) -> None:
        if self.people.is_there:
            self.people.show(
                state, message,
                episode={"number": self.seed, "seed": self.seed, "steps": self.steps, "seconds": self.steps / self.spec.control_hz},
                loop={"achieved_hz": self.card.control_hz, "late_p99_ms": 1e3 * self.late.percentile_s(99.0)},
            )  # fmt: skip
