"""A ring in shared memory: one process writes, another reads the newest entry without a lock, and never half of one.

The memory is a memfd: it has no name, so the kernel frees it with the last process that maps it, however that ends, and
Docker's limit on /dev/shm does not apply. Each slot carries a sequence number and a CRC-32 over number, stamp, length
and payload. A reader that is overtaken while it copies, or that sees writes of another core out of order (ARM), finds a
number or a checksum that does not fit and takes the next entry.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np

HEADER = np.dtype([("sequence", "<i8"), ("stamp_s", "<f8"), ("length", "<i8"), ("crc", "<i8")])
ALIGN = 64
TRIES = 64


@dataclass(frozen=True)
class Entry:
    """One entry of the ring, copied out of it.

    Attributes:
        sequence: 1 for the first entry ever written.
        stamp_s: as the writer gave it.
        payload: the bytes.
        crc: CRC-32 of the payload alone.
    """

    sequence: int
    stamp_s: float
    payload: bytearray
    crc: int


class SharedRing:
    """View of one ring; the writer's process and the reader's each make one over the same memory.

    Args:
        fd: of the memory (`create_memory`); mapped here, the caller may close it afterwards.
        slots: entries kept; a reader has the time of `slots - 1` entries to copy one.
        payload_bytes: most bytes of an entry.
    """

    def __init__(self, fd: int, *, slots: int, payload_bytes: int) -> None:
        self.slots, self.payload_bytes = slots, payload_bytes
        stride = _slot_bytes(payload_bytes)
        memory = mmap.mmap(fd, ALIGN + slots * stride)
        self._latest = np.frombuffer(memory, "<i8", 1)
        self._headers: np.ndarray = np.ndarray((slots,), HEADER, memory, ALIGN, (stride,))
        self._payloads: np.ndarray = np.ndarray(
            (slots, payload_bytes), np.uint8, memory, ALIGN + HEADER.itemsize, (stride, 1)
        )

    @staticmethod
    def create_memory(name: str, *, slots: int, payload_bytes: int) -> int:
        """A file descriptor of zeroed memory for such a ring; `name` is only seen in /proc."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, ALIGN + slots * _slot_bytes(payload_bytes))
        return fd

    def write(self, payload: bytes | np.ndarray, *, stamp_s: float) -> None:
        """Append one entry over the oldest.

        Args:
            payload: bytes, or a contiguous array; at most `payload_bytes`.
            stamp_s: seconds of CLOCK_MONOTONIC.
        """
        data = np.frombuffer(payload, np.uint8) if isinstance(payload, bytes) else payload.reshape(-1).view(np.uint8)
        sequence = int(self._latest[0]) + 1
        header = self._headers[sequence % self.slots : sequence % self.slots + 1]
        header["sequence"] = 0
        self._payloads[sequence % self.slots, : len(data)] = data
        header["stamp_s"], header["length"] = stamp_s, len(data)
        header["crc"] = _seal(zlib.crc32(data.data), sequence, stamp_s, len(data))
        header["sequence"] = sequence
        self._latest[0] = sequence

    def read(self, *, after: int = 0) -> Entry | None:
        """The newest entry, or None when there is none newer than number `after` (or none that stays still)."""
        for _ in range(TRIES):
            latest = int(self._latest[0])
            if latest <= after:
                return None
            sequence, stamp_s, length, crc = self._headers[latest % self.slots].item()
            if sequence != latest or not 0 <= length <= self.payload_bytes:
                continue
            payload = bytearray(self._payloads[latest % self.slots, :length])
            own = zlib.crc32(payload)
            if (
                crc == _seal(own, sequence, stamp_s, length)
                and self._headers["sequence"][latest % self.slots] == latest
            ):
                return Entry(sequence, stamp_s, payload, own)
        return None


def _slot_bytes(payload_bytes: int) -> int:
    return -(-(HEADER.itemsize + payload_bytes) // ALIGN) * ALIGN


def _seal(crc: int, sequence: int, stamp_s: float, length: int) -> int:
    """CRC-32 of the header's numbers, started from that of the payload."""
    return zlib.crc32(struct.pack("<qdq", sequence, stamp_s, length), crc)
