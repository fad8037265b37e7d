"""A foreign zarr of format 2, a directory or a zip, read with what zarr itself keeps quiet about.

zarr reads a missing chunk as its fill value, and runs any codec a file names, pickle included. Here a missing chunk is
an error unless the caller says it is known, and only codecs that unpack numbers are run.
"""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import DataError, closest

_CODECS = {"blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "delta", "shuffle", "bitround", "crc32", "adler32"}
_IMAGE_CODECS = "imagecodecs_"


class ZarrSource:
    """Groups and arrays below one root.

    Raises:
        DataError: nothing there, a damaged zip, or zarr format 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = self._names = None
        if path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"{path}", expected="a zarr directory or a whole .zarr.zip", got=str(error),
                    hint="A download or a copy that was cut off leaves such a file: get it again.",
                ) from error  # fmt: skip
            self._names = frozenset(self._zip.namelist())
        if self.has("zarr.json"):
            raise DataError(
                f"{path}",
                expected="zarr format 2, as diffusion_policy writes it (.zgroup, .zarray)",
                got="zarr format 3 (zarr.json)",
                hint="Write it again with zarr_format=2.",
            )
        if not self.has(".zgroup") and not self.has("meta/episode_ends/.zarray"):
            raise DataError(
                f"{path}",
                expected="a zarr group with data/ and meta/episode_ends at its root",
                got="nothing there" if not path.exists() else f"{', '.join(self._listing()[:8]) or 'an empty folder'}",
                hint="Give the path of replay_buffer.zarr itself; a zip must not hold it inside another folder.",
            )
        self._root: Any = None
        self._store: Any = None
        self._infos: dict[str, dict[str, Any]] = {}
        self._chunks: dict[str, frozenset[str]] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file of this name below the root."""
        return name in self._names if self._names is not None else (self.path / name).is_file()

    def attributes(self) -> dict[str, Any]:
        """Content of `.zattrs`, empty without one."""
        return self._json(".zattrs") if self.has(".zattrs") else {}

    def arrays(self, group: str) -> list[str]:
        """Names of the arrays right below a group, sorted; those of format 3, which `array` refuses, too."""
        if self._names is not None:
            inside = [tuple(name.split("/")) for name in self._names if name.startswith(f"{group}/")]
            return sorted({parts[-2] for parts in inside if len(parts) == 3 and parts[-1] in (".zarray", "zarr.json")})
        folder = self.path / group
        files = [*folder.glob("*/.zarray"), *folder.glob("*/zarr.json")] if folder.is_dir() else []
        return sorted({file.parent.name for file in files})

    def array(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of an array.

        Raises:
            DataError: there is none, it holds Python objects, or it is packed with a codec that may run code.
        """
        info = self._info(name)
        return tuple(info["shape"]), np.dtype(info["dtype"])

    def rows(self, name: str, start: int, stop: int, *, where: str, fill_is_known: bool = False) -> np.ndarray:
        """Rows [start, stop) of an array.

        Args:
            name: path of the array, for example "data/action".
            start, stop: rows.
            where: for errors, for example the episode.
            fill_is_known: missing chunks do hold the fill value (a writer with write_empty_chunks=False).

        Raises:
            DataError: a chunk is missing or damaged, or there are fewer rows.
        """
        shape, _ = self.array(name)
        if stop > shape[0]:
            raise DataError(
                f"{where}, {name}",
                expected=f"rows up to {stop}, as episode_ends says",
                got=f"{shape[0]} rows",
                hint="A writer was stopped: leave the episode out with --skip-bad, or cut episode_ends.",
            )
        missing = [] if fill_is_known else self._missing(name, start, stop)
        if missing:
            raise DataError(
                f"{where}, {name}",
                expected="a file for every chunk",
                got=f"none for {len(missing)}: {', '.join(missing[:3])} (zarr itself reads {self._info(name)['fill_value']})",
                hint="Copy the store again. If a writer left out chunks of zeros on purpose, name the key in the "
                "card's `empty_chunks`; or leave the episodes out with --skip-bad.",
            )
        try:
            return np.asarray(self._open()[name][start:stop])
        except Exception as error:  # every codec has errors of its own
            raise self._unreadable(name, where, error) from error

    def close(self) -> None:
        """Release the file."""
        if self._store is not None:
            self._store.close()
        if self._zip is not None:
            self._zip.close()

    def _open(self) -> Any:
        import zarr

        if self._root is None:
            if find_spec("imagecodecs") is not None:
                import_module("imagecodecs.numcodecs").register_codecs(verbose=False)
            if self._zip is not None:
                self._store = zarr.storage.ZipStore(self.path, mode="r")
            self._root = zarr.open_group(self._store or str(self.path), mode="r", zarr_format=2)
        return self._root

    def _info(self, name: str) -> dict[str, Any]:
        if name in self._infos:
            return self._infos[name]
        if self.has(f"{name}/zarr.json"):
            raise DataError(
                f"{self.path}, {name}",
                expected="an array of zarr format 2",
                got="one of format 3 inside a store of format 2 (zarr 3's Group.zeros and others write such)",
                hint="Write this array again with zarr_format=2.",
            )
        if not self.has(f"{name}/.zarray"):
            group, _, key = name.rpartition("/")
            options = self.arrays(group)
            raise DataError(
                f"{self.path}", expected=f"an array {name}", got="none", hint=closest(key, options) if options else ""
            )
        info = self._json(f"{name}/.zarray")
        codecs = [c for c in [info.get("compressor"), *(info.get("filters") or [])] if c is not None]
        strange = [
            c.get("id") for c in codecs if not (c.get("id") in _CODECS or str(c.get("id")).startswith(_IMAGE_CODECS))
        ]
        if strange or np.dtype(info["dtype"]).kind not in "biuf":
            raise DataError(
                f"{self.path}, {name}",
                expected="numbers, packed with a codec that only unpacks",
                got=f"dtype {info['dtype']}" + (f", codec {', '.join(map(str, strange))}" if strange else ""),
                hint="Python objects may run code when they are read: write this array again as numbers.",
            )
        self._infos[name] = info
        return info

    def _missing(self, name: str, start: int, stop: int) -> list[str]:
        """Chunks of rows [start, stop) that have no file."""
        info = self._info(name)
        separator = info.get("dimension_separator", ".")
        if name not in self._chunks:
            self._chunks[name] = self._chunk_names(name)
        first, last = start // info["chunks"][0], -(-stop // info["chunks"][0])
        others = [range(-(-size // chunk)) for size, chunk in zip(info["shape"][1:], info["chunks"][1:], strict=True)]
        wanted = (separator.join(map(str, place)) for place in itertools.product(range(first, last), *others))
        return [chunk for chunk in wanted if chunk not in self._chunks[name]]

    def _chunk_names(self, name: str) -> frozenset[str]:
        if self._names is not None:
            return frozenset(n[len(name) + 1 :] for n in self._names if n.startswith(f"{name}/"))
        folder = self.path / name
        found = [
            os.path.join(os.path.relpath(top, folder), file) for top, _, files in os.walk(folder) for file in files
        ]
        return frozenset(os.path.normpath(file) for file in found)

    def _json(self, name: str) -> dict[str, Any]:
        try:
            data = self._zip.read(name) if self._zip is not None else (self.path / name).read_bytes()
            content = json.loads(data)
            if not isinstance(content, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path}, {name}", expected="a JSON object", got=str(error), hint="The store is damaged."
            ) from error
        return content

    def _listing(self) -> Sequence[str]:
        if self._names is not None:
            return sorted(self._names)
        return sorted(p.name for p in self.path.iterdir())

    def _unreadable(self, name: str, where: str, error: Exception) -> DataError:
        codec = str((self._info(name).get("compressor") or {}).get("id"))
        hint = "The chunk is damaged: copy the store again, or leave the episode out with --skip-bad."
        if codec.startswith(_IMAGE_CODECS) and find_spec("imagecodecs") is None:
            hint = "This array is packed as images: pip install imagecodecs."
        return DataError(
            f"{where}, {name}", expected="data that can be unpacked", got=f"{type(error).__name__}: {error}", hint=hint
        )
