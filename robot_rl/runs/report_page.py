"""The report of a run as one HTML text that needs nothing else: no script, no link to a file, light and dark.

Every text from a run goes through `html.escape`; the page's content policy forbids scripts and foreign addresses on top.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from robot_rl.algorithms.statistics import Proportion
from robot_rl.runs import report_plots
from robot_rl.runs.report import RunFacts, number, parents
from robot_rl.runs.report_data import DatasetFacts, try_dataset
from robot_rl.runs.report_offline import offline_html, read_offline
from robot_rl.runs.report_text import ResultRow, result_rows, sentence

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6570;--line:#d9dee3;--paper:#fff;--card:#f6f8f9;--accent:#2f86d6;
--warn:#b4540a;--warnpaper:#fff4e8}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ec;--soft:#9aa5b1;--line:#353c44;--paper:#14171a;--card:#1c2126;
--warn:#f0a060;--warnpaper:#2b2017}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1020px;padding:28px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;overflow-wrap:anywhere}
h1{font-size:22px;margin:0 0 2px}h2{font-size:17px;margin:34px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
h3{font-size:15px;margin:20px 0 6px}p{margin:6px 0}.soft{color:var(--soft);font-size:13px}
.lead{font-size:19px;line-height:1.4;margin:14px 0 10px}
.state{display:inline-block;border:1px solid var(--line);border-radius:10px;padding:0 9px;font-size:13px;margin-left:8px;
vertical-align:2px;font-weight:400}
.state.bad{color:var(--warn);border-color:var(--warn)}
ul.notes{background:var(--warnpaper);border-left:3px solid var(--warn);margin:10px 0;padding:8px 12px 8px 30px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th{text-align:left;font-weight:600;color:var(--soft);font-size:13px}th,td{padding:5px 12px 5px 0;vertical-align:middle;
border-bottom:1px solid var(--line)}td.n,th.n{text-align:right}td.n{white-space:nowrap}
.wide th,.wide td.n{overflow-wrap:normal}.wide td:first-child{min-width:150px}
.offline td,.offline th{white-space:nowrap}.offline{margin:6px 0 10px}.wide.offline td:first-child{min-width:0}
.offline tr.steps td{vertical-align:top}table.facts th{width:190px;vertical-align:top}
svg{max-width:100%;height:auto;display:block}figure{margin:10px 0}figcaption{color:var(--soft);font-size:13px}
img{max-width:100%;width:100%;border-radius:4px;display:block}
details{background:var(--card);border:1px solid var(--line);border-radius:6px;margin:8px 0;padding:0 12px}
summary{cursor:pointer;padding:8px 0;font-weight:600}pre{font-size:12.5px;line-height:1.45;overflow-x:auto;
white-space:pre-wrap;margin:0 0 12px}.key{display:inline-block;width:10px;height:10px;border-radius:5px;margin:0 4px 0 10px}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def report_html(facts: RunFacts) -> str:
    """The whole page of a run or a pipeline."""
    title = f"{facts.stage} {facts.task}"
    dataset, why_not = try_dataset(facts.dataset)
    used = _datasets_differ(facts, dataset)
    offline = read_offline(facts)
    body = [
        _heading(facts, title),
        f'<p class="lead">{escape(sentence(facts))}</p>',
        _notes([*facts.notes, *offline.notes, *used, *_part_notes(facts)]),
        _results(facts),
        offline_html(offline),
        _curves(facts),
        _latency(facts),
        _episodes(facts),
        _dataset(dataset, why_not, wanted=_uses_dataset(facts), name=facts.path.name),
        _teacher_episodes(facts),
        _stages(facts),
        _configuration(facts),
        _provenance(facts, dataset),
    ]
    return whole_page(title, style=_STYLE, parts=body)


def whole_page(title: str, *, style: str, parts: Iterable[str]) -> str:
    """A page that needs nothing else and may run or fetch nothing; empty parts are left out.

    Args:
        title: plain text.
        style: CSS of ours.
        parts: HTML; texts from outside are escaped in it already.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _heading(facts: RunFacts, title: str) -> str:
    kind = "" if facts.state in ("finished", "running") else " bad"
    details = [facts.path.absolute().name, str(facts.status.get("time") or facts.provenance.get("time") or "")]
    details += [f"{facts.seconds:.0f} s"] if facts.seconds is not None else []
    return (
        f'<h1>{escape(title)}<span class="state{kind}">{escape(facts.state)}</span></h1>'
        f'<p class="soft">{escape(" · ".join(detail for detail in details if detail))}</p>'
    )


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes) if note)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _part_notes(facts: RunFacts) -> list[str]:
    return [f"{name}: {note}" for name, part in facts.parts for note in part.notes]


