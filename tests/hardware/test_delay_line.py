"""Late, jittered and lost messages: bounds, order and seeds of a channel; the thread that delivers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from robot_rl.errors import ConfigError
from robot_rl.hardware.delay_line import Channel, Delay, DelayLine


def arrivals(delay: Delay, *, seed: int, count: int = 2000, every_s: float = 0.01) -> list[float | None]:
    channel = Channel(delay, seed=seed)
    return [channel.arrival_s(every_s * number) for number in range(count)]


def test_delay_is_uniform_around_the_latency() -> None:
    sent = 0.05 * np.arange(2000)
    late = np.array(arrivals(Delay(0.02, 0.005), seed=1, every_s=0.05), np.float64) - sent
    assert late.min() >= 0.015 - 1e-9
    assert late.max() <= 0.025 + 1e-9
    assert late.mean() == pytest.approx(0.02, abs=3 * 0.005 / np.sqrt(3 * 2000))
    assert np.percentile(late, 25) == pytest.approx(0.0175, abs=5e-4)


def test_no_message_overtakes_another() -> None:
    found = np.array(arrivals(Delay(0.02, 0.02), seed=2, every_s=0.001), np.float64)
    assert (np.diff(found) >= 0).all()
    assert (np.diff(found) == 0).any(), "some had to wait for the one before"


def test_share_of_losses_and_seed() -> None:
    delay = Delay(0.02, 0.01, drop=0.25)
    found = arrivals(delay, seed=3)
    lost = sum(arrival is None for arrival in found)
    assert lost == pytest.approx(500, abs=4 * np.sqrt(2000 * 0.25 * 0.75))
    assert found == arrivals(delay, seed=3)
    assert found != arrivals(delay, seed=4)


def test_nothing_injected_is_nothing() -> None:
    assert arrivals(Delay(), seed=0, count=5) == [0.0, 0.01, 0.02, 0.03, 0.04]


@pytest.mark.parametrize("numbers", [(0.01, 0.02, 0.0), (-0.01, -0.02, 0.0), (0.0, 0.0, 1.0), (float("nan"), 0.0, 0.0)])
def test_wrong_numbers(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="delay"):
        Delay(*numbers)


def test_line_delivers_in_the_order_of_time_and_never_early() -> None:
    line, got, done = DelayLine(), [], threading.Event()
    start = time.monotonic()
    for name, due_s in (("c", 0.12), ("a", 0.0), ("b", 0.06)):
        line.put(start + due_s, lambda name=name: got.append((name, time.monotonic() - start)))
    line.put(start + 0.13, done.set)
    line.put(None, lambda: got.append(("lost", 0.0)))
    assert done.wait(20)
    assert [name for name, _ in got] == ["a", "b", "c"]
    assert all(when >= due for (_, when), due in zip(got, (0.0, 0.06, 0.12), strict=True))
    line.close()
    line.close()


def test_line_keeps_the_error_of_a_call() -> None:
    line, error = DelayLine(), ValueError("broken")

    def fail() -> None:
        raise error

    line.put(0.0, fail)
    line._thread.join(20)
    assert line.failure is error
    line.close()
