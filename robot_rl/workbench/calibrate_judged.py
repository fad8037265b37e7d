"""How `robot-rl calibrate` judges: one line a measure, with its value, its limit and what to do when it is not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Judged:
    """One measure.

    Attributes:
        measure: what was measured.
        value: what came, with its unit.
        limit: what it is held against, with its unit.
        verdict: "ok", "warning" (usable) or "error" (nothing is stored).
        fix: what to do about it; "" when ok.
    """

    measure: str
    value: str
    limit: str
    verdict: str = "ok"
    fix: str = ""


def judge(measure: str, value: float, *, unit: str, warn: float, refuse: float, fix: str) -> Judged:
    """Judge a value that should be small, or large where `warn` is above `refuse`."""
    is_small_good = warn <= refuse
    bad, poor = (value > refuse, value > warn) if is_small_good else (value < refuse, value < warn)
    verdict = "error" if bad or value != value else "warning" if poor else "ok"
    sign = "<=" if is_small_good else ">="
    limit = f"{sign} {warn:g}{unit} (refused {'above' if is_small_good else 'below'} {refuse:g}{unit})"
    return Judged(measure, f"{value:.3g}{unit}", limit, verdict, "" if verdict == "ok" else fix)


def is_refused(judged: Sequence[Judged]) -> bool:
    """Whether any measure says error."""
    return any(line.verdict == "error" for line in judged)


def as_table(judged: Sequence[Judged]) -> str:
    """Columns for people; what to do stands under its line."""
    wide = max(len(line.measure) for line in judged)
    value = max(len(line.value) for line in judged)
    out = []
    for line in judged:
        out.append(f"{line.verdict:8} {line.measure:{wide}}  {line.value:{value}}  {line.limit}".rstrip())
        if line.fix:
            out.append(f"{'':8}   {line.fix}")
    return "\n".join(out)


def to_json(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """JSON types."""
    return [asdict(line) for line in judged]
