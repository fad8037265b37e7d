"""Measures over the episodes of an evaluation that need more than their counts: throughput, and success among the pushed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robot_rl.algorithms.disturbance import Push
from robot_rl.algorithms.statistics import proportion
from robot_rl.algorithms.throughput import longest_run, successes_an_hour
from robot_rl.rollout import EpisodeRecord


def throughput(records: Sequence[EpisodeRecord], *, control_hz: float, reset_s: float) -> dict[str, Any]:
    """Successes an hour and the longest run of successes (success_once) of records in the order of their seeds.

    Robot time is env steps times the control period; wall time is there where every record has it (a real robot), and
    has the resets in it already.

    Args:
        records: at least one.
        control_hz: actions per second.
        reset_s: seconds of the reset of each episode.
    """
    wins, number = [record.success_once for record in records], len(records)
    length, first = longest_run(wins)
    play_s = sum(record.length for record in records) / control_hz
    hourly: dict[str, Any] = {
        "robot_time": successes_an_hour(sum(wins), play_s=play_s, episodes=number, reset_s=reset_s),
        "play_s": play_s, "control_period_s": 1 / control_hz, "reset_s": reset_s,
    }  # fmt: skip
    wall_s = [record.wall_s for record in records if record.wall_s is not None]
    if len(wall_s) == number:
        total_s = sum(wall_s)
        hourly |= {"wall_s": total_s}
        hourly |= {"wall_time": successes_an_hour(sum(wins), play_s=total_s, episodes=number, reset_s=0.0)}
    seeds = [record.seed for record in records[first : first + length]]
    run = {"length": length, "order": "of the seeds", "first_seed": seeds[0] if seeds else None}
    return {"successes_an_hour": hourly, "longest_run": run}


def pushed_share(records: Sequence[EpisodeRecord], push: Push) -> dict[str, Any]:
    """How many episodes lasted until their push, and success among them (an episode may be over before)."""
    reached = [record for record in records if record.length > push.draw(record.seed)[0]]
    won = sum(record.success_once for record in reached)
    return {
        "episodes_pushed": len(reached),
        "success_once_of_pushed": proportion(won, len(reached)).to_json() if reached else None,
    }
