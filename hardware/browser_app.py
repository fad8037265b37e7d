"""The web application of the page: static files, saved episodes, one WebSocket. Loaded by the server's process alone."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from robot_rl.errors import RobotRlError
from robot_rl.teleop.panel import EpisodePages

from .browser_access import is_allowed_host, is_same_origin, is_token
from .browser_episodes import episode_pages
from .browser_hub import Hub, Viewer
from .browser_link import plain
from .browser_messages import BadMessage, hello_of

FILES = Path(__file__).resolve().parent / "page"
HELLO_S = 5.0
THUMBNAIL_WIDTH, FRAME_WIDTH = 160, 320
WRONG_TOKEN, REFUSED = 4401, 1008  # codes with which a WebSocket is closed
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
}  # fmt: skip


class SavedEpisodes:
    """The dataset that is shown; "" is none."""

    def __init__(self, path: str) -> None:
        self.path = ""
        self.show(path)

    def show(self, path: str) -> None:
        """Another one from now on."""
        self.path, self._pages = path, episode_pages(path) if path else None
        self._thumbnail = lru_cache(maxsize=1000)(self._read_thumbnail)

    def thumbnail(self, number: int, episode: str) -> bytes | None:
        """JPEG, None where there is no picture; its id tells an episode from another that had its number before."""
        return self._thumbnail(number, episode) if self._pages else None

    def frames(self, number: int, first: int, count: int) -> dict[str, Any]:
        """See EpisodePages.frames; pictures as base64 of JPEG."""
        found = self._need().frames(number, first, count)
        pictures = {
            name: [base64.b64encode(jpeg(picture, width=FRAME_WIDTH, quality=80)).decode() for picture in rows]
            for name, rows in found["pictures"].items()
        }
        return {**plain({key: value for key, value in found.items() if key != "pictures"}), "pictures": pictures}

    def health(self) -> list[Any]:
        """See EpisodePages.health."""
        return list(plain(self._need().health()))

    def _read_thumbnail(self, number: int, episode: str) -> bytes | None:
        picture = self._need().thumbnail(number)
        return None if picture is None else jpeg(picture, width=THUMBNAIL_WIDTH, quality=75)

    def _need(self) -> EpisodePages:
        if self._pages is None:
            raise HTTPException(404, "no dataset is shown")
        return self._pages


def jpeg(picture: np.ndarray, *, width: int, quality: int) -> bytes:
    """Encoded, made smaller to `width` where it is wider.

    Args:
        picture: uint8 (H, W, 3) RGB.
        width: pixels.
        quality: 1 to 95.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def make_app(hub: Hub, saved: SavedEpisodes, config: dict[str, Any]) -> ASGIApp:
    """The application.

    Args:
        hub: of this session.
        saved: episodes to show.
        config: fields of BrowserConfig.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def require(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not is_token(given, config["token"]):
            raise HTTPException(401, "wrong token")

    async def read(function: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *arguments)
        except RobotRlError as error:
            raise HTTPException(404, str(error)) from error

    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(FILES / "index.html")

    @app.get("/page/{name}")
    async def static(name: str) -> FileResponse:
        if name not in {path.name for path in FILES.iterdir()}:
            raise HTTPException(404)
        return FileResponse(FILES / name)

    @app.get("/api/thumbnail/{number}")
    async def thumbnail(request: Request, number: int, episode: str = "") -> Response:
        require(request)
        picture = await read(saved.thumbnail, number, episode)
        return Response(status_code=204) if picture is None else Response(picture, media_type="image/jpeg")

    @app.get("/api/frames/{number}")
    async def frames(request: Request, number: int, first: int = 0, count: int = 50) -> Response:
        require(request)
        if first < 0 or count < 1:
            raise HTTPException(400, "first and count are not negative")
        found = await read(saved.frames, number, first, count)
        return Response(await asyncio.to_thread(json.dumps, found), media_type="application/json")

    @app.get("/api/health")
    async def health(request: Request) -> Response:
        require(request)
        return Response(json.dumps(await read(saved.health)), media_type="application/json")

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await _serve(socket, hub, config)

    return Guard(app, config)


class Guard:
    """In front of the application: refuses hosts and origins that are not ours, and adds the headers of every answer."""

    def __init__(self, app: ASGIApp, config: dict[str, Any]) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        host, config = headers.get("host", ""), self._config
        why = ""
        if not is_allowed_host(host, host=config["host"], names=config["names"]):
            why = "this name is not one of the page's server; add it to teleop.names"
        elif scope["type"] == "websocket" and not is_same_origin(headers.get("origin"), host, https=config["https"]):
            why = "a page of another site"
        if why and scope["type"] == "websocket":
            await WebSocket(scope, receive, send).send_denial_response(Response(why, 403))
            return
        if why:
            await Response(why, 403)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        await self._app(scope, receive, with_headers)


async def _serve(socket: WebSocket, hub: Hub, config: dict[str, Any]) -> None:
    """One page from its hello to its end; whatever it says, nobody else is disturbed."""
    await socket.accept()
    viewer: Viewer | None = None
    pump: asyncio.Task[None] | None = None
    try:
        token, name = hello_of(await asyncio.wait_for(_text_of(socket), HELLO_S))
        if not is_token(token, config["token"]):
            await asyncio.sleep(0.2)
            await socket.close(WRONG_TOKEN, "wrong token")
            return
        viewer = hub.join(name)
        pump = asyncio.create_task(_pump(socket, viewer))
        while True:
            hub.hear(viewer, await _text_of(socket))
    except BadMessage as bad:
        await _refuse(socket, str(bad))
    except asyncio.TimeoutError:
        await _refuse(socket, f"no hello within {HELLO_S:g} s")
    except (WebSocketDisconnect, RuntimeError):  # starlette's RuntimeError: it was closed while we were sending
        pass
    finally:
        if pump is not None:
            pump.cancel()
        if viewer is not None:
            hub.leave(viewer)


async def _text_of(socket: WebSocket) -> str:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    if message.get("text") is None:
        raise BadMessage("texts are expected, not bytes")
    return str(message["text"])


async def _refuse(socket: WebSocket, why: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(REFUSED, why.encode("ascii", "replace")[:120].decode())


async def _pump(socket: WebSocket, viewer: Viewer) -> None:
    """Send what waits; a page that takes nothing holds up this task alone."""
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            await viewer.wake.wait()
            viewer.wake.clear()
            while viewer.outbox:
                message = viewer.outbox.pop(next(iter(viewer.outbox)))
                await (socket.send_text(message) if isinstance(message, str) else socket.send_bytes(message))
