"""Weights of chunks: what an ensemble averages with, and what a new chunk is pulled to the old one with."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Float32, Float64


def ensembled(rows: Float32[Array, "E A"], decay: float) -> Float32[Array, " A"]:
    """Weighted mean of the actions for one step, the oldest chunk's first: weights exp(-decay i)."""
    weights = np.exp(-decay * np.arange(len(rows)))
    return np.asarray(weights @ rows / weights.sum(), np.float32)


def continuation_weights(*, committed: int, planned: int, horizon: int) -> Float64[Array, " Tp"]:
    """How much each action of a new chunk is pulled to the old one (arXiv 2506.07339, equation 5).

    1 for the `committed` ones, which will be played before the new chunk is there; then c (e^c - 1) / (e - 1) with c falling
    linearly to 0 at `planned`; 0 behind the `planned` ones.

    Args:
        committed: d, actions that are played while the policy computes.
        planned: actions that the old chunk still has.
        horizon: Tp.
    """
    index = np.arange(horizon, dtype=np.float64)
    c = np.clip((planned - index) / (planned - committed + 1), 0, 1)
    soft = c * np.expm1(c) / np.expm1(1)
    return np.where(index >= planned, 0.0, np.where(index < committed, 1.0, soft))
