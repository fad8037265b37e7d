"""IQL against linear algebra: a tabular MDP whose values are solved exactly; clamp, ends, stopping and sabotage."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import expectile
from torch import nn

from robot_rl.data.transitions import Transitions
from robot_rl.errors import DataError, RunError
from robot_rl.fitting.critic import (
    CriticFitConfig,
    CriticReport,
    critic_quality,
    fit_critic,
    policy_gap,
    rank_correlation,
)
from robot_rl.policies.critics import Critic, CriticConfig, build_critic

# Three states, two actions. Action 0 stays or ends, action 1 goes on; the last state ends either way.
GAMMA = 0.9
REWARD = np.array([[0.2, 0.0], [0.0, 0.1], [1.0, -0.5]])
NEXT = np.array([[0, 1], [-1, 2], [-1, -1]])  # -1: terminated
SHARE = np.array([[0.5, 0.5], [0.25, 0.75], [0.4, 0.6]])  # of the behaviour policy
FAST = CriticFitConfig(
    num_steps=1000, batch_size=1024, learning_rate=0.02, target_rate=0.03, check_every_steps=250, patience=6
)


class Table(nn.Module):
    """Q and V as tables on one-hot features and actions."""

    def __init__(self, states: int = 3, actions: int = 2) -> None:
        super().__init__()
        self.q_table = nn.Parameter(torch.zeros(2, states, actions))
        self.v_table = nn.Parameter(torch.zeros(states))

    def q(self, feature: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bs,esa,ba->eb", feature, self.q_table, action)

    def value(self, feature: torch.Tensor) -> torch.Tensor:
        return feature @ self.v_table


def episodes(count: int, seed: int, max_steps: int = 30) -> Transitions:
    """Roll-outs of the behaviour policy from state 0."""
    rng = np.random.default_rng(seed)
    rows, returns = [], []
    for episode in range(count):
        state, rewards = 0, []
        for step in range(max_steps):
            action = int(rng.random() < SHARE[state, 1])
            after, reward = int(NEXT[state, action]), REWARD[state, action]
            rows.append((state, action, reward, GAMMA * (after >= 0), max(after, 0), after < 0, episode, step))
            rewards.append(reward)
            state = after
            if state < 0:
                break
        running = 0.0
        backward = [running := reward + GAMMA * running for reward in reversed(rewards)]
        returns += backward[::-1]
    return transitions(np.array(rows), np.array(returns))


def transitions(rows: np.ndarray, returns: np.ndarray) -> Transitions:
    state, action, reward, discount, after, terminated, episode, step = rows.T
    return Transitions(
        feature=torch.eye(3)[state.astype(int)],
        action=torch.eye(2)[action.astype(int)],
        reward=torch.tensor(reward, dtype=torch.float32),
        discount=torch.tensor(discount, dtype=torch.float32),
        next_feature=torch.eye(3)[after.astype(int)],
        terminated=torch.tensor(terminated > 0),
        return_to_go=torch.tensor(returns, dtype=torch.float32),
        episode=torch.tensor(episode, dtype=torch.int64),
        step=torch.tensor(step, dtype=torch.int64),
        success=torch.ones(len(rows), dtype=torch.bool),
    )


def exact(tau: float, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point of V = tau-expectile over the behaviour's actions of Q = r + gamma V(s'); scipy's expectile."""
    value = np.zeros(3)
    for _ in range(300):
        q = REWARD + GAMMA * np.where(NEXT >= 0, value[NEXT], 0.0)
        value = np.array([expectile(q[s], tau, weights=share[s]) for s in range(3)])
    return q, value


def shares(data: Transitions) -> np.ndarray:
    counts = (data.feature.T @ data.action).numpy()
    return np.asarray(counts / counts.sum(1, keepdims=True), np.float64)


def fit(
    train: Transitions, validation: Transitions, config: CriticFitConfig = FAST, *, low: float = -9.0, high: float = 9.0
) -> tuple[Table, CriticReport]:
    critic = Table()
    generator = torch.Generator().manual_seed(0)
    return critic, fit_critic(critic, train, validation, config=config, generator=generator, low=low, high=high)


TRAIN, VALIDATION = episodes(400, seed=0), episodes(200, seed=1)


def test_half_expectile_is_the_sarsa_value() -> None:
    """V = (I - gamma P)^-1 r of the behaviour policy, by linear algebra."""
    share = shares(TRAIN)
    matrix = np.zeros((3, 3))
    for s in range(3):
        for a in range(2):
            if NEXT[s, a] >= 0:
                matrix[s, NEXT[s, a]] += share[s, a]
    solved = np.linalg.solve(np.eye(3) - GAMMA * matrix, (share * REWARD).sum(1))
    q_exact, value_exact = exact(0.5, share)
    np.testing.assert_allclose(solved, value_exact, atol=1e-9)
    critic, report = fit(TRAIN, VALIDATION, replace(FAST, expectile=0.5))
    np.testing.assert_allclose(critic.v_table.detach().numpy(), solved, atol=0.02)
    for member in critic.q_table.detach().numpy():
        np.testing.assert_allclose(member, q_exact, atol=0.02)
    assert report.value_at_starts == pytest.approx(solved[0], abs=0.02)
    # Nothing is lost behind a time limit here: the Monte-Carlo mean of 200 fresh episodes must agree with theory.
    returns = VALIDATION.return_to_go[VALIDATION.step == 0]
    assert report.return_at_starts == pytest.approx(float(returns.mean()))
    error = float(returns.std()) / len(returns) ** 0.5
    assert report.return_at_starts == pytest.approx(exact(0.5, SHARE)[1][0], abs=3 * error)


