"""Changes of saved episodes from a running session: what is changed, what stays bit by bit, and what they never do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_teleop import episodes_of, small_session

from robot_rl.data.store import EpisodeStore
from robot_rl.data.trash import trashed
from robot_rl.teleop import writing
from robot_rl.teleop.episode_machine import TABLE, Effect, State
from robot_rl.teleop.panel import EDITS, PanelEvent, SessionView
from robot_rl.teleop.saved_episodes import Edit, carry_out_edit, listed

STEPS = 8


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of an earlier session: two successes and a failure."""
    path = tmp_path_factory.mktemp("recorded") / "d.zarr"
    labels = iter(["success", "failure", "success"])

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "recording" and view.episode["steps"] >= STEPS:
            return [next(labels)]
        return {"ready": ["start"], "review": ["save"]}.get(view.state, [])

    session, _, _ = small_session(path, rule, total=3)
    session.run()
    session.recorder.store.close()
    return path


@pytest.fixture
def three(tmp_path: Path, recorded: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(recorded, tmp_path / "d.zarr")


def ids_of(path: Path) -> list[str]:
    with EpisodeStore.open(path) as store:
        store.verify()
        return [row.tobytes().hex() for row in store.uuids]


def test_a_label_is_changed_and_all_else_stays(three: Path) -> None:
    before = EpisodeStore.open(three)
    ids, old = ids_of(three), [before.episode(number) for number in range(3)]
    store = EpisodeStore.open(three, mode="a")
    store, done = carry_out_edit(store, Edit("edit_failure", ids[0], by="page:ann"))
    assert (done.number, done.problem) == (0, "")
    store, _ = carry_out_edit(store, Edit("edit_success", ids[1]))
    store, _ = carry_out_edit(store, Edit("edit_note", ids[2], text="scratched"))
    store.verify()
    assert store.success.tolist() == [False, True, True]
    new = [store.episode(number) for number in range(3)]
    assert not new[0].success.any()
    assert not new[0].reward.any()
    assert (new[0].terminated, new[0].metadata["label"]) == (False, "failure")
    assert new[1].success.tolist() == [False] * (len(new[1]) - 1) + [True]
    assert new[1].reward.tolist() == [0.0] * (len(new[1]) - 1) + [1.0]
    assert (new[1].terminated, new[1].metadata["label"]) == (True, "success")
    assert new[2].metadata == {**old[2].metadata, "notes": ["scratched"]}
    for one, other in zip(old, new, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.observation["proprio"], other.observation["proprio"])
        np.testing.assert_array_equal(one.time, other.time)
    said = [(entry["command"], entry["arguments"]["by"]) for entry in store.metadata["history"]]
    assert said == [("relabel", "page:ann"), ("relabel", ""), ("relabel", "")]
    assert len(trashed(three)) == 3
    with EpisodeStore.open(trashed(three)[-1]) as first:
        assert first.content_hash() == before.content_hash()
    store.append(old[0])  # it is open for append, and the one at the path
    store.close()
    assert len(ids_of(three)) == 4


def test_deleted_and_brought_back_beside_what_was_saved_since(three: Path) -> None:
    ids = ids_of(three)
    store = EpisodeStore.open(three, mode="a")
    gone = store.episode(0)
    store, deleted = carry_out_edit(store, Edit("edit_delete", ids[0]))
    assert [row["id"] for row in deleted.rows] == ids[1:]
    assert [row["number"] for row in deleted.rows] == [0, 1]
    store, _ = carry_out_edit(store, Edit("edit_delete", ids[1]))
    store, last = carry_out_edit(store, Edit("edit_delete", ids[2]))
    assert (len(store), last.rows) == (0, ()), "the last one too: the session goes on"
    store.append(gone)
    (since,) = ids_of(three)
    store, back = carry_out_edit(store, Edit("edit_restore", ids[0], trash=deleted.trash))
    assert back.number == 1
    store, again = carry_out_edit(store, Edit("edit_restore", ids[0], trash=deleted.trash))
    assert "already" in again.problem
    store.close()
    assert ids_of(three) == [since, ids[0]]
    with EpisodeStore.open(three) as store:
        assert store.episode(1).metadata == gone.metadata


def in_ready(ask: Callable[[SessionView], list[str | PanelEvent]]) -> Callable[[SessionView], list[str | PanelEvent]]:
    return lambda view: ask(view) if view.state == "ready" else []


def test_a_session_lists_what_was_there_and_changes_it_by_its_id(three: Path) -> None:
    ids, wanted = ids_of(three), iter(["edit_delete", "edit_failure", "edit_restore"])
    about = {"edit_delete": ids[0], "edit_failure": ids[2], "edit_restore": ids[0]}
    waits_for: list[str] = []

    def ask(view: SessionView) -> list[str | PanelEvent]:
        if waits_for and waits_for[0] not in view.message:
            return []
        waits_for.clear()
        name = next(wanted, "")
        if not name:
            return ["quit"]
        waits_for.append(
            {"edit_delete": "was deleted", "edit_failure": "Episode 1 is a failure now", "edit_restore": "is back"}[
                name
            ]
        )
        return [PanelEvent(name, by="page:ann", episode=about[name])]

    session, _, panel = small_session(three, in_ready(ask), total=9)
    session.run()
    session.recorder.store.close()
    first, last = panel.views[0].episodes, panel.views[-1].episodes
    assert [(row["number"], row["id"], row["label"]) for row in first] == [
        (0, ids[0], "success"), (1, ids[1], "failure"), (2, ids[2], "success"),
    ]  # fmt: skip
    assert all(row["length"] >= STEPS and row["rate_hz"] == pytest.approx(50, abs=1) for row in first)
    assert [(row["number"], row["id"], row["success"]) for row in last] == [
        (0, ids[1], False), (1, ids[2], False), (2, ids[0], True),
    ]  # fmt: skip
    assert any(view.totals["deleted"] == [ids[0]] for view in panel.views)
    assert panel.views[-1].totals["deleted"] == []
    assert ids_of(three) == [ids[1], ids[2], ids[0]]
    assert session.effects.list.of_session == []


def test_while_saved_ones_are_changed_the_robot_holds_and_nothing_is_begun(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is held inside the edit; then a recording goes on as usual into the new store."""
    ids, asked, held = ids_of(three), [], []

    def slow(store: EpisodeStore, edit: Edit, **options: object) -> object:
        while len(held) < 40:  # turns of the session
            time.sleep(1e-3)
        return carry_out_edit(store, edit)

    monkeypatch.setattr(writing, "carry_out_edit", slow)

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "ready" and not asked:
            asked.append(len(robot.commands))
            return [PanelEvent("edit_delete", episode=ids[1])]
        if session.recorder.is_editing:
            held.append((view.message, tuple(robot.commands[-1][1].position)))
            return ["start"]
        return episodes_of(STEPS)(view)

    session, robot, panel = small_session(three, rule, total=4)
    assert session.run()["stored"] == 4
    session.recorder.store.close()
    assert len({position for _, position in held[15:40]}) == 1, "it brakes and holds"
    assert any("wait" in message for message, _ in held)
    during = [view for view in panel.views if "being changed" in view.message]
    assert {view.state for view in during} == {"ready"}
    assert ids_of(three)[:2] == [ids[0], ids[2]]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (PanelEvent("edit_delete", episode="00" * 16), "one of its episodes"),
        (PanelEvent("edit_note", text="  ", episode="00" * 16), "a note has a text"),
        (PanelEvent("edit_restore", episode="00" * 16), "has not deleted"),
    ],
)
def test_what_can_t_be_done_is_said_and_changes_nothing(three: Path, event: PanelEvent, words: str) -> None:
    asked: list[PanelEvent] = []

    def ask(view: SessionView) -> list[str | PanelEvent]:
        if not asked:
            asked.append(event)
            return [event]
        return ["quit"] if "Nothing was changed" in view.message else []

    before = ids_of(three)
    session, _, panel = small_session(three, in_ready(ask), total=9)
    session.run()
    session.recorder.store.close()
    assert words in panel.views[-1].message
    assert ids_of(three) == before
    assert not trashed(three)


def test_no_edit_where_rows_are_on_their_way() -> None:
    allowed = {state for state in State if (state, "edit_delete") in TABLE}
    assert allowed == {State.idle, State.ready, State.review}
    assert all(TABLE[state, name] == (state, (Effect.edit,)) for state in allowed for name in EDITS)


def test_an_edit_in_review_leaves_the_recording_that_waits(three: Path) -> None:
    ids, asked = ids_of(three), []

    def rule(view: SessionView) -> list[str | PanelEvent]:
        if view.state == "review" and not asked:
            asked.append(1)
            return [PanelEvent("edit_delete", episode=ids[0]), "failure"]
        if view.state == "review" and not session.effects.list.deleted:
            return []
        return episodes_of(STEPS)(view)

    session, _, _ = small_session(three, rule, total=4)
    assert session.run() == {"saved": 2, "discarded": 0, "stored": 4, "successes": 2}
    assert session.recorder.store.episode(2).metadata["label"] == "failure"
    assert listed(session.recorder.store)[2]["seconds"] == pytest.approx(STEPS / 50, abs=0.05)


def test_an_edit_that_runs_when_the_session_ends_is_finished(three: Path) -> None:
    ids = ids_of(three)
    session, _, _ = small_session(three, lambda view: [], total=9)
    session.recorder.edit(Edit("edit_delete", ids[2]))
    session.recorder.close()
    session.recorder.store.close()
    assert ids_of(three) == ids[:2]
