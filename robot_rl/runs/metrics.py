"""metrics.jsonl: one JSON object a line, `{"step": 200, "imitate/train_loss": 0.031}`; safe to kill, safe to resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from robot_rl.errors import RunError


class MetricsWriter:
    """Appends metrics to a file. Use as a context manager, or call `close`."""

    def __init__(self, path: str | Path, *, resume_step: int | None = None) -> None:
        """Open `path`, made when missing.

        Args:
            path: the file, metrics.jsonl of a run.
            resume_step: step that the run continues from; later lines, and a torn last line, are cut off. None keeps
                all lines but a torn one.

        Raises:
            RunError: a line in the middle is damaged.
        """
        self.path = Path(path)
        self.path.touch()
        good = 0
        for line, values in _lines(self.path):
            if resume_step is not None and values["step"] > resume_step:
                break
            good += len(line)
        if good != self.path.stat().st_size:
            os.truncate(self.path, good)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Append one line, and flush it.

        Args:
            step: what the stage counts (gradient steps, episodes).
            values: metric name ("stage/what_unit") -> finite number.

        Raises:
            RunError: a value is not finite; names metric and step. Nothing is written then.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{self.path}, metric {name!r}, step {step}",
                    expected="a finite number",
                    got=str(value),
                    hint="Training has diverged or an average was taken over nothing.",
                )
        if "step" in values:
            raise RunError(
                f"{self.path}, step {step}", expected="metric names", got="'step'", hint="Give the step as argument."
            )
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics file in order; a torn last line (the run was killed in it) is left out.

    Raises:
        RunError: missing file, or a damaged line in the middle.
    """
    return [values for _, values in _lines(Path(path))]


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    try:
        raw = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise RunError(
            str(path), expected="a metrics file", got=str(error), hint="Give a run's metrics.jsonl."
        ) from error
    out = []
    for number, line in enumerate(raw, start=1):
        try:
            values = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            values = None
        if isinstance(values, dict) and "step" in values:
            out.append((line, values))
        elif number < len(raw):
            raise RunError(
                f"{path}, line {number}", expected='{"step": ...}', got=repr(line[:80]), hint="Remove the damaged line."
            )
    return out
