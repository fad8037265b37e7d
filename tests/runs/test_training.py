"""The pieces of the gradient loop that have closed forms: weight average, learning rate, devices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robot_rl.errors import ConfigError
from robot_rl.runs.training import TrainConfig, learning_rate_at, pick_device, update_average


def test_average_schedule_and_cap() -> None:
    """Decay min(0.6, 1 - step^-0.75): from 0 toward a constant 1 the distance is the product of the decays."""
    average, module = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 99.0)
    nn.init.constant_(module.weight, 0.0)
    update_average(average, module, step=1, ema_max=0.6)
    assert float(average.weight) == 0.0, "the first update copies the weights"
    nn.init.constant_(module.weight, 1.0)
    for step in range(2, 7):
        update_average(average, module, step=step, ema_max=0.6)
    decays = [min(0.6, 1 - step**-0.75) for step in range(2, 7)]
    assert decays[-1] == 0.6
    assert 1 - float(average.weight) == pytest.approx(math.prod(decays), rel=1e-5)


def test_learning_rate() -> None:
    config = TrainConfig(num_steps=110, warmup_steps=10, learning_rate=0.4)
    assert learning_rate_at(0, config) == pytest.approx(0.04)
    assert learning_rate_at(9, config) == pytest.approx(0.4)
    assert learning_rate_at(10, config) == pytest.approx(0.4)
    assert learning_rate_at(60, config) == pytest.approx(0.2)
    assert learning_rate_at(110, config) == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "tpu"])
def test_a_device_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")
