"""What came out of a run: one plain sentence, and the lines of the result table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.runs.report import KILLED, RunFacts, counted, number
from robot_rl.runs.report_offline import gate_sentence


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table.

    Attributes:
        label: whose result.
        success: k of n with intervals.
        at_end: k of n with success at the last step, or None.
        steps_p50: median env steps to the first success, or None.
        action_change_rms: smoothness, action units, or None.
        seconds: wall time of the evaluation, or None.
        partial: the evaluation is not finished; these are the episodes so far.
    """

    label: str
    success: Proportion
    at_end: Proportion | None = None
    steps_p50: float | None = None
    action_change_rms: float | None = None
    seconds: float | None = None
    partial: bool = False


def sentence(facts: RunFacts) -> str:
    """One sentence about the result; a run that did not finish is said to be so first."""
    if facts.state not in ("finished", "unknown"):
        return _unfinished(facts)
    known: dict[str, Callable[[RunFacts], str]] = {
        "pipeline": _pipeline,
        "collect": _collect,
        "evaluate": _evaluate,
        "imitate": _imitate,
        "distill_onestep": _distil,
        "export": _export,
        "offline": _offline,
    }
    return known.get(facts.kind, _any_stage)(facts) or _any_stage(facts)


def with_interval(success: Proportion, what: str = "episodes") -> str:
    """ "198 of 200 episodes (99.0 %; Wilson 95 %: 96.4 to 99.7 %)"."""
    interval = f"{100 * success.low:.1f} to {100 * success.high:.1f} %"
    return f"{success.k} of {success.n} {what} ({100 * success.rate:.1f} %; Wilson 95 %: {interval})"


def _unfinished(facts: RunFacts) -> str:
    states = {KILLED: "was killed", "running": "is still running", "interrupted": "was interrupted", "failed": "failed"}
    text = f"The run {states.get(facts.state, 'is in state ' + facts.state)}"
    if facts.parts:
        done = sum(part.state == "finished" for _, part in facts.parts)
        text += f" after {done} finished stage{'s' if done != 1 else ''}"
        open_parts = [name for name, part in facts.parts if part.state != "finished"]
        text += f", in {open_parts[-1]}" if open_parts else ""
    elif facts.metrics:
        text += f" at step {facts.metrics[-1]['step']}"
    gate = gate_sentence(facts)
    text += f"; {gate[0].lower()}{gate[1:]} so far" if gate else ""
    rows = result_rows(facts)
    return text + (f"; {rows[-1].label} had success in {with_interval(rows[-1].success)}." if rows else ".")


def _pipeline(facts: RunFacts) -> str:
    rows = result_rows(facts)
    if not rows:
        return ""
    p50 = next((number(part.latency, "p50_ms") for _, part in facts.parts if part.latency), None)
    text = f"The {rows[-1].label.replace(', ONNX', '')} solved {facts.task} in {with_interval(rows[-1].success)}"
    return text + (f" and decides in {p50:.3g} ms (p50)." if p50 is not None else ".")


def _collect(facts: RunFacts) -> str:
    success, stored = counted(facts.summary), facts.summary.get("stored")
    kept = f"{stored} episodes are stored in {facts.summary.get('dataset')}" if stored is not None else ""
    if success is None:
        return f"Nothing was played: {kept}." if kept else ""
    return f"The expert had success in {with_interval(success)}{'; ' + kept if kept else ''}."


def _evaluate(facts: RunFacts) -> str:
    success = counted(facts.summary)
    if success is None:
        return ""
    protocol = facts.summary.get("protocol")
    changes = [name for name in ("push", "shift") if isinstance(protocol, Mapping) and protocol.get(name)]
    changed = f"under a {' and a '.join(changes)} " if changes else ""
    text = f"{policy_name(facts)} had success {changed}in {with_interval(success, 'held-out episodes')}"
    length = number(facts.summary, "longest_run", "length")
    hourly = number(facts.summary, "successes_an_hour", "robot_time")
    reset_s = number(facts.summary, "successes_an_hour", "reset_s")
    if length is not None and hourly is not None and reset_s is not None:
        text += f", at most {length:.0f} in a row by the order of the seeds, {hourly:.0f} an hour of robot time"
        text += f" with {reset_s:g} s a reset"
    return f"{text}."


