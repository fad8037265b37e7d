"""Cameras in their own processes: newest frame and stamp, and every way a camera can stop being one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_rl.contracts import Camera
from robot_rl.errors import ConfigError
from robot_rl.hardware.camera_sources import CameraConfig, CameraError
from robot_rl.hardware.cameras import ProcessCamera, fake_camera
from robot_rl.hardware.fake_camera import FakeConfig, FakeSource
from robot_rl.types import CameraFrame

PATIENCE_S = 20.0


def config(**changes: Any) -> FakeConfig:
    """A small, fast fake whose rate a loaded machine may miss."""
    quick = {"width": 64, "height": 48, "rate_hz": 60.0, "warmup_frames": 3, "rate_tolerance": 10.0, "pattern": "flat"}
    return FakeConfig(**{"name": "wrist", "connect_timeout_s": PATIENCE_S, **quick, **changes})


@pytest.fixture
def opened() -> Iterator[Callable[..., ProcessCamera]]:
    made: list[ProcessCamera] = []

    def connect(**changes: Any) -> ProcessCamera:
        made.append(fake_camera(config(**changes)))
        made[-1].connect()
        return made[-1]

    yield connect
    for camera in made:
        camera.close()


def wait_for(fact: Callable[[], bool], what: str) -> float:
    """Seconds until `fact` holds."""
    start = time.monotonic()
    while not fact():
        assert time.monotonic() - start < PATIENCE_S, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.005)
    return time.monotonic() - start


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def mapping(name: str) -> set[int]:
    """Processes that map memory of this name."""
    found = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if name in maps.read_text():
                found.add(int(maps.parent.name))
    return found


def test_frames_come_in_order_with_their_own_pictures(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened()
    assert isinstance(camera, Camera)
    assert camera.name == "wrist"
    seen: dict[int, CameraFrame] = {}

    def ten() -> bool:
        frame = camera.read()
        seen.setdefault(frame.sequence, frame)
        return len(seen) >= 10

    wait_for(ten, "ten frames")
    frames = list(seen.values())
    assert [f.sequence for f in frames] == sorted(seen)
    for before, after in pairwise(frames):
        assert after.stamp_s > before.stamp_s
    for frame in frames:  # the n-th picture of the flat pattern has the grey level n
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert np.array_equal(np.unique(frame.image), [frame.sequence % 251])
    assert not frames[0].image.flags.writeable
    assert camera.read().stamp_s <= time.monotonic()


def test_stamp_is_the_time_of_capture_and_not_of_arrival(opened: Callable[..., ProcessCamera]) -> None:
    frame = opened(latency_s=0.15).read()
    assert time.monotonic() - frame.stamp_s >= 0.15


def test_same_frame_comes_again_when_there_is_no_newer(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened(freeze_after=5)
    wait_for(lambda: camera.read().sequence == 5, "the last frame")
    assert camera.read() is camera.read()


@pytest.mark.parametrize("fault", ["freeze_after", "repeat_after"])
def test_frozen_camera_holds_nobody_up_and_ages(opened: Callable[..., ProcessCamera], fault: str) -> None:
    camera = opened(**{fault: 8}, frozen_after_s=0.3)
    wait_for(lambda: camera.status().state == "frozen", "frozen")
    start, frame = time.monotonic(), camera.read()
    for _ in range(200):
        assert camera.read() is frame
    assert time.monotonic() - start < 2.0  # 200 reads; a driver that hangs hangs for an hour
    assert frame.sequence == 8
    status = camera.status()
    assert status.age_s > 0.3
    assert "no new picture" in status.problems[0]
    if fault == "repeat_after":
        wait_for(lambda: camera.status().repeats_in_row >= 10, "repeats are counted")
        assert camera.status().repeats >= camera.status().repeats_in_row >= 10
        assert camera.status().frames == 8


def test_repeats_count_as_frames_where_pictures_are_rendered(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened(repeat_after=4, repeats_are_frozen=False)
    wait_for(lambda: camera.read().sequence >= 10, "frames go on")
    assert camera.status().repeats >= 5


def test_lost_device_comes_back_as_the_same_camera(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened(lost_after=8, lost_s=0.5)
    wait_for(lambda: camera.status().state == "disconnected", "disconnected")
    old = camera.read()
    assert "unplugged" in camera.status().problems[0]
    wait_for(lambda: camera.read().sequence > old.sequence + 3, "frames after the loss")
    status = camera.status()
    assert (status.state, status.reconnects) == ("streaming", 1)
    assert camera.read().stamp_s - old.stamp_s >= 0.5


def test_device_that_stays_away_ends_in_a_named_error(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened(lost_after=8, lost_s=1000.0, reconnect_s=0.4)
    wait_for(lambda: camera.status().state == "failed", "failed")
    with pytest.raises(CameraError, match=r"camera 'wrist'.*back within 0\.4 s.*unplugged"):
        camera.read()


def test_killed_process_is_a_named_error_and_can_be_started_again(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened()
    assert camera.pid is not None
    os.kill(camera.pid, signal.SIGKILL)

    start = time.monotonic()
    with pytest.raises(CameraError, match=r"camera 'wrist'.*SIGKILL"):
        wait_for(lambda: not camera.read(), "the error")
    assert time.monotonic() - start < 2.0
    assert camera.status().state == "failed"
    camera.connect()
    assert camera.read().sequence >= 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wrong_shape_after": 1}, r"expected uint8 \(48, 64, 3\), got uint8 \(24, 64, 3\)"),
        ({"true_rate_hz": 20.0, "rate_tolerance": 0.2}, r"expected 60 frames a second .* got (1\d|20)"),
        ({"crash_after": 1}, "got ValueError: the fake driver crashes"),
        ({"freeze_after": 1, "connect_timeout_s": 1.5}, r"expected 3 frames within 1\.5 s, got (0|1) frames"),
        ({"repeat_after": 1, "connect_timeout_s": 1.5}, r"expected 3 frames within 1\.5 s"),
        ({"recording": "/nowhere"}, "recording: expected a folder of pictures"),
    ],
)
def test_camera_that_is_not_as_configured_does_not_connect(changes: dict[str, Any], says: str) -> None:
    camera = fake_camera(config(**changes))
    with pytest.raises(CameraError, match=says):
        camera.connect()
    assert camera.status().state == "closed"
    assert camera.pid is None


def test_dropped_frames_are_counted_by_the_devices_number(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened(drop_every=4)
    wait_for(lambda: camera.status().frames >= 30, "frames")
    status = camera.status()
    assert status.dropped >= status.frames // 3 - 1  # 1 of 4 is lost: one for every three that come


def test_closed_camera_says_so_and_closes_twice(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened()
    pid = camera.pid
    assert pid is not None
    camera.close()
    camera.close()
    assert not is_alive(pid)
    assert camera.status().state == "closed"
    with pytest.raises(CameraError, match="connect"):
        camera.read()


def test_forked_child_that_ends_leaves_the_camera_alone(opened: Callable[..., ProcessCamera]) -> None:
    camera = opened()
    child = os.fork()
    if not child:
        camera.close()
        os._exit(0)
    os.waitpid(child, 0)
    sequence = camera.read().sequence
    wait_for(lambda: camera.read().sequence > sequence + 3, "frames go on")


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background of a shell inherits SIG_IGN
from robot_rl.hardware.cameras import fake_camera
from robot_rl.hardware.fake_camera import FakeConfig
cameras = [fake_camera(FakeConfig(name=f"{sys.argv[2]}-{i}", width=64, height=48, warmup_frames=2, rate_tolerance=10.0,
                                  freeze_after=3 * i)) for i in range(2)]
for camera in cameras:
    camera.connect()
print(*[camera.pid for camera in cameras], flush=True)
how = sys.argv[1]
if how == "exit":
    sys.exit(0)
if how == "raise":
    raise ValueError("a bug")
try:
    while True:
        cameras[0].read()
        time.sleep(0.001)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", ["exit", "raise", "SIGKILL", "SIGTERM", "SIGINT"])
def test_nothing_is_left_when_the_parent_ends(how: str, tmp_path: Path) -> None:
    """The second camera's driver hangs, so that it has to be ended by force. Ctrl-C reaches the whole group."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, how, tmp_path.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    pids: list[int] = []
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if how.startswith("SIG"):
            assert mapping(f"memfd:camera-{tmp_path.name}") >= {parent.pid, *pids}
        if how.startswith("SIG"):
            os.killpg(parent.pid, getattr(signal, how))
        out, err = parent.communicate(timeout=PATIENCE_S)
        wait_for(lambda: not any(is_alive(pid) for pid in pids), "the cameras' processes end")
    finally:
        parent.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert mapping(f"memfd:camera-{tmp_path.name}") == set()  # and without a name, memory ends with its last process
    if how == "SIGINT":
        assert out == "interrupted\n"
        assert err == ""
    assert "camera_process" not in err


def test_recording_is_played_in_the_order_of_names(tmp_path: Path, opened: Callable[..., ProcessCamera]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "recording.npy", pictures)
    frame = opened(recording=str(tmp_path / "recording.npy")).read()
    assert np.array_equal(frame.image, pictures[frame.sequence % 5])
    from PIL import Image

    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index:02}.png")
    source = FakeSource(config(recording=str(tmp_path), rate_hz=1000.0))
    source.open()
    assert np.array_equal(source.grab().image, pictures[1])


@pytest.mark.parametrize("changes", [{"slots": 2}, {"rate_hz": 0.0}, {"width": 0}])
def test_wrong_configuration_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        CameraConfig(name="x", **changes)
