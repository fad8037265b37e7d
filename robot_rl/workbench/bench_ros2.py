"""`bench ros2`: ROS 2 between two processes of this machine, by loopback.

Echo: a fake arm sends a JointState of 7 joints; Ros2Robot reads it, the same positions are commanded, and the arm notes when they
come back. A time is that of one whole way. "loop": by a loop in a thread of its own that takes the newest state, as the control
loop does, and so leaves one out where two came while it worked; "node": by the node's thread, once for every message. The name
of each row tells how many states came back.
Camera: 640 x 480 pictures at 30 Hz, raw or as JPEG; a time is from the picture's stamp until its pixels are in a Reading.
Both processes have the priority of the command: `chrt -f 1 robot-rl bench ros2` shows what a busy machine does to them.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from robot_rl.workbench.bench_timing import Measurement, Options, Report

# It knows ROS 2, so it is a plug-in.
ECHO = "robot_rl.hardware.ros2_echo"
# (Hz, whether by a loop of its own)
ECHOES = ((500.0, False), (500.0, True), (100.0, True), (250.0, True), (1000.0, True))
CAMERAS = (("compressed", "best_effort"), ("raw", "best_effort"), ("raw", "reliable"))
TARGET_SHARE, TARGET_P99_MS = 0.999, 3.0


def run(options: Options) -> Report:
    """Measure echoes and cameras; at 500 Hz for `options.seconds`, everything else for a sixth of it.

    Raises:
        DeployError: ROS 2 is not installed, or the two processes do not find each other.
    """
    echo: Any = importlib.import_module(ECHO)
    measurements = []
    facts: dict[str, Any] = {"scheduler": _scheduler()}
    for rate_hz, in_loop in ECHOES:
        found = echo.echo(rate_hz, seconds=options.seconds / (1 if rate_hz == 500 else 6), in_loop=in_loop)
        where = "loop" if in_loop else "node"
        found["met"] = found["handled"] >= TARGET_SHARE and (found["p99_ms"] or np.inf) < TARGET_P99_MS
        name = f"echo {rate_hz:g} Hz, {where}, {100 * found['handled']:.3f} % came back"
        measurements.append(_measured(name, "echoes", found.pop("times_s")))
        facts[f"echo_{rate_hz:g}_hz_{where}"] = found
    for kind, reliability in CAMERAS:
        found = echo.camera(kind, reliability, seconds=options.seconds / 6)
        name = f"camera {kind}, {reliability} publisher, {100 * found['delivered']:.1f} % delivered"
        measurements.append(_measured(name, "frames", found.pop("times_s")))
        facts[f"camera_{kind}_{reliability}"] = found
    return Report(tuple(measurements), (), facts)


def _measured(name: str, unit: str, times_s: list[float]) -> Measurement:
    return Measurement(name, 1, unit, np.array([times_s or [np.nan]], np.float64))


def _scheduler() -> str:
    policy = os.sched_getscheduler(0)
    return "SCHED_FIFO" if policy == os.SCHED_FIFO else f"policy {policy}, nice {os.nice(0)}"
