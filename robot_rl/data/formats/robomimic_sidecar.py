"""What robomimic's HDF5 has no place for, in a group `/robot_rl` that its loaders never open.

    robot_rl              attrs: schema, version
      json                of the whole store: card, metadata, content hash, how the file was made
      demo_<i>/json       of one episode: how it ended, metadata, checksums
      demo_<i>/success, source, time (T)   action (T, A) only where `actions` were scaled
      demo_<i>/final/<key>                 the observation behind the last action, one row
JSON is kept as bytes, since an HDF5 attribute holds 64 KB at most. A checksum is the CRC-32 of what
`RobomimicSource.rows` gives, so that nothing that was changed or swapped since the export is taken for ours.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from robot_rl.data.formats.hdf5_source import read_rows
from robot_rl.errors import DataError

GROUP = "robot_rl"
SCHEMA = "robot_rl.robomimic"
VERSION = 1
SUCCESS, SOURCE, TIME, ACTION = (f"{GROUP}/{name}" for name in ("success", "source", "time", "action"))
CHANGED = (
    "The file was changed since robot-rl wrote it: export it again, or delete its group /robot_rl to import the rest."
)


def write_json(group: Any, content: Mapping[str, Any]) -> None:
    """Put JSON beside its checksum into an h5py group."""
    data = np.frombuffer(json.dumps(dict(content), allow_nan=False).encode(), np.uint8)
    dataset = group.create_dataset("json", data=data)
    dataset.attrs["crc32"] = zlib.crc32(data.data)


def read_json(group: Any, *, where: str) -> dict[str, Any]:
    """Inverse of `write_json`.

    Raises:
        DataError: it is missing or damaged.
    """
    data = read_rows(group, "json", where=where)
    if data.dtype != np.uint8 or int(group["json"].attrs.get("crc32", -1)) != zlib.crc32(data.data):
        raise DataError(f"{where}, json", expected="its checksum", got="another one", hint=CHANGED)
    content: dict[str, Any] = json.loads(data.tobytes())
    return content


def sidecar_of(file: Any, demos: list[str], *, where: str) -> dict[str, Any] | None:
    """JSON of the whole store, or None in a file of another program.

    Raises:
        DataError: damaged, of a newer version, or not of these demos.
    """
    if GROUP not in file or file[GROUP].attrs.get("schema") != SCHEMA:
        return None
    place = f"{where}, /{GROUP}"
    version = int(file[GROUP].attrs.get("version", 0))
    if version != VERSION:
        raise DataError(place, expected=f"version {VERSION}", got=f"{version}", hint="Update robot-rl.")
    content = read_json(file[GROUP], where=place)
    if content["demos"] != demos:
        odd = sorted(set(content["demos"]) ^ set(demos))
        raise DataError(
            place, expected=f"{len(content['demos'])} demos, as robot-rl wrote", got=f"{len(demos)} ({', '.join(odd[:5])})",
            hint=CHANGED,
        )  # fmt: skip
    return content
