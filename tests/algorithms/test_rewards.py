"""Penalties on rewards, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.algorithms.rewards import RewardConfig, jitter, penalised_range, shaped_rewards
from robot_rl.errors import ConfigError


def test_jitter_by_hand() -> None:
    action = np.array([[0.0], [1.0], [2.0], [6.0]], dtype=np.float32)
    # window 1: means over (a_{t-1}, a_t): 0, .5, 1.5, 4; distances 0, .5, .5, 2.
    np.testing.assert_allclose(jitter(action, window=1), [0.0, 0.25, 0.25, 4.0])
    # window 3 sees all there is: means 0, .5, 1, 2.25.
    np.testing.assert_allclose(jitter(action, window=3), [0.0, 0.25, 1.0, 14.0625])


def test_shaped_rewards_by_hand_and_zero_penalties_change_nothing() -> None:
    reward = np.array([0.0, 1.0], dtype=np.float32)
    action = np.array([[0.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    shaped = shaped_rewards(reward, action, RewardConfig(step_penalty=0.1, jitter_penalty=0.5, jitter_window=1))
    np.testing.assert_allclose(shaped, [-0.1, 1.0 - 0.1 - 0.5 * 1.0], rtol=1e-6)
    np.testing.assert_array_equal(shaped_rewards(reward, action, RewardConfig()), reward)


def test_a_negative_penalty_is_refused() -> None:
    zero = np.zeros(1, dtype=np.float32)
    with pytest.raises(ConfigError, match=r"step_penalty=-0\.1"):
        shaped_rewards(zero, zero[:, None], RewardConfig(step_penalty=-0.1))


def test_the_reachable_range_falls_by_what_the_penalties_can_take() -> None:
    config = RewardConfig(step_penalty=0.01, jitter_penalty=0.1)
    low, high = penalised_range((0.0, 1.0), config=config, max_steps=50, largest_jitter=0.2)
    assert (low, high) == (pytest.approx(-50 * (0.01 + 0.02)), 1.0)