def test_high_expectile_leans_to_the_best_action_of_the_data() -> None:
    share = shares(TRAIN)
    q_exact, value_exact = exact(0.95, share)
    best = np.zeros(3)
    for _ in range(300):
        best = (REWARD + GAMMA * np.where(NEXT >= 0, best[NEXT], 0.0)).max(1)
    critic, report = fit(TRAIN, VALIDATION, replace(FAST, expectile=0.95, num_steps=1500))
    value = critic.v_table.detach().numpy()
    print(value, value_exact, report)
    np.testing.assert_allclose(value, value_exact, atol=0.03)
    np.testing.assert_allclose(critic.q_table.detach().numpy().min(0), q_exact, atol=0.03)
    mean = exact(0.5, share)[1]
    assert (value > mean + 0.5 * (best - mean)).all()
    assert (value < best).all()


def one_state(*, terminated: bool) -> Transitions:
    """Reward 1 and back to the same state, ten one-step episodes; a time limit or a true end behind each."""
    rows = np.array([(0, 0, 1.0, 0.0 if terminated else GAMMA, 0, terminated, e, 0) for e in range(10)], np.float64)
    return transitions(rows, np.ones(10))


def test_time_limit_bootstraps_and_termination_does_not() -> None:
    config = replace(FAST, learning_rate=0.1, target_rate=0.1, expectile=0.5, num_steps=600)
    for terminated, expected in ((True, 1.0), (False, 1 / (1 - GAMMA))):
        data = one_state(terminated=terminated)
        critic, report = fit(data, data, config, high=20.0)
        assert float(critic.v_table[0].detach()) == pytest.approx(expected, abs=0.05)
        # All returns are equal: nothing to rank, and the TD error alone decides.
        assert report.rank_correlation is None
        assert report.curve[-1].return_error == 0.0


def test_clamp_holds_the_target() -> None:
    data = one_state(terminated=False)
    config = replace(FAST, learning_rate=0.1, target_rate=0.1, expectile=0.5, num_steps=600)
    critic, report = fit(data, data, config, low=0.0, high=5.0)
    assert float(critic.q_table[0, 0, 0].detach()) == pytest.approx(5.0, abs=0.05)
    assert report.target_max == pytest.approx(1 + GAMMA * 5, abs=0.1)
    assert 0.5 < report.target_clamped_share < 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_validation_loss_by_hand(sign: float) -> None:
    """Before the first step: a Q that ranks rightly leaves 1 - rho^2, one that ranks the wrong way round leaves all."""
    critic = Table()
    critic.q_table.data += sign * torch.from_numpy(exact(0.5, SHARE)[0]).float()
    generator = torch.Generator().manual_seed(0)
    config = replace(FAST, num_steps=1)
    q = critic.q(VALIDATION.feature, VALIDATION.action)[0].detach().numpy()
    returns = VALIDATION.return_to_go.numpy()
    report = fit_critic(critic, TRAIN, VALIDATION, config=config, generator=generator, low=-9.0, high=9.0)
    before = report.curve[0]
    rho = np.corrcoef(q, returns)[0, 1] if sign > 0 else 0.0
    assert before.return_error == pytest.approx(1 - rho**2, abs=1e-5)
    # V is zero, so the target of Q is the reward.
    assert before.td_error == pytest.approx(np.square(q - VALIDATION.reward.numpy()).mean(), rel=1e-5)
    assert before.loss == pytest.approx(before.td_error / returns.var() + before.return_error, rel=1e-5)


def test_stops_by_validation_and_keeps_what_was_good() -> None:
    """Four training episodes of random features that say which one it is: all that can be learned is by heart."""
    generator = torch.Generator().manual_seed(3)

    def noise(count: int) -> Transitions:
        rows = count * 10
        to_go = (torch.arange(count) % 2).float().repeat_interleave(10)
        return Transitions(
            feature=torch.randn(rows, 30, generator=generator),
            action=torch.zeros(rows, 1),
            reward=to_go,
            discount=torch.zeros(rows),
            next_feature=torch.zeros(rows, 30),
            terminated=torch.ones(rows, dtype=torch.bool),
            return_to_go=to_go,
            episode=torch.arange(count).repeat_interleave(10),
            step=torch.arange(10).repeat(count),
            success=to_go > 0,
        )

    torch.manual_seed(0)
    critic = build_critic(CriticConfig(hidden_width=32), feature_size=30, action_size=1)
    config = replace(FAST, num_steps=2000, check_every_steps=20, patience=3, batch_size=32, learning_rate=1e-3)
    fit_generator, held_out = torch.Generator().manual_seed(0), noise(40)
    report = fit_critic(critic, noise(4), held_out, config=config, generator=fit_generator, low=0.0, high=1.0)
    assert report.stopped_by == "validation"
    assert report.steps == report.best_step + 3 * 20
    losses = {point.step: point.loss for point in report.curve}
    assert losses[report.best_step] <= 1.02 * min(losses.values())
    assert losses[report.steps] > 1.02 * min(losses.values())
    # The weights left in the critic are those of that check: every row ends, so the target is the reward.
    td_error = (critic.q(held_out.feature, held_out.action).mean(0) - held_out.reward).square().mean()
    recorded = {point.step: point.td_error for point in report.curve}
    assert float(td_error.detach()) == pytest.approx(recorded[report.best_step], rel=1e-5)
    assert recorded[report.best_step] != pytest.approx(recorded[report.steps], rel=1e-3)


