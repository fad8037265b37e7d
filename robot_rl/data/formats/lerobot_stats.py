"""Statistics as LeRobot v3.0 keeps them: min, max, mean, std, count and five quantiles of every feature.

Numbers are kept until the end, 4 to 8 bytes an element; images only as a histogram of 256 levels per colour, which gives
their statistics exactly, in 0..1 and of shape (3, 1, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LEVELS = np.arange(256) / 255


class Statistics:
    """Of many episodes: `add` each, then `result`."""

    def __init__(self) -> None:
        self._rows: dict[str, list[np.ndarray]] = {}
        self._histograms: dict[str, np.ndarray] = {}
        self._frames: dict[str, int] = {}

    def add(self, columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """Take in one episode: feature -> (T, ...) numbers, or (T, H, W, 3) uint8; returns its own statistics."""
        own = {}
        for name, column in columns.items():
            if column.dtype == np.uint8 and column.ndim == 4:
                histogram = np.stack([np.bincount(column[..., colour].ravel(), minlength=256) for colour in range(3)])
                self._histograms[name] = self._histograms.get(name, 0) + histogram
                self._frames[name] = self._frames.get(name, 0) + len(column)
                own[name] = of_histogram(histogram, len(column))
            else:
                flat = column.reshape(len(column), -1)
                self._rows.setdefault(name, []).append(flat)
                own[name] = of_rows(flat)
        return own

    def result(self) -> dict[str, dict[str, Any]]:
        """Feature -> statistics of all episodes, as JSON types."""
        numbers = {name: of_rows(np.concatenate(rows)) for name, rows in self._rows.items()}
        return numbers | {name: of_histogram(self._histograms[name], self._frames[name]) for name in self._histograms}


def of_rows(rows: np.ndarray) -> dict[str, Any]:
    """Statistics of (T, D) numbers over T; std is the population's."""
    wide = rows.astype(np.float64)
    out = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    out |= dict(zip(QUANTILES, np.quantile(wide, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in out.items()} | {"count": [len(rows)]}


def of_histogram(histogram: np.ndarray, frames: int) -> dict[str, Any]:
    """Statistics of images from how often each colour has each of 256 levels, (3, 256)."""
    share = histogram / histogram.sum(1, keepdims=True)
    mean = share @ _LEVELS
    spread = np.sqrt(np.maximum(share @ _LEVELS**2 - mean**2, 0))
    seen = [np.flatnonzero(levels) for levels in histogram]
    out = {"min": [_LEVELS[s[0]] for s in seen], "max": [_LEVELS[s[-1]] for s in seen], "mean": mean, "std": spread}
    reached = histogram.cumsum(1)
    for name, quantile in QUANTILES.items():
        out[name] = [_LEVELS[np.searchsorted(row, max(quantile * row[-1], 1))] for row in reached]
    shaped: dict[str, Any] = {name: np.asarray(value).reshape(3, 1, 1).tolist() for name, value in out.items()}
    return shaped | {"count": [frames]}
