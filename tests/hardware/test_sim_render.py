"""The simulator's own picture: what it shows, that no control loop waits for it, and how it ends. And the links of the arm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_renderer
from software_vulkan import software_icd

from robot_rl.deploy.child_process import Child
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import ConfigError, DeployError
from robot_rl.hardware import sim_render
from robot_rl.hardware.sim_render import RenderedView, RenderedViewConfig
from robot_rl.hardware.sim_robot import SimRobot, SimRobotConfig
from robot_rl.types import Goal

SMALL = RenderedViewConfig(hz=50.0, width=32, height=32, is_idle=False)


def until(condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> Any:
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.005)
    return found


@dataclass
class Numbered:
    """A robot whose placement is how often it was asked, and whose time is ten times that."""

    config: SimRobotConfig = field(default_factory=SimRobotConfig)
    asked: int = 0

    def still(self) -> tuple[int, float, np.ndarray]:
        self.asked += 1
        return 0, 10.0 * self.asked, np.array([float(self.asked)])


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RenderedView]:
    monkeypatch.setattr(sim_render, "_MODULE", "slow_renderer")
    monkeypatch.setenv("PYTHONPATH", str(Path(slow_renderer.__file__).parent))
    monkeypatch.setenv("SLOW_RENDERER", str(tmp_path))
    view = RenderedView(SMALL, robot=Numbered())
    yield view
    view.close()


def number(shown: dict[str, Any]) -> int:
    picture = shown["pictures"]["render"]
    assert picture.shape == (32, 32, 3)
    return int(picture[0, 0, 0])


def test_the_newest_placement_is_drawn_and_the_loop_goes_on_meanwhile(slow: RenderedView, tmp_path: Path) -> None:
    robot, now_s = slow._robot, 0.0
    assert slow.shown(now_s, is_watched=True) == {}
    until(lambda: (tmp_path / "busy").exists(), "the renderer takes the first")
    for _ in range(100):  # turns of a loop while the first is drawn: each comes back, with nothing
        now_s += 0.02
        assert slow.shown(now_s, is_watched=True) == {}
    assert robot.asked == 101
    (tmp_path / "draw").touch()
    first = until(lambda: slow.shown(now_s, is_watched=True), "the first")
    assert number(first) == 1
    assert first["ages_ms"]["render"] == pytest.approx(1e3 * (now_s - 10.0))  # of what it shows
    (tmp_path / "draw").touch()
    until(lambda: number(slow.shown(now_s, is_watched=True)) != 1, "the next")
    assert number(slow.shown(now_s, is_watched=True)) == 101, "not 2: those between are skipped"


def test_placements_are_given_at_the_rate_asked_for(slow: RenderedView) -> None:
    for turn in range(1000):
        slow.shown(turn / 1000, is_watched=True)
    assert 45 <= slow._robot.asked <= 50  # 50 Hz for a second


def test_nothing_is_drawn_where_nobody_looks(slow: RenderedView) -> None:
    for turn in range(100):
        assert slow.shown(float(turn), is_watched=False) == {}
    assert slow._child is None
    assert slow._robot.asked == 0


def test_a_renderer_that_crashes_is_told_once_and_left(
    slow: RenderedView, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow.shown(0.0, is_watched=True)
    (tmp_path / "draw").touch()
    until(lambda: slow.shown(0.0, is_watched=True), "a picture")
    (tmp_path / "crash").touch()
    until(lambda: not slow.shown(0.0, is_watched=True), "it is gone")
    assert [slow.shown(float(turn), is_watched=True) for turn in range(5)] == [{}] * 5
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "no rendered view: its process ended with -11; the drawn one stays"
    ]


def test_a_machine_that_can_not_draw_says_why(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mani_skill")
    robot = Numbered(SimRobotConfig(options={"vulkan_icd": "/nowhere.json"}))
    view = RenderedView(SMALL, robot=robot)
    try:
        until(lambda: view.shown(0.0, is_watched=True) == {} and view._has_failed, "it fails", seconds=120)
    finally:
        view.close()
    assert "vulkan_icd=/nowhere.json" in caplog.text
    assert "the drawn one stays" in caplog.text


class Fallen(Child):
    """A child that has failed and takes its time to end."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def receive(self, wait_s: float = 0.0) -> bytes:
        return b'{"failure": "no renderer"}'

    def hang_up(self) -> None:
        self.asked.append("hang_up")

    def close(self, *, grace_s: float = 2.0) -> None:
        self.asked.append("close")


def test_no_turn_of_a_loop_waits_for_the_end_of_a_renderer_that_failed() -> None:
    view, child = RenderedView(SMALL, robot=Numbered()), Fallen()
    view._child = child
    assert [view.shown(0.0, is_watched=True) for _ in range(3)] == [{}] * 3
    assert child.asked == ["hang_up"]
    view.close()
    assert child.asked == ["hang_up", "close"]


