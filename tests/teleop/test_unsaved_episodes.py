"""What was said of an episode that is not saved yet is not lost: when it is put aside, left to the next session, or undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_teleop import small_session

from robot_rl.hardware.mock_faults import Fault, FaultKind
from robot_rl.teleop.building import told
from robot_rl.teleop.episode_machine import EpisodeMachine, State
from robot_rl.teleop.panel import PanelEvent, SessionView

FROZEN = {
    "streams": ("joints",), "cameras": {"front": (8, 8)},
    "faults": (Fault(FaultKind.frozen, start_s=0.2, stream="image/front"),),
}  # fmt: skip
Rule = Callable[[SessionView], list[str | PanelEvent]]


class Scene:
    """Of a robot whose person puts things back: it only notes the seeds."""

    success = False

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reset(self, seed: int) -> None:
        self.seeds.append(seed)

    def episode(self) -> Scene:
        return self


def left_over(path: Path) -> None:
    """A session whose only episode has a label and a problem, and is not saved."""

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "ready":
            return ["start"]
        if view.state == "recording" and view.episode["steps"] >= 50:
            return ["success"]
        return ["quit"] if view.state == "review" else []

    session, _, panel = small_session(path, rule, mock=FROZEN, first_seed=3)
    assert session.run()["stored"] == 0
    (problem,) = panel.views[-1].episode["problems"]
    assert "stands still" in problem
    session.recorder.store.close()


def test_an_episode_of_an_earlier_session_is_not_saved_unseen_and_has_its_scene(tmp_path: Path) -> None:
    left_over(tmp_path / "d.zarr")
    scene = Scene()

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "review" and len(panel.views) > 20:
            return ["rerecord"]
        return ["quit"] if view.state == "ready" else []

    mock = {**FROZEN, "faults": ()}
    parts = {"scene": scene}
    session, _, panel = small_session(tmp_path / "d.zarr", rule, mock=mock, parts=parts, auto_save=True, first_seed=3)
    assert session.run() == {"saved": 0, "discarded": 1, "stored": 0, "successes": 0}
    review = next(view for view in panel.views if view.state == "review")
    assert review.episode["label"] == "success"
    assert "stands still" in review.episode["problems"][0]
    assert scene.seeds == [3], "the same start again"


@pytest.mark.parametrize("word", ["start", "reset"])
def test_no_new_episode_begins_over_one_that_waits_for_its_review(tmp_path: Path, word: str) -> None:
    left_over(tmp_path / "d.zarr")

    def rule(view: SessionView) -> list[str | PanelEvent]:
        return {"review": ["save"], "ready": ["quit"]}.get(view.state, [])

    session, _, panel = small_session(tmp_path / "d.zarr", rule, mock={**FROZEN, "faults": ()}, total=1)
    panel.asked.append(PanelEvent(word, by="somebody who is quick"))  # heard in the first turn, in idle
    assert session.run() == {"saved": 1, "discarded": 0, "stored": 1, "successes": 1}
    assert "resetting" not in {view.state for view in panel.views}


def test_the_scene_of_an_earlier_sessions_episode_is_not_recorded_twice(tmp_path: Path) -> None:
    left_over(tmp_path / "d.zarr")

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "recording" and view.episode["steps"] >= 5:
            return ["success"]
        return {"ready": ["start"], "review": ["save"]}.get(view.state, [])

    session, _, _ = small_session(tmp_path / "d.zarr", rule, mock={**FROZEN, "faults": ()}, first_seed=3, total=2)
    session.run()
    assert session.recorder.store.seeds.tolist() == [3, 4]


def test_an_episode_that_is_brought_back_has_its_label_its_problems_and_its_scene(tmp_path: Path) -> None:
    ready = iter((["start"], ["start", "stop"], ["undo"]))  # a whole one, one that is stopped before its first step
    review = iter((["discard"], ["save"]))

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "recording" and view.episode["steps"] >= 50:
            return ["success"]
        asked = {"ready": ready, "review": review}.get(view.state)
        return [] if asked is None else [*next(asked, ["quit"])]

    session, _, panel = small_session(tmp_path / "d.zarr", rule, mock=FROZEN, total=1, keep_failures=False)
    assert session.run()["successes"] == 1
    last = [view for view in panel.views if view.state == "review"][-1]
    assert (last.episode["label"], last.episode["seed"]) == ("success", 0)
    assert "stands still" in last.episode["problems"][0]
    assert session.recorder.store.seeds.tolist() == [0]


def test_what_the_session_found_out_can_not_be_undone() -> None:
    machine = EpisodeMachine()
    for event in ("start", "reset_done", "start", "subtask", "camera_problem"):
        machine.apply(event, 0.0)
    assert machine.state is State.recording
    assert machine.apply("undo", 0.0).effects[0].value == "undo_mark"
    assert not machine.apply("undo", 0.0).is_known, "the problem stays"
    said = told(
        [
            {"kind": "mark", "name": "subtask", "stamp_s": 1.0, "text": "grasp"},
            {"kind": "mark", "name": "camera_problem", "stamp_s": 1.1, "text": "front stands still"},
            {"kind": "undo_mark", "name": "", "stamp_s": 1.2, "text": ""},
        ]
    )
    assert (said["subtasks"], said["problems"]) == ([], ["front stands still"])


def test_a_pause_is_not_the_episodes_time(tmp_path: Path) -> None:
    paused: list[float] = []

    def rule(view: SessionView) -> list[str | PanelEvent]:
        now_s = session.parts.clock.now()
        if view.state == "recording" and view.episode["steps"] >= 20 and not paused:
            paused.append(now_s)
            return ["subtask", "undo", "pause"]
        if view.state == "paused" and now_s > paused[0] + 5:
            return ["resume"]
        return {"ready": ["start"], "review": ["save"]}.get(view.state, [])

    session, _, panel = small_session(tmp_path / "d.zarr", rule, total=1, time_limit_s=1.0)
    session.run()
    episode = session.recorder.store.episode(0)
    assert len(episode) == pytest.approx(50, abs=3)
    assert max(view.episode["seconds"] for view in panel.views) < 1.1
    assert {view.episode["subtask"] for view in panel.views} == {""}
