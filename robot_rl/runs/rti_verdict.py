"""What `robot-rl rti tune` found out about a run, and the warning that follows from it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "rti.json"
MARGIN = 0.05
MOST_FORWARDS = 3


def warning_of(policy: str) -> str | None:
    """What to tell who starts RTI with this policy; None where a study found a setting that holds.

    Args:
        policy: run or checkpoint directory.
    """
    place = Path(policy)
    found = next((folder / FILE for folder in (place, *place.parents[:2]) if (folder / FILE).is_file()), None)
    if found is None:
        return f"nobody has measured RTI on {policy}: `robot-rl rti tune {policy} --env ...` does"
    document = json.loads(found.read_text(encoding="utf-8"))
    return None if document.get("chosen") else f"{found}: {document.get('note')}"


def warn_of(policy: str) -> None:
    """Log what `warning_of` says, if anything."""
    if warning := warning_of(policy):
        log.warning("rti: %s", warning)