@pytest.mark.parametrize("error", [OSError("no memory"), DeployError("x", expected="a process", got="none", hint="")])
def test_a_renderer_that_can_not_be_started_has_failed(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_child(*_words: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(sim_render, "Child", no_child)
    view = RenderedView(SMALL, robot=Numbered())
    assert [view.shown(0.0, is_watched=True) for _ in range(3)] == [{}] * 3
    assert caplog.text.count("no rendered view") == 1
    view.close()


def test_sizes_and_rates_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"driver\.view\.eye_m"):
        RenderedViewConfig(eye_m=(0.6, 0.0, 2.0))  # straight above the target
    with pytest.raises(ConfigError, match=r"driver\.view\.hz"):
        RenderedViewConfig(hz=0.0)
    with pytest.raises(ConfigError, match=r"driver\.view\.width"):
        RenderedViewConfig(width=10_000)


@pytest.fixture(scope="module")
def robot() -> Iterator[SimRobot]:
    pytest.importorskip("mani_skill")
    one = SimRobot(SimRobotConfig(seed=5), clock=ManualClock(10.0))
    one.connect()
    yield one
    one.close()


def test_the_links_are_those_of_the_maker_and_end_at_the_tool(robot: SimRobot) -> None:
    reading = robot.read()
    links = {
        name.removeprefix("link:"): np.array(place)
        for name, place in robot.shown(reading)["scene"].items()
        if name.startswith("link:")
    }
    assert list(links) == ["link0", "link1", "link3", "link4", "link5", "link7", "link8", "hand_tcp"]
    # Franka's Denavit-Hartenberg parameters, m, and 0.1034 from the flange to between the fingers.
    lengths = [0.333, 0.316, 0.0825, np.hypot(0.0825, 0.384), 0.088, 0.107, 0.1034]
    np.testing.assert_allclose(np.linalg.norm(np.diff(list(links.values()), axis=0), axis=1), lengths, atol=2e-4)
    np.testing.assert_allclose(links["link0"], 0.0, atol=1e-6)
    np.testing.assert_allclose(links["link1"], [0, 0, 0.333], atol=1e-4)
    assert reading.pose is not None
    np.testing.assert_allclose(links["hand_tcp"], reading.pose[:3], atol=1e-6)


def pixel_of(point: Any, config: RenderedViewConfig) -> tuple[int, int]:
    """Row and column of a point in the base frame, by the pinhole camera with 0.8 rad from top to bottom."""
    forward = np.subtract(config.target_m, config.eye_m) / np.linalg.norm(np.subtract(config.target_m, config.eye_m))
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    seen = np.subtract(point, config.eye_m) @ np.stack([right, np.cross(forward, right), forward], axis=1)
    focal = config.height / 2 / np.tan(0.4)
    return int(config.height / 2 + focal * seen[1] / seen[2]), int(config.width / 2 + focal * seen[0] / seen[2])


@pytest.mark.slow
def test_cube_and_goal_are_drawn_where_they_are_also_when_the_arm_has_moved(robot: SimRobot) -> None:
    if software_icd() is None:
        pytest.skip("no SwiftShader here (apt-get install chromium-common)")
    config = RenderedViewConfig(hz=60.0, is_idle=False)
    view = RenderedView(config, robot=robot)
    try:
        before = until(lambda: view.shown(10.0, is_watched=True), "a picture", seconds=400)["pictures"]["render"]
        scene = robot.shown(robot.read())["scene"]
        red, green, blue = before[pixel_of(scene["cube"], config)].astype(int)
        assert red > 120
        assert max(green, blue) < 60
        red, green, blue = before[pixel_of(scene["goal_site"], config)].astype(int)
        assert green > 120  # which the task hides from its own cameras
        assert max(red, blue) < 60
        pose = robot.read().pose
        assert pose is not None
        clock = robot._clock
        for _ in range(40):
            robot.command(Goal(pose=np.concatenate([[0.5, 0.2, 0.3], pose[3:]]), gripper=0.04))
            clock.advance(0.05)  # type: ignore[attr-defined]
        hand = robot.shown(robot.read())["scene"]["link:link8"]
        at = pixel_of(hand, config)
        assert np.ptp(before[at].astype(int)) > 12 or before[at].mean() < 150, "what was there is no white arm"
        until(
            lambda: view.shown(1000.0, is_watched=True)["ages_ms"]["render"] < 1e3 * 988.5, "a newer one", seconds=200
        )
        after = view.shown(1000.0, is_watched=True)["pictures"]["render"]
        assert after[at].mean() > 150
        assert np.ptp(after[at].astype(int)) < 30
    finally:
        view.close()