def _imitate(facts: RunFacts) -> str:
    steps = facts.metrics[-1]["step"] if facts.metrics else None
    text = f"A policy was fitted to demonstrations in {steps} gradient steps" if steps is not None else ""
    rmse = number(facts.summary, "metrics", "imitate/val_replay_rmse")
    if text and rmse is not None:
        text += f"; on validation episodes its actions differ by {rmse:.3g} rms from the recorded ones"
    rows = result_rows(facts)
    if text and rows:
        text += f"; in its last roll-out it had success in {with_interval(rows[-1].success, 'development episodes')}"
    return text + "." if text else ""


def _distil(facts: RunFacts) -> str:
    rmse = number(facts.summary, "metrics", "distill/teacher_rmse")
    steps = facts.config.get("num_steps")
    name = "one-step student" if steps == 1 else f"{steps}-step student"
    return "" if rmse is None else f"The {name} differs from its teacher by {rmse:.3g} rms, in action units."


def _export(facts: RunFacts) -> str:
    worst, allowed = number(facts.parity, "max_error"), number(facts.parity, "tolerance")
    p50, p99 = number(facts.latency, "p50_ms"), number(facts.latency, "p99_ms")
    if worst is None:
        return ""
    text = f"The ONNX policy differs from torch by at most {worst:.2g} action units"
    text += f" ({allowed:.2g} are allowed)" if allowed is not None else ""
    return text + (
        f" and decides in {p50:.3g} ms (p50; p99 {p99:.3g} ms)." if p50 is not None and p99 is not None else "."
    )


def _offline(facts: RunFacts) -> str:
    gate = gate_sentence(facts)
    return f"{gate}." if gate else ""


def _any_stage(facts: RunFacts) -> str:
    success = counted(facts.summary)
    if success is not None:
        return f"The run finished with success in {with_interval(success)}."
    if facts.state == "unknown":
        return "What became of this run is not known."
    return f"The run finished{f' after {facts.seconds:.0f} s' if facts.seconds is not None else ''}; it counts no successes."


def result_rows(facts: RunFacts) -> list[ResultRow]:
    """Lines of the result table: one a policy that was evaluated, in the order of the run; empty where nothing was."""
    if facts.parts:
        return [row for name, part in facts.parts for row in _evaluated(part, _label(name))]
    label = {"collect": "expert", "evaluate": policy_name(facts)}.get(facts.kind, facts.stage)
    return _evaluated(facts, label) or _development_row(facts)


def policy_name(facts: RunFacts) -> str:
    """Short name of what an evaluation played."""
    protocol = facts.summary.get("protocol")
    policy = protocol.get("policy") if isinstance(protocol, Mapping) else None
    described = policy if isinstance(policy, Mapping) else {}
    path = str(described.get("path") or facts.config.get("policy") or "")
    kind = described.get("class")
    if not path:
        return "expert"
    if path.endswith(".onnx"):
        return f"{Path(path).name} of {Path(path).parent.parent.name}"
    return f"{kind + ' of ' if isinstance(kind, str) else ''}{Path(path).name}"


def _evaluated(facts: RunFacts, label: str) -> list[ResultRow]:
    summary, success = facts.summary, counted(facts.summary)
    if success is not None:
        return [
            ResultRow(
                label=label,
                success=success,
                at_end=counted(summary, "success_at_end"),
                steps_p50=number(summary, "steps_to_success", "p50"),
                action_change_rms=number(summary, "action_change_rms"),
                seconds=facts.seconds,
            )
        ]
    if facts.episodes:
        won = sum(episode.get("success_once") is True for episode in facts.episodes)
        return [ResultRow(label=label, success=proportion(won, len(facts.episodes)), partial=True)]
    return []


def _development_row(facts: RunFacts) -> list[ResultRow]:
    """The last periodic roll-out of a training: its rate is in the metrics, its number in the configuration."""
    n = facts.config.get("rollout_episodes")
    rates = [v for line in facts.metrics for k, v in line.items() if k.endswith("/success_once")]
    if not rates or not isinstance(n, int) or n <= 0 or not isinstance(rates[-1], int | float):
        return []
    k = round(rates[-1] * n)
    if not 0 <= k <= n or abs(k - rates[-1] * n) > 1e-6:
        return []
    return [ResultRow(label=f"{facts.stage}, last development roll-out", success=proportion(k, n))]


def _label(name: str) -> str:
    known = {
        "collect": "expert (collect)",
        "evaluate_imitate": "imitated policy",
        "evaluate_distill_onestep": "distilled policy, torch",
        "evaluate_export": "exported policy, ONNX",
    }
    return known.get(name, name)
