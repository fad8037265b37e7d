"""Columns that a recorder keeps beside what the spec names: stamps of every stream, commands of policy and operator, ages.

They lie in the metadata of their episode, packed, under the key "recorded". So they are checksummed with it, and go where
the episode goes: verify, merge, split, delete and reencode need not know of them, and trim cuts them (trimming.py). The
spec stays that of the robot, and a policy never sees them.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import DataError

KEY = "recorded"
# Of one step, as lists of numbers that data/quality_time.py reads.
AGES = "ages_s"
_VERSION = 1
_KINDS = ("bool", "uint8", "int64", "float32", "float64", "uint32")


def pack_columns(columns: Mapping[str, Array]) -> dict[str, Any]:
    """Metadata entry of columns (T, ...), JSON types.

    Raises:
        DataError: columns of different lengths, or of a type that is not kept.
    """
    lengths = {name: len(array) for name, array in columns.items()}
    strange = [name for name, array in columns.items() if str(array.dtype) not in _KINDS]
    if len(set(lengths.values())) > 1 or strange:
        raise DataError(
            "recorded columns", expected=f"one length, and types of {', '.join(_KINDS)}", got=f"{lengths}, {strange}",
            hint="This is a bug of the recorder; please report it.",
        )  # fmt: skip
    packed = {
        name: {
            "dtype": str(array.dtype), "shape": list(array.shape[1:]),
            "data": base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode(),
        }
        for name, array in columns.items()
    }  # fmt: skip
    return {"version": _VERSION, "steps": next(iter(lengths.values()), 0), "columns": packed}


def unpack_columns(metadata: Mapping[str, Any], *, where: str = "episode") -> dict[str, np.ndarray]:
    """Columns (T, ...) of an episode's metadata; empty when a recorder kept none.

    Raises:
        DataError: they can't be read.
    """
    entry = metadata.get(KEY)
    if entry is None:
        return {}
    try:
        if entry["version"] != _VERSION:
            raise ValueError(f"version {entry['version']!r}")
        return {name: _unpacked(column, int(entry["steps"])) for name, column in entry["columns"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, zlib.error) as error:
        raise DataError(
            f"{where}, metadata {KEY!r}", expected=f"packed columns of version {_VERSION}",
            got=f"{type(error).__name__}: {error}", hint="Another version wrote them, or a tool changed them.",
        ) from error  # fmt: skip


def cut_columns(metadata: Mapping[str, Any], begin: int, stop: int) -> Mapping[str, Any]:
    """The metadata of steps [begin, stop): columns and ages are cut, subtasks and pauses moved, the rest stays.

    Raises:
        DataError: as `unpack_columns`.
    """
    out = dict(metadata)
    if KEY in out:
        out[KEY] = pack_columns({name: array[begin:stop] for name, array in unpack_columns(out).items()})
    if isinstance(ages := out.get(AGES), Mapping):
        out[AGES] = {name: values[begin:stop] if isinstance(values, list) else values for name, values in ages.items()}
    return out | _cut_marks(metadata, begin, stop)


def _cut_marks(metadata: Mapping[str, Any], begin: int, stop: int) -> dict[str, Any]:
    """Subtasks and pauses name steps, so they move with them; a subtask that was going on at the cut begins there."""
    out, subtasks, pauses = dict[str, Any](), metadata.get("subtasks"), metadata.get("pauses")
    if isinstance(subtasks, list) and all(isinstance(s, Mapping) and isinstance(s.get("step"), int) for s in subtasks):
        steps = [s["step"] for s in subtasks]
        first = max([step for step in steps if step <= begin], default=begin)
        kept = [s for s in subtasks if first <= s["step"] < stop]
        out["subtasks"] = [{**s, "step": max(s["step"] - begin, 0)} for s in kept]
    if isinstance(pauses, list) and all(isinstance(step, int) for step in pauses):
        out["pauses"] = [step - begin for step in pauses if begin < step < stop]
    return out


def _unpacked(column: Mapping[str, Any], steps: int) -> np.ndarray:
    shape = (steps, *(int(size) for size in column["shape"]))
    if column["dtype"] not in _KINDS or any(size < 0 for size in shape):
        raise ValueError(f"{column['dtype']} of shape {shape}")
    size = math.prod(shape) * np.dtype(column["dtype"]).itemsize
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(base64.b64decode(column["data"], validate=True), size + 1)
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes and not {size}")
    return np.frombuffer(content, column["dtype"]).reshape(shape)
