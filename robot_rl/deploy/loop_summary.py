"""What a control loop counts, and what it says of an episode."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.decisions import Decisions
from robot_rl.deploy.realtime import Grant
from robot_rl.deploy.reasons import names_of
from robot_rl.deploy.safety import STOPS, Reason
from robot_rl.deploy.schedule import Jitter, TimeHistogram


@dataclass(frozen=True)
class EpisodeSummary:
    """How an episode went.

    Attributes:
        ended_by: "stop" (a latched reason), "success", "time_limit", or the word given to `end_episode`.
        success: whether it was marked so.
        reasons: latched at the end.
        is_interrupted: whether a person pressed Ctrl-C.
        steps: action periods begun.
        counts: JSON types: slots, requests, chunk execution, smoothness, clamps and stops by reason, jitter, latency, grants.
        black_box: files written, and why not.
    """

    ended_by: str
    success: bool
    reasons: Reason
    is_interrupted: bool
    steps: int
    counts: dict[str, Any]
    black_box: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**vars(self), "reasons": names_of(self.reasons), "black_box": list(self.black_box)}


class Tally:
    """Counts of one episode; nothing grows while it counts.

    Args:
        jitter: of the schedule.
        grants: see realtime.
    """

    def __init__(self, jitter: Jitter, grants: tuple[Grant, ...]) -> None:
        self._jitter, self._grants = jitter, grants
        self.latency, self.age = TimeHistogram(), TimeHistogram()
        self.reasons: Counter[int] = Counter()

    def add(self, record: StepRecord) -> None:
        """Count one step."""
        if record.reasons:
            self.reasons[int(record.reasons)] += 1
        if not math.isnan(record.latency_s):
            self.latency.add(record.latency_s)
        if math.isfinite(record.age_s):
            self.age.add(record.age_s)

    def to_json(self, decisions: Decisions) -> dict[str, Any]:
        """See EpisodeSummary.counts."""
        steps = Counter[str]()
        for mask, number in self.reasons.items():
            steps.update(dict.fromkeys(names_of(Reason(mask)), number))
        return decisions.to_json() | {
            "clamps": {name: n for name, n in steps.items() if not Reason[name] & STOPS},
            "stop_steps": {name: n for name, n in steps.items() if Reason[name] & STOPS},
            "jitter": self._jitter.to_json(), "latency": self.latency.to_json(), "age": self.age.to_json(),
            "compute": decisions.compute.to_json(), "realtime": [vars(grant) for grant in self._grants],
        }  # fmt: skip
