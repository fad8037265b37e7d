"""Data that meets a policy or a robot must mean the same numbers; where it does not, both declarations are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from robot_rl.data.episode_rows import schema_differences
from robot_rl.errors import DataError, PolicyError
from robot_rl.specs import ActionSemantics, EnvSpec

_COLLECT = "Collect with the policy's environment, or convert the data (`robot-rl data convert`)."


def require_same_spec(
    stored: EnvSpec, wanted: EnvSpec, *, where: str, whose: str = "the policy's environment", hint: str = _COLLECT
) -> None:
    """Refuse episodes of another environment or robot.

    Args:
        stored: of the data at `where`.
        wanted: of the policy, environment or robot.
        where: for the error.
        whose: what `wanted` belongs to.
        hint: what to do about a difference.

    Raises:
        DataError: with every difference; differences of the action's meaning as a table first.
    """
    differences = schema_differences(stored.to_json(), wanted.to_json())
    if not differences:
        return
    table = table_of_semantics(stored, wanted)
    raise DataError(
        where,
        expected=f"episodes of {whose} ({wanted.env_id}), same spec",
        got=f"those of {stored.env_id} with another one:{table}\n  " + "\n  ".join(differences) + "\n",
        hint=hint,
    )


def require_same_actions(
    trained: ActionSemantics, taken: ActionSemantics, *, where: str, taker: str, hint: str
) -> None:
    """Refuse a policy whose actions mean something else than what an environment or robot takes.

    Args:
        trained: of the policy's data.
        taken: of the environment or robot.
        where: of the policy, for the error.
        taker: name of the environment or robot.
        hint: what to do about it.

    Raises:
        PolicyError: with both declarations.
    """
    if trained != taken:
        raise PolicyError(
            f"{where}: action semantics", expected=f"what it was trained with (data), not what {taker} takes (wanted)",
            got="\n" + declarations(trained, taken) + "\n", hint=hint,
        )  # fmt: skip


def observing(spec: EnvSpec, keys: Sequence[str]) -> EnvSpec:
    """The spec with no other observations than `keys`, and no other cameras than these are seen by (all for `points`)."""
    seen = {key.partition("/")[2] for key in keys if key.startswith(("image/", "depth/"))}
    cameras = {name: camera for name, camera in spec.cameras.items() if name in seen or "points" in keys}
    observation = {key: array for key, array in spec.observation.items() if key in keys}
    return replace(spec, observation=observation, cameras=cameras)


def table_of_semantics(stored: EnvSpec, wanted: EnvSpec) -> str:
    """Both declarations of the action on lines of their own, for an error; "" where they are the same."""
    if stored.action_semantics == wanted.action_semantics:
        return ""
    return "\n" + declarations(stored.action_semantics, wanted.action_semantics)


def declarations(data: ActionSemantics, wanted: ActionSemantics) -> str:
    """Both declarations of an action side by side; lines that differ are marked."""
    rows = [("action", "data", "wanted")]
    rows += [(field.name, _text(data, field.name), _text(wanted, field.name)) for field in fields(ActionSemantics)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + ("  <- differs" if number and row[1] != row[2] else "")
        for number, row in enumerate(rows)
    )


def _text(semantics: ActionSemantics, name: str) -> str:
    value: Any = getattr(semantics, name)
    return str(getattr(value, "value", value))
