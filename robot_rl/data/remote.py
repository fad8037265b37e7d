"""Remote stores, read only: copied once into a cache folder through fsspec, checked, and read from there.

A copy is made under a hidden name and gets its own only when every byte of it was compared with the checksums in the
store: a download that was cut off is never read. What the remote side lists (names, sizes, ETags or times) is part of
the copy's name, so a store that grew is copied anew; files that did not change are linked from the copy before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from robot_rl.errors import DataError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
}
# What file systems call the version of a file; any that is there counts.
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "crc32c",
    "generation",
    "blob_id",
    "LastModified",
    "mtime",
    "created",
    "updated",
)
_RESERVED_BYTES = 64 * 1024**2
_BATCH_FILES = 64
_log = logging.getLogger(__name__)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL; also one whose double slash went lost in a Path."""
    return _URL.match(os.fspath(path)) is not None


def refuse_remote(path: str | os.PathLike[str], *, unless: bool = False) -> None:
    """Refuse to write to a remote store.

    Raises:
        DataError: for a URL, unless told otherwise.
    """
    if not unless and is_remote(path):
        raise DataError(
            f"{_url(path)}",
            expected="a local path, to write to",
            got="a remote store, which is read only",
            hint="An append over a network can't be made safe against a cut: write to a local store and copy that.",
        )