def _results(facts: RunFacts) -> str:
    rows = result_rows(facts)
    if not rows:
        return ""
    # A column that no row fills is left out.
    columns: list[tuple[str, list[str]]] = [
        ("success once", [_share(row.success) + (" so far" if row.partial else "") for row in rows]),
        ("Wilson 95 %", [f"{row.success.low:.1%} to {row.success.high:.1%}" for row in rows]),
        ("at the end", ["" if row.at_end is None else f"{row.at_end.k}/{row.at_end.n}" for row in rows]),
        ("steps to success, p50", [_plain(row.steps_p50) for row in rows]),
        ("action change, rms", [_plain(row.action_change_rms) for row in rows]),
        ("seconds to play", [_plain(row.seconds) for row in rows]),
    ]
    columns = [column for column in columns if any(column[1])]
    bar_heading = '<th style="width:20%">0 % to 100 %</th>'
    cells = [f'<th class="n">{escape(name)}</th>' for name, _ in columns]
    head = f"<tr><th>policy</th>{cells[0]}{cells[1]}{bar_heading}{''.join(cells[2:])}</tr>"
    lines = []
    for index, row in enumerate(rows):
        values = [f'<td class="n">{escape(column[index])}</td>' for _, column in columns]
        bar = f"<td>{_interval_bar(row)}</td>"
        lines.append(f"<tr><td>{escape(row.label)}</td>{values[0]}{values[1]}{bar}{''.join(values[2:])}</tr>")
    return f'<h2>Results</h2><div class="wide"><table>{head}{"".join(lines)}</table></div>'


def _interval_bar(row: ResultRow) -> str:
    """The interval as a band from 0 to 100 % and the rate as a tick."""
    low, high, rate = (200 * value for value in (row.success.low, row.success.high, row.success.rate))
    return (
        '<svg viewBox="-2 0 204 18" role="img" style="width:100%;min-width:110px">'
        f"<title>{escape(str(row.success))}</title>"
        '<line x1="0" y1="9" x2="200" y2="9" style="stroke:var(--line)" stroke-width="2"/>'
        f'<rect x="{low:.2f}" y="5" width="{max(high - low, 1):.2f}" height="8" rx="2" style="fill:var(--accent)" '
        'fill-opacity=".45"/>'
        f'<rect x="{rate - 1.5:.2f}" y="2" width="3" height="14" style="fill:var(--accent)"/></svg>'
    )


def _curves(facts: RunFacts) -> str:
    """Learning curves of the run, and for a pipeline those of its training stages."""
    runs = [(name, part) for name, part in facts.parts if part.kind not in ("evaluate", "collect", "export")]
    if not facts.parts and facts.kind not in ("evaluate", "collect", "export"):
        runs = [("", facts)]
    parts = []
    for label, part in runs:
        figure = report_plots.learning_curves(part.metrics, name=f"{part.path.name}/curves")
        if figure:
            parts.append((f"<h3>{escape(label)}</h3>" if label else "") + f"<figure>{figure}</figure>")
    return "<h2>Learning curves</h2>" + "".join(parts) if parts else ""


def _latency(facts: RunFacts) -> str:
    found = {name: part.latency for name, part in (("this policy", facts), *facts.parts) if part.latency}
    figure = report_plots.latency_bars(found, name=f"{facts.path.name}/latency")
    if not figure:
        return ""
    latency, parity = next(iter(found.values())), next((p.parity for p in (facts, *_runs(facts)) if p.parity), {})
    said = [
        f"{key.replace('_', ' ')} {latency[key]}" for key in ("provider", "threads", "batch", "calls") if key in latency
    ]
    load = number(latency, "load_average_1min")
    said += [f"load average {load:.2f}"] if load is not None else []
    worst = number(parity, "max_error")
    said += [f"largest difference to torch {worst:.2g} action units"] if worst is not None else []
    caption = f"<figcaption>{escape(', '.join(said))}</figcaption>"
    return f"<h2>Latency of the exported policy</h2><figure>{figure}{caption}</figure>"


def _episodes(facts: RunFacts) -> str:
    runs = {name: part.episodes for name, part in facts.parts} or {"": facts.episodes}
    figure = report_plots.episode_lengths(runs, name=f"{facts.path.name}/episodes")
    legend = f'<p class="soft">Length of every episode:{_legend()}</p>'
    return f"<h2>Episodes</h2>{legend}<figure>{figure}</figure>" if figure else ""


def _legend() -> str:
    marks = ((report_plots.SUCCESS, "success"), (report_plots.FAILURE, "failure (cross)"))
    return "".join(f'<span class="key" style="background:{colour}"></span>{text}' for colour, text in marks)


def _uses_dataset(facts: RunFacts) -> bool:
    return bool(facts.parts) or "dataset" in facts.config


