"""A foreign HDF5 file, opened and read with what HDF5 itself keeps quiet about.

HDF5 reads data that were never written as its fill value, zero, and follows links to other files. Here both are errors
that name file and dataset, and so is every other damage.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.formats.hdf5_guard import require_walkable
from robot_rl.errors import DataError, RobotRlError

# h5py, numpy, zip and JSON have no error of their own for a damaged file.
_ON_DAMAGE = (
    OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, ArithmeticError, zlib.error,
    struct.error, MemoryError,
)  # fmt: skip
_CUT_OFF = "A recorder that was killed, or a download that was cut off, leaves such a file: record or load again."


def open_hdf5(path: Path) -> Any:
    """The h5py.File, to read, behind a walk through it in another process (hdf5_guard.py).

    Raises:
        DataError: h5py is missing, or the file is missing, damaged, endless, or still being written.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}", expected="h5py, to read HDF5", got="no such package", hint="pip install 'robot-rl[train]'"
        ) from error
    require_walkable([path])
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise DataError(f"{path}", expected="an HDF5 file", got="nothing there", hint="Correct the path.") from error
    except OSError as error:
        text = str(error)
        hint = _CUT_OFF
        if "lock" in text or "already open" in text:
            hint = "Another program is writing it, or was killed while it did: close it, or run `h5clear -s FILE`."
        raise DataError(f"{path}", expected="a whole HDF5 file", got=text, hint=hint) from error


@contextmanager
def named_damage(where: str) -> Iterator[None]:
    """Turn what libraries raise on bytes that no writer wrote into a DataError that names `where`."""
    try:
        yield
    except RobotRlError:
        raise
    except _ON_DAMAGE as error:
        got = f"{type(error).__name__}: {error}"
        hint = "The file is damaged here: copy it again, or leave the episode out with --skip-bad."
        if "filter" in str(error) and "registered" in str(error):
            hint = "It is packed with a filter that HDF5 lacks: pip install hdf5plugin, and unpack it with h5repack."
        raise DataError(where, expected="readable data", got=got, hint=hint) from error


def natural_order(names: Iterable[str], *, where: str, example: str) -> list[str]:
    """Names that end in a number, by that number: demo_2 before demo_10.

    Args:
        names: of the episodes.
        where: for errors.
        example: what a name looks like, for example "demo_0": letters and an underscore, then the number.

    Raises:
        DataError: a name of another form, or the same number twice.
    """
    stem = example.rstrip("0123456789")
    names = list(names)
    strange = [name for name in names if re.fullmatch(rf"{re.escape(stem)}\d+", name) is None]
    if strange or not names:
        raise DataError(
            where,
            expected=f"episodes named as {example}, at least one",
            got=", ".join(sorted(strange)[:5]) or "none",
            hint=f"Rename or move what is no episode; programs of this format read the number behind {stem!r}.",
        )
    numbers = [int(name[len(stem) :]) for name in names]
    if len(set(numbers)) < len(numbers):
        twice = sorted(name for name, number in zip(names, numbers, strict=True) if numbers.count(number) > 1)
        raise DataError(where, expected="each number once", got=", ".join(twice[:5]), hint="Rename one of them.")
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def leaf_names(group: Any, prefix: str = "") -> Iterator[str]:
    """Paths of the datasets below an h5py group, in its order; none for a dataset."""
    if not hasattr(group, "keys"):
        return
    for key in group:
        if hasattr(group[key], "keys"):
            yield from leaf_names(group[key], f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}"


def read_rows(group: Any, key: str, *, where: str, rows: int | None = None, only_last: bool = False) -> np.ndarray:
    """A whole dataset of numbers, or a batch of packed images as bytes.

    Args:
        group: h5py group.
        key: path of the dataset in it.
        where: for errors: file and episode.
        rows: as many rows are expected.
        only_last: read the last row only, as (1, ...).

    Raises:
        DataError: it is missing, has other rows, was never written, lies in another file, or can't be unpacked.
    """
    place = f"{where}, {key}"
    with named_damage(place):
        if key not in group or hasattr(group[key], "keys"):
            found = ", ".join(sorted(leaf_names(group))[:12]) or "nothing"
            raise DataError(
                place, expected="a dataset", got=f"a file with {found}",
                hint="Leave this episode out with --skip-bad, or the key out of the card.",
            )  # fmt: skip
        dataset = group[key]
        if rows is not None and tuple(dataset.shape[:1]) != (rows,):
            raise DataError(
                place, expected=f"{rows} rows", got=f"shape {tuple(dataset.shape)}",
                hint="A writer was stopped, or arrays of two episodes were mixed: leave it out with --skip-bad.",
            )  # fmt: skip
        require_written(dataset, where=place)
        return np.asarray(dataset[-1:] if only_last else dataset[()])


