"""The black box: what went in comes out of the MCAP file, in time, whole, and with the reason."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_robot import SmallPolicy, small_card

from robot_rl.deploy.black_box import BlackBox, BlackBoxConfig, StepRecord, columns_of, layout_of, read_black_box
from robot_rl.deploy.black_box_process import rows_of, write_mcap
from robot_rl.deploy.child_process import SharedArrays
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import SameThreadPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import ManualClock
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import DeployError
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig
from robot_rl.types import Goal, Reading

mcap = pytest.importorskip("mcap")
PATIENCE_S = 30.0


def record(slot: int = 0, **changes: Any) -> StepRecord:
    reading = Reading(
        frames={}, stamps={}, position=np.array([0.1, 0.2]), velocity=np.array([1.0, 2.0]), wrench=np.arange(6.0)
    )
    made = StepRecord(
        slot=slot, skipped=1, late_s=0.001, monotonic_s=500.0 + 0.02 * slot, reading=reading, age_s=0.03,
        action=np.array([0.5, 0.6], np.float32), request=3, index=2, goal=Goal(position=np.array([0.5, 0.6])),
        sent=Goal(position=np.array([0.4, 0.45])), reasons=Reason.velocity | Reason.jerk, latency_s=0.012,
    )  # fmt: skip
    return replace(made, **changes)


@contextmanager
def box(folder: Path, seconds: float = 2.0, **changes: Any) -> Iterator[BlackBox]:
    made = BlackBox(BlackBoxConfig(str(folder), seconds=seconds, **changes), small_card(), action_size=2)
    try:
        yield made
    finally:
        made.close()


def written(made: BlackBox) -> list[tuple[Path | None, str]]:
    return made.written(PATIENCE_S)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    with box(tmp_path / "box") as made:
        made.add(record())
        made.add(record(1, action=None, request=-1, index=-1, goal=None, latency_s=math.nan, age_s=math.inf))
        made.write(Reason.velocity | Reason.tracking, "too far from the command")
        ((path, why),) = written(made)
    assert why == ""
    assert path is not None
    assert path.name.endswith("-tracking.mcap")  # named after what stopped
    steps, messages, facts = read_black_box(path)
    first, second = steps
    assert first["number"] == 1
    assert (first["slot"], first["skipped"], first["request"], first["index"]) == (0, 1, 3, 2)
    assert first["monotonic_s"] == 500.0
    assert first["reason_names"] == ["velocity", "jerk"]
    assert first["reasons"] == int(Reason.velocity | Reason.jerk)
    assert first["action"] == pytest.approx([0.5, 0.6])
    assert (first["goal"], first["sent"]) == ([0.5, 0.6], [0.4, 0.45])
    assert (first["position"], first["velocity"], first["wrench"]) == ([0.1, 0.2], [1.0, 2.0], [0, 1, 2, 3, 4, 5])
    assert (first["age_s"], first["latency_s"], first["late_s"]) == (0.03, 0.012, 0.001)
    assert "pose" not in first
    assert (second["action"], second["index"]) == ([None, None], -1)
    assert "goal" not in second
    assert "age_s" not in second
    assert messages == ["velocity tracking: too far from the command"]
    assert facts["reasons"] == "velocity tracking"
    assert facts["robot"] == "small"
    assert json.loads(facts["joints"]) == ["shoulder", "elbow"]


def test_foxglove_finds_schemas_and_times(tmp_path: Path) -> None:
    """Each message fits its JSON schema's types; log times are wall clock and as far apart as the steps."""
    from mcap.reader import make_reader

    with box(tmp_path) as made:
        for slot in range(3):
            made.add(record(slot, monotonic_s=time.monotonic() + 0.02 * slot))
        made.write(Reason.none, "time_limit")
        ((path, _),) = written(made)
    assert path is not None
    assert path.name.endswith("-end.mcap")
    with path.open("rb") as stream:
        found = list(make_reader(stream).iter_messages())
    assert {(schema.name, schema.encoding, channel.message_encoding) for schema, channel, _ in found} == {
        ("robot_rl.Step", "jsonschema", "json"),
        ("foxglove.Log", "jsonschema", "json"),
    }
    times = [message.log_time for _, channel, message in found if channel.topic == "/black_box/step"]
    np.testing.assert_allclose(np.diff(times), 2e7, atol=5e6)
    assert abs(times[0] - time.time_ns()) < 60e9
    types = {"integer": int, "array": list}
    for schema, _, message in found:
        plain, properties = json.loads(message.data), json.loads(schema.data)["properties"]
        assert set(plain) <= set(properties)
        for key, value in plain.items():
            kind = properties[key]["type"]
            if isinstance(kind, str) and kind in types:
                assert isinstance(value, types[kind]), key
            elif isinstance(kind, list):
                assert value is None or isinstance(value, float | int)


def test_only_the_last_seconds_are_kept_in_order(tmp_path: Path) -> None:
    with box(tmp_path, seconds=0.1) as made:  # 6 rows at 50 Hz
        for slot in range(50):
            made.add(record(slot))
        made.write(Reason.emergency, "stop was called")
        ((path, _),) = written(made)
    assert path is not None
    steps, _, _ = read_black_box(path)
    assert [step["slot"] for step in steps] == list(range(44, 50))


def test_a_row_that_is_being_written_is_left_out() -> None:
    columns = columns_of(small_card(), action_size=2)
    arrays = SharedArrays(layout_of(columns, 4))
    for number in (5, 6, 7, 8):
        arrays["rows"][number % 4] = number
    arrays["rows"][6 % 4, 0] = math.nan
    assert rows_of(arrays)[:, 0].tolist() == [5, 7, 8]
    arrays["rows"][:] = 0.0
    assert rows_of(arrays).shape == (0, arrays["rows"].shape[1])


