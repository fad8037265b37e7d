"""What `robot-rl compare` says: plain sentences, a text for the terminal, and one HTML page without other files."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --a: #2b6cb0; --b: #c05621; --soft: #8883; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p.verdict { font-size: 1.15rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.path { overflow-wrap: anywhere; } td.fixed { white-space: nowrap; } small, .soft { opacity: .75; } small { display: block; }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.note { border-left: 4px solid var(--b); padding-left: .8rem; }
code, pre { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap; }
"""


def statements(result: Mapping[str, Any]) -> list[str]:
    """Difference, no-worse and equivalence statements in plain words.

    Args:
        result: of compare.compare, with its interval, bounds, test, verdict and options.
    """
    options, test, interval = result["options"], result["test"], result["interval"]
    low, high = result["bounds"]["low"], result["bounds"]["high"]
    percent, margin = f"{100 * options['confidence']:.4g} %", 100 * options["margin"]
    found = f"{_points(interval['difference'])} points ({percent}: {_span(interval)})"
    if result["verdict"] == "not distinguishable":
        first = f"Not distinguishable: B - A = {found}; {_test(test)}. This does not show that they are equal."
    else:
        first = f"{result['verdict'][0]} is better: B - A = {found}; {_test(test)}."
    worse = "B is not worse than A" if low > -options["margin"] else "It is not shown that B is not worse than A"
    second = f"{worse} by more than {margin:.4g} points: the difference is above {_points(low)} points with {percent}."
    inside = low > -options["margin"] and high < options["margin"]
    third = f"A and B are {'' if inside else 'not shown to be '}equivalent within {margin:.4g} points: "
    third += f"the difference is above {_points(low)} and below {_points(high)} points, each with {percent}."
    return [first, *_sequential_words(result.get("sequential")), second, third]


