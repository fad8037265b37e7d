"""Raw log of ROS 2 messages as they came, one MCAP file an episode; it appears under its name when it is whole.

Messages are queued and written by a thread, so that a slow disk does not delay a callback. What the queue can't take is
counted and named, never dropped in silence. A full disk ends the file where it is; `close` says so.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

from robot_rl.errors import DeployError

_LIBRARY = "robot-rl"
_PART = ".part"


class RawLog:
    """One MCAP file.

    Args:
        path: of the finished file; it must not exist. Until `close` it is called `<path>.part`.
        max_queued: messages that wait for the disk.

    Raises:
        DeployError: the file exists, or the package mcap is not installed.
    """

    def __init__(self, path: str | Path, *, max_queued: int = 5000) -> None:
        try:
            from mcap.writer import CompressionType, Writer
        except ModuleNotFoundError as error:
            raise DeployError(
                "raw log", expected="the package mcap", got="not installed", hint="pip install 'robot-rl[ros2]'."
            ) from error
        self.path, self._part = Path(path), Path(f"{path}{_PART}")
        for file in (self.path, self._part):
            if file.exists():
                raise DeployError(
                    str(file), expected="no such file yet", got="one", hint="Move it away; nothing is overwritten."
                )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._part.open("xb")
        self._writer: Any = Writer(self._stream, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library=_LIBRARY)
        self._channels: dict[str, int] = {}
        self._queue: queue.Queue[tuple[str, bytes, int, int] | None] = queue.Queue(max_queued)
        self._failure: Exception | None = None
        self.written: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write_all, name="raw log", daemon=True)
        self._thread.start()

    def add_topic(self, topic: str, type_name: str, definition: str) -> None:
        """Make a channel for a topic; `definition` as ros2_definitions.py gives it."""
        schema = self._writer.register_schema(type_name, "ros2msg", definition.encode())
        self._channels[topic] = self._writer.register_channel(topic, "cdr", schema)
        self.written[topic] = self.dropped[topic] = 0

    def add(self, topic: str, data: bytes, *, log_ns: int | None = None, publish_ns: int | None = None) -> None:
        """Queue one serialised message; never waits.

        Args:
            topic: one of `add_topic`.
            data: CDR with its header of four bytes.
            log_ns: when it was received, wall clock; None: now.
            publish_ns: when it was sent; None: as received.
        """
        log_ns = time.time_ns() if log_ns is None else log_ns
        try:
            self._queue.put_nowait((topic, data, log_ns, log_ns if publish_ns is None else publish_ns))
        except queue.Full:
            self.dropped[topic] += 1

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            topic, data, log_ns, publish_ns = item
            if self._failure is not None:
                self.dropped[topic] += 1
                continue
            try:
                self._writer.add_message(self._channels[topic], log_ns, data, publish_ns, self.written[topic])
                self.written[topic] += 1
            except OSError as error:
                self._failure = error
                self.dropped[topic] += 1

    def close(self, metadata: dict[str, str] | None = None, *, keep: bool = True) -> Path | None:
        """Write what waits, sync and give the file its name.

        Args:
            metadata: written into the file as the record "episode".
            keep: False throws the file away.

        Returns:
            The file, or None when it was thrown away.

        Raises:
            DeployError: the disk failed; what was written before stays under `<path>.part`.
        """
        self._queue.put(None)
        self._thread.join()
        if not keep:
            self._stream.close()
            self._part.unlink()
            return None
        try:
            if self._failure is not None:
                raise self._failure
            self._writer.add_metadata("episode", metadata or {})
            self._writer.finish()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        except OSError as error:
            raise DeployError(
                str(self._part), expected="room on the disk", got=str(error),
                hint="Free some; the messages before it can be read from this file.",
            ) from error  # fmt: skip
        self._part.rename(self.path)
        return self.path
