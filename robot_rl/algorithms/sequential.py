"""A comparison that may be looked at after every pair: an e-process on the discordant pairs.

A pair is discordant when exactly one of the two policies succeeds. Without a difference each discordant pair is a fair
coin. Betting on the coin with a mixture over its bias gives a process whose expectation never exceeds 1 under the null
hypothesis, so by Ville's inequality it ever reaches 1/alpha with probability at most alpha: one may look as often as
one likes, stop when one likes, and add trials (G. Shafer 2021; A. Ramdas, P. Gruenwald, V. Vovk, G. Shafer 2023,
"Game-theoretic statistics and safe anytime-valid inference").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.errors import DataError


@dataclass(frozen=True)
class SequentialResult:
    """What the pairs so far say.

    Attributes:
        alpha: the chance of a false claim, over all looks together, is at most this.
        pairs: looked at.
        discordant: of them.
        e_value: of the better policy's claim, now.
        e_value_max: the highest so far; the claim stands once this has reached 1/alpha.
        p_value: anytime-valid, min(1, 1 / e_value_max).
        claim: "B" or "A" is better, or None.
        claimed_at: number of pairs when the claim was first allowed, or None.
    """

    alpha: float
    pairs: int
    discordant: int
    e_value: float
    e_value_max: float
    p_value: float
    claim: str | None
    claimed_at: int | None


def log_e_values(b_won: Bool[Array, " D"], *, shape: float = 0.5) -> Float64[Array, "D 2"]:
    """Natural logarithm of two e-processes after each discordant pair: "B is better" and "A is better".

    The first bets that B wins a discordant pair with probability p > 1/2, with p drawn from Beta(shape, shape) cut to
    (1/2, 1); the second is its mirror image. With a wins of B in n pairs

        E_B = 2^n * 2 * Beta(a + shape, n - a + shape) / Beta(shape, shape) * P(X > 1/2),
        X ~ Beta(a + shape, n - a + shape),

    which is a supermartingale for every p <= 1/2, so that a claim also has the right sign.

    Args:
        b_won: of each discordant pair in a fixed order (by seed), whether B was the one that succeeded.
        shape: of the mixture; 1/2 is Krichevsky and Trofimov's (1981).
    """
    from scipy.special import betainc, betaln

    n = np.arange(1, len(b_won) + 1)
    wins = np.cumsum(b_won, dtype=np.int64)
    first, second = wins + shape, n - wins + shape
    mixture = n * np.log(2.0) + np.log(2.0) + betaln(first, second) - betaln(shape, shape)
    # I_x(p, q) near 0 underflows only where the bet is hopelessly lost; its logarithm is then very negative.
    tails = np.stack([betainc(second, first, 0.5), betainc(first, second, 0.5)], axis=1)
    return np.asarray(mixture[:, None] + np.log(np.maximum(tails, 1e-300)), dtype=np.float64)


def sequential_test(
    success_a: Bool[Array, " N"], success_b: Bool[Array, " N"], *, alpha: float = 0.05
) -> tuple[SequentialResult, Float64[Array, " N"]]:
    """Look after every pair; claim a difference once the e-value of a direction reaches 2/alpha.

    Both directions are tried, each with alpha/2: the average of the two e-processes is one, so half of the larger is
    compared with 1/alpha, and `e_value` is that half.

    Args:
        success_a, success_b: outcomes in an order fixed beforehand (by seed), pair by pair.
        alpha: chance of a false claim over all looks, in (0, 1).

    Returns:
        The result, and the e-value after each pair (1/2 of either direction before the first discordant pair).

    Raises:
        DataError: alpha outside (0, 1), or unequal numbers.
    """
    if not 0 < alpha < 1 or len(success_a) != len(success_b):
        raise DataError(
            "sequential test", expected="alpha in (0, 1) and one outcome of A for each of B",
            got=f"alpha={alpha}, {len(success_a)} and {len(success_b)} outcomes", hint="Give pairs.",
        )  # fmt: skip
    discordant = np.flatnonzero(success_a != success_b)
    halves = np.exp(np.minimum(log_e_values(success_b[discordant]), 600.0)) / 2
    # Concordant pairs leave the bet where it is.
    index = np.searchsorted(discordant, np.arange(len(success_a)), side="right")
    history = np.concatenate([np.full((1, 2), 0.5), halves])[index]
    larger = history.max(axis=1, initial=0.5)
    crossed = np.flatnonzero(larger >= 1 / alpha)
    first = int(crossed[0]) if len(crossed) else None
    highest = float(larger.max(initial=0.5))
    result = SequentialResult(
        alpha=alpha,
        pairs=len(success_a),
        discordant=len(discordant),
        e_value=float(larger[-1]) if len(larger) else 0.5,
        e_value_max=highest,
        p_value=min(1.0, 1 / highest),
        claim=None if first is None else ("B" if history[first, 0] > history[first, 1] else "A"),
        claimed_at=None if first is None else first + 1,
    )
    return result, larger


def log_bet(counts: Int64[Array, "K 3"], difference: float) -> Float64[Array, " K"]:
    """Natural logarithm of an e-process against "the difference of the success rates, B - A, is at most `difference`".

    The capital of a bettor who stakes the share f of the most that can be staked on each pair, averaged over 100
    values of f: prod_i (1 - f + f (1 + D_i) / (1 + difference)), D_i = success of B - success of A (I. Waudby-Smith and
    A. Ramdas 2024, "Estimating means of bounded random variables by betting"). It falls as `difference` grows.

    Args:
        counts: pairs so far with D = -1, 0 and 1; one row for each look.
        difference: in (-1, 1).
    """
    from scipy.special import logsumexp

    share = (np.arange(100) + 0.5) / 100
    gains = np.log(1 - share + share * np.array([[0], [1], [2]]) / (1 + difference))
    return np.asarray(logsumexp(counts @ gains, axis=1) - np.log(len(share)), dtype=np.float64)


def sequential_bound(only_a: int, only_b: int, *, n: int, alpha: float = 0.05) -> float:
    """Lower bound of the difference B - A that holds with 1 - alpha at all looks together.

    The upper bound is -sequential_bound(only_b, only_a, n=n).

    Args:
        only_a, only_b: discordant pairs.
        n: all pairs.
        alpha: in (0, 1).

    Returns:
        The smallest difference that the bets of `log_bet` have not refuted, in [-1, 1]; -1 when nothing is refuted.
    """
    from scipy.optimize import brentq

    counts = np.array([[only_a, n - only_a - only_b, only_b]], dtype=np.int64)

    def excess(difference: float) -> float:
        return float(log_bet(counts, difference)[0] + np.log(alpha))

    edge = 1 - 1e-9
    return -1.0 if excess(-edge) <= 0 else float(brentq(excess, -edge, edge, xtol=1e-9))
