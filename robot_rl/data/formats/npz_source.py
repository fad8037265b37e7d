"""Rows of the arrays in an .npz, without reading an array whole and without pickle.

numpy itself unpacks a whole array at a time. Here a member of the zip is read on from where the last rows ended, so memory
holds one episode.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from robot_rl.errors import DataError

_KINDS = "biuf"
# numpy has no types for it.
_NPY: Any = np.lib.format
_HEADERS = {(1, 0): _NPY.read_array_header_1_0, (2, 0): _NPY.read_array_header_2_0}


class NpzSource:
    """One .npz.

    Attributes:
        arrays: name -> (shape, dtype) of every array.

    Raises:
        DataError: nothing there, damaged (the checksum of every member is compared), or arrays of Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            bad = self._zip.testzip()
        except Exception as error:  # OSError, BadZipFile, EOFError, NotImplementedError, zlib.error, ...
            raise _damaged(path, f"{type(error).__name__}: {error}") from error
        if bad is not None:
            raise _damaged(path, f"another checksum in {bad}")
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        self._starts: dict[str, int] = {}
        self._open: dict[str, IO[bytes]] = {}
        # Asked for twice in a row (two cameras in one array), a zip would be read again from its start.
        self._last: dict[str, tuple[int, int, np.ndarray]] = {}
        for member in self._zip.namelist():
            name = member.removesuffix(".npy")
            with self._zip.open(member) as file:
                self.arrays[name], self._starts[name] = _header(file, where=f"{path}, {name}")

    def rows(self, name: str, start: int, stop: int, *, where: str) -> np.ndarray:
        """Rows [start, stop) of an array; fast when asked for in order.

        Raises:
            DataError: there are fewer.
        """
        if name in self._last and self._last[name][:2] == (start, stop):
            return self._last[name][2].copy()
        shape, dtype = self.arrays[name]
        width = int(np.prod(shape[1:])) * dtype.itemsize
        if name not in self._open:
            self._open[name] = self._zip.open(f"{name}.npy")
        try:
            self._open[name].seek(self._starts[name] + start * width)
            data = self._open[name].read((stop - start) * width)
        except Exception as error:  # zlib.error, BadZipFile and OSError
            raise _damaged(Path(where), f"{type(error).__name__}: {error}") from error
        if len(data) != (stop - start) * width:
            raise DataError(
                where, expected=f"rows {start} to {stop}", got=f"{len(data)} of {(stop - start) * width} bytes",
                hint="The file was cut off: copy it again.",
            )  # fmt: skip
        rows = np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])
        self._last[name] = (start, stop, rows)
        return rows.copy()

    def close(self) -> None:
        """Close the file."""
        for file in self._open.values():
            file.close()
        self._zip.close()


def _header(file: Any, *, where: str) -> tuple[tuple[tuple[int, ...], np.dtype], int]:
    """Shape, dtype and where the numbers begin, as numpy itself reads a header."""
    try:
        reader = _HEADERS[_NPY.read_magic(file)]
        shape, is_fortran, dtype = reader(file)
    except (ValueError, KeyError, TypeError, SyntaxError, EOFError) as error:
        raise _damaged(Path(where), f"{type(error).__name__}: {error}") from error
    if dtype.kind not in _KINDS or (is_fortran and len(shape) > 1):
        raise DataError(
            where,
            expected="numbers in C order",
            got=f"{dtype}" + " in Fortran order" * bool(is_fortran),
            hint="Python objects may run code when they are read, and are never: write this array again as numbers.",
        )
    return (shape, dtype), file.tell()


def _damaged(path: Path, got: str) -> DataError:
    return DataError(f"{path}", expected="a whole .npz", got=got, hint="A download that was cut off: get it again.")
