"""The ring in shared memory: newest entry, number, checksum; and two processes at full speed without a torn read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

from robot_rl.hardware.camera_ring import ALIGN, HEADER, SharedRing

SLOTS, SIZE = 4, 100


@pytest.fixture
def ring() -> SharedRing:
    fd = SharedRing.create_memory("test", slots=SLOTS, payload_bytes=SIZE)
    made = SharedRing(fd, slots=SLOTS, payload_bytes=SIZE)
    os.close(fd)
    return made


def test_newest_entry_comes_back_and_only_once(ring: SharedRing) -> None:
    assert ring.read() is None
    for number in range(1, 12):
        ring.write(bytes([number]) * (20 + number), stamp_s=number / 2)
        entry = ring.read(after=number - 1)
        assert entry is not None
        assert (entry.sequence, entry.stamp_s, bytes(entry.payload)) == (
            number,
            number / 2,
            bytes([number]) * (20 + number),
        )
        assert entry.crc == zlib.crc32(entry.payload)
        assert ring.read(after=number) is None
    entry = ring.read()
    assert entry is not None
    assert entry.sequence == 11


def test_array_is_taken_as_its_bytes_and_the_copy_is_the_readers_own(ring: SharedRing) -> None:
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    ring.write(picture, stamp_s=1.0)
    entry = ring.read()
    assert entry is not None
    for _ in range(SLOTS + 1):
        ring.write(bytes(60), stamp_s=2.0)
    assert np.array_equal(np.frombuffer(entry.payload, np.uint8).reshape(4, 5, 3), picture)


@pytest.mark.parametrize("field", ["sequence", "stamp_s", "length", "crc"])
def test_any_field_of_another_entry_is_seen(ring: SharedRing, field: str) -> None:
    ring.write(b"one", stamp_s=1.0)
    ring._headers[field][1] += 1
    assert ring.read() is None


def test_payload_of_another_entry_is_seen(ring: SharedRing) -> None:
    ring.write(b"one", stamp_s=1.0)
    ring._payloads[1, 2] ^= 1
    assert ring.read() is None
    ring._payloads[1, 2] ^= 1
    assert ring.read() is not None


def test_slots_lie_apart_and_aligned(ring: SharedRing) -> None:
    for number in range(SLOTS):
        ring.write(bytes([number + 1]) * SIZE, stamp_s=0.0)
    assert [set(row) for row in ring._payloads.tolist()] == [{4}, {1}, {2}, {3}]  # entry n lies in slot n mod 4
    assert ring._headers.strides[0] % ALIGN == 0
    assert ring._headers.strides[0] >= HEADER.itemsize + SIZE


WRITER = """
import os, sys, time
import numpy as np
from robot_rl.hardware.camera_ring import SharedRing
fd, size = int(sys.argv[1]), int(sys.argv[2])
ring = SharedRing(fd, slots=1, payload_bytes=size)
number = 0
while os.getppid() == int(sys.argv[3]):
    number += 1
    ring.write(np.full(size, number % 251, np.uint8), stamp_s=float(number))
    time.sleep(0.0005)
"""


def test_no_torn_read_between_two_processes_at_full_speed() -> None:
    """Every entry is one value all over that follows from its number; one slot, so that the writer overwrites what is read."""
    size = 300_000
    fd = SharedRing.create_memory("torn", slots=1, payload_bytes=size)
    ring = SharedRing(fd, slots=1, payload_bytes=size)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(fd), str(size), str(os.getpid())], pass_fds=(fd,))
    os.close(fd)
    last, reads, end = 0, 0, time.monotonic() + 4
    try:
        while reads < 20 or time.monotonic() < end:
            assert writer.poll() is None, f"the writer ended after {reads} reads"
            entry = ring.read(after=last)
            if entry is None:
                continue
            assert entry.sequence > last
            assert entry.stamp_s == entry.sequence
            assert set(np.unique(np.frombuffer(entry.payload, np.uint8))) == {entry.sequence % 251}
            last, reads = entry.sequence, reads + 1
    finally:
        writer.kill()
        writer.wait()
