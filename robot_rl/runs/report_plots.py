"""Figures of a report as inline SVG by matplotlib: no files, no window, colours of the page in light and dark."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.arrays import Array, UInt8
from robot_rl.runs.report_data import Projection

# Blue and orange are told apart by people who don't see red and green, and on white as on black.
SUCCESS, FAILURE = "#2f86d6", "#e0701a"
# matplotlib knows no CSS, so text and grid get colours that nothing else has and are replaced in the SVG.
_INK, _GRID = "#010203", "#040506"
_COLUMNS = 3
_PAGE_INCHES = 10.2
_MAX_POINTS = 600
LATENCIES = ("min_ms", "p50_ms", "p95_ms", "p99_ms")


def learning_curves(metrics: Sequence[Mapping[str, Any]], *, name: str, lines: bool = True) -> str:
    """One small panel a metric over the step, with its interval where `<metric>_low` and `_high` are there.

    Args:
        metrics: lines of metrics.jsonl.
        name: makes the ids in the SVG unique on a page.
        lines: join the points; False for values of single episodes.

    Returns:
        SVG text; empty where no metric has two points.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    series = curves(metrics)
    bounds = {key for key in series if key.endswith(("_low", "_high")) and key.rpartition("_")[0] in series}
    shown = sorted((key for key in series if key not in bounds), key=_importance)
    if not shown:
        return ""

    def draw(axes: Any, key: str) -> None:
        steps, values = series[key]
        if f"{key}_low" in bounds and f"{key}_high" in bounds:
            low, high = series[f"{key}_low"], series[f"{key}_high"]
            if len(low[0]) == len(high[0]):
                axes.fill_between(low[0], low[1], high[1], color=SUCCESS, alpha=0.2, linewidth=0)
        marker = "o" if len(steps) < 30 or not lines else ""
        axes.plot(steps, values, color=SUCCESS, linestyle="-" if lines else "", marker=marker, markersize=3)
        axes.set_title(key)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=5)
        if "success" in key:
            axes.set_ylim(-0.05, 1.05)
        elif values.min() > 0 and values.max() > 20 * values.min() and "lr" not in key:
            axes.set_yscale("log")
            # matplotlib's own labels of a logarithmic axis are TeX, which an SVG with real text shows as it is.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())

    return panels([lambda axes, key=key: draw(axes, key) for key in shown], name=name)  # type: ignore[misc]


