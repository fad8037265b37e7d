"""Messages of a policy server: msgpack with numpy arrays, the bytes of openpi's client and server. Nothing is unpickled.

An array is the map {b"__ndarray__": True, b"data", b"dtype", b"shape"} (C order), a numpy scalar {b"__npgeneric__": True,
b"data", b"dtype"}; source: openpi-client 0.1.2, msgpack_numpy.py. What comes from the network is checked before it
becomes an array: its kind of number, its shape, and as many bytes as the shape needs.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from robot_rl.errors import DataError

REFUSED_KINDS = "VOc"  # structures, Python objects, complex numbers
MOST_DIMENSIONS = 16
# What dtype.str says of those kinds. np.dtype itself reads far more, some of it with Python's parser.
_DTYPE = re.compile(r"[<>|=]?[biufSUmM]\d{0,6}(\[\d{0,6}[A-Za-z]{1,2}\])?", re.ASCII)
_WHERE = "message"


def pack(message: Any) -> bytes:
    """The bytes of a message.

    Args:
        message: None, bool, int, float, str, bytes, numpy arrays and scalars, and lists and maps of these.

    Raises:
        DataError: it holds something else, or an array of objects, structures or complex numbers.
    """
    import msgpack  # type: ignore[import-untyped]

    try:
        packed: bytes = msgpack.packb(message, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            _WHERE, expected="plain values and arrays", got=str(error)[:200], hint="Convert it first."
        ) from error
    return packed


def unpack(data: bytes) -> Any:
    """The message of these bytes; arrays are read-only views of them.

    Raises:
        DataError: not a message, or an array that is refused.
    """
    import msgpack

    try:
        return msgpack.unpackb(data, object_hook=_numpy)
    except DataError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise DataError(
            _WHERE, expected="msgpack as openpi's client packs it", got=f"{len(data)} bytes: {_text(error)}",
            hint="Send the frames of openpi_client.msgpack_numpy or of robot_rl.deploy.wire.",
        ) from error  # fmt: skip


def _plain(value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a {type(value).__name__}")
    if value.dtype.kind in REFUSED_KINDS:
        raise ValueError(f"an array of dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _numpy(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        dtype, data = _dtype(value.get(b"dtype")), value.get(b"data")
        if not isinstance(data, (bool, int, float, str, bytes)):
            raise _refused(f"a scalar of {type(data).__name__}")
        try:
            return dtype.type(data)
        except (ValueError, TypeError, OverflowError) as error:
            raise _refused(f"a scalar {dtype} of {data!r}"[:200]) from error
    return value


def _array(value: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(value.get(b"dtype")), value.get(b"data"), value.get(b"shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > MOST_DIMENSIONS:
        raise _refused(f"shape {shape}"[:200])
    if not isinstance(data, bytes):
        raise _refused(f"data of {type(data).__name__}")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(data) or (dtype.itemsize == 0 and math.prod(shape)):
        raise _refused(f"{len(data)} bytes for shape {tuple(shape)} of {dtype}")
    try:
        return np.ndarray(shape=tuple(shape), dtype=dtype, buffer=data)
    except (ValueError, TypeError, OverflowError) as error:  # e.g. (0, 2**62): no bytes, but no array either
        raise _refused(f"shape {tuple(shape)} of {dtype}") from error


def _dtype(text: Any) -> np.dtype:
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise _refused(f"dtype {text!r}"[:200])
    try:
        return np.dtype(text)
    except (TypeError, ValueError) as error:
        raise _refused(f"dtype {text!r}") from error


def _refused(got: str) -> DataError:
    return DataError(
        f"{_WHERE}, array", expected="a dtype of numbers, bool or text, and the bytes that its shape needs", got=got,
        hint="Objects, structures and complex numbers are refused.",
    )  # fmt: skip


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
