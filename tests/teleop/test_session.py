"""Sessions of the small mock robot with an operator made of rules: what is recorded, and what happens when things fail."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_teleop import RATE, ScriptedDevice, episodes_of, small_session

from robot_rl.data.recorded_columns import unpack_columns
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.schedule import ManualClock
from robot_rl.errors import DataError
from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.teleop import effects
from robot_rl.teleop.camera_watch import CameraWatch
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.panel import PanelEvent, SessionView
from robot_rl.types import Source


def test_two_episodes_of_a_scripted_operator(tmp_path: Path) -> None:
    session, robot, panel = small_session(tmp_path / "d.zarr", episodes_of(20))
    counts = session.run()
    assert counts == {"saved": 2, "discarded": 0, "stored": 2, "successes": 2}
    session.recorder.store.close()
    with EpisodeStore.open(tmp_path / "d.zarr") as store:
        store.verify()
        assert store.success.all()
        assert store.seeds.tolist() == [0, 1]
        episode = store.episode(0)
        columns = unpack_columns(episode.metadata)
    assert 20 <= len(episode) <= 22
    assert (episode.terminated, episode.truncated) == (True, False)
    assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
    np.testing.assert_allclose(np.diff(episode.time), 0.02, atol=1e-9)
    assert set(episode.source) == {Source.teleop}
    moved = np.concatenate([episode.observation["proprio"], episode.final_observation["proprio"][None]])[:, 0]
    assert moved[-1] - moved[0] > 0.1 * RATE
    assert np.isnan(columns["policy"]).all()
    np.testing.assert_array_equal(columns["action"], episode.action)
    assert (columns["read_s"] <= columns["use_s"]).all()
    assert (columns["use_s"] <= columns["command_s"]).all()
    np.testing.assert_allclose(columns["capture_s/joints"], columns["read_s"])
    assert list(np.diff(columns["device_sequence"])) == [1] * (len(episode) - 1)
    assert robot.stops, "it holds by its own means at the end"
    assert {view.state for view in panel.views} >= {"resetting", "ready", "recording", "review"}
    assert not (tmp_path / ".d.zarr.recording").exists()


@pytest.mark.parametrize("late_s", [0.0, 0.2])
def test_a_late_key_hits_the_step_in_which_it_was_pressed(tmp_path: Path, late_s: float) -> None:
    pressed: list[float] = []

    def rule(view: SessionView) -> list[str | PanelEvent]:
        now_s = session.parts.clock.now()
        if view.state == "ready":
            return ["start"]
        if view.state == "review":
            return ["save"]
        if view.state == "recording" and view.episode["steps"] >= 20:
            if not pressed:
                pressed.append(now_s)
            if now_s >= pressed[0] + late_s - 1e-9:
                return [PanelEvent("success", stamp_s=pressed[0], by="key")]
        return []

    session, _, _ = small_session(tmp_path / "d.zarr", rule, total=1)
    session.run()
    episode = session.recorder.store.episode(0)
    read_s = unpack_columns(episode.metadata)["read_s"]
    assert read_s[-1] <= pressed[0] < read_s[-1] + 0.02 + 1e-9
    assert episode.success[-1]
    assert len(episode) == 20


def stops_moving(robot, since_s: float, *, until_s: float = np.inf) -> float:  # type: ignore[no-untyped-def]
    """Seconds from `since_s` until the last command before `until_s` that differs from the one before."""
    commands = [(t, goal) for t, goal in robot.commands if t < until_s]
    moved = [t for (_, a), (t, b) in itertools.pairwise(commands) if (a.position != b.position).any()]
    return max(moved) - since_s


def after(seconds: float, then: TeleopCommand | None) -> Callable[[float], TeleopCommand | None]:
    """Full motion, and from `seconds` after the connection on something else (None: silence)."""
    return lambda since_s: PUSH if since_s < seconds else then


def ask_in(**words: str) -> Callable[[SessionView], list[str | PanelEvent]]:
    """Asks once, the first time that a state is seen."""
    left = dict(words)
    return lambda view: [left.pop(view.state)] if view.state in left else []


# Braking from full motion of the small robot takes so long, within its limits of acceleration and jerk.
BRAKE_S = 0.2
PUSH = TeleopCommand(engaged=True, motion=np.array([1, 0, 0, 0, 0, 0], np.float32))


def test_a_device_that_falls_silent_stops_the_robot_and_keeps_the_episode(tmp_path: Path) -> None:
    clock = ManualClock()
    device = ScriptedDevice(clock, after(1.0, None))
    rule = ask_in(ready="start", fault="release", review="save")
    session, robot, panel = small_session(tmp_path / "d.zarr", rule, clock=clock, device=device, total=1)
    counts = session.run()
    assert counts["saved"] == 1
    silent_s = device.began_s + 1.0
    assert stops_moving(robot, silent_s) < 0.1 + 0.02 + 0.02 + BRAKE_S
    fault = next(view for view in panel.views if view.state == "fault")
    assert "no command from the device" in fault.message
    episode = session.recorder.store.episode(0)
    assert episode.metadata["ended_by"] == "device_fault"
    assert len(episode) >= 40


def test_a_device_that_raises_is_as_one_that_falls_silent(tmp_path: Path) -> None:
    clock = ManualClock()

    def say(since_s: float) -> TeleopCommand:
        if since_s > 0.6:
            raise OSError("unplugged")
        return PUSH

    device = ScriptedDevice(clock, say)
    rule = ask_in(ready="start", fault="quit")
    session, robot, panel = small_session(tmp_path / "d.zarr", rule, clock=clock, device=device, total=1)
    session.run()
    assert stops_moving(robot, device.began_s + 0.6) < 0.1 + 0.02 + 0.02 + BRAKE_S
    assert any("OSError: unplugged" in problem for problem in panel.views[-1].device["problems"])
    session.recorder.store.close()
    again, _, panel = small_session(tmp_path / "d.zarr", ask_in(review="save"), total=1)
    assert again.run()["saved"] == 1, "what was not saved waits for the next session"
    assert "earlier session" in next(view for view in panel.views if view.state == "review").message


@pytest.mark.parametrize("where", ["reading the robot", "between two turns"])
def test_a_loop_that_stands_still_is_not_taken_for_a_silent_device(tmp_path: Path, where: str) -> None:
    """0.7 s in a driver, or in whatever else the loop's thread does: the device spoke all the while."""
    clock, stalls = ManualClock(), [0.7]
    session, robot, panel = small_session(tmp_path / "d.zarr", lambda view: [], clock=clock, total=1)
    read, began_s = robot.read, clock.now()

    def stall() -> None:
        if stalls and clock.now() > began_s + 1.0:
            clock.advance(stalls.pop())

    def slow_read():  # type: ignore[no-untyped-def]
        stall()
        return read()

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if where == "between two turns":
            stall()
        if view.state == "fault":
            return ["release"]
        return episodes_of(100)(view)

    panel.rule = rule
    if where == "reading the robot":
        robot.read = slow_read  # type: ignore[method-assign]
    assert session.run()["stored"] == 1
    assert not any("no command from the device" in view.message for view in panel.views)
    (problem,) = session.recorder.store.episode(0).metadata["problems"]
    if where == "reading the robot":  # the command was asked for before, and is as old as the reading took
        assert "stood still for 0.70 s, 0.70 s of it to read the robot" in problem
        fault = next(view for view in panel.views if view.state == "fault")
        assert "own loop stood still" in fault.message
    else:
        assert "own loop stood still for 0.68 s: the machine is too busy" in problem


