"""Arrays of zarr format 2 on disk: a JSON file `.zarray` and chunk files named "i.0.0".

Any zarr library reads them. They are written here by hand because a store that survives a power cut must fsync and
rename every chunk, which zarr's own writer does not, and because zarr reads a missing chunk as zeros without a word.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Shaped
from robot_rl.errors import DataError

CHUNK_BYTES = 2 * 1024**2
LOW_DIM_CODEC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
IMAGE_CODEC = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 0, "blocksize": 0}
_BLOSC_HEADER_BYTES = 16
_RESTORE = "The store is damaged: restore it from a copy, or make it anew."


@dataclass(frozen=True)
class ZarrArray:
    """One array, chunked along its first axis only.

    Attributes:
        path: directory of the array.
        dtype: numpy name of the elements.
        row_shape: shape behind the first axis.
        max_chunk_rows: upper limit of rows in a chunk; fewer when they are over 2 MB.
        codec: numcodecs configuration, or None for uncompressed.
    """

    path: Path
    dtype: str
    row_shape: tuple[int, ...]
    max_chunk_rows: int
    codec: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Path inside the store, for example "data/action"."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def row_bytes(self) -> int:
        """Size of one row in memory."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def chunk_rows(self) -> int:
        """Rows in every chunk; the last one is filled up with zeros, as zarr format 2 wants it."""
        return max(1, min(self.max_chunk_rows, CHUNK_BYTES // self.row_bytes))

    def metadata_file(self, length: int) -> tuple[Path, bytes]:
        """Path and content of `.zarray` for `length` rows."""
        dtype = np.dtype(self.dtype)
        content = {
            "zarr_format": 2,
            "shape": [length, *self.row_shape],
            "chunks": [self.chunk_rows, *self.row_shape],
            "dtype": dtype.newbyteorder("<").str,
            "compressor": None if self.codec is None else dict(self.codec),
            "fill_value": False if dtype.kind == "b" else 0,
            "order": "C",
            "filters": None,
        }
        return self.path / ".zarray", json.dumps(content, indent=1).encode()

    def length(self) -> int:
        """Number of rows by `.zarray`, which must be as this code writes it in everything else.

        Raises:
            DataError: when `.zarray` is missing or describes another array.
        """
        file = self.path / ".zarray"
        stored = read_json(file)
        shape = stored.get("shape")
        length = shape[0] if isinstance(shape, list) and shape and isinstance(shape[0], int) else -1
        if stored != json.loads(self.metadata_file(length)[1]) or length < 0:
            raise DataError(
                f"array {self.name} ({file})",
                expected=f"{self.dtype} rows of shape {self.row_shape} in chunks of {self.chunk_rows} rows",
                got=f"dtype {stored.get('dtype')}, shape {shape}, chunks {stored.get('chunks')}",
                hint=_RESTORE,
            )
        return length

    def check(self, length: int) -> None:
        """Check that every chunk of the first `length` rows exists and is whole, without unpacking it.

        Raises:
            DataError: naming the array and the chunk.
        """
        for chunk in range(math.ceil(length / self.chunk_rows)):
            try:
                with open(self._chunk_path(chunk), "rb") as file:
                    size, header = os.fstat(file.fileno()).st_size, file.read(_BLOSC_HEADER_BYTES)
            except FileNotFoundError:
                raise self._damaged(chunk, "no such file (zarr itself would read zeros)") from None
            self._check_size(chunk, size, header)

    def read(self, start: int, stop: int) -> Shaped[Array, "rows ..."]:
        """Rows [start, stop) as a new array.

        Raises:
            DataError: when a chunk is missing or damaged.
        """
        out = np.empty((stop - start, *self.row_shape), self.dtype)
        for chunk in range(start // self.chunk_rows, math.ceil(stop / self.chunk_rows)):
            begin = chunk * self.chunk_rows
            low, high = max(start, begin), min(stop, begin + self.chunk_rows)
            out[low - start : high - start] = self._decode(chunk)[low - begin : high - begin]
        return out

    def chunk_files(self, start: int, rows: Shaped[Array, "rows ..."]) -> dict[Path, bytes]:
        """Files that put `rows` behind the first `start` rows; what lies behind them on disk is dropped."""
        stop = start + len(rows)
        files = {}
        for chunk in range(start // self.chunk_rows, math.ceil(stop / self.chunk_rows)):
            begin = chunk * self.chunk_rows
            content = np.zeros((self.chunk_rows, *self.row_shape), np.dtype(self.dtype).newbyteorder("<"))
            if begin < start:
                content[: start - begin] = self._decode(chunk)[: start - begin]
            low, high = max(start, begin), min(stop, begin + self.chunk_rows)
            content[low - begin : high - begin] = rows[low - start : high - start]
            files[self._chunk_path(chunk)] = self._encode(content)
        return files

    def _chunk_path(self, chunk: int) -> Path:
        return self.path / ".".join([str(chunk), *("0" for _ in self.row_shape)])

    def _encode(self, content: np.ndarray) -> bytes:
        return content.tobytes() if self.codec is None else bytes(_codec(self.codec).encode(content))

    def _decode(self, chunk: int) -> np.ndarray:
        try:
            packed = self._chunk_path(chunk).read_bytes()
        except FileNotFoundError:
            raise self._damaged(chunk, "no such file (zarr itself would read zeros)") from None
        self._check_size(chunk, len(packed), packed[:_BLOSC_HEADER_BYTES])
        try:
            plain = packed if self.codec is None else _codec(self.codec).decode(packed)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(chunk, f"bytes that can't be unpacked ({error})") from error
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.frombuffer(plain, dtype).reshape(self.chunk_rows, *self.row_shape)

    def _check_size(self, chunk: int, size: int, header: bytes) -> None:
        plain = self.chunk_rows * self.row_bytes
        if self.codec is None:
            if size != plain:
                raise self._damaged(chunk, f"a file of {size} instead of {plain} bytes")
        elif len(header) < _BLOSC_HEADER_BYTES:
            raise self._damaged(chunk, f"a file cut off after {size} bytes")
        else:
            unpacked, _, packed = struct.unpack("<III", header[4:])
            if (size, plain) != (packed, unpacked):
                raise self._damaged(chunk, f"a file of {size} bytes whose header says {packed}, unpacked {unpacked}")

    def _damaged(self, chunk: int, got: str) -> DataError:
        path = self._chunk_path(chunk)
        return DataError(f"array {self.name}, chunk {path}", expected="a whole chunk file", got=got, hint=_RESTORE)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: when the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}", expected="a JSON object", got=f"{error}", hint=_RESTORE) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}", expected="a JSON object", got=type(content).__name__, hint=_RESTORE)
    return content


def refuse_mixed_formats(group: Path) -> None:
    """Refuse a group or array of format 2 with a `zarr.json` beside it: zarr 3 would see the other one and hide ours.

    Raises:
        DataError: naming the file.
    """
    if (group / "zarr.json").exists():
        raise DataError(
            f"{group / 'zarr.json'}",
            expected="zarr format 2 only (.zgroup, .zarray)",
            got="metadata of zarr format 3 beside it",
            hint="Another program wrote into this store. Remove zarr.json if you trust the rest, or restore a copy.",
        )


def write_files(
    files: Mapping[Path, bytes], temporary: Path, *, on_error: Callable[[Path, int, OSError], DataError]
) -> None:
    """Write files so that each is old or new, never half, and all are on the disk when this returns.

    Args:
        files: path -> content; the directories exist.
        temporary: directory for unfinished files, on the same file system.
        on_error: makes the error to raise from path, bytes and the failure of the system.
    """
    directories: dict[Path, list[Path]] = {}
    for path in files:
        directories.setdefault(path.parent, []).append(path)

    def write_directory(directory: Path) -> None:
        for path in directories[directory]:
            _write_file(path, files[path], temporary, on_error)
        sync_directory(directory, on_error=on_error)

    if len(directories) == 1:
        write_directory(next(iter(directories)))
        return
    # An fsync waits for the disk, not for Python; many together cost half or less.
    with ThreadPoolExecutor(min(8, len(directories))) as pool:
        list(pool.map(write_directory, directories))


def _write_file(path: Path, content: bytes, temporary: Path, on_error: Callable[..., DataError]) -> None:
    unfinished = temporary / f"tmp-{path.parent.parent.name}-{path.parent.name}-{path.name}"
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise on_error(path, len(content), error) from error


def sync_directory(path: Path, *, on_error: Callable[[Path, int, OSError], DataError]) -> None:
    """Make new, renamed and removed names in a directory durable; `on_error` as in `write_files`."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise on_error(path, 0, error) from error


def _codec(config: Mapping[str, Any]) -> Any:
    from numcodecs import get_codec

    return get_codec(dict(config))
