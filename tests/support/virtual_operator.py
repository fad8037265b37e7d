"""An operator made of rules who sits before the real page: real key events in headless Chromium, and eyes for nothing else.

    python tests/support/virtual_operator.py --episodes 50 --dataset PATH --first-seed 0

It starts `robot-rl collect env=pick_cube driver=sim teleop=browser`, opens its page, and knows what the page is sent: the
views on its WebSocket. Each axis has two keys, so control is by press and release; Shift is held near the goal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = (("KeyW", "KeyS"), ("KeyA", "KeyD"), ("KeyE", "KeyQ"))  # more and less of x, y, z in the base frame
AHEAD_S = 0.15  # from a view on the screen to the arm that follows a key
NEAR_M = 0.05  # nearer than this all axes go at a quarter of the speed
ABOVE_M = 0.06
GOAL_M = 0.024  # the task asks for 0.025
CLOSED_M, OPEN_M = 0.008, 0.036  # finger joint: below it is empty, above it is open; the half cube is 0.02
TOO_LONG_S = 25.0
TRIES = 4


@dataclass
class Hands:
    """Which keys a view asks for. It remembers the last view alone, for the speed of the tool."""

    before: tuple[float, np.ndarray] | None = None
    phase: str = ""

    def keys(self, view: dict[str, Any]) -> set[str]:
        """Keys to be held; fills `phase`: over, down, grasp or carry."""
        here, cube, goal = (np.array(p[:3]) for p in (view["pose"], view["scene"]["cube"], view["scene"]["goal_site"]))
        seconds = float(view["episode"].get("seconds", 0.0))
        ahead = np.zeros(3)
        if self.before is not None and 0 < seconds - self.before[0] < 0.3:
            ahead = np.clip((here - self.before[1]) / (seconds - self.before[0]) * AHEAD_S, -NEAR_M, NEAR_M)
        if self.before is None or self.before[0] != seconds:
            self.before = seconds, here
        finger = view["proprio"]["qpos[7]"]  # m
        way, is_there = cube - here, np.abs(cube - here).max() < 0.02
        is_held = is_there and CLOSED_M < finger < 0.03
        if is_held:
            self.phase = "carry"
            return self._towards(goal - cube, ahead, tolerance_m=0.01) | {"Space"}
        if is_there and np.abs(way).max() < 0.012 and finger > CLOSED_M:
            self.phase = "grasp"
            return {"Space", "KeyF"}
        is_over = np.linalg.norm(way[:2]) < 0.015
        self.phase = "down" if is_over else "over"
        keys = self._towards(way if is_over else way + np.array([0, 0, ABOVE_M]), ahead, tolerance_m=0.006)
        return keys | {"Space"} | ({"KeyR"} if finger < OPEN_M else set())

    def _towards(self, way: np.ndarray, ahead: np.ndarray, *, tolerance_m: float) -> set[str]:
        left = way - ahead
        is_near = np.abs(left).max() < NEAR_M
        least = tolerance_m if is_near else NEAR_M
        keys = {pair[int(x < 0)] for x, pair in zip(left, KEYS, strict=True) if abs(x) > least}
        return keys | {"ShiftLeft"} if is_near else keys


@dataclass
class Operator:
    """Before one page.

    Args:
        page: of Playwright, not yet at the address.
        photograph: called with the phase when it changes; None: no pictures.
    """

    page: Any
    photograph: Callable[[str], None] | None = None
    hands: Hands = field(default_factory=Hands)
    view: dict[str, Any] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    _asked: tuple[Any, str] = (None, "")
    _asked_s: float = 0.0
    _still_since_s: float | None = None
    _tries: int = 0

    def open(self, url: str) -> None:
        """Open the page and listen to what it is sent."""
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._hear))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-driving=true]:not([data-state=none])", timeout=120_000)

    def turn(self) -> None:
        """Look, and press or let go of keys."""
        self.page.wait_for_timeout(15)
        state = self.view.get("state")
        if state == "recording":
            self._record()
        elif state in ("idle", "ready", "review", "fault", "estop"):
            self._hold(set())
            if state in ("ready", "review"):
                self._seen(state)
            self._between(str(state))
        else:
            self._hold(set())

    def _record(self) -> None:
        view, now_s = self.view, time.monotonic()
        keys = self.hands.keys(view)
        # Held keys of the gripper are let go of for a moment now and then: it is a press that counts.
        self._hold(keys - {"KeyF", "KeyR"} if now_s % 0.4 > 0.3 else keys)
        self._seen(self.hands.phase)
        is_still = self.hands.phase == "carry" and not keys & {key for pair in KEYS for key in pair} and in_goal(view)
        self._still_since_s = (self._still_since_s or now_s) if is_still else None
        if self._still_since_s is not None and now_s - self._still_since_s > 1.5:
            self._press("3", "success by hand")
        elif view["episode"]["seconds"] > TOO_LONG_S:
            self._give_up()

    def _between(self, state: str) -> None:
        if state in ("idle", "ready"):
            self.hands = Hands()
            self._still_since_s = None
            # A cube that lies in its goal from the start is nothing to show: the session says so, and another scene is asked for.
            is_refused = "solved already" in self.view.get("message", "") and self._asked == (state, "1")
            since_s = time.monotonic() - self._asked_s
            if is_refused and since_s > 0.5:
                self._press("8", "other scene")
            elif not is_refused and (self._asked[1] != "8" or since_s > 0.5):
                self._press("1", "start")
        elif state in ("fault", "estop"):
            self._press("l", state)
        elif self.view["episode"].get("label") == "success":
            self._tries = 0
            self._press("5", "save")
        elif in_goal(self.view):
            self._press("3", "success by hand")
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self._tries < TRIES:
            self._press("7", "again")
        else:
            self._press("6", "discarded")

    def _press(self, key: str, name: str) -> None:
        """Once, and again only when a second passed without an answer."""
        if time.monotonic() - self._asked_s < 1.0 and self._asked == (self.view.get("state"), key):
            return
        self._asked, self._asked_s = (self.view.get("state"), key), time.monotonic()
        self.page.keyboard.press(f"Digit{key}" if key.isdigit() else f"Key{key.upper()}")
        self.counts[name] += 1
        if name == "again":
            self._tries += 1
        elif name == "discarded":
            self._tries = 0

    def _hold(self, keys: set[str]) -> None:
        for key in self.held - keys:
            self.page.keyboard.up(key)
        for key in sorted(keys - self.held):
            self.page.keyboard.down(key)
        self.held = set(keys)

    def _seen(self, phase: str) -> None:
        if self.photograph is not None:
            self.photograph(phase)

    def _hear(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            told = json.loads(frame)
            if told.get("type") == "view":
                self.view = told["view"]
            elif told.get("type") == "ended":
                self.view = {**self.view, "state": "closed"}


def in_goal(view: dict[str, Any]) -> bool:
    """Whether the cube is where the task wants it."""
    return float(np.linalg.norm(np.subtract(view["scene"]["cube"], view["scene"]["goal_site"]))) < GOAL_M


class Camera:
    """One picture of the page for each phase, of the first episode in which it is seen."""

    def __init__(self, page: Any, folder: Path) -> None:
        self._page, self._folder, self._seen = page, folder, dict[str, float]()
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, phase: str) -> None:
        """Half a second behind its beginning, when the page shows it; the last phases are over sooner."""
        now_s = time.monotonic()
        begun_s = self._seen.setdefault(phase, now_s)
        file = self._folder / f"{list(self._seen).index(phase)}_{phase}.png"
        if not file.exists() and now_s - begun_s >= {"ready": 0.0, "over": 0.3, "carry": 0.3}.get(phase, 0.1):
            self._page.screenshot(path=str(file))


def collect(
    dataset: Path, *, episodes: int, first_seed: int, folder: Path, pictures: bool = False, limit_s: float = 3600.0,
    speed_m_s: float = 1.4,
) -> dict[str, Any]:  # fmt: skip
    """Fill `dataset`; returns what the operator did, and the summary of the run.

    Args:
        dataset: an EpisodeStore, made when missing.
        episodes: that it shall hold.
        first_seed: of the scenes.
        folder: for the run directory, the log and pictures.
        pictures: of the page, one a phase.
        limit_s: the session is ended (Ctrl-C, which loses nothing) when it takes longer.
        speed_m_s: of the mapping.

    Raises:
        RuntimeError: the command does not come up, or ends with an error.
    """
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    log, began_s = folder / "collect.log", time.monotonic()
    words = [
        "collect", "env=pick_cube", "driver=sim", "teleop=browser", "teleop.port=0", f"num_episodes={episodes}",
        f"dataset={dataset}", f"first_seed={first_seed}", f"run_root={folder}/runs", "session.operator=virtual",
        "session.mapping.gripper=ends", f"session.mapping.speed_m_s={speed_m_s}", "session.view_hz=25", "--track", "none",
    ]  # fmt: skip
    with log.open("w") as out, sync_playwright() as playwright:
        process = subprocess.Popen([sys.executable, "-m", "robot_rl", *words], stdout=out, stderr=out, env=os.environ)
        try:
            url = address_of(log, process)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            operator = Operator(page, Camera(page, folder / "pictures") if pictures else None)
            operator.open(url)
            while operator.view.get("state") != "closed" and process.poll() is None:
                operator.turn()
                if time.monotonic() - began_s > limit_s:
                    break
            browser.close()
            if process.poll() is None and operator.view.get("state") != "closed":
                process.send_signal(2)
            code = process.wait(60)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code not in (0, 130):
        raise RuntimeError(f"collect ended with {code}:\n{log.read_text()[-3000:]}")
    events = sorted((folder / "runs").glob("*/events.jsonl"))[-1]
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    labels = Counter(row["text"] or row["by"] for row in rows if row["event"] == "success" and row["is_known"])
    return {
        "pressed": dict(operator.counts),
        "labelled": dict(labels),
        "seconds": time.monotonic() - began_s,
        "code": code,
    }


def address_of(log: Path, process: subprocess.Popen[bytes]) -> str:
    """What a command that writes to `log` prints as the address of its page.

    Raises:
        RuntimeError: it ended, or said nothing for three minutes.
    """
    deadline_s = time.monotonic() + 180
    while time.monotonic() < deadline_s and process.poll() is None:
        found = re.search(r"operator page: (http\S+)", log.read_text())
        if found:
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"no page:\n{log.read_text()[-3000:]}")


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/virtual_operator"))
    parser.add_argument("--speed", type=float, default=1.4)
    parser.add_argument("--limit-s", type=float, default=3600.0)
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    done = collect(
        given.dataset, episodes=given.episodes, first_seed=given.first_seed, folder=given.folder, pictures=given.pictures,
        limit_s=given.limit_s, speed_m_s=given.speed,
    )  # fmt: skip
    print(json.dumps(done))


if __name__ == "__main__":
    main()
