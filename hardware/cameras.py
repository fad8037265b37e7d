"""Cameras: the newest frame and the time it was taken, from a process of its own; a frozen camera never holds up a loop.

    camera = uvc_camera(UvcConfig(name="wrist", device="/dev/v4l/by-id/usb-...-video-index0"))
    with camera:                              # connect: waits for frames, checks shape and rate
        frame = camera.read()                 # never waits; frame.stamp_s tells how old it is
        age_s = time.monotonic() - frame.stamp_s

Drivers are in uvc_camera.py, realsense_camera.py and fake_camera.py, the process in camera_process.py, the shared memory in
camera_ring.py. Linux only (memfd, CLOCK_MONOTONIC shared by processes).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from robot_rl.types import CameraFrame, CameraStatus

from .camera_process import GRACE_S, STATUS_BYTES, STATUS_SLOTS
from .camera_ring import SharedRing
from .camera_sources import CameraConfig, CameraError
from .fake_camera import FakeConfig
from .realsense_camera import RealSenseConfig
from .uvc_camera import UvcConfig

POLL_S = 0.005
KILLED_WITHIN_S = 2.0


class ProcessCamera:
    """A camera whose driver runs in a process of its own.

    The process ends with `close`, with this object, and with this process however that ends (SIGKILL included: within
    0.5 s, and `GRACE_S` more when the driver hangs). Ctrl-C reaches this process alone. If the camera's process dies,
    the next `read` raises; nothing is waited for.

    Args:
        config: of the camera.
        source: dotted name of the driver: a class with `config_class`, see camera_sources.Source.
    """

    def __init__(self, config: CameraConfig, source: str) -> None:
        self.config, self._source = config, source
        self._process: subprocess.Popen[bytes] | None = None
        self._frames: SharedRing | None = None
        self._status: SharedRing | None = None
        self._newest: CameraFrame | None = None
        self._told: dict[str, Any] = {}
        self._told_sequence = 0
        self._end: Any = None

    @property
    def name(self) -> str:
        """As in the key image/<name>."""
        return self.config.name

    @property
    def pid(self) -> int | None:
        """Of the camera's process; None when closed."""
        return None if self._process is None else self._process.pid

    def connect(self) -> None:
        """See Camera.connect. Waits `connect_timeout_s` at most for `warmup_frames` frames."""
        self.close()
        self._start()
        until = time.monotonic() + self.config.connect_timeout_s
        try:
            while self._counters().get("frames", 0) < self.config.warmup_frames:
                self._require_process()
                if time.monotonic() > until:
                    raise self._too_few()
                time.sleep(POLL_S)
            self._judge_rate()
            self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> CameraFrame:
        """See Camera.read."""
        self._require_process()
        newest = self._newest
        assert self._frames is not None
        entry = self._frames.read(after=newest.sequence if newest else 0)
        if entry is not None:
            image = np.frombuffer(entry.payload, np.uint8).reshape(self.config.height, self.config.width, 3)
            image.flags.writeable = False
            newest = self._newest = CameraFrame(image, entry.stamp_s, entry.sequence)
        if newest is None:
            raise self._error("a frame", "none yet", "Call connect() first; it waits for the first frames.")
        return newest

    def status(self) -> CameraStatus:
        """See Camera.status."""
        told, config = self._counters(), self.config
        if self._process is None:
            return CameraStatus(config.name, "closed")
        shown = ("frames", "dropped", "repeats", "repeats_in_row", "wrong_shapes", "reconnects", "rate_hz", "stamps")
        newest_s, state, problems = told.get("newest_s"), told.get("state", "starting"), []
        age_s = float("inf") if newest_s is None else time.monotonic() - newest_s
        if self._process.poll() is not None:
            state = "failed"
            problems.append(str(self._why_dead()))
        elif state == "disconnected":
            problems.append(f"disconnected: {told['message']}")
        elif state == "streaming" and age_s > config.frozen_after_s:
            state = "frozen"
            problems.append(f"frozen: no new picture for {age_s:.2f} s, {told['repeats_in_row']} repeats in a row")
        if state == "streaming" and self._is_wrong_rate(told["rate_hz"]):
            problems.append(f"rate {told['rate_hz']:.1f} Hz instead of {config.rate_hz:g}")
        if told.get("wrong_shapes"):
            problems.append(f"{told['wrong_shapes']} pictures of another size")
        return CameraStatus(
            config.name, state, age_s, problems=tuple(problems), **{key: told[key] for key in shown if key in told}
        )

    def close(self) -> None:
        """See Camera.close. Takes `GRACE_S` + 2 s at most."""
        if self._end is not None:
            self._end()
        self._process = self._frames = self._status = self._newest = self._end = None
        self._told, self._told_sequence = {}, 0

    def __enter__(self) -> ProcessCamera:
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        config = self.config
        sizes = {"frames": (config.slots, config.width * config.height * 3), "status": (STATUS_SLOTS, STATUS_BYTES)}
        fds = {
            key: SharedRing.create_memory(f"camera-{config.name}-{key}", slots=slots, payload_bytes=size)
            for key, (slots, size) in sizes.items()
        }
        try:
            rings = {key: SharedRing(fds[key], slots=sizes[key][0], payload_bytes=sizes[key][1]) for key in fds}
            self._frames, self._status = rings["frames"], rings["status"]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "robot_rl.hardware.camera_process"], stdin=subprocess.PIPE,
                pass_fds=tuple(fds.values()), start_new_session=True,
            )  # fmt: skip
        finally:
            for fd in fds.values():
                os.close(fd)
        self._end = weakref.finalize(self, _end_process, self._process, os.getpid())
        order = {
            "parent": os.getpid(), "path": sys.path, "source": self._source, "config": asdict(config),
            "frames_fd": fds["frames"], "status_fd": fds["status"],
        }  # fmt: skip
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; the wait for frames says how
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _counters(self) -> dict[str, Any]:
        entry = self._status.read(after=self._told_sequence) if self._status else None
        if entry is not None:
            self._told, self._told_sequence = json.loads(bytes(entry.payload)), entry.sequence
        return self._told

    def _require_process(self) -> None:
        if self._process is None:
            raise self._error("a connected camera", "none", "Call connect() first.")
        if self._process.poll() is not None or self._counters().get("state") == "failed":
            raise self._why_dead()

    def _why_dead(self) -> CameraError:
        failure = self._counters().get("failure")
        if failure:
            return CameraError(failure["where"], **{key: failure[key] for key in ("expected", "got", "hint")})
        code = self._process.returncode if self._process else 0
        how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return self._error(
            "its process alive", how, "Call connect() to start it again; `dmesg` tells of the out-of-memory killer."
        )

    def _too_few(self) -> CameraError:
        told, config = self._counters(), self.config
        got = f"{told.get('frames', 0)} frames, {told.get('repeats', 0)} repeats, state {told.get('state', 'starting')}"
        expected = f"{config.warmup_frames} frames within {config.connect_timeout_s:g} s"
        hint = "A covered or frozen camera repeats its picture; a busy USB bus sends none."
        return self._error(expected, f"{got} {told.get('message', '')}".strip(), hint)

    def _judge_rate(self) -> None:
        rate_hz, config = float(self._counters()["rate_hz"]), self.config
        if self._is_wrong_rate(rate_hz):
            raise self._error(
                f"{config.rate_hz:g} frames a second (within {config.rate_tolerance:.0%})", f"{rate_hz:.1f}",
                "Automatic exposure slows a camera in the dark; a USB bus may be shared; or correct rate_hz.",
            )  # fmt: skip

    def _is_wrong_rate(self, rate_hz: float) -> bool:
        return rate_hz > 0 and abs(rate_hz / self.config.rate_hz - 1) > self.config.rate_tolerance

    def _error(self, expected: str, got: str, hint: str) -> CameraError:
        return CameraError(f"camera {self.config.name!r}", expected=expected, got=got, hint=hint)


def uvc_camera(config: UvcConfig) -> ProcessCamera:
    """A USB camera through OpenCV (pip install 'robot-rl[cameras]')."""
    return ProcessCamera(config, "robot_rl.hardware.uvc_camera.UvcSource")


def realsense_camera(config: RealSenseConfig) -> ProcessCamera:
    """The colour stream of a RealSense (pip install 'robot-rl[realsense]'); never tried on a device."""
    return ProcessCamera(config, "robot_rl.hardware.realsense_camera.RealSenseSource")


def fake_camera(config: FakeConfig) -> ProcessCamera:
    """Synthetic or recorded pictures, with faults on demand."""
    return ProcessCamera(config, "robot_rl.hardware.fake_camera.FakeSource")


def _end_process(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ask by closing stdin, then kill; a copy of this object in a forked child leaves the camera alone."""
    if os.getpid() != owner:
        return
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    for seconds, force in ((GRACE_S, False), (KILLED_WITHIN_S, True)):
        if force:
            process.kill()
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue
