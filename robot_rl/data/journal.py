"""What makes an append durable and exclusive: a journal of rows that are not folded in yet, and the writer's lock.

A journal file is complete or absent. It is written before the arrays are touched and removed after they are committed,
so whoever opens the store next can repeat an interrupted append.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.zarr_layout import write_files
from robot_rl.errors import DataError

_DIRECTORY = ".journal"


def journal_directory(store: Path) -> Path:
    """Directory of journal, unfinished files and lock."""
    return store / _DIRECTORY


def pending_journals(store: Path) -> list[Path]:
    """Journal files that wait to be folded in, oldest first."""
    return sorted(journal_directory(store).glob("*.npz"))


def write_journal(store: Path, first_episode: int, rows: Mapping[str, Array]) -> Path:
    """Put the rows of new episodes on the disk; durable when this returns.

    Args:
        store: directory of the store.
        first_episode: index of the first new episode.
        rows: array name -> rows to add.

    Raises:
        DataError: naming path and bytes when the disk is full; nothing is left behind then.
    """
    packed = io.BytesIO()
    np.savez(packed, **dict(rows))
    path = journal_directory(store) / f"{first_episode:012d}.npz"

    def not_saved(path: Path, size: int, error: OSError) -> DataError:
        # Only the rename counts: a journal that is in place but not synced must not come back as an episode.
        (journal_directory(store) / f"{first_episode:012d}.npz").unlink(missing_ok=True)
        return DataError(
            f"{path}",
            expected=f"to write {size} bytes",
            got=f"{error.strerror or error}",
            hint=f"Free some disk space. This append was not saved; the {first_episode} episodes before it are intact.",
        )

    write_files({path: packed.getvalue()}, journal_directory(store), on_error=not_saved)
    return path


def read_journal(path: Path) -> tuple[int, dict[str, np.ndarray]]:
    """First episode and rows of a journal file.

    Raises:
        DataError: when the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return int(path.stem), {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"journal {path}",
            expected="the rows of an interrupted append",
            got=f"{type(error).__name__}: {error}",
            hint="The disk lost data. Move this file away to go on with the committed episodes.",
        ) from error


def sweep(store: Path) -> None:
    """Remove unfinished files of a writer that died."""
    for path in journal_directory(store).glob("tmp-*"):
        path.unlink(missing_ok=True)


class WriterLock:
    """Exclusive lock of a store; the system frees it when the process ends, however it ends."""

    def __init__(self, store: Path) -> None:
        """Take the lock of the store at `store`.

        Raises:
            DataError: when another writer has it, or the store can't be written.
        """
        import fcntl

        path = journal_directory(store) / "lock"
        try:
            path.parent.mkdir(exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DataError(
                f"{store}",
                expected="a store that can be written",
                got=f"{error.strerror or error}",
                hint="Check the permissions, or open with mode='r'.",
            ) from error
        try:
            # flock and not lockf: it also refuses a second writer in the same process.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 100, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise DataError(
                f"{store}",
                expected="no other writer",
                got=f"a lock held by {holder or 'another process'}",
                hint="Only one process may append. Wait for it, stop it, or open with mode='r'.",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()}".encode(), 0)

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
