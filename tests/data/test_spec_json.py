"""A spec that was damaged or retyped is refused by file and field: in a store by its checksum, elsewhere by its types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robot_rl.data.damage import survey
from robot_rl.data.dataset_card import write_card
from robot_rl.data.editing import plan_reencode
from robot_rl.data.rewriting import carry_out
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec

SPEC = EnvSpec(
    env_id="Toy",
    observation={
        "proprio": ArraySpec("proprio", (2,), units=("rad", "m"), meanings=("a", "b")),
        "image/top": ArraySpec("image/top", (4, 4, 3), dtype="uint8"),
    },
    action=ArraySpec("action", (2,), low=(-1.0, -0.5), high=(1.0, 0.5)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "base", "none", "none", "pd"),
    joint_names=("a", "b"),
    robot="toy",
    control_hz=20.0,
    max_episode_steps=50,
)
PROPRIO, ACTION, MEANING = ("observation", "proprio"), ("action",), ("action_semantics",)
# Place of the object, field, value (`...` drops the field), and what the error must say.
WRONG: list[tuple[tuple[str, ...], str, Any, str]] = [
    ((), "control_hz", "20.0", r"control_hz: expected a number above 0, got '20.0' \(str\)"),
    ((), "control_hz", True, "control_hz"),
    ((), "control_hz", float("nan"), "control_hz"),
    ((), "control_hz", float("inf"), "control_hz"),
    ((), "control_hz", 0, "control_hz"),
    ((), "control_hz", 10**400, "control_hz"),
    ((), "max_episode_steps", 50.0, r"max_episode_steps: expected a whole number above 0, got 50.0 \(float\)"),
    ((), "has_success", "false", "has_success: expected true or false"),
    ((), "has_success", 1, "has_success"),
    ((), "has_succes", True, "got 'has_succes' .*Did you mean 'has_success'"),
    ((), "robot", ..., "expected all fields of EnvSpec, got no robot"),
    ((), "robot", None, "robot: expected a text"),
    ((), "joint_names", "ab", "joint_names: expected a list of texts"),
    ((), "joint_names", ["a", 2], "joint_names: expected texts only"),
    ((), "observation", [], "observation: expected an object of arrays"),
    ((), "action", None, "action: expected an object"),
    (PROPRIO, "shape", ["2"], r"proprio, shape: expected whole numbers above 0, got \('2',\)"),
    (PROPRIO, "shape", [2.0], "proprio, shape"),
    (PROPRIO, "shape", 2, "proprio, shape: expected a list"),
    (PROPRIO, "shape", [3], "proprio, units: expected 1 or 3 texts, got 2"),
    (PROPRIO, "dtype", "float31", "proprio, dtype: expected one of float32, .*got 'float31'"),
    (PROPRIO, "dtype", ["float32"], "proprio, dtype"),
    (PROPRIO, "name", "propio", "proprio, name: expected 'proprio', got 'propio'"),
    (PROPRIO, "units", "rad", "proprio, units: expected a list of texts"),
    (PROPRIO, "meanings", ["a", "b", "c"], "proprio, meanings: expected 1 or 2 texts, got 3"),
    (ACTION, "low", ["-1.0", -0.5], "action, low: expected numbers"),
    (ACTION, "low", [-1.0], "action, low: expected 2 numbers, got 1"),
    (ACTION, "low", [float("nan"), 0.0], "action, low"),
    (ACTION, "low", [-1.0, 0.6], r"action, low and high: expected low <= high, got .*\[1\]"),
    (ACTION, "high", -1.0, "action, high: expected a list"),
    (ACTION, "unit", ["1"], "action: expected fields of ArraySpec, got 'unit' .*Did you mean 'units'"),
    (MEANING, "kind", "relative", "action_semantics, kind: expected one of absolute, delta, velocity, got 'relative'"),
    (MEANING, "kind", None, "action_semantics, kind: expected a text"),
    (MEANING, "kind", "absolute", "delta_reference: expected none unless kind is delta, got target"),
    (MEANING, "delta_reference", "base", "delta_reference: expected one of none, measured, target"),
    (MEANING, "rotation", 3, "rotation: expected a text"),
]


def changed(place: tuple[str, ...], field: str, value: Any) -> dict[str, Any]:
    """The spec's JSON with one field set, or dropped for `...`."""
    document: dict[str, Any] = json.loads(json.dumps(SPEC.to_json()))
    target = document
    for key in place:
        target = target[key]
    if value is ...:
        del target[field]
    else:
        target[field] = value
    return document


