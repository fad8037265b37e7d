"""judge calibrate: rank correlations by hand."""

from __future__ import annotations

import numpy as np
import pytest

from robot_rl.workbench.judge_calibrate import spearman


def test_rank_correlation_by_hand() -> None:
    success = np.array([0.1, 0.2, 0.3, 0.4])
    assert spearman(np.array([1.0, 5.0, 6.0, 90.0]), success)["spearman"] == pytest.approx(1.0)
    assert spearman(np.array([4.0, 3.0, 2.0, 1.0]), success)["spearman"] == pytest.approx(-1.0)
    # Ranks 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert spearman(np.array([2.0, 1.0, 4.0, 3.0]), success)["spearman"] == pytest.approx(0.6)
    assert spearman(np.full(4, 2.0), success) == {"spearman": None, "low": None, "high": None}


def test_interval_covers_the_estimate_and_narrows_with_policies() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for number in (10, 100):
        success = generator.random(number)
        found = spearman(success + 0.5 * generator.standard_normal(number), success)
        assert found["low"] < found["spearman"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0]
