"""Is B better than A? Tests, intervals and a bootstrap for two lists of outcomes; the difference is always B - A.

Paired outcomes come from the same episode seeds, unpaired ones from different seeds. scipy gives the two exact tests;
the score interval of a paired difference is in no Python library that we use, so it is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_rl.algorithms.statistics import proportion
from robot_rl.arrays import Array, Float64
from robot_rl.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A difference B - A with its confidence interval.

    Attributes:
        difference: the estimate, in the unit of what was compared (success rates: 0..1).
        low, high: limits.
        confidence: of the two-sided interval, e.g. 0.95.
        method: name of the method and its source.
        n: pairs, or episodes of A plus episodes of B when unpaired.
    """

    difference: float
    low: float
    high: float
    confidence: float
    method: str
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p value: a binomial test on the discordant pairs (Q. McNemar 1947).

    Args:
        only_a: pairs in which only A succeeded.
        only_b: pairs in which only B succeeded.

    Returns:
        1.0 when no pair is discordant.

    Raises:
        DataError: negative counts.
    """
    _check_counts(only_a, only_b, n=only_a + only_b)
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def barnard_p(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Two-sided unconditional exact p value for two independent groups (G. A. Barnard 1945; scipy.barnard_exact).

    Args:
        a, b: successes and episodes of each.

    Raises:
        DataError: impossible counts.
    """
    (k_a, n_a), (k_b, n_b) = a, b
    _check_counts(k_a, 0, n=n_a)
    _check_counts(k_b, 0, n=n_b)
    from scipy.stats import barnard_exact

    return float(barnard_exact([[k_a, k_b], [n_a - k_a, n_b - k_b]]).pvalue)


def paired_interval(only_a: int, only_b: int, *, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the difference of two success rates on the same seeds (T. Tango 1998, Stat. Med. 17:891).

    It is the set of differences that the score test does not reject, with the nuisance probability at its maximum
    likelihood under each difference. It keeps its coverage with few or no discordant pairs.

    Args:
        only_a, only_b: discordant pairs.
        n: all pairs.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        DataError: impossible counts.
    """
    _check_counts(only_a, only_b, n=n)
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    estimate = (only_b - only_a) / n

    def score(difference: float) -> float:
        distance = only_b - only_a - n * difference
        middle = only_a + only_b - (2 * n - only_b + only_a) * difference
        root = math.sqrt(max(middle**2 + 8 * n * only_a * difference * (1 - difference), 0.0))
        q = (middle + root) / (4 * n)
        variance = n * (2 * q + difference * (1 - difference))
        if abs(distance) < 1e-9 * n:
            return 0.0
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(1e6, distance)

    edge = 1 - 1e-12  # at +-1 the variance is 0
    low = -1.0 if estimate <= -1 else float(brentq(lambda d: score(d) - z, -edge, estimate, xtol=1e-12))
    high = 1.0 if estimate >= 1 else float(brentq(lambda d: score(d) + z, estimate, edge, xtol=1e-12))
    return Interval(estimate, low, high, confidence, "Tango score interval for paired proportions (1998)", n)


def unpaired_interval(a: tuple[int, int], b: tuple[int, int], *, confidence: float = 0.95) -> Interval:
    """Hybrid score interval from two Wilson intervals (R. G. Newcombe 1998, Stat. Med. 17:873, method 10).

    Args:
        a, b: successes and episodes of each.
        confidence: of the two-sided interval, in (0, 1).

    Raises:
        DataError: impossible counts.
    """
    of_a, of_b = proportion(*a, confidence=confidence), proportion(*b, confidence=confidence)
    estimate = of_b.rate - of_a.rate
    low = estimate - math.hypot(of_b.rate - of_b.low, of_a.high - of_a.rate)
    high = estimate + math.hypot(of_b.high - of_b.rate, of_a.rate - of_a.low)
    return Interval(
        estimate,
        low,
        high,
        confidence,
        "Newcombe hybrid score interval for independent proportions (1998)",
        a[1] + b[1],
    )


def bootstrap_interval(
    a: Float64[Array, " Na"],
    b: Float64[Array, " Nb"],
    *,
    paired: bool,
    generator: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Percentile bootstrap of mean(b) - mean(a) (B. Efron 1979); whole pairs are drawn when `paired`.

    Args:
        a, b: one value an episode; of equal length and order when paired.
        paired: whether a[i] and b[i] belong to the same seed.
        generator: source of the resamples; the same generator state gives the same interval.
        confidence: of the two-sided interval, in (0, 1).
        resamples: how many.

    Raises:
        DataError: no values, or pairs of unequal number.
    """
    if not len(a) or not len(b) or (paired and len(a) != len(b)):
        raise DataError(
            "bootstrap", expected="at least one value each, and equally many when paired",
            got=f"{len(a)} and {len(b)}", hint="Compare episodes that both runs have played.",
        )  # fmt: skip
    if paired:
        means = _resampled_means(b - a, generator, resamples=resamples)
    else:
        means = _resampled_means(b, generator, resamples=resamples) - _resampled_means(
            a, generator, resamples=resamples
        )
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    method = f"{'paired' if paired else 'two-sample'} percentile bootstrap, {resamples} resamples"
    number = len(a) if paired else len(a) + len(b)
    return Interval(float(np.mean(b) - np.mean(a)), float(low), float(high), confidence, method, number)


def _resampled_means(values: np.ndarray, generator: np.random.Generator, *, resamples: int) -> np.ndarray:
    # In blocks: resamples x episodes at once would be gigabytes for large evaluations.
    block = max(1, 1_000_000 // len(values))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate(
        [values[generator.integers(len(values), size=(size, len(values)))].mean(axis=1) for size in sizes]
    )


def count_pairs(success_a: Sequence[bool], success_b: Sequence[bool]) -> dict[str, int]:
    """The table of paired outcomes: counts of `both`, `only_a`, `only_b` and `neither`.

    Args:
        success_a, success_b: outcomes of the same seeds in the same order.
    """
    pairs = list(zip(success_a, success_b, strict=True))
    return {
        "both": sum(a and b for a, b in pairs),
        "only_a": sum(a and not b for a, b in pairs),
        "only_b": sum(b and not a for a, b in pairs),
        "neither": sum(not a and not b for a, b in pairs),
    }


def _check_counts(first: int, second: int, *, n: int) -> None:
    if first < 0 or second < 0 or first + second > n:
        raise DataError(
            "counts of two runs", expected="counts of 0 or more that are not more than n",
            got=f"{first} and {second} of n={n}", hint="Count each episode or pair once.",
        )  # fmt: skip
