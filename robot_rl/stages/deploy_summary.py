"""What `deploy` writes of its episodes: a line each, and the summary of all."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from robot_rl.algorithms.statistics import proportion
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.loop_summary import EpisodeSummary


class Steps:
    """What all steps of all episodes measured, seconds."""

    def __init__(self) -> None:
        self.latency_s: list[float] = []
        self.late_s: list[float] = []
        self.age_s: list[float] = []
        self.skipped = 0

    def add(self, record: StepRecord) -> None:
        """One step of the loop."""
        self.late_s.append(record.late_s)
        self.age_s.append(record.age_s)
        self.skipped += record.skipped
        if not math.isnan(record.latency_s):
            self.latency_s.append(record.latency_s)


def row_of(
    summary: EpisodeSummary, latency_s: Sequence[float], *, seed: int, success: bool, wall_s: float
) -> dict[str, Any]:
    """An episode's line of episodes.jsonl; JSON types.

    Args:
        summary: of the loop.
        latency_s: of its answers.
        seed: of the episode.
        success: as the scene judges.
        wall_s: from its reset to its end.
    """
    counts = summary.counts
    return {
        "seed": seed, "success": success, "ended_by": summary.ended_by, "steps": summary.steps,
        "reasons": summary.to_json()["reasons"], "clamps": counts["clamps"], "stop_steps": counts["stop_steps"],
        "requests": counts["requests"], "dropped": counts["dropped"], "unanswered": counts["unanswered"],
        **({"warm_starts": counts["warm_starts"]} if "warm_starts" in counts else {}),
        "chunk_execution": counts["chunk_execution"], **counts["smoothness"],
        "latency_p50_ms": _percentile(latency_s, 50.0), "wall_s": wall_s, "black_box": list(summary.black_box),
    }  # fmt: skip


def _percentile(seconds: Sequence[float], percent: float) -> float | None:
    """Milliseconds; None without any."""
    return 1e3 * float(np.percentile(seconds, percent)) if len(seconds) else None


def summarize(rows: Sequence[dict[str, Any]], steps: Steps) -> dict[str, Any]:
    """Success with its interval, latency, jitter, smoothness, and what was bent and stopped, of at least one episode."""

    def spread(seconds: Sequence[float]) -> dict[str, float | None]:
        return {f"p{percent:g}": _percentile(seconds, percent) for percent in (50.0, 90.0, 99.0, 100.0)}

    def total(name: str) -> dict[str, int]:
        counter: Counter[str] = Counter()
        for row in rows:
            counter.update(row[name])
        return dict(counter)

    chunks, warm = (
        [row["chunk_execution"] for row in rows],
        [row["warm_starts"] for row in rows if "warm_starts" in row],
    )
    return ({"warm_starts": sum(warm)} if warm else {}) | {
        "success": proportion(sum(row["success"] for row in rows), len(rows)).to_json(),
        "episodes": len(rows),
        "ended_by": dict(Counter(row["ended_by"] for row in rows)),
        "latency_ms": spread(steps.latency_s),
        "observation_age_ms": spread(steps.age_s),
        "jitter_ms": spread(steps.late_s),
        "slots": len(steps.late_s),
        "slots_skipped": steps.skipped,
        "clamps": total("clamps"),
        "stops": dict(Counter(reason for row in rows for reason in row["reasons"])),
        "answers_dropped": sum(row["dropped"] for row in rows),
        "unanswered": sum(row["unanswered"] for row in rows),
        "chunk_execution": {name: sum(part[name] for part in chunks) for name in ("questions", "steps", "held_steps")}
        | {"delay_steps_max": max(part["delay_steps"]["max"] for part in chunks)},
        "action_change_rms": float(np.mean([row["action_change_rms"] for row in rows])),
        "action_jerk_rms": float(np.mean([row["action_jerk_rms"] for row in rows])),
        "action_step_max": max(row["action_step_max"] for row in rows),
        "gripper_flips_mean": float(np.mean([row["gripper_flips"] for row in rows])),
        "load_average_1min": os.getloadavg()[0],
    }
