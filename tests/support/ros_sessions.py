"""Sessions of the command line with a robot behind ROS 2: operators made of rules, and the simulated arm as a process.

A process of a session imports the operators by name (`+teleop={_target_: ros_sessions.RosPicker, ...}`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from small_teleop import OperatorConfig, PickingOperator, ScriptedDevice

from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.panel import PanelEvent, SessionView

SUPPORT = Path(__file__).resolve().parent
START_S, WAIT_S = 90.0, 180.0
VIEW = "VIEW "
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
_DOMAINS = itertools.cycle(range(70 + 4 * _WORKER, 74 + 4 * _WORKER))


def domain() -> int:
    """A ROS domain that no other test of this worker uses now."""
    return next(_DOMAINS)


@dataclass(frozen=True)
class PickerConfig:
    """`scenes`: a JSON file, seed -> {"cube": place, "goal_site": place}, in m in the base frame."""

    scenes: str


class RosPicker(PickingOperator):
    """Picks the cube of PickCube by heart: behind topics nobody draws the scene. A cube that is held is where the tool is."""

    def __init__(self, config: PickerConfig) -> None:
        super().__init__(OperatorConfig())
        self.name = "picker"
        self._scenes = json.loads(Path(config.scenes).read_text())

    def publish(self, view: SessionView) -> None:
        scene = dict(self._scenes[str(view.episode["seed"])])
        if self._held_since is not None:
            scene["cube"] = view.pose
        super().publish(replace(view, scene=scene))


def write_scenes(path: Path, seeds: range) -> Path:
    """For RosPicker: where things are in PickCube, by a simulator of the test's own."""
    from robot_rl.hardware.sim_robot import live_scene

    known, scenes = live_scene("pick_cube", {"fast_cpu": True}), {}
    for seed in seeds:
        known.reset(seed)
        scenes[seed] = known.objects()
    known.close()
    path.write_text(json.dumps(scenes))
    return path


@dataclass(frozen=True)
class SpanConfig:
    """Of a SpanOperator.

    Attributes:
        spans: [first, last + 1] steps of an episode in which the clutch is held.
        steps: of an episode; then it is a success.
        motion: while it is held.
    """

    spans: tuple[tuple[int, int], ...] = ()
    steps: int = 60
    motion: tuple[float, ...] = (0.0, -1.0, 0.0, 0.0, 0.0, 0.0)


class SpanOperator:
    """Device and panel: holds on in stated steps of each episode, labels and saves; releases a robot that was stopped.

    What is shown goes to stderr whenever it changes, for the test that watches.
    """

    def __init__(self, config: SpanConfig) -> None:
        self.name, self.config = "span operator", config
        self._device = ScriptedDevice(MonotonicClock(), self._say)
        self.connect, self.read, self.status = self._device.connect, self._device.read, self._device.status
        self._view: SessionView | None = None
        self._panel = TellingPanel("operator")
        self.events, self.close = self._panel.events, self._panel.close

    def publish(self, view: SessionView) -> None:
        self._view = view
        ask = {"ready": "start", "review": "save", "fault": "release", "idle": "reset"}.get(view.state, "")
        if view.state == "recording" and view.episode["steps"] >= self.config.steps:
            ask = "success"
        self._panel.publish(view, ask)

    def _say(self, since_s: float) -> TeleopCommand:
        view = self._view
        steps = -1 if view is None or view.state != "recording" else view.episode["steps"]
        is_held = any(first <= steps < end for first, end in self.config.spans)
        return TeleopCommand(engaged=is_held, motion=np.float32(self.config.motion))


