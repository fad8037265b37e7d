"""The real page before a real session: `robot-rl collect teleop=browser`, a person's keys in Chromium, and the store on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `teleop` is not installed")
pytest.importorskip("playwright", reason="browser tests left out: playwright is not installed")

from playwright.sync_api import Page, sync_playwright
from software_vulkan import software_icd
from virtual_operator import address_of

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.types import Source

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="browser tests left out: no chromium here (apt install chromium)"
)
DESK = {"width": 1280, "height": 800}
COLOURS = """(() => {
  const image = document.querySelector("#render img"), [width, height] = [image.naturalWidth, image.naturalHeight];
  if (!image.complete || !width) return null;  // the next picture is just coming: ask again
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.drawImage(image, 0, 0);
  const data = canvas.getImageData(0, 0, width, height).data, found = {red: 0, green: 0, all: width * height};
  for (let i = 0; i < data.length; i += 4) {
    found.red += data[i] > 150 && data[i + 1] < 70 && data[i + 2] < 70;
    found.green += data[i + 1] > 150 && data[i] < 90 && data[i + 2] < 90;
  }
  return found;
})()"""


@pytest.fixture
def collecting(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts the command; gives the address that it prints. At the end it is interrupted, which loses nothing."""
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "collect.log"

    def start(*words: str) -> str:
        plain = [
            "collect",
            f"dataset={tmp_path}/d.zarr",
            f"run_root={tmp_path}/runs",
            "teleop=browser",
            "teleop.port=0",
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "robot_rl", *plain, "num_episodes=9", *words, "--track", "none"],
                stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        started.append(process)
        return address_of(log, process)

    yield start
    for process in started:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 130, log.read_text()[-3000:]
        finally:
            process.kill()


@pytest.fixture
def page() -> Iterator[Page]:
    """An error in its code fails the test."""
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        one = browser.new_page(viewport=DESK)  # type: ignore[arg-type]
        one.on("pageerror", lambda error: errors.append(str(error)))
        yield one
        browser.close()
    assert errors == []


def state(page: Page, wanted: str) -> None:
    page.wait_for_selector(f"body[data-state={wanted}]")


def sees(page: Page, condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> Any:
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what}; the page says {page.inner_text('#message')!r}"
        page.wait_for_timeout(20)
    return found


def record(page: Page, key: str, label: str) -> None:
    """An episode that is driven by a key for half a second or more of recording, and saved with a label."""
    state(page, "ready")
    before = page.locator(".episode").count()
    page.keyboard.press("1")
    state(page, "recording")
    page.keyboard.down("Space")
    page.keyboard.down(key)
    sees(page, lambda: "driving" in page.inner_text("#clutch").lower(), "it is followed")
    sees(page, lambda: int(page.locator("#facts .fact", has_text="steps").inner_text().split()[1]) > 12, "12 steps")
    page.keyboard.up(key)
    page.keyboard.up("Space")
    page.keyboard.press(label)
    state(page, "review")
    page.keyboard.press("5")
    sees(page, lambda: page.locator(".episode").count() == before + 1, "it is saved")


def change(page: Page, number: int, key: str, *, text: str = "") -> None:
    """Open a saved episode, ask for a change by its key, and say yes."""
    page.click(f".episode[data-number='{number}']")
    page.wait_for_selector("#player[open]")
    page.keyboard.press(key)
    page.wait_for_selector("#change[open]")
    if text:
        page.fill("#change-note", text)
    page.click("#change-yes")


def leave(page: Page) -> None:
    if page.is_visible("#player"):
        page.click("#player-close")
    page.wait_for_selector("#player:not([open])", state="attached")


def on_disk(dataset: Path) -> list[tuple[str, list[str], bool, float]]:
    """Label, notes, success and how far forward its actions (poses) went, of each episode; checksums are looked at."""
    with EpisodeStore.open(dataset) as store:
        store.verify()
        found = [store.episode(number) for number in range(len(store))]
    assert all((episode.source == Source.teleop).all() for episode in found)
    return [
        (
            one.metadata["label"],
            one.metadata["notes"],
            bool(one.success.any()),
            float(one.action[-1, 0] - one.action[0, 0]),
        )
        for one in found
    ]


def content(dataset: Path) -> str:
    with EpisodeStore.open(dataset) as store:
        return store.content_hash()


def test_an_episode_is_recorded_saved_and_then_changed_on_the_page(
    collecting: Callable[..., str], page: Page, tmp_path: Path
) -> None:
    dataset = tmp_path / "d.zarr"
    page.goto(collecting("driver=mock", "session.operator=Ada"))
    page.wait_for_selector("body[data-driving=true]:not([data-state=none])")
    record(page, "w", "3")
    record(page, "s", "4")
    (forth, back) = on_disk(dataset)
    assert forth[:3] == ("success", [], True)
    assert back[:3] == ("failure", [], False)
    first_x, second_x = forth[3], back[3]
    assert first_x > 0 > second_x, "W is forward, S is back"
    hashes = [content(dataset)]

    change(page, 0, "4")
    sees(page, lambda: "failure" in page.inner_text(".episode[data-number='0']"), "another label")
    assert on_disk(dataset)[0] == ("failure", [], False, first_x)
    leave(page)

    change(page, 1, "n", text="grip <slipped>")
    sees(page, lambda: "grip <slipped>" in page.inner_text(".episode[data-number='1']"), "the note")
    assert on_disk(dataset)[1] == ("failure", ["grip <slipped>"], False, second_x)
    leave(page)
    hashes.append(content(dataset))

    change(page, 0, "Delete")
    sees(page, lambda: page.locator(".episode").count() == 1, "one is left")
    assert on_disk(dataset) == [("failure", ["grip <slipped>"], False, second_x)]
    page.click("#restore")
    sees(page, lambda: page.locator(".episode").count() == 2, "it is back")
    assert on_disk(dataset) == [("failure", ["grip <slipped>"], False, second_x), ("failure", [], False, first_x)]
    hashes.append(content(dataset))
    assert len(set(hashes)) == 3

    record(page, "w", "3")  # and the session goes on
    assert [row[0] for row in on_disk(dataset)] == ["failure", "failure", "success"]
    with EpisodeStore.open(dataset) as store:
        metadata = store.episode(2).metadata
    assert metadata["operator"] == "Ada"
    assert np.ptp(unpack_columns(metadata)["sent"][:, 0]) > 0.01, "what the robot was sent went forward"


@pytest.mark.slow
def test_the_simulators_picture_comes_to_the_page_and_recording_goes_on_before_it(
    collecting: Callable[..., str], page: Page, tmp_path: Path
) -> None:
    pytest.importorskip("mani_skill")
    if software_icd() is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    # The scene of seed 5 has its goal beside the hand, not behind it.
    page.goto(collecting("env=pick_cube", "driver=sim", "driver.view.is_idle=false", "first_seed=5"))
    page.wait_for_selector("body[data-driving=true]:not([data-state=none])")
    record(page, "e", "4")  # while the renderer computes
    assert not page.is_visible("#render")
    assert "link:hand_tcp" not in page.inner_text("#scene-text"), "links are the arm, not things"
    page.keyboard.press("8")
    sees(page, lambda: page.is_visible("#render"), "a picture", seconds=400)
    assert page.is_visible("#scene"), "both, at a desk"
    found = sees(page, lambda: page.evaluate(COLOURS), "a whole picture")
    assert found["all"] == 512 * 384
    assert found["red"] > 50, "the cube"
    assert found["green"] > 50, "the goal"
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        assert not any(key.startswith("image/") for key in store.spec.observation), "it is looked at, not recorded"
