"""Data that meets a policy or a robot must mean the same numbers; where it does not, both declarations are printed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from robot_rl.data.episode_rows import schema_differences
from robot_rl.errors import DataError
from robot_rl.specs import ActionSemantics, EnvSpec


def require_same_spec(stored: EnvSpec, wanted: EnvSpec, *, where: str) -> None:
    """Refuse episodes of another environment or robot.

    Args:
        stored: of the data at `where`.
        wanted: of the policy.
        where: for the error.

    Raises:
        DataError: with every difference; differences of the action's meaning as a table first.
    """
    differences = schema_differences(stored.to_json(), wanted.to_json())
    if not differences:
        return
    table = ""
    if stored.action_semantics != wanted.action_semantics:
        table = "\n" + declarations(stored.action_semantics, wanted.action_semantics)
    raise DataError(
        where,
        expected=f"episodes of the policy's environment ({wanted.env_id}), same spec",
        got=f"those of {stored.env_id} with another one:{table}\n  " + "\n  ".join(differences) + "\n",
        hint="Collect with the policy's environment, or convert the data.",
    )


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
