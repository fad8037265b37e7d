"""Fitting the ensemble on a linear-Gaussian world, and roll-outs in hand-made models."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from robot_rl.algorithms.dynamics import ModelBounds, ModelOutput
from robot_rl.algorithms.ope import AmQRule, am_q, model_return, model_success, paired_estimate
from robot_rl.data.transitions import Transitions
from robot_rl.errors import DataError
from robot_rl.fitting.model import (
    ModelFitConfig,
    area_under_curve,
    bootstrap_counts,
    fit_model,
    whole_decisions,
)
from robot_rl.fitting.model_rollout import RolloutNoise, draw_noise, roll_out, rollout_q
from robot_rl.policies.dynamics import DynamicsConfig, DynamicsEnsemble

A, B, NOISE = 0.9, 0.5, 0.1


def world(seed: int, *, first_episode: int, episodes: int = 150, steps: int = 10) -> Transitions:
    """s' = 0.9 s + 0.5 u + w with s, u independent N(0, 1), N(0, 0.5^2); reward s u, or 1 at an end, which
    has probability sigmoid(4 s - 5): about one row in nine."""
    generator = torch.Generator().manual_seed(seed)
    rows = episodes * steps
    s, w = torch.randn(2, rows, 1, generator=generator)
    u = 0.5 * torch.randn(rows, 1, generator=generator)
    ended = torch.rand(rows, generator=generator) < torch.sigmoid(4 * s[:, 0] - 5)
    episode = torch.arange(first_episode, first_episode + episodes).repeat_interleave(steps)
    return Transitions(
        feature=s,
        action=u,
        reward=torch.where(ended, 1.0, (s * u)[:, 0]),
        discount=torch.where(ended, 0.0, 0.9),
        next_feature=A * s + B * u + NOISE * w,
        terminated=ended,
        return_to_go=torch.zeros(rows),
        episode=episode,
        step=torch.arange(steps).repeat(episodes),
        success=ended,
    )


def ensemble(seed: int = 0, **fields: int) -> DynamicsEnsemble:
    torch.manual_seed(seed)
    config = DynamicsConfig(**({"num_members": 3, "hidden_width": 32} | fields))
    return DynamicsEnsemble(config, feature_size=1, action_size=1)


CONFIG = ModelFitConfig(num_steps=600, check_every_steps=50, learning_rate=3e-3)


def test_fit_finds_the_linear_world() -> None:
    train, validation = world(0, first_episode=0), world(1, first_episode=1000, episodes=100)
    model = ensemble()
    looks: list[int] = []
    report = fit_model(
        model,
        train,
        validation,
        config=CONFIG,
        generator=torch.Generator().manual_seed(0),
        on_check=lambda step, _parts: looks.append(step),
    )
    assert looks == list(range(50, report.steps + 1, 50))
    # Share of Var[(a - 1) s + b u + w] that s and u explain.
    ceiling = 1 - NOISE**2 / ((A - 1) ** 2 + B**2 * 0.25 + NOISE**2)
    assert report.r2 == pytest.approx(ceiling, abs=0.02)
    entropy = 0.5 * math.log(2 * math.pi * math.e * NOISE**2)
    assert max(report.nll) < entropy + 0.06
    assert min(report.nll) > entropy - 0.06
    assert report.reward_r2 is not None
    assert report.reward_r2 > 0.97
    odds = torch.sigmoid(4 * validation.feature[:, 0] - 5)
    best = -torch.where(validation.terminated, odds.log(), (1 - odds).log()).mean()
    assert report.termination_log_loss < float(best) + 0.03
    assert report.termination_log_loss < report.termination_log_loss_constant - 0.1
    assert report.termination_auc == pytest.approx(area_under_curve(odds, validation.terminated), abs=0.02)
    assert (report.rows, report.validation_rows) == (1500, 1000)
    # The slopes of the predicted change are a - 1 and b, member by member; the spread is the noise.
    axis = torch.linspace(-1, 1, 9)
    s, u = (part.reshape(-1, 1) for part in torch.meshgrid(axis, 0.5 * axis, indexing="ij"))
    out = model(s, u)
    design = torch.cat([s, u, torch.ones_like(s)], dim=1)
    slopes = torch.linalg.lstsq(design.expand(3, -1, -1), out.mean.detach()).solution[..., 0]
    assert torch.allclose(slopes, torch.tensor([A - 1, B, 0.0]).expand(3, 3), atol=0.04)
    assert torch.allclose(out.log_std.detach().exp().mean((1, 2)), torch.full((3,), NOISE), rtol=0.15)
    # Held-out rows where the task may or may not end: the class weight has not moved the odds.
    unsure = (odds > 0.2) & (odds < 0.8)
    predicted = model(validation.feature, validation.action).termination_logit.detach().sigmoid().mean(0)
    assert float(predicted[unsure].mean()) == pytest.approx(float(odds[unsure].mean()), abs=0.1)


def test_each_member_keeps_its_best_weights() -> None:
    """A fit that is far too long for 60 rows: it is stopped, and what is kept is not what it ended with."""
    train, validation = world(0, first_episode=0, episodes=6), world(1, first_episode=1000, episodes=40)
    losses: list[float] = []
    model = ensemble(hidden_width=64)
    report = fit_model(
        model,
        train,
        validation,
        config=replace(CONFIG, num_steps=2000, check_every_steps=25, patience=4),
        generator=torch.Generator().manual_seed(0),
        on_check=lambda _step, parts: losses.append(parts["validation_loss"]),
    )
    assert report.stopped_early
    assert report.steps == max(report.best_steps) + 100
    assert len(set(report.best_steps)) > 1
    again = ensemble(hidden_width=64)
    short = fit_model(
        again,
        train,
        validation,
        config=replace(CONFIG, num_steps=2000, check_every_steps=25, patience=4),
        generator=torch.Generator().manual_seed(0),
    )
    assert short == report
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert losses[-1] > min(losses)


def test_bootstrap_draws_whole_episodes_one_less_than_there_are() -> None:
    episode = torch.tensor([7, 7, 7, 2, 2, 9, 9, 9, 9])
    counts = bootstrap_counts(episode, num_members=400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counts[:, 0], counts[:, 2])
    assert torch.equal(counts[:, 5], counts[:, 8])
    per_episode = counts[:, [0, 3, 5]]
    assert set(per_episode.sum(1).tolist()) == {2.0}
    assert per_episode.mean(0).tolist() == pytest.approx([2 / 3] * 3, abs=0.1)
    # The spread of a mean over samples of n - 1 is the usual s^2 / n.
    values = torch.tensor([0.0, 1.0, 5.0])
    means = (per_episode * values).sum(1) / 2
    assert float(means.var()) == pytest.approx(float(values.var()) / 3, rel=0.15)


def test_decisions_cut_by_the_time_limit_are_left_out() -> None:
    rows = world(0, first_episode=0, episodes=1, steps=4)
    discount = torch.tensor([0.81, 0.9, 0.0, 0.81])
    cut = replace(rows, discount=discount, terminated=discount == 0, reward=torch.arange(4.0))
    assert whole_decisions(cut).reward.tolist() == [0.0, 2.0, 3.0]


def test_area_under_curve_by_hand() -> None:
    score = torch.tensor([0.1, 0.4, 0.4, 0.8])
    # Pairs: (0.4, 0.1) won, (0.4, 0.4) half, (0.8, 0.1) and (0.8, 0.4) won.
    assert area_under_curve(score, torch.tensor([False, False, True, True])) == pytest.approx(3.5 / 4)
    assert area_under_curve(score, torch.zeros(4, dtype=torch.bool)) is None


def test_refused_data() -> None:
    train = world(0, first_episode=0, episodes=4)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(DataError, match="4 episodes in both"):
        fit_model(ensemble(), train, train, config=CONFIG, generator=generator)
    broken = replace(train, next_feature=train.next_feature * torch.nan)
    with pytest.raises(DataError, match="finite losses"):
        fit_model(ensemble(), broken, world(1, first_episode=50), config=CONFIG, generator=generator)


class LinearModel:
    """Members s' = a_m s + 0.5 u + 0.1 w, reward -(s^2 + 0.1 u^2), 10 more where it ends: from `ends_from` on."""

    delta_std = torch.ones(1)
    end_bonus = 10.0

    def __init__(self, *a: float, ends_from: float = math.inf, limit: float = math.inf, chance: float = 1.0) -> None:
        self.a = torch.tensor(a or (A,)).view(-1, 1, 1)
        self.ends_from = ends_from
        self.logit = math.log(chance / (1 - chance)) if chance < 1 else 100.0
        edge = torch.full((1,), limit)
        self.bounds = ModelBounds(-edge, edge, torch.full((2,), -math.inf), torch.full((2,), math.inf))

    def __call__(self, feature: torch.Tensor, action: torch.Tensor) -> ModelOutput:
        mean = (self.a - 1) * feature + B * action
        reward = -(feature.square() + 0.1 * action.square())[:, 0]
        ends = torch.where(feature[:, 0] >= self.ends_from, self.logit, -100.0)
        log_std = torch.full_like(mean, math.log(NOISE))
        rewards = (part.expand(len(self.a), -1) for part in (reward, reward + self.end_bonus, ends))
        return ModelOutput(mean, log_std, *rewards)


