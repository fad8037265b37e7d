"""The figure of `robot-rl judge calibrate` in a report: every judge's score of a policy against its true success."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from robot_rl.runs.report import counted, number
from robot_rl.runs.report_plots import SUCCESS, panels


class Point(NamedTuple):
    """One policy: a judge's score; success rate with its interval, in [0, 1]."""

    score: float
    rate: float
    low: float
    high: float


def judged_points(policies: Any, judge: str) -> list[Point]:
    """Points of one judge; policies without a finite score or a possible success rate are left out.

    Args:
        policies: "policies" of ope/calibration.json, which may be damaged.
        judge: key of the score.
    """
    out = []
    for row in policies if isinstance(policies, list) else []:
        if isinstance(row, Mapping):
            score, won = number(row, judge), counted(row, "success")
            if score is not None and math.isfinite(score) and won is not None:
                out.append(Point(score, won.rate, won.low, won.high))
    return out


def judge_scatter(judges: Sequence[tuple[str, Sequence[Point]]], *, name: str) -> str:
    """One panel a judge: its score along x, true success with its interval along y; empty without a point.

    Args:
        judges: title and points of each.
        name: makes the ids in the SVG unique on a page.
    """
    shown = [(title, points) for title, points in judges if points]

    def draw(axes: Any, title: str, points: Sequence[Point]) -> None:
        x, y = [point.score for point in points], [point.rate for point in points]
        bars = [[p.rate - p.low for p in points], [p.high - p.rate for p in points]]
        axes.errorbar(x, y, yerr=bars, fmt="o", color=SUCCESS, markersize=4.5, ecolor=SUCCESS, elinewidth=1, alpha=0.75)
        axes.set_title(title)
        axes.set_xlabel("score of the judge")
        axes.set_ylabel("true success")
        axes.set_ylim(-0.05, 1.05)
        axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.08)

    drawings: list[Callable[[Any], None]] = [lambda axes, t=t, p=p: draw(axes, t, p) for t, p in shown]  # type: ignore[misc]
    return panels(drawings, name=name, height=2.7) if drawings else ""
