"""A judge whose critic learned nothing keeps nothing, whatever the numbers say."""

from __future__ import annotations

import pytest

from robot_rl.algorithms.ope import GateConfig, SupportGuards, decide, decision_record
from robot_rl.fitting.judges import decide_with
from robot_rl.fitting.round_data import RoundFits, untrained
from robot_rl.types import OpeEstimate

GATE = GateConfig(deciding=("fqe",), max_kl=0.5)
LIMITS = SupportGuards(kl=0.25, disagreement_ratio=1.0, q_gap=0.0)
WORTHLESS = "the judges' critic is worthless: on held-out episodes none of 900 steps beat the untrained one"


def fits(*, mine: int, judges: int) -> RoundFits:
    report = {"critic": {"best_step": mine, "steps": 600}, "judge_critic": {"best_step": judges, "steps": 900}}
    return RoundFits(critic=None, judge_critic=None, judge_model=None, report=report)


def estimate(difference: float) -> dict[str, OpeEstimate]:
    return {"fqe": OpeEstimate(0.5 + difference, 0.5, difference, difference - 0.0625, difference + 0.0625, 48)}


def test_which_critic_is_worthless() -> None:
    assert fits(mine=0, judges=300).worthless is None
    assert fits(mine=300, judges=0).worthless == WORTHLESS
    report = fits(mine=0, judges=0).report
    assert untrained(report, "critic") == WORTHLESS.replace("judges'", "optimiser's").replace("900", "600")
    assert untrained(fits(mine=1, judges=1).report, "critic") is None


@pytest.mark.parametrize("difference", [0.25, 0.0, -0.25])
def test_a_judge_that_learned_changes_nothing_but_the_list_of_checks(difference: float) -> None:
    plain = decide(estimate(difference), LIMITS, GATE)
    decision, record = decide_with(estimate(difference), LIMITS, GATE, worthless=None)
    assert decision == plain
    expected = decision_record(plain, estimate(difference), LIMITS, GATE)
    assert record.pop("checks") == [
        *expected.pop("checks"),
        {"name": "judge_critic/fit", "passed": True, "text": "the judges' critic beat the untrained one"},
    ]
    assert record == expected


def test_a_worthless_one_rejects_what_would_be_kept() -> None:
    assert decide(estimate(0.25), LIMITS, GATE).accepted
    decision, record = decide_with(estimate(0.25), LIMITS, GATE, worthless=WORTHLESS)
    assert not decision.accepted
    assert decision.reason.startswith(f"rejected: {WORTHLESS}. passed: fqe 0.75 against 0.5")
    assert record["accepted"] is False
    assert record["reason"] == decision.reason
    assert [check["name"] for check in record["checks"] if not check["passed"]] == ["judge_critic/fit"]


def test_a_worthless_one_comes_before_the_other_reasons() -> None:
    decision, record = decide_with(estimate(-0.25), LIMITS, GATE, worthless=WORTHLESS)
    assert decision.reason.startswith(f"rejected: {WORTHLESS}; fqe 0.25 against 0.5")
    assert decision.reason.count("rejected") == 1
    failed = {check["name"] for check in record["checks"] if not check["passed"]}
    assert failed == {"gain/fqe", "objection/fqe", "judge_critic/fit"}
