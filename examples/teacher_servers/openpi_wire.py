"""openpi's policy server in one file, for environments in which robot-rl is not installed.

Needs numpy, `websockets>=11` and `msgpack` (Python 3.9 or later). Copy it beside one of the scripts of this folder; those
give it a function from an observation (a map of arrays and a "prompt") to a chunk of actions (Tp, A).

The wire is that of openpi-client 0.1.2 (robot_rl/deploy/wire.py says it in detail): binary frames of msgpack, first the
server's metadata, then an observation and its answer in turn; a text frame is an error, and close 1011 follows. Nothing
is unpickled. It binds to this machine alone, unless a key is given in the environment variable ROBOT_RL_SERVE_KEY.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgpack
import numpy as np
from websockets.sync.server import serve as listen

log = logging.getLogger("teacher server")

Infer = Callable[[dict], np.ndarray]
LOOPBACK = ("127.0.0.1", "::1", "localhost")
KEY_ENV = "ROBOT_RL_SERVE_KEY"
MOST_BYTES = 64 << 20
NUMBERS = "biuf"  # kinds of dtype that are taken
FAILED = 1011


def pack(message: Any) -> bytes:
    """The bytes of a message: plain values, lists and maps of them, and numpy arrays of numbers.

    Raises:
        TypeError: it holds something else.
    """
    return bytes(msgpack.packb(message, default=_plain))


def unpack(data: bytes) -> Any:
    """Inverse of `pack`; arrays are read-only.

    Raises:
        ValueError: no message, or an array whose bytes do not fit its shape or that holds no numbers.
    """
    return msgpack.unpackb(data, object_hook=_array)


def serve(infer: Infer, metadata: dict, *, host: str = "127.0.0.1", port: int = 8000, record: str = "") -> None:
    """Answer clients, one question at a time, until the process is ended.

    Args:
        infer: observation -> actions (Tp, A).
        metadata: first frame to every client.
        host: other than loopback needs an API key in ROBOT_RL_SERVE_KEY.
        port: 0 takes a free one; the line "listening on <port>" goes to standard output.
        record: file to which all frames are added, as msgpack values ["in" or "out", bytes]; empty: none.

    Raises:
        ValueError: an address beyond this machine without a key.
    """
    key = os.environ.get(KEY_ENV, "")
    if host not in LOOPBACK and not key:
        raise ValueError(f"host={host}: set the environment variable {KEY_ENV}, or serve on 127.0.0.1")
    lock = threading.Lock()

    def allowed(connection: Any, request: Any) -> Any:
        given = request.headers.get("Authorization", "")
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if request.headers.get("Origin"):
            return connection.respond(HTTPStatus.FORBIDDEN, "No browsers.\n")
        if key and not hmac.compare_digest(given.encode(), f"Api-Key {key}".encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "Send the header `Authorization: Api-Key <key>`.\n")
        return None

    def talk(connection: Any) -> None:
        _send(connection, metadata, record, lock)
        for frame in connection:
            try:
                began = time.perf_counter()
                observation = unpack(frame)
                with lock:
                    _write(record, "in", frame)
                    actions = np.asarray(infer(observation), dtype=np.float32)
                took = {"infer_ms": 1e3 * (time.perf_counter() - began)}
                _send(connection, {"actions": actions, "policy_timing": took, "server_timing": took}, record, lock)
            except Exception as error:  # a model may raise anything; the other clients go on
                log.exception("a question failed")
                connection.send(f"{type(error).__name__}: {error}"[:4000])
                connection.close(FAILED, type(error).__name__)
                return

    with listen(talk, host, port, compression=None, max_size=MOST_BYTES, process_request=allowed) as server:
        sys.stdout.write(f"listening on {server.socket.getsockname()[1]}\n")
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("ended")


def options(description: str) -> argparse.ArgumentParser:
    """A command line with --host, --port and --record."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--record", default="", help="file to which all frames are added")
    return parser


def wanted(observation: dict, name: str) -> Any:
    """What a client sent under `name`.

    Raises:
        KeyError: nothing; says what there is.
    """
    if name not in observation:
        raise KeyError(f"no {name!r} in the observation, only {sorted(map(str, observation))}")
    return observation[name]


def _send(connection: Any, message: dict, record: str, lock: threading.Lock) -> None:
    frame = pack(message)
    with lock:
        _write(record, "out", frame)
    connection.send(frame)


def _write(record: str, kind: str, frame: bytes) -> None:
    if record:
        with open(record, "ab") as file:
            file.write(msgpack.packb([kind, frame]))


def _plain(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in NUMBERS:
        raise TypeError(f"{type(value).__name__} can't be sent")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _array(value: dict) -> Any:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    dtype = np.dtype(str(value[b"dtype"]))
    if dtype.kind not in NUMBERS:
        raise ValueError(f"an array of dtype {dtype}")
    if b"__npgeneric__" in value:
        return dtype.type(value[b"data"])
    return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])