def test_a_wall_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, moments = time.time, list[float]()

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "recording" and view.episode["steps"] == 20 and not moments:
            moments.append(session.parts.clock.now())
            monkeypatch.setattr(time, "time", lambda: real() - 10.0)
        return episodes_of(40)(view)

    session, robot, panel = small_session(tmp_path / "d.zarr", rule, total=2)
    assert session.run()["saved"] == 2
    assert "fault" not in {view.state for view in panel.views}
    moved = [t for (_, a), (t, b) in itertools.pairwise(robot.commands) if (a.position != b.position).any()]
    assert [t for t in moved if moments[0] < t < moments[0] + 0.1], "it goes on"
    one, other = (session.recorder.store.episode(number) for number in (0, 1))
    np.testing.assert_allclose(np.diff(one.time), 0.02, atol=1e-9)
    assert other.metadata["begin_monotonic_s"] > one.metadata["begin_monotonic_s"]


def test_a_panel_that_raises_is_left_out(tmp_path: Path) -> None:
    session, _, panel = small_session(tmp_path / "d.zarr", episodes_of(5), total=1)

    class Broken:
        def publish(self, view: SessionView) -> None:
            raise RuntimeError("no screen")

        def events(self) -> list[PanelEvent]:
            return []

        def close(self) -> None:
            pass

    session.hearing.panels.append(Broken())
    assert session.run()["saved"] == 1
    assert session.hearing.panels == [panel]


