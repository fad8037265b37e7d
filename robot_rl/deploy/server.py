"""A policy behind a WebSocket: what openpi's client sends and gets, byte for byte, and endpoints of our own (serving.py).

The event loop does nothing but frames: decoding and inference run in worker threads, so pings and /healthz are answered
while a policy thinks. One client's error is told to that client (a text frame, then close 1011) and touches no other.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np

from robot_rl.deploy import wire
from robot_rl.deploy.noise import NoiseSource
from robot_rl.deploy.serving import MOST_ROWS, ClientSession, metadata
from robot_rl.errors import DataError, DeployError, RobotRlError

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
GOING_AWAY, TOO_BIG, FAILED = 1001, 1009, 1011  # codes of a close
KEPT_LATENCIES = 10_000
_START_S = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """How a policy is served.

    Attributes:
        host: an address other than loopback needs an api_key.
        port: 0 takes a free one.
        api_key: clients must send `Authorization: Api-Key <it>`; "" for none.
        names: our observation key -> the keys of the clients, joined in this order.
        computed: what clients are told of who computes the actions (computed_by.py); empty: nothing.
        most_bytes: of one message; a longer one ends its client with close 1009.
        most_rows: of one `act` or mask.
        most_clients: more are answered 503.
        workers: inferences at the same time.
        ping_every_s, ping_timeout_s: a client that answers no ping for so long is dropped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    computed: Mapping[str, Any] = field(default_factory=dict)
    most_bytes: int = 64 << 20
    most_rows: int = MOST_ROWS
    most_clients: int = 16
    workers: int = 1
    ping_every_s: float = 10.0
    ping_timeout_s: float = 20.0


class ServerMetrics:
    """Counts of a server. Changed in its event loop alone."""

    def __init__(self) -> None:
        self.clients = self.connections = self.requests = 0
        self.errors: Counter[str] = Counter()
        self._latency_s: deque[float] = deque(maxlen=KEPT_LATENCIES)

    def answered(self, latency_s: float) -> None:
        """A request was answered, `latency_s` after it came (waiting for a worker included)."""
        self.requests += 1
        self._latency_s.append(latency_s)

    def latency_ms(self) -> dict[str, float]:
        """Quantiles over the last 10,000 answers; empty before the first."""
        if not self._latency_s:
            return {}
        values = 1e3 * np.array(self._latency_s)
        return {name: float(np.quantile(values, float(name))) for name in ("0.5", "0.95", "0.99", "1.0")}

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "clients": self.clients, "connections": self.connections, "requests": self.requests,
            "errors": dict(sorted(self.errors.items())), "latency_ms": self.latency_ms(),
        }  # fmt: skip

    def to_text(self) -> str:
        """The same in Prometheus' text format."""
        lines = [
            f"robot_rl_serve_clients {self.clients}",
            f"robot_rl_serve_connections_total {self.connections}",
            f"robot_rl_serve_requests_total {self.requests}",
        ]
        lines += [f'robot_rl_serve_errors_total{{kind="{kind}"}} {n}' for kind, n in sorted(self.errors.items())]
        lines += [f'robot_rl_serve_latency_ms{{quantile="{q}"}} {v:.3f}' for q, v in self.latency_ms().items()]
        return "\n".join(lines) + "\n"


