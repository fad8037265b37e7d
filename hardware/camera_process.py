"""The process of one camera: it takes frames from a driver and puts them into shared memory. Started by cameras.py.

It ends when its parent closes the pipe on stdin or dies, within `GRACE_S` even if the driver hangs. Exit codes: 0 asked to
end, 3 the camera failed (the status says how), anything else: killed or crashed.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from robot_rl.errors import RobotRlError

from .camera_ring import SharedRing
from .camera_sources import CameraConfig, CameraError, CameraLost, Grab, Source

GRACE_S = 2.0
STATUS_SLOTS, STATUS_BYTES = 8, 4096
FAILED = 3
RETRY_S = 0.2
MOST_WRONG_SHAPES = 5
RATE_WINDOW = 31


@dataclass
class Counters:
    """What the process knows about its camera; written as JSON into the status ring after every frame and change."""

    state: str = "starting"
    message: str = ""
    frames: int = 0
    dropped: int = 0
    repeats: int = 0
    repeats_in_row: int = 0
    wrong_shapes: int = 0
    reconnects: int = 0
    stamps: str = ""
    rate_hz: float = 0.0
    newest_s: float | None = None
    failure: dict[str, str] = field(default_factory=dict)


class Worker:
    """The loop from driver to shared memory.

    Args:
        config: of the camera.
        source_class: its driver, built by `run`.
        frames, status: rings to write to.
    """

    source: Source

    def __init__(
        self, config: CameraConfig, source_class: Callable[[Any], Source], *, frames: SharedRing, status: SharedRing
    ) -> None:
        self.config, self.counters, self._source_class = config, Counters(), source_class
        self._frames, self._status = frames, status
        self._stamps: deque[float] = deque(maxlen=RATE_WINDOW)
        self._last_number: int | None = None
        self._last_stamp_s = 0.0
        self._last_image: np.ndarray | None = None

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or until the camera fails.

        Raises:
            CameraError: the camera is not there, is gone for too long, or sends pictures of another size.
        """
        self.publish()
        self.source = self._source_class(self.config)
        try:
            self._open_first()
            while not stop.is_set():
                try:
                    self._take(self.source.grab())
                except CameraLost as lost:
                    self._reconnect(str(lost), stop)
        finally:
            self.source.close()

    def publish(self) -> None:
        """Show the counters to the parent."""
        text = json.dumps(asdict(self.counters)).encode()
        if len(text) > STATUS_BYTES:
            short = {key: value[: STATUS_BYTES // 16] for key, value in self.counters.failure.items()}
            text = json.dumps({**asdict(self.counters), "message": "", "failure": short}).encode()
        self._status.write(text, stamp_s=time.monotonic())

    def fail(self, error: BaseException) -> None:
        """Say why the process ends."""
        if isinstance(error, RobotRlError):
            failure = {key: str(getattr(error, key)) for key in ("where", "expected", "got", "hint")}
        else:
            failure = {
                "where": f"camera {self.config.name!r}", "expected": "no exception in its driver",
                "got": f"{type(error).__name__}: {error}", "hint": "The traceback is on stderr.",
            }  # fmt: skip
        self.counters.state, self.counters.failure = "failed", failure
        self.publish()

    def _open_first(self) -> None:
        try:
            self.source.open()
        except CameraLost as lost:
            raise CameraError(
                f"camera {self.config.name!r}", expected="the device that is named", got=str(lost),
                hint="Plug it in, or correct the name; no other camera is taken in its place.",
            ) from lost  # fmt: skip

    def _take(self, grab: Grab) -> None:
        counters, shape = self.counters, (self.config.height, self.config.width, 3)
        if grab.image.shape != shape or grab.image.dtype != np.uint8:
            self._count_wrong(grab.image)
            return
        self._count_dropped(grab)
        is_repeat = self._last_image is not None and np.array_equal(grab.image, self._last_image)
        counters.repeats += is_repeat
        counters.repeats_in_row = counters.repeats_in_row + 1 if is_repeat else 0
        counters.state, counters.message, counters.stamps = "streaming", "", self.source.stamps
        if not (is_repeat and self.config.repeats_are_frozen):
            self._frames.write(np.ascontiguousarray(grab.image), stamp_s=grab.stamp_s)
            counters.frames += 1
            counters.newest_s = grab.stamp_s
            self._last_image = grab.image
        self.publish()

    def _count_dropped(self, grab: Grab) -> None:
        """Lost frames by the device's count, or by the gap between stamps where it has none."""
        if self._last_number is not None and grab.number is not None:
            missing = grab.number - self._last_number - 1
        else:
            missing = round((grab.stamp_s - self._last_stamp_s) * self.config.rate_hz) - 1 if self._stamps else 0
        self.counters.dropped += max(0, missing)
        self._last_number, self._last_stamp_s = grab.number, grab.stamp_s
        self._stamps.append(grab.stamp_s)
        if len(self._stamps) > 1:
            gaps = np.diff(self._stamps)
            self.counters.rate_hz = float(1 / max(gaps.mean(), 1e-6))

    def _count_wrong(self, image: np.ndarray) -> None:
        self.counters.wrong_shapes += 1
        self.publish()
        if self.counters.wrong_shapes >= MOST_WRONG_SHAPES:
            raise CameraError(
                f"camera {self.config.name!r}", expected=f"uint8 ({self.config.height}, {self.config.width}, 3)",
                got=f"{image.dtype} {image.shape} in {self.counters.wrong_shapes} frames",
                hint="Set width and height to what the camera sends, or find the program that changed its mode.",
            )  # fmt: skip

    def _reconnect(self, message: str, stop: threading.Event) -> None:
        """Look for the same device again until it is back; `reconnect_s` at most."""
        self.source.close()
        self.counters.state, self.counters.message = "disconnected", message
        self.publish()
        since = time.monotonic()
        while not stop.wait(RETRY_S):
            try:
                self.source.open()
            except (CameraLost, CameraError) as lost:
                # One that has just been plugged in may be listed and still refuse to start, or its mode.
                self.source.close()
                self.counters.message = str(lost)
                self.publish()
            else:
                self.counters.reconnects += 1
                self._last_number, self._last_image = None, None
                self._stamps.clear()
                return
            if time.monotonic() - since > self.config.reconnect_s:
                raise CameraError(
                    f"camera {self.config.name!r}", expected=f"the device back within {self.config.reconnect_s:g} s",
                    got=self.counters.message, hint="Check cable and hub, then connect again.",
                )  # fmt: skip


def main() -> int:
    """Read one line of JSON from stdin (what cameras.py wrote) and run until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = json.loads(os.fdopen(0, closefd=False).readline())
    stop = threading.Event()
    threading.Thread(target=_end_with_parent, args=(order["parent"], stop), daemon=True).start()
    sys.path[:] = order["path"]
    module, _, name = order["source"].rpartition(".")
    status = SharedRing(order["status_fd"], slots=STATUS_SLOTS, payload_bytes=STATUS_BYTES)
    source_class: Any = getattr(importlib.import_module(module), name)
    config: CameraConfig = source_class.config_class(**order["config"])
    frames = SharedRing(order["frames_fd"], slots=config.slots, payload_bytes=config.width * config.height * 3)
    worker = Worker(config, source_class, frames=frames, status=status)
    try:
        worker.run(stop)
    except Exception as error:
        if not isinstance(error, RobotRlError):
            traceback.print_exc()
        worker.fail(error)
        return FAILED
    return 0


def _end_with_parent(parent: int, stop: threading.Event) -> None:
    """Wait for the end of stdin or of the parent, ask the loop to end, and end it by force when the driver hangs.

    Both are watched: a fork of the parent may hold the pipe open. PR_SET_PDEATHSIG would kill the camera as soon as the
    thread that started it ends.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], 0.5)
        if readable and not os.read(0, 4096):
            break
    stop.set()
    time.sleep(GRACE_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
