"""Looks at everything of HDF5 files but their bulk data, in a process of its own: some damage sends HDF5 round for ever.

    python -m robot_rl.data.formats.hdf5_walk FILE ...

Prints "<number>" when a file is begun, "." at each of its objects, and "<number> ok" or "<number> <error>". A list of free
blocks whose last entry names itself (one flipped byte) makes libhdf5 2.0 allocate without end while it holds Python's lock,
so no timer of the same process could stop it. hdf5_guard.py runs this and waits.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

MEMORY_BYTES = 1024**3
# A smaller dataset of text or references is read, since its values lie elsewhere in the file.
_SMALL = 4096


def main(paths: list[str]) -> None:
    """Walk each file; errors are printed, not raised."""
    import h5py

    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for number, path in enumerate(paths):
        _say(f"{number}")
        try:
            with h5py.File(path, "r") as file:
                _walk(file, set())
            _say(f"{number} ok")
        # Whatever it is: the parent meets the same, or refuses the file by this text.
        except Exception as error:
            _say(f"{number} {type(error).__name__}: {' '.join(str(error).split())}")


def _walk(group: Any, seen: set[int]) -> None:
    """Attributes, links and chunk lists below a group; a group that was seen is not entered again."""
    import h5py

    _attributes(group)
    for name in group:
        _say(".")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        entry = group[name]
        address = h5py.h5o.get_info(entry.id).addr
        if address in seen:
            continue
        seen.add(address)
        if isinstance(entry, h5py.Group):
            _walk(entry, seen)
        elif isinstance(entry, h5py.Dataset):
            _attributes(entry)
            if entry.chunks is not None:
                entry.id.get_num_chunks()
            if entry.dtype.kind == "O" and entry.shape is not None and entry.size <= _SMALL:
                entry[()]


def _attributes(entry: Any) -> None:
    for name in entry.attrs:
        _say(".")
        entry.attrs[name]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
