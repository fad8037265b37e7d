"""An empty store on the disk: whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl.data import episode_rows as er
from robot_rl.data.journal import journal_directory
from robot_rl.data.store_attributes import store_attributes
from robot_rl.data.video_files import FOLDER, VideoFiles
from robot_rl.data.zarr_layout import sync_directory, write_files
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec


def write_new_store(path: Path, spec: EnvSpec, *, metadata: Mapping[str, Any], images: str) -> None:
    """Put an empty store at `path`, through a hidden name beside it; arguments as EpisodeStore.create.

    Raises:
        DataError: when something is at `path`, the spec or metadata can't be stored, or the disk is full.
    """
    require_nothing_at(path, hint="choose another path, or use open_or_create to append.")
    attributes = store_attributes(spec, metadata, images)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    videos = VideoFiles(unfinished, spec, images)
    groups = ("", "data", "meta", *([FOLDER] if videos.keys else []))
    files = {unfinished / group / ".zgroup": b'{"zarr_format": 2}' for group in groups}
    layout = er.array_layout(spec, unfinished, videos=videos.keys)
    files |= dict(array.metadata_file(0) for array in layout.values())
    files[unfinished / ".zattrs"] = attributes
    try:
        for directory in {file.parent for file in files} | {journal_directory(unfinished), *videos.folders()}:
            directory.mkdir(parents=True, exist_ok=True)
        write_files(files, journal_directory(unfinished), on_error=_not_created)
        journal_directory(unfinished).rmdir()
        os.rename(unfinished, path)
        sync_directory(path.parent, on_error=_not_created)
    except OSError as error:
        raise _not_created(path, len(attributes), error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def require_nothing_at(path: Path, *, hint: str = "choose another target.") -> None:
    """Raise DataError where something is at `path`; an empty folder is nothing."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(
            f"{path}",
            expected="a path with nothing there",
            got="a file or a directory that is not empty",
            hint=f"Nothing is ever overwritten: {hint}",
        )


def _not_created(path: Path, size: int, error: OSError) -> DataError:
    return DataError(
        f"{path}",
        expected=f"to write {size} bytes",
        got=f"{error.strerror or error}",
        hint="Check permissions and free disk space. No store was made.",
    )
