"""An operator made of rules, and what a session needs beside a small robot: device, panel, mapping, clutch, scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from small_robot import small_card, small_spec

from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.schedule import Clock, ManualClock, MonotonicClock
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.teleop.panel import PanelEvent, SessionView
from robot_rl.teleop.pilots import OperatorPilot
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.rows import layout_for
from robot_rl.teleop.session import Session, SessionConfig, SessionParts
from robot_rl.teleop.writing import RecordingConfig
from robot_rl.types import Goal, Reading

RATE = 0.5  # rad/s at full motion


@dataclass
class ScriptedDevice:
    """Gives what `say` makes of the time since it was connected; a new command at each read, unless `say` is None."""

    clock: Clock
    say: Callable[[float], TeleopCommand | None] = lambda since_s: TeleopCommand(
        engaged=True, motion=np.array([1, 0, 0, 0, 0, 0], np.float32)
    )
    name: str = "scripted"
    sequence: int = 0
    last: TeleopCommand = field(default_factory=TeleopCommand)

    def connect(self) -> None:
        self.began_s = self.clock.now()

    def read(self) -> TeleopCommand:
        said = self.say(self.clock.now() - self.began_s)
        if said is not None:
            self.sequence += 1
            self.last = TeleopCommand(
                self.sequence, self.clock.now(), said.engaged, said.motion, said.gripper, buttons=said.buttons
            )
        return self.last

    def status(self) -> DeviceStatus:
        return DeviceStatus(self.name, is_connected=True)

    def close(self) -> None:
        pass


@dataclass
class RulePanel:
    """Asks for what `rule` makes of each view: event names, or PanelEvents."""

    rule: Callable[[SessionView], list[str | PanelEvent]]
    views: list[SessionView] = field(default_factory=list)
    asked: list[PanelEvent] = field(default_factory=list)

    def publish(self, view: SessionView) -> None:
        self.views.append(view)
        self.asked += [PanelEvent(word, by="rule") if isinstance(word, str) else word for word in self.rule(view)]

    def events(self) -> list[PanelEvent]:
        asked, self.asked = self.asked, []
        return asked

    def close(self) -> None:
        pass


def episodes_of(steps: int, label: str = "success") -> Callable[[SessionView], list[str | PanelEvent]]:
    """An operator who starts, drives so many steps, labels and saves."""

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "ready":
            return ["start"]
        if view.state == "recording" and view.episode["steps"] >= steps:
            return [label]
        return ["save"] if view.state == "review" else []

    return rule


@dataclass
class PlainMapped:
    action: np.ndarray
    raw: np.ndarray
    clamped: tuple[str, ...] = ()


class PlainMapping:
    """Absolute joints of the small robot: where it is, and one period of motion about the first two axes."""

    def action(
        self, command: TeleopCommand, *, reading: Reading, period_s: float, share: float = 1.0, sent: Goal | None = None
    ) -> PlainMapped:
        step = RATE * period_s * command.motion[:2].astype(np.float64) * 4 * share
        raw = (reading.position + (step if command.engaged else 0.0)).astype(np.float32)
        return PlainMapped(raw, raw.copy())

    def reset(self, reading: Reading, *, sent: Goal | None = None) -> None:
        pass


@dataclass
class PlainEngagement:
    state: str
    share: float


class PlainClutch:
    """100 ms without a new command is open, 500 ms a fault."""

    def judge(self, command: TeleopCommand, now_s: float) -> PlainEngagement:
        age_s = now_s - command.stamp_s
        state = "fault" if age_s > 0.5 else "open" if age_s > 0.1 or not command.engaged else "engaged"
        return PlainEngagement(state, float(state == "engaged"))


def recorder_of(path: Path, robot: MockRobot, **changes: Any) -> Recorder:
    """Of a store at `path`, made when it is missing; queue without end, for clocks that run as fast as they can."""
    store = EpisodeStore.open_or_create(path, robot.spec)
    config = RecordingConfig(**{"max_queued": 100_000, **changes})
    return Recorder(store, layout_for(robot.spec, robot.card), config)


def small_session(
    path: Path, rule: Callable[[SessionView], list[str | PanelEvent]], *, clock: Clock | None = None,
    mock: dict[str, Any] | None = None, device: Any = None, parts: dict[str, Any] | None = None,
    recording: dict[str, Any] | None = None, **config: Any,
) -> tuple[Session, MockRobot, RulePanel]:  # fmt: skip
    """A session with the small robot, on a clock that moves only by sleeping unless another is given."""
    clock = ManualClock() if clock is None else clock
    plain = MockRobotConfig(**{"streams": ("joints",), **(mock or {})})
    robot = MockRobot(plain, card=small_card(), spec=small_spec(config=plain), clock=clock)
    panel = RulePanel(rule)
    recorder = recorder_of(path, robot, **(recording or {}))
    session = Session(
        robot, ScriptedDevice(clock) if device is None else device, OperatorPilot(PlainMapping(), PlainClutch()), recorder,
        config=SessionConfig(**{"total": 2, "view_hz": 1000.0, "realtime": RealtimeConfig(fifo_priority=None), **config}),
        parts=SessionParts(panels=(panel,), clock=clock, **(parts or {})),
    )  # fmt: skip
    return session, robot, panel


@dataclass(frozen=True)
class OperatorConfig:
    """Of a ScriptedOperator."""

    steps: int = 15
    label: str = "success"


class ScriptedOperator:
    """Device and panel in one, as a page is: drives, labels and saves by itself. On the machine's clock."""

    def __init__(self, config: OperatorConfig) -> None:
        self.name = "scripted operator"
        self._rule = RulePanel(episodes_of(config.steps, config.label))
        self._device = ScriptedDevice(MonotonicClock())
        self.connect, self.read, self.status = self._device.connect, self._device.read, self._device.status
        self.publish, self.events = self._rule.publish, self._rule.events

    def close(self) -> None:
        pass


