"""Turning a score per frame into a success signal: area under the curve, hysteresis, and a calibrated threshold.

A detector with thresholds on > off and a hold of H frames goes on when the score was at least `on` in H frames in a row,
and off when it falls below `off`. Whether it ever goes on in an episode depends on one number, the episode's peak: the
highest level that the score kept for H frames. So `on` can be chosen from peaks alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robot_rl.arrays import Array, Bool, Float64
from robot_rl.errors import DataError


def area_under_curve(score: Float64[Array, " N"], label: Bool[Array, " N"]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half (Mann-Whitney).

    Args:
        score: of each sample.
        label: whether it is positive.

    Raises:
        DataError: no positive, no negative, or a score that is not finite.
    """
    from scipy.stats import rankdata

    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives or not np.isfinite(score).all():
        raise DataError(
            "area under the curve", expected="positives and negatives with finite scores",
            got=f"{positives} positives, {negatives} negatives", hint="Label frames of both kinds.",
        )  # fmt: skip
    ranks = rankdata(score)
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def with_hysteresis(score: Float64[Array, " T"], *, on: float, off: float, hold: int) -> Bool[Array, " T"]:
    """The signal after every frame of one episode; see the module docstring.

    Args:
        score: of the frames, in order.
        on: score that must be kept for `hold` frames.
        off: below this the signal ends; not above `on`.
        hold: frames, at least 1.

    Raises:
        DataError: off > on or hold < 1.
    """
    check_thresholds(on=on, off=off, hold=hold)
    out = np.zeros(len(score), dtype=bool)
    is_on, kept = False, 0
    for step, value in enumerate(score):
        kept = kept + 1 if value >= on else 0
        is_on = value >= off if is_on else kept >= hold
        out[step] = is_on
    return out


def check_thresholds(*, on: float, off: float, hold: int) -> None:
    """Raise DataError unless off <= on and hold >= 1."""
    if not off <= on or hold < 1:
        raise DataError(
            "success detector", expected="off <= on and hold of at least 1", got=f"on {on}, off {off}, hold {hold}",
            hint="`off` is where the signal ends, `on` where it begins.",
        )  # fmt: skip


def episode_peak(score: Float64[Array, " T"], *, hold: int) -> float:
    """The highest `on` at which a detector with this hold goes on in the episode; -inf when it is shorter than hold."""
    if len(score) < hold:
        return -np.inf
    return float(np.lib.stride_tricks.sliding_window_view(score, hold).min(axis=1).max())


def calibrate_on(success_peaks: Sequence[float], failure_peaks: Sequence[float], *, allowed: int) -> float:
    """The lowest threshold with a margin that lets at most `allowed` failures pass.

    It lies midway between the highest failure that must not pass and the lowest success above it. Without a success
    above, it lies just over that failure: then the score does not tell them apart, and the detection rate shows it.

    Args:
        success_peaks: `episode_peak` of the calibration episodes that succeeded.
        failure_peaks: of those that failed.
        allowed: failures that may pass.

    Raises:
        DataError: no success or no failure.
    """
    if not success_peaks or not failure_peaks:
        raise DataError(
            "calibration", expected="episodes that succeeded and episodes that failed",
            got=f"{len(success_peaks)} and {len(failure_peaks)}", hint="Record both; failures matter most here.",
        )  # fmt: skip
    ordered = sorted(failure_peaks, reverse=True)
    lowest = min(success_peaks)
    if allowed >= len(ordered):
        return lowest
    barrier = ordered[allowed]
    above = [peak for peak in success_peaks if peak > barrier]
    if not above:
        return float(np.nextafter(barrier, np.inf))
    # A failure that may pass can lie between the two; the threshold stays below it or above, both are allowed.
    return (barrier + min(above)) / 2
