"""The noise rule: fixed is one tensor, seeded depends on (seed, episode, decision) and on nothing else."""

from __future__ import annotations

import numpy as np

from robot_rl.deploy.noise import NoiseRule, NoiseSource

SHAPE = (2, 8, 4)


def test_fixed_is_the_same_for_all() -> None:
    source = NoiseSource(rule=NoiseRule.fixed, seed=3, shape=SHAPE)
    first = source.draw([5, 6], [0, 1])
    assert first.shape == (2, *SHAPE)
    assert first.dtype == np.float32
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first[0], source.draw([99], [7])[0])
    assert not np.array_equal(first, NoiseSource(rule=NoiseRule.fixed, seed=4, shape=SHAPE).draw([5, 6], [0, 1]))


def test_seeded_does_not_depend_on_the_batch() -> None:
    source = NoiseSource(rule=NoiseRule.seeded, seed=0, shape=SHAPE)
    batch = source.draw([10, 11, 12], [0, 3, 3])
    assert np.array_equal(batch[1], source.draw([11], [3])[0])
    assert not np.array_equal(batch[1], batch[2])
    assert not np.array_equal(source.draw([11], [3]), source.draw([11], [4]))


def test_seeded_is_standard_normal() -> None:
    draws = NoiseSource(rule=NoiseRule.seeded, seed=1, shape=(1, 8, 4)).draw(list(range(500)), [0] * 500)
    # 16,000 numbers: the mean has standard error 0.008, the standard deviation 0.0056.
    assert abs(draws.mean()) < 0.04
    assert abs(draws.std() - 1) < 0.03