def bandit(count: int, seed: int) -> Transitions:
    """One decision an episode: the return is 1 where state and action agree in sign, with 20 % of noise."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(count, 3, generator=generator)
    action = torch.rand(count, 2, generator=generator) * 2 - 1
    good = (feature[:, 0] * action[:, 0] > 0) ^ (torch.rand(count, generator=generator) < 0.2)
    return Transitions(
        feature=feature,
        action=action,
        reward=good.float(),
        discount=torch.zeros(count),
        next_feature=feature,
        terminated=torch.ones(count, dtype=torch.bool),
        return_to_go=good.float(),
        episode=torch.arange(count),
        step=torch.zeros(count, dtype=torch.int64),
        success=good,
    )


def fit_network(
    train: Transitions, validation: Transitions, *, seed: int = 0, num_steps: int = 50
) -> tuple[Critic, CriticReport]:
    torch.manual_seed(seed)
    critic = build_critic(CriticConfig(hidden_width=32), feature_size=3, action_size=2)
    config = CriticFitConfig(
        num_steps=num_steps, learning_rate=3e-3, target_rate=0.03, check_every_steps=num_steps // 5, patience=4
    )
    generator = torch.Generator().manual_seed(seed)
    report = fit_critic(critic, train, validation, config=config, generator=generator, low=0.0, high=1.0)
    return critic, report


def test_shuffled_rewards_are_seen_in_the_report() -> None:
    """The honest critic ranks as well as the noise lets it; shuffled rewards leave no rank and a loss of one."""
    train, validation = bandit(2000, seed=0), bandit(2000, seed=1)
    critic, honest = fit_network(train, validation, num_steps=250)
    shuffle = torch.randperm(len(train), generator=torch.Generator().manual_seed(2))
    _, broken = fit_network(replace(train, reward=train.reward[shuffle]), validation, num_steps=250)
    print(honest, broken)
    # The best halves: mean ranks .65 and .35 of winners and losers, rho = .3 * .5 / sqrt(1/12) = .52.
    assert honest.rank_correlation == pytest.approx(0.52, abs=0.05)
    assert broken.rank_correlation is not None
    assert abs(broken.rank_correlation) < 0.1
    # The best Q has rho = .6 and leaves 1 - .36 = .64.
    assert 0.6 < min(point.return_error for point in honest.curve) < 0.76
    assert min(point.return_error for point in broken.curve) > 0.97

    # Q of the better of the two actions lies above the data's, and of the worse below.
    better = torch.stack([validation.feature[:, 0].sign() * 0.5, validation.action[:, 1]], dim=1)
    gap = policy_gap(critic, validation.feature, better, validation.action)
    assert gap == pytest.approx(0.3, abs=0.1)
    assert policy_gap(critic, validation.feature, validation.action, validation.action) == 0.0


def test_deterministic_given_seeds() -> None:
    train, validation = bandit(300, seed=0), bandit(100, seed=1)
    (first, report), (second, again), (_, other) = (fit_network(train, validation, seed=seed) for seed in (0, 0, 1))
    assert report == again
    assert report != other
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_report_is_json_and_quality_can_be_asked_again() -> None:
    train, validation = bandit(300, seed=0), bandit(100, seed=1)
    critic, report = fit_network(train, validation)
    text = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert text["curve"][0].keys() == {"step", "loss", "td_error", "return_error"}
    quality = critic_quality(critic, validation)
    assert {name: text[name] for name in quality} == quality


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 5.0, 4.0])) == pytest.approx(0.5)
    assert rank_correlation(torch.ones(3), torch.tensor([0.0, 5.0, 4.0])) is None
    assert rank_correlation(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])) is None


def test_errors() -> None:
    data = episodes(5, seed=0)
    bad = replace(data, reward=torch.full_like(data.reward, float("nan")))
    with pytest.raises(RunError, match="critic, step 1: expected a finite loss, got nan"):
        fit(bad, data)
    with pytest.raises(RunError, match="critic, step 0: expected a finite loss, got nan"):
        fit(data, bad)
    with pytest.raises(DataError, match="starts of episodes"):
        fit(data, data.rows(data.step > 0))
