"""What a conformance check reports, and how a suite of checks is run.

A check is a function that yields findings. A check that crashes is a finding too: a user's class may raise anything.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import RobotRlError

MOST_PER_CHECK = 3


class Severity(str, Enum):
    """error: breaks the contract. warning: allowed, but probably not meant. skipped: could not be checked."""

    error = "error"
    warning = "warning"
    skipped = "skipped"


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        severity: see Severity.
        where: method, key, env or episode that is meant.
        expected: what the contract says.
        got: what came.
        fix: what to do about it.
        check: name of the check; filled in by `run_checks`.
    """

    severity: Severity
    where: str
    expected: str
    got: str
    fix: str
    check: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {**asdict(self), "severity": self.severity.value}


Check = Callable[[], Iterable[Finding]]


def error(where: str, *, expected: str, got: str, fix: str) -> Finding:
    """A finding that breaks the contract."""
    return Finding(Severity.error, where, expected, got, fix)


def warning(where: str, *, expected: str, got: str, fix: str) -> Finding:
    """A finding that is allowed, but probably not meant."""
    return Finding(Severity.warning, where, expected, got, fix)


def skipped(where: str, *, expected: str, got: str, fix: str) -> Finding:
    """A finding that says what could not be checked, and why."""
    return Finding(Severity.skipped, where, expected, got, fix)


def run_checks(checks: Mapping[str, Check]) -> list[Finding]:
    """Run checks in order; at most `MOST_PER_CHECK` findings of each are kept, as the rest mostly repeats them.

    Args:
        checks: name -> check.

    Returns:
        Findings, each with the name of its check.
    """
    findings = []
    for name, check in checks.items():
        found: list[Finding] = []
        try:
            for finding in check():
                found.append(finding)
                if len(found) == MOST_PER_CHECK:
                    break
        except Exception as crash:  # a user's class may raise anything, and the other checks still say something
            found.append(_crashed(crash))
        findings += [replace(finding, check=name) for finding in found]
    return findings


def _crashed(crash: Exception) -> Finding:
    place = traceback.extract_tb(crash.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}, in {place.name}"
    hint = crash.hint if isinstance(crash, RobotRlError) else "Correct this line; `--debug` shows nothing more of it."
    return error(where, expected="no exception", got=f"{type(crash).__name__}: {crash}", fix=hint)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding breaks the contract."""
    return any(finding.severity is Severity.error for finding in findings)


def to_numpy(array: Array) -> np.ndarray:
    """A numpy copy of a tensor or an array, of any dtype and from any device."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    return np.array(array)
