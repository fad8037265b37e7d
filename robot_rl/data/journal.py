"""What makes an append durable and exclusive: a journal of rows that are not folded in yet, and the writer's lock.

A journal file is complete or absent. It is written before the arrays are touched and removed after they are committed,
so whoever opens the store next can repeat an interrupted append.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from robot_rl.arrays import Array
from robot_rl.data.zarr_layout import sync_directory, write_files
from robot_rl.errors import DataError

_DIRECTORY = ".journal"
_WRITER = "writer"


def journal_directory(store: Path) -> Path:
    """Directory of the journal and of unfinished files."""
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
    """Exclusive lock of a store; the system frees it when the process ends, however it ends.

    The lock is on `.zgroup`, which never changes, and the journal's directory exists only while a writer has it: zarr
    warns of directories that it does not know.
    """

    def __init__(self, store: Path) -> None:
        """Take the lock of the store at `store`.

        Raises:
            DataError: when another writer has it, or the store can't be written.
        """
        import fcntl

        note = journal_directory(store) / _WRITER
        self._descriptor = self._folder = -1
        try:
            self._descriptor = os.open(store / ".zgroup", os.O_RDWR)
            # flock and not lockf: it also refuses a second writer in the same process.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An edit may have put a new store here between the two lines above: our lock would be on the old one.
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(store / ".zgroup")):
                raise BlockingIOError
            # By descriptor, as an edit renames the folder while it holds the lock.
            self._folder = os.open(store, os.O_RDONLY)
            journal_directory(store).mkdir(exist_ok=True)
            # Without it a power cut could take the directory away, and with it a journal that was called durable.
            sync_directory(store, on_error=_not_locked)
            note.write_text(f"process {os.getpid()}")
        except BlockingIOError:
            os.close(self._descriptor)
            raise DataError(
                f"{store}",
                expected="no other writer",
                got=f"a lock held by {note.read_text() if note.exists() else 'another process'}",
                hint="Only one process may append. Wait for it, stop it, or open with mode='r'.",
            ) from None
        except OSError as error:
            self.release()
            raise _not_locked(store, 0, error) from error
        except DataError:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back; may be called twice."""
        import fcntl

        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            os.unlink(f"{_DIRECTORY}/{_WRITER}", dir_fd=self._folder)
        with contextlib.suppress(OSError):
            # Stays when a full disk left a journal in it.
            os.rmdir(_DIRECTORY, dir_fd=self._folder)
        if self._folder >= 0:
            os.close(self._folder)
        # A forked child may hold a copy of the descriptor, so closing ours would not be enough.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = self._folder = -1


def _not_locked(store: Path, size: int, error: OSError) -> DataError:
    return DataError(
        f"{store}",
        expected="a store that can be written",
        got=f"{error.strerror or error}",
        hint="Check permissions and disk space, or open with mode='r'.",
    )
