"""`.zattrs` of a store: what it is, and everything that says how its numbers are meant."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl import __version__
from robot_rl.data import episode_rows as er
from robot_rl.data.video import VIDEO_FORMATS, frame_rate
from robot_rl.data.video_files import ARRAYS, FOLDER, STORAGES, video_keys
from robot_rl.data.zarr_layout import read_json, refuse_mixed_formats
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec

SCHEMA = "robot_rl.episodes"
SCHEMA_VERSION = 1
# Only of stores with videos: software that knows no videos refuses them by this number.
_VIDEO_SCHEMA_VERSION = 2
SPEC_CHECKSUM, METADATA_CHECKSUM = "spec_sha256", "metadata_sha256"


def store_attributes(spec: EnvSpec, metadata: Mapping[str, Any], images: str) -> bytes:
    """Content of `.zattrs` for a new store; `images` says how it keeps them (video_files.STORAGES).

    Raises:
        DataError: when spec or metadata are no JSON, or `images` is no such word.
    """
    stored, videos = spec.to_json(), video_keys(spec, images)
    names = er.array_names(spec)
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION if images == ARRAYS else _VIDEO_SCHEMA_VERSION,
        "software": {"robot_rl": __version__},
        "spec": stored,
        # Repeated from the spec under the names that other tools look for.
        "fps": spec.control_hz,
        "robot": spec.robot,
        "joint_names": stored["joint_names"],
        "action": stored["action_semantics"],
        "arrays": {key: name for key, name in names.items() if key.removeprefix("final/") not in videos},
        "crc32_columns": [*names.values(), er.TEXT, "row of the other meta arrays"],
    }
    if images != ARRAYS:
        files = {key: f"{FOLDER}/{key.replace('/', '__')}/<episode>.mp4" for key in videos}
        video_format = VIDEO_FORMATS[images].to_json(frame_rate(spec.control_hz))
        content["images"] = {"storage": images, "files": files, **video_format}
    try:
        content[SPEC_CHECKSUM] = _checksum(json.loads(json.dumps(stored)))
        return changed_attributes(content, metadata)
    except (TypeError, ValueError) as error:
        raise DataError(
            "spec and metadata of a new store",
            expected="JSON types only",
            got=str(error),
            hint="Convert numpy numbers with int() or float(); use None for an unknown bound, NaN is no JSON.",
        ) from error


def changed_attributes(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """Content of `.zattrs` with this metadata (the card and the history are in it) and its checksum.

    Raises:
        TypeError, ValueError: the metadata are no JSON.
    """
    stored = json.loads(json.dumps(dict(metadata), allow_nan=False))
    changed = {**content, "metadata": stored, METADATA_CHECKSUM: _checksum(stored)}
    return json.dumps(changed, indent=1, allow_nan=False).encode()


def read_attributes(path: Path) -> tuple[EnvSpec, dict[str, Any], str]:
    """Spec and metadata of the store at `path`, and how it keeps images (video_files.STORAGES).

    Raises:
        DataError: when it is foreign, of another version, or damaged.
    """
    refuse_mixed_formats(path)
    content = read_json(path / ".zattrs") if (path / ".zattrs").exists() else {}
    if content.get("schema") != SCHEMA:
        raise DataError(
            f"{path}",
            expected=f"a store of schema {SCHEMA!r}",
            got="a foreign zarr (diffusion_policy's replay_buffer.zarr looks like this)",
            hint="It has no spec, seeds or checksums and must be imported: write its episodes to a store of our own.",
        )
    expected = SCHEMA_VERSION if "images" not in content else _VIDEO_SCHEMA_VERSION
    if content.get("schema_version") != expected:
        raise DataError(
            f"{path}",
            expected=f"schema version {expected}",
            got=f"{content.get('schema_version')}, written by {content.get('software')}",
            hint="Use the software version that wrote it, or convert the store.",
        )
    return parse_attributes(content, where=f"{path / '.zattrs'}")


def parse_attributes(content: Mapping[str, Any], *, where: str) -> tuple[EnvSpec, dict[str, Any], str]:
    """Spec, metadata and `images` in the content of a `.zattrs`; stores from before 2026-11-26 have no checksums.

    Raises:
        DataError: one is missing, of another type, or spec or metadata are not what was written.
    """
    stored = content.get("spec")
    for part, key in (("spec", SPEC_CHECKSUM), ("metadata", METADATA_CHECKSUM)):
        if key in content and content[key] != (found := _checksum(content.get(part))):
            raise DataError(
                f"{where}, {part}",
                expected=f"the {part} that was written ({key} {content[key]})",
                got=f"one with {found}",
                hint=f"Restore .zattrs from a copy. If you changed the {part} by hand and mean it, delete {key} too.",
            )
    spec, metadata = EnvSpec.from_json(stored, where=f"{where}, spec"), content.get("metadata")
    if not isinstance(metadata, dict):
        raise DataError(
            f"{where}, metadata",
            expected="an object",
            got=f"{type(metadata).__name__}",
            hint="Restore .zattrs from a copy.",
        )
    images = content.get("images", {"storage": ARRAYS})
    if not isinstance(images, dict) or images.get("storage") not in STORAGES:
        raise DataError(
            f"{where}, images", expected=f"storage {', '.join(STORAGES)}", got=f"{images!r:.80}",
            hint="Restore .zattrs from a copy.",
        )  # fmt: skip
    video_keys(spec, images["storage"])
    return spec, metadata, images["storage"]


def _checksum(spec: Any) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def require_store(path: Path) -> None:
    """Check that there is a zarr of format 2 at `path`.

    Raises:
        DataError: saying what is there instead.
    """
    if not path.exists():
        raise DataError(
            f"{path}",
            expected="an episode store",
            got="nothing at this path",
            hint="Check the path, or record or collect episodes first (EpisodeStore.create makes an empty store).",
        )
    if (path / "zarr.json").exists():
        refuse_mixed_formats(path)
    if not (path / ".zgroup").exists():
        raise DataError(
            f"{path}",
            expected="an episode store (a directory with .zgroup)",
            got="something else",
            hint="Give the path of the store itself, for example demos.zarr.",
        )
