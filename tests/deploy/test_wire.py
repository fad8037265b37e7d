"""Messages of the policy server: bytes by hand, what comes back, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack")

from robot_rl.deploy import wire  # noqa: E402
from robot_rl.errors import DataError  # noqa: E402


def test_bytes_by_hand() -> None:
    """msgpack's specification and openpi's key order: fixmap, bin 8, true, fixstr, fixarray."""
    expected = (
        b"\x81\xa1a\x84"
        b"\xc4\x0b__ndarray__\xc3"
        b"\xc4\x04data\xc4\x08\x00\x00\x80\x3f\x00\x00\x00\xc0"
        b"\xc4\x05dtype\xa3<f4"
        b"\xc4\x05shape\x91\x02"
    )
    assert wire.pack({"a": np.array([1, -2], "<f4")}) == expected
    scalar = b"\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\x07\xc4\x05dtype\xa3|u1"
    assert wire.pack(np.uint8(7)) == scalar
    assert wire.pack(np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2])[23:31] == np.int16([0, 2, 3, 5]).tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.float32(2.5), np.zeros((0, 7), np.float32), np.array(3, np.int64),
        np.array(["ab", "c"]), np.array([True, False]), np.array(["2026-11-26"], "M8[D]"), np.float16([1, 2]),
        np.array([1, 2], ">i4"), np.uint64(2**64 - 1),
    ],
)  # fmt: skip
def test_there_and_back(array: Any) -> None:
    back = wire.unpack(wire.pack({"nested": {"x": [array, 1, None, "text", b"bytes"]}}))["nested"]["x"]
    assert back[1:] == [1, None, "text", b"bytes"]
    assert (type(back[0]), back[0].dtype, back[0].shape) == (type(array), array.dtype, array.shape)
    np.testing.assert_array_equal(back[0], array)
    if array.ndim:
        assert not back[0].flags.writeable


@pytest.mark.parametrize(
    "value",
    [np.array([None]), np.zeros(2, complex), np.complex64(1), np.zeros(2, "i4,f4"), object(), {1: object()}, 2**64],
)
def test_what_is_not_sent(value: Any) -> None:
    with pytest.raises(DataError, match="message"):
        wire.pack({"x": value})


def array(**changes: Any) -> bytes:
    plain = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    return bytes(msgpack.packb(plain | {key.encode(): value for key, value in changes.items()}))


@pytest.mark.parametrize(
    "frame",
    [
        array(dtype="|O"), array(dtype="|V4"), array(dtype="<c8"), array(dtype="i4,f4"), array(dtype="(2,)f4"), array(dtype=3),
        array(dtype="nonsense"), array(dtype="f" * 10**6), array(shape=[3]), array(shape=[-2]), array(shape=[2.0]),
        array(shape=[True] * 2), array(shape="2"), array(shape=[1] * 20), array(shape=[2**63, 0]), array(shape=[1 << 40]),
        array(data="12345678"), array(data=b"\0" * 9), array(dtype="|S0", data=b"", shape=[2**40]),
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}),
        b"", b"\xc1", b"\x81", b"\x81\xa1", b"\xdf\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\x91" * 100_000, b"\xa1\xff",
        b"\x01\x01", pickle.dumps({"a": 1}),
    ],
)  # fmt: skip
def test_what_is_refused(frame: bytes) -> None:
    with pytest.raises(DataError, match="message"):
        wire.unpack(frame)


def test_broken_frames_are_named_whatever_byte_is_wrong() -> None:
    whole = bytearray(
        wire.pack({"state": np.float32([1, 2, 3]), "image": np.zeros((2, 2, 3), np.uint8), "prompt": "pick"})
    )
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        frame = whole.copy()
        for place in rng.integers(len(frame), size=rng.integers(1, 4)):
            frame[place] = rng.integers(256)
        try:
            wire.unpack(bytes(frame))
        except DataError:
            refused += 1
    assert 200 < refused < 2000
