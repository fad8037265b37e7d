"""The process that draws a simulated scene: `python -m robot_rl.hardware.sim_render_process FD`, started by sim_render.py.

It draws the newest placement that it was given, and ends when the session closes the socket or dies: between two pictures,
or 0.2 s later by force. It says one thing, {"failure": why}, when it can't draw.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import parent_socket, receive
from robot_rl.errors import RobotRlError

from .camera_ring import SharedRing
from .sim_render import PLACEMENT_BYTES, SLOTS, RenderedViewConfig, picture_bytes
from .sim_scene import RENDERED, live_scene

POLL_S = 0.005
FAILED = 3


def draw(channel: socket.socket, config: dict[str, Any]) -> None:
    """Until the session is gone.

    Args:
        channel: to it.
        config: what sim_render.py says.

    Raises:
        RobotRlError: no renderer, or no such scene.
    """
    view, rings = RenderedViewConfig(**config["view"]), config["rings"]
    placements = SharedRing(rings["placements"], slots=SLOTS, payload_bytes=PLACEMENT_BYTES)
    pictures = SharedRing(rings["pictures"], slots=SLOTS, payload_bytes=picture_bytes(view))
    camera = {"width": view.width, "height": view.height, "eye_m": view.eye_m, "target_m": view.target_m}
    scene = live_scene(config["env"], config["options"], forms=RENDERED, **camera)
    seen = 0
    while (told := receive(channel, POLL_S)) is None or told[0]:
        entry = placements.read(after=seen)
        if entry is None:
            continue
        seen, numbers = entry.sequence, np.frombuffer(entry.payload, np.float64)
        pictures.write(scene.picture(int(numbers[0]), numbers[1:]), stamp_s=entry.stamp_s)


def step_back() -> None:
    """Take only time that no other process wants; threads that are made from here on do likewise."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Kernels with autogroup give a process of a session of its own, as this one, a share like any other session's.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def main() -> int:
    """Run until the session ends; exit code 3 when it can't draw."""
    channel, config = parent_socket(sys.argv[1:])
    if config["view"]["is_idle"]:
        step_back()
    try:
        draw(channel, config)
    except (RobotRlError, ImportError) as error:
        channel.send(json.dumps({"failure": str(error)}).encode(), socket.MSG_NOSIGNAL)
        return FAILED
    os._exit(0)  # sapien's end is slow, and may crash


if __name__ == "__main__":
    sys.exit(main())
