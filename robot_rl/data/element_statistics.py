"""Statistics of every element of an array, streamed: exact count, minimum, maximum, mean and standard deviation, and
quantiles from at most so many evenly spread rows. Images are one element a channel, from every n-th pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float64, Shaped
from robot_rl.specs import ArraySpec

KEPT_ROWS = 20_000
_PIXELS = 1024
QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True)
class Summary:
    """Of D elements over all rows; float64 (D,) each.

    Attributes:
        rows: how many rows.
        kept: how many of them the quantiles come from.
        low, high, mean, std: exact.
        q01, q50, q99: quantiles.
    """

    rows: int
    kept: int
    low: Float64[Array, " D"]
    high: Float64[Array, " D"]
    mean: Float64[Array, " D"]
    std: Float64[Array, " D"]
    q01: Float64[Array, " D"]
    q50: Float64[Array, " D"]
    q99: Float64[Array, " D"]


class ElementStatistics:
    """Feed it rows, then ask for the summary."""

    def __init__(self, array: ArraySpec, *, kept_rows: int = KEPT_ROWS) -> None:
        """Args:
        array: of the rows; three-dimensional arrays are images with the channel last.
        kept_rows: most rows that are kept for quantiles.
        """
        self._is_image = len(array.shape) == 3
        self._size = array.shape[-1] if self._is_image else array.size
        self._kept_rows = kept_rows
        self._rows, self._seen, self._stride = 0, 0, 1
        self._kept: list[np.ndarray] = []
        self._num_kept = 0
        self._low, self._high = np.full(self._size, np.inf), np.full(self._size, -np.inf)
        self._mean, self._squares = np.zeros(self._size), np.zeros(self._size)

    def add(self, rows: Shaped[Array, "T ..."]) -> None:
        """Count the rows of one episode; rows with NaN or infinity are left out."""
        flat = np.asarray(rows)
        if self._is_image:
            pixels = flat.shape[1] * flat.shape[2]
            flat = flat.reshape(len(flat), pixels, self._size)[:, :: max(1, pixels // _PIXELS)]
        flat = flat.reshape(-1, self._size).astype(np.float64)
        finite = np.isfinite(flat).all(axis=1)
        flat = flat if finite.all() else flat[finite]
        if not len(flat):
            return
        self._low, self._high = np.minimum(self._low, flat.min(axis=0)), np.maximum(self._high, flat.max(axis=0))
        # Chan, Golub and LeVeque (1979): merging means and sums of squares of two samples.
        mean, rows_before = flat.mean(axis=0), self._rows
        self._rows += len(flat)
        shift = mean - self._mean
        self._mean += shift * len(flat) / self._rows
        self._squares += ((flat - mean) ** 2).sum(axis=0) + shift**2 * rows_before * len(flat) / self._rows
        self._keep(flat)

    def summary(self) -> Summary:
        """What came so far. Without rows every number is NaN."""
        if not self._rows:
            return Summary(0, 0, *(np.full(self._size, np.nan) for _ in range(7)))
        quantiles = np.quantile(np.concatenate(self._kept), QUANTILES, axis=0)
        # A constant element must have a spread of exactly zero, whatever the rounding of its mean.
        std = np.where(self._high == self._low, 0.0, np.sqrt(self._squares / self._rows))
        return Summary(
            self._rows, self._num_kept, self._low.copy(), self._high.copy(), self._mean.copy(), std, *quantiles
        )

    def _keep(self, flat: np.ndarray) -> None:
        """Every n-th row over all episodes; n doubles when they become too many."""
        picked = flat[(-self._seen) % self._stride :: self._stride]
        self._seen += len(flat)
        self._kept.append(picked)
        self._num_kept += len(picked)
        while self._num_kept > self._kept_rows:
            thinned = np.concatenate(self._kept)[::2]
            self._kept, self._num_kept, self._stride = [thinned], len(thinned), 2 * self._stride
