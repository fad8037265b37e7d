"""A session as a page sees one, without robot: a thread that moves a tool by commands and changes its state by events."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from robot_rl.hardware.browser import BrowserPage
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.panel import EDITS, EVENTS, PanelEvent, SessionView

ALLOWED = {
    "idle": ("start", "quit", "reset", "note"), "ready": ("start", "save_last", "quit", "reset", "note"),
    "recording": ("stop", "success", "failure", "discard", "rerecord", "pause", "subtask", "note", "quit"),
    "paused": ("resume", "stop", "discard", "quit"), "review": ("success", "failure", "save", "discard", "rerecord", "note", "undo"),
    "estop": ("release", "quit"),
}  # fmt: skip
_NEXT = {"start": "recording", "stop": "review", "success": "review", "failure": "review", "save": "ready",
         "discard": "ready", "rerecord": "ready", "pause": "paused", "resume": "recording", "estop": "estop",
         "release": "idle", "reset": "ready"}  # fmt: skip
HZ = 50.0
LOW, HIGH = (0.25, -0.35, 0.01), (0.75, 0.35, 0.5)


class StandIn:
    """Publishes views at 50 Hz until `close`. Everything it heard is kept.

    Args:
        page: connected.
        state: to begin with.
        episodes: of the list.
        cameras: of 640x480, besides the drawn view.
    """

    def __init__(
        self, page: BrowserPage, *, state: str = "ready", episodes: tuple[dict[str, Any], ...] = (), cameras: int = 2
    ) -> None:
        self.page, self.state, self.episodes, self.cameras = page, state, episodes, cameras
        self.commands: list[TeleopCommand] = []
        self.events: list[PanelEvent] = []
        self.extra: dict[str, Any] = {}
        self.tool = np.array([0.45, 0.12, 0.18])
        self._label, self._begun_s, self._number = "", time.monotonic(), len(episodes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(10)

    @property
    def newest(self) -> TeleopCommand:
        """Command; the page itself is read by the thread alone."""
        return self.commands[-1] if self.commands else TeleopCommand()

    def engaged(self) -> bool:
        """Whether the newest command is."""
        return self.newest.engaged

    def _run(self) -> None:
        step = 0
        while not self._stop.wait(1 / HZ):
            command = self.page.read()
            if command.sequence != self.newest.sequence:
                self.commands.append(command)
            if command.engaged:
                self.tool = np.clip(self.tool + 0.25 / HZ * command.motion[:3], LOW, HIGH)
            for event in self.page.events():
                self.events.append(event)
                self._hear(event)
            step += 1
            self.page.publish(self._view(step, command))

    def _hear(self, event: PanelEvent) -> None:
        assert event.name in (*EVENTS, *EDITS)
        if event.name not in (*ALLOWED.get(self.state, ()), "estop"):
            return
        self._label = event.name if event.name in ("success", "failure") else self._label
        if event.name == "start":
            self._begun_s, self._label = time.monotonic(), ""
        if event.name == "save":
            done = {
                "number": self._number,
                "length": 142,
                "seconds": 7.1,
                "success": self._label == "success",
                "rate_hz": 19.9,
            }
            self.episodes, self._number = (*self.episodes, done), self._number + 1
        self.state = _NEXT.get(event.name, self.state)

    def _view(self, step: int, command: TeleopCommand) -> SessionView:
        seconds, cube = time.monotonic() - self._begun_s, (0.52, -0.06, 0.02)
        wins = sum(bool(one["success"]) for one in self.episodes)
        view: dict[str, Any] = {
            "state": self.state, "allowed": ALLOWED.get(self.state, ()),
            "episode": {"number": self._number, "steps": int(seconds * HZ), "seconds": seconds, "source": "teleop", "label": self._label}
            if self.state in ("recording", "review", "paused") else {},
            "totals": {
                "saved": len(self.episodes), "wanted": 50, "successes": wins, "failures": len(self.episodes) - wins,
                "discarded": 2, "disk_bytes_left": 61.3e9, "seconds": 52e3,
            },
            "loop": {"wanted_hz": HZ, "achieved_hz": 49.97, "late_p99_ms": 0.62, "skipped": 0, "queued": 3},
            "ages_ms": {"joints": 4.0 + step % 3, "wrist": 21.0 + step % 30, "base": 148.0 + step % 20 if self.cameras > 1 else 30.0},
            "proprio": {f"panda_joint{i + 1}": float(np.sin(step / 60 + i)) for i in range(7)} | {"finger": 0.04},
            "action": dict(zip(("dx", "dy", "dz", "gripper"), map(float, (*command.motion[:3], command.gripper)), strict=True)),
            "pose": (*map(float, self.tool), 0.0, 1.0, 0.0, 0.0),
            "scene": {
                "cube": cube, "goal": (0.42, 0.1, 0.2), "workspace": (*LOW, *HIGH),
                **{f"link:{i}": point for i, point in enumerate(_arm(self.tool))},
            },
            "limits": ("workspace",) if np.any(self.tool <= LOW) or np.any(self.tool >= HIGH) else (),
            "device": {"problems": list(self.page.status().problems)}, "episodes": self.episodes,
            "pictures": {name: _picture(name, self.tool, step) for name in ("base", "wrist")[: self.cameras]},
        }  # fmt: skip
        return SessionView(**(view | self.extra))


def _arm(tool: np.ndarray) -> list[tuple[float, ...]]:
    shoulder, hand = np.array([0, 0, 0.333]), np.add(tool, (0, 0, 0.09))
    elbow = np.add((shoulder + hand) / 2, (0, 0, 0.28))
    return [tuple(map(float, point)) for point in (np.zeros(3), shoulder, elbow, hand)]


def _picture(name: str, tool: np.ndarray, step: int) -> np.ndarray:
    """A table with a cube and a gripper seen from above; no more than something that moves."""
    picture = np.empty((480, 640, 3), np.uint8)
    picture[:] = (96, 84, 70) if name == "base" else (70, 78, 88)
    picture[::40] = picture[:, ::40] = 60
    shift = 0.0 if name == "base" else 1.0

    def square(x: float, y: float, half: int, colour: tuple[int, int, int]) -> None:
        column, row = int(320 - 700 * (y - shift * tool[1])), int(240 - 700 * (x - (tool[0] if shift else 0.5)))
        picture[max(0, row - half) : max(0, row + half), max(0, column - half) : max(0, column + half)] = colour

    square(0.52, -0.06, 18, (205, 60, 45))
    square(0.42, 0.1, 12, (90, 200, 130))
    square(tool[0] + 0.04, tool[1], 7, (235, 235, 235))
    square(tool[0] - 0.04, tool[1], 7, (235, 235, 235))
    picture[-6:, : (step * 4) % 640] = 255
    return picture
