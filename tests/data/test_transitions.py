"""Transitions of two hand-made episodes: rewards, discounts, ends and returns by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robot_rl.data.transitions import transitions_of
from robot_rl.data.windows import StepArrays, WindowSampler
from robot_rl.types import Observation

GAMMA = 0.9


class Policy:
    """Feature = the last frame; actions are twice their normalised value."""

    config = SimpleNamespace(execute=2)
    normalizer = SimpleNamespace(apply=lambda _key, value: value / 2)

    def encode(self, observation: Observation) -> torch.Tensor:
        return observation.proprio[:, -1]


def sampler() -> WindowSampler:
    # Episode 0: 3 steps, succeeds at the last and terminates. Episode 1: 2 steps, cut by the time limit.
    frames = np.array([[0], [1], [2], [3], [10], [11], [12]], np.float32)
    arrays = StepArrays(
        frames={"proprio": frames},
        action=np.array([[0.2], [0.4], [9.0], [1.0], [-1.0]], np.float32),
        reward=np.array([0, 0, 1, 0, 0], np.float32),
        done=np.array([False, False, True, False, False]),
        source=np.zeros(5, np.uint8),
        lengths=np.array([3, 2]),
        success=np.array([True, False]),
    )
    return WindowSampler(
        arrays, history=1, horizon=3, execute=2, keys=(), episodes=np.array([0, 1]), device="cpu", gamma=GAMMA
    )


@pytest.mark.parametrize("batch_size", [2, 4096])
def test_by_hand(batch_size: int) -> None:
    found = transitions_of(sampler(), Policy(), gamma=GAMMA, batch_size=batch_size)
    assert found.feature[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert found.next_feature[:, 0].tolist() == [2, 3, 3, 12, 12]
    expected = torch.tensor([[0.1, 0.2], [0.2, 1.0], [1.0, 1.0], [0.5, -0.5], [-0.5, -0.5]])  # clipped, last repeated
    assert torch.allclose(found.action, expected)
    assert found.reward.tolist() == pytest.approx([0, 0.9, 1, 0, 0])
    assert found.discount.tolist() == pytest.approx([0.81, 0, 0, 0.81, 0.9])
    assert found.terminated.tolist() == [False, True, True, False, False]
    assert found.return_to_go.tolist() == pytest.approx([0.81, 0.9, 1, 0, 0])
    assert found.episode.tolist() == [0, 0, 0, 1, 1]
    assert found.step.tolist() == [0, 1, 2, 0, 1]
    assert found.success.tolist() == [True, True, True, False, False]
    assert found.starts[:, 0].tolist() == [0, 10]
    assert len(found.rows(found.success)) == 3


def test_success_is_what_was_recorded_not_a_positive_reward() -> None:
    # A dense reward is positive everywhere, and with a penalty nowhere: neither says who succeeded.
    for reward in (0.7, -0.3):
        arrays = StepArrays(
            frames={"proprio": np.zeros((7, 1), np.float32)}, action=np.zeros((5, 1), np.float32),
            reward=np.full(5, reward, np.float32), done=np.zeros(5, bool), source=np.zeros(5, np.uint8),
            lengths=np.array([3, 2]), success=np.array([False, True]),
        )  # fmt: skip
        windows = WindowSampler(
            arrays, history=1, horizon=2, execute=2, keys=(), episodes=np.array([1, 0]), device="cpu", gamma=GAMMA
        )
        assert transitions_of(windows, Policy(), gamma=GAMMA).success.tolist() == [True, True, False, False, False]


def test_pictures_are_not_gathered_where_their_features_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,096 windows of pictures that would be gigabytes, for rewards and actions alone."""
    whole, plain = sampler(), transitions_of(sampler(), Policy(), gamma=GAMMA)
    whole._frames["image/top"] = torch.zeros(7, 4, 4, 3, dtype=torch.uint8)
    gathered: list[set[str]] = []
    window = WindowSampler.window

    def noted(self: WindowSampler, *words: object, **named: object) -> object:
        gathered.append(set(self._frames))
        return window(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(WindowSampler, "window", noted)
    found = transitions_of(whole, Policy(), gamma=GAMMA, features=(plain.feature, plain.next_feature))
    assert gathered == [{"proprio"}]
    assert torch.equal(found.reward, plain.reward)
