"""Refuses HDF5 files that would keep the reader for ever: they are walked through in a child process first (hdf5_walk.py).

The child costs a Python start and an h5py import for all files of a dataset together. It is killed when it says nothing
for STALL_S, which is far longer than any look at one object takes.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from robot_rl.errors import DataError

STALL_S = 30.0
WALK = (sys.executable, "-m", "robot_rl.data.formats.hdf5_walk")
# A command line has an end.
_BATCH = 500
# (path, inode, size, change time) of files that were walked -> None, or what stopped the walk.
_known: dict[tuple[str, int, int, int], str | None] = {}


def require_walkable(paths: Sequence[Path]) -> None:
    """Walk through the files that were not yet, in one child process; the outcome is kept.

    Raises:
        DataError: there is one file, and HDF5 does not come to an end in it, or needs absurd memory for it.
    """
    left = [path for path in paths if path.is_file() and _identity(path) not in _known]
    while left:
        walked = dict(_walked(left[:_BATCH]))
        for path, got in walked.items():
            _known[_identity(path)] = got
        left = [path for path in left if path not in walked]
    if len(paths) == 1 and paths[0].is_file() and (got := _known[_identity(paths[0])]) is not None:
        raise DataError(
            f"{paths[0]}",
            expected="a whole HDF5 file",
            got=got,
            hint="Its inner lists are damaged: copy it again from where it comes, or leave it out.",
        )


def _walked(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Outcome of each file up to the first that stops the walk, at least of one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    command = [*WALK, *(str(path.absolute()) for path in paths)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    at, done = 0, 0
    try:
        for line in _lines(child):
            if line is None:
                yield paths[at], f"one in which HDF5 made no progress for {STALL_S:g} s"
                return
            number, _, outcome = line.partition(" ")
            if number.isdecimal():
                at = int(number)
            if outcome:
                done = at + 1
                # Other damage is met by the reader, which can say more of it.
                yield paths[at], f"one that needs absurd memory ({outcome})" if _is_memory(outcome) else None
        if done < len(paths):
            code = child.wait()
            yield paths[at], f"one that ends the process of its reader (exit code {code})"
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _lines(child: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Lines that the child prints; None at the end when it went silent."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while selector.select(STALL_S):
            read = os.read(child.stdout.fileno(), 65536)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
    yield None


def _is_memory(outcome: str) -> bool:
    return any(word in outcome.lower() for word in ("memoryerror", "memory alloc", "unable to allocate", "malloc"))


def _identity(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns
