"""The card of a dataset: where it comes from and how its numbers came about, in `store.metadata["card"]`.

It is kept in `.zattrs` beside the spec, so every copy and export carries it on. Nothing of the episodes changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_rl.data.journal import WriterLock, journal_directory
from robot_rl.data.rewriting import source_facts, with_history
from robot_rl.data.store import EpisodeStore
from robot_rl.data.store_attributes import changed_attributes
from robot_rl.data.zarr_layout import read_json, write_files
from robot_rl.errors import DataError, closest

# Field -> what belongs there.
FIELDS = {
    "origin": "who recorded it, where and when",
    "licence": "SPDX name, for example CC-BY-4.0",
    "robot": "arm, gripper, cameras, firmware",
    "operators": "how many people acted (a number)",
    "reward_rule": "how reward and success were given",
    "controller": "mode, gains, rate, frame, delays",
    "notes": "what a user must know",
}


def read_card(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The card in the metadata of a store; empty without one."""
    card = metadata.get("card")
    return dict(card) if isinstance(card, Mapping) else {}


def changed_card(metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The card in the metadata of a store with some fields set; None removes a field.

    Raises:
        DataError: for an unknown field.
    """
    for key in changes:
        if key not in FIELDS:
            raise DataError("dataset card", expected="a field of the card", got=repr(key), hint=closest(key, FIELDS))
    return {key: value for key, value in (read_card(metadata) | dict(changes)).items() if value is not None}


def parse_setting(text: str) -> tuple[str, Any]:
    """ "key=value" as field and value; a value that is JSON is taken as such, an empty one removes the field (None).

    Raises:
        DataError: for an unknown field or a text without "=".
    """
    key, equals, value = text.partition("=")
    if not equals or key not in FIELDS:
        raise DataError(f"card setting {text!r}", expected="FIELD=VALUE", got=repr(key), hint=closest(key, FIELDS))
    if not value:
        return key, None
    parsed = json_or_text(value)
    if key == "operators" and (not isinstance(parsed, int) or isinstance(parsed, bool) or parsed < 0):
        raise DataError(
            "card setting operators", expected="a number of people", got=repr(value), hint="Names belong in notes."
        )
    return key, parsed


def json_or_text(value: str) -> Any:
    """A word of a command line as JSON where it is some, else as it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def write_card(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change fields of the card, in one piece and as the store's only writer, and log it in the history.

    Args:
        path: of the store.
        changes: field -> new value, JSON types; None removes a field.

    Returns:
        The whole card.

    Raises:
        DataError: for an unknown field, a store that another writer has, or a disk that is full.
    """
    with EpisodeStore.open(path, mode="r") as store:
        changed_card(store.metadata, changes)
    lock = WriterLock(path)
    try:
        with EpisodeStore.open(path, mode="r") as store:
            source = source_facts(store)
        attributes = read_json(path / ".zattrs")
        card = changed_card(attributes["metadata"], changes)
        metadata = attributes["metadata"] | {"card": card}
        metadata = with_history(metadata, "card", arguments={"card": dict(changes)}, sources=[source])
        content = changed_attributes(attributes, metadata)
        write_files({path / ".zattrs": content}, journal_directory(path), on_error=_not_written)
    finally:
        lock.release()
    return card


def card_markdown(store: EpisodeStore) -> str:
    """The card as README.md for a hub: YAML front matter, what is in the data, and what was written on the card."""
    card, spec = read_card(store.metadata), store.spec
    licence = str(card.get("licence", "unknown"))
    meaning = spec.action_semantics
    counts = (
        f"{len(store)} episodes, {int(store.lengths.sum())} steps, {int(store.success.sum())} episodes with success, "
    )
    counts += f"recorded at {spec.control_hz:g} Hz with {spec.robot}."
    actions = f"{meaning.kind.value}, added to {meaning.delta_reference.value}, frame {meaning.frame}, rotation "
    actions += f"{meaning.rotation}, gripper {meaning.gripper}, control mode {meaning.control_mode}."
    lines = [
        "---", f"license: {json.dumps(licence.lower())}", "task_categories: [robotics]", "tags: [robot-rl, imitation]", "---",
        "", f"# {spec.env_id}", "",
        counts, "",
        "| field | |", "|---|---|",
        *(f"| {key} | {_cell(card.get(key, f'not said ({what})'))} |" for key, what in FIELDS.items()),
        "", "## Arrays", "", "| key | type | shape | units |", "|---|---|---|---|",
        *(f"| {key} | {a.dtype} | {a.shape} | {_cell(', '.join(dict.fromkeys(a.units)))} |"
          for key, a in (("action", spec.action), *spec.observation.items())),
        "", "## Actions", "",
        actions,
        "", f"Content hash (SHA-256): `{store.content_hash()}`", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _not_written(path: Path, size: int, error: OSError) -> DataError:
    return DataError(
        f"{path}", expected=f"to write {size} bytes", got=f"{error.strerror or error}",
        hint="Check permissions and free disk space. The card is as it was.",
    )  # fmt: skip
