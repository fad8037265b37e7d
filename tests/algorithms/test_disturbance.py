"""What a push and a shift are, before any environment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.errors import ConfigError


def test_a_push_depends_on_its_seed_and_the_episode_alone_and_fills_its_range() -> None:
    push = Push(action_offset=1.0, first_step=3, last_step=6)
    draws = [push.draw(seed) for seed in range(2000)]
    assert draws == [push.draw(seed) for seed in range(2000)]
    assert {step for step, _ in draws} == {3, 4, 5, 6}
    assert draws != [Push(action_offset=1.0, first_step=3, last_step=6, seed=1).draw(seed) for seed in range(2000)]
    # Uniform directions: the mean of 2,000 unit vectors is within 4 / sqrt(2000) of 0.
    assert abs(np.mean([np.exp(1j * angle) for _, angle in draws])) < 4 / math.sqrt(2000)


def test_shift_by_hand_in_numpy_and_torch() -> None:
    shift = Shift(xy_m=(0.05, -0.1), scale=2.0)
    # centre (1, 1): (1.2, 0.9) lies (0.2, -0.1) from it.
    expected = [1 + 0.4 + 0.05, 1 - 0.2 - 0.1]
    np.testing.assert_allclose(shift.moved(np.array([[1.2, 0.9]]), centre=np.ones(2))[0], expected)
    torch.testing.assert_close(shift.moved(torch.tensor([1.2, 0.9]), centre=torch.ones(2)), torch.tensor(expected))


@pytest.mark.parametrize(
    "push",
    [
        Push(),
        Push(body="cube"),
        Push(impulse_n_s=0.1),
        Push(body="cube", impulse_n_s=0.1, action_offset=1.0),
        Push(action_offset=math.inf),
        Push(action_offset=1.0, first_step=4, last_step=3),
        Push(action_offset=1.0, steps=0),
    ],
)
def test_a_push_that_means_nothing_is_refused(push: Push) -> None:
    with pytest.raises(ConfigError, match="push"):
        push.validate()


@pytest.mark.parametrize("shift", [Shift(), Shift(scale=0.0), Shift(xy_m=(math.nan, 0.0)), Shift(bodies=("cube",))])
def test_a_shift_that_means_nothing_is_refused(shift: Shift) -> None:
    with pytest.raises(ConfigError, match="shift"):
        shift.validate()
