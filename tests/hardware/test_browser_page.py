"""The page in a real headless Chromium: keys, pads, sticks and hands reach a session, whatever is doubtful lets go of it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `teleop` is not installed")
pytest.importorskip("playwright", reason="browser tests left out: playwright is not installed")

from browser_session import ALLOWED, StandIn
from camera_episodes import camera_spec
from playwright.sync_api import Browser, Page, sync_playwright

from robot_rl.data.store import EpisodeStore
from robot_rl.hardware.browser import BrowserConfig, BrowserPage
from robot_rl.specs import ArraySpec
from robot_rl.teleop.panel import EDITS, EVENTS
from robot_rl.types import Episode, Source

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="browser tests left out: no chromium here (apt install chromium)"
)
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 667}

PAD = """
window.pad = {id: "Test pad", index: 0, connected: true, mapping: "standard", axes: [0, 0, 0, 0],
              buttons: Array.from({length: 17}, () => ({pressed: false, value: 0}))};
navigator.getGamepads = () => [window.pad];
window.press = (i, on) => { window.pad.buttons[i] = {pressed: on, value: Number(on)}; };
"""
HAND = """
window.hand = {pressed: false, tracked: true};
const fake = (more) => Object.assign(new EventTarget(), more);
const session = fake({
  visibilityState: "visible", renderState: {baseLayer: {framebuffer: null}}, updateRenderState() {},
  inputSources: [{gripSpace: {}, gamepad: {get buttons() {
    return [{value: 0.25}, {pressed: window.hand.pressed}];
  }}}],
  requestReferenceSpace: async () => ({}), end() { this.dispatchEvent(new Event("end")); },
  requestAnimationFrame(call) { setTimeout(() => call(0, {
    getPose: () => window.hand.tracked ? {emulatedPosition: false, transform: {
      position: {x: 1, y: 2, z: 3}, orientation: {x: 0, y: Math.SQRT1_2, z: 0, w: Math.SQRT1_2}}} : null,
  }), 10); },
});
const xr = {isSessionSupported: async (mode) => mode === "immersive-ar", requestSession: async () => session};
Object.defineProperty(navigator, "xr", {value: xr});
window.XRWebGLLayer = class {};
HTMLCanvasElement.prototype.getContext = ((old) => function (kind, ...rest) {
  return kind === "webgl" ? {bindFramebuffer() {}, clear() {}} : old.call(this, kind, ...rest);
})(HTMLCanvasElement.prototype.getContext);
window.session = session;
"""


LAST_PIXEL = """(async () => {
  const range = document.getElementById("player-step"), image = document.querySelector("#player img");
  range.value = 59;
  range.oninput();
  await image.decode();
  const canvas = new OffscreenCanvas(24, 24).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return [...canvas.getImageData(12, 12, 1, 1).data];
})()"""
# Of the picture last decoded. The page exchanges the image's source ten times a second, and in between a canvas draws nothing:
# (0, 0, 0, 0), though the screen shows the old picture. So null is read then, and the test asks again.
RENDER_PIXEL = """(() => {
  const canvas = new OffscreenCanvas(512, 384).getContext("2d");
  canvas.drawImage(document.querySelector("#render img"), 0, 0);
  const pixel = [...canvas.getImageData(256, 192, 1, 1).data];
  return pixel[3] === 255 ? pixel : null;
})()"""
# Where the view from above has the colour of the arm, whose lines are ten pixels thick.
ARM_BOX = """(() => {
  const c = document.getElementById("scene"), half = c.width >> 1, data = c.getContext("2d").getImageData(half, 0, half, c.height).data;
  const xs = [], ys = [];
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] !== 89 || data[i + 1] !== 104 || data[i + 2] !== 117) continue;
    xs.push(i / 4 % half); ys.push(Math.floor(i / 4 / half));
  }
  const span = (all) => all.reduce((a, b) => Math.max(a, b), 0) - all.reduce((a, b) => Math.min(a, b), 1e9) - 9;
  return {pixels: xs.length, ratio: span(xs) / span(ys)};
})()"""
NOTE_LOST = """new MutationObserver((_, observer) => {
  if (!document.querySelector("#alerts .lost") || document.body.dataset.driving === "true") return;
  document.documentElement.dataset.lostShown = true;
  observer.disconnect();
}).observe(document.body, {subtree: true, childList: true, attributes: true});"""
HIDE = """Object.defineProperty(document, "hidden", {value: true, configurable: true});
document.dispatchEvent(new Event("visibilitychange"));"""
SYSTEM_KEY = """document.activeElement.blur();
dispatchEvent(new KeyboardEvent("keydown", {key: "Meta", metaKey: true}));"""


def until(condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> Any:
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def server() -> Iterator[BrowserPage]:
    with BrowserPage(BrowserConfig(port=0)) as page:
        yield page


@pytest.fixture
def session(server: BrowserPage) -> Iterator[StandIn]:
    one = StandIn(server, cameras=0)
    until(lambda: not server._told.get("viewers"), "the test before hung up")
    server.events()
    one.events.clear()
    yield one
    one.close()


@pytest.fixture
def show(browser: Browser, session: StandIn) -> Iterator[Callable[..., Page]]:
    """Opens the page; an error in its code fails the test."""
    contexts, errors = [], []

    def opened(*, size: dict[str, int] = DESK, script: str = "", url: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport=size, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(url or session.page.url)
        page.wait_for_selector("html[data-ready]")
        if not url:
            page.wait_for_selector("body[data-driving]:not([data-state=none])")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def sees(page: Page, script: str) -> None:
    """Wait until it is true; wait_for_function wants the `eval` that our security policy forbids."""
    until(lambda: page.evaluate(script), script)


def motion(session: StandIn) -> list[float]:
    return [round(float(x), 3) for x in session.newest.motion]


def drives(session: StandIn, *wanted: float) -> None:
    """The newest command has this motion and is engaged."""
    until(lambda: motion(session) == list(wanted) and session.engaged(), f"{wanted}, got {motion(session)}")


def let_go(session: StandIn) -> None:
    until(lambda: not session.engaged() and motion(session) == [0.0] * 6, "the clutch opens")


def test_keys_drive_while_space_is_held(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    page.keyboard.down("w")
    until(lambda: motion(session)[0] == 1, "W")
    assert not session.engaged()
    page.keyboard.down("Space")
    drives(session, 1, 0, 0, 0, 0, 0)
    page.keyboard.down("d")
    page.keyboard.down("ArrowLeft")
    page.keyboard.down("f")
    drives(session, 1, -1, 0, 0, 0, 1)
    until(lambda: session.newest.gripper == -1, "F")
    assert page.inner_text("#clutch").lower() == "driving"
    page.keyboard.up("w")
    page.keyboard.down("s")
    page.keyboard.down("Shift")
    drives(session, -0.25, -0.25, 0, 0, 0, 0.25)
    page.keyboard.up("Space")
    until(lambda: not session.engaged(), "Space is up")
    for key in ("s", "d", "ArrowLeft", "f", "Shift"):
        page.keyboard.up(key)
    let_go(session)
    page.select_option("#speed", "0.5")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.down("Space")
    page.keyboard.down("e")
    drives(session, 0, 0, 0.5, 0, 0, 0)
    sent = [command.sequence for command in session.commands]
    assert sent == sorted(sent)
    gaps_s = np.diff([command.stamp_s for command in session.commands])
    assert np.median(gaps_s) < 1 / 15  # 1/50 where nothing else runs


def test_whatever_takes_the_eyes_off_lets_go(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    doubts = {
        "blur": "dispatchEvent(new Event('blur'))",
        "hidden": HIDE,
        "shown": "delete document.hidden; dispatchEvent(new Event('blur'))",
        "typing": "document.getElementById('name').focus()",
        "system key": SYSTEM_KEY,
        "dialog": "document.getElementById('confirm').showModal()",
    }
    for doubt, script in doubts.items():
        if doubt != "shown":
            page.keyboard.down("Space")
            page.keyboard.down("w")
            drives(session, 1, 0, 0, 0, 0, 0)
        page.evaluate(script)
        until(lambda: not session.engaged(), doubt)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.up("w")
        page.keyboard.up("Space")
    # A key that stayed down over a blur is let go of: it must be pressed again.
    page.evaluate("document.getElementById('confirm').close()")
    page.keyboard.down("Space")
    page.keyboard.down("w")
    drives(session, 1, 0, 0, 0, 0, 0)
    page.evaluate("dispatchEvent(new Event('blur'))")
    let_go(session)
    assert "lost the focus" in page.inner_text("#alerts")


def test_what_is_held_since_before_is_no_grip(show: Callable[..., Page], session: StandIn) -> None:
    page = show(script=PAD + "window.pad.buttons[5].pressed = true;")
    page.keyboard.down("w")
    page.keyboard.down("Space")
    drives(session, 1, 0, 0, 0, 0, 0)
    page.evaluate("dispatchEvent(new Event('blur'))")
    let_go(session)
    page.keyboard.down("Space")  # it was not let go of: the browser says that it repeats
    page.keyboard.down("w")
    seen = len(session.commands)
    until(lambda: len(session.commands) > seen + 10, "ten commands")
    assert not any(command.engaged for command in session.commands[seen:])
    page.keyboard.up("Space")
    page.keyboard.down("Space")
    until(session.engaged, "pressed again")
    page.keyboard.up("Space")
    page.evaluate("press(5, false)")
    until(lambda: page.evaluate("new Promise((done) => setTimeout(done, 60, true))"), "a look at it")
    page.evaluate("press(5, true)")
    until(session.engaged, "the bumper, which was down from the start on, gripped anew")


def test_who_takes_over_must_take_hold_anew(show: Callable[..., Page], session: StandIn) -> None:
    first, second = show(), show()
    second.keyboard.down("Space")
    until(lambda: second.evaluate("new Promise((done) => setTimeout(done, 60, true))"), "it is held")
    first.click("#give")
    second.wait_for_selector("#take:not([hidden])")
    seen = len(session.commands)
    second.keyboard.press("t")
    second.wait_for_selector("body[data-driving=true]")
    until(lambda: len(session.commands) > seen + 10, "ten commands")
    assert not any(command.engaged for command in session.commands[seen:])
    second.keyboard.up("Space")
    second.keyboard.down("Space")
    until(session.engaged, "held anew")


def test_a_session_that_hangs_is_said_although_the_server_answers(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    page.wait_for_selector("body[data-driving=true]")
    assert page.query_selector("#alerts .quiet") is None
    session.close()  # the server goes on: it answers every command, and tells who drives
    page.wait_for_selector("#alerts .quiet")
    assert "Nothing from the session" in page.inner_text("#alerts .quiet")


def test_a_subtask_begins_when_it_is_asked_for(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    session.extra["allowed"] = EVENTS
    sees(page, "document.querySelector('[data-event=subtask]').ariaDisabled === 'false'")
    page.keyboard.press("m")
    page.wait_for_selector("#text-form:not([hidden])")
    asked_s = time.monotonic()
    page.wait_for_timeout(600)  # it takes time to type
    page.fill("#text", "grasp")
    page.press("#text", "Enter")
    until(lambda: session.events, "the subtask")
    assert session.events[0].text == "grasp"
    assert session.events[0].stamp_s < asked_s + 0.2


def test_every_event_has_a_key_and_a_button(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    known = page.evaluate("import('/page/names.js').then((names) => names.EVENTS)")
    assert sorted(one["name"] for one in known) == sorted(EVENTS)
    assert len({one["key"] for one in known}) == len({one["pad"] for one in known}) == len(EVENTS)
    session.extra["allowed"] = EVENTS
    sees(page, "[...document.querySelectorAll('[data-event]')].every((one) => one.ariaDisabled === 'false')")

    def finish(name: str) -> str:
        if name in ("note", "subtask"):
            page.fill("#text", f"<img src=x> {name}")
            page.press("#text", "Enter")
            return f"<img src=x> {name}"
        if name == "quit":
            page.click("#confirm-yes")
        return ""

    for way in (lambda one: page.keyboard.press(one["key"]), lambda one: page.click(f"[data-event={one['name']}]")):
        session.events.clear()
        texts = []
        for one in known:
            way(one)
            texts.append(finish(one["name"]))
        until(lambda: len(session.events) == len(EVENTS), "all of them")
        assert [event.name for event in session.events] == [one["name"] for one in known]
        assert [event.text for event in session.events] == texts
        assert all(0 <= time.monotonic() - event.stamp_s < 60 for event in session.events)
    assert page.query_selector("img[src=x]") is None
    for one in known:
        assert one["key"].removeprefix("Key").removeprefix("Digit")[:3] in page.text_content(
            "#key-list, [data-event]"
        ).join(page.locator("kbd").all_text_contents())


def test_an_event_that_does_nothing_now_is_not_sent(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    assert "save" not in ALLOWED["ready"]
    page.keyboard.press("5")
    page.click("[data-event=save]", force=True)
    assert "does nothing" in page.inner_text("#alerts")
    page.keyboard.press("1")
    page.wait_for_selector("body[data-state=recording]")
    assert "RECORDING" in page.inner_text("h1")
    assert [event.name for event in session.events] == ["start"]


def test_a_button_is_reached_by_tab_and_pressed_by_enter(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.event") == "start":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.down("Space")  # the clutch, not a click
    until(session.engaged, "the clutch")
    page.keyboard.up("Space")
    assert session.events == []
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=recording]")


def test_a_gamepad_drives_and_its_loss_lets_go(show: Callable[..., Page], session: StandIn) -> None:
    page = show(script=PAD)
    page.evaluate("pad.axes = [0.56, -1, 0.06, 1]")  # dead zone 0.12: (0.56 - 0.12) / 0.88 = 0.5
    until(lambda: motion(session) == [1, -0.5, -1, 0, 0, 0], "the sticks")
    assert not session.engaged()
    page.evaluate("press(5, true); pad.buttons[7].value = 1")
    drives(session, 1, -0.5, -1, 0, 0, 0)
    until(lambda: session.newest.gripper == -1, "the trigger")
    page.evaluate("press(0, true)")  # A: start
    page.wait_for_selector("body[data-state=recording]")
    page.evaluate("press(0, false); press(4, true); press(1, true)")  # LB + B: pause
    page.wait_for_selector("body[data-state=paused]")
    assert [event.name for event in session.events] == ["start", "pause"]
    page.evaluate("pad.connected = false; dispatchEvent(new Event('gamepaddisconnected'))")
    let_go(session)
    page.evaluate("pad.connected = true")  # back, with the bumper still down: that is no new grip
    until(lambda: motion(session)[0] == 1, "it is back")
    assert not session.engaged()
    page.evaluate("press(5, false)")
    until(lambda: page.evaluate("new Promise((done) => setTimeout(done, 60, true))"), "a look at it")
    page.evaluate("press(5, true)")
    until(session.engaged, "gripped again")


def test_a_finger_on_the_stick_drives(show: Callable[..., Page], session: StandIn) -> None:
    page = show(size=PHONE, has_touch=True)
    page.locator("#stick-xy").hover()
    box = page.locator("#stick-xy").bounding_box()
    assert box is not None
    x, y, radius = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    drives(session, 0, 0, 0, 0, 0, 0)  # a finger in the middle holds the clutch
    page.mouse.move(x, y - 2 * radius)
    drives(session, 1, 0, 0, 0, 0, 0)
    page.mouse.move(x + 0.56 * radius, y)
    until(lambda: motion(session)[1] == pytest.approx(-0.5, abs=0.03), "to the right")
    page.mouse.up()
    let_go(session)
    page.locator("[data-grip='1']").hover()
    page.mouse.down()
    until(lambda: session.newest.gripper == 1, "open")
    page.mouse.up()
    until(lambda: session.newest.gripper == 0, "as it is")


def test_a_tracked_hand_gives_its_pose_while_it_is_seen(show: Callable[..., Page], session: StandIn) -> None:
    page = show(script=HAND + "window.hand.pressed = true;")
    page.click("#xr")
    # WebXR (1, 2, 3) is right, up, back; a quarter turn about its up is one about ours.
    half = float(np.sqrt(0.5))
    until(lambda: session.newest.pose is not None, "a pose")
    np.testing.assert_allclose(session.newest.pose, [-3, -1, 2, half, 0, 0, half], atol=1e-6)
    assert not session.engaged(), "squeezed since before"
    page.evaluate("hand.pressed = false")
    until(lambda: page.evaluate("new Promise((done) => setTimeout(done, 60, true))"), "let go")
    page.evaluate("hand.pressed = true")
    until(session.engaged, "squeezed")
    until(lambda: session.newest.gripper == -0.25, "the trigger")
    page.evaluate("hand.tracked = false")
    until(lambda: not session.engaged() and session.newest.pose is None, "lost from sight")
    page.evaluate("hand.tracked = true")
    until(session.engaged, "seen again")
    page.evaluate("session.visibilityState = 'hidden'; session.dispatchEvent(new Event('visibilitychange'))")
    until(lambda: not session.engaged(), "hidden")
    page.evaluate("session.end()")
    until(lambda: session.newest.pose is None, "ended")
    page.click("#xr")
    until(lambda: session.newest.pose is not None, "begun again")
    assert not session.engaged(), "squeezed all the while"


def test_the_second_page_looks_on_and_takes_over_when_the_first_is_gone(
    show: Callable[..., Page], session: StandIn
) -> None:
    first, second = show(), show()
    second.wait_for_selector("body[data-driving=false]")
    second.keyboard.down("Space")
    second.keyboard.down("w")
    second.keyboard.press("1")
    assert "look on" in second.inner_text("header")
    assert "take over first" in second.inner_text("#alerts")
    first.keyboard.down("Space")
    first.keyboard.down("a")
    drives(session, 0, 1, 0, 0, 0, 0)
    second.keyboard.press("t")
    first.wait_for_selector("#alerts .asking")
    first.close()
    until(lambda: not session.engaged(), "a closed page lets go")
    second.keyboard.up("w")
    second.keyboard.up("Space")
    second.click("#take")
    second.wait_for_selector("body[data-driving=true]")
    second.keyboard.down("Space")
    second.keyboard.down("w")
    drives(session, 1, 0, 0, 0, 0, 0)
    assert session.events == []


def test_a_lost_server_is_said_and_found_again(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    page.keyboard.down("Space")
    page.keyboard.down("w")
    drives(session, 1, 0, 0, 0, 0, 0)
    killed = session.page.pid
    assert killed is not None
    page.evaluate(NOTE_LOST)
    os.kill(killed, signal.SIGKILL)
    killed_s = time.monotonic()
    # How long it takes to be back is the machine's business; what was shown and sent meanwhile is not.
    page.wait_for_selector("html[data-lost-shown] body[data-driving=true]")
    assert session.page.pid != killed
    assert page.query_selector("#alerts .lost") is None
    back_s = time.monotonic()
    until(lambda: session.newest.stamp_s > back_s, "commands of the page that is back")
    assert not any(command.engaged for command in session.commands if command.stamp_s > killed_s + 0.2)


def test_a_token_is_asked_for_and_leaves_the_address_bar(show: Callable[..., Page], session: StandIn) -> None:
    token = "sixteen-characters-at-least"
    with BrowserPage(BrowserConfig(port=0, token=token)) as guarded:
        page = show(url=guarded.url.partition("#")[0])
        page.fill("#token-value", "wrong")
        page.press("#token-value", "Enter")
        page.wait_for_selector("#token[open]")
        page.fill("#token-value", token)
        page.press("#token-value", "Enter")
        page.wait_for_selector("body[data-driving=true]")
        other = show(url=guarded.url)
        until(
            lambda: "Nobody" not in other.inner_text("#lease") and "not connected" not in other.inner_text("#lease"),
            "in",
        )
        assert token not in other.url


def recorded(folder: Path) -> Path:
    """Three episodes of 60 steps whose camera is red, green and blue; two successes, one with a take-over."""
    spec = replace(
        camera_spec(24, max_episode_steps=100),
        control_hz=20.0,
        action=ArraySpec("action", (2,), low=(-1.0, -1.0), high=(1.0, 1.0), meanings=("left", "right")),
    )
    with EpisodeStore.create(folder / "store.zarr", spec) as store:
        for colour in range(3):
            images = np.zeros((60, 24, 24, 3), np.uint8)
            images[..., colour] = np.linspace(100, 250, 60).astype(np.uint8)[:, None, None]
            source = np.zeros(60, np.uint8)
            source[20:30] = Source.intervention if colour == 2 else Source.teleop
            success = np.zeros(60, bool)
            success[50:] = colour != 1
            rows = np.cumsum(np.full((60, 3), 0.01, np.float32), axis=0)
            store.append(
                Episode(
                    {"proprio": rows, "image/cam": images}, {"proprio": rows[-1], "image/cam": images[-1]}, rows[:, :2],
                    success.astype(np.float32), success, False, True, source, np.arange(60) / 20, metadata={},
                )
            )  # fmt: skip
    return folder / "store.zarr"


def test_saved_episodes_are_listed_played_and_checked(
    show: Callable[..., Page], session: StandIn, tmp_path: Path
) -> None:
    session.page.show_dataset(str(recorded(tmp_path)))
    session.episodes = tuple(
        {"number": i, "length": 60, "seconds": 3.0, "success": i != 1, "rate_hz": 20.0} for i in range(3)
    )
    page = show()
    page.locator("#episodes").scroll_into_view_if_needed()
    sees(page, "document.querySelectorAll('.thumb img').length === 3")
    assert [text.splitlines()[0] for text in page.locator(".episode strong").all_inner_texts()] == [
        f"Episode {i}" for i in (2, 1, 0)
    ]
    assert "failure" in page.inner_text(".episode[data-number='1']")
    page.click(".episode[data-number='2']")
    page.wait_for_selector("#player[open] img")
    until(lambda: "10 steps taken over" in page.inner_text("#player-text"), "its summary")
    assert "success at step 50" in page.inner_text("#player-text")
    pixel = page.evaluate(LAST_PIXEL)
    assert pixel[2] > 240
    assert max(pixel[:2]) < 15
    assert "step 59 of 60 · 2.95 s" in page.inner_text("#player-at")
    page.press("#player-step", "ArrowLeft")
    assert "step 58" in page.inner_text("#player-at")
    page.click("#player-play")  # goes on to its end
    until(lambda: "step 59" in page.inner_text("#player-at") and page.inner_text("#player-play") == "Play", "played")
    page.click("#player-previous")
    until(lambda: "no step with success" in page.inner_text("#player-text"), "the one before")
    page.keyboard.press("Escape")  # closes the dialog and stops no robot
    page.wait_for_selector("#player:not([open])", state="attached")
    assert session.events == []
    page.click("#check")
    until(lambda: "warnings" in page.inner_text("#health-text"), "the checks")
    assert page.locator("#health summary").count() > 0
    session.page.show_dataset("")


def edits(session: StandIn) -> list[tuple[str, str, str]]:
    return [(event.name, event.episode, event.text) for event in session.events]


def test_saved_episodes_are_changed_after_a_question_and_by_the_driver_alone(
    show: Callable[..., Page], session: StandIn
) -> None:
    ids = [f"{number:032x}" for number in (10, 11, 12)]
    session.episodes = tuple(
        {"number": i, "id": ids[i], "length": 60, "seconds": 3.0, "success": i != 1, "label": "failure" if i == 1 else "success"}
        for i in range(3)
    )  # fmt: skip
    session.extra["allowed"] = ("start", *EDITS)
    page = show()
    page.wait_for_selector(".episode[data-number='1']")
    page.focus(".episode[data-number='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#player[open]")
    page.keyboard.press("3")
    page.wait_for_selector("#change[open]")
    assert "episode 1 as a success" in page.inner_text("#change-text")
    page.keyboard.press("Escape")  # no
    page.wait_for_selector("#change:not([open])", state="attached")
    page.keyboard.press("3")
    page.click("#change-yes")
    until(lambda: edits(session) == [("edit_success", ids[1], "")], "the label")
    page.keyboard.press("n")
    page.fill("#change-note", "<b>wet</b>")
    page.press("#change-note", "Enter")
    until(lambda: edits(session)[1:] == [("edit_note", ids[1], "<b>wet</b>")], "the note")
    page.keyboard.press("Delete")
    page.wait_for_selector("#change[open]")
    assert page.evaluate("document.activeElement.id") == "change-no", "Enter alone deletes nothing"
    if folder := os.environ.get("PAGE_PICTURES"):
        page.screenshot(path=f"{folder}/change.png")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    until(lambda: edits(session)[2:] == [("edit_delete", ids[1], "")], "gone")
    session.episodes = tuple({**row, "number": i} for i, row in enumerate((session.episodes[0], session.episodes[2])))
    session.extra["totals"] = {"saved": 2, "deleted": [ids[1]]}
    page.wait_for_selector("#player:not([open])", state="attached")
    assert page.locator(".episode").count() == 2
    other = show()
    other.wait_for_selector("body[data-driving=false]")
    other.click(".episode[data-number='1']")
    other.wait_for_selector("#player[open]")
    other.click("[data-edit=edit_delete]")
    until(lambda: "only look on" in other.inner_text("#player-said"), "said")
    assert not other.is_visible("#restore")
    page.click("#restore")
    until(lambda: edits(session)[3:] == [("edit_restore", ids[1], "")], "back")
    session.extra["allowed"] = ("stop",)  # while it records
    until(lambda: not page.is_visible("#restore"), "no change now")
    page.click(".episode[data-number='0']")
    page.click("[data-edit=edit_failure]")
    until(lambda: "while nothing is recorded" in page.inner_text("#player-said"), "said")
    assert len(session.events) == 4


def views_of(page: Page) -> tuple[bool, bool]:
    """Whether the drawn view is seen, and the rendered one."""
    return page.is_visible("#scene"), page.is_visible("#render")


def test_the_simulators_picture_is_chosen_beside_the_drawn_view(show: Callable[..., Page], session: StandIn) -> None:
    page = show()
    assert views_of(page) == (True, False)
    assert not page.is_visible("#views"), "nothing to choose"
    page.keyboard.press("v")
    session.extra |= {
        "pictures": {"render": np.full((384, 512, 3), (200, 30, 90), np.uint8)},
        "ages_ms": {"render": 40.0},
    }
    page.wait_for_selector("#views:not([hidden])")
    assert views_of(page) == (True, True), "both, at a desk"
    until(lambda: "✓ 40 ms old" in page.inner_text("#render figcaption"), "its age")
    sees(page, "document.querySelector('#render img').naturalWidth === 512")
    drawn, rendered = page.locator("#scene").bounding_box(), page.locator("#render").bounding_box()
    assert drawn is not None
    assert rendered is not None
    assert rendered["x"] + rendered["width"] <= drawn["x"], "side by side"
    pixel = until(lambda: page.evaluate(RENDER_PIXEL), "a whole picture")
    np.testing.assert_allclose(pixel[:3], (200, 30, 90), atol=4)  # JPEG
    page.keyboard.press("v")
    assert views_of(page) == (True, False)
    page.keyboard.press("v")
    assert views_of(page) == (False, True)
    until(lambda: "Tool at" in page.inner_text("#scene-text"), "the text stays")
    page.click("#views [data-view=both]")
    assert views_of(page) == (True, True)
    page.reload()
    page.wait_for_selector("#views:not([hidden])")
    assert page.get_attribute("#views [data-view=both]", "aria-pressed") == "true", "it is remembered"
    page.click("#views [data-view=rendered]")
    session.extra["ages_ms"] = {"render": 1500.0}
    until(lambda: "✕ 1500 ms old" in page.inner_text("#render figcaption"), "too old")
    assert not page.is_visible("#stalled")
    session.extra["ages_ms"] = {"render": 3500.0}
    until(
        lambda: views_of(page) == (True, False) and page.is_visible("#stalled"),
        "nobody drives by a picture that stands still",
    )
    session.extra["ages_ms"] = {"render": 40.0}
    until(lambda: views_of(page) == (False, True) and not page.is_visible("#stalled"), "it moves again")
    session.extra |= {"pictures": {}, "ages_ms": {}}  # the renderer is gone
    until(lambda: views_of(page) == (True, False) and not page.is_visible("#views"), "the drawn view stays")
    assert "render" not in page.inner_text("#ages")
    assert page.locator("#cameras figure").count() == 0


def test_the_links_of_the_arm_are_drawn_where_they_are(show: Callable[..., Page], session: StandIn) -> None:
    """Of a chain that lies on the ground, 0.3 m to the right and 0.2 m on: its shape, from above."""
    page = show()
    links = {
        "link:a": (0.3, 0.15, 0.0),
        "link:b": (0.3, -0.15, 0.0),
        "link:c": (0.5, -0.15, 0.0),
        "link:d": (0.5, -0.15, -0.01),
    }
    session.extra |= {"pose": (0.65, 0.12, 0.0, 0.0, 1.0, 0.0, 0.0), "scene": links}
    until(lambda: page.evaluate(ARM_BOX)["pixels"] > 500, "an arm")
    until(lambda: page.evaluate(ARM_BOX)["ratio"] == pytest.approx(0.3 / 0.2, abs=0.05), "width over height")
    session.extra["scene"] = {"cube": (0.5, 0.0, 0.02)}
    until(lambda: page.evaluate(ARM_BOX)["pixels"] == 0, "no links, no arm")


def test_it_fits_a_phone_and_says_what_is_wrong_in_words(show: Callable[..., Page], session: StandIn) -> None:
    session.state, session.cameras = "recording", 2
    page = show(size=PHONE, has_touch=True, is_mobile=True)
    page.wait_for_selector("#cameras img")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    for selector in ("h1", "#message", "#estop", "#cameras"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 375
        assert box["y"] < 300
    small = page.evaluate(
        "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && e.childNodes.length && [...e.childNodes]"
        ".some((n) => n.nodeType === 3 && n.data.trim()) && parseFloat(getComputedStyle(e).fontSize) < 12).map((e) => e.outerHTML)"
    )
    assert small == []
    sees(page, "document.getElementById('ages').innerText.includes('! watch')")
    session.extra = {
        "ages_ms": {"base": float("inf")},
        "limits": ("velocity",),
        "episode": {"problems": ["camera base is frozen"]},
    }
    sees(page, "document.getElementById('ages').innerText.includes('none yet')")
    assert "✕ bad" in page.inner_text("#ages")
    assert "held back by: velocity" in page.inner_text("#limits")
    assert "camera base is frozen" in page.inner_text("#alerts")
    drawn = page.evaluate(
        "(() => { const c = document.getElementById('scene'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return d.reduce((n, x, i) => n + (i % 4 === 3 && x > 0), 0) / (d.length / 4); })()"
    )
    assert 0.005 < drawn < 0.6
    assert "cube" in page.inner_text("#scene-text")
