"""What a camera driver is: its configuration, its frames, and how it says that the device is gone.

A driver runs inside its camera's own process (camera_process.py). Ours: uvc_camera.py, realsense_camera.py,
fake_camera.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from robot_rl.arrays import Array, UInt8
from robot_rl.errors import ConfigError, DeployError

OLDEST_STAMP_S = 1.0
READ_TIMEOUT_S = 2


class CameraError(DeployError):
    """A camera is missing, lost, frozen at the start, wrong in shape or rate, or its process died."""


class CameraLost(Exception):
    """The device is gone or gives no frames; it may come back. Only between a source and its process."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """What every camera has.

    Attributes:
        name: as in the spec's key image/<name>.
        width, height: pixels.
        rate_hz: frames a second.
        slots: frames kept in shared memory.
        warmup_frames: thrown away at the start (exposure settles); their rate is judged.
        rate_tolerance: largest relative error of the rate; at the start it is an error, later a problem in the status.
        connect_timeout_s: longest wait for the first frames.
        frozen_after_s: a streaming camera whose newest frame is older counts as frozen.
        reconnect_s: how long a lost camera is looked for before its process gives up.
        repeats_are_frozen: a picture equal to the one before, bit for bit, is no new frame: it keeps the old stamp.
            Switch it off for rendered cameras; a real sensor has noise.
    """

    name: str
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    slots: int = 6
    warmup_frames: int = 15
    rate_tolerance: float = 0.2
    connect_timeout_s: float = 10.0
    frozen_after_s: float = 0.5
    reconnect_s: float = 30.0
    repeats_are_frozen: bool = True

    def __post_init__(self) -> None:
        smallest = {"width": 1, "height": 1, "slots": 3, "warmup_frames": 1}
        for key, least in smallest.items():
            if getattr(self, key) < least:
                raise ConfigError(
                    f"camera {self.name!r}: {key}", expected=f"at least {least}", got=str(getattr(self, key)), hint=""
                )
        for key in ("rate_hz", "rate_tolerance", "connect_timeout_s", "frozen_after_s"):
            if not getattr(self, key) > 0:
                raise ConfigError(
                    f"camera {self.name!r}: {key}", expected="above 0", got=str(getattr(self, key)), hint=""
                )


@dataclass(frozen=True)
class Grab:
    """One frame as a source gives it.

    Attributes:
        image: uint8 (H, W, 3), RGB; the source does not write to it again.
        stamp_s: capture, CLOCK_MONOTONIC seconds.
        number: the device's own count, or None where it has none.
    """

    image: UInt8[Array, "H W 3"]
    stamp_s: float
    number: int | None = None


class Source(Protocol):
    """A driver: a class with `config_class` (a CameraConfig), built in the camera's process as `Driver(config)`.

    Attributes:
        stamps: "driver" when stamps are the device's or the driver's times of capture, "arrival" when it has none.
    """

    stamps: str

    def open(self) -> None:
        """Find and start the device. Raises CameraLost when it is not there."""
        ...

    def grab(self) -> Grab:
        """Wait for the next frame. Raises CameraLost when none comes."""
        ...

    def close(self) -> None:
        """Release the device; also when it is lost."""
        ...
