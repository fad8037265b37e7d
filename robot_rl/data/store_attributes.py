"""`.zattrs` of a store: what it is, and everything that says how its numbers are meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl import __version__
from robot_rl.data import episode_rows as er
from robot_rl.data.zarr_layout import read_json, refuse_mixed_formats
from robot_rl.errors import DataError
from robot_rl.specs import EnvSpec

SCHEMA = "robot_rl.episodes"
SCHEMA_VERSION = 1


def store_attributes(spec: EnvSpec, metadata: Mapping[str, Any]) -> bytes:
    """Content of `.zattrs` for a new store.

    Raises:
        DataError: when spec or metadata are no JSON.
    """
    stored = spec.to_json()
    content = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "software": {"robot_rl": __version__},
        "spec": stored,
        # Repeated from the spec under the names that other tools look for.
        "fps": spec.control_hz,
        "robot": spec.robot,
        "joint_names": stored["joint_names"],
        "action": stored["action_semantics"],
        "arrays": er.array_names(spec),
        "crc32_columns": [*er.array_names(spec).values(), er.TEXT, "row of the other meta arrays"],
        "metadata": dict(metadata),
    }
    try:
        return json.dumps(content, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(
            "spec and metadata of a new store",
            expected="JSON types only",
            got=str(error),
            hint="Convert numpy numbers with int() or float(); use None for an unknown bound, NaN is no JSON.",
        ) from error


def read_attributes(path: Path) -> tuple[EnvSpec, dict[str, Any]]:
    """Spec and metadata of the store at `path`.

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
    if content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path}",
            expected=f"schema version {SCHEMA_VERSION}",
            got=f"{content.get('schema_version')}, written by {content.get('software')}",
            hint="Use the software version that wrote it, or convert the store.",
        )
    try:
        return EnvSpec.from_json(content["spec"]), dict(content["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path / '.zattrs'}",
            expected="the spec and metadata that every store has",
            got=f"{type(error).__name__}: {error}",
            hint="The store is damaged: restore .zattrs from a copy.",
        ) from error


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
