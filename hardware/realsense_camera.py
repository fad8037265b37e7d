"""The colour stream of a RealSense camera through pyrealsense2.

Never tried on a device: the machine this was written on has none. pyrealsense2 2.59 was loaded and asked for a serial
number that is not there; frames came from a stand-in.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from .camera_sources import OLDEST_STAMP_S, READ_TIMEOUT_S, CameraConfig, CameraError, CameraLost, Grab


@dataclass(frozen=True, kw_only=True)
class RealSenseConfig(CameraConfig):
    """The colour stream of a RealSense camera.

    Attributes:
        serial: serial number, as on the label.
    """

    serial: str


class RealSenseSource:
    """The colour stream of one RealSense, chosen by serial number.

    Stamps in the domains global_time and system_time are wall-clock times and are carried over to CLOCK_MONOTONIC at
    arrival; the device's own clock can't be, and then the time of arrival stands.
    """

    config_class = RealSenseConfig

    def __init__(self, config: RealSenseConfig) -> None:
        self.config = config
        self.stamps = "driver"
        self._pipeline: Any = None

    def open(self) -> None:
        """Start the pipeline of this serial number.

        Raises:
            CameraLost: no such device.
            CameraError: pyrealsense2 is missing, or the device does not have this mode.
        """
        config = self.config
        rs = _pyrealsense2(config.name)
        serials = [device.get_info(rs.camera_info.serial_number) for device in rs.context().query_devices()]
        if config.serial not in serials:
            raise CameraLost(f"no RealSense {config.serial}. Seen: {', '.join(serials) or 'none'}.")
        asked, pipeline = rs.config(), rs.pipeline()
        asked.enable_device(config.serial)
        asked.enable_stream(rs.stream.color, config.width, config.height, rs.format.rgb8, round(config.rate_hz))
        try:
            pipeline.start(asked)
        except RuntimeError as error:
            raise CameraError(
                f"camera {config.name!r}", expected=f"{config.width} x {config.height} rgb8 at {config.rate_hz:g} Hz",
                got=str(error), hint="`rs-enumerate-devices` lists its modes; USB 2 has fewer; another program has it?",
            ) from error  # fmt: skip
        self._pipeline = pipeline

    def grab(self) -> Grab:
        """The next frame."""
        rs = _pyrealsense2(self.config.name)
        try:
            came, frames = self._pipeline.try_wait_for_frames(READ_TIMEOUT_S * 1000)
        except RuntimeError as error:
            raise CameraLost(f"RealSense {self.config.serial}: {error}") from error
        frame = frames.get_color_frame() if came else None
        now_s, wall_s = time.monotonic(), time.time()
        if not frame:
            raise CameraLost(f"RealSense {self.config.serial} gives no frames")
        stamp_s = now_s - (wall_s - frame.get_timestamp() / 1000)
        is_wall = frame.get_frame_timestamp_domain() != rs.timestamp_domain.hardware_clock
        if not is_wall or not 0 <= now_s - stamp_s <= OLDEST_STAMP_S:
            self.stamps, stamp_s = "arrival", now_s
        image = np.array(frame.get_data(), dtype=np.uint8)
        return Grab(image, stamp_s, int(frame.get_frame_number()))

    def close(self) -> None:
        """Stop the pipeline; a lost device says so a second time, which is no news."""
        if self._pipeline is not None:
            with suppress(RuntimeError):
                self._pipeline.stop()
            self._pipeline = None


def _pyrealsense2(name: str) -> Any:
    try:
        import pyrealsense2
    except ImportError as error:
        raise CameraError(
            f"camera {name!r}", expected="the package pyrealsense2", got=str(error),
            hint="pip install 'robot-rl[realsense]', and libusb-1.0-0 from apt. This driver was never tried on a device.",
        ) from error  # fmt: skip
    return pyrealsense2
