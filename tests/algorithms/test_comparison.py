"""Tests and intervals against published values, closed forms, a second implementation, and simulated comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import beta, binom, bootstrap, fisher_exact, multinomial, norm

from robot_rl.algorithms.comparison import (
    barnard_p,
    bootstrap_interval,
    count_pairs,
    mcnemar_p,
    paired_interval,
    unpaired_interval,
)
from robot_rl.algorithms.sequential import log_bet, log_e_values, sequential_bound, sequential_test
from robot_rl.errors import DataError

SIMULATIONS = 2000
ALPHA = 0.05


def test_barnard_known_values() -> None:
    # formats.md 1.9: 10/20 against 19/20, 25/50 against 29/50, 15/20 against 10/20.
    assert barnard_p((10, 20), (19, 20)) == pytest.approx(0.0014, abs=5e-5)
    assert barnard_p((25, 50), (29, 50)) == pytest.approx(0.53, abs=0.005)
    assert barnard_p((15, 20), (10, 20)) == pytest.approx(0.12, abs=0.005)
    # It is the more powerful of the two exact tests here.
    assert barnard_p((10, 20), (19, 20)) < fisher_exact([[10, 19], [10, 1]])[1]
    assert barnard_p((20, 20), (20, 20)) == 1.0


@pytest.mark.parametrize(
    ("only_a", "only_b", "expected"),
    [
        (0, 9, 2 * 0.5**9),  # the clearest pairing of 10/20 and 19/20
        (1, 7, 2 * (1 + 8) * 0.5**8),  # airway reactivity, Bentur et al. 2009 as in Fagerland et al. 2013: 0.0703
        (5, 5, 1.0),
        (0, 0, 1.0),
        (3, 0, 0.25),
    ],
)
def test_mcnemar_closed_form(only_a: int, only_b: int, expected: float) -> None:
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_p(only_b, only_a) == pytest.approx(expected, rel=1e-12)


def test_paired_interval_published() -> None:
    # Fagerland, Lydersen, Laake 2013, table of Bentur's data (1, 1, 7, 12): Tango -0.517 to -0.026.
    result = paired_interval(7, 1, n=21)
    assert result.difference == pytest.approx(-6 / 21)
    assert (result.low, result.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(7, 1, 21), (3, 0, 200), (2, 14, 60), (20, 25, 100)])
def test_paired_interval_by_maximising_the_likelihood(only_a: int, only_b: int, n: int) -> None:
    """Second implementation: the nuisance probability from a numerical maximum, not from the quadratic equation."""

    def score(d: float) -> float:
        def minus_log_likelihood(q: float) -> float:
            p = q + d  # q: only A, p: only B
            counts = ((only_a, q), (only_b, p), (n - only_a - only_b, 1 - p - q))
            return -sum(c * math.log(max(x, 1e-300)) for c, x in counts if c)

        bounds = (max(0.0, -d), (1 - d) / 2)
        q = minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        return (only_b - only_a - n * d) / math.sqrt(n * (2 * q + d - d * d))

    z = norm.ppf(0.975)
    estimate = (only_b - only_a) / n
    found = paired_interval(only_a, only_b, n=n)
    assert found.low == pytest.approx(brentq(lambda d: score(d) - z, -0.99, estimate - 1e-6), abs=1e-5)
    assert found.high == pytest.approx(brentq(lambda d: score(d) + z, estimate + 1e-6, 0.99), abs=1e-5)


def test_paired_interval_closed_form_at_the_edges() -> None:
    # No discordant pair: the score equation n d^2 = z^2 (d - d^2) gives d = z^2 / (n + z^2).
    z2 = norm.ppf(0.975) ** 2
    none = paired_interval(0, 0, n=50)
    assert (none.low, none.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-8)
    all_b = paired_interval(0, 10, n=10)
    assert all_b.high == 1.0
    mirrored = paired_interval(10, 0, n=10)
    assert (mirrored.low, mirrored.high) == pytest.approx((-all_b.high, -all_b.low), abs=1e-9)
    narrow, wide = (paired_interval(4, 9, n=50, confidence=c) for c in (0.9, 0.95))
    assert wide.low < narrow.low < 0.1 < narrow.high < wide.high


@pytest.mark.parametrize("cells", [(0.1, 0.1), (0.05, 0.15), (0.02, 0.02), (0.2, 0.4)])
def test_paired_interval_covers(cells: tuple[float, float]) -> None:
    """Exact coverage for n = 30: the probability of all tables whose interval holds the true difference."""
    n, (q, p) = 30, cells
    covered = 0.0
    for only_a in range(n + 1):
        for only_b in range(n + 1 - only_a):
            weight = multinomial.pmf([only_a, only_b, n - only_a - only_b], n, [q, p, 1 - p - q])
            if weight > 1e-6:
                found = paired_interval(only_a, only_b, n=n)
                covered += weight * (found.low <= p - q <= found.high)
    # With two discordant pairs expected in 50 it is conservative, as every interval on counts.
    assert 0.935 < covered < 0.999


def test_unpaired_interval_published() -> None:
    # Newcombe 1998, table II, method 10: 56/70 - 48/80.
    result = unpaired_interval((48, 80), (56, 70))
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_bootstrap_against_scipy() -> None:
    rng = np.random.default_rng(5)
    a = rng.exponential(size=40)
    b = a + rng.normal(0.2, 0.1, size=40)
    found = bootstrap_interval(a, b, paired=True, generator=np.random.default_rng(0))
    peer = bootstrap((b - a,), np.mean, method="percentile", n_resamples=10_000).confidence_interval
    assert found.difference == pytest.approx(float(np.mean(b - a)))
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.004)
    again = bootstrap_interval(a, b, paired=True, generator=np.random.default_rng(0))
    assert again == found
    other = bootstrap_interval(a, b, paired=True, generator=np.random.default_rng(1))
    assert other.low != found.low
    # What both share cancels in pairs only.
    loose = bootstrap_interval(a, b, paired=False, generator=np.random.default_rng(0))
    peer = bootstrap((b, a), lambda x, y, axis: x.mean(axis) - y.mean(axis), method="percentile", n_resamples=10_000)
    assert (loose.low, loose.high) == pytest.approx(tuple(peer.confidence_interval), abs=0.03)
    assert loose.high - loose.low > 5 * (found.high - found.low)


def test_bootstrap_in_blocks_is_whole() -> None:
    values = np.full(2_000_000 // 100, 3.0)
    found = bootstrap_interval(values, values + 1, paired=True, generator=np.random.default_rng(0), resamples=77)
    assert (found.low, found.high, found.n) == (1.0, 1.0, 20_000)


def test_count_pairs() -> None:
    counts = count_pairs([True, True, False, False, True], [True, False, True, False, False])
    assert counts == {"both": 1, "only_a": 2, "only_b": 1, "neither": 1}


def test_impossible_counts() -> None:
    for call in (
        lambda: mcnemar_p(-1, 3),
        lambda: barnard_p((3, 2), (1, 2)),
        lambda: paired_interval(3, 3, n=5),
        lambda: unpaired_interval((0, 0), (1, 2)),
    ):
        with pytest.raises(DataError):
            call()
    empty = np.zeros(0)
    with pytest.raises(DataError, match="at least one value"):
        bootstrap_interval(empty, empty, paired=True, generator=np.random.default_rng(0))


def test_e_values_closed_form() -> None:
    """With a uniform mixture over (1/2, 1), n wins of n give 2 * integral of (2p)^n = 2^(n+1) (1 - 2^-(n+1)) / (n+1)."""
    n = np.arange(1, 11)
    found = np.exp(log_e_values(np.ones(10, dtype=bool), shape=1.0))
    expected = 2.0 ** (n + 1) * (1 - 0.5 ** (n + 1)) / (n + 1)
    assert found[:, 0] == pytest.approx(expected, rel=1e-12)
    # The other direction bets on p < 1/2: 2^(n+1) * 2^-(n+1) / (n+1).
    assert found[:, 1] == pytest.approx(1 / (n + 1), rel=1e-12)


def test_e_values_are_a_fair_game() -> None:
    """Each e-process has mean exactly 1 over all 2^12 outcomes of fair coins."""
    outcomes = (np.arange(2**12)[:, None] >> np.arange(12)) & 1 == 1
    ends = np.array([np.exp(log_e_values(row))[-1] for row in outcomes])
    assert ends.mean(axis=0) == pytest.approx([1.0, 1.0], rel=1e-10)


def simulate(rate_a: float, rate_b: float, *, pairs: int, count: int, seed: int) -> list[tuple[str | None, int | None]]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        result, _history = sequential_test(rng.random(pairs) < rate_a, rng.random(pairs) < rate_b, alpha=ALPHA)
        out.append((result.claim, result.claimed_at))
    return out


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_false_claims_of_the_sequential_test(rate: float) -> None:
    """2,000 comparisons of equal policies, looked at after each of 300 pairs and stopped at the first claim."""
    claims = [claim for claim, _ in simulate(rate, rate, pairs=300, count=SIMULATIONS, seed=1)]
    share = sum(claim is not None for claim in claims) / SIMULATIONS
    noise = 3 * math.sqrt(ALPHA * (1 - ALPHA) / SIMULATIONS)
    print(f"equal policies at {rate}: {share:.2%} false claims in {SIMULATIONS} comparisons")
    assert share <= ALPHA + noise
    assert share > 0.005, "a test that never claims shows nothing"
    assert {"A", "B"} <= set(claims)


def test_peeking_at_mcnemar_would_claim_too_much() -> None:
    """Control: the same 2,000 comparisons with the fixed-sample test at every pair break its 5 %."""
    rng = np.random.default_rng(1)
    a, b = np.mgrid[:120, :120]
    table = 2 * binom.cdf(np.minimum(a, b), a + b, 0.5) <= ALPHA
    assert table[3, 14] == (mcnemar_p(3, 14) <= ALPHA)
    wrong = 0
    for _ in range(SIMULATIONS):
        first, second = rng.random(150) < 0.5, rng.random(150) < 0.5
        only_a, only_b = np.cumsum(first & ~second), np.cumsum(second & ~first)
        wrong += bool(table[only_a, only_b].any())
    assert wrong / SIMULATIONS > 2 * ALPHA


@pytest.mark.parametrize(("rates", "pairs", "power"), [((0.5, 0.95), 60, 0.95), ((0.7, 0.9), 200, 0.9)])
def test_power_of_the_sequential_test(rates: tuple[float, float], pairs: int, power: float) -> None:
    claims = simulate(*rates, pairs=pairs, count=400, seed=2)
    right = [at for claim, at in claims if claim == "B" and at is not None]
    print(f"{rates}: {len(right) / 400:.1%} claims within {pairs} pairs, median at {np.median(right):.0f}")
    assert len(right) / 400 > power
    assert sum(claim == "A" for claim, _ in claims) / 400 < ALPHA / 2
    # It stops early: that is what it is for.
    assert np.median(right) < pairs / 2


def test_sequential_result_by_hand() -> None:
    """Seven discordant pairs in a row for B: e = half of the one-sided e-value, by integrating over p."""
    b = np.array([True] * 7 + [False, True])
    a = np.array([False] * 7 + [False, True])
    result, history = sequential_test(a, b, alpha=0.1)
    p = np.linspace(0.5, 1, 2_000_001)[1:-1]
    weights = beta.pdf(p, 0.5, 0.5)
    expected = [np.sum((2 * p) ** n * weights) / np.sum(weights) / 2 for n in range(1, 8)]
    assert history[:7] == pytest.approx(expected, rel=1e-3)
    assert history[7] == history[8] == history[6]  # concordant pairs say nothing
    first = next(i for i, value in enumerate(expected, start=1) if value >= 10)
    assert (result.claim, result.claimed_at, result.discordant, result.pairs) == ("B", first, 7, 9)
    assert result.p_value == pytest.approx(1 / result.e_value_max)
    mirrored, _ = sequential_test(b, a, alpha=0.1)
    assert (mirrored.claim, mirrored.claimed_at) == ("A", first)


def test_sequential_test_without_pairs() -> None:
    none = np.zeros(0, dtype=bool)
    result, history = sequential_test(none, none)
    assert (result.claim, result.p_value, len(history)) == (None, 1.0, 0)
    with pytest.raises(DataError, match="alpha"):
        sequential_test(none, none, alpha=0.0)


def test_sequential_bound_closed_form() -> None:
    """B wins every pair: the averaged bets are sum_f (1 - f + 2 f / (1 + d))^n / 100."""
    n, share = 12, (np.arange(100) + 0.5) / 100
    found = sequential_bound(0, n, n=n, alpha=0.05)
    assert np.mean((1 - share + 2 * share / (1 + found)) ** n) == pytest.approx(20, rel=1e-5)
    assert sequential_bound(1, 0, n=1) == -1.0
    # Weaker than the bound for a fixed number of pairs, and not useless.
    fixed = paired_interval(4, 20, n=100, confidence=0.9).low
    assert fixed - 0.1 < sequential_bound(4, 20, n=100) < fixed


@pytest.mark.parametrize("cells", [(0.1, 0.1), (0.02, 0.0), (0.1, 0.3)])
def test_sequential_bound_holds_at_all_looks(cells: tuple[float, float]) -> None:
    """2,000 comparisons, looked at after each of 300 pairs: the lower bound is ever above the truth in at most 5 %."""
    rng = np.random.default_rng(3)
    q, p = cells
    wrong = 0
    for _ in range(SIMULATIONS):
        kinds = rng.choice(3, size=300, p=[q, 1 - p - q, p])
        counts = np.cumsum(np.eye(3, dtype=np.int64)[kinds], axis=0)
        wrong += bool((log_bet(counts, p - q) >= math.log(1 / ALPHA)).any())
    assert wrong / SIMULATIONS <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / SIMULATIONS)
