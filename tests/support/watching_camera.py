"""A camera that looks at a browser's window: what Chromium showed at each tick, stamped later by a delay that is known.

Chromium tells of every change of a page and when it was on the screen (`Page.startScreencast`). A frame shows the page as it
was at its tick, and its stamp is that tick and `delay_s`.
"""

from __future__ import annotations

import base64
import io
import math
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.types import CameraFrame, CameraStatus

SEEN_WITHIN_S = 0.4  # from a change to when this camera has heard of it
_SIZE = (48, 64)


@dataclass(frozen=True)
class WatchingConfig:
    """Of a WatchingCamera.

    Attributes:
        devtools: address of Chromium's debugging port; its first page is looked at.
        delay_s: of the stamps.
        rate_hz: of frames.
        name: as in the key image/<name>.
    """

    devtools: str = ""
    delay_s: float = 0.0
    rate_hz: float = 30.0
    name: str = "screen"


class WatchingCamera:
    """See the text of this module; a Camera."""

    def __init__(self, config: WatchingConfig) -> None:
        self.config, self.name = config, config.name
        self._shown_s, self._shown = list[float](), list[np.ndarray]()
        self._lock, self._stop, self._started = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="screen", daemon=True)

    def connect(self) -> None:
        """Begin to look."""
        self._thread.start()
        assert self._started.wait(60.0), "no page to look at"

    def read(self) -> CameraFrame:
        """The newest frame of which it is certain what it shows."""
        number = math.floor((time.monotonic() - SEEN_WITHIN_S) * self.config.rate_hz)
        tick_s = number / self.config.rate_hz
        with self._lock:
            at = bisect_right(self._shown_s, tick_s) - 1
            image = self._shown[at] if at >= 0 else np.zeros((*_SIZE, 3), np.uint8)
        return CameraFrame(image, tick_s + self.config.delay_s, number)

    def status(self) -> CameraStatus:
        """It streams."""
        return CameraStatus(self.name, "streaming")

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join(10.0)

    def _watch(self) -> None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            page = playwright.chromium.connect_over_cdp(self.config.devtools).contexts[0].pages[0]
            session = page.context.new_cdp_session(page)

            def changed(told: dict[str, Any]) -> None:
                session.send("Page.screencastFrameAck", {"sessionId": told["sessionId"]})
                self._note(base64.b64decode(told["data"]), float(told["metadata"]["timestamp"]))

            session.on("Page.screencastFrame", changed)
            height, width = _SIZE
            session.send("Page.startScreencast", {"format": "jpeg", "maxWidth": width, "maxHeight": height})
            self._started.set()
            while not self._stop.is_set():
                page.wait_for_timeout(5)

    def _note(self, jpeg: bytes, wall_s: float) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(jpeg)) as picture:
            image = np.asarray(picture.convert("RGB").resize(_SIZE[::-1]))
        with self._lock:
            self._shown_s.append(wall_s - time.time() + time.monotonic())
            self._shown.append(image)
