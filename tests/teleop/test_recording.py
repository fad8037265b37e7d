"""Recording: what is written comes back, whatever ends the process; columns stay with their episode through every edit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import recording_child
from recording_child import open_recorder, row_of

from robot_rl.data.editing import plan_delete, plan_merge
from robot_rl.data.recorded_columns import cut_columns, pack_columns, unpack_columns
from robot_rl.data.rewriting import carry_out
from robot_rl.data.store import EpisodeStore
from robot_rl.data.trimming import Trim, plan_trim
from robot_rl.errors import DataError
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.segments import read_segment
from robot_rl.teleop.writing import Outcome

WAIT_S = 60.0


def wait_for(recorder: Recorder) -> Outcome:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        if ended := recorder.poll():
            return ended[0]
        time.sleep(1e-3)
    raise AssertionError("the save did not end")


def record(recorder: Recorder, first: int, rows: int, *, begin_s: float = 100.0) -> None:
    """Rows at 50 Hz; the last one shows what the last action led to."""
    recorder.begin({"seed": first, "begin_monotonic_s": begin_s})
    for number in range(rows):
        recorder.add(row_of(first + number, now_s=begin_s + 0.02 * number))


def test_what_is_recorded_comes_back(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 31)
    recorder.told("mark", 100.105, name="subtask", text="grasp")
    recorder.told("mark", 100.2, name="note", text="hello")
    recorder.told("mark", 100.3, name="camera_problem", text="front stands still")
    recorder.told("end", 101.0, name="success")
    recorder.told("success", 101.0)
    recorder.save()
    outcome = wait_for(recorder)
    assert (outcome.index, outcome.problem) == (0, "")
    recorder.close()
    recorder.store.verify()
    episode = recorder.store.episode(0)
    assert len(episode) == 30
    np.testing.assert_array_equal(episode.action[:, 0], np.arange(30))
    np.testing.assert_array_equal(episode.final_observation["proprio"], [30, 30])
    for step in (0, 29):
        np.testing.assert_array_equal(episode.observation["image/front"][step], row_of(step).frames["image/front"])
    np.testing.assert_allclose(episode.time, 0.02 * np.arange(30), atol=1e-9)
    said = episode.metadata
    assert said["subtasks"] == [{"step": 5, "text": "grasp"}]
    assert (said["notes"], said["problems"], said["label"]) == (["hello"], ["front stands still"], "success")
    assert said["ages_s"] == {"front": [0.01] * 30}
    assert said["loop"]["rate_hz"] == pytest.approx(50.0)
    assert said["loop"]["jitter_p95_ms"] == pytest.approx(0.0, abs=1e-6)
    columns = unpack_columns(said)
    np.testing.assert_array_equal(columns["device_sequence"], np.arange(30))
    np.testing.assert_array_equal(columns["sent"][:, 1], np.arange(30))
    np.testing.assert_allclose(columns["read_s"] - columns["capture_s/image/front"], 0.01)
    assert "capture_s/wrench" not in columns, "the robot has none"
    assert not recorder.folder.exists()


@pytest.mark.parametrize(
    ("end_s", "steps"),
    [(100.1, 6), (100.1199, 6), (100.12, 7), (0.0, 1), (999.0, 10)],
)
def test_an_episode_ends_with_the_step_in_which_it_was_asked_to(tmp_path: Path, end_s: float, steps: int) -> None:
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 11)
    recorder.told("end", end_s, name="stop")
    recorder.save()
    assert wait_for(recorder).index == 0
    recorder.close()
    episode = recorder.store.episode(0)
    assert len(episode) == steps
    assert episode.final_observation["proprio"][0] == steps


def test_a_pause_takes_one_period_of_the_episode(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 5)
    recorder.told("pause", 100.09)
    recorder.told("resume", 130.0)
    for number in range(5, 9):
        recorder.add(row_of(number, now_s=130.0 + 0.02 * (number - 5) + 0.001))
    recorder.told("end", 131.0, name="stop")
    recorder.save()
    wait_for(recorder)
    recorder.close()
    np.testing.assert_allclose(np.diff(recorder.store.episode(0).time), 0.02, atol=1e-9)


def test_a_session_begins_with_a_recording_without_its_pictures_in_memory(tmp_path: Path) -> None:
    """A long one may be larger than the memory: who can't begin can't discard it either."""
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 1000)
    recorder.close()
    (file,) = recorder.folder.glob("*.segment")
    frames = read_segment(file).frames
    size = sum(rows.nbytes for rows in frames.values())
    peaks = {}
    for has_frames in (True, False):
        tracemalloc.start()
        segment = read_segment(file, has_frames=has_frames)
        peaks[has_frames] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(segment.table) == 1000
    table = segment.table.nbytes
    assert peaks[True] - table < 1.3 * size, "no second copy of all pictures"
    assert peaks[False] - table < 0.3 * size
    recorder.store.close()
    again = open_recorder(tmp_path / "d.zarr")
    assert again.recover() == 1000
    again.save()
    assert wait_for(again).index == 0
    again.close()
    np.testing.assert_array_equal(again.store.episode(0).observation["image/front"], frames["image/front"][:999])


def test_a_dropped_recording_comes_back_until_the_next_save(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 6)
    recorder.told("end", 101.0, name="stop")
    recorder.drop()
    record(recorder, 100, 6)
    recorder.told("end", 101.0, name="stop")
    recorder.drop()
    recorder.bring_back()
    recorder.told("failure", 101.0)
    recorder.save()
    assert wait_for(recorder).index == 0
    recorder.bring_back()
    assert recorder.pending is None, "the save was the end of what was dropped"
    recorder.close()
    assert recorder.store.seeds.tolist() == [100]
    assert recorder.store.episode(0).metadata["label"] == "failure"
    assert not recorder.folder.exists()


def test_the_last_seconds_and_the_preroll(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr", last_s=0.21, preroll_s=0.11)
    for number in range(50):
        recorder.keep(row_of(number, now_s=100.0 + 0.02 * number))
    recorder.take_last({"seed": 0})
    recorder.save()
    assert wait_for(recorder).index == 0
    for number in range(50):
        recorder.keep(row_of(number, now_s=200.0 + 0.02 * number))
    record(recorder, 50, 4, begin_s=201.0)
    recorder.told("end", 202.0, name="stop")
    recorder.save()
    assert wait_for(recorder).index == 1
    recorder.close()
    last, rolled = recorder.store.episode(0), recorder.store.episode(1)
    np.testing.assert_array_equal(last.action[:, 0], np.arange(39, 49))
    np.testing.assert_array_equal(rolled.action[:, 0], np.arange(44, 53))


def test_the_ring_holds_no_more_bytes_than_it_may(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr", last_s=1e9, ring_bytes=10 * (64 * 64 * 3 + 8))
    for number in range(50):
        recorder.keep(row_of(number, now_s=100.0 + number))
    assert recorder.past_rows == 10
    recorder.close()


def test_a_disk_that_does_not_keep_up_is_counted_and_never_waited_for(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr", max_queued=5)
    began_s = time.monotonic()
    # The thread is held by a task of its own: nothing is taken from the queue meanwhile.
    gate = threading.Event()
    recorder._thread._carry_out = _held(recorder._thread._carry_out, gate)  # type: ignore[method-assign]
    record(recorder, 0, 30)
    assert time.monotonic() - began_s < WAIT_S / 2
    assert recorder.lost >= 20
    assert recorder.rows + recorder.lost == 30
    gate.set()
    recorder.close()


def _held(carry_out, gate):  # type: ignore[no-untyped-def]
    def held(what, about, writer):  # type: ignore[no-untyped-def]
        gate.wait(WAIT_S)
        return carry_out(what, about, writer)

    return held


def test_a_full_disk_leaves_what_was_written_and_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robot_rl.teleop import segments

    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 10)
    until(lambda: recorder.queued == 0)
    real = segments.SegmentWriter._add

    def no_room(self, kind, *parts):  # type: ignore[no-untyped-def]
        if kind == 2:
            raise OSError(28, "No space left on device")
        real(self, kind, *parts)

    monkeypatch.setattr(segments.SegmentWriter, "_add", no_room)
    recorder.add(row_of(10, now_s=100.2))
    until(lambda: recorder.failure)
    assert "No space" in recorder.failure
    recorder.told("end", 100.3, name="stop")
    recorder.told("success", 100.3)
    recorder.save()
    assert wait_for(recorder).index == 0
    recorder.close()
    episode = recorder.store.episode(0)
    assert (len(episode), episode.metadata["label"]) == (9, "success")


def test_a_disk_that_is_full_while_saving_keeps_the_recording_and_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robot_rl.data import journal

    recorder = open_recorder(tmp_path / "d.zarr")
    for first in (0, 100):
        record(recorder, first, 10)
        recorder.told("end", 101.0, name="success")
        recorder.told("success", 101.0)
        if first:
            break
        recorder.save()
        assert wait_for(recorder).index == 0

    def no_room(files, folder, *, on_error):  # type: ignore[no-untyped-def]
        path, content = next(iter(files.items()))
        raise on_error(path, len(content), OSError(28, "No space left on device"))

    with monkeypatch.context() as full:
        full.setattr(journal, "write_files", no_room)
        recorder.save()
        outcome = wait_for(recorder)
    assert outcome.index == -1
    assert "No space left" in outcome.problem
    assert "1 episodes before it are intact" in outcome.problem
    assert len(recorder.store) == 1
    recorder.told("failure", 102.0)  # people go on where they were
    recorder.save()
    assert wait_for(recorder).index == 1
    recorder.close()
    recorder.store.verify()
    assert recorder.store.success.tolist() == [True, False]
    assert not recorder.folder.exists()


def test_half_a_record_is_cut_off(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path / "d.zarr")
    record(recorder, 0, 10)
    recorder.close()
    (file,) = recorder.folder.glob("*.segment")
    whole = file.read_bytes()
    for cut in (1, 100, 5000, 20_000):
        file.write_bytes(whole[:-cut])
        segment = read_segment(file)
        assert segment.lost_bytes > 0 or cut == 0
        assert 8 <= len(segment.table) <= 9
    broken = bytearray(whole)
    broken[-200] ^= 1  # in the last row: its checksum tells
    file.write_bytes(broken)
    assert len(read_segment(file).table) == 9
    file.write_bytes(whole[:20])
    with pytest.raises(DataError, match="header"):
        read_segment(file)


def until(holds, what: str = "a fact") -> None:  # type: ignore[no-untyped-def]
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, f"not within {WAIT_S} s: {what}"
        time.sleep(1e-3)


@contextmanager
def child(path: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    support = str(Path(recording_child.__file__).parent)
    process = subprocess.Popen(
        [sys.executable, recording_child.__file__, str(path), what], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": support},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_sigkill_while_recording_loses_less_than_a_second(tmp_path: Path) -> None:
    with child(tmp_path / "d.zarr", "record") as process:
        assert process.stdout is not None
        told = 0.0
        for line in process.stdout:
            told = float(line.split()[2])
            if line.startswith("row 150 "):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        for line in process.stdout:  # what it said before it died
            told = float(line.split()[2]) if line.startswith("row") and len(line.split()) == 3 else told
    recorder = open_recorder(tmp_path / "d.zarr")
    assert recorder.recover() >= 100
    recorder.save()
    assert wait_for(recorder).index == 0
    recorder.close()
    episode = recorder.store.episode(0)
    columns = unpack_columns(episode.metadata)
    assert told - columns["read_s"][-1] < 1.0
    assert episode.metadata["ended_by"] == "cut off"
    np.testing.assert_array_equal(episode.action[:, 0], np.arange(len(episode)))


def test_sigkill_while_saving_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """At different moments of a save, again and again with the same dataset."""
    path, saved = tmp_path / "d.zarr", 0
    for wait_s in (0.0, 0.003, 0.01, 0.02, 0.04):
        with child(path, "save") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "saving\n"
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
            process.wait()
            told = [line for line in process.stdout if line.startswith("saved")]
        recorder = open_recorder(path)
        recorder.store.verify()
        assert len(recorder.store) >= saved + len(told), "one that was called saved is not there"
        if recorder.recover():
            recorder.save()
            assert not wait_for(recorder).problem
        recorder.close()
        count = len(recorder.store)
        assert count >= saved + 1, "the one that was being saved is not there"
        assert len({bytes(row) for row in recorder.store.uuids}) == count
        assert [len(recorder.store.episode(index)) for index in range(count)] == [199] * count
        saved = count
        recorder.store.close()


def test_columns_go_where_their_episode_goes(tmp_path: Path) -> None:
    for name, firsts in (("a", (0, 50)), ("b", (100, 150))):
        recorder = open_recorder(tmp_path / f"{name}.zarr")
        for first in firsts:
            record(recorder, first, 21)
            recorder.told("end", 101.0, name="stop")
            recorder.save()
            assert not wait_for(recorder).problem
        recorder.close()
        recorder.store.close()
    with EpisodeStore.open(tmp_path / "a.zarr") as a, EpisodeStore.open(tmp_path / "b.zarr") as b:
        carry_out([plan_merge([a, b], tmp_path / "both.zarr")])
    with EpisodeStore.open(tmp_path / "both.zarr", mode="a") as both:
        carry_out([plan_delete(both, [0])])
    with EpisodeStore.open(tmp_path / "both.zarr", mode="a") as both:
        carry_out([plan_trim(both, [0], Trim(begin=5, end=3))])
    with EpisodeStore.open(tmp_path / "both.zarr") as both:
        both.verify()
        assert both.lengths.tolist() == [12, 20, 20]
        episode = both.episode(0)
        columns = unpack_columns(episode.metadata)
    np.testing.assert_array_equal(columns["device_sequence"], np.arange(55, 67))
    np.testing.assert_array_equal(columns["action"], episode.action)
    assert episode.metadata["ages_s"] == {"front": [0.01] * 12}


def test_what_names_a_step_moves_with_it_when_steps_are_cut_off() -> None:
    said = {
        "subtasks": [{"step": 1, "text": "reach"}, {"step": 4, "text": "grasp"}, {"step": 9, "text": "lift"}],
        "pauses": [3, 7, 12], "label": "success",
    }  # fmt: skip
    assert cut_columns(said, 0, 20) == said
    cut = cut_columns(said, 5, 12)
    assert cut["subtasks"] == [{"step": 0, "text": "grasp"}, {"step": 4, "text": "lift"}]
    assert cut["pauses"] == [2]
    assert cut_columns({"subtasks": "of another program", "pauses": {}}, 5, 12) == {
        "subtasks": "of another program", "pauses": {},
    }  # fmt: skip


def test_columns_that_were_changed_are_refused() -> None:
    packed = pack_columns({"a": np.arange(6.0).reshape(3, 2), "b": np.array([True, False, True])})
    metadata = {"recorded": packed}
    back = unpack_columns(metadata)
    np.testing.assert_array_equal(back["a"], np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(back["b"], [True, False, True])
    assert unpack_columns({}) == {}
    for broken in ({**packed, "steps": 4}, {**packed, "version": 9}, {**packed, "columns": {"a": {}}}, "text"):
        with pytest.raises(DataError, match="recorded"):
            unpack_columns({"recorded": broken})
    with pytest.raises(DataError, match="one length"):
        pack_columns({"a": np.zeros(3), "b": np.zeros(2)})