def linear_policy(gain: float, noise: float = 0.1):
    return lambda feature, z: -gain * feature + noise * z.flatten(1)


def noise_of(horizon: int, starts: int, seed: int = 0) -> RolloutNoise:
    generator = torch.Generator().manual_seed(seed)
    return draw_noise(horizon=horizon, starts=starts, noise_shape=(1, 1, 1), feature_size=1, generator=generator)


def behaviour_q(feature: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Closed form for u = -0.4 s + N(0, 0.1^2), twice, the second critic higher (design notes, 6.5)."""
    s, u = feature[:, 0], action[:, 0]
    q = -(s**2 + 0.1 * u**2 + 0.99 * (1.9731987 * (A * s + B * u) ** 2 + 1.9731987 * 0.01 + 2.5418334))
    return torch.stack([q, q + 1])


@pytest.mark.parametrize(
    ("gain", "total", "mean"),
    [(0.4, -16.618558, -3.323712), (0.6, -15.527401, -3.105480), (1.2, -14.230225, -2.846045)],
)
def test_am_q_of_the_linear_gaussian_world(gain: float, total: float, mean: float) -> None:
    count = 50_000
    rollout = roll_out(
        LinearModel(),
        linear_policy(gain),
        torch.ones(count, 1),
        noise=noise_of(5, count),
        members=torch.tensor([0]),
    )
    q = rollout_q(behaviour_q, rollout)
    assert q.shape == (5, 1, count)
    assert float(am_q(q, rollout.alive, rule=AmQRule.sum).mean()) == pytest.approx(total, abs=0.02)
    assert float(am_q(q, rollout.alive, rule=AmQRule.mean).mean()) == pytest.approx(mean, abs=0.004)
    assert float(rollout.disagreement.max()) == 0.0


def test_nothing_counts_behind_a_predicted_termination() -> None:
    """s = 0, 1, 2 by the policy; the model ends from s >= 2 on, so three decisions are made and the last one ends."""
    starts = torch.tensor([[0.0], [2.0], [-50.0]])
    noise = RolloutNoise(torch.zeros(5, 3, 1, 1, 1), torch.zeros(5, 3, 1), torch.full((5, 3), 0.5))
    rollout = roll_out(
        LinearModel(1.0, 1.0, ends_from=2.0), lambda feature, _z: torch.full_like(feature, 2.0), starts,
        noise=noise, members=torch.tensor([1, 0]),
    )  # fmt: skip
    assert rollout.alive[:, 0].T.tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4, [True] * 5]
    assert rollout.terminated.sum(0)[1].tolist() == [1, 1, 0]
    assert rollout.feature[:, 1, 0, 0].tolist() == [0, 1, 2, 0, 0]
    assert rollout.length[0].tolist() == [3, 1, 5]
    assert model_success(rollout.terminated)[0].tolist() == [1, 1, 0]
    rewards = torch.tensor([-0.4, -1.4, 5.6, 0, 0])
    assert torch.allclose(rollout.reward[:, 0, 0], rewards)
    powers = 0.5 ** torch.arange(5)
    assert float(model_return(rollout.reward, rollout.alive, discount=0.5)[0, 0]) == pytest.approx(
        float(rewards @ powers)
    )
    q = rollout_q(lambda s, _u: torch.stack([s[:, 0] + 1, s[:, 0] + 9]), rollout)
    assert q[:, 0, 0].tolist() == [1, 2, 3, 0, 0]


def test_termination_is_sampled_with_the_given_numbers() -> None:
    count = 20_000
    rollout = roll_out(
        LinearModel(ends_from=-math.inf, chance=0.25), linear_policy(0.4), torch.ones(count, 1),
        noise=noise_of(3, count), members=torch.tensor([0]),
    )  # fmt: skip
    assert rollout.alive.float().mean((1, 2)).tolist() == pytest.approx([1, 0.75, 0.5625], abs=0.01)


def test_roll_outs_in_one_batch_equal_roll_outs_one_by_one() -> None:
    """Members and starts do not mix, and each start keeps its own noise whichever others have ended."""
    model, noise = LinearModel(0.9, 1.1, ends_from=1.2), noise_of(6, 8)
    starts = torch.linspace(-1, 1.5, 8)[:, None]
    whole = roll_out(model, linear_policy(0.1), starts, noise=noise, members=torch.tensor([0, 1]))
    assert 0 < int(whole.terminated.sum()) < 16
    for member in (0, 1):
        for start in range(8):
            own = RolloutNoise(*(part[:, [start]] for part in (noise.policy, noise.model, noise.termination)))
            one = roll_out(model, linear_policy(0.1), starts[[start]], noise=own, members=torch.tensor([member]))
            for name in ("feature", "action", "reward", "alive", "terminated", "disagreement"):
                assert torch.allclose(getattr(whole, name)[:, member, start], getattr(one, name)[:, 0, 0])
    # Means 0.9 s and 1.1 s are 0.1 |s| from their middle.
    assert torch.allclose(whole.disagreement, 0.1 * whole.feature[..., 0].abs(), atol=1e-5)
    assert whole.mean_disagreement == pytest.approx(float(whole.disagreement[whole.alive].mean()))


def test_the_same_policy_twice_differs_by_exactly_nothing() -> None:
    model, starts = LinearModel(0.85, 0.9, 0.95), torch.randn(40, 1, generator=torch.Generator().manual_seed(3))
    scores = []
    for gain in (0.4, 0.4, 0.6):
        rollout = roll_out(model, linear_policy(gain), starts, noise=noise_of(5, 40), members=torch.tensor([0, 1, 2]))
        scores.append(am_q(rollout_q(behaviour_q, rollout), rollout.alive, rule=AmQRule.sum))
    same = paired_estimate(scores[0], scores[1])
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    better = paired_estimate(scores[2], scores[0])
    assert better.difference > 0
    # Common noise cancels: the pairs spread far less than the scores do.
    assert float((scores[2] - scores[0]).std()) < 0.5 * float(scores[0].std())


def test_a_model_that_explodes_stays_in_its_bounds() -> None:
    rollout = roll_out(
        LinearModel(50.0, limit=3.0), linear_policy(0.0), torch.ones(4, 1), noise=noise_of(30, 4),
        members=torch.tensor([0]),
    )  # fmt: skip
    assert float(rollout.feature.abs().max()) == 3.0
    assert bool(torch.isfinite(rollout.reward).all())


def test_noise_is_that_of_its_generator() -> None:
    first, second, other = noise_of(3, 4), noise_of(3, 4), noise_of(3, 4, seed=1)
    assert torch.equal(first.policy, second.policy)
    assert torch.equal(first.termination, second.termination)
    assert not torch.equal(first.model, other.model)
    assert first.policy.shape == (3, 4, 1, 1, 1)
    assert 0 <= float(first.termination.min()) <= float(first.termination.max()) < 1
    assert np.isfinite(first.model.numpy()).all()
