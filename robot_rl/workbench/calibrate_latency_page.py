"""A page that blinks for `robot-rl calibrate latency`: black and white when it is told, and it says when it was drawn.

Served on loopback by the standard library. The change counts from when the browser says that the picture after the change is
under way to the screen; the screen's own lag (some milliseconds) is part of what is measured.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from robot_rl.errors import DeployError

_PAGE = """<!doctype html><meta charset="utf-8"><title>robot-rl: camera latency</title>
<style>html,body{margin:0;height:100%;background:#000;transition:none}</style>
<script>
const events = new EventSource("events");
events.onmessage = (event) => {
  const [number, color] = event.data.split(" ");
  requestAnimationFrame(() => {
    document.documentElement.style.background = document.body.style.background = color;
    requestAnimationFrame(() => fetch("shown/" + number, {method: "POST"}));
  });
};
</script><body></body>"""


class BlinkPage:
    """A lamp (calibrate_latency_camera.Lamp) that is a browser's window.

    Args:
        port: of loopback; 0: any free one.
        wait_s: for a browser to open the page, and for each change.
    """

    def __init__(self, *, port: int = 0, wait_s: float = 60.0) -> None:
        self._wait_s, self._number = wait_s, 0
        self._told: queue.Queue[str] = queue.Queue()
        self._shown: queue.Queue[tuple[int, float]] = queue.Queue()
        self._opened, self._token = threading.Event(), secrets.token_urlsafe(8)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="blink page", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """To open in a browser on this machine."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._token}/"

    def wait_open(self) -> None:
        """Return when a browser has opened the page.

        Raises:
            DeployError: none did in time.
        """
        if not self._opened.wait(self._wait_s):
            raise DeployError(
                self.address, expected="a browser that opens it", got=f"none within {self._wait_s:g} s",
                hint="Open it on this machine, in full screen, where the camera sees it.",
            )  # fmt: skip

    def show(self, is_light: bool) -> float:
        """See Lamp.

        Raises:
            DeployError: the page does not answer.
        """
        self._number += 1
        self._told.put(f"{self._number} {'#fff' if is_light else '#000'}")
        until_s = time.monotonic() + min(self._wait_s, 5.0)
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                number, shown_s = self._shown.get(timeout=left_s)
            except queue.Empty:
                break
            if number == self._number:
                return shown_s
        raise DeployError(
            self.address, expected="the page to say that it changed", got="nothing",
            hint="Keep its window open and in front: a browser draws no hidden page.",
        )  # fmt: skip

    def close(self) -> None:
        """End it; also twice."""
        self._told.put("")
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == f"/{page._token}/":
                    self._answer(200, "text/html; charset=utf-8", _PAGE.encode())
                elif self.path == f"/{page._token}/events":
                    self._answer(200, "text/event-stream", None)
                    page._opened.set()
                    while text := page._told.get():
                        self.wfile.write(f"data: {text}\n\n".encode())
                        self.wfile.flush()
                else:
                    self._answer(404, "text/plain", b"not here")

            def do_POST(self) -> None:
                shown_s, (*start, number) = time.monotonic(), self.path.split("/")
                is_ours = start == ["", page._token, "shown"] and number.isdecimal()
                if is_ours:
                    page._shown.put((int(number), shown_s))
                self._answer(204 if is_ours else 404, "text/plain", b"")

            def _answer(self, status: int, kind: str, body: bytes | None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Cache-Control", "no-store")
                if body is not None:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        return Handler