class FailsOnce(ScriptedOperator):
    """Labels its first episode a failure."""

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__(config)
        self.publish = self._publish

    def _publish(self, view: SessionView) -> None:
        self._rule.rule = episodes_of(5, "success" if view.totals["discarded"] else "failure")
        self._rule.publish(view)


class PickingOperator:
    """Picks the cube of PickCube and brings it to its goal, by what the screen shows: the tool's and the cube's place.

    A person with a velocity device: held away from the goal, the cube follows within centimetres.
    """

    def __init__(self, config: OperatorConfig) -> None:
        self.name = "picking operator"
        self._device = ScriptedDevice(MonotonicClock(), self._say)
        self.connect, self.read, self.status = self._device.connect, self._device.read, self._device.status
        self._view: SessionView | None = None
        self._held_since: int | None = None
        self._asked: list[PanelEvent] = []

    def publish(self, view: SessionView) -> None:
        self._view = view
        ask = {"ready": "start", "review": "save"}.get(view.state)
        if ask:
            self._held_since = None
            self._asked.append(PanelEvent(ask, by="operator"))

    def events(self) -> list[PanelEvent]:
        asked, self._asked = self._asked, []
        return asked

    def close(self) -> None:
        pass

    def _say(self, since_s: float) -> TeleopCommand | None:
        view = self._view
        if view is None or view.state != "recording":
            return TeleopCommand(engaged=False)
        here, cube, goal = (np.array(p[:3]) for p in (view.pose, view.scene["cube"], view.scene["goal_site"]))
        steps = view.episode["steps"]
        if self._held_since is None and np.abs(here - cube).max() < 0.012:
            self._held_since = steps
        is_grasped = self._held_since is not None and steps - self._held_since > 12
        way = goal - cube if is_grasped else cube - here
        if not is_grasped and np.linalg.norm(way[:2]) > 0.015:
            way = way + np.array([0, 0, 0.08])  # from above
        speed = np.clip(way / 0.05, -1, 1)
        motion = np.float32([*speed, 0, 0, 0]) * (0 if self._held_since is not None and not is_grasped else 1)
        return TeleopCommand(engaged=True, motion=motion, gripper=1.0 if self._held_since is None else -1.0)