@pytest.mark.parametrize("word", ["estop", "quit", "interrupt"])
def test_estop_quit_and_ctrl_c_leave_the_robot_at_rest_and_the_episode_on_the_disk(tmp_path: Path, word: str) -> None:
    asked: list[float] = []

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "ready":
            return ["start"]
        if view.state == "recording" and view.episode["steps"] > 30 and not asked:
            asked.append(session.parts.clock.now())
            if word == "interrupt":
                signal.raise_signal(signal.SIGINT)
                return []
            return [word]
        return ["quit"] if view.state == "estop" and session.parts.clock.now() > asked[0] + 1 else []

    session, robot, _ = small_session(tmp_path / "d.zarr", rule, total=1)
    session.run()
    assert session.is_interrupted == (word == "interrupt")
    assert robot.stops
    assert robot.stops[0] - asked[0] < 0.02 + 0.02 + BRAKE_S
    assert stops_moving(robot, asked[0]) < 0.02 + 0.02 + BRAKE_S
    before = np.array(robot.read().position)
    session.parts.clock.advance(1.0)  # type: ignore[attr-defined]
    np.testing.assert_allclose(robot.read().position, before, atol=1e-9)
    session.recorder.store.close()
    again, _, _ = small_session(tmp_path / "d.zarr", ask_in(review="save"), total=1)
    assert again.run()["saved"] == 1
    assert len(again.recorder.store.episode(0)) >= 30


CAMERAS = {"streams": ("joints",), "cameras": {"front": (8, 8), "wrist": (8, 8)}}


def test_a_frozen_camera_marks_the_episode_within_half_a_second(tmp_path: Path) -> None:
    fault = Fault(FaultKind.frozen, start_s=1.0, stream="image/front")
    seen: list[float] = []

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.episode["problems"] and not seen:
            seen.append(session.parts.clock.now())
        return episodes_of(100)(view)

    mock = {**CAMERAS, "faults": (fault,)}
    session, _, _ = small_session(tmp_path / "d.zarr", rule, mock=mock, total=1)
    began_s = session.parts.clock.now()
    assert session.run()["saved"] == 1
    assert 0.3 < seen[0] - began_s - 1.0 < 0.5
    episode = session.recorder.store.episode(0)
    (problem,) = episode.metadata["problems"]
    assert problem.startswith("front stands still")
    ages = episode.metadata["ages_s"]
    assert max(ages["front"]) > 0.5
    assert max(ages["wrist"]) < 0.01


def test_a_slow_camera_marks_the_episode_within_half_a_second() -> None:
    watch = CameraWatch(("image/front", "image/wrist"))
    told: dict[float, dict[str, str]] = {}
    for turn in range(120):  # 30 Hz; from 2 s on the wrist camera gives every second frame
        now_s = 50 + turn / 30
        wrist = turn if turn < 60 else turn - turn % 2
        if new := watch.see({"image/front": now_s - 0.01, "image/wrist": 50 + wrist / 30 - 0.01}, now_s):
            told[now_s - 52] = new
    ((late_s, new),) = told.items()
    assert list(new) == ["image/wrist"]
    assert new["image/wrist"].startswith("wrist is slow: ")
    assert 0 < late_s < 0.5


def test_cameras_with_the_jitter_of_a_busy_machine_are_not_called_slow() -> None:
    rng, watch = np.random.default_rng(0), CameraWatch(("image/front",))
    for turn in range(3000):
        now_s = 50 + turn / 50 + rng.uniform(0, 0.008)
        assert not watch.see({"image/front": 50 + np.floor((now_s - 50.006) * 50) / 50}, now_s)


def test_a_robot_that_is_lost_is_a_fault_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    fault = Fault(FaultKind.read_error, start_s=1.0, end_s=1.4)
    rule_of = {"ready": "start", "review": "save"}
    clock = ManualClock()

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "fault":
            return ["release"] if clock.now() > 1001.5 else []
        return [rule_of[view.state]] if view.state in rule_of else []

    session, robot, panel = small_session(tmp_path / "d.zarr", rule, clock=clock, mock={"faults": (fault,)}, total=1)
    assert session.run()["saved"] == 1
    assert stops_moving(robot, 1001.0, until_s=1001.5) < 0.1 + 0.02 + 0.02 + BRAKE_S
    assert "robot_lost" in next(view for view in panel.views if view.state == "fault").message
    assert session.recorder.store.episode(0).metadata["ended_by"] == "robot_stop"


def test_stamps_that_jump_hold_the_robot_until_they_are_right(tmp_path: Path) -> None:
    fault = Fault(FaultKind.clock_jump, start_s=0.5, end_s=0.9, value=-10.0)
    session, robot, panel = small_session(tmp_path / "d.zarr", episodes_of(60), mock={"faults": (fault,)}, total=1)
    assert session.run()["saved"] == 1
    times = [t - 1000 for (_, a), (t, b) in itertools.pairwise(robot.commands) if (a.position != b.position).any()]
    assert not [t for t in times if 0.5 + 0.04 + BRAKE_S < t < 0.9]
    assert [t for t in times if t > 0.95], "it goes on by itself"
    assert any("stale" in view.limits for view in panel.views)


