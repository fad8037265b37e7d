"""Intervals against published values (formats.md 1.9) and closed forms."""

from __future__ import annotations

import math

import pytest

from robot_rl.algorithms.statistics import proportion
from robot_rl.errors import DataError


@pytest.mark.parametrize(
    ("k", "n", "wilson", "exact"),
    [(9, 10, (0.60, 0.98), (0.56, 1.00)), (45, 50, (0.79, 0.96), None), (95, 100, (0.89, 0.98), None), (0, 10, (0.0, 0.28), (0.0, 0.31))],
)  # fmt: skip
def test_known_intervals(k: int, n: int, wilson: tuple[float, float], exact: tuple[float, float] | None) -> None:
    result = proportion(k, n)
    # The published values are whole per cents.
    assert (result.low, result.high) == pytest.approx(wilson, abs=0.0051)
    if exact is not None:
        assert (result.exact_low, result.exact_high) == pytest.approx(exact, abs=0.0051)


def test_wilson_closed_form() -> None:
    k, n, z = 187, 200, 1.959963984540054
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    result = proportion(k, n)
    assert result.low == pytest.approx(centre - half, abs=1e-12)
    assert result.high == pytest.approx(centre + half, abs=1e-12)


def test_all_successes_lower_bound() -> None:
    # Clopper-Pearson at k = n: the two-sided 95 % bound is 0.025^(1/n).
    assert proportion(50, 50).exact_low == pytest.approx(0.025 ** (1 / 50), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(DataError, match="0 <= k <= n"):
        proportion(k, n)