def _importance(metric: str) -> int:
    """Place of a metric on the page: successes, losses and errors, the rest, and last what only shows that it runs."""
    groups = (("success",), ("/lr", "grad_norm", "rate_hz"), ("loss", "rmse", "error", "mse"))
    places = (0, 3, 1)
    return next((place for place, words in zip(places, groups, strict=True) if any(w in metric for w in words)), 2)


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Array, Array]]:
    """Metric -> steps and values, (M,) float64 each; only metrics with two points or more, each curve once.

    Long curves are thinned to evenly spaced points that include the last.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics:
        for key, value in line.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
            if key != "step" and is_number and isinstance(line["step"], int | float):
                points.setdefault(str(key), []).append((float(line["step"]), float(value)))
    out: dict[str, tuple[Array, Array]] = {}
    seen = set()
    for key, pairs in points.items():
        is_bound = key.endswith(("_low", "_high"))
        if len(pairs) < 2 or (tuple(pairs) in seen and not is_bound):
            continue
        seen |= set() if is_bound else {tuple(pairs)}
        picked = np.linspace(0, len(pairs) - 1, min(len(pairs), _MAX_POINTS)).round().astype(int)
        table = np.asarray(pairs)[picked]
        out[key] = (table[:, 0], table[:, 1])
    return out


def latency_bars(latencies: Mapping[str, Mapping[str, Any]], *, name: str) -> str:
    """Bars of min, p50, p95 and p99 in ms, a group for each policy; empty where there is no number."""
    bars = [
        (f"{label}: {key.removesuffix('_ms')}" if len(latencies) > 1 else key.removesuffix("_ms"), float(values[key]))
        for label, values in latencies.items()
        for key in LATENCIES
        if isinstance(values.get(key), int | float)
    ]
    if not bars:
        return ""

    def draw(axes: Any) -> None:
        labels, values = zip(*bars, strict=True)
        drawn = axes.barh(range(len(bars)), values, color=SUCCESS, height=0.65)
        axes.bar_label(drawn, [f"{value:.3g} ms" for value in values], color=_INK, fontsize=9, padding=4)
        axes.set_yticks(range(len(bars)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(values))
        axes.set_xlabel("ms for one decision")
        axes.grid(axis="y", visible=False)

    return panels([draw], name=name, width=6.5, height=0.5 + 0.32 * len(bars))


def trajectories(projections: Sequence[Projection], *, name: str) -> str:
    """One panel a projection: a line an episode, a ring where it starts, a dot or (failure) a cross where it ends."""

    def draw(axes: Any, projection: Projection) -> None:
        opacity = max(0.25, min(0.8, 8 / max(len(projection.lines), 1)))
        # Failures last: they are few and must not be hidden.
        for index in sorted(range(len(projection.lines)), key=lambda i: not projection.success[i]):
            line, won = projection.lines[index], projection.success[index]
            colour = SUCCESS if won else FAILURE
            axes.plot(line[:, 0], line[:, 1], color=colour, alpha=opacity, linewidth=1)
            if projection.is_plane:
                axes.plot(*line[0], marker="o", markersize=3.5, color=colour, markerfacecolor="none", linestyle="")
            axes.plot(*line[-1], marker="o" if won else "x", markersize=3.5 if won else 5, color=colour, linestyle="")
        if projection.is_plane:
            axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(projection.title)
        axes.set_xlabel(textwrap.fill(projection.x_label, 40))
        axes.set_ylabel(textwrap.fill(projection.y_label, 30))

    drawings: list[Callable[[Any], None]] = [lambda axes, p=p: draw(axes, p) for p in projections]  # type: ignore[misc]
    columns = 3 if len(drawings) == 3 else 2
    return panels(drawings, name=name, columns=columns, width=_PAGE_INCHES / columns, height=3.3) if drawings else ""


def episode_lengths(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, name: str) -> str:
    """A panel a run with a dot an episode in the order of its seeds: length and success; empty without episodes."""
    tables = {
        label: [(e["seed"], e["length"], e.get("success_once") is True) for e in episodes if _is_counted(e)]
        for label, episodes in runs.items()
    }
    tables = {label: rows for label, rows in tables.items() if rows}

    def draw(axes: Any, label: str) -> None:
        rows = tables[label]
        for won, marker, colour in ((True, "o", SUCCESS), (False, "x", FAILURE)):
            part = [row for row in rows if row[2] is won]
            axes.plot([r[0] for r in part], [r[1] for r in part], marker, color=colour, markersize=4)
        axes.set_title(label)
        axes.set_xlabel("seed")
        axes.set_ylabel("env steps")
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5 if len(tables) > 1 else 8)
        axes.set_ylim(0, 1.1 * max(row[1] for row in rows))

    drawings: list[Callable[[Any], None]] = [lambda axes, label=label: draw(axes, label) for label in tables]  # type: ignore[misc]
    columns = min(2, len(drawings))
    return panels(drawings, name=name, columns=columns, width=_PAGE_INCHES / columns, height=2.2) if drawings else ""


def png_base64(image: UInt8[Array, "H W 3"]) -> str:
    """The image as base64 text of a PNG."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _is_counted(episode: Mapping[str, Any]) -> bool:
    return all(isinstance(episode.get(key), int) and abs(episode[key]) < 2**53 for key in ("seed", "length"))


def panels(
    drawings: Sequence[Callable[[Any], None]], *, name: str, columns: int = _COLUMNS, width: float = _PAGE_INCHES / _COLUMNS,
    height: float = 2.4,
) -> str:  # fmt: skip
    """Draw panels of `width` x `height` inches in rows and return the SVG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(drawings))
    rows = -(-len(drawings) // columns)
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.formatter.useoffset": False,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _GRID,
        "grid.color": _GRID,
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width * columns, height * rows), layout=ConstrainedLayoutEngine(h_pad=0.08))
        figure.patch.set_alpha(0)
        for index, draw in enumerate(drawings):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.patch.set_alpha(0)
            draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """Only the <svg> element, with the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)").strip()
