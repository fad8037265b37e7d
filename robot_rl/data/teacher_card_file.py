"""Reading a teacher card from its YAML file; unknown and missing lines are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.teacher_card import Colour, TeacherCamera, TeacherCard
from robot_rl.errors import ConfigError, closest
from robot_rl.specs import ActionKind, ActionSemantics, DeltaReference


def load_teacher_card(path: str | Path) -> TeacherCard:
    """Read a card from a YAML file.

    Raises:
        ConfigError: no such file, no YAML, an unknown or missing key, or a value that does not fit.
    """
    import yaml

    try:
        plain = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(str(path), expected="a YAML file", got=str(error), hint="Correct it.") from error
    values = _checked(TeacherCard, plain, str(path))
    meaning = _checked(ActionSemantics, values["semantics"], f"{path}, semantics")
    try:
        meaning["kind"], meaning["delta_reference"] = (
            ActionKind(meaning["kind"]),
            DeltaReference(meaning["delta_reference"]),
        )
        cameras = {
            name: TeacherCamera(**(each | {"colour": Colour(each.get("colour", "rgb"))} | _pose(each)))
            for name, one in (values.get("cameras") or {}).items()
            for each in [_checked(TeacherCamera, one, f"{path}, cameras.{name}")]
        }
        ends, sent = values.get("gripper"), values.get("sent_size")
        return TeacherCard(
            name=str(values["name"]), semantics=ActionSemantics(**meaning), size=int(values["size"]),
            control_hz=float(values["control_hz"]), cameras=cameras,
            scale=tuple(map(float, values.get("scale") or ())), offset=tuple(map(float, values.get("offset") or ())),
            gripper=None if ends is None else (float(ends[0]), float(ends[1])), history=int(values.get("history", 1)),
            keys=tuple(map(str, values.get("keys") or ())), needs_instruction=bool(values.get("needs_instruction", False)),
            sent_size=None if sent is None else int(sent),
        )  # fmt: skip
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            str(path), expected="values of the right kind", got=str(error), hint="See docs/teachers.md."
        ) from error


def _pose(plain: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Position and orientation of a camera's lines; raises ValueError where one is missing or no pose."""
    stated = [name for name in ("position_m", "quaternion_wxyz", "frame") if name in plain]
    if not stated:
        return {}
    given = {name: tuple(map(float, plain.get(name) or ())) for name in ("position_m", "quaternion_wxyz")}
    if [len(values) for values in given.values()] != [3, 4] or not np.isfinite(np.concatenate([*given.values()])).all():
        raise ValueError(
            f"a camera's pose is position_m of 3 and quaternion_wxyz of 4 finite numbers, got {given} beside {', '.join(stated)}"
        )
    if abs(float(np.linalg.norm(given["quaternion_wxyz"])) - 1) > 1e-3:
        raise ValueError(f"a camera's quaternion_wxyz has length 1, got {given['quaternion_wxyz']}")
    return given


def _checked(kind: Any, plain: Any, where: str) -> dict[str, Any]:
    """A mapping with the fields of a dataclass and no others."""
    if not isinstance(plain, Mapping):
        raise ConfigError(where, expected="a mapping", got=type(plain).__name__, hint="See docs/teachers.md.")
    known = {entry.name: entry.default is MISSING and entry.default_factory is MISSING for entry in fields(kind)}
    for key in plain:
        if key not in known:
            raise ConfigError(
                f"{where}, {key}", expected=f"a field of {kind.__name__}", got="another", hint=closest(str(key), known)
            )
    missing = [name for name, needed in known.items() if needed and name not in plain]
    if missing:
        raise ConfigError(
            where,
            expected=f"all of {', '.join(n for n, m in known.items() if m)}",
            got=f"no {', '.join(missing)}",
            hint="Add it.",
        )
    return dict(plain)