def _dataset(data: DatasetFacts | None, why_not: str, *, wanted: bool, name: str, heading: str = "Dataset") -> str:
    if data is None:
        return f"<h2>{escape(heading)}</h2><p>{escape(why_not)}</p>" if wanted else ""
    text = (
        f"{data.episodes} episodes of {data.env_id}, {data.successes} with success, {data.steps} env steps; "
        f"{data.shown} are drawn."
    )
    out = [f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>"]
    figure = report_plots.trajectories(data.projections, name=f"{name}/{heading}")
    if figure:
        ring = "An open ring is the start of an episode, a dot or cross its end."
        out.append(f'<p class="soft">{ring}{_legend()}</p><figure>{figure}</figure>')
    for strip in data.strips:
        outcome = "success" if strip.success else "failure"
        caption = f"{strip.camera}, episode {strip.episode} (seed {strip.seed}, {outcome}), env steps "
        caption += ", ".join(str(step) for step in strip.steps)
        image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{report_plots.png_base64(strip.image)}">'
        out.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    return "".join(out)


def _teacher_episodes(facts: RunFacts) -> str:
    """Trajectories that a distillation's teacher played itself."""
    for part in (facts, *_runs(facts)):
        store = part.path / "teacher_rollouts.zarr"
        if (store / ".zattrs").is_file():
            data, why_not = try_dataset(store)
            heading = "The teacher's own episodes"
            return _dataset(data, why_not, wanted=True, name=part.path.name, heading=heading)
    return ""


def _stages(facts: RunFacts) -> str:
    if not facts.parts:
        return ""
    blocks = []
    for name, part in facts.parts:
        rows = [("result", sentence(part)), ("run", part.path.name), ("command", part.command), ("state", part.state)]
        summary = f"<summary>{escape(name)} · {escape(part.state)}</summary>"
        content = _fact_table(rows) + _fold("Summary", _json(part.summary)) + _fold("Configuration", part.config_yaml)
        blocks.append(f"<details>{summary}{content}{_fold('End of the log', part.log)}</details>")
    return f"<h2>Stages</h2>{''.join(blocks)}"


def _configuration(facts: RunFacts) -> str:
    folds = [
        ("Configuration", facts.config_yaml),
        ("End of the log", facts.log),
        ("Last value of every metric", _last(facts)),
    ]
    if not facts.parts:
        folds.insert(1, ("Summary", _json(facts.summary)))
    return "<h2>Configuration and log</h2>" + "".join(_fold(title, text) for title, text in folds)


def _provenance(facts: RunFacts, dataset: DatasetFacts | None) -> str:
    origin = facts.provenance
    git = origin.get("git")
    code = "not from a git repository"
    if isinstance(git, Mapping):
        code = f"{git.get('commit')}{' with uncommitted changes' if git.get('dirty') else ''}"
    packages = origin.get("packages")
    versions = packages if isinstance(packages, Mapping) else {}
    gpus = origin.get("gpus")
    machine = [origin.get("cpu_model"), f"{origin.get('usable_cpus')} usable CPUs", f"{origin.get('memory_gib')} GiB"]
    machine += [", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "no GPU", origin.get("platform")]
    rows = [
        ("command", facts.command),
        ("code (git)", code if origin else "unknown"),
        ("versions", ", ".join(f"{k} {v}" for k, v in [("python", origin.get("python")), *versions.items()] if v)),
        ("machine", ", ".join(str(word) for word in machine if word) if origin else "unknown"),
        ("begun", str(origin.get("time", "unknown"))),
        ("seed of the run", str(facts.status.get("seed", facts.config.get("seed", "unknown")))),
        *((f"seeds, {key}", text) for key, text in _seeds(facts)),
        *(("made from", f"{key}: {path}") for key, path in parents(facts)),
        *((f"dataset of {name}", text) for name, text in _dataset_hashes(facts)),
    ]
    if dataset is not None:
        rows.append(("dataset on disk", f"{dataset.path}, SHA-256 {dataset.content_hash}"))
    return f"<h2>Provenance</h2>{_fact_table(rows)}"


def _seeds(facts: RunFacts) -> list[tuple[str, str]]:
    out = []
    for part in (facts, *_runs(facts)):
        seeds = sorted(e["seed"] for e in part.episodes if isinstance(e.get("seed"), int))
        if seeds:
            out.append((part.stage, f"{seeds[0]} to {seeds[-1]} ({len(seeds)} episodes)"))
    return out


def _dataset_hashes(facts: RunFacts) -> list[tuple[str, str]]:
    """What each run recorded of the dataset that it made or used."""
    out = []
    for part in (facts, *_runs(facts)):
        found = part.summary.get("content_hash") or part.summary.get("dataset_hash")
        if isinstance(found, str):
            out.append((part.stage, f"SHA-256 {found}"))
    return out


def _datasets_differ(facts: RunFacts, dataset: DatasetFacts | None) -> list[str]:
    if dataset is None:
        return []
    others = [name for name, text in _dataset_hashes(facts) if text != f"SHA-256 {dataset.content_hash}"]
    return [f"The dataset on disk is no longer the one that {name} recorded: its hash differs." for name in others]


def _runs(facts: RunFacts) -> list[RunFacts]:
    return [part for _, part in facts.parts]


def _last(facts: RunFacts) -> str:
    values: dict[str, Any] = {}
    for line in facts.metrics:
        values |= {key: (value, line["step"]) for key, value in line.items() if key != "step"}
    return "\n".join(f"{key}: {value} (step {step})" for key, (value, step) in values.items())


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, default=str) if value else ""


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text.strip() else ""


def _fact_table(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows if text)
    return f'<table class="facts">{lines}</table>'


def _share(success: Proportion) -> str:
    return f"{success.k}/{success.n} = {success.rate:.1%}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