def require_written(dataset: Any, *, where: str) -> None:
    """Refuse a dataset of which HDF5 would make up a part, or take it from another file.

    Raises:
        DataError: naming the first chunk that was never written.
    """
    if dataset.size == 0:
        return
    if dataset.is_virtual or dataset.external:
        raise DataError(
            where,
            expected="data in the file itself",
            got="a virtual dataset" if dataset.is_virtual else f"data in {dataset.external[0][0]}",
            hint="Parts that are not there read as zeros: copy it into one file first (h5repack).",
        )
    if dataset.chunks is None:
        if dataset.id.get_storage_size() == 0:
            raise _unwritten(where, "none of it", dataset.fillvalue)
        return
    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    wanted = int(np.prod(counts))
    found = dataset.id.get_num_chunks()
    if found < wanted:
        there = {dataset.id.get_chunk_info(number).chunk_offset for number in range(found)}
        chunks = (tuple(int(n) for n in np.multiply(place, dataset.chunks)) for place in np.ndindex(*counts))
        first = next(place for place in chunks if place not in there)
        raise _unwritten(where, f"{found} of {wanted} chunks, none at {first}", dataset.fillvalue)


def require_numbers(group: Any, key: str, *, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a dataset of numbers, without reading it.

    Raises:
        DataError: it is missing, a group, a scalar, or holds text or objects.
    """
    place = f"{where}, {key}"
    with named_damage(place):
        dataset = group.get(key)
        if dataset is None or not hasattr(dataset, "dtype") or dataset.dtype.kind not in "biuf" or not dataset.shape:
            got = "nothing" if dataset is None else f"{getattr(dataset, 'dtype', 'a group')}"
            raise DataError(place, expected="numbers, one row a step", got=got, hint="Not a file of this format.")
        return tuple(dataset.shape), np.dtype(dataset.dtype)


def text_of(value: Any) -> str:
    """Text of an HDF5 attribute or dataset, which h5py gives as str or bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def decode_image(packed: Array, *, where: str) -> np.ndarray:
    """One JPEG or PNG as uint8 (H, W, 3), or (H, W) when it is grey; zeros behind its end are padding.

    Raises:
        DataError: it is no image, or its end is missing (a decoder would fill the rest with grey).
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(
            where, expected="Pillow, to unpack images", got="no such package", hint="pip install 'robot-rl[data]'"
        ) from error
    import io

    data = packed.tobytes() if hasattr(packed, "tobytes") else bytes(packed)
    if data[:2] == b"\xff\xd8":
        data = data.rstrip(b"\0")
        if not data.endswith(b"\xff\xd9"):
            raise _no_image(where, f"{len(data)} bytes without the end mark of JPEG")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            image.load()
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and struct.error
        raise _no_image(where, f"{type(error).__name__}: {error}") from error


def size_note(total_bytes: int, longest_bytes: int) -> str:
    """What a data set takes once unpacked, and what of it is in memory at a time."""
    return (
        f"Unpacked it is {total_bytes / 1e9:.2f} GB; an import holds one episode at a time, "
        f"{longest_bytes / 1e6:.0f} MB at most."
    )


def _unwritten(where: str, what: str, fill: Any) -> DataError:
    return DataError(
        where,
        expected="data that were written",
        got=f"{what} (HDF5 itself reads {fill})",
        hint="A writer was stopped: leave the episode out with --skip-bad, or record it again.",
    )


def _no_image(where: str, got: str) -> DataError:
    return DataError(
        where,
        expected="a whole JPEG or PNG",
        got=got,
        hint="The frame is damaged: leave the episode out with --skip-bad.",
    )