@pytest.mark.parametrize(("place", "field", "value", "message"), WRONG)
def test_a_wrong_field_is_named(place: tuple[str, ...], field: str, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^policy.onnx, .*{message}|^policy.onnx: .*{message}"):
        EnvSpec.from_json(changed(place, field, value), where="policy.onnx")


@pytest.mark.parametrize("document", [None, [], "spec", 3])
def test_a_spec_that_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(DataError, match="expected an object"):
        EnvSpec.from_json(document)


def test_what_was_written_comes_back_and_defaults_may_be_missing() -> None:
    assert EnvSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    assert EnvSpec.from_json(changed((), "has_success", ...)) == SPEC
    whole = EnvSpec.from_json(changed((), "control_hz", 20))  # YAML by hand; one content hash for 20 and 20.0
    assert json.dumps(whole.to_json()) == json.dumps(SPEC.to_json())


def edit(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((store / ".zattrs").read_text())
    change(document)
    (store / ".zattrs").write_text(json.dumps(document))


def believable(document: dict[str, Any]) -> None:
    document["spec"]["action"]["low"][0] = -2.0


def assert_refused(store: Path, part: str) -> None:
    """By whoever opens the store, and by whoever looks for damage."""
    with pytest.raises(
        DataError, match=rf"a.zarr/.zattrs, {part}: expected the {part} that was written \({part}_sha256"
    ):
        EpisodeStore.open(store)
    with pytest.raises(DataError, match=rf"\.zattrs, {part}: one with .*--like STORE"):
        survey(store)


def test_a_store_refuses_a_spec_that_was_changed_behind_its_back(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC).close()
    edit(store, believable)
    assert_refused(store, "spec")
    edit(store, lambda document: document.pop("spec_sha256"))  # what the hint says, for an edit that is meant
    with EpisodeStore.open(store) as opened:
        assert opened.spec.action.low == (-2.0, -0.5)


def test_card_and_history_are_under_a_checksum_too(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC, metadata={"note": "by Ann", "n": (1.5, None)}).close()
    write_card(store, {"licence": "MIT", "operators": 2})
    with EpisodeStore.open(store) as opened:
        assert opened.metadata["note"] == "by Ann"
        assert opened.metadata["history"][0]["command"] == "card"

    def flip(document: dict[str, Any]) -> None:
        document["metadata"]["card"]["licence"] = "MIU"

    edit(store, flip)
    assert_refused(store, "metadata")
    edit(store, lambda document: document.pop("metadata_sha256"))  # what the hint says, for an edit that is meant
    with EpisodeStore.open(store) as opened:
        assert opened.metadata["card"]["licence"] == "MIU"


def test_layout_of_the_json_does_not_count(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC).close()
    document = json.loads((store / ".zattrs").read_text())
    (store / ".zattrs").write_text(json.dumps(document, sort_keys=True, indent=7))
    with EpisodeStore.open(store) as opened:
        assert opened.spec == SPEC


def test_the_checksum_survives_cards_and_edits(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC).close()
    write_card(store, {"licence": "MIT"})
    with EpisodeStore.open(store) as opened:
        carry_out([plan_reencode(opened, target=tmp_path / "b.zarr")])
    sums = [json.loads((path / ".zattrs").read_text())["spec_sha256"] for path in (store, tmp_path / "b.zarr")]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("field", "value"), [("metadata", []), ("metadata", "x"), ("images", "video"), ("images", {"storage": ["video"]})]
)
def test_the_rest_of_zattrs_has_types_too(tmp_path: Path, field: str, value: Any) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC, metadata={"a": 1}).close()

    def change(document: dict[str, Any]) -> None:
        document[field] = value
        document.pop("metadata_sha256")
        document["schema_version"] = 2 if field == "images" else 1

    edit(store, change)
    with pytest.raises(DataError, match=rf"\.zattrs, {field}: expected"):
        EpisodeStore.open(store)


def test_a_store_of_before_the_checksums_opens(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    EpisodeStore.create(store, SPEC).close()
    for key in ("spec_sha256", "metadata_sha256"):
        edit(store, lambda document, key=key: document.pop(key))  # type: ignore[misc]
    with EpisodeStore.open(store, mode="a") as opened:
        assert opened.spec == SPEC
