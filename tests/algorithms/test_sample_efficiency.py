"""Env steps to a target success: first crossing, censoring, and refusals."""

from __future__ import annotations

import pytest

from robot_rl.algorithms.sample_efficiency import StepsToTarget, steps_to_target
from robot_rl.errors import DataError

STEPS, RATES = [0, 100, 200, 300], [0.0, 0.5, 0.9, 0.7]


@pytest.mark.parametrize(
    ("target", "budget", "found"),
    [
        (0.5, 300, StepsToTarget(0.5, 100, False)),  # met exactly
        (0.8, 300, StepsToTarget(0.8, 200, False)),  # the later fall does not matter
        (0.95, 300, StepsToTarget(0.95, 300, True)),  # never
        (0.95, 250, StepsToTarget(0.95, 250, True)),  # censored at the budget, not at the last evaluation
        (0.8, 150, StepsToTarget(0.8, 150, True)),  # met behind the budget only
        (0.0, 300, StepsToTarget(0.0, 0, False)),  # before any step
    ],
)
def test_first_crossing_or_censored(target: float, budget: int, found: StepsToTarget) -> None:
    assert steps_to_target(STEPS, RATES, target=target, budget=budget) == found


def test_no_evaluation_is_censored() -> None:
    found = steps_to_target([], [], target=0.8, budget=7)
    assert found == StepsToTarget(0.8, 7, True)
    assert str(found) == "> 7 env steps to 80%"


@pytest.mark.parametrize(
    ("steps", "rates"), [([0, 100], [0.1]), ([0, 100, 100], [0.1, 0.2, 0.3]), ([0], [1.5]), ([0], [float("nan")])]
)
def test_refuses_what_is_no_curve(steps: list[int], rates: list[float]) -> None:
    with pytest.raises(DataError, match="learning curve"):
        steps_to_target(steps, rates, target=0.8, budget=300)
