"""Area under the curve, hysteresis and the calibrated threshold, against closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from robot_rl.algorithms.detection import area_under_curve, calibrate_on, episode_peak, with_hysteresis
from robot_rl.errors import DataError


def test_auc_by_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    score, label = np.round(rng.normal(size=40), 1), rng.random(40) < 0.4  # rounded: ties
    pairs = itertools.product(score[label], score[~label])
    won = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]
    assert area_under_curve(score, label) == pytest.approx(np.mean(won), abs=1e-12)


@pytest.mark.parametrize(("score", "auc"), [([1.0, 2.0, 3.0, 4.0], 1.0), ([4.0, 3.0, 2.0, 1.0], 0.0), ([1.0] * 4, 0.5)])
def test_auc_of_perfect_reversed_and_constant_scores(score: list[float], auc: float) -> None:
    assert area_under_curve(np.array(score), np.array([False, False, True, True])) == auc


def test_auc_of_two_normals_is_phi_of_half_their_distance() -> None:
    """N(d, 1) against N(0, 1): AUC = Phi(d / sqrt 2)."""
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    score = np.concatenate([rng.normal(1.0, 1, 20_000), rng.normal(0.0, 1, 20_000)])
    label = np.arange(40_000) < 20_000
    assert area_under_curve(score, label) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.005)


def test_hysteresis_by_hand() -> None:
    score = np.array([0.9, 0.1, 0.8, 0.8, 0.5, 0.4, 0.3, 0.9, 0.4, 0.9, 0.9])
    signal = with_hysteresis(score, on=0.8, off=0.4, hold=2)
    # On at the second 0.8, kept by 0.5 and 0.4, lost at 0.3; then a lone 0.9 does not count.
    assert signal.tolist() == [False, False, False, True, True, True, False, False, False, False, True]
    assert with_hysteresis(score, on=0.8, off=0.8, hold=1).tolist() == (score >= 0.8).tolist()


def test_the_peak_is_the_highest_threshold_that_fires() -> None:
    rng = np.random.default_rng(2)
    for hold in (1, 2, 3):
        score = rng.random(12)
        peak = episode_peak(score, hold=hold)
        assert with_hysteresis(score, on=peak, off=0.0, hold=hold).any()
        assert not with_hysteresis(score, on=np.nextafter(peak, 1), off=0.0, hold=hold).any()
    assert episode_peak(np.array([0.5]), hold=2) == -np.inf


@pytest.mark.parametrize(
    ("success", "failure", "allowed", "on"),
    [
        ([0.9, 0.8, 0.95], [0.2, 0.4], 0, 0.6),  # midway between 0.4 and 0.8
        ([0.9, 0.5], [0.2, 0.7], 0, 0.8),  # the success at 0.5 is given up
        ([0.9, 0.5], [0.2, 0.7], 1, 0.35),  # one failure may pass: midway between 0.2 and 0.5
        ([0.9, 0.5], [0.2, 0.7], 2, 0.5),  # all may
    ],
)
def test_calibration_by_hand(success: list[float], failure: list[float], allowed: int, on: float) -> None:
    found = calibrate_on(success, failure, allowed=allowed)
    assert found == pytest.approx(on)
    assert sum(peak >= found for peak in failure) <= allowed


def test_calibration_without_any_success_above_lets_no_failure_pass() -> None:
    found = calibrate_on([0.3], [0.6, 0.6], allowed=0)
    assert 0.6 < found < 0.6 + 1e-9


def test_refusals() -> None:
    with pytest.raises(DataError, match="off <= on"):
        with_hysteresis(np.zeros(3), on=0.4, off=0.5, hold=1)
    with pytest.raises(DataError, match="positives"):
        area_under_curve(np.zeros(3), np.ones(3, dtype=bool))
    with pytest.raises(DataError, match="calibration"):
        calibrate_on([0.5], [], allowed=0)
