"""Our own processes beside a control loop: a fresh interpreter, a socket pair of small messages, and nothing pickled.

A child gets its configuration as one JSON message, and ends when its parent closes the socket or dies. It lives in a
session of its own, so that Ctrl-C in a terminal reaches the parent alone: the parent decides what stops when.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import DeployError

MOST_BYTES = 1 << 17  # of a message; below the smallest default of a socket's buffer
_ALIGN = 64


class Child:
    """A child process as its parent sees it.

    Args:
        module: run as `python -m module`; its main calls `parent_socket`.
        config: JSON types.
        fds: file descriptors that the child shares; it learns their numbers as config["fds"].

    Raises:
        DeployError: it can't be started.
    """

    def __init__(self, module: str, config: Mapping[str, Any], *, fds: Sequence[int] = ()) -> None:
        self.module = module
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())], pass_fds=(theirs.fileno(), *fds),
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._socket.close()
            raise DeployError(module, expected="a process", got=str(error), hint="The machine is full.") from error
        finally:
            theirs.close()
        self.send(json.dumps({**config, "fds": list(fds)}).encode())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()

    def send(self, message: bytes, *, fds: Sequence[int] = ()) -> bool:
        """Send without waiting; False when the child is gone or takes nothing."""
        try:
            if fds:
                socket.send_fds(self._socket, [message], list(fds), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self, wait_s: float = 0.0) -> bytes | None:
        """The next message; None when none comes within `wait_s`, or ever."""
        try:
            ready, _, _ = select.select([self._socket], [], [], max(wait_s, 0.0))
            return (self._socket.recv(MOST_BYTES) or None) if ready else None
        except (OSError, ValueError):  # reset by a dead child, or closed here
            return None

    def first_message(self, wait_s: float) -> bytes | None:
        """Its first message, which says that it is ready; None when it ended or said nothing within `wait_s`."""
        deadline_s = time.monotonic() + wait_s
        while time.monotonic() < deadline_s and self.exit_code is None:
            if (message := self.receive(0.1)) is not None:
                return message
        return None

    def hang_up(self) -> None:
        """Ask it to end by closing the socket, without waiting for it; `close` has to follow."""
        self._socket.close()

    def close(self, *, grace_s: float = 2.0) -> None:
        """Ask it to end by closing the socket; kill it after `grace_s`. Also twice."""
        self._socket.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def parent_socket(words: Sequence[str]) -> tuple[socket.socket, dict[str, Any]]:
    """In a child: the socket to the parent, and the configuration that came by it.

    Args:
        words: sys.argv[1:].
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=int(words[0]))
    channel.settimeout(10.0)
    config: dict[str, Any] = json.loads(channel.recv(MOST_BYTES))
    return channel, config


def receive(channel: socket.socket, wait_s: float) -> tuple[bytes, list[int]] | None:
    """In a child: the next message and its file descriptors; None when none came; b"" when the parent is gone."""
    try:
        ready, _, _ = select.select([channel], [], [], max(wait_s, 0.0))
        if not ready:
            return None
        message, fds, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
    except OSError:
        return b"", []
    return message, list(fds)


def function_of(target: str) -> Any:
    """What "package.module:name" names.

    Raises:
        DeployError: no such module or name.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeployError(
            repr(target), expected="'package.module:function'", got=str(error), hint="Check spelling and PYTHONPATH."
        ) from error


class SharedArrays:
    """Named arrays in one piece of shared memory. The memory has no name: it goes with its last process.

    Args:
        layout: name, shape and numpy dtype of each; the same in every process.
        fd: of the memory; None makes it.
    """

    def __init__(self, layout: Sequence[tuple[str, Sequence[int], str]], *, fd: int | None = None) -> None:
        offsets, end = [], 0
        for _, shape, dtype in layout:
            offsets.append(end)
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            end += -(-max(size, 1) // _ALIGN) * _ALIGN
        if fd is None:
            fd = os.memfd_create("robot-rl")
            os.ftruncate(fd, end)
        self.fd = fd
        memory = mmap.mmap(fd, end)
        self._arrays: dict[str, Array] = {
            name: np.ndarray(tuple(shape), dtype, memory, offset)
            for (name, shape, dtype), offset in zip(layout, offsets, strict=True)
        }

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def close_fd(self) -> None:
        """Close the descriptor; the arrays stay."""
        os.close(self.fd)
