"""Run directories: made in one piece, never overwritten, status and JSON written in one piece."""

from __future__ import annotations

import json
import logging
import math
import threading
from datetime import datetime
from pathlib import Path

import pytest

from robot_rl.errors import RunError
from robot_rl.runs import directory
from robot_rl.runs.directory import RunDirectory, RunState


def create(root: Path, task: str = "pick_cube") -> RunDirectory:
    return RunDirectory.create(
        root, stage="imitate", task=task, seed=3, config_yaml="seed: 3\n", command=["robot-rl", "imitate", "name=a b"]
    )


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 11, 25, 4, 30, 12)

    monkeypatch.setattr(directory, "datetime", Clock)


def test_contents_and_name(tmp_path: Path, frozen_clock: None) -> None:
    run = create(tmp_path / "runs", task="Pick Cube/v1")
    assert run.path == tmp_path / "runs/2026-11-25_04-30-12_imitate_Pick-Cube-v1_s3"
    assert (run.path / "config.yaml").read_text() == "seed: 3\n"
    assert (run.path / "command.txt").read_text() == "robot-rl imitate 'name=a b'\n"
    assert (run.path / "metrics.jsonl").read_bytes() == b""
    assert run.read_json("provenance.json")["python"]
    assert run.read_json("status.json")["state"] == "running"
    assert run.stage == "imitate"
    assert Path(run) == run.path
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run.path.name]


def test_names_taken_at_the_same_second_get_a_number(tmp_path: Path, frozen_clock: None) -> None:
    first = create(tmp_path)
    (first.path / "result").write_text("precious")
    assert [create(tmp_path).path.name[-4:] for _ in range(2)] == ["s3_2", "s3_3"]
    assert (first.path / "result").read_text() == "precious"


def test_two_processes_never_share_a_directory(
    tmp_path: Path, frozen_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name is free when we look and taken when we rename.
    real, taken = Path.exists, tmp_path / "2026-11-25_04-30-12_imitate_pick_cube_s3"
    create(tmp_path)
    answers = iter([False])
    monkeypatch.setattr(Path, "exists", lambda self: next(answers, True) if self == taken else real(self))
    assert create(tmp_path).path.name.endswith("_s3_2")


def test_unwritable_root(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="run_root"):
        create(tmp_path / "file")


def test_open(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert RunDirectory.open(str(run.path)).path == run.path
    with pytest.raises(RunError, match=rf"no config.yaml and no status.json there. .*{run.path.name}"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        RunDirectory.open(tmp_path / "absent")


def test_status_keeps_identity_and_takes_states_only(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.set_status("failed", message="no data")
    status = run.read_json("status.json")
    assert {k: status[k] for k in ("state", "stage", "task", "seed", "message")} == {
        "state": "failed", "stage": "imitate", "task": "pick_cube", "seed": 3, "message": "no data",
    }  # fmt: skip
    run.set_status(RunState.finished)
    assert run.read_json("status.json")["state"] == "finished"
    assert "message" not in run.read_json("status.json")
    with pytest.raises(RunError, match="Did you mean 'finished'"):
        run.set_status("finish")


def test_json_is_whole_or_absent(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_json("eval/summary.json", {"rate": 0.1})
    for bad in ({"rate": math.nan}, {"rate": object()}):
        with pytest.raises(RunError, match="finite numbers"):
            run.write_json("eval/summary.json", bad)
    assert json.loads((run.path / "eval/summary.json").read_text()) == {"rate": 0.1}
    assert [p.name for p in (run.path / "eval").iterdir()] == ["summary.json"]
    (run.path / "status.json").write_text("{")
    with pytest.raises(RunError, match=r"status.json"):
        run.read_json("status.json")


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.write_json("x.json", {"values": [0] * 2000})
    done = threading.Event()
    lengths = set()

    def read() -> None:
        while not done.is_set():
            lengths.add(len(run.read_json("x.json")["values"]))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        run.write_json("x.json", {"values": [number] * (2000 + number % 2)})
    done.set()
    reader.join()
    assert lengths <= {2000, 2001}
    assert lengths


def test_log_file_takes_info_and_is_closed_again(tmp_path: Path) -> None:
    run = create(tmp_path)
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with run.log_file():
        logging.getLogger("robot_rl.x").info("step %d", 5)
        logging.getLogger("robot_rl.x").debug("too fine")
    logging.getLogger("robot_rl.x").warning("afterwards")
    text = (run.path / "log.txt").read_text()
    assert "INFO robot_rl.x: step 5\n" in text
    assert "too fine" not in text
    assert "afterwards" not in text
    assert (root.level, list(root.handlers)) == before
