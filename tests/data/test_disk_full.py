"""A disk that is full, for real: a small tmpfs. Earlier episodes stay, the error names path and bytes, the exit code is 1.
And what is said before and during a recording about the room that is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from camera_episodes import camera_episode, camera_spec

from robot_rl.data.committed import RESERVED_DISK_BYTES
from robot_rl.data.disk_space import DiskWatch, bytes_per_step, estimate, measured_compression
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode

SPEC = camera_spec(64, max_episode_steps=20)


def make_episode(number: int, steps: int = 20) -> Episode:
    return camera_episode(number, steps, size=64)


def record(store: EpisodeStore) -> None:
    for number in range(100):
        store.append(make_episode(number))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a tmpfs can be mounted on Linux by root only")
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def leave_free(disk: Path, size: int) -> Path:
    """Fill the disk with a file until so many bytes are free."""
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - size)
    return ballast


def test_store_stops_before_the_reserve(disk: Path) -> None:
    with EpisodeStore.create(disk / "demos.zarr", SPEC) as store:
        ballast = leave_free(disk, RESERVED_DISK_BYTES + 3 * 2**20)
        with pytest.raises(DataError, match=r"Nothing was written; the \d+ episodes before are intact") as caught:
            record(store)
        assert str(store.path) in str(caught.value)
        assert re.search(r"expected \d+ bytes free \(\d+ for this append.*got \d+ bytes", str(caught.value))
        stored = len(store)
        assert 1 <= stored < 100
        assert shutil.disk_usage(disk).free >= RESERVED_DISK_BYTES
        ballast.unlink()
        assert store.append(make_episode(stored)) == stored
        for index in range(stored + 1):
            got, want = store.episode(index), make_episode(index)
            np.testing.assert_array_equal(got.observation["image/cam"], want.observation["image/cam"])


def test_a_disk_that_is_full_to_the_last_byte(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system itself refuses in the middle of an append, as when another program fills the reserve."""
    monkeypatch.setattr("robot_rl.data.committed.RESERVED_DISK_BYTES", -(10**9))
    path = disk / "demos.zarr"
    with EpisodeStore.create(path, SPEC) as store:
        ballast = leave_free(disk, 3 * 2**20)
        with pytest.raises(DataError, match=rf"{path}.*expected to write \d+ bytes.*No space left on device") as caught:
            record(store)
        promised = len(store)
    assert promised >= 1
    saved = promised + ("All episodes are safe" in str(caught.value))
    assert len(EpisodeStore.open(path)) == promised
    EpisodeStore.open(path).verify()
    ballast.unlink()
    with EpisodeStore.open(path, mode="a") as store:
        assert len(store) == saved
        store.verify()
        for index in range(saved):
            np.testing.assert_array_equal(store.episode(index).action, make_episode(index).action)
        assert store.append(make_episode(saved)) == saved


def test_collect_as_a_user(disk: Path) -> None:
    """`robot-rl collect` on a nearly full disk: exit 1, path and bytes; the same command goes on when there is room."""
    words = ["collect", "env=point_reach", "expert=point_reach", "num_envs=4", "dataset=demos.zarr"]

    def collect(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "robot_rl", *words, *more], cwd=disk, capture_output=True, text=True, timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    ballast = leave_free(disk, RESERVED_DISK_BYTES + 400_000)
    done = collect("num_episodes=2000")
    assert done.returncode == 1, done.stderr
    assert re.search(r"demos\.zarr: expected \d+ bytes free .* got \d+ bytes", done.stderr.replace("\n", " ")), (
        done.stderr
    )
    assert "Traceback" not in done.stderr
    with EpisodeStore.open(disk / "demos.zarr") as store:
        stored, content = len(store), [store.episode(i).action.tobytes() for i in range(len(store))]
        store.verify()
    assert 1 <= stored < 2000
    (run,) = (disk / "runs").iterdir()
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "bytes free" in status["message"]
    ballast.unlink()
    assert collect(f"num_episodes={stored + 5}").returncode == 0
    with EpisodeStore.open(disk / "demos.zarr") as store:
        assert store.seeds.tolist() == list(range(stored + 5))
        assert [store.episode(i).action.tobytes() for i in range(stored)] == content


def test_bytes_of_a_step_by_hand() -> None:
    # proprio 3 * 4, image 64 * 64 * 3, action 2 * 4, reward 4, success 1, source 1, timestamp 8, done 1, truncated 1
    assert bytes_per_step(SPEC) == 12 + 12288 + 8 + 4 + 1 + 1 + 8 + 1 + 1


def test_estimate_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10_000_000))
    # 100 s at 10 Hz; one episode of 20 steps is in the journal too
    plan = estimate(tmp_path / "deep" / "new.zarr", SPEC, steps=1000, reserve_bytes=1_000_000)
    assert plan.need_bytes == 1020 * 12324
    assert plan.steps_left == (10_000_000 - 1_000_000 - 20 * 12324) // 12324
    assert not plan.is_measured
    assert "compression 1.00, assumed" in plan.text()
    with pytest.raises(
        DataError, match=rf"new\.zarr.*{1020 * 12324 + 1_000_000} bytes free for 1000 steps.*got 10000000 bytes"
    ):
        plan.require()
    estimate(tmp_path, SPEC, steps=plan.steps_left, reserve_bytes=1_000_000).require()


def test_compression_is_measured_when_there_is_enough(tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "demos.zarr", SPEC) as store:
        store.append(make_episode(0))
        assert measured_compression(store) is None
        store.append_many([make_episode(number) for number in range(1, 20)])
        measured = measured_compression(store)
        assert measured is not None
        files = sum(file.stat().st_size for file in (store.path / "data").rglob("*") if file.is_file())
        assert measured == files / (400 * 12324)
        assert 0.9 < measured < 1.1  # random images
        assert "measured in this store" in estimate(store.path, SPEC, steps=10, store=store).text()


def test_watch_counts_down_and_refuses_before_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = 10_000_000
    with EpisodeStore.create(tmp_path / "demos.zarr", SPEC) as store:
        store.append(make_episode(0, steps=5))
        watch = DiskWatch(store, reserve_bytes=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free))
        left, room = watch.left(), (9_000_000 - 20 * 12324) / 12324
        assert left.seconds == pytest.approx(room / 10)
        assert left.episodes == int(room / 5)
        assert left.text() == f"10000000 bytes free: room for {left.episodes} episodes or {left.seconds:.0f} s"
        watch.require_episode()
        free = 1_000_000 + 2 * 20 * 12324 - 1
        with pytest.raises(
            DataError, match=rf"demos\.zarr.*episode of 20 steps.*got {free} bytes.*1 episodes so far are safe"
        ):
            watch.require_episode()
