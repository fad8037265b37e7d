"""Every guidance option: its formula by hand numbers, and which way its gradient moves the student."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from robot_rl.algorithms.guidance import (
    OPTIONS,
    Guidance,
    GuidanceConfig,
    GuidanceInputs,
    guidance_loss,
    helps,
    lowered,
    pace_at,
    teacher_gain,
    weight_at,
)
from robot_rl.algorithms.guidance_labels import segment_returns
from robot_rl.algorithms.teacher_agreement import agreement
from robot_rl.algorithms.teacher_hacking import is_hacking
from robot_rl.errors import ConfigError

LOG_2PI = math.log(2 * math.pi)


def rows(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def two_by_two(**changes: Any) -> GuidanceInputs:
    """Two rows of two elements, s = 0.5, the teacher 1 to the right in row 0 and 1 up in row 1."""
    mean = rows([0.0, 0.0], [0.5, -0.5])
    given: dict[str, Any] = {
        "mean": mean.clone().requires_grad_(), "log_std": rows(0.5, 0.5).log().requires_grad_(), "old_mean": mean,
        "old_log_std": rows(0.5, 0.5).log(), "action": mean.clone(), "advantage": rows(1.0, 1.0),
        "teacher": rows([[1.0, 0.0], [0.5, 0.5]]), "asked": torch.ones(1, 2, dtype=torch.bool),
        "segment_return": rows(1.0, 3.0), "return_floor": 2.0, "failing": torch.ones(2, dtype=torch.bool),
    }  # fmt: skip
    return GuidanceInputs(**(given | changes))


def one(*, mean: float = 0.0, std: float = 1.0, **changes: Any) -> GuidanceInputs:
    """One row of one element; the old actor is N(0, 1), a = 0, a_T = 0, A = 1."""
    given: dict[str, Any] = {
        "mean": rows([mean]).requires_grad_(), "log_std": rows(std).log().requires_grad_(), "old_mean": rows([0.0]),
        "old_log_std": rows(0.0), "action": rows([0.0]), "advantage": rows(1.0), "teacher": rows([[0.0]]),
        "asked": torch.ones(1, 1, dtype=torch.bool), "segment_return": rows(0.0), "return_floor": 0.0,
        "failing": torch.ones(1, dtype=torch.bool),
    }  # fmt: skip
    return GuidanceInputs(**(given | changes))


def loss_of(x: GuidanceInputs, option: str, **settings: Any) -> tuple[float, float]:
    loss, gate = guidance_loss(x, GuidanceConfig(option=Guidance(option), anneal_steps=1, **settings))
    if loss.requires_grad:
        loss.backward()
    return loss.item(), gate.item()


def test_every_option_has_a_function() -> None:
    assert set(OPTIONS) == set(Guidance)


@pytest.mark.parametrize("option", ["rpd", "annealed"])
def test_rpd_is_the_mean_over_rows_and_elements(option: str) -> None:
    x = two_by_two()
    assert loss_of(x, option) == (0.5, 1.0)
    # 2 (m - a_T) / (B d), and nothing for s.
    assert x.mean.grad is not None
    assert x.mean.grad.tolist() == [[-0.5, 0.0], [0.0, -0.5]]
    assert x.log_std.grad is None


def test_rows_that_were_not_asked_do_not_dilute() -> None:
    x = two_by_two(asked=torch.tensor([[True, False]]))
    assert loss_of(x, "rpd") == (0.5, 1.0)
    assert x.mean.grad is not None
    assert x.mean.grad.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    x = two_by_two(asked=torch.zeros(1, 2, dtype=torch.bool))
    assert loss_of(x, "rpd") == (0.0, 0.0)
    assert x.mean.grad is not None
    assert not x.mean.grad.any()


def test_constant_weight_leaves_the_bias_of_the_closed_form() -> None:
    """Reward -k (m - a*)^2 and lambda (m - a_T)^2: m* = (k a* + lambda a_T) / (k + lambda)."""
    k, weight, best, taught = 3.0, 1.0, 0.8, 0.0
    x = one(mean=(k * best + weight * taught) / (k + weight), teacher=rows([[taught]]))
    loss, _ = guidance_loss(x, GuidanceConfig())
    (k * (x.mean - best).square().sum() + weight * loss).backward()
    assert x.mean.grad is not None
    assert x.mean.grad.item() == pytest.approx(0.0, abs=1e-6)
    assert x.mean.item() == pytest.approx(0.6)


def test_gated_counts_where_going_towards_the_teacher_paid() -> None:
    # Row 0: a - m_o = (.5, 0), score 2, times 1 towards the teacher. Row 1: away from it, and it paid.
    action = rows([0.5, 0.0], [0.5, -0.75])
    x = two_by_two(action=action)
    assert teacher_gain(x).tolist() == pytest.approx([2.0, -1.0])
    assert loss_of(x, "gated") == (0.25, 0.5)
    assert x.mean.grad is not None
    assert x.mean.grad.tolist() == [[-0.5, 0.0], [0.0, 0.0]]
    # The same steps with advantages the other way round open the other row.
    turned = two_by_two(action=action, advantage=rows(-1.0, -1.0))
    assert teacher_gain(turned).tolist() == pytest.approx([-2.0, 1.0])


def test_helps_needs_a_mean_above_its_standard_errors() -> None:
    gain = rows(1.0, 2.0, 3.0)  # mean 2, standard error 1 / sqrt(3): z = 3.46
    assert helps(gain, z=3.4)
    assert not helps(gain, z=3.5)
    assert not helps(-gain, z=0.0)
    assert not helps(rows(1.0), z=0.0)


def test_teacher_gain_is_the_slope_of_the_objective() -> None:
    """Bandit with reward -(a - 1)^2 at m = 0: dJ/dm = 2, so the mean gain towards a_T is 2 a_T."""
    number = 200_000
    action = 0.3 * torch.randn(number, 1, generator=torch.Generator().manual_seed(0))
    reward = -(action[:, 0] - 1).square()
    nothing, every = torch.zeros(number), torch.ones(1, number, dtype=torch.bool)
    x = GuidanceInputs(
        mean=torch.zeros_like(action), log_std=rows(0.3).log(), old_mean=torch.zeros_like(action),
        old_log_std=rows(0.3).log(), action=action, advantage=reward - reward.mean(),
        teacher=torch.full((1, number, 1), -0.5), asked=every, segment_return=nothing, return_floor=0.0, failing=every[0],
    )  # fmt: skip
    assert float(teacher_gain(x).mean()) == pytest.approx(-1.0, abs=0.02)
    assert not helps(teacher_gain(x), z=1.64)


def test_rlad_clips_against_the_mixture() -> None:
    # The teacher's density at a is twice the old one: q = (1 + 2) / 2, r = 2 / 3.
    up, down = one(), one(advantage=rows(-1.0))
    assert loss_of(up, "rlad", teacher_std=0.5)[0] == pytest.approx(-2 / 3, abs=1e-6)
    assert loss_of(down, "rlad", teacher_std=0.5)[0] == pytest.approx(0.8, abs=1e-6)
    assert up.log_std.grad is not None
    assert down.log_std.grad is not None
    # Makes a step that the teacher likes likelier (a narrower s at its centre), and does not push it down.
    assert up.log_std.grad.item() > 0
    assert down.log_std.grad.item() == 0
    # Without the teacher in the mixture it is PPO at ratio 1.
    assert loss_of(one(), "rlad", teacher_std=0.5, mixture=0.0)[0] == pytest.approx(-1.0)


def test_adpo_by_hand_and_at_its_optimum() -> None:
    # At the old policy p is uniform: KL = log 2 - H(q); q = (3/4, 1/4).
    x = one(action=rows([-1.0]), teacher=rows([[1.0]]), advantage=rows(math.log(3)))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert loss_of(x, "adpo")[0] == pytest.approx(math.log(2) - entropy, abs=1e-6)
    assert x.mean.grad is not None
    assert x.mean.grad.item() > 0  # descent goes to the played action, which was good
    bad = one(action=rows([-1.0]), teacher=rows([[1.0]]), advantage=rows(-1.0))
    loss_of(bad, "adpo")
    assert bad.mean.grad is not None
    assert bad.mean.grad.item() < 0  # and to the teacher where it was bad
    # pi ~ pi_o q^tau: m with (m a - m a_T) = tau log(q_a / q_T), that is -2 m = -tau.
    best = one(mean=0.25, action=rows([-1.0]), teacher=rows([[1.0]]), advantage=rows(-1.0))
    assert loss_of(best, "adpo", temperature=0.5)[0] == pytest.approx(0.0, abs=1e-6)


def test_g_opd_extrapolates_beyond_the_teacher() -> None:
    given = {"teacher": rows([[0.4]]), "reference": rows([0.0])}
    # Equal spreads: mean m_R + 1.25 (a_T - m_R) = 0.5 and the same spread.
    assert loss_of(one(mean=0.5, std=0.2, **given), "g_opd")[0] == pytest.approx(0.0, abs=1e-5)
    x = one(mean=0.4, std=0.2, **given)
    assert loss_of(x, "g_opd")[0] == pytest.approx(0.5 * 0.01 / 0.04, abs=1e-5)
    assert x.mean.grad is not None
    assert x.mean.grad.item() < 0  # at the teacher it still goes on
    # s_R = .4, s_T = .2, lambda 1.5: precision -3.125 + 37.5 = 34.375, mean 37.5 * .4 / 34.375.
    best = one(mean=15 / 34.375, std=34.375**-0.5, **given)
    assert loss_of(best, "g_opd", reference_std=0.4, extrapolation=1.5)[0] == pytest.approx(0.0, abs=1e-5)


def test_ampo_hears_the_likeliest_teacher_on_demand() -> None:
    teachers, both = rows([[2.0]], [[0.5]]), torch.ones(2, 1, dtype=torch.bool)
    assert loss_of(one(teacher=teachers, asked=both), "ampo") == (0.25, 1.0)
    assert loss_of(one(teacher=teachers, asked=torch.tensor([[True], [False]])), "ampo") == (4.0, 1.0)
    x = one(teacher=teachers, asked=both, failing=torch.tensor([False]))
    assert loss_of(x, "ampo") == (0.0, 0.0)
    # The term goes away with the failures: 0.25 in one of four rows that were all asked about, or in turn.
    four, hears = one(teacher=teachers, asked=both), torch.tensor([True, False, False, False])
    rows_of = {"mean": four.mean.detach().expand(4, 1), "old_mean": four.old_mean.expand(4, 1)}
    rows_of |= {"action": four.action.expand(4, 1), "teacher": teachers.expand(2, 4, 1), "failing": hears}
    rows_of |= {"advantage": torch.ones(4), "segment_return": torch.zeros(4)}
    for asked in (hears, torch.ones(4, dtype=torch.bool)):
        assert loss_of(replace(four, asked=asked.expand(2, 4), **rows_of), "ampo") == (0.0625, 0.25)
    twice = replace(four, asked=hears.expand(2, 4), **(rows_of | {"failing": torch.tensor([True, True, False, False])}))
    assert loss_of(twice, "ampo") == (0.125, 0.5)  # the second failing row was not its turn
    near = one(teacher=teachers, asked=both)
    loss_of(near, "ampo")
    assert near.mean.grad is not None
    assert near.mean.grad.item() == pytest.approx(-1.0)


def test_kepo_distils_on_good_trajectories_alone() -> None:
    x = two_by_two()
    assert loss_of(x, "kepo") == (0.25, 0.5)
    assert x.mean.grad is not None
    assert x.mean.grad.tolist() == [[0.0, 0.0], [0.0, -0.5]]


def test_distil_is_the_cross_entropy_and_moves_the_spread() -> None:
    x = one(teacher=rows([[2.0]]))
    assert loss_of(x, "distil")[0] == pytest.approx(2.0 + 0.5 * LOG_2PI)
    assert x.mean.grad is not None
    assert x.log_std.grad is not None
    assert x.mean.grad.item() == pytest.approx(-2.0)
    assert x.log_std.grad.item() == pytest.approx(1 - 4.0)  # wider, as the teacher is far


def test_redi_pulls_to_successes_and_away_from_failures() -> None:
    trace_mean = torch.zeros(3, 1).requires_grad_()
    x = one(
        trace_mean=trace_mean, trace_action=rows([0.5], [-1.0], [-5.0]), trace_success=torch.tensor([True, False, False])
    )  # fmt: skip
    loss, gate = loss_of(x, "redi", negative=0.5)
    good, bad = 0.125 + 0.5 * LOG_2PI, -(0.5 + 0.5 * LOG_2PI)
    assert loss == pytest.approx((good + 0.5 * bad) / 3, abs=1e-6)
    assert gate == pytest.approx(2 / 3)  # the failure 5 standard deviations away is left alone
    assert trace_mean.grad is not None
    assert trace_mean.grad[:, 0].tolist() == pytest.approx([-0.5 / 3, -0.5 / 3, 0.0])  # both go to the right
    assert x.log_std.grad is None


def test_weight_reaches_exactly_zero() -> None:
    config = GuidanceConfig(weight=2.0, anneal_steps=100)
    assert [weight_at(config, step) for step in (0, 50, 100, 101)] == pytest.approx([2.0, 1.0, 0.0, 0.0])
    assert weight_at(config, 25) == pytest.approx(1 + math.sqrt(0.5))
    assert weight_at(config, 100) == 0.0
    assert weight_at(GuidanceConfig(), 10**9) == 1.0
    assert lowered(1e-3, 1e-4, share=0.5) == pytest.approx(5.5e-4)
    assert lowered(1e-3, None, share=0.0) == 1e-3
    assert [lowered(1e-5, 1e-4, share=share) for share in (1.0, 0.5, 0.0)] == [1e-5] * 3  # lower already


def test_without_a_teacher_the_same_schedule_lowers_the_student_alike() -> None:
    """The control of `annealed`: all that is different is the teacher."""
    schedule = {"anneal_steps": 100, "final_learning_rate": 1e-4, "final_kl_stop": 0.03}
    taught, alone = (GuidanceConfig(weight=weight, **schedule) for weight in (1.0, 0.0))
    for step, rate, limit in ((0, 1e-3, 0.1), (50, 5.5e-4, 0.065), (100, 1e-4, 0.03), (500, 1e-4, 0.03)):
        paces = [pace_at(one, step, learning_rate=1e-3, kl_stop=0.1, final_kl_stop=0.03) for one in (taught, alone)]
        for pace in paces:
            assert (pace.learning_rate, pace.kl_stop) == pytest.approx((rate, limit))
        assert paces[1].weight == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"weight": -1.0}, {"option": Guidance.annealed}, {"teacher_std": 0.0}, {"mixture": 1.5}, {"temperature": 0.0},
        {"extrapolation": 3.0, "reference_std": 0.1, "option": Guidance.g_opd}, {"quantile": 1.0}, {"fail_window": 0},
        {"negative": 1.0}, {"trace_batch": 0}, {"clip": 0.0}, {"final_learning_rate": 0.0}, {"final_kl_stop": -0.1},
        {"negative_reach": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, Any]) -> None:
    name = "anneal_steps" if change.get("option") is Guidance.annealed else next(iter(change))
    with pytest.raises(ConfigError, match=f"guidance.{name}:"):
        replace(GuidanceConfig(), **change).validate()


@pytest.mark.parametrize("option", [option for option in Guidance if option is not Guidance.g_opd])
def test_the_extrapolation_is_of_g_opd_alone(option: Guidance) -> None:
    """s_T = 0.5 beside the default lambda and s_R: no precision for g_opd, and nothing to the others."""
    GuidanceConfig(option=option, anneal_steps=1, teacher_std=0.5).validate()


def test_segments_have_the_return_of_their_first_step() -> None:
    returns = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    ended = torch.tensor([[False], [True], [False], [False]])
    assert segment_returns(returns, ended)[:, 0].tolist() == [1.0, 1.0, 3.0, 3.0]


def test_hacking_is_a_falling_loss_with_a_falling_return() -> None:
    losses, noise = [1.0, 1.1, 0.9, 0.5, 0.4, 0.6], [0.0, 0.1, -0.1] * 2
    falling = [5 + noise[i] if i < 3 else 3 + noise[i] for i in range(6)]
    rising = [3 + noise[i] if i < 3 else 5 + noise[i] for i in range(6)]
    assert is_hacking(losses, falling, window=3)
    assert not is_hacking(losses, rising, window=3)
    assert not is_hacking(losses[::-1], falling, window=3)
    assert not is_hacking(losses[1:], falling[1:], window=3)
    assert not is_hacking(losses, [5.0, 3.0, 4.0, 4.9, 3.0, 3.9], window=3)  # within its noise


def test_hacking_with_losses_below_zero() -> None:
    """Of distil, redi and rlad: -1 to -2 falls, -1.0 to -1.01 is within 5 % of its size, and -2 to -1 rises."""
    falling = [5.0, 5.1, 4.9, 3.0, 3.1, 2.9]
    assert is_hacking([-1.0] * 3 + [-2.0] * 3, falling, window=3)
    assert not is_hacking([-1.0] * 3 + [-1.01] * 3, falling, window=3)
    assert not is_hacking([-1.0] * 6, falling, window=3)
    assert not is_hacking([-2.0] * 3 + [-1.0] * 3, falling, window=3)
    assert is_hacking([0.5] * 3 + [-0.5] * 3, falling, window=3)


def test_agreement_by_hand() -> None:
    shown = np.column_stack([np.linspace(-0.4, 0.4, 100), np.where(np.arange(100) < 60, 1.0, -1.0)]).astype(np.float32)
    teacher = np.column_stack([2 * shown[:, 0], -shown[:, 1]])
    low, high = np.array([-1.0, -1.0], dtype=np.float32), np.array([1.0, 1.0], dtype=np.float32)
    found = agreement(teacher.astype(np.float32), shown, low=low, high=high)
    assert found.slope[0] == pytest.approx(2.0, abs=1e-6)
    assert math.isnan(found.slope[1])  # both always at a bound
    assert found.same_side == (1.0, 0.0)
    assert found.to_json()["slope"][1] is None
    assert found.error == pytest.approx((np.abs(shown[:, 0]).mean() + 2.0) / 2, abs=1e-6)
