"""Records rows of a small robot with a camera and says on stdout how far it is, until it is killed."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from small_robot import small_card, small_spec

from robot_rl.data.store import EpisodeStore
from robot_rl.hardware.mock_robot import MockRobotConfig
from robot_rl.specs import EnvSpec
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.rows import Row, layout_for
from robot_rl.teleop.writing import RecordingConfig
from robot_rl.types import Goal

SIDE = 64


def camera_spec() -> EnvSpec:
    """Of the small robot, with one camera."""
    return small_spec(config=MockRobotConfig(streams=("joints",), cameras={"front": (SIDE, SIDE)}))


def row_of(number: int, *, now_s: float | None = None) -> Row:
    """A row whose every number says which it is."""
    now_s = time.monotonic() if now_s is None else now_s
    image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Row(
        frames={"proprio": np.full(2, number, np.float32), "image/front": image},
        capture_s={"joints": now_s, "image/front": now_s - 0.01}, read_s=now_s, use_s=now_s + 1e-4,
        command_s=now_s + 2e-4, device_s=now_s - 5e-3, device_sequence=number, policy=None,
        operator=np.full(2, number, np.float32), action=np.full(2, number, np.float32),
        sent=Goal(position=np.full(2, float(number)), velocity=np.zeros(2)), reasons=0, source=0, intervention=0,
        slot=number, late_s=0.0, skipped=0,
    )  # fmt: skip


def open_recorder(path: Path, **changes: object) -> Recorder:
    """Of a store at `path`."""
    store = EpisodeStore.open_or_create(path, camera_spec())
    config = replace(RecordingConfig(max_queued=10_000), **changes)  # type: ignore[arg-type]
    return Recorder(store, layout_for(camera_spec(), small_card()), config)


def main(path: Path, what: str) -> None:
    """`record`: one episode without end; `save`: short episodes, each saved, without end."""
    recorder = open_recorder(path)
    number = 0
    while True:
        recorder.begin({"seed": number, "begin_monotonic_s": time.monotonic()})
        for _ in range(10**9 if what == "record" else 200):
            recorder.add(row_of(number))
            number += 1
            if what == "record":
                print("row", number, time.monotonic(), flush=True)
                time.sleep(0.01)
        recorder.told("end", time.monotonic(), name="stop")
        recorder.told("success", time.monotonic())
        while recorder.queued:  # a robot gives rows more slowly than this loop, so that none wait
            time.sleep(1e-4)
        print("saving", flush=True)
        recorder.save()
        while not (ended := recorder.poll()):
            time.sleep(1e-4)
        print("saved", ended[0].index, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
