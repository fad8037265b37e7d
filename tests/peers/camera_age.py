"""Age of camera frames from capture to reader, and CPU share: `python tests/peers/camera_age.py [seconds]`.

Two fake cameras, 640 x 480 at 30 Hz, each in its own process. The reader looks every millisecond and notes the age of each
frame when it first sees it, and every 50 ms the age of the newest frame, as a 20 Hz control loop would find it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from robot_rl.hardware.cameras import fake_camera
from robot_rl.hardware.fake_camera import FakeConfig


def cpu_s(pid: int) -> float:
    """Seconds of CPU a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main(seconds: float) -> dict[str, object]:
    cameras = [fake_camera(FakeConfig(name=name, rate_tolerance=1.0)) for name in ("wrist", "front")]
    for camera in cameras:
        camera.connect()
    first_seen: list[float] = []
    in_loop: list[float] = []
    read_s: list[float] = []
    last = [0, 0]
    pids = [camera.pid or 0 for camera in cameras]
    start, used = time.monotonic(), [cpu_s(pid) for pid in pids]
    own, tick = time.process_time(), start
    while time.monotonic() - start < seconds:
        for index, camera in enumerate(cameras):
            began = time.monotonic()
            frame = camera.read()
            now = time.monotonic()
            if frame.sequence != last[index]:
                read_s.append(now - began)
                first_seen.append(now - frame.stamp_s)
                last[index] = frame.sequence
            if now >= tick:
                in_loop.append(now - frame.stamp_s)
        if time.monotonic() >= tick:
            tick += 0.05
        time.sleep(0.001)
    span = time.monotonic() - start
    statuses = [camera.status() for camera in cameras]
    shares = [(cpu_s(pid) - before) / span for pid, before in zip(pids, used, strict=True)]
    for camera in cameras:
        camera.close()

    def ms(values: list[float]) -> dict[str, float]:
        return {f"p{q}": round(float(np.percentile(values, q)) * 1000, 2) for q in (50, 99)} | {
            "max": round(max(values) * 1000, 2)
        }

    return {
        "seconds": round(span, 1), "frames": [s.frames for s in statuses], "dropped": [s.dropped for s in statuses],
        "age_when_first_seen_ms": ms(first_seen), "age_in_20_hz_loop_ms": ms(in_loop), "read_new_frame_ms": ms(read_s),
        "cpu_share_camera_processes": [round(share, 3) for share in shares],
        "cpu_share_reader_at_1_khz": round((time.process_time() - own) / span, 3), "load": os.getloadavg(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0), indent=2))
