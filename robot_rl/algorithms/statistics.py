"""Intervals for success rates. Thin names over scipy, so that every report uses the same methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from robot_rl.errors import DataError


@dataclass(frozen=True)
class Proportion:
    """k successes in n trials with 95 % intervals.

    Attributes:
        k, n: successes and trials.
        rate: k / n.
        low, high: Wilson score interval (for reports).
        exact_low, exact_high: Clopper-Pearson interval (conservative).
    """

    k: int
    n: int
    rate: float
    low: float
    high: float
    exact_low: float
    exact_high: float

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.k}/{self.n} = {self.rate:.1%} (Wilson 95 %: {self.low:.1%} to {self.high:.1%})"


def proportion(k: int, n: int, *, confidence: float = 0.95) -> Proportion:
    """Success rate with Wilson and Clopper-Pearson intervals (E. B. Wilson 1927; Clopper and Pearson 1934).

    Raises:
        DataError: when n is not positive or k is outside 0..n.
    """
    if n <= 0 or not 0 <= k <= n:
        raise DataError(
            "success rate",
            expected="0 <= k <= n and n > 0",
            got=f"k={k}, n={n}",
            hint="A rate needs at least one finished episode.",
        )
    from scipy.stats import binomtest

    test = binomtest(k, n)
    wilson = test.proportion_ci(confidence_level=confidence, method="wilson")
    exact = test.proportion_ci(confidence_level=confidence, method="exact")
    return Proportion(
        k=k,
        n=n,
        rate=k / n,
        low=float(wilson.low),
        high=float(wilson.high),
        exact_low=float(exact.low),
        exact_high=float(exact.high),
    )
