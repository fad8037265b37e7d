"""The process of the page's web server: `python -m robot_rl.hardware.browser_server FD`, started by browser.py.

It ends when the session closes the socket or dies. What it tells the session: {"port": ...} when it listens or
{"failure": ...}, {"command": ..., "by": ...}, {"event": ...}, {"operator": ..., "viewers": ...}.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from robot_rl.deploy.child_process import parent_socket, receive
from robot_rl.errors import DeployError, RobotRlError

from .browser_access import certificate_of
from .browser_hub import Hub
from .browser_link import EPISODES_BYTES, VIEW_BYTES, PictureReader, TextReader
from .browser_messages import MOST_BYTES

POLL_S = 0.01
SEND_BUFFER = 1 << 17  # small, so that a slow page gets few old pictures and not seconds of them
FAILED = 3


class Server:
    """The parts of the process, and its three loops.

    Args:
        channel: to the session.
        config: fields of BrowserConfig, and what browser.py adds.
        listener: bound, and listening.
    """

    def __init__(self, channel: socket.socket, config: dict[str, Any], listener: socket.socket) -> None:
        from .browser_app import SavedEpisodes

        self._channel, self._config, self._listener = channel, config, listener
        channel.setblocking(False)
        self.hub = Hub(self.tell, first_sequence=config["first_sequence"])
        self.saved = SavedEpisodes(config["dataset"])
        rings = config["rings"]
        self._texts = {
            "view": TextReader(rings["view"], VIEW_BYTES), "episodes": TextReader(rings["episodes"], EPISODES_BYTES),
        }  # fmt: skip
        for fd in rings.values():
            os.close(fd)
        self._pictures: dict[str, PictureReader] = {}

    def tell(self, message: Mapping[str, Any]) -> bool:
        """Send to the session without waiting; False when it takes nothing now."""
        try:
            self._channel.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    async def run(self) -> None:
        """Serve until the session ends."""
        import uvicorn

        from .browser_app import make_app

        config = self._config
        settings: dict[str, Any] = {
            "log_level": "warning", "access_log": False, "lifespan": "off", "ws_max_size": MOST_BYTES,
            "ws_per_message_deflate": False, "ws_ping_interval": 5, "ws_ping_timeout": 10, "limit_concurrency": 200,
            "timeout_graceful_shutdown": 1, "server_header": False,
        }  # fmt: skip
        if config["https"]:
            folder = config["certificate_dir"] or "~/.local/share/robot-rl"
            names = [*config["names"], *([config["host"]] if config["host"] not in ("0.0.0.0", "::") else [])]
            certificate, key = certificate_of(Path(folder).expanduser(), names)
            settings |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
        server = uvicorn.Server(uvicorn.Config(make_app(self.hub, self.saved, config), **settings))
        self.tell({"port": self._listener.getsockname()[1]})
        tasks = [asyncio.create_task(self._texts_loop()), asyncio.create_task(self._pictures_loop())]
        tasks.append(asyncio.create_task(server.serve(sockets=[self._listener])))
        end = asyncio.create_task(self._parent_loop())
        done, _ = await asyncio.wait([*tasks, end], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {end}:
            task.result()
        self.hub.show("ended", '{"type":"ended"}')
        await asyncio.sleep(0.1)
        server.should_exit = True
        await asyncio.wait([tasks[-1]], timeout=0.5)

    async def _parent_loop(self) -> None:
        """What the session says; returns when it is gone."""
        ready, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self._channel, ready.set)
        while os.getppid() == self._config["parent"]:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ready.wait(), 0.1)
            self.hub.tick()
            ready.clear()
            while (got := receive(self._channel, 0.0)) is not None:
                message, fds = got
                if not message:
                    return
                self._hear(json.loads(message), fds)

    def _hear(self, told: Mapping[str, Any], fds: list[int]) -> None:
        if "dataset" in told:
            self.saved.show(told["dataset"])
        elif "picture" in told:
            height, width, channels = told["shape"]
            self._pictures[told["picture"]] = PictureReader(fds[0], (height, width, channels))
        for fd in fds:
            os.close(fd)

    async def _texts_loop(self) -> None:
        while True:
            for name, reader in self._texts.items():
                entry = reader.newest()
                if entry is not None:
                    self.hub.show(name, f'{{"type":"{name}","{name}":{entry.payload.decode()}}}')
            await asyncio.sleep(POLL_S if self.hub.viewers else 10 * POLL_S)

    async def _pictures_loop(self) -> None:
        from .browser_app import jpeg

        while True:
            for name, reader in list(self._pictures.items()):
                picture = reader.newest() if self.hub.viewers else None
                if picture is None:
                    continue
                width, quality = self._config["picture_width"], self._config["jpeg_quality"]
                encoded = await asyncio.to_thread(jpeg, picture, width=width, quality=quality)
                label = name.encode()[:255]
                self.hub.show(f"picture {name}", bytes([len(label)]) + label + encoded)
            await asyncio.sleep(POLL_S if self.hub.viewers else 10 * POLL_S)


async def _to_the_end(server: Server) -> None:
    """The session is gone: nothing here is worth a wait for threads and sockets."""
    await server.run()
    os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """Raises DeployError: the address is taken, or is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        raise DeployError(
            "page's server", expected=f"to listen on {host}, port {port}", got=str(error),
            hint="Is another session open? teleop.port=0 takes a free port." if taken else "Correct teleop.host.",
        ) from error  # fmt: skip
    return listener


def main() -> int:
    """Run until the session ends; exit code 3 when it could not start."""
    channel, config = parent_socket(sys.argv[1:])
    sys.path[:] = config["path"]
    try:
        server = Server(channel, config, _listen(config["host"], config["port"]))
        asyncio.run(_to_the_end(server))
    except (RobotRlError, ImportError) as error:
        failure = {key: str(getattr(error, key, "")) for key in ("where", "expected", "got", "hint")}
        if isinstance(error, ImportError):
            hint = "pip install 'robot-rl[teleop]'"
            failure = {"where": "operator page", "expected": "its web server", "got": str(error), "hint": hint}
        channel.setblocking(True)
        channel.send(json.dumps({"failure": failure}).encode(), socket.MSG_NOSIGNAL)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
