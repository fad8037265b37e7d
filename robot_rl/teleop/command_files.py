"""Commands of a device in a text file, to be said again (hardware/replay_device.py) and for tests.

One JSON object a line, in order: "t" (s since the first) and the fields of TeleopCommand but sequence and stamp; what is left out
is at rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import DataError, DeployError
from robot_rl.teleop.commands import TeleopCommand

FIELDS = frozenset(entry.name for entry in fields(TeleopCommand)) - {"sequence", "stamp_s"}
_ARRAYS = {"motion": np.float32, "joints": np.float64, "pose": np.float64}
_LONGEST = 64 * 1024


def read_commands(path: Path) -> list[TeleopCommand]:
    """The commands of a recording; their stamps are its "t".

    Raises:
        DeployError: no such file.
        DataError: the line that can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeployError(
            f"replay {str(path)!r}", expected="a recording", got=str(error), hint="Give teleop.file."
        ) from error
    commands: list[TeleopCommand] = []
    for number, line in enumerate(lines, 1):
        try:
            command = _command(line, len(commands) + 1)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path}, line {number}", expected="a command", got=str(error), hint="Record it anew."
            ) from error
        if commands and command.stamp_s < commands[-1].stamp_s:
            raise DataError(
                f"{path}, line {number}", expected="times that rise", got=f"{command.stamp_s:g}", hint="Sort it."
            )
        commands.append(command)
    if not commands:
        raise DataError(str(path), expected="commands", got="none", hint="Record it anew.")
    return commands


def write_commands(path: Path, commands: Iterable[TeleopCommand]) -> int:
    """Write a recording of what a device said, one line for each new command; returns how many."""
    lines, first_s, last = list[str](), 0.0, 0
    for command in commands:
        if command.sequence <= last:
            continue
        first_s = first_s if lines else command.stamp_s
        last = command.sequence
        row: dict[str, Any] = {"t": round(command.stamp_s - first_s, 6)}
        for name in sorted(FIELDS):
            value = getattr(command, name)
            if isinstance(value, np.ndarray):
                row |= {name: np.round(value.astype(np.float64), 7).tolist()} if value.any() or name != "motion" else {}
            elif value:
                row[name] = sorted(value) if name == "buttons" else value
            elif name == "opening" and value is not None:
                row[name] = value
        lines.append(json.dumps(row))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _command(line: str, sequence: int) -> TeleopCommand:
    if len(line) > _LONGEST:
        raise ValueError(f"{len(line)} characters")
    row = json.loads(line)
    if not isinstance(row, dict) or set(row) - FIELDS - {"t"}:
        raise ValueError(f"fields {sorted(row) if isinstance(row, dict) else row}")
    stamp_s = float(row.pop("t"))
    if not np.isfinite(stamp_s) or stamp_s < 0:
        raise ValueError(f"t = {stamp_s}")
    for name, dtype in _ARRAYS.items():
        if row.get(name) is not None:
            row[name] = np.array(row[name], dtype)
    if "motion" in row and row["motion"].shape != (6,):
        raise ValueError(f"motion of shape {row['motion'].shape}")
    if not isinstance(row.get("engaged", False), bool) or not all(isinstance(b, str) for b in row.get("buttons", ())):
        raise ValueError("engaged must be true or false, buttons texts")
    for name in ("gripper", "opening"):
        if row.get(name) is not None:
            row[name] = float(row[name])
    if "buttons" in row:
        row["buttons"] = frozenset(row["buttons"])
    return TeleopCommand(sequence, stamp_s, **row)
