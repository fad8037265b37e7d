"""UVC and RealSense drivers against stand-ins for their devices: names, modes, colours, times, and what is refused."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from robot_rl.errors import ConfigError
from robot_rl.hardware import camera_process, realsense_camera, uvc_camera
from robot_rl.hardware.camera_ring import SharedRing
from robot_rl.hardware.camera_sources import CameraConfig, CameraError, CameraLost, Grab
from robot_rl.hardware.realsense_camera import RealSenseConfig, RealSenseSource
from robot_rl.hardware.uvc_camera import UvcConfig, UvcSource, find_uvc, uvc_devices

cv2 = pytest.importorskip("cv2")
BY_ID = "/dev/v4l/by-id/usb-Maker_Cam_AB12-video-index0"


def file_system(root: Path, serials: list[str]) -> Path:
    """sysfs and /dev of USB cameras with these serial numbers; each has a picture node and a metadata node."""
    for folder in ("dev/v4l/by-id", "dev/v4l/by-path", "sys/class/video4linux"):
        (root / folder).mkdir(parents=True)
    for number, serial in enumerate(serials):
        usb = root / f"sys/devices/usb1/1-{number}"
        (usb / "interface").mkdir(parents=True)
        (usb / "serial").write_text(f"{serial}\n")
        for index in (0, 1):
            name = f"video{2 * number + index}"
            node = root / "sys/class/video4linux" / name
            node.mkdir()
            (node / "index").write_text(f"{index}\n")
            (node / "device").symlink_to(usb / "interface")
            (root / "dev" / name).touch()
            (root / f"dev/v4l/by-path/pci-usb-{number}-video-index{index}").symlink_to(f"../../{name}")
            link = root / f"dev/v4l/by-id/usb-Maker_Cam_{serial}-video-index{index}"
            if not link.is_symlink():
                link.symlink_to(f"../../{name}")
    return root


def test_stable_names_lead_to_the_node_of_today(tmp_path: Path) -> None:
    root = file_system(tmp_path, ["AB12", "CD34"])
    assert uvc_devices(root) == {
        "/dev/video0": ["serial:AB12", BY_ID, "/dev/v4l/by-path/pci-usb-0-video-index0"],
        "/dev/video2": [
            "serial:CD34", "/dev/v4l/by-id/usb-Maker_Cam_CD34-video-index0", "/dev/v4l/by-path/pci-usb-1-video-index0",
        ],
    }  # fmt: skip
    for name in ("serial:CD34", "/dev/v4l/by-path/pci-usb-1-video-index0"):
        assert find_uvc(name, where="camera", root=root) == "/dev/video2"


@pytest.mark.parametrize("name", ["0", "/dev/video0", "video2", ""])
def test_name_that_does_not_stay_with_its_camera_is_refused(tmp_path: Path, name: str) -> None:
    root = file_system(tmp_path, ["AB12"])
    with pytest.raises(ConfigError, match=f"(?s)may be another camera.*Seen: serial:AB12, {BY_ID}"):
        find_uvc(name, where="camera 'wrist'", root=root)


def test_two_cameras_with_one_serial_number_are_told_apart_by_socket(tmp_path: Path) -> None:
    root = file_system(tmp_path, ["SN0001", "SN0001"])
    with pytest.raises(CameraError, match=r"one camera with serial:SN0001, got /dev/video0, /dev/video2.*by-path"):
        find_uvc("serial:SN0001", where="camera 'wrist'", root=root)
    assert find_uvc("/dev/v4l/by-path/pci-usb-1-video-index0", where="", root=root) == "/dev/video2"


def test_absent_camera_is_not_replaced_by_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(CameraLost, match=r"no camera serial:ZZ.*Seen: serial:AB12"):
        find_uvc("serial:ZZ", where="", root=file_system(tmp_path, ["AB12"]))


class Capture:
    """What UvcSource uses of cv2.VideoCapture."""

    sizes = (64, 48)
    stamp_s: float | None = None
    has_frames = is_open = True

    def __init__(self, node: str, backend: int) -> None:
        assert (node, backend) == ("/dev/video0", cv2.CAP_V4L2)
        self.set_to: dict[int, float] = {}

    def isOpened(self) -> bool:
        return self.is_open

    def set(self, key: int, value: float) -> bool:
        self.set_to[key] = value
        return True

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return 1000 * (time.monotonic() - 0.02 if self.stamp_s is None else self.stamp_s)
        return float(self.sizes[key - cv2.CAP_PROP_FRAME_WIDTH])

    def read(self) -> tuple[bool, np.ndarray | None]:
        blue = np.zeros((48, 64, 3), np.uint8)
        blue[:, :, 0] = 200  # OpenCV's order is blue, green, red
        return self.has_frames, blue

    def release(self) -> None:
        self.is_open = False


@pytest.fixture
def uvc(monkeypatch: pytest.MonkeyPatch) -> tuple[UvcSource, type[Capture]]:
    stand_in = type("StandIn", (Capture,), {})
    monkeypatch.setattr(cv2, "VideoCapture", stand_in)
    monkeypatch.setattr(uvc_camera, "find_uvc", lambda device, where: "/dev/video0")
    return UvcSource(UvcConfig(name="wrist", device=BY_ID, width=64, height=48, exposure=150.0)), stand_in


def test_uvc_gives_rgb_and_the_drivers_stamp(uvc: tuple[UvcSource, type[Capture]]) -> None:
    source, _ = uvc
    source.open()
    before_s = time.monotonic()
    grab = source.grab()
    assert (
        before_s - 0.021 < grab.stamp_s < time.monotonic() - 0.019
    )  # 20 ms before it was asked for, however busy it is here
    assert np.array_equal(np.unique(grab.image.reshape(-1, 3), axis=0), [[0, 0, 200]])
    assert source.stamps == "driver"
    asked = source._capture.set_to
    assert asked[cv2.CAP_PROP_FOURCC] == int.from_bytes(b"MJPG", "little")
    assert (asked[cv2.CAP_PROP_EXPOSURE], asked[cv2.CAP_PROP_AUTOFOCUS]) == (150.0, 0.0)
    source.close()
    source.close()


@pytest.mark.parametrize("stamp_s", [0.0, 1.7e9])
def test_uvc_stamps_of_another_clock_become_times_of_arrival(
    uvc: tuple[UvcSource, type[Capture]], stamp_s: float
) -> None:
    source, stand_in = uvc
    stand_in.stamp_s = stamp_s
    source.open()
    before_s = time.monotonic()
    assert before_s <= source.grab().stamp_s <= time.monotonic()
    assert source.stamps == "arrival"


def test_uvc_frame_that_waited_in_the_driver_is_as_old_as_it_says(uvc: tuple[UvcSource, type[Capture]]) -> None:
    source, stand_in = uvc
    source.open()
    source.grab()
    stand_in.stamp_s = waited_s = time.monotonic() - 2.5  # this process stood still meanwhile
    assert source.grab().stamp_s == pytest.approx(waited_s, abs=1e-3)
    assert source.stamps == "driver"


def test_uvc_refuses_another_mode_and_tells_of_a_lost_device(uvc: tuple[UvcSource, type[Capture]]) -> None:
    source, stand_in = uvc
    stand_in.sizes = (640, 480)
    with pytest.raises(CameraError, match="expected 64 x 48 MJPG, got 640 x 480"):
        source.open()
    stand_in.sizes = (64, 48)
    source.open()
    stand_in.has_frames = False
    with pytest.raises(CameraLost, match="no frames"):
        source.grab()
    stand_in.is_open = False
    with pytest.raises(CameraLost, match="another program"):
        source.open()


def realsense(monkeypatch: pytest.MonkeyPatch, *, domain: str = "global_time", age_s: float = 0.03) -> dict[str, Any]:
    """A stand-in for pyrealsense2 with one device, number 123; returns what it was asked."""
    asked: dict[str, Any] = {}
    frame = SimpleNamespace(
        get_timestamp=lambda: 1000 * (time.time() - age_s), get_frame_number=lambda: 7,
        get_frame_timestamp_domain=lambda: domain, get_data=lambda: np.full((48, 64, 3), 9, np.uint8),
    )  # fmt: skip
    stream = SimpleNamespace(
        start=lambda config: None, stop=lambda: asked.update(stopped=True),
        try_wait_for_frames=lambda ms: (not asked.get("silent"), SimpleNamespace(get_color_frame=lambda: frame)),
    )  # fmt: skip
    module = SimpleNamespace(
        context=lambda: SimpleNamespace(query_devices=lambda: [SimpleNamespace(get_info=lambda key: "123")]),
        camera_info=SimpleNamespace(serial_number="serial"), stream=SimpleNamespace(color="color"),
        format=SimpleNamespace(rgb8="rgb8"), pipeline=lambda: stream,
        config=lambda: SimpleNamespace(
            enable_device=lambda serial: asked.update(serial=serial), enable_stream=lambda *mode: asked.update(mode=mode)
        ),
        timestamp_domain=SimpleNamespace(hardware_clock="hardware_clock"),
    )  # fmt: skip
    monkeypatch.setattr(realsense_camera, "_pyrealsense2", lambda name: module)
    return asked


@pytest.mark.parametrize(("domain", "stamps"), [("global_time", "driver"), ("hardware_clock", "arrival")])
def test_realsense_carries_its_times_over_to_our_clock(
    monkeypatch: pytest.MonkeyPatch, domain: str, stamps: str
) -> None:
    asked = realsense(monkeypatch, domain=domain, age_s=0.2)
    source = RealSenseSource(RealSenseConfig(name="wrist", serial="123", width=64, height=48))
    source.open()
    grab = source.grab()
    assert (asked["serial"], asked["mode"]) == ("123", ("color", 64, 48, "rgb8", 30))
    age_s = time.monotonic() - grab.stamp_s
    assert age_s > 0.19 if stamps == "driver" else age_s < 0.19
    assert (source.stamps, grab.number) == (stamps, 7)
    asked["silent"] = True
    with pytest.raises(CameraLost, match="no frames"):
        source.grab()
    source.close()
    assert asked["stopped"]


def test_realsense_takes_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    realsense(monkeypatch)
    with pytest.raises(CameraLost, match=r"no RealSense 999\. Seen: 123"):
        RealSenseSource(RealSenseConfig(name="wrist", serial="999")).open()


def test_realsense_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(CameraError, match=r"robot-rl\[realsense\].*never tried on a device"):
        RealSenseSource(RealSenseConfig(name="wrist", serial="123")).open()


def test_a_camera_that_is_back_and_does_not_start_at_once_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_process, "RETRY_S", 0.01)
    config, stop, opened, closed = CameraConfig(name="wrist", width=4, height=4), threading.Event(), [0], [0]

    class Source:
        stamps = "driver"

        def __init__(self, config: CameraConfig) -> None:
            self.frames = 0

        def open(self) -> None:
            opened[0] += 1
            if opened[0] == 2:
                raise CameraError("camera 'wrist'", expected="its mode", got="busy", hint="Wait.")

        def grab(self) -> Grab:
            self.frames += 1
            if self.frames == 2:
                raise CameraLost("unplugged")
            if self.frames == 3:
                stop.set()
            return Grab(np.full((4, 4, 3), self.frames, np.uint8), time.monotonic(), None)

        def close(self) -> None:
            closed[0] += 1

    def ring(slots: int, payload_bytes: int) -> SharedRing:
        fd = SharedRing.create_memory("test", slots=slots, payload_bytes=payload_bytes)
        return SharedRing(fd, slots=slots, payload_bytes=payload_bytes)

    worker = camera_process.Worker(
        config, Source, frames=ring(3, 48), status=ring(camera_process.STATUS_SLOTS, camera_process.STATUS_BYTES)
    )
    worker.run(stop)
    assert (opened, worker.counters.reconnects, worker.counters.frames) == ([3], 1, 2)
    assert closed == [3]  # when it was lost, behind the start that failed, and at the end
