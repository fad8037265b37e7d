"""Least-squares FQE: tabular and linear-Gaussian problems in closed form, the bootstrap by hand, measured coverage."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from robot_rl.algorithms import fqe
from robot_rl.algorithms.fqe import (
    EvaluationData,
    FqeInterval,
    bootstrap_weights,
    fqe_interval,
    least_squares_fqe,
    paired_difference,
)
from robot_rl.errors import DataError

# ------------------------------------------------------------------------------------------------ linear-Gaussian MDP


@dataclass(frozen=True)
class Problem:
    """s' = a s + b u + N(0, noise^2), r = -(state_cost s^2 + action_cost u^2); algorithms.md 6.5."""

    a: float = 0.9
    b: float = 0.5
    noise: float = 0.1
    state_cost: float = 1.0
    action_cost: float = 0.1
    gamma: float = 0.99

    def value_terms(self, gain: float, spread: float) -> tuple[float, float]:
        """(P, c) of V(s) = -(P s^2 + c) of the policy u = -gain s + N(0, spread^2)."""
        q, r, g = self.state_cost, self.action_cost, self.gamma
        p = (q + r * gain**2) / (1 - g * (self.a - self.b * gain) ** 2)
        c = ((r + g * self.b**2 * p) * spread**2 + g * p * self.noise**2) / (1 - g)
        return p, c


def features(s: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(s), s, u, s**2, s * u, u**2], axis=-1)


def policy_features(s: np.ndarray, gain: float, spread: float, noise: np.ndarray) -> np.ndarray:
    """Mean over the draws of noise (draws, B) of the features of the policy's actions."""
    return features(np.broadcast_to(s, noise.shape), -gain * s + spread * noise).mean(0)


@dataclass(frozen=True)
class Rollouts:
    """Decisions (N, T) of a behaviour policy."""

    s: np.ndarray
    u: np.ndarray
    reward: np.ndarray
    after: np.ndarray


def roll_out(
    problem: Problem, start: np.ndarray, steps: int, rng: np.random.Generator, *, gain: float, spread: float
) -> Rollouts:
    s, columns = start, []
    for _ in range(steps):
        u = -gain * s + spread * rng.standard_normal(len(s))
        after = problem.a * s + problem.b * u + problem.noise * rng.standard_normal(len(s))
        columns.append((s, u, -(problem.state_cost * s**2 + problem.action_cost * u**2), after))
        s = after
    return Rollouts(*(np.stack(column, axis=1) for column in zip(*columns, strict=True)))


