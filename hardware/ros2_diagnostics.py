"""What the bridge says of itself once a second, as diagnostic_msgs/DiagnosticArray."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.reasons import as_text
from robot_rl.deploy.safety import STOPS, Reason


@dataclass(frozen=True)
class Condition:
    """How a bridge is.

    Attributes:
        word: "unconfigured", "ready", "active" or "running".
        latched: why the robot is stopped.
        problem: what went wrong last; "" for nothing.
        last: newest step of the control loop, or None.
        summary: of the last episode, or None.
    """

    word: str
    latched: Reason
    problem: str
    last: StepRecord | None
    summary: EpisodeSummary | None


def diagnostics(condition: Condition, *, name: str, robot: str, stamp: Any) -> DiagnosticArray:
    """The message.

    Args:
        condition: of the bridge.
        name: full name of the node.
        robot: card.
        stamp: builtin_interfaces/Time.
    """
    level, message = _judged(condition)
    values = [KeyValue(key=key, value=value) for key, value in _numbers(condition).items()]
    status = DiagnosticStatus(level=level, name=name, message=message, hardware_id=robot, values=values)
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def _judged(condition: Condition) -> tuple[bytes, str]:
    if condition.latched:
        return DiagnosticStatus.ERROR, f"stopped: {as_text(condition.latched)}"
    if condition.problem:
        return DiagnosticStatus.ERROR, condition.problem
    last = condition.last
    if condition.word == "running" and last is not None and last.reasons & ~STOPS:
        return DiagnosticStatus.WARN, f"bent: {as_text(last.reasons)}"
    return DiagnosticStatus.OK, condition.word


def _numbers(condition: Condition) -> dict[str, str]:
    """Of the last step and of the last episode."""
    values: dict[str, str] = {}
    last, summary = condition.last, condition.summary
    if last is not None:
        values |= {
            "slot": str(last.slot), "late_ms": f"{1e3 * last.late_s:.3f}", "age_ms": f"{1e3 * last.age_s:.1f}",
            "reasons": as_text(last.reasons),
        }  # fmt: skip
        if not math.isnan(last.latency_s):
            values["latency_ms"] = f"{1e3 * last.latency_s:.1f}"
    if summary is not None:
        values |= {"last_episode": summary.ended_by, "last_success": str(summary.success).lower()}
        values |= {f"last_{key}": json.dumps(value) for key, value in summary.counts.items()}
    return values