def _sequential_words(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    start = f"After {found['pairs']} pairs ({found['discordant']} discordant) the evidence e = {found['e_value']:.3g}"
    if found["claim"] is None:
        return [f"{start}; a claim needs {found['needed']:.4g}. You may go on and look again."]
    return [f"{start}; the {found['needed']:.4g} that a claim needs were reached at pair {found['claimed_at']}."]


def _test(test: Mapping[str, Any]) -> str:
    tail = "" if test["discordant"] is None else f", {test['discordant']} discordant pairs"
    return f"{test['method']}, p {_p(test['p_value'])}{tail}"


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.0001 else "below 0.0001"


def _points(rate: float) -> str:
    return f"{100 * rate:+.1f}"


def _span(interval: Mapping[str, Any]) -> str:
    return f"{_points(interval['low'])} to {_points(interval['high'])}"


def _success(side: Mapping[str, Any]) -> str:
    s = side["success"]
    return f"{s['k']}/{s['n']} = {s['rate']:.1%} (Wilson 95 %: {s['low']:.1%} to {s['high']:.1%})"


def as_text(result: Mapping[str, Any], page_path: Path | None = None) -> str:
    """The comparison for a terminal.

    Args:
        result: of compare.compare.
        page_path: where the page was written, to name it.
    """
    lines = [f"{name.upper()}  {_success(result[name])}  {result[name]['run']}" for name in ("a", "b")]
    lines += ["", *result["statements"], ""]
    if result["pairs"]:
        p = result["pairs"]
        lines.append(f"pairs: both {p['both']}, only A {p['only_a']}, only B {p['only_b']}, neither {p['neither']}")
    lines.append(f"seeds: A {result['seeds']['a']}, B {result['seeds']['b']}")
    lines.append(f"interval: {result['interval']['method']}")
    for row in result.get("bootstrap", []):
        lines.append(f"{row['name']}: A {row['a']:.4g}, B {row['b']:.4g}, {_bootstrap_cell(row)}")
    if result.get("bootstrap"):
        lines.append(f"bootstrap: {result['bootstrap'][0]['method']}, seed {result['options']['seed']}")
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(lines + ([f"page: {page_path}"] if page_path else []))


def _bootstrap_cell(row: Mapping[str, Any]) -> str:
    span = f"{row['difference']:+.4g} ({100 * row['confidence']:.4g} %: {row['low']:+.4g} to {row['high']:+.4g})"
    return f"B - A = {span}, {row['n']} {'pairs' if row['method'].startswith('paired') else 'episodes'}"


def page(result: Mapping[str, Any]) -> str:
    """The comparison as one HTML page with inline style and drawings, no script and no other file.

    Args:
        result: of compare.compare.
    """
    a, b = result["a"], result["b"]
    first, *rest = result["statements"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{_e(result['verdict'])}: comparison</title><style>{_STYLE}</style>",
        f"<h1>Comparison: {_e(result['verdict'])}</h1><p class='verdict'>{_e(first)}</p>",
        *(f"<p>{_e(line)}</p>" for line in rest),
        *(f"<p class='note'>{_e(note)}</p>" for note in result["notes"]),
        "<h2>Success</h2>",
        _success_table(result),
        "<h2>Difference B - A, points</h2>", _interval_drawing(result),
        f"<p class='soft'>{_sentence(result['interval']['method'])}; the grey band is the margin of equivalence.</p>",
    ]  # fmt: skip
    if result.get("sequential"):
        parts += ["<h2>Evidence after each pair</h2>", _evidence_drawing(result["sequential"])]
    if result["outcomes"]:
        parts += [
            "<h2>Episodes in seed order</h2>",
            _outcome_drawing(result["outcomes"]),
            _pair_legend(result["pairs"]),
        ]
    if result.get("bootstrap"):
        rows = [[r["name"], f"{r['a']:.4g}", f"{r['b']:.4g}", _bootstrap_cell(r)] for r in result["bootstrap"]]
        parts += ["<h2>Return and time</h2>", _table(["mean", "A", "B", "difference"], rows)]
        method = _sentence(result["bootstrap"][0]["method"])
        parts.append(f"<p class='soft'>{method}, seed {result['options']['seed']}.</p>")
    parts.append("<h2>Policies and protocol</h2>")
    for name, side in (("A", a), ("B", b)):
        facts = json.dumps({"command": side["command"], "protocol": side["protocol"]}, indent=2)
        parts.append(f"<details><summary>{name}: {_e(side['run'])}</summary><pre>{_e(facts)}</pre></details>")
    return "\n".join([*parts, "</html>\n"])


def _e(text: object) -> str:
    return html.escape(str(text))


def _sentence(text: str) -> str:
    return _e(text[0].upper() + text[1:])


def _success_table(result: Mapping[str, Any]) -> str:
    """Who was compared: rate, policy, what ran it, run directory and seeds."""
    metric = _e(result["options"]["metric"].replace("_", " "))
    rows = ""
    for name in ("a", "b"):
        side, s = result[name], result[name]["success"]
        policy, runs_on = _policy_words(side["policy"])
        rows += (
            f"<tr><td>{name.upper()}</td><td class='fixed'>{s['k']}/{s['n']} = {s['rate']:.1%}"
            f"<small>{s['low']:.1%} to {s['high']:.1%}</small></td><td class='path'>{_e(policy)}<small>{_e(runs_on)}</small>"
            f"<small>run {_e(side['run'])}, seeds {_e(result['seeds'][name])}</small></td></tr>"
        )
    head = (
        f"<th></th><th>{metric}<small>Wilson 95 %</small></th><th>policy<small>what ran it; run and seeds</small></th>"
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _policy_words(policy: Any) -> tuple[str, str]:
    """Name of a policy and what ran it, from the protocol, which an unfinished or an older run may hold in part."""
    if not isinstance(policy, Mapping):
        return str(policy or "unknown"), ""
    if "expert" in policy:
        return f"expert {str(policy['expert'].get('_target_', '')).rpartition('.')[2]}", ""
    facts = [str(policy[key]) for key in ("class", "provider", "precision") if policy.get(key) is not None]
    return str(policy.get("path", "unknown")), ", ".join(facts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _interval_drawing(result: Mapping[str, Any]) -> str:
    interval, margin = result["interval"], result["options"]["margin"]
    reach = max(abs(interval["low"]), abs(interval["high"]), 2 * margin)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if reach / s <= 6 or s == 0.5)

    def x(value: float) -> float:
        return float(450 + 400 * value / (1.1 * reach))

    count = int(1.1 * reach / step)
    ticks = "".join(
        f"<line x1='{x(i * step):.1f}' x2='{x(i * step):.1f}' y1='70' y2='76' stroke='currentColor'/>"
        f"<text x='{x(i * step):.1f}' y='92' text-anchor='middle'>{f'{round(100 * i * step):+d}' if i else '0'}</text>"
        for i in range(-count, count + 1)
    )
    low, middle, high = x(interval["low"]), x(interval["difference"]), x(interval["high"])
    return (
        "<svg viewBox='0 0 900 100' role='img' aria-label='difference with interval'>"
        f"<rect x='{x(-margin):.1f}' width='{x(margin) - x(-margin):.1f}' y='10' height='60' fill='var(--soft)'/>"
        "<line x1='450' x2='450' y1='10' y2='70' stroke='currentColor' stroke-dasharray='4'/>"
        f"<line x1='50' x2='850' y1='70' y2='70' stroke='currentColor'/>{ticks}"
        f"<line x1='{low:.1f}' x2='{high:.1f}' y1='40' y2='40' stroke='var(--a)' stroke-width='4'/>"
        f"<circle cx='{middle:.1f}' cy='40' r='7' fill='var(--a)'/>"
        "<text x='50' y='25'>A better</text><text x='850' y='25' text-anchor='end'>B better</text></svg>"
    )


def _evidence_drawing(found: Mapping[str, Any]) -> str:
    """The e-value on a logarithmic axis with the line that a claim needs."""
    from math import log10

    logs = [log10(value) for value in found["history"]]
    bottom, top = min(*logs, -1.0), max(*logs, log10(found["needed"])) + 0.3

    def y(value: float) -> float:
        return float(190 - 170 * (value - bottom) / (top - bottom))

    wide = max(len(logs) - 1, 1)
    line = " ".join(f"{60 + 780 * i / wide:.1f},{y(value):.1f}" for i, value in enumerate(logs))
    need = y(log10(found["needed"]))
    ticks = "".join(
        f"<text x='52' y='{y(float(k)) + 4:.1f}' text-anchor='end'>{10.0**k:g}</text>"
        for k in range(int(bottom), int(top) + 1)
    )
    return (
        "<svg viewBox='0 0 900 215' role='img' aria-label='evidence after each pair'>"
        f"<line x1='60' x2='840' y1='{need:.1f}' y2='{need:.1f}' stroke='var(--b)' stroke-dasharray='6'/>"
        f"<text x='66' y='{need - 5:.1f}'>a claim needs {found['needed']:.4g}</text>"
        f"<polyline points='{line}' fill='none' stroke='var(--a)' stroke-width='2'/>{ticks}"
        f"<text x='60' y='210'>pair 1</text><text x='840' y='210' text-anchor='end'>pair {len(logs)}</text></svg>"
    )


def _outcome_drawing(outcomes: Sequence[Sequence[Any]]) -> str:
    """One small square a pair, 50 in a row; the seed is its tooltip."""
    names = {(True, True): "both", (True, False): "only A", (False, True): "only B", (False, False): "neither"}
    cells = []
    for index, (seed, a, b) in enumerate(outcomes):
        left, top = 18 * (index % 50), 18 * (index // 50)
        cells.append(
            f"<rect x='{left}' y='{top}' width='15' height='15' {_FILL[names[a, b]]}>"
            f"<title>seed {seed}: {names[a, b]}</title></rect>"
        )
    return f"<svg viewBox='0 0 900 {18 * (1 + (len(outcomes) - 1) // 50)}'>{''.join(cells)}</svg>"


_FILL = {
    "both": "fill='#68a06a'",
    "only A": "fill='var(--a)'",
    "only B": "fill='var(--b)'",
    "neither": "fill='none' stroke='#8888'",
}


def _pair_legend(pairs: Mapping[str, int]) -> str:
    keys = (("both", "both"), ("only A", "only_a"), ("only B", "only_b"), ("neither", "neither"))
    items = "".join(
        f"<svg viewBox='0 0 16 16' style='width:1rem;vertical-align:-2px'><rect width='15' height='15' {_FILL[name]}/></svg>"
        f" {name} {pairs[key]} &nbsp; "
        for name, key in keys
    )
    return f"<p>{items}</p>"