class Teller:
    """Says on stderr what a view shows, when it changes, and ten steps are a change."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}

    def tell(self, view: SessionView) -> None:
        told = {
            "state": view.state, "message": view.message, "limits": list(view.limits), "steps": view.episode["steps"] // 10 * 10,
            "problems": list(view.episode["problems"]), "takeover": view.totals.get("takeover"),
        }  # fmt: skip
        if told != self._told:
            self._told = told
            sys.stderr.write(f"{VIEW}{json.dumps({**told, 'monotonic_s': time.monotonic()})}\n")
            sys.stderr.flush()


class TellingPanel:
    """The panel of somebody made of rules: says what it is shown, and hands over what he asks for."""

    def __init__(self, by: str) -> None:
        self._by, self._asked, self._teller = by, list[PanelEvent](), Teller()

    def publish(self, view: SessionView, ask: str) -> None:
        if ask:
            self._asked.append(PanelEvent(ask, by=self._by))
        self._teller.tell(view)

    def events(self) -> list[PanelEvent]:
        asked, self._asked = self._asked, []
        return asked

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class PersonConfig:
    """`pause_at`: step of the first episode at which a pause begins; `views`: how many views it lasts."""

    pause_at: int = 4
    views: int = 10


class PausingPerson:
    """A panel of env=real_robot: one pause, and a release whenever the robot was stopped."""

    def __init__(self, config: PersonConfig) -> None:
        self.config, self._paused = config, 0
        self._panel = TellingPanel("person")
        self.events, self.close = self._panel.events, self._panel.close

    def publish(self, view: SessionView) -> None:
        ask = {"ready": "start", "fault": "release"}.get(view.state, "")
        if view.state == "recording" and view.episode["steps"] >= self.config.pause_at and not self._paused:
            ask = "pause"
        if view.state == "paused":
            self._paused += 1
            ask = "resume" if self._paused >= self.config.views else ""
        self._panel.publish(view, ask)


class Process:
    """A process of ours in a ROS domain; what it writes is read line by line.

    Args:
        words: behind the interpreter: `-m module ...`.
        domain: of ROS.
        cwd: its folder.
    """

    def __init__(self, *words: str, domain: int, cwd: Path) -> None:
        env = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=os.environ | env | {"PYTHONPATH": str(SUPPORT)}, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.text: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, fits: Callable[[str], bool], *, what: str, wait_s: float = WAIT_S) -> str:
        """The next line that fits."""
        end_s = time.monotonic() + wait_s
        while True:
            try:
                line = self._lines.get(timeout=max(end_s - time.monotonic(), 0.01))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"not within {wait_s:g} s, or it ended: {what}\n" + "\n".join(self.text[-60:]))
            self.text.append(line)
            if fits(line):
                return line

    def until_view(self, fits: Callable[[dict[str, Any]], bool], *, what: str) -> dict[str, Any]:
        """The next view shown that fits; see Teller."""
        line = self.until(lambda line: line.startswith(VIEW) and fits(json.loads(line[len(VIEW) :])), what=what)
        view: dict[str, Any] = json.loads(line[len(VIEW) :])
        return view

    def views(self) -> list[dict[str, Any]]:
        """Every view so far that was read."""
        return [json.loads(line[len(VIEW) :]) for line in self.text if line.startswith(VIEW)]

    def end(self, code: int = 0) -> str:
        """Wait for its end; returns all that it wrote."""
        with contextlib.suppress(AssertionError):
            self.until(lambda _: False, what="the end")
        self.process.wait(WAIT_S)
        text = "\n".join(self.text)
        assert self.process.returncode == code, f"exit {self.process.returncode}\n{text}"
        return text

    def kill(self) -> None:
        """As the kernel does; also twice."""
        self.process.kill()
        self.process.wait()


def sim_node(domain: int, cwd: Path, *words: str) -> Process:
    """The simulated arm behind topics, once it is there."""
    options = ("--options", '{"fast_cpu": true}')
    node = Process("-m", "robot_rl.hardware.sim_robot_node", *options, *words, domain=domain, cwd=cwd)
    node.until(lambda line: line.endswith("is there"), what="the simulated arm", wait_s=START_S)
    return node


def robot_rl(*words: str, domain: int, cwd: Path) -> Process:
    """A command of ours."""
    return Process("-m", "robot_rl", *words, "--track", "none", domain=domain, cwd=cwd)


def write_card(path: Path, **thresholds: float) -> Path:
    """The simulated Panda's card for a busy test machine."""
    plain = yaml.safe_load((SUPPORT.parents[1] / "configs" / "robot" / "sim_panda.yaml").read_text())
    plain["thresholds"] = {
        "observation_s": 0.5,
        "heartbeat_s": 2.0,
        "connect_s": 30.0,
        "operator_release_s": 0.4,
        **thresholds,
    }
    plain["thresholds"]["operator_fault_s"] = 2.0
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path