class PolicyServer:
    """Serves one policy until `close`; its event loop runs in a thread of its own.

    Args:
        policy: a robot_rl.contracts.Policy with `spec` and `config`, torch or numpy; see ClientSession of its state.
        noise: its source; an episode without a seed gets the next one (0, 1, ...) in the order of connections and resets.
        options: see ServerOptions.

    Raises:
        DeployError: an address beyond loopback without an api_key, or a name of an observation that the policy lacks.
    """

    def __init__(self, policy: Any, noise: NoiseSource, options: ServerOptions) -> None:
        _check(options, tuple(policy.config.observation_keys))
        self._policy, self._noise, self._options = policy, noise, options
        self.metrics = ServerMetrics()
        self.port = 0
        self._hello = wire.pack(metadata(policy, noise, options.computed))
        self._seeds = itertools.count()
        self._workers = ThreadPoolExecutor(options.workers, thread_name_prefix="policy")
        self._thread = threading.Thread(target=self._run, name="policy server", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: Exception | None = None

    def start(self) -> None:
        """Bind and serve; returns when clients can connect.

        Raises:
            DeployError: the port is taken, or the address is not of this machine.
            ModuleNotFoundError: websockets or msgpack is not installed.
        """
        self._thread.start()
        if not self._started.wait(_START_S):
            self._failure = TimeoutError(f"not up within {_START_S:g} s")
        if isinstance(self._failure, (OSError, TimeoutError)):
            raise DeployError(
                f"{self._options.host}:{self._options.port}", expected="a free port of this machine",
                got=str(self._failure), hint="Give another port=, or end the program that has it.",
            ) from self._failure  # fmt: skip
        if self._failure is not None:
            raise self._failure

    @property
    def is_running(self) -> bool:
        """Whether clients can connect."""
        return self._started.is_set() and self._thread.is_alive()

    def close(self) -> None:
        """End all connections (close 1001) and wait for inferences that run; also twice."""
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.ident is not None:
            self._thread.join(_START_S)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failure = error
            if self._started.is_set():
                log.exception("the policy server ended")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        from websockets.asyncio.server import serve

        options = self._options
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._client, options.host, options.port, compression=None, max_size=options.most_bytes, max_queue=4,
            process_request=self._request, ping_interval=options.ping_every_s, ping_timeout=options.ping_timeout_s,
            origins=[None],  # a page in a browser sends its origin: it must not drive a robot over loopback
            close_timeout=2.0, server_header=None,
        ) as server:  # fmt: skip
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._started.set()
            await self._end.wait()

    def _request(self, connection: Any, request: Any) -> Any:
        """Plain HTTP, and who may open a WebSocket."""
        path, options = request.path.partition("?")[0], self._options
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        given = request.headers.get("Authorization", "")
        if options.api_key and not hmac.compare_digest(given.encode(), f"Api-Key {options.api_key}".encode()):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(HTTPStatus.UNAUTHORIZED, "Send the header `Authorization: Api-Key <key>`.\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.to_text())
        if self.metrics.clients >= options.most_clients:
            self.metrics.errors["too_many_clients"] += 1
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{options.most_clients} clients are connected.\n"
            )
        return None

    async def _client(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        metrics = self.metrics
        metrics.clients += 1
        metrics.connections += 1
        name = f"client {metrics.connections} {connection.remote_address}"
        log.info("%s connected", name)
        try:
            await self._answer_all(connection, name)
        except ConnectionClosed as closed:
            sent = closed.sent.code if closed.sent is not None else None
            if sent == TOO_BIG:
                metrics.errors["too_big"] += 1
            elif sent != GOING_AWAY:
                metrics.errors["lost"] += 1
            log.warning("%s: %s", name, closed)
        finally:
            metrics.clients -= 1
            log.info("%s gone", name)

    async def _answer_all(self, connection: Any, name: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            session = ClientSession(
                self._policy, self._noise, names=self._options.names, next_seed=lambda: next(self._seeds),
                most_rows=self._options.most_rows,
            )  # fmt: skip
            await connection.send(self._hello)
            previous_ms: float | None = None
            async for frame in connection:
                began = time.perf_counter()
                answer = await loop.run_in_executor(self._workers, _answer, session, frame)
                timing = {"infer_ms": 1e3 * (time.perf_counter() - began)}
                answer["server_timing"] = timing | ({} if previous_ms is None else {"prev_total_ms": previous_ms})
                await connection.send(wire.pack(answer))
                latency_s = time.perf_counter() - began
                previous_ms = 1e3 * latency_s
                self.metrics.answered(latency_s)
        except Exception as error:  # a policy may raise anything; the other clients must not notice
            from websockets.exceptions import ConnectionClosed

            if isinstance(error, ConnectionClosed):
                raise
            self.metrics.errors[type(error).__name__] += 1
            is_named = isinstance(error, RobotRlError)
            log.warning("%s: %s: %s", name, type(error).__name__, error, exc_info=not is_named)
            await connection.send(f"{type(error).__name__}: {error}"[:4000])
            await connection.close(FAILED, type(error).__name__)


def _answer(session: ClientSession, frame: str | bytes) -> dict[str, Any]:
    """In a worker thread: decode, and ask."""
    if isinstance(frame, str):
        raise DataError("message", expected="a binary frame", got="a text frame", hint="Pack it with msgpack.")
    return session.answer(wire.unpack(frame))


def _check(options: ServerOptions, keys: tuple[str, ...]) -> None:
    if options.host not in LOOPBACK and not options.api_key:
        raise DeployError(
            f"host={options.host}", expected="an API key for an address beyond this machine", got="none",
            hint="Set the environment variable that key_env names (ROBOT_RL_SERVE_KEY), or serve on 127.0.0.1.",
        )  # fmt: skip
    unknown = [key for key in options.names if key not in keys]
    if unknown or any(not names for names in options.names.values()):
        raise DeployError(
            f"observation: {unknown or dict(options.names)}", expected=f"names for {list(keys)}", got="others, or none",
            hint="observation={<our key>: [<keys of the client>]}.",
        )  # fmt: skip
    if min(options.workers, options.most_clients, options.most_bytes, options.most_rows) < 1:
        raise DeployError(
            "server", expected="workers, most_clients, most_bytes and most_rows of at least 1", got=str(options)[:300], hint="Correct."
        )  # fmt: skip
