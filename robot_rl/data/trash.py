"""Stores that an edit replaced: `.trash/<name>.<time>` beside the store, where `restore` finds them again.

Nothing is ever removed from there by us; deleting the folder frees the space.
"""

from __future__ import annotations

import glob
import os
import re
from datetime import datetime
from pathlib import Path

from robot_rl.data.journal import WriterLock
from robot_rl.data.zarr_layout import sync_directory
from robot_rl.errors import DataError, closest

FOLDER = ".trash"
_TIME = r"\d{8}T\d{6}(-\d+)?"


def trashed(path: Path) -> list[Path]:
    """Former versions of the store at `path`, newest first."""
    found = (path.parent / FOLDER).glob(f"{glob.escape(path.name)}.*")
    return sorted((p for p in found if re.fullmatch(_TIME, p.name[len(path.name) + 1 :])), key=_age, reverse=True)


def to_trash(path: Path) -> Path:
    """Move the store at `path` to the trash; the caller holds its lock. Returns where it is now.

    Raises:
        DataError: when it can't be moved; it is where it was then.
    """
    folder = path.parent / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        name = f"{path.name}.{datetime.now():%Y%m%dT%H%M%S}"
        number, place = 1, folder / name
        while place.exists():
            number += 1
            place = folder / f"{name}-{number}"
        os.rename(path, place)
    except OSError as error:
        raise _not_moved(path, 0, error) from error
    for changed in (folder, path.parent):
        sync_directory(changed, on_error=_not_moved)
    return place


def put_in_place(finished: Path, path: Path, *, replaces: bool) -> Path | None:
    """Give a finished store its name; a store that is there goes to the trash first. Returns where that one is.

    A process that dies between the two renames leaves nothing at `path`; `restore` brings the former store back.

    Raises:
        DataError: when something is in the way, or can't be moved; all is as before then.
    """
    old = to_trash(path) if replaces else None
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(17, "something is there already")
        os.rename(finished, path)
    except OSError as error:
        if old is not None:
            os.rename(old, path)
        raise _not_moved(finished, 0, error) from error
    sync_directory(path.parent, on_error=_not_moved)
    return old


def restore(path: Path, *, version: str | None = None) -> tuple[Path, Path | None]:
    """Bring a former version of the store at `path` back; the present one goes to the trash, so this can be undone.

    Args:
        path: of the store, there or not.
        version: name of a folder in the trash; None takes the newest.

    Returns:
        The version that is back, by its former place in the trash; and where the one it replaced is now, or None.

    Raises:
        DataError: no such version, or a writer has the present store open.
    """
    versions = trashed(path)
    names = [place.name for place in versions]
    if not versions or (version is not None and version not in names):
        raise DataError(
            f"{path.parent / FOLDER}",
            expected=f"a former version of {path.name}" if version is None else f"the version {version!r}",
            got="none" if not versions else f"{len(versions)} others",
            hint=closest(version or "", names) if versions else "Only what an edit or a repair replaced is there.",
        )
    place = versions[0] if version is None else versions[names.index(version)]
    # Without .zgroup nothing can have the store open for append.
    lock = WriterLock(path) if (path / ".zgroup").exists() else None
    try:
        return place, put_in_place(place, path, replaces=path.exists())
    finally:
        if lock is not None:
            lock.release()


def size_on_disk(path: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _age(place: Path) -> tuple[str, int]:
    time, _, number = place.name.rpartition(".")[2].partition("-")
    return time, int(number or 1)


def _not_moved(path: Path, size: int, error: OSError) -> DataError:
    return DataError(
        f"{path}",
        expected="a folder that can be renamed",
        got=f"{error.strerror or error}",
        hint="Check the permissions of the folder it is in, and that nothing is at its new name.",
    )
