"""Fitted Q evaluation as least squares: the value of a given policy from data of another, with an interval.

Q is linear in given features phi(s, a) (the last layer of a critic, or a polynomial), and its fixed point is solved
at once instead of iterated (LSTDQ: Lagoudakis and Parr 2003; FQE with linear features has the same solution: Hao et al.
2021, arXiv 2102.03607, who also show that the bootstrap over episodes gives intervals that cover). All float64.
The interval is of the sampling error alone: what the features can't express is a bias that it does not hold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from robot_rl.arrays import Array, Float, Float64, Int64
from robot_rl.errors import DataError

NUMBERS_AT_ONCE = 2**23


@dataclass(frozen=True)
class EvaluationData:
    """N episodes of any policy, and one policy's answers to them. The policy's actions are averaged over draws.

    Attributes:
        phi: (B, H), features of the recorded state and action.
        next_phi: (B, H), mean over the policy's actions at the next state.
        reward: (B,), of the decision.
        discount: (B,), of what follows; 0 behind a termination.
        episode: int64 (B,), 0 to N - 1.
        start_phi: (S, H), mean over the policy's actions at the starts.
        start_episode: int64 (S,), which episode each start belongs to.
    """

    phi: Float[Array, "B H"]
    next_phi: Float[Array, "B H"]
    reward: Float[Array, " B"]
    discount: Float[Array, " B"]
    episode: Int64[Array, " B"]
    start_phi: Float[Array, "S H"]
    start_episode: Int64[Array, " S"]


@dataclass(frozen=True)
class FqeInterval:
    """Value of a policy, or the difference of two.

    Attributes:
        value: with every episode counted once.
        low, high: of the interval.
        values: float64 (E,), one for each bootstrap weight: differences of two policies are taken member by member.
        num_episodes: N, resampled.
    """

    value: float
    low: float
    high: float
    values: Float64[Array, " E"]
    num_episodes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, the members left out."""
        return {name: number for name, number in asdict(self).items() if name != "values"}


def bootstrap_weights(num_episodes: int, num_bootstrap: int, generator: torch.Generator) -> Float64[Array, "E N"]:
    """How often each of N episodes is drawn in each of E resamplings with replacement (Efron 1979); rows sum to N.

    Take 400 or more for a 95 % interval: with 100 its ends are so uncertain that it covers 2 to 3 % too seldom.
    """
    drawn = torch.randint(num_episodes, (num_bootstrap, num_episodes), generator=generator, device=generator.device)
    weight = torch.zeros(num_bootstrap, num_episodes, dtype=torch.float64, device=generator.device)
    return weight.scatter_add_(1, drawn, torch.ones_like(weight))


