"""UVC (USB) cameras through OpenCV's V4L2 back end.

A camera is named by what stays with it: its serial number, or its path under /dev/v4l/by-id or by-path. An index or
/dev/video0 is refused: it is another camera after the next plug or boot.

Not tried on a device: the machine this was written on has none. It ran against a stand-in for cv2.VideoCapture and a
stand-in for sysfs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError

from .camera_sources import OLDEST_STAMP_S, READ_TIMEOUT_S, CameraConfig, CameraError, CameraLost, Grab


@dataclass(frozen=True, kw_only=True)
class UvcConfig(CameraConfig):
    """A UVC (USB) camera.

    Attributes:
        device: "/dev/v4l/by-id/...", "/dev/v4l/by-path/..." or "serial:<serial number>".
        pixel_format: FOURCC; MJPG lets several cameras share a bus, YUYV has no compression.
        exposure: in the driver's unit, or null for automatic. Automatic exposure may halve the rate in the dark.
        autofocus: moving focus makes a calibration wrong.
    """

    device: str
    pixel_format: str = "MJPG"
    exposure: float | None = None
    autofocus: bool = False


def uvc_devices(root: Path = Path("/")) -> dict[str, list[str]]:
    """Every capture node of this machine -> the stable names it has: by-id, by-path and serial:<...>.

    Args:
        root: of the file system (for tests).
    """
    found: dict[str, list[str]] = {}
    for node in sorted((root / "sys/class/video4linux").glob("video*")):
        index = node / "index"
        if index.is_file() and index.read_text(encoding="utf-8").strip() != "0":
            continue  # a second node of the same camera carries metadata
        found[f"/dev/{node.name}"] = []
        serial = (node / "device").resolve().parent / "serial"
        if serial.is_file():
            found[f"/dev/{node.name}"].append(f"serial:{serial.read_text(encoding='utf-8').strip()}")
    for link in sorted((root / "dev/v4l").glob("by-*/*")):
        target = f"/dev/{link.resolve().name}"
        if target in found:
            found[target].append(f"/dev/v4l/{link.parent.name}/{link.name}")
    return found


def find_uvc(device: str, *, where: str, root: Path = Path("/")) -> str:
    """The /dev/videoN that a stable name means now.

    Raises:
        ConfigError: a name that does not stay with its camera.
        CameraError: two cameras with this serial number.
        CameraLost: no such camera.
    """
    if not device.startswith(("serial:", "/dev/v4l/by-id/", "/dev/v4l/by-path/")):
        raise ConfigError(
            f"{where}: device", expected="/dev/v4l/by-id/..., /dev/v4l/by-path/... or serial:...", got=repr(device),
            hint="An index or /dev/video0 may be another camera tomorrow. " + _seen(uvc_devices(root)),
        )  # fmt: skip
    devices = uvc_devices(root)
    nodes = [node for node, names in devices.items() if device in names]
    if len(nodes) > 1:
        raise CameraError(
            f"{where}: device", expected=f"one camera with {device}", got=", ".join(nodes),
            hint="These share a serial number: name them by /dev/v4l/by-path/... (the socket).",
        )  # fmt: skip
    if not nodes:
        raise CameraLost(f"no camera {device}. {_seen(devices)}")
    return nodes[0]


def _seen(devices: Mapping[str, list[str]]) -> str:
    names = [name for names in devices.values() for name in names]
    return f"Seen: {', '.join(names) or 'no camera at all'}."


class UvcSource:
    """UVC through OpenCV's V4L2 back end. Capture stamps are the driver's own (V4L2 buffers, CLOCK_MONOTONIC)."""

    config_class = UvcConfig

    def __init__(self, config: UvcConfig) -> None:
        self.config = config
        self.stamps = "driver"
        self._is_our_clock = False
        self._capture: Any = None

    def open(self) -> None:
        """Open the device, set the mode and check that it was taken.

        Raises:
            CameraLost: the device is not there, or is busy.
            CameraError: it does not have this mode.
        """
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(READ_TIMEOUT_S))
        import cv2

        config = self.config
        node = find_uvc(config.device, where=f"camera {config.name!r}")
        capture = cv2.VideoCapture(node, cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraLost(f"{config.device} ({node}) can't be opened; another program has it, or no permission")
        self._capture = capture
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.pixel_format))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
        capture.set(cv2.CAP_PROP_FPS, config.rate_hz)
        capture.set(cv2.CAP_PROP_AUTOFOCUS, float(config.autofocus))
        if config.exposure is not None:
            capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, 1)  # V4L2_EXPOSURE_MANUAL
            capture.set(cv2.CAP_PROP_EXPOSURE, config.exposure)
        got = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        if got != (config.width, config.height):
            raise CameraError(
                f"camera {config.name!r}", expected=f"{config.width} x {config.height} {config.pixel_format}",
                got=f"{got[0]} x {got[1]}", hint="`v4l2-ctl --list-formats-ext -d DEVICE` lists the modes it has.",
            )  # fmt: skip

    def grab(self) -> Grab:
        """The next frame."""
        import cv2

        came, image = self._capture.read()
        now_s = time.monotonic()
        if not came:
            raise CameraLost(f"{self.config.device} gives no frames")
        stamp_s = float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
        # Known once from a fresh frame: one that waited in the driver while this process stood still is as old as it says.
        self._is_our_clock |= 0 <= now_s - stamp_s <= OLDEST_STAMP_S
        if self._is_our_clock and 0 < stamp_s <= now_s:
            self.stamps = "driver"
        else:  # no buffer times, or those of another clock
            self.stamps, stamp_s = "arrival", now_s
        return Grab(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp_s)

    def close(self) -> None:
        """Release the device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None
