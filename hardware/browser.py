"""The operator's page: a teleop device and a panel in one, whose web server runs in a process of its own.

    page = BrowserPage(BrowserConfig())
    page.connect()                     # starts the server; page.url is what to open
    command = page.read()              # never waits
    page.publish(view)                 # neither does this
    for event in page.events(): ...

The server is browser_server.py, who may use it browser_access.py, who drives browser_lease.py, what a page may say
browser_messages.py, the way of views browser_link.py, and what people see page/. Linux only.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import Child
from robot_rl.errors import ConfigError, DeployError
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.teleop.panel import PanelEvent, SessionView

from .browser_access import is_loopback, token_for
from .browser_link import ViewWriter, make_rings

RESTART_S = 2.0
_MODULE = "robot_rl.hardware.browser_server"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BrowserConfig:
    """Of a BrowserPage.

    Attributes:
        name: for the screen and the log.
        host: address to listen on; any but loopback wants a token, and is seen by the whole network.
        port: 0 takes a free one.
        token: that pages must show; "" makes one where the host is not loopback.
        names: by which browsers may call this machine, besides loopback's, its own and IP addresses.
        https: with a certificate of this installation, which browsers warn of once; WebXR wants it off this machine.
        certificate_dir: where it lies; "" means ~/.local/share/robot-rl.
        dataset: whose saved episodes are shown; "" shows none until `show_dataset`.
        view_hz: most views a second that are sent to pages.
        picture_hz: most pictures a second of each camera.
        picture_width: pictures are made smaller to it, pixels.
        jpeg_quality: 1 to 95.
        connect_timeout_s: for the start of the server.
    """

    name: str = "browser"
    host: str = "127.0.0.1"
    port: int = 8060
    token: str = ""
    names: tuple[str, ...] = ()
    https: bool = False
    certificate_dir: str = ""
    dataset: str = ""
    view_hz: float = 25.0
    picture_hz: float = 15.0
    picture_width: int = 640
    jpeg_quality: int = 80
    connect_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for key, low, high in (
            ("port", 0, 65535), ("view_hz", 1, 60), ("picture_hz", 0.1, 60), ("picture_width", 32, 4096),
            ("jpeg_quality", 1, 95), ("connect_timeout_s", 0.1, 600),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                got = repr(getattr(self, key))
                raise ConfigError(f"teleop.{key}", expected=f"{low:g} to {high:g}", got=got, hint="See docs/page.md.")


class BrowserPage:
    """A TeleopDevice and an OperatorPanel.

    A server that crashes is started again, on the same address and with the same token; until its page is back the last
    command gets old and the clutch lets go.
    """

    def __init__(self, config: BrowserConfig) -> None:
        self.config = config
        self.token = token_for(config.host, config.token)
        self._child: Child | None = None
        self._port, self._dataset = config.port, config.dataset
        self._writer: ViewWriter | None = None
        self._view: SessionView | None = None
        self._command = TeleopCommand()
        self._events: list[PanelEvent] = []
        self._told: dict[str, Any] = {}
        self._received: deque[float] = deque(maxlen=400)
        self._commands = 0
        self._started_s = self._ready_s = float("-inf")
        self._crash = ""

    @property
    def name(self) -> str:
        """See TeleopDevice.name."""
        return self.config.name

    @property
    def pid(self) -> int | None:
        """Of the server's process; None when closed."""
        return None if self._child is None else self._child.pid

    @property
    def viewers(self) -> int:
        """Pages that are open."""
        return int(self._told.get("viewers", 0))

    @property
    def url(self) -> str:
        """What to open in a browser. The token stands behind the #, which browsers keep to themselves."""
        return self._address + (f"#token={self.token}" if self.token else "")

    @property
    def _address(self) -> str:
        host = self.config.host
        if host in ("0.0.0.0", "::"):
            host = os.uname().nodename
        host = f"[{host}]" if ":" in host else host
        scheme = "https" if self.config.https else "http"
        return f"{scheme}://{host}:{self._port}/"

    def connect(self) -> None:
        """Start the server and wait until it listens.

        Raises:
            DeployError: the extra `teleop` is not installed, or the address is taken or not ours.
        """
        self.close()
        self._port = self.config.port
        self._start()
        deadline_s = time.monotonic() + self.config.connect_timeout_s
        assert self._child is not None
        while not self._told and self._child.exit_code is None and time.monotonic() < deadline_s:
            self._take(self._child.receive(0.1))
        self._drain()
        failure = self._told.get("failure")
        if failure or "port" not in self._told:
            code = self._child.exit_code
            self.close()
            if failure:
                raise DeployError(**failure)
            raise DeployError(
                "page's server", expected=f"it listens within {self.config.connect_timeout_s:g} s", got=f"exit code {code}",
                hint="Its traceback is on stderr; pip install 'robot-rl[teleop]'.",
            )  # fmt: skip
        _log.info("operator page: %s", self.url)
        if not is_loopback(self.config.host):
            _log.warning("the page can be reached by the whole network; who knows its address with the token can drive")

    def read(self) -> TeleopCommand:
        """See TeleopDevice.read.

        A page that is closed, or stops driving, leaves a command of its own that is not engaged. One that falls silent
        leaves its last command, which gets old: the clutch (robot_rl/teleop/clutch.py) fades it and makes it a fault.
        """
        self._drain()
        return self._command

    def events(self) -> list[PanelEvent]:
        """See OperatorPanel.events."""
        self._drain()
        events, self._events = self._events, []
        return events

    def publish(self, view: SessionView) -> None:
        """See OperatorPanel.publish."""
        if self._child is None or self._writer is None:
            return
        self._view = view
        self._drain()
        if self._child.exit_code is not None:
            self._restart()
            return
        self._writer.write(view)
        if self.viewers:
            self._writer.write_picture(view, self._child)

    def show_dataset(self, path: str) -> None:
        """Show the saved episodes of this EpisodeStore; it is read in the server's process, so that no loop waits for it."""
        self._dataset = str(path)
        if self._child is not None:
            self._child.send(json.dumps({"dataset": self._dataset}).encode())

    def status(self) -> DeviceStatus:
        """See TeleopDevice.status. The token is in `url` alone: statuses are shown and written down."""
        self._drain()
        now_s, problems = time.monotonic(), []
        if self._child is not None and self._child.exit_code is not None:
            problems.append(self._how_ended(self._child.exit_code))
        elif self._crash and now_s - self._ready_s < 10:
            problems.append(f"{self._crash}; it was started again")
        if self._child is not None and self._told.get("operator") is None:
            problems.append(f"nobody drives: open {self._address}")
        problems += self._writer.problems.values() if self._writer else ()
        return DeviceStatus(
            self.name,
            is_connected=self._child is not None and self._child.exit_code is None,
            age_s=now_s - self._command.stamp_s,
            commands=self._commands,
            rate_hz=float(sum(now_s - at_s < 1.0 for at_s in self._received)),
            problems=tuple(problems),
            help={"page": self._address, "clutch": "hold Space, a pad's right bumper, or touch the stick"},
        )

    def close(self) -> None:
        """See TeleopDevice.close; ends the server within 2 s."""
        child, self._child, self._writer = self._child, None, None
        self._told, self._events, self._command = {}, [], TeleopCommand()
        self._received.clear()
        if child is not None:
            child.close()

    def __enter__(self) -> BrowserPage:
        self.connect()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        fds = make_rings()
        config = {
            **asdict(self.config), "port": self._port, "token": self.token, "dataset": self._dataset,
            "rings": fds, "parent": os.getpid(), "path": sys.path, "first_sequence": self._command.sequence,
        }  # fmt: skip
        self._told, self._started_s = {}, time.monotonic()
        try:
            self._writer = ViewWriter(fds, view_hz=self.config.view_hz, picture_hz=self.config.picture_hz)
            self._child = Child(_MODULE, config, fds=tuple(fds.values()))
        finally:
            for fd in fds.values():
                os.close(fd)

    def _restart(self) -> None:
        """Start it again without waiting for it, not more often than every 2 s."""
        assert self._child is not None
        if time.monotonic() - self._started_s < RESTART_S:
            return
        self._crash = self._how_ended(self._child.exit_code)
        _log.error("%s; it is started again", self._crash)
        self._child.close()
        self._start()
        self._ready_s = time.monotonic()

    def _how_ended(self, code: int | None) -> str:
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        return f"the page's server ended with {how}"

    def _drain(self) -> None:
        if self._child is None:
            return
        for _ in range(1000):
            message = self._child.receive()
            if message is None:
                return
            self._take(message)

    def _take(self, message: bytes | None) -> None:
        """One message of our own process: a command, an event, or what it tells of itself."""
        if message is None:
            return
        told = json.loads(message)
        if "command" in told:
            command = told["command"]
            pose = command.pop("pose")
            self._command = TeleopCommand(
                **{**command, "motion": np.asarray(command["motion"], np.float32), "buttons": frozenset(command["buttons"])},
                pose=None if pose is None else np.asarray(pose, np.float64),
            )  # fmt: skip
            if told["by"]:
                self._commands += 1
                self._received.append(time.monotonic())
        elif "event" in told:
            self._events.append(PanelEvent(**told["event"]))
        else:
            self._told |= told
            self._port = self._told.get("port", self._port)