@pytest.mark.parametrize("kind", ["joints of a wrong number", "huge numbers", "nothing"])
def test_a_row_takes_whatever_made_the_robot_stop(tmp_path: Path, kind: str) -> None:
    wrong = Reading(frames={}, stamps={}, position=np.array([np.nan, np.inf, 3.0]))
    given = {
        "joints of a wrong number": record(reading=wrong, action=np.zeros(9, np.float32)),
        "huge numbers": record(action=np.array([1e38, -np.inf], np.float32)),
        "nothing": record(action=None, goal=None, sent=Goal()),
    }[kind]
    with box(tmp_path) as made:
        made.add(given)
        made.write(Reason.measured_not_finite, kind)
        ((path, why),) = written(made)
    assert why == ""
    assert path is not None
    assert len(read_black_box(path)[0]) == 1


def test_a_pose_robot_with_a_gripper_has_its_columns() -> None:
    columns = columns_of(load_robot_card("sim_panda"), action_size=4)
    assert {name: end - first for name, (first, end) in columns.items() if name in ("action", "goal", "sent", "position")} == {
        "action": 4, "goal": 7, "sent": 7, "position": 7,
    }  # fmt: skip
    edges = sorted(columns.values())
    assert edges[0][0] == 0
    assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))


def test_no_room_is_said_and_what_was_written_stays_whole(tmp_path: Path) -> None:
    """The process may write 40 kB a file: a short ring fits, a long one does not, and leaves nothing half."""
    with box(tmp_path, seconds=60.0) as made:
        resource.prlimit(made.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
        made.add(record())
        made.write(Reason.force, "touched something")
        ((good, why),) = written(made)
        assert why == ""
        for slot in range(1, 500):
            made.add(record(slot))
        made.write(Reason.emergency, "stop was called")
        ((bad, why),) = written(made)
        assert bad is None
        assert "File too large" in why
        made.write(Reason.none, "it goes on")
        assert len(written(made)) == 1
    assert good is not None
    assert len(read_black_box(good)[0]) == 1
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"columns": columns_of(small_card(), action_size=2), "about": {}}

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_mcap(tmp_path, np.zeros((0, 60)), config, {"reasons": 0, "what": "end"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_moves(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match="folder"), box(tmp_path / "file" / "box"):
        raise AssertionError("it began")


def test_without_mcap_it_is_refused_and_nothing_else_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden" / "mcap"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError('No module named mcap')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(hidden.parent))
    with pytest.raises(DeployError, match=r"robot-rl\[ros2\]"), box(tmp_path / "box"):
        raise AssertionError("it began")


def test_a_dead_process_is_said(tmp_path: Path) -> None:
    with box(tmp_path) as made:
        os.kill(made.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            made.add(record())
            made.write(Reason.emergency, "stop was called")
            found = made.written(1.0)
            if found and found[0][1]:
                break
            assert time.monotonic() < deadline_s
        assert "exit code -9" in found[0][1]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"nothing of the kind")
    with pytest.raises(DeployError, match="black box"):
        read_black_box(tmp_path / "a.mcap")


def loop(made: BlackBox, act: Callable[[StepRecord], None] = lambda step: None, **config: Any) -> ControlLoop:
    clock = ManualClock()
    robot = MockRobot(MockRobotConfig(streams=("joints",)), card=small_card(), clock=clock)
    policy = SmallPolicy({})
    quiet = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)
    running = ControlLoop(
        robot, SameThreadPolicy(policy, clock=clock), ActionReader(policy.spec, robot.card),
        config=LoopConfig(realtime=quiet, write_s=PATIENCE_S, **config),
        parts=LoopParts(black_box=made, observer=act, clock=clock),
    )  # fmt: skip
    running.bring_up()
    return running


def test_an_episode_leaves_its_file_at_the_end_and_at_a_stop(tmp_path: Path) -> None:
    with box(tmp_path) as made:
        running = loop(made)
        summary = running.run_episode(max_steps=10)
        (path,) = summary.black_box
        steps, messages, _ = read_black_box(Path(path))
        assert [step["slot"] for step in steps] == list(range(len(steps)))
        assert messages == ["no stop: time_limit"]
        running.stop()
        running.release()
        running = loop(made, lambda step: running.stop(Reason.collision) if step.slot == 5 else None)
        (path,) = running.run_episode(max_steps=10).black_box
        assert path.endswith("-collision.mcap")
        assert read_black_box(Path(path))[1] == ["collision: stop was called"]


def test_the_end_of_an_episode_can_go_without(tmp_path: Path) -> None:
    with box(tmp_path, at_episode_end=False) as made:
        assert loop(made).run_episode(max_steps=5).black_box == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("must", [False, True])
def test_no_room_goes_on_or_ends_the_work_as_configured(tmp_path: Path, must: bool) -> None:
    with box(tmp_path, seconds=60.0) as made:
        resource.prlimit(made.pid, resource.RLIMIT_FSIZE, (2_000, 2_000))
        running = loop(made, stop_without_log=must)
        if must:
            with pytest.raises(DeployError, match="File too large"):
                running.run_episode(max_steps=20)
        else:
            summary = running.run_episode(max_steps=20)
            assert summary.ended_by == "time_limit"
            assert "File too large" in summary.black_box[0]
            assert running.run_episode(max_steps=5).ended_by == "time_limit"