def cache_folder() -> Path:
    """Where copies go: $XDG_CACHE_HOME/robot_rl/stores, ~/.cache by default."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "robot_rl" / "stores"


def mirrored(
    path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None, verify: Callable[[Path], None]
) -> Path:
    """Local copy of a remote store.

    Args:
        path: URL that fsspec understands.
        cache: folder for copies; None: `cache_folder()`.
        verify: raises DataError for a copy that is damaged.

    Raises:
        DataError: fsspec or the package for this kind of URL is missing, there is nothing at the URL, the disk is full,
            the connection breaks, or the copy is not whole.
    """
    url = _url(path)
    system, root = _file_system(url)
    listing = _listing(system, root, url)
    folder = (cache_folder() if cache is None else Path(cache)) / _folder_name(url)
    version = hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()[:16]
    copy = folder / version
    size = sum(info["size"] for info in listing.values())
    if copy.exists():
        _log.info("%s: the copy in %s is up to date (%s)", url, copy, _megabytes(size))
        return copy
    _require_room(folder, size, url)
    unfinished = folder / f".{version}.{uuid.uuid4().hex[:8]}"
    try:
        linked = _link_unchanged(_newest(folder), unfinished, listing)
        rest = {name: info for name, info in listing.items() if name not in linked}
        missing = _megabytes(sum(info["size"] for info in rest.values()))
        _log.info("%s: %s in %d files, %s to download to %s", url, _megabytes(size), len(listing), missing, copy)
        _download(system, root, rest, unfinished, url)
        if _listing(system, root, url) != listing:
            raise DataError(
                url,
                expected="a store that stays as it is while it is copied",
                got="files that changed",
                hint="Someone writes to it. Try again when they are done.",
            )
        _verify(verify, unfinished, url)
        os.rename(unfinished, copy)
        copy.with_suffix(".json").write_text(json.dumps(listing, sort_keys=True))
    except OSError as error:
        if copy.exists():  # another process was faster
            return copy
        raise DataError(
            f"{folder}",
            expected=f"to keep a copy of {url} ({size} bytes)",
            got=f"{error.strerror or error}",
            hint="Check permissions and free disk space, or name another cache folder.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def _verify(verify: Callable[[Path], None], copy: Path, url: str) -> None:
    try:
        verify(copy)
    except DataError as error:
        place = error.where.replace(str(copy), "").strip("/, ")
        raise DataError(
            f"{url}, {place}" if place else url,
            expected=error.expected,
            got=error.got,
            hint="Nothing of this copy is used. The remote store is damaged, or no store of ours.",
        ) from error


def _url(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    match = _URL.match(text)
    if match is None:
        return text
    rest = text[match.end() :].rstrip("/")
    # Path("s3://bucket/x") became "s3:/bucket/x".
    return f"{match.group(1).lower()}:/{rest}" if rest.startswith("/") else f"{match.group(1).lower()}://{rest}"


def _folder_name(url: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", url.split("?")[0].split("@")[-1])[-60:].strip("_.")
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _file_system(url: str) -> tuple[Any, str]:
    protocol = url.split("://")[0]
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        missing = "fsspec" if getattr(error, "name", None) == "fsspec" else package
        raise DataError(
            url,
            expected=f"the package that reads {protocol}://",
            got=f"{error}",
            hint=f"pip install {missing}" if missing else "Install it, or copy the store to a local disk.",
        ) from error
    except ValueError as error:
        raise DataError(
            url,
            expected="a URL that fsspec knows",
            got=f"{error}",
            hint="For example s3://bucket/demos.zarr, gs:// or hf://.",
        ) from error
    return system, str(root)


def _listing(system: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    """Relative name -> size and version of every file, sorted; what a writer at work keeps aside is left out."""
    try:
        system.invalidate_cache()
        found = system.find(root, detail=True)
    except Exception as error:  # every file system has errors of its own
        raise _failed(url, error) from error
    listing = {}
    for name, info in sorted(found.items()):
        relative = PurePosixPath(name.removeprefix(root).lstrip("/"))
        if ".." in relative.parts or relative.is_absolute() or not relative.parts:
            raise DataError(url, expected="files inside the store", got=repr(name), hint="Don't use this store.")
        if relative.parts[0] != ".journal":
            versions = {key: str(info[key]) for key in _VERSIONS if info.get(key) is not None}
            listing[str(relative)] = {"size": int(info.get("size") or 0), **versions}
    if ".zgroup" not in listing:
        raise DataError(
            url,
            expected="an episode store (a folder with .zgroup)",
            got=f"{len(listing)} files, {', '.join([*listing][:3])}" if listing else "nothing there",
            hint="Give the URL of the store itself, for example s3://bucket/demos.zarr.",
        )
    return listing


def _download(system: Any, root: str, files: Mapping[str, Mapping[str, Any]], target: Path, url: str) -> None:
    names = list(files)
    for start in range(0, len(names), _BATCH_FILES):
        batch = names[start : start + _BATCH_FILES]
        for name in batch:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            system.get([f"{root}/{name}" for name in batch], [str(target / name) for name in batch])
        except Exception as error:  # every file system has errors of its own
            if isinstance(error, OSError) and error.errno == 28:
                raise
            raise _failed(url, error) from error
        for name in batch:
            got = (target / name).stat().st_size if (target / name).exists() else -1
            if got != files[name]["size"]:
                raise DataError(
                    f"{url}/{name}",
                    expected=f"{files[name]['size']} bytes",
                    got=f"{max(got, 0)} after the download",
                    hint="The connection broke: try again. Nothing of this copy is used.",
                )


def _link_unchanged(before: Path | None, target: Path, listing: Mapping[str, Any]) -> set[str]:
    """Files of the copy before that are the same in the listing, linked into `target`."""
    target.mkdir(parents=True)
    if before is None:
        return set()
    try:
        old = json.loads(before.with_suffix(".json").read_text())
    except ValueError:
        return set()
    # Two files of one size may differ: only what the remote side calls the same version counts.
    same = {
        name for name, info in listing.items() if len(info) > 1 and old.get(name) == info and (before / name).exists()
    }
    for name in same:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(before / name, target / name)
    return same


def _newest(folder: Path) -> Path | None:
    copies = [file.with_suffix("") for file in folder.glob("*.json") if file.with_suffix("").is_dir()]
    return max(copies, key=lambda copy: copy.with_suffix(".json").stat().st_mtime, default=None)


def _require_room(folder: Path, size: int, url: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataError(
            f"{folder}",
            expected="a folder for copies of remote stores",
            got=f"{error.strerror or error}",
            hint="Name another one with cache=..., or set XDG_CACHE_HOME.",
        ) from error
    if free < size + _RESERVED_BYTES:
        raise DataError(
            f"{folder}",
            expected=f"{size + _RESERVED_BYTES} bytes free ({size} for {url}, the rest in reserve)",
            got=f"{free}",
            hint="Free some disk space, or name another cache folder.",
        )


def _failed(url: str, error: Exception) -> DataError:
    return DataError(
        url,
        expected="to read it",
        got=f"{type(error).__name__}: {error}",
        hint="Check the address, your credentials and the network. Nothing was changed; no partial copy is used.",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