def least_squares_fqe(
    phi: Float[Array, "B H"],
    next_phi: Float[Array, "B H"],
    reward: Float[Array, " B"],
    discount: Float[Array, " B"],
    *,
    weight: Float[Array, "E N"],
    episode: Int64[Array, " B"] | None = None,
    ridge: float = 1e-6,
) -> Float64[Array, "E H"]:
    """Parameters theta of Q = phi theta that solve sum_b w phi (phi - discount next_phi)^T theta = sum_b w phi reward.

    Args:
        phi: features of the recorded state and action.
        next_phi: mean over the policy's actions of the features at the next state.
        reward: of the decision.
        discount: of what follows.
        weight: of each row (N = B), or of each episode, for each of E solutions.
        episode: which column of `weight` a row has; None when each has its own. Sums are formed by episode first, so
            that E * N * H^2 numbers are multiplied and not E * B * H^2.
        ridge: added to the diagonal, as a share of sum_b w phi^2. For a constant feature it acts as a discount that is
            smaller by this share, so keep it far below 1 - gamma.

    Raises:
        DataError: the equations have no finite solution.
    """
    phi, next_phi, reward, discount, weight = (x.double() for x in (phi, next_phi, reward, discount, weight))
    difference = torch.cat([phi - discount[:, None] * next_phi, reward[:, None]], dim=1)

    def weighted_sum(rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(1)
        if episode is not None:
            flat = flat.new_zeros(weight.shape[1], flat.shape[1]).index_add_(0, episode, flat)
        total: torch.Tensor = weight @ flat
        return total.view(len(weight), *rows.shape[1:])

    columns = torch.split(phi, max(1, NUMBERS_AT_ONCE // difference.numel()), dim=1)
    moments = torch.cat([weighted_sum(some[:, :, None] * difference[:, None, :]) for some in columns], dim=1)
    matrix = moments[:, :, :-1] + torch.diag_embed(ridge * weighted_sum(phi.square()))
    solved, failed = torch.linalg.solve_ex(matrix, moments[:, :, -1])
    if bool(failed.any()) or not bool(solved.isfinite().all()):
        raise DataError(
            "least-squares FQE", expected="equations with a finite solution", got="a singular matrix or NaN",
            hint="Use fewer features, more episodes or a larger ridge; look for NaN in the data.",
        )  # fmt: skip
    return solved


def fqe_interval(
    data: EvaluationData,
    weight: Float64[Array, "E N"],
    *,
    ridge: float = 1e-6,
    low: float | None = None,
    high: float | None = None,
    confidence: float = 0.95,
) -> FqeInterval:
    """Mean value of the starts with a bootstrap interval over episodes; a start counts as often as its episode.

    Two policies are compared by one call each with the same `weight`, and `paired_difference`.

    Args:
        data: of one policy.
        weight: `bootstrap_weights`.
        ridge: see `least_squares_fqe`.
        low: of `returns.reachable_range`; the value of each start is clamped to it.
        high: likewise.
        confidence: of the interval.

    Raises:
        DataError: episodes that have no weight, a resampling without starts, or equations without a solution.
    """
    _check_episodes(data, weight)
    weight = torch.cat([torch.ones_like(weight[:1]), weight])
    theta = least_squares_fqe(
        data.phi, data.next_phi, data.reward, data.discount, weight=weight, episode=data.episode, ridge=ridge
    )
    value = theta @ data.start_phi.double().T
    if low is not None or high is not None:
        value = value.clamp(low, high)
    start_weight = weight[:, data.start_episode]
    values = (start_weight * value).sum(1) / start_weight.sum(1)
    return _interval(values, confidence, num_episodes=weight.shape[1])


def paired_difference(candidate: FqeInterval, incumbent: FqeInterval, *, confidence: float = 0.95) -> FqeInterval:
    """Candidate minus incumbent, both from the same bootstrap weights: what they share cancels."""
    first = candidate.value - incumbent.value
    members = candidate.values - incumbent.values
    values = torch.cat([members.new_tensor([first]), members])
    return _interval(values, confidence, num_episodes=candidate.num_episodes)


def _check_episodes(data: EvaluationData, weight: torch.Tensor) -> None:
    count = weight.shape[1]
    indices = torch.cat([data.episode, data.start_episode])
    if bool((indices < 0).any() | (indices >= count).any()) or not bool(weight[:, data.start_episode].any(1).all()):
        raise DataError(
            "FQE", expected=f"episodes 0 to {count - 1}, each with its start", got=f"{len(data.start_episode)} starts, "
            f"episodes {int(indices.min())} to {int(indices.max())}", hint="Number the episodes of the judge from 0.",
        )  # fmt: skip


def _interval(values: torch.Tensor, confidence: float, *, num_episodes: int) -> FqeInterval:
    """Percentile interval of values[1:], values[0] being the estimate; expanded for few episodes (Hesterberg 2015).

    The plain percentile interval has normal quantiles and a variance short by (N - 1) / N; its tail is moved to where
    Student's t with N - 1 degrees of freedom would have it.
    """
    from scipy.special import ndtr, stdtrit

    freedom = max(num_episodes - 1, 1)
    tail = float(ndtr(stdtrit(freedom, (1 - confidence) / 2) * ((freedom + 1) / freedom) ** 0.5))
    low, high = torch.quantile(values[1:], values.new_tensor([tail, 1 - tail])).tolist()
    return FqeInterval(value=float(values[0]), low=low, high=high, values=values[1:], num_episodes=num_episodes)
