"""Names of reasons, the same in summaries, black boxes, diagnostics and logs."""

from __future__ import annotations

from robot_rl.deploy.safety import Reason


def names_of(reasons: Reason) -> list[str]:
    """Names of the bits that are set, lowest first."""
    return [str(bit.name) for bit in Reason if bit and bit in reasons]


def as_text(reasons: Reason) -> str:
    """The names with spaces between; "none" without any."""
    return " ".join(names_of(reasons)) or "none"
