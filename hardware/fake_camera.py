"""A camera without hardware: synthetic pictures or a recording, at its own rate, with faults on demand.

The same process, shared memory and checks stand around it as around a real camera; tests and tutorials use it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.errors import ConfigError

from .camera_sources import CameraConfig, CameraLost, Grab

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True, kw_only=True)
class FakeConfig(CameraConfig):
    """What the fake shows, and what goes wrong after how many frames (0: never).

    Attributes:
        recording: a folder of pictures in the order of their names, or an .npy file uint8 (T, H, W, 3); played in a
            loop. Empty: synthetic.
        pattern: synthetic: "moving" (a picture that shifts by a pixel a frame) or "flat" (one grey level a frame).
        latency_s: from capture to delivery.
        true_rate_hz: frames a second that really come; null: `rate_hz`.
        open_delay_s: before the first frame.
        freeze_after: then no frame comes for ever.
        repeat_after: then the same picture comes for ever.
        lost_after, lost_s: then the device is gone for so long; once.
        wrong_shape_after: then pictures are half as high.
        drop_every: every so many frames one is lost on the way.
        crash_after: then the driver raises what no driver should.
    """

    recording: str = ""
    pattern: str = "moving"
    latency_s: float = 0.0
    true_rate_hz: float | None = None
    open_delay_s: float = 0.0
    freeze_after: int = 0
    repeat_after: int = 0
    lost_after: int = 0
    lost_s: float = 1.0
    wrong_shape_after: int = 0
    drop_every: int = 0
    crash_after: int = 0


class FakeSource:
    """Plays frames on an absolute schedule; capture n is due n periods after the start, and its stamp says so."""

    config_class = FakeConfig

    def __init__(self, config: FakeConfig) -> None:
        self.config = config
        self.stamps = "driver"
        self._pictures = _pictures(config)
        self._period_s = 1 / (config.true_rate_hz or config.rate_hz)
        self._number = self._shown = 0
        self._start_s = self._back_s = 0.0
        self._was_lost = False

    def open(self) -> None:
        """Start the schedule. Raises CameraLost while the fake device is gone."""
        if time.monotonic() < self._back_s:
            raise CameraLost("the fake camera is unplugged")
        time.sleep(self.config.open_delay_s)
        self._start_s, self._number = time.monotonic(), 0

    def grab(self) -> Grab:
        """The next frame, after its latency; frames that are overdue are skipped, as a real device does."""
        config = self.config
        due = int((time.monotonic() - config.latency_s - self._start_s) / self._period_s)
        self._number = max(self._number + 1, due)
        if config.drop_every and self._number % config.drop_every == 0:
            self._number += 1
        self._shown += 1
        self._fail()
        stamp_s = self._start_s + self._number * self._period_s
        time.sleep(max(0.0, stamp_s + config.latency_s - time.monotonic()))
        index = config.repeat_after if config.repeat_after and self._shown > config.repeat_after else self._shown
        image = self._pictures.at(index)
        if config.wrong_shape_after and self._shown > config.wrong_shape_after:
            image = image[::2]
        return Grab(image, stamp_s, self._number)

    def close(self) -> None:
        """Nothing is held."""

    def _fail(self) -> None:
        config, shown = self.config, self._shown
        if config.crash_after and shown > config.crash_after:
            raise ValueError("the fake driver crashes, as asked")
        if config.lost_after and shown > config.lost_after and not self._was_lost:
            self._was_lost, self._back_s = True, time.monotonic() + config.lost_s
            raise CameraLost("the fake camera is unplugged")
        while config.freeze_after and shown > config.freeze_after:
            time.sleep(3600)


class _Synthetic:
    def __init__(self, config: FakeConfig) -> None:
        row, column = np.mgrid[: config.height, : 2 * config.width]
        planes = [column % 256, (row * 255) // config.height, ((row // 32 + column // 32) % 2) * 160 + 40]
        self._wide = np.stack(planes, axis=2).astype(np.uint8)
        self._width, self._is_flat = config.width, config.pattern == "flat"

    def at(self, index: int) -> np.ndarray:
        if self._is_flat:
            return np.full((len(self._wide), self._width, 3), index % 251, np.uint8)
        shift = index % self._width
        return np.ascontiguousarray(self._wide[:, shift : shift + self._width])


class _Recording:
    def __init__(self, config: FakeConfig) -> None:
        path, self._config = Path(config.recording), config
        self._array = np.load(path, mmap_mode="r", allow_pickle=False) if path.suffix == ".npy" else None
        folder = path.iterdir() if path.is_dir() else ()
        self._files = sorted(p for p in folder if p.suffix.lower() in PICTURES)
        self._length = len(self._files if self._array is None else self._array)
        if not self._length or (self._array is not None and (self._array.ndim != 4 or self._array.dtype != np.uint8)):
            raise ConfigError(
                f"camera {config.name!r}: recording", expected="a folder of pictures or an .npy of uint8 (T, H, W, 3)",
                got=config.recording, hint="Pictures: " + " ".join(PICTURES) + ".",
            )  # fmt: skip

    def at(self, index: int) -> np.ndarray:
        if self._array is not None:
            return np.array(self._array[index % self._length])
        from PIL import Image

        with Image.open(self._files[index % self._length]) as picture:
            return np.array(picture.convert("RGB"))


def _pictures(config: FakeConfig) -> _Synthetic | _Recording:
    if config.pattern not in ("moving", "flat"):
        raise ConfigError(f"camera {config.name!r}: pattern", expected="moving or flat", got=config.pattern, hint="")
    return _Recording(config) if config.recording else _Synthetic(config)
