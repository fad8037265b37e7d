"""What a report shows of an `offline` run: every decision of the gate, and how the critics and the model were fitted.

Read from ope/decisions.jsonl, round_NN/fits.json and ope/calibration.json (which `robot-rl judge calibrate` writes); all
may be missing, torn or damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from robot_rl.errors import RobotRlError
from robot_rl.runs.directory import read_json
from robot_rl.runs.report import RunFacts, number
from robot_rl.runs.report_calibration import judge_scatter, judged_points

JUDGES = {"fqe": "FQE", "am_q": "AM-Q", "model_return": "model return"}
GUARDS = {
    "kl": ("KL to the incumbent, nats", "max_kl"),
    "disagreement_ratio": ("disagreement, candidate / incumbent", "max_disagreement_ratio"),
    "q_gap": ("Q(policy) - Q(data), sd", "max_q_gap"),
}
CRITICS = {"critic": "the optimiser's critic", "judge_critic": "the judges' critic"}
_CRITIC_ROWS = (
    ("V at starts", "value_at_starts"),
    ("Monte-Carlo return at starts", "return_at_starts"),
    ("largest target before the clamp", "target_max"),
    ("share of targets clamped", "target_clamped_share"),
    ("rank correlation of Q with return", "rank_correlation"),
    ("the same of V, starts only", "rank_correlation_starts"),
    ("steps kept / done", ("best_step", "steps")),
)
_OPEN_AT_MOST = 12
_BAD = '<span class="state bad">{}</span>'


@dataclass(frozen=True)
class OfflineFacts:
    """What an offline run tells.

    Attributes:
        decisions: lines of ope/decisions.jsonl.
        fits: (round, content of its fits.json).
        calibration: content of ope/calibration.json; empty where there is none.
        notes: sentences about what is missing, damaged or worthless.
    """

    decisions: tuple[Mapping[str, Any], ...]
    fits: tuple[tuple[str, Mapping[str, Any]], ...]
    calibration: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def kept(self) -> tuple[Mapping[str, Any], ...]:
        """Decisions that changed the policy."""
        return tuple(decision for decision in self.decisions if decision.get("accepted") is True)


def read_offline(facts: RunFacts) -> OfflineFacts:
    """Decisions and fits of a run; nothing of both for another stage."""
    if facts.kind != "offline":
        return OfflineFacts((), (), {}, ())
    notes: list[str] = []
    decisions = _decisions(facts.path / "ope" / "decisions.jsonl", notes)
    fits = []
    for path in sorted(facts.path.glob("round_*/fits.json")):
        value = _object(path, f"{path.parent.name}/fits.json", notes)
        if value is not None:
            name = path.parent.name.removeprefix("round_").lstrip("0") or "0"
            fits.append((name, value))
            notes += [_worthless(name, value, critic) for critic in CRITICS]
    calibration = facts.path / "ope" / "calibration.json"
    found = (_object(calibration, "ope/calibration.json", notes) if calibration.exists() else None) or {}
    return OfflineFacts(decisions, tuple(fits), found, tuple(note for note in notes if note))


def gate_sentence(facts: RunFacts) -> str:
    """ "The gate kept 2 of 6 proposals: success_only (round 0) and ppo (round 0)", without a full stop; "" where none."""
    found = read_offline(facts)
    if not found.decisions:
        return ""
    total = len(found.decisions)
    text = f"The gate kept {len(found.kept)} of {total} proposal{'s' if total != 1 else ''}"
    names = [f"{d.get('method')} (round {d.get('round')})" for d in found.kept]
    counted = [f"{name}{f' x {names.count(name)}' if names.count(name) > 1 else ''}" for name in dict.fromkeys(names)]
    return text + (f": {', '.join(counted)}" if counted else "; the policy is the one that it started from")


def offline_html(found: OfflineFacts) -> str:
    """Sections "Decisions of the gate", "Critics and model" and "Judges against true success"; each where it has content."""
    out = []
    if found.decisions:
        opened = len(found.decisions) <= _OPEN_AT_MOST
        details = "".join(_decision(decision, opened) for decision in found.decisions)
        out.append(f"<h2>Decisions of the gate</h2>{_overview(found.decisions)}{details}")
    if found.fits:
        out.append("<h2>Critics and model</h2>" + "".join(_fits(name, fits) for name, fits in found.fits))
    return "".join(out) + _calibration(found.calibration)


def _object(path: Path, name: str, notes: list[str]) -> Mapping[str, Any] | None:
    """A JSON object, or None and a note."""
    try:
        value = read_json(path)
    except (RobotRlError, OSError) as error:
        notes.append(f"{name} can't be read: {getattr(error, 'got', error)}")
        return None
    if not isinstance(value, dict):
        notes.append(f"{name} holds no JSON object.")
        return None
    return value


def _worthless(name: str, fits: Mapping[str, Any], critic: str) -> str:
    """A warning when no step of a fit beat the untrained critic, else ""."""
    if number(fits, critic, "best_step") != 0:
        return ""
    steps = number(fits, critic, "steps")
    follows = "the gate has nothing to go by" if critic == "judge_critic" else "what it proposed (awr, ppo) is noise"
    return (
        f"Round {name}: {CRITICS[critic]} is worthless: on held-out episodes none of "
        f"{'its' if steps is None else _figure(steps)} steps beat the untrained one, so {follows}. More episodes help."
    )


def _decisions(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        notes.append("ope/decisions.jsonl is missing: no proposal was judged, or it was lost.")
        return ()
    good, bad = [], 0
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            good.append(value)
        else:
            bad += 1
    if bad:
        notes.append(f"{bad} of {bad + len(good)} lines of ope/decisions.jsonl are damaged and left out.")
    return tuple(good)


def _overview(decisions: Sequence[Mapping[str, Any]]) -> str:
    head = ["#", "round", "method", "outcome", *(f"{label}, gain" for label in JUDGES.values())]
    lines = []
    for decision in decisions:
        cells = [_text(decision.get("proposal")), _text(decision.get("round")), _text(decision.get("method"))]
        cells += [_outcome(decision), *(_gain(_part(decision, "estimates", name)) for name in JUDGES)]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return _table(head, lines)


def _decision(decision: Mapping[str, Any], opened: bool) -> str:
    title = (
        f"{_text(decision.get('proposal'))} · round {_text(decision.get('round'))} · {_text(decision.get('method'))}"
    )
    content = _judges(decision) + _guards(decision) + _kl_steps(decision)
    content += f'<p class="soft">{_text(decision.get("reason"))}</p>'
    summary = f"<summary>{title} · {_outcome(decision)}</summary>"
    return f"<details{' open' if opened else ''}>{summary}{content}</details>"


def _judges(decision: Mapping[str, Any]) -> str:
    estimates = decision.get("estimates")
    names = [*JUDGES, *(name for name in (estimates if isinstance(estimates, Mapping) else {}) if name not in JUDGES)]
    config = decision.get("config")
    deciding = config.get("deciding") if isinstance(config, Mapping) else None
    lines = []
    for name in names:
        one = _part(decision, "estimates", name)
        # No name at all means that all judges decide.
        role = "decides" if not deciding or (isinstance(deciding, list) and name in deciding) else "may object"
        values = [_figure(number(one, key)) for key in ("candidate", "incumbent")]
        cells = [escape(JUDGES.get(name, str(name))), role, *values, _gain(one), _text(one.get("start_states"))]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return _table(["judge", "role", "candidate", "incumbent", "difference [95 %]", "starts"], lines)


def _guards(decision: Mapping[str, Any]) -> str:
    lines = []
    for name, (label, limit_name) in GUARDS.items():
        value, limit = number(decision, "guards", name), number(decision, "config", limit_name)
        beyond = value is not None and limit is not None and value > limit
        shown = "not measured" if value is None else _figure(value)
        cells = [label, f"<b>{shown}</b>" if beyond else shown, "none" if limit is None else _figure(limit)]
        cells.append(_BAD.format("beyond") if beyond else "within" if value is not None else "")
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return _table(["guard", "value", "limit", ""], lines)


def _kl_steps(decision: Mapping[str, Any]) -> str:
    """One column a denoising step; those that take more than five times the median are marked (P19)."""
    from torch import tensor

    from robot_rl.algorithms.ppo import dominating_steps

    numbers = decision.get("numbers")
    values = numbers.get("kl_steps_nats") if isinstance(numbers, Mapping) else None
    if not isinstance(values, list) or not values or not all(_is_number(value) for value in values):
        return ""
    dominating = dominating_steps(tensor([float(value) for value in values]))
    most = max(max(values), 1e-12)
    cells = []
    for step, value in enumerate(values):
        height = 34 * max(value, 0) / most
        colour = "var(--warn)" if step in dominating else "var(--accent)"
        bar = (
            '<svg viewBox="0 0 30 36" style="width:30px;display:inline-block" role="img">'
            f'<rect x="4" y="{36 - height:.1f}" width="22" height="{height:.1f}" style="fill:{colour}"/></svg>'
        )
        mark = '<br><span class="state bad" style="margin:0">dominates</span>' if step in dominating else ""
        cells.append(f"<td>{bar}<br>{_figure(float(value))}{mark}</td>")
    head = ["KL, nats", *(f"step {step}{' (noisiest)' if step == 0 else ''}" for step in range(len(values)))]
    return _table(head, [f"<td>{_figure(sum(values))} in all</td>{''.join(cells)}"], kind="steps")


def _fits(name: str, fits: Mapping[str, Any]) -> str:
    lines = []
    for label, key in _CRITIC_ROWS:
        keys = (key,) if isinstance(key, str) else key
        shown = [" / ".join(_figure(number(fits, critic, one)) for one in keys) for critic in CRITICS]
        if "best_step" in keys:
            marks = ["" if not _worthless(name, fits, critic) else _BAD.format("worthless") for critic in CRITICS]
            shown = [cell + mark for cell, mark in zip(shown, marks, strict=True)]
        lines.append(f"<td>{escape(label)}</td>" + "".join(f"<td>{cell}</td>" for cell in shown))
    critics = _table(["", "optimiser's critic", "judges' critic"], lines)
    model = [
        ("R2 of the features, one decision ahead", _figure(number(fits, "judge_model", "r2"))),
        ("R2 of the reward", _figure(number(fits, "judge_model", "reward_r2"))),
        ("AUC of the termination", _figure(number(fits, "judge_model", "termination_auc"))),
        ("disagreement, held-out decisions", _figure(number(fits, "judge_model", "disagreement"))),
        (
            "decisions fitted / held out",
            " / ".join(_figure(number(fits, "judge_model", key)) for key in ("rows", "validation_rows")),
        ),
    ]
    rows = [f"<td>{escape(label)}</td><td>{value}</td>" for label, value in model]
    return f"<h3>Round {escape(name)}</h3>{critics}{_table(['', 'judges’ model'], rows)}{_noise_floor(fits)}"


def _calibration(document: Mapping[str, Any]) -> str:
    """Rank correlation of each judge with true success over policies that were played, and the policies as points."""
    given = document.get("rows")
    rows = {str(r.get("judge")): r for r in given if isinstance(r, Mapping)} if isinstance(given, list) else {}
    lines, panels = [], []
    for judge, row in rows.items():
        points = judged_points(document.get("policies"), judge)
        label, shown = JUDGES.get(judge, judge), _correlation(row)
        lines.append(
            "".join(f"<td>{escape(cell)}</td>" for cell in (label, shown, _figure(number(row, "checkpoints"))))
        )
        panels.append((f"{label}: {shown}", points))
    if not lines:
        return ""
    table = _table(["judge", "Spearman's rank correlation [95 %]", "policies"], lines)
    figure = judge_scatter(panels, name="calibration")
    caption = (
        "<figcaption>A point is a policy that was played afterwards, its bar the Wilson 95 % interval of success. The "
        "gate saw none of it.</figcaption>"
    )
    drawn = f"<figure>{figure}{caption}</figure>" if figure else ""
    return f"<h2>Judges against true success</h2>{table}{drawn}"


def _correlation(row: Mapping[str, Any]) -> str:
    value, low, high = (number(row, key) for key in ("spearman", "low", "high"))
    if value is None:
        return "undefined (no variation)"
    return f"{value:+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def _noise_floor(fits: Mapping[str, Any]) -> str:
    sigma = number(fits, "noise_floor", "sigma_min")
    if sigma is None:
        return ""
    gain = _gain(_part(fits.get("noise_floor"), "mean_path_gain"))
    return f"<p>Noise floor {_figure(sigma)}: without the noise, the judges' model sees a gain of {gain} in return.</p>"


def _outcome(decision: Mapping[str, Any]) -> str:
    accepted = decision.get("accepted")
    if accepted is True:
        return '<b style="color:var(--accent)">kept</b>'
    return "rejected" if accepted is False else "unknown"


def _gain(estimate: Mapping[str, Any]) -> str:
    centre, low, high = (number(estimate, key) for key in ("difference", "low", "high"))
    if centre is None:
        return "-"
    interval = "" if low is None or high is None else f" [{low:+.3g}, {high:+.3g}]"
    text = f"{centre:+.3g}{interval}"
    is_clear = low is not None and high is not None and (low > 0 or high < 0)
    return f"<b>{text}</b>" if is_clear else text


def _part(document: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document if isinstance(document, Mapping) else {}


def _table(head: Iterable[str], lines: Iterable[str], kind: str = "") -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f'<tr class="{kind}">{line}</tr>' if kind else f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide offline"><table><tr>{titles}</tr>{body}</table></div>'


def _text(value: Any) -> str:
    return escape(str(value)) if isinstance(value, str | int | float) else "?"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
