"""`bench collect`: how late the turns of a collecting session begin with recording on, at 20, 50 and 100 Hz.

One session of `robot_rl.teleop` for `seconds` at each rate: a mock arm, two fake 640x480 cameras of 30 Hz in processes of
their own, a scripted operator, every row with its pictures written to the disk. Nothing is compared; the target is a p99
under 2 ms at 50 Hz.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.contracts import Camera, Robot
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.schedule import Clock, Jitter, MonotonicClock
from robot_rl.runs.config import build
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.teleop.panel import PanelEvent, SessionView
from robot_rl.teleop.pilots import Choice, Turn
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.rows import layout_for
from robot_rl.teleop.session import Session, SessionConfig, SessionParts
from robot_rl.teleop.writing import RecordingConfig
from robot_rl.types import Goal, Reading, Source
from robot_rl.workbench.bench_timing import Measurement, Options, Report

RATES_HZ = (20.0, 50.0, 100.0)
CAMERAS = ("front", "wrist")
WIDTH, HEIGHT, CAMERA_HZ = 640, 480, 30.0
TARGET_P99_MS = {50.0: 2.0}
_SWING_S = 4.0


class WithCameras:
    """A robot and the cameras beside it, as one Robot.

    Args:
        robot: without cameras.
        cameras: connected and closed here.
    """

    def __init__(self, robot: Robot, cameras: list[Camera]) -> None:
        self._robot, self._cameras, self.card = robot, cameras, robot.card
        shape = (HEIGHT, WIDTH, 3)
        images = {f"image/{c.name}": ArraySpec(f"image/{c.name}", shape, dtype="uint8") for c in cameras}
        self.spec: EnvSpec = replace(robot.spec, observation={**robot.spec.observation, **images})

    def connect(self) -> None:
        """See Robot."""
        for camera in self._cameras:
            camera.connect()
        self._robot.connect()

    def read(self) -> Reading:
        """See Robot."""
        reading, frames = self._robot.read(), {f"image/{c.name}": c.read() for c in self._cameras}
        return replace(
            reading,
            frames={**reading.frames, **{key: frame.image for key, frame in frames.items()}},
            stamps={**reading.stamps, **{key: frame.stamp_s for key, frame in frames.items()}},
        )

    def command(self, goal: Goal) -> Goal:
        """See Robot."""
        return self._robot.command(goal)

    def stop(self) -> None:
        """See Robot."""
        self._robot.stop()

    def close(self) -> None:
        """See Robot."""
        self._robot.close()
        for camera in self._cameras:
            camera.close()


@dataclass
class _Operator:
    """Device and panel: records for `seconds`, then discards and quits."""

    seconds: float
    clock: Clock
    name: str = "bench"
    jitter: Callable[[], Jitter] | None = None
    found: dict[str, Any] = field(default_factory=dict)
    _sequence: int = 0
    _asked: list[PanelEvent] = field(default_factory=list)

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> TeleopCommand:
        """Always engaged."""
        self._sequence += 1
        return TeleopCommand(self._sequence, self.clock.now(), engaged=True)

    def status(self) -> DeviceStatus:
        """Fine."""
        return DeviceStatus(self.name, is_connected=True)

    def publish(self, view: SessionView) -> None:
        """Note the newest figures of the recording, and end it."""
        if view.state == "recording":
            assert self.jitter is not None
            self.found = {"jitter": self.jitter(), "loop": dict(view.loop), "steps": view.episode["steps"]}
        is_done = view.state == "recording" and view.episode["seconds"] >= self.seconds
        word = "start" if view.state == "ready" and not self.found else "discard" if is_done else ""
        word = word or "quit" * (view.state == "ready")
        self._asked += [PanelEvent(word)] if word else []

    def events(self) -> list[PanelEvent]:
        """See OperatorPanel."""
        asked, self._asked = self._asked, []
        return asked

    def close(self) -> None:
        """Nothing to close."""


class _SwingPilot:
    """Joints that swing by a tenth of a radian, so that everything moves."""

    def __init__(self, card: RobotCard, spec: EnvSpec) -> None:
        self._home, self._size, self.engagement, self.problem = card.home, spec.action.size, "engaged", ""

    def judge(self, command: TeleopCommand, now_s: float) -> None:
        """See Pilot."""

    def begin(self, reading: Reading, *, sent: Goal | None, seed: int) -> None:
        """See Pilot."""
        self._start = reading.position

    def start(self, *, seed: int, is_new: bool) -> None:
        """See Pilot."""

    def choose(self, turn: Turn) -> Choice:
        """See Pilot."""
        action = np.zeros(self._size, np.float32)
        action[: len(self._start)] = self._start + 0.1 * np.sin(2 * np.pi * turn.now_s / _SWING_S)
        return Choice(action, None, action, Source.teleop)


def run(options: Options) -> Report:
    """Measure every rate for `options.seconds`."""
    rows = [measure(rate_hz, options.seconds) for rate_hz in RATES_HZ]
    times = [
        Measurement(f"{row['rate_hz']:g} Hz", 1, "p99 lateness", np.array([[1e-3 * row["p99_ms"]]])) for row in rows
    ]
    met = {f"{hz:g} Hz": next(r["p99_ms"] for r in rows if r["rate_hz"] == hz) < ms for hz, ms in TARGET_P99_MS.items()}
    return Report(tuple(times), (), {"rows": rows, "table": table(rows), "target_p99_ms": TARGET_P99_MS, "met": met})


def measure(rate_hz: float, seconds: float) -> dict[str, Any]:
    """One session; lateness in milliseconds.

    Args:
        rate_hz: of the loop and its rows.
        seconds: recorded.
    """
    card = replace(load_robot_card("sim_panda_joints"), control_hz=rate_hz)
    clock = MonotonicClock()
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        arm = build({"_target_": "robot_rl.hardware.mock_robot.MockRobot", "streams": ("joints",)}, card=card)
        cameras = [
            build({
                "_target_": "robot_rl.hardware.cameras.fake_camera", "name": name, "width": WIDTH, "height": HEIGHT,
                "rate_hz": CAMERA_HZ,
            })
            for name in CAMERAS
        ]  # fmt: skip
        robot = WithCameras(arm, cameras)
        undo.callback(robot.close)
        store = undo.enter_context(EpisodeStore.create(folder / "bench.zarr", robot.spec))
        recorder = Recorder(store, layout_for(robot.spec, card), RecordingConfig(last_s=1.0))
        undo.callback(recorder.close)
        operator = _Operator(seconds, clock)
        session = Session(
            robot, operator, _SwingPilot(card, robot.spec), recorder,
            config=SessionConfig(total=1, camera_hz=CAMERA_HZ), parts=SessionParts((operator,), clock=clock),
        )  # fmt: skip
        operator.jitter = lambda: session.schedule.jitter
        session.run()
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    late = operator.found["jitter"].late
    return {
        "rate_hz": rate_hz, "steps": operator.found["steps"], "p50_ms": 1e3 * late.percentile_s(50.0),
        "p99_ms": 1e3 * late.percentile_s(99.0), "max_ms": 1e3 * late.most_s,
        "skipped": operator.found["jitter"].skipped, "rows_lost": operator.found["loop"]["lost"],
        "achieved_hz": operator.found["loop"]["achieved_hz"], "bytes": size,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for people, a heading first."""
    heading = ("lateness, ms", "p50", "p99", "max", "skipped", "rows", "lost", "Hz", "MB written")
    return [
        heading,
        *(
            (
                f"{row['rate_hz']:g} Hz", *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                *(str(row[key]) for key in ("skipped", "steps", "rows_lost")), f"{row['achieved_hz']:.2f}",
                f"{row['bytes'] / 1e6:.0f}",
            )
            for row in rows
        ),
    ]  # fmt: skip
