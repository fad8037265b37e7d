"""Whether every camera gives new frames as fast as it should, judged from the stamps of what the loop reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from operator import sub

from robot_rl.teleop.rows import IMAGE


class CameraWatch:
    """Finds frozen and slow cameras within half a second.

    Args:
        cameras: keys "image/<name>".
        camera_hz: what they should give; None: a new frame at every reading.
        window_s: over which a rate is taken.
        frozen_s: without a new frame.
        share: of the rate below which a camera is slow.
    """

    def __init__(
        self, cameras: tuple[str, ...], *, camera_hz: float | None = None, window_s: float = 0.4,
        frozen_s: float = 0.3, share: float = 0.8,
    ) -> None:  # fmt: skip
        self._hz, self._window_s, self._frozen_s, self._share = camera_hz, window_s, frozen_s, share
        self._reads: deque[float] = deque()
        self._frames: dict[str, deque[float]] = {camera: deque() for camera in cameras}
        self._told: dict[str, str] = {}

    def reset(self) -> None:
        """Begin anew: the loop stood still."""
        self._reads.clear()
        self._told.clear()
        for frames in self._frames.values():
            frames.clear()

    def see(self, capture_s: Mapping[str, float], now_s: float) -> dict[str, str]:
        """Judge one reading.

        Args:
            capture_s: stream -> when its newest frame was captured.
            now_s: when it was read.

        Returns:
            Camera -> what is wrong with it, for those that went wrong just now; the same text again only after it was
            right in between.
        """
        self._reads.append(now_s)
        while now_s - self._reads[0] > self._window_s:
            self._reads.popleft()
        new = {}
        for camera, frames in self._frames.items():
            word = self._judge(camera, frames, capture_s.get(camera), now_s)
            kind = word.split(":")[0]
            if kind and self._told.get(camera) != kind:
                new[camera] = f"{camera.removeprefix(IMAGE)} {word}"
            self._told[camera] = kind
        return new

    def _judge(self, camera: str, frames: deque[float], stamp_s: float | None, now_s: float) -> str:
        if stamp_s is None:
            return "gives nothing:"
        if not frames or stamp_s != frames[-1]:
            frames.append(stamp_s)
        while len(frames) > 1 and now_s - frames[1] > self._window_s:
            frames.popleft()
        if now_s - frames[-1] > self._frozen_s:
            return f"stands still: its frame is {now_s - frames[-1]:.2f} s old"
        seen_s, span_s = self._reads[-1] - self._reads[0], frames[-1] - frames[0]
        if seen_s < 0.75 * self._window_s or span_s < 0.75 * self._window_s:
            return ""
        # A loop that is itself slow can't see more frames than it reads. One of the shorter gaps, as a loop of the camera's
        # own rate sees some frames twice and misses others.
        most_hz, gaps_s = (len(self._reads) - 1) / seen_s, sorted(map(sub, list(frames)[1:], frames))
        wanted_hz, rate_hz = min(self._hz or most_hz, most_hz), 1.0 / max(gaps_s[len(gaps_s) // 4], 1e-6)
        return f"is slow: {rate_hz:.0f} of {wanted_hz:.0f} frames a second" if rate_hz < self._share * wanted_hz else ""
