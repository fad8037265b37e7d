"""What is added to a task's reward: RL-100's penalties on time and on jitter, the same in every stage that learns.

They are applied to raw rewards of whole episodes when an episode is read for learning; stores and evaluations keep what
the task gave. The configuration is written in every run's config.yaml and is compared when a policy is handed over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.errors import ConfigError


@dataclass(frozen=True)
class RewardConfig:
    """Penalties in units of the task's reward; zero leaves the reward as it is.

    Attributes:
        step_penalty: taken from every env step, so that sooner is better.
        jitter_penalty: times |a_t - mean(a_{t-k} .. a_t)|^2, physical action units squared (RL-100).
        jitter_window: k, env steps looked back.
    """

    step_penalty: float = 0.0
    jitter_penalty: float = 0.0
    jitter_window: int = 3


def shaped_rewards(
    reward: Float32[Array, " T"], action: Float32[Array, "T A"], config: RewardConfig
) -> Float32[Array, " T"]:
    """Rewards of one episode less its penalties: r_t - step - jitter |a_t - mean(a_{t-k} .. a_t)|^2.

    Args:
        reward: as the task gave it.
        action: executed, physical units.
        config: see RewardConfig. At the start of an episode the mean is over the actions there are.

    Raises:
        ConfigError: a negative penalty or window.
    """
    if config.step_penalty < 0 or config.jitter_penalty < 0 or config.jitter_window < 1:
        raise ConfigError(
            "reward", expected="penalties of 0 or more and a jitter_window of 1 or more", got=repr(config),
            hint="A penalty is taken off: give it as a positive number.",
        )  # fmt: skip
    out = reward - np.float32(config.step_penalty)
    if config.jitter_penalty:
        out = out - np.float32(config.jitter_penalty) * jitter(action, window=config.jitter_window)
    return np.asarray(out, dtype=np.float32)


def jitter(action: Float32[Array, "T A"], *, window: int) -> Float32[Array, " T"]:
    """|a_t - mean(a_{t-k} .. a_t)|^2 of every step, k = window or the steps since the start if fewer."""
    total = np.cumsum(np.concatenate([np.zeros_like(action[:1]), action]).astype(np.float64), axis=0)
    last = np.arange(1, len(action) + 1)
    first = np.maximum(last - window - 1, 0)
    mean = (total[last] - total[first]) / (last - first)[:, None]
    return np.square(action - mean).sum(axis=1).astype(np.float32)


def penalised_range(
    bounds: tuple[float, float], *, config: RewardConfig, max_steps: int, largest_jitter: float
) -> tuple[float, float]:
    """Reachable returns when the penalties are on: the lowest falls by all that they can take in `max_steps`."""
    worst = max_steps * (config.step_penalty + config.jitter_penalty * largest_jitter)
    return bounds[0] - worst, bounds[1]
