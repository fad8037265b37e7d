"""One MCAP file: its messages in file order, and again by their place; what a cut or damaged file still holds.

The file is read record by record and needs no summary at its end, so that one whose recorder was killed opens too.
Layout: mcap.dev/spec. A record is an opcode (1 byte), a length (8 bytes) and so many bytes; messages lie in chunks with
a checksum, or by themselves.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.errors import DataError

_MAGIC = b"\x89MCAP0\r\n"
_PREFIX = 9
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _STATISTICS, _METADATA = 2, 3, 4, 5, 6, 11, 12


@dataclass(frozen=True)
class Stored:
    """One message as it lies in a file.

    Attributes:
        channel: its number in this file.
        log_ns: when the recorder got it, Unix time.
        data: CDR bytes.
        offset: byte of the record that holds it.
        number: among the messages of that record.
    """

    channel: int
    log_ns: int
    data: bytes
    offset: int
    number: int


class McapFile:
    """An .mcap file of ROS 2 messages.

    Args:
        path: of the file.

    Raises:
        DataError: the mcap packages are missing, or this is no MCAP file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records = _import_records(path)
        self._size = path.stat().st_size
        self._open: Any = None
        self._is_finished = self._size > 2 * len(_MAGIC) and self._bytes(self._size - len(_MAGIC), 8) == _MAGIC
        if self._bytes(0, len(_MAGIC)) != _MAGIC:
            self.close()
            raise DataError(
                f"{path}", expected="an MCAP file", got="another beginning, or an empty file",
                hint="A recorder that was killed at once leaves an empty file: remove it, or give the right path.",
            )  # fmt: skip
        self.topics: dict[int, str] = {}
        self.types: dict[int, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.notes: list[str] = []
        self._schemas: dict[int, Any] = {}
        self._encodings: dict[int, tuple[str, Any]] = {}
        self._decoders: dict[int, Callable[[bytes], Any]] = {}
        self._last: tuple[int, list[Stored]] = (-1, [])

    def messages(self) -> Iterator[Stored]:
        """Every message in file order; fills `topics`, `types` (by channel), `metadata` and `notes`.

        Raises:
            DataError: a chunk differs from its checksum, a record in the middle is damaged, or messages are missing;
                names the byte.
        """
        offset, count, bare = len(_MAGIC), 0, 0
        while True:
            head = self._head(offset)
            if head is None or head[0] == _FOOTER:
                if head is None:
                    self._stop_early(offset, count)
                if bare:
                    self.notes.append(f"{self.path.name}: {bare} messages lie outside of chunks, without a checksum.")
                return
            opcode, length = head
            if opcode == _STATISTICS and struct.unpack("<Q", self._bytes(offset + _PREFIX, 8))[0] != count:
                raise self._damaged(offset, f"{count} messages, and another number in its own statistics")
            if opcode == _METADATA:
                record = self._records.Metadata.read(_stream(self._bytes(offset + _PREFIX, length)))
                self.metadata[record.name] = dict(record.metadata)
            if opcode in (_SCHEMA, _CHANNEL):
                self._learn(opcode, self._bytes(offset + _PREFIX, length))
            elif opcode in (_MESSAGE, _CHUNK):
                bare += opcode == _MESSAGE
                for message in self._unpacked(offset, opcode, length):
                    count += 1
                    yield message
            offset += _PREFIX + length

    def at(self, offset: int) -> list[Stored]:
        """Messages of the record at a byte that `messages` gave; the last record stays in memory.

        Raises:
            DataError: it can't be read any more.
        """
        if self._last[0] != offset:
            head = self._head(offset)
            if head is None:
                raise self._damaged(offset, "no record")
            self._last = (offset, list(self._unpacked(offset, *head)))
        return self._last[1]

    def decode(self, message: Stored) -> Any:
        """The message with its fields.

        Raises:
            DataError: its definition is missing or of another kind than ros2msg, or the bytes do not fit it.
        """
        decoder = self._decoders.get(message.channel) or self._decoder(message.channel)
        try:
            return decoder(message.data)
        except Exception as error:  # the decoder has no error of its own for short data
            raise DataError(
                f"{self.path}, topic {self.topics[message.channel]}, byte {message.offset}",
                expected=f"a {self.types[message.channel]}", got=f"{type(error).__name__}: {error}",
                hint="The message is damaged, or its definition in the file is another one.",
            ) from error  # fmt: skip

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._open is not None:
            self._open.close()
        self._open, self._last = None, (-1, [])

    def _bytes(self, offset: int, length: int) -> bytes:
        if self._open is None:
            self._open = self.path.open("rb")
        self._open.seek(offset)
        data: bytes = self._open.read(length)
        return data

    def _head(self, offset: int) -> tuple[int, int] | None:
        """Opcode and length of the record at a byte; None where no whole record is there."""
        head = self._bytes(offset, _PREFIX)
        if len(head) < _PREFIX:
            return None
        opcode, length = struct.unpack("<BQ", head)
        # No record has opcode 0: a file system fills what was not written with zeros.
        return (opcode, length) if opcode and offset + _PREFIX + length <= self._size else None

    def _unpacked(self, offset: int, opcode: int, length: int) -> Iterator[Stored]:
        body = self._bytes(offset + _PREFIX, length)
        number = 0
        for kind, data in [(opcode, body)] if opcode == _MESSAGE else self._chunk(offset, body):
            if kind in (_SCHEMA, _CHANNEL):
                self._learn(kind, data)
            elif kind == _MESSAGE:
                channel, _sequence, log_ns, _publish = struct.unpack_from("<HIQQ", data)
                if channel not in self.topics:
                    raise self._damaged(offset, f"a message of channel {channel}, which is not declared before it")
                yield Stored(channel, log_ns, data[22:], offset, number)
                number += 1

    def _chunk(self, offset: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """Records inside a chunk."""
        from mcap.stream_reader import get_chunk_data_stream

        try:
            chunk = self._records.Chunk.read(_stream(body))
            stream, size = get_chunk_data_stream(chunk, validate_crc=True)
            data = stream.read(size)
        except Exception as error:  # CRCValidationError, ZstdError, LZ4's RuntimeError, McapError
            raise self._damaged(offset, f"{type(error).__name__}: {error}") from error
        if len(data) != chunk.uncompressed_size:
            raise self._damaged(offset, f"{len(data)} bytes of {chunk.uncompressed_size}")
        place = 0
        while place < len(data):
            if place + _PREFIX > len(data):
                raise self._damaged(offset, "a record that is cut off inside the chunk")
            opcode, length = struct.unpack_from("<BQ", data, place)
            place += _PREFIX + length
            if place > len(data):
                raise self._damaged(offset, "a record that is cut off inside the chunk")
            yield opcode, data[place - length : place]

    def _learn(self, opcode: int, body: bytes) -> None:
        if opcode == _SCHEMA:
            schema = self._records.Schema.read(_stream(body))
            self._schemas[schema.id] = schema
            return
        channel = self._records.Channel.read(_stream(body))
        schema = self._schemas.get(channel.schema_id)
        parts = (schema.name if schema is not None else "unknown").split("/")
        self.topics[channel.id] = channel.topic
        self.types[channel.id] = "/".join((parts[0], "msg", parts[-1])) if len(parts) > 1 else parts[0]
        self._encodings[channel.id] = (channel.message_encoding, schema)

    def _decoder(self, channel: int) -> Any:
        from mcap_ros2.decoder import DecoderFactory

        encoding, schema = self._encodings[channel]
        decoder = DecoderFactory().decoder_for(encoding, schema)
        if decoder is None:
            got = "none" if schema is None else f"{schema.encoding}, messages as {encoding}"
            raise DataError(
                f"{self.path}, topic {self.topics[channel]}",
                expected="a definition of kind ros2msg and messages as cdr", got=got,
                hint="Leave this topic out, or record it with rosbag2's mcap plugin.",
            )  # fmt: skip
        self._decoders[channel] = decoder
        return decoder

    def _stop_early(self, offset: int, count: int) -> None:
        """No whole record at this byte: the file was cut off there, or it is damaged in its middle."""
        if self._is_finished:
            raise self._damaged(offset, "no whole record, although the file has an end")
        self.notes.append(
            f"{self.path.name} has no footer, its recorder was stopped: {count} messages in whole records were read, "
            f"the {self._size - offset} bytes behind byte {offset} were not."
        )

    def _damaged(self, offset: int, got: str) -> DataError:
        return DataError(
            f"{self.path}, record at byte {offset}", expected="a whole record with its checksum", got=got,
            hint="The file is damaged here: copy it again. `mcap recover FILE -o NEW` keeps what comes before; check what it "
            "wrote with a dry run.",
        )  # fmt: skip


def _stream(body: bytes) -> Any:
    from mcap.data_stream import ReadDataStream

    return ReadDataStream(io.BytesIO(body))


def _import_records(path: Path) -> Any:
    try:
        import mcap.records
        import mcap_ros2.decoder  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}", expected="mcap and mcap-ros2-support, to read bags", got=f"no package {error.name}",
            hint="pip install 'robot-rl[data]'",
        ) from error  # fmt: skip
    return mcap.records