def evaluation(
    problem: Problem, data: Rollouts, rng: np.random.Generator, *, gain: float, spread: float, draws: int = 8
) -> EvaluationData:
    """The data as `fqe_interval` takes it, for the policy (gain, spread)."""
    count, steps = data.s.shape
    after, start = data.after.reshape(-1), data.s[:, 0]

    def answers(s: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(policy_features(s, gain, spread, rng.standard_normal((draws, len(s)))))

    return EvaluationData(
        phi=torch.from_numpy(features(data.s.reshape(-1), data.u.reshape(-1))),
        next_phi=answers(after),
        reward=torch.from_numpy(data.reward.reshape(-1)),
        discount=torch.full((count * steps,), problem.gamma, dtype=torch.float64),
        episode=torch.arange(count).repeat_interleave(steps),
        start_phi=answers(start),
        start_episode=torch.arange(count),
    )


def test_closed_form_of_the_fixed_policy() -> None:
    """Exact expectations by Gauss-Hermite quadrature: the equations themselves, without sampling error."""
    problem = Problem()
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
    node_weights = node_weights / node_weights.sum()
    grid_s, grid_u = (x.reshape(-1) for x in np.meshgrid(np.linspace(-2, 2, 7), np.linspace(-1, 1, 7)))
    next_phi = sum(
        w1 * w2 * features(after, -0.4 * after + 0.1 * n2)
        for n1, w1 in zip(nodes, node_weights, strict=True)
        for n2, w2 in zip(nodes, node_weights, strict=True)
        for after in [0.9 * grid_s + 0.5 * grid_u + 0.1 * n1]
    )
    theta = least_squares_fqe(
        torch.from_numpy(features(grid_s, grid_u)),
        torch.from_numpy(np.asarray(next_phi)),
        torch.from_numpy(-(grid_s**2 + 0.1 * grid_u**2)),
        torch.full((49,), 0.99, dtype=torch.float64),
        weight=torch.ones(1, 49),
        ridge=0.0,
    )[0]
    one = np.ones(1)
    q = float(torch.from_numpy(features(one, -0.4 * one))[0] @ theta)
    value = sum(
        w * float(torch.from_numpy(features(one, -0.4 * one + 0.1 * n))[0] @ theta)
        for n, w in zip(nodes, node_weights, strict=True)
    )
    assert q == pytest.approx(-4.5091484, abs=1e-6)
    assert value == pytest.approx(-4.5150320, abs=1e-6)
    p, c = problem.value_terms(0.4, 0.1)
    assert (p, c) == pytest.approx((1.9731987, 2.5418334), abs=1e-7)


def test_plenty_of_data_of_another_policy() -> None:
    """Behaviour u = -0.2 s + N(0, 0.5^2), 400,000 decisions; the evaluated policy never acted."""
    rng = np.random.default_rng(0)
    data = roll_out(Problem(), rng.standard_normal(20_000), 20, rng, gain=0.2, spread=0.5)
    given = evaluation(Problem(), data, rng, gain=0.4, spread=0.1)
    theta = least_squares_fqe(
        given.phi, given.next_phi, given.reward, given.discount, weight=torch.ones(1, 400_000), ridge=1e-9
    )[0].numpy()
    one = np.ones(1)
    q = (features(one, -0.4 * one) @ theta).item()
    value = (policy_features(one, 0.4, 0.1, rng.standard_normal((100_000, 1))) @ theta).item()
    # Standard deviation over seeds .025.
    assert q == pytest.approx(-4.5091484, abs=0.075)
    assert value == pytest.approx(-4.5150320, abs=0.075)


# ------------------------------------------------------------------------------------------------------------ tabular


def tabular(seed: int, rows: int = 60) -> EvaluationData:
    """One-hot features of 4 states x 2 actions; some rows terminate."""
    rng = np.random.default_rng(seed)
    cells, following = rng.integers(8, size=rows), rng.integers(4, size=rows)
    cells[:8] = np.arange(8)
    policy = np.array([0.5, 0.3, 0.9, 0.0])[following]
    next_phi = np.zeros((rows, 8))
    next_phi[np.arange(rows), 2 * following] = 1 - policy
    next_phi[np.arange(rows), 2 * following + 1] = policy
    return EvaluationData(
        phi=torch.eye(8)[cells],
        next_phi=torch.from_numpy(next_phi),
        reward=torch.from_numpy(rng.standard_normal(rows)).float(),
        discount=torch.from_numpy(np.where(rng.random(rows) < 0.2, 0.0, 0.9)),
        episode=torch.arange(rows) % 12,
        start_phi=torch.from_numpy(next_phi[:12]),
        start_episode=torch.arange(12),
    )


def solve(data: EvaluationData, weight: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    return least_squares_fqe(data.phi, data.next_phi, data.reward, data.discount, weight=weight, ridge=ridge)


def test_tabular_is_the_exact_value_of_the_empirical_mdp() -> None:
    """Q = (I - M)^-1 r with M and r averaged cell by cell, by numpy."""
    data = tabular(0)
    phi, next_phi = data.phi.numpy(), data.next_phi.numpy()
    counts = phi.sum(0)
    matrix = phi.T @ (data.discount.numpy()[:, None] * next_phi) / counts[:, None]
    reward = phi.T @ data.reward.double().numpy() / counts
    exact = np.linalg.solve(np.eye(8) - matrix, reward)
    np.testing.assert_allclose(solve(data, torch.ones(1, 60))[0].numpy(), exact, atol=1e-12)


def test_a_weight_counts_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An integer weight is the same as the row written so often; two solutions at once are each alone."""
    data = tabular(1)
    weight = torch.from_numpy(np.random.default_rng(2).integers(1, 4, size=(2, 60))).double()
    together = solve(data, weight, ridge=0.1)
    for member in range(2):
        index = torch.repeat_interleave(torch.arange(60), weight[member].long())
        rows = {name: getattr(data, name)[index] for name in ("phi", "next_phi", "reward", "discount", "episode")}
        copied = solve(replace(data, **rows), torch.ones(1, len(index)), ridge=0.1)
        torch.testing.assert_close(together[member], copied[0])
    monkeypatch.setattr(fqe, "NUMBERS_AT_ONCE", 3 * 60 * 9)
    torch.testing.assert_close(solve(data, weight, ridge=0.1), together)
    by_episode = torch.from_numpy(np.random.default_rng(3).standard_exponential((2, 12)))
    found = least_squares_fqe(
        data.phi, data.next_phi, data.reward, data.discount, weight=by_episode, episode=data.episode, ridge=0.1
    )
    torch.testing.assert_close(found, solve(data, by_episode[:, data.episode], ridge=0.1))


def test_ridge_by_hand() -> None:
    """One constant feature: (1 - gamma + ridge) theta = r."""
    one = torch.ones(5, 1)
    theta = least_squares_fqe(one, one, torch.ones(5), torch.full((5,), 0.9), weight=torch.ones(1, 5), ridge=0.15)
    assert theta.item() == pytest.approx(1 / 0.25)


# ---------------------------------------------------------------------------------------------------------- bootstrap


def test_bootstrap_weights_are_multinomial() -> None:
    weight = bootstrap_weights(20, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(weight.sum(1), torch.full((4000,), 20.0, dtype=torch.float64))
    assert torch.equal(weight, bootstrap_weights(20, 4000, torch.Generator().manual_seed(0)))
    assert float(weight.var(0).mean()) == pytest.approx(19 / 20, abs=0.02)
    assert float((weight == 0).double().mean()) == pytest.approx(0.95**20, abs=0.01)


def bandit(reward: torch.Tensor) -> EvaluationData:
    """Every episode is one decision that ends it; the policy does what the data did. Its value is the mean reward."""
    one = torch.ones(len(reward), 1)
    index = torch.arange(len(reward))
    return EvaluationData(one, one, reward, torch.zeros(len(reward)), index, one, index)


def test_interval_of_a_mean_is_the_textbook_bootstrap() -> None:
    from scipy.stats import bootstrap

    reward = torch.from_numpy(np.random.default_rng(0).standard_exponential(1000))
    weight = bootstrap_weights(1000, 2000, torch.Generator().manual_seed(0))
    found = fqe_interval(bandit(reward), weight, ridge=0.0)
    assert found.value == pytest.approx(float(reward.mean()))
    peer = bootstrap((reward.numpy(),), np.mean, n_resamples=2000, method="percentile", random_state=1)
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.01)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.01)
    torch.testing.assert_close(found.values, weight @ reward / 1000)
    assert json.loads(json.dumps(found.to_json())).keys() == {"value", "low", "high", "num_episodes"}
    narrow = fqe_interval(bandit(reward), weight, ridge=0.0, confidence=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_interval_of_few_episodes_is_that_of_student() -> None:
    """Twelve normal rewards: the expanded percentile interval has the width of the t interval."""
    from scipy.stats import norm, t

    reward = torch.from_numpy(norm.ppf((np.arange(12) + 0.5) / 12))
    found = fqe_interval(bandit(reward), bootstrap_weights(12, 20_000, torch.Generator().manual_seed(0)), ridge=0.0)
    low, high = t.interval(0.95, 11, loc=0, scale=float(reward.std()) / 12**0.5)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))


def test_values_are_clamped_to_the_reachable_range() -> None:
    data, weight = bandit(torch.tensor([3.0, 3.0, 3.0])), bootstrap_weights(3, 10, torch.Generator().manual_seed(0))
    assert fqe_interval(data, weight, ridge=0.0, low=0.0, high=1.0).value == 1.0
    assert fqe_interval(data, weight, ridge=0.0, low=4.0).value == 4.0
    assert fqe_interval(data, weight, ridge=0.0, low=0.0, high=9.0).high == pytest.approx(3.0)


def test_starts_count_as_often_as_their_episodes() -> None:
    data = replace(bandit(torch.tensor([0.0, 1.0])), phi=torch.eye(2), next_phi=torch.eye(2), start_phi=torch.eye(2))
    found = fqe_interval(data, torch.tensor([[1.0, 1.0], [1.5, 0.5]]).double(), ridge=0.0)
    assert found.values.tolist() == pytest.approx([0.5, 0.25])


def test_errors() -> None:
    data, weight = bandit(torch.tensor([0.0, 1.0])), torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(DataError, match="singular"):
        fqe_interval(replace(data, phi=torch.zeros(2, 1)), weight)
    with pytest.raises(DataError, match="NaN"):
        fqe_interval(replace(data, reward=torch.tensor([0.0, float("nan")])), weight)
    with pytest.raises(DataError, match="episodes 0 to 0, each with its start, got 2 starts, episodes 0 to 1"):
        fqe_interval(data, weight[:, :1])
    with pytest.raises(DataError, match="each with its start"):
        fqe_interval(
            replace(data, start_phi=torch.ones(1, 1), start_episode=torch.tensor([0])),
            torch.tensor([[0.0, 2.0]]).double(),
        )


# ----------------------------------------------------------------------------------------------------------- coverage


def drawn_problem(seed: int) -> tuple[EvaluationData, EvaluationData, tuple[float, float]]:
    """A problem, its off-policy data (20 to 300 episodes of 10 to 40 decisions), two policies and their true values."""
    rng = np.random.default_rng(seed)
    problem = Problem(
        a=rng.uniform(0.7, 1.0),
        b=rng.uniform(0.3, 0.7),
        noise=rng.uniform(0.05, 0.2),
        action_cost=rng.uniform(0.05, 0.3),
        gamma=float(rng.choice([0.9, 0.95, 0.99])),
    )
    # The gain follows from the pole a - b gain of the closed loop; the behaviour's pole lies within .15 of it.
    poles = rng.uniform(0.2, 0.85, size=2)
    gains, spreads = (problem.a - poles) / problem.b, rng.uniform(0.05, 0.2, size=2)
    behaviour = (problem.a - poles[0] + rng.uniform(-0.15, 0.15)) / problem.b
    mean, sd = rng.uniform(-1, 1.5), rng.uniform(0.2, 0.6)
    count, steps = int(np.exp(rng.uniform(np.log(20), np.log(300)))), int(rng.integers(10, 40))
    start = mean + sd * rng.standard_normal(count)
    data = roll_out(problem, start, steps, rng, gain=behaviour, spread=rng.uniform(0.3, 0.6))
    given = [evaluation(problem, data, rng, gain=gains[i], spread=spreads[i]) for i in range(2)]
    terms = [problem.value_terms(gains[i], spreads[i]) for i in range(2)]
    first, second = (-(p * (mean**2 + sd**2) + c) for p, c in terms)
    return given[0], given[1], (first, second)


def measure_coverage(seeds: range, num_bootstrap: int) -> dict[str, float]:
    """Share of the problems whose 95 % interval holds the truth, of one policy and of the paired difference."""
    hits, paired_hits, narrower = [], [], []
    for seed in seeds:
        *given, truth = drawn_problem(seed)
        weight = bootstrap_weights(int(given[0].episode.max()) + 1, num_bootstrap, torch.Generator().manual_seed(seed))
        first, second = (fqe_interval(data, weight) for data in given)
        difference = paired_difference(first, second)
        hits.append(holds(first, truth[0]))
        paired_hits.append(holds(difference, truth[0] - truth[1]))
        unpaired = np.hypot(first.values.std().item(), second.values.std().item())
        narrower.append(difference.values.std().item() / unpaired)
    return {"one": np.mean(hits), "paired": np.mean(paired_hits), "width_ratio": np.median(narrower)}


def holds(interval: FqeInterval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_interval_covers_the_true_return_in_200_problems() -> None:
    """The issue's demand is 90 % for a nominal 95 %. These seeds were not looked at while the method was chosen."""
    found = measure_coverage(range(910_000, 910_200), num_bootstrap=400)
    print(found)
    assert found["one"] >= 0.90
    assert found["paired"] >= 0.88
    assert found["width_ratio"] < 1.0


@pytest.mark.slow
def test_coverage_is_near_nominal_in_2000_problems() -> None:
    found = measure_coverage(range(920_000, 922_000), num_bootstrap=800)
    print(found)
    assert 0.92 < found["one"] < 0.97
    assert 0.90 < found["paired"] < 0.97


def test_a_policy_differs_from_itself_by_nothing() -> None:
    given, _other, _truth = drawn_problem(1)
    weight = bootstrap_weights(int(given.episode.max()) + 1, 50, torch.Generator().manual_seed(0))
    once = fqe_interval(given, weight)
    nothing = paired_difference(once, fqe_interval(given, weight))
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
