"""What `robot-rl rti tune` found out about a run: the warning that follows from it, and how far its observations jump."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.errors import ConfigError

log = logging.getLogger(__name__)

FILE = "rti.json"
MARGIN = 0.05
MOST_FORWARDS = 3


def warning_of(policy: str) -> str | None:
    """What to tell who starts RTI with this policy; None where a study found a setting that holds.

    Args:
        policy: run or checkpoint directory.
    """
    found = _found(policy)
    if found is None:
        return f"nobody has measured RTI on {policy}: `robot-rl rti tune {policy} --env ...` does"
    document = json.loads(found.read_text(encoding="utf-8"))
    return None if document.get("chosen") else f"{found}: {document.get('note')}"


def as_measured(policy: str, warm: WarmStart) -> WarmStart:
    """`warm` with the max_jump that `rti tune` measured where none is given; logs that, and what `warning_of` says.

    Args:
        policy: run or checkpoint directory.
        warm: as the user gave it.

    Raises:
        ConfigError: what was measured is no limit.
    """
    if warning := warning_of(policy):
        log.warning("rti: %s", warning)
    found = _found(policy)
    if warm.max_jump is not None or found is None:
        return warm
    measured = json.loads(found.read_text(encoding="utf-8")).get("max_jump")
    if measured is None:
        return warm
    if not measured > 0:
        raise ConfigError(
            f"{found}: max_jump", expected="a number above 0", got=str(measured),
            hint="The observation hardly changed in the roll-outs of `rti tune`: give rti.max_jump yourself.",
        )  # fmt: skip
    log.info("rti: max_jump=%.3g, from %s", measured, found)
    return replace(warm, max_jump=float(measured))


def _found(policy: str) -> Path | None:
    """The file of this run: beside a checkpoint's folder where `policy` is a checkpoint, and nowhere else."""
    place = Path(policy).absolute()
    run = place.parent.parent if place.parent.name == "checkpoints" else place
    return next((folder / FILE for folder in (place, run) if (folder / FILE).is_file()), None)
