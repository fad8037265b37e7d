"""The report of an offline run: every decision with its numbers, what the critics are worth, and broken files."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from robot_rl.algorithms.ope import GateConfig, SupportGuards, decide, decision_record
from robot_rl.algorithms.statistics import proportion
from robot_rl.runs.report import read_run
from robot_rl.runs.report_calibration import Point, judged_points
from robot_rl.runs.report_offline import read_offline
from robot_rl.runs.report_page import report_html
from robot_rl.runs.report_text import sentence
from robot_rl.types import OpeEstimate

HOSTILE = """</style></title><script>alert(1)</script><img src=x onerror="a()">'"&"""
FITS = {
    "critic": {
        "value_at_starts": 0.031, "return_at_starts": 0.077, "target_max": 1.125, "target_clamped_share": 0.029,
        "rank_correlation": 0.338, "rank_correlation_starts": None, "best_step": 1200, "steps": 2700,
    },
    "judge_critic": {"value_at_starts": 0.053, "rank_correlation": 0.293},
    "judge_model": {"r2": 0.721, "termination_auc": 0.891},
    "noise_floor": {"sigma_min": 0.05, "mean_path_gain": {"difference": 0.25, "low": 0.125, "high": 0.375}},
}  # fmt: skip


class Page(HTMLParser):
    """Tags and the text of a page, white space as single blanks."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.parts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.parts))


def estimate(difference: float, half: float) -> OpeEstimate:
    return OpeEstimate(0.5 + difference, 0.5, difference, difference - half, difference + half, 48)


def decision(proposal: int, method: str, gain: float, *, kl: float | None = None, steps: Any = None) -> dict[str, Any]:
    """A line as the stage writes it, by the gate itself."""
    gate = GateConfig(deciding=("fqe",), max_kl=None if kl is None else 0.5)
    estimates = {"am_q": estimate(0.0, 0.0625), "model_return": estimate(0.0, 0.0625), "fqe": estimate(gain, 0.0625)}
    limits = SupportGuards(kl=kl, disagreement_ratio=1.25, q_gap=-0.25)
    numbers = {} if steps is None else {"kl_steps_nats": steps}
    record = {"round": 0, "method": method, "proposal": proposal, "numbers": numbers}
    return record | decision_record(decide(estimates, limits, gate), estimates, limits, gate)


def write_run(path: Path, *, decisions: list[Any], state: str = "finished") -> Path:
    (path / "ope").mkdir(parents=True)
    (path / "round_00").mkdir()
    status = {"state": state, "stage": "offline", "task": "none", "seed": 0, "pid": 2**22 + 1}
    (path / "status.json").write_text(json.dumps(status))
    (path / "round_00/fits.json").write_text(json.dumps(FITS))
    lines = [line if isinstance(line, str) else json.dumps(line) for line in decisions]
    (path / "ope/decisions.jsonl").write_text("\n".join(lines))
    return path


def decisions() -> list[dict[str, Any]]:
    """Kept, rejected for its gain, kept, rejected for its KL."""
    return [
        decision(0, "success_only", 0.125),
        decision(1, "awr", 0.03125),
        decision(2, "ppo", 0.25, kl=0.25, steps=[0.01, 0.02, 0.01, 0.2, 0.01]),
        decision(3, "ppo", 0.25, kl=0.75, steps=[0.15] * 5),
    ]


def test_the_sentence_and_every_number_of_a_decision(tmp_path: Path) -> None:
    facts = read_run(write_run(tmp_path / "run", decisions=decisions()))
    assert sentence(facts) == "The gate kept 2 of 4 proposals: success_only (round 0), ppo (round 0)."
    html = report_html(facts)
    page = Page(html)
    text = page.text
    assert "0 · round 0 · success_only · kept" in text
    assert "1 · round 0 · awr · rejected" in text
    assert "FQE decides 0.625 0.5 +0.125 [+0.0625, +0.188] 48" in text
    assert "AM-Q may object 0.5 0.5 +0 [-0.0625, +0.0625] 48" in text
    assert "disagreement, candidate / incumbent 1.25 1.5 within" in text
    assert "Q(policy) - Q(data), sd -0.25 2 within" in text
    assert "KL to the incumbent, nats not measured none" in text
    assert "KL to the incumbent, nats 0.75 0.5 beyond" in text
    # 0.2 is more than five times the median 0.01; five equal ones have none that dominates.
    assert "0.25 in all 0.01 0.02 0.01 0.2 dominates 0.01" in text
    assert text.count("dominates") == 1
    for record in decisions():
        assert re.sub(r"\s+", " ", record["reason"]) in text
    assert page.tags.count("details") >= 4
    assert "<b>+0.125 [+0.0625, +0.188]</b>" in html  # an interval without zero


def test_the_fits(tmp_path: Path) -> None:
    text = Page(report_html(read_run(write_run(tmp_path / "run", decisions=decisions())))).text
    for part in (
        "V at starts 0.031 0.053",
        "Monte-Carlo return at starts 0.077 -",
        "largest target before the clamp 1.12 -",
        "share of targets clamped 0.029 -",
        "rank correlation of Q with return 0.338 0.293",
        "the same of V, starts only - -",
        "steps kept / done 1200 / 2700",
        "one decision ahead 0.721",
        "AUC of the termination 0.891",
        "Noise floor 0.05: without the noise, the judges' model sees a gain of +0.25 [+0.125, +0.375] in return.",
    ):
        assert part in text, part


def test_a_killed_run_shows_what_it_decided_until_then(tmp_path: Path) -> None:
    torn = [*decisions()[:2], '{"round": 0, "meth']
    facts = read_run(write_run(tmp_path / "run", decisions=torn, state="running"))
    assert facts.state == "killed"
    expected = "The run was killed; the gate kept 1 of 2 proposals: success_only (round 0) so far."
    assert sentence(facts) == expected
    text = Page(report_html(facts)).text
    assert "1 of 3 lines of ope/decisions.jsonl are damaged and left out." in text
    assert "1 · round 0 · awr · rejected" in text


def test_nothing_kept_and_nothing_decided(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", decisions=[decision(0, "awr", 0.0)])
    assert sentence(read_run(run)) == "The gate kept 0 of 1 proposal; the policy is the one that it started from."
    (run / "ope/decisions.jsonl").unlink()
    html = report_html(read_run(run))
    assert "ope/decisions.jsonl is missing" in html
    assert "Decisions of the gate" not in html
    assert "Round 0" in html


def test_another_stage_has_none_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    status = json.loads((run / "status.json").read_text()) | {"stage": "imitate"}
    (run / "status.json").write_text(json.dumps(status))
    assert read_offline(read_run(run)).decisions == ()
    assert "Decisions of the gate" not in report_html(read_run(run))


@pytest.mark.parametrize("value", [None, [], {}, HOSTILE, 3, [1, "x", None], {"fqe": 3}, {"fqe": {"difference": "x"}}])
@pytest.mark.parametrize(
    "key", ["round", "method", "proposal", "numbers", "estimates", "guards", "config", "reason", "accepted"]
)
def test_a_damaged_field_is_no_crash(tmp_path: Path, key: str, value: Any) -> None:
    first = decisions()[2] | {key: value}
    second = decisions()[2] | {"numbers": {"kl_steps_nats": value}}
    run = write_run(tmp_path / "run", decisions=[first, second, "null", "[1]"])
    page = Page(report_html(read_run(run)))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "2 of 4 lines of ope/decisions.jsonl are damaged" in page.text


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", json.dumps({"critic": 3, "judge_model": [], "noise_floor": {"sigma_min": 1}})]
)
def test_damaged_fits_are_no_crash(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    (run / "round_00/fits.json").write_text(content)
    html = report_html(read_run(run))
    assert ("round_00/fits.json" in Page(html).text) == (not content.startswith('{"critic"'))


def policies() -> list[dict[str, Any]]:
    """Scores 0.1, 0.2, 0.3 with 0, 5 and 10 of 10 successes."""
    return [
        {"policy": f"runs/p{i}", "success": {"k": 5 * i, "n": 10}, "fqe": 0.1 + 0.1 * i, "am_q": -1.0 * i}
        for i in range(3)
    ]


def write_calibration(run: Path, **changes: Any) -> None:
    rows = [
        {"judge": "fqe", "checkpoints": 3, "spearman": 1.0, "low": 0.5, "high": 1.0},
        {"judge": "am_q", "checkpoints": 3, "spearman": -1.0, "low": -1.0, "high": -0.25},
        {"judge": "model_return", "checkpoints": 3, "spearman": None, "low": None, "high": None},
    ]
    document = {"title": "x", "rows": rows, "policies": policies()} | changes
    (run / "ope/calibration.json").write_text(json.dumps(document))


def test_calibration_table_and_one_panel_a_judge(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    assert "Judges against true success" not in report_html(read_run(run))
    write_calibration(run)
    html = report_html(read_run(run))
    text = Page(html).text
    assert "FQE +1.00 [+0.50, +1.00] 3" in text
    assert "AM-Q -1.00 [-1.00, -0.25] 3" in text
    assert "model return undefined (no variation) 3" in text
    # No policy has a score of the third judge: it has a row, but no panel.
    figure = html[html.index("Judges against true success") :].partition("</figure>")[0]
    assert figure.count("true success</text>") == 2
    assert "FQE: +1.00 [+0.50, +1.00]</text>" in figure
    assert "model return:" not in figure


def test_points_of_a_judge() -> None:
    empty, half, all_won = (proportion(k, 10) for k in (0, 5, 10))
    assert judged_points(policies(), "am_q") == [
        Point(0.0, 0.0, empty.low, empty.high),
        Point(-1.0, 0.5, half.low, half.high),
        Point(-2.0, 1.0, all_won.low, all_won.high),
    ]
    assert half.low == pytest.approx(0.2366, abs=1e-4)  # Wilson, 5 of 10
    broken = [
        None,
        3,
        {},
        {"fqe": 1.0},
        {"fqe": 1.0, "success": {"k": 11, "n": 10}},
        {"fqe": 1.0, "success": {"k": 0, "n": 0}},
    ]
    broken += [{"fqe": value, "success": {"k": 1, "n": 2}} for value in (None, "x", float("nan"), float("inf"), True)]
    assert judged_points([*broken, *policies()], "fqe") == judged_points(policies(), "fqe")
    assert judged_points(HOSTILE, "fqe") == []


@pytest.mark.parametrize("value", [None, [], {}, HOSTILE, 3, [1, "x", None], [{"judge": HOSTILE}], [{"success": 3}]])
@pytest.mark.parametrize("key", ["rows", "policies"])
def test_a_damaged_calibration_is_no_crash(tmp_path: Path, key: str, value: Any) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    write_calibration(run, **{key: value})
    page = Page(report_html(read_run(run)))
    assert "script" not in page.tags
    assert "img" not in page.tags


@pytest.mark.parametrize(("content", "part"), [("[1]", "holds no JSON object"), ("{", "can't be read")])
def test_an_unreadable_calibration_is_named(tmp_path: Path, content: str, part: str) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    (run / "ope/calibration.json").write_text(content)
    assert f"ope/calibration.json {part}" in Page(report_html(read_run(run))).text


def test_a_critic_that_never_beat_the_untrained_one_is_a_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", decisions=decisions())
    assert "worthless" not in report_html(read_run(run))
    fits = FITS | {"judge_critic": {"best_step": 0, "steps": 900}}
    (run / "round_00/fits.json").write_text(json.dumps(fits))
    found = read_offline(read_run(run))
    (note,) = found.notes
    assert note == (
        "Round 0: the judges' critic is worthless: on held-out episodes none of 900 steps beat the untrained one, so the "
        "gate has nothing to go by. More episodes help."
    )
    text = Page(report_html(read_run(run))).text
    assert note in text
    assert "steps kept / done 1200 / 2700 0 / 900 worthless" in text
    (run / "round_00/fits.json").write_text(json.dumps({"critic": {"best_step": 0}, "judge_critic": {"best_step": 1}}))
    text = Page(report_html(read_run(run))).text
    assert "Round 0: the optimiser's critic is worthless" in text
    assert "the judges' critic is worthless" not in text