def test_a_disk_that_fills_ends_the_episode_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, panel = small_session(tmp_path / "d.zarr", ask_in(ready="start", review="save"), total=1)
    began_s, reserve = session.parts.clock.now(), session.effects._disk.reserve_bytes
    monkeypatch.setattr(
        effects, "free_bytes", lambda path: reserve + (10 if session.parts.clock.now() > began_s + 2 else 10**9)
    )
    assert session.run()["saved"] == 1
    assert any("nearly full" in view.message for view in panel.views)
    assert 2 * 50 < len(session.recorder.store.episode(0)) < 4 * 50


def test_no_room_for_an_episode_is_said_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, panel = small_session(tmp_path / "d.zarr", lambda view: [], total=1)

    def require() -> None:
        raise DataError("disk", expected="room", got="none", hint="Free some.")

    monkeypatch.setattr(session.effects._disk, "require_episode", require)
    panel.rule = lambda view: (
        ["start"] if view.state == "ready" and len(panel.views) < 30 else ["quit"] * (len(panel.views) > 40)
    )
    assert session.run()["saved"] == 0
    assert "recording" not in {view.state for view in panel.views}
    assert any("expected room" in view.message for view in panel.views)


def test_rerecord_keeps_the_seed_and_discard_takes_the_next(tmp_path: Path) -> None:
    words = iter(["rerecord", "discard", "success"])

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "recording" and view.episode["steps"] >= 5:
            return [next(words)]
        return {"ready": ["start"], "review": ["save"]}.get(view.state, [])

    session, _, panel = small_session(tmp_path / "d.zarr", rule, total=1)
    assert session.run() == {"saved": 1, "discarded": 2, "stored": 1, "successes": 1}
    seeds = [view.episode["seed"] for view in panel.views if view.state == "recording"]
    assert sorted(set(seeds)) == [0, 1]
    assert session.recorder.store.seeds.tolist() == [1]


def test_pause_holds_and_save_last_takes_what_was_not_recorded(tmp_path: Path) -> None:
    counts = {"paused": 0}

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "ready" and session.recorder.past_rows > 30:
            return ["save_last"] if not len(session.recorder.store) else ["start"]
        if view.state == "paused":
            counts["paused"] += 1
            return ["resume"] if counts["paused"] == 50 else []
        if view.state == "recording" and view.episode["steps"] >= 20:
            return ["pause"] if not counts["paused"] else ["success"] if view.episode["steps"] >= 40 else []
        if view.state == "review":
            return ["failure"] if view.episode["label"] != "failure" else ["save"]
        return []

    session, _, _ = small_session(tmp_path / "d.zarr", rule, total=2)
    assert session.run()["successes"] == 0  # the second label wins: review is asked for failure
    last, paused = (session.recorder.store.episode(index) for index in (0, 1))
    assert 30 <= len(last) <= 33
    np.testing.assert_allclose(np.diff(paused.time), 0.02, atol=1e-9)
    (step,) = paused.metadata["pauses"]
    moved = np.abs(np.diff(paused.observation["proprio"][:, 0]))
    assert moved.max() < 0.15, "it braked and no more"
    assert int(moved.argmax()) == step - 1


def test_without_the_clutch_nothing_moves(tmp_path: Path) -> None:
    clock = ManualClock()
    open_ = TeleopCommand(engaged=False, motion=PUSH.motion)
    device = ScriptedDevice(clock, lambda since_s: open_)
    session, robot, _ = small_session(tmp_path / "d.zarr", episodes_of(30), clock=clock, device=device, total=1)
    session.run()
    assert all((goal.position == 0).all() for _, goal in robot.commands)


def test_buttons_of_the_device_ask_once_at_their_press(tmp_path: Path) -> None:
    clock = ManualClock()

    def say(since_s: float) -> TeleopCommand:
        held = {"event:start"} if 0.3 < since_s < 0.8 else {"event:success"} if 0.8 <= since_s < 1.2 else set()
        held |= {"event:save"} if since_s > 1.3 else set()
        return TeleopCommand(engaged=True, motion=PUSH.motion, buttons=frozenset(held))

    session, _, _ = small_session(
        tmp_path / "d.zarr", lambda view: [], clock=clock, device=ScriptedDevice(clock, say), total=1
    )
    transitions: list[str] = []
    session.parts = dataclasses.replace(session.parts, observer=lambda t: transitions.append(t.event))
    assert session.run()["successes"] == 1
    assert transitions == ["reset", "reset_done", "start", "success", "save", "saved_last"]
    assert len(session.recorder.store.episode(0)) == pytest.approx(25, abs=2)
