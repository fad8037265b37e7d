"""`robot-rl calibrate latency camera=...` as a user calls it: the page in a real Chromium, before a camera of known delay."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="browser tests left out: playwright is not installed")

import watching_camera
from playwright.sync_api import Page, sync_playwright

from robot_rl.data.delays import load_delays

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="browser tests left out: no chromium here (apt install chromium)"
)


def line_of(file: Path, pattern: str, process: subprocess.Popen[bytes], *, seconds: float = 90.0) -> str:
    """What a program writes that fits a pattern."""
    deadline_s = time.monotonic() + seconds
    while not (found := re.search(pattern, file.read_text())):
        assert process.poll() is None, file.read_text()
        assert time.monotonic() < deadline_s, file.read_text()
        time.sleep(0.05)
    return found.group(1)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[tuple[str, Page]]:
    """Chromium with an empty page, by the address of its debugging port."""
    log = tmp_path / "chromium.log"
    assert CHROMIUM is not None
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=320,240"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [CHROMIUM, *words, f"--user-data-dir={tmp_path}/profile", "about:blank"], stdout=out, stderr=out
        )
    try:
        devtools = line_of(log, r"DevTools listening on (ws://\S+)", process)
        with sync_playwright() as playwright:
            yield devtools, playwright.chromium.connect_over_cdp(devtools).contexts[0].pages[0]
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("delay_s", [0.0, 0.18])
def test_the_delay_of_a_camera_that_sees_the_page_is_what_it_is_known_to_be(
    delay_s: float, screen: tuple[str, Page], tmp_path: Path
) -> None:
    devtools, page = screen
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera" / "screen.yaml").write_text("_target_: watching_camera.WatchingCamera\n")
    output, log = tmp_path / "delays.json", tmp_path / "calibrate.log"
    words = [
        "calibrate", "latency", "--output", str(output), "--config-dir", str(tmp_path), "--blinks", "16",
        "camera=screen", f"camera.devtools={devtools}", f"camera.delay_s={delay_s}",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "robot_rl", *words], stdout=out, stderr=out,
            env=os.environ | {"PYTHONPATH": str(Path(watching_camera.__file__).parent)},
        )  # fmt: skip
    try:
        page.goto(line_of(log, r"open (http://127\.0\.0\.1:\S+)", process))
        while process.poll() is None:
            page.wait_for_timeout(50)
    finally:
        process.kill()
    assert process.wait() == 0, log.read_text()
    found = load_delays(output).cameras["screen"]
    print(found)
    assert found.camera_delay_s == pytest.approx(delay_s, abs=0.04)
    assert found.blinks >= 13
    assert f"{1e3 * found.camera_delay_s:.1f} ms" in log.read_text()
