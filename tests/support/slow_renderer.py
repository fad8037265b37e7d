"""In the place of hardware/sim_render_process.py: each picture takes as long as the test wants, and is its placement's number.

It draws when it is told by a file in the folder of its environment: `draw` is eaten at each picture, `crash` ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from robot_rl.deploy.child_process import parent_socket, receive
from robot_rl.hardware.camera_ring import SharedRing
from robot_rl.hardware.sim_render import PLACEMENT_BYTES, SLOTS, RenderedViewConfig, picture_bytes


def main() -> None:
    """Until the session is gone."""
    channel, config = parent_socket(sys.argv[1:])
    view, folder = RenderedViewConfig(**config["view"]), Path(os.environ["SLOW_RENDERER"])
    placements = SharedRing(config["rings"]["placements"], slots=SLOTS, payload_bytes=PLACEMENT_BYTES)
    pictures = SharedRing(config["rings"]["pictures"], slots=SLOTS, payload_bytes=picture_bytes(view))
    seen = 0
    while (told := receive(channel, 0.005)) is None or told[0]:
        if (folder / "crash").exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        entry = placements.read(after=seen)
        if entry is None:
            continue
        seen = entry.sequence
        (folder / "busy").touch()
        while not (folder / "draw").exists():
            time.sleep(0.002)
        # What it draws is what it took when it began.
        (folder / "draw").unlink()
        number = int(np.frombuffer(entry.payload, np.float64)[1])
        pictures.write(np.full((view.height, view.width, 3), number, np.uint8), stamp_s=entry.stamp_s)


if __name__ == "__main__":
    main()
