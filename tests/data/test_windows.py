"""Windows against a slow loop over lists of frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import StepArrays, WindowSampler, split_by_episode
from robot_rl.errors import DataError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

LENGTHS = (5, 1, 20, 3, 1, 17)
GAMMA = 0.9
KEYS = ("proprio", "state", "image/cam")
SPEC = EnvSpec(
    env_id="windows",
    observation={
        "proprio": ArraySpec("proprio", (3,)),
        "state": ArraySpec("state", (2,)),
        "image/cam": ArraySpec("image/cam", (2, 2, 3), "uint8"),
    },
    action=ArraySpec("action", (2,)),
    action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.target, "joint", "none", "none", "pd"),
    joint_names=("a", "b"),
    robot="none",
    control_hz=10.0,
    max_episode_steps=20,
)


def make_episode(number: int, steps: int) -> Episode:
    """Every value is unique, so a wrong row can't be right by chance. Odd episodes terminate, even ones do not."""
    rng = np.random.default_rng(number)
    frames = {
        "proprio": rng.standard_normal((steps + 1, 3)).astype(np.float32),
        "state": rng.standard_normal((steps + 1, 2)).astype(np.float32),
        "image/cam": rng.integers(0, 256, (steps + 1, 2, 2, 3), dtype=np.uint8),
    }
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=rng.standard_normal((steps, 2)).astype(np.float32),
        reward=rng.standard_normal(steps).astype(np.float32),
        success=np.zeros(steps, bool),
        terminated=number % 2 == 1,
        truncated=number % 2 == 0,
        source=rng.integers(0, 4, steps).astype(np.uint8),
        time=np.arange(steps) / 10.0,
    )


EPISODES = [make_episode(i, steps) for i, steps in enumerate(LENGTHS)]


def slow_window(episode: Episode, t: int, history: int, horizon: int, execute: int) -> dict[str, np.ndarray]:
    """One window, frame by frame."""
    steps = len(episode)

    def frame(key: str, index: int) -> np.ndarray:
        return episode.final_observation[key] if index == steps else episode.observation[key][max(index, 0)]

    played = 0
    for k in range(execute):
        if t + k < steps:
            played += 1
    ended = episode.terminated and t + played == steps
    out = {
        "actions": np.stack([episode.action[t + k] if t + k < steps else episode.action[-1] for k in range(horizon)]),
        "valid": np.array([t + k < steps for k in range(horizon)]),
        "reward": np.array([episode.reward[t + k] if t + k < steps else 0 for k in range(horizon)], np.float32),
        "discount": np.float32(0.0 if ended else GAMMA**played),
        "source": episode.source[t],
    }
    for key in KEYS:
        out[key] = np.stack([frame(key, i) for i in range(t - history + 1, t + 1)])
        out[f"next {key}"] = np.stack([frame(key, i) for i in range(t + played - history + 1, t + played + 1)])
    return out


def sampler(history: int = 1, horizon: int = 4, execute: int = 4, **changes: object) -> WindowSampler:
    arguments = {"keys": KEYS, "episodes": np.arange(len(EPISODES)), "device": "cpu", "gamma": GAMMA} | changes
    data = arguments.pop("data", None) or StepArrays.from_episodes(EPISODES, KEYS)
    return WindowSampler(data, history=history, horizon=horizon, execute=execute, **arguments)


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 4, 16])
def test_every_window_matches_the_slow_loop(history, horizon):
    for execute in {1, max(1, horizon // 2), horizon}:
        windows = sampler(history, horizon, execute)
        assert windows.num_windows == sum(LENGTHS)
        assert windows.windows_per_episode.tolist() == list(LENGTHS)
        got = windows.window(torch.arange(windows.num_windows))
        observation, following = got.observation.arrays(), got.next_observation.arrays()
        index = 0
        for episode in EPISODES:
            for t in range(len(episode)):
                want = slow_window(episode, t, history, horizon, execute)
                for name in ("actions", "valid", "reward", "source"):
                    np.testing.assert_array_equal(getattr(got, name)[index].numpy(), want[name])
                np.testing.assert_allclose(got.discount[index].numpy(), want["discount"], rtol=1e-6)
                for key in KEYS:
                    np.testing.assert_array_equal(observation[key][index].numpy(), want[key])
                    np.testing.assert_array_equal(following[key][index].numpy(), want[f"next {key}"])
                index += 1


def test_discount_by_hand():
    # Episode 3 has 3 steps and terminates, episode 0 has 5 and is truncated.
    windows = sampler(horizon=2, execute=2, episodes=np.array([3, 0]))
    discount = windows.window(torch.arange(8)).discount.numpy()
    np.testing.assert_allclose(discount, [0.81, 0, 0, 0.81, 0.81, 0.81, 0.81, 0.9], rtol=1e-6)


def test_store_and_memory_give_the_same_windows(tmp_path):
    with EpisodeStore.create(tmp_path / "w.zarr", SPEC) as store:
        store.append_many(EPISODES)
        chosen = np.array([4, 2, 0])
        left = sampler(2, 4, 3, data=store, episodes=chosen)
    right = sampler(2, 4, 3, episodes=chosen)
    assert left.windows_per_episode.tolist() == [1, 20, 5]
    everything = torch.arange(26)
    one, two = left.window(everything), right.window(everything)
    for field in ("actions", "valid", "reward", "discount", "source"):
        assert torch.equal(getattr(one, field), getattr(two, field))
    for side in ("observation", "next_observation"):
        for key in KEYS:
            assert torch.equal(getattr(one, side).arrays()[key], getattr(two, side).arrays()[key])


def test_sampling_follows_the_generator_and_reaches_every_window():
    windows = sampler()
    first = windows.sample(64, torch.Generator().manual_seed(3), with_next=True)
    again = windows.sample(64, torch.Generator().manual_seed(3), with_next=True)
    other = windows.sample(64, torch.Generator().manual_seed(4))
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(first.next_observation.proprio, again.next_observation.proprio)
    assert not torch.equal(first.actions, other.actions)
    assert other.next_observation is None
    assert other.discount is None
    seen = windows.sample(2000, torch.Generator().manual_seed(0)).observation.proprio[:, 0]
    assert len(torch.unique(seen, dim=0)) == sum(LENGTHS)


def test_types_and_missing_keys():
    window = sampler(2, keys=["image/cam"]).window(np.array([0, 7]))
    assert window.observation.images["cam"].dtype == torch.uint8
    assert window.observation.images["cam"].shape == (2, 2, 2, 2, 3)
    assert window.observation.state is None
    assert window.observation.proprio.shape == (2, 2, 3)  # always there
    with pytest.raises(DataError, match="points"):
        sampler(keys=["points"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": np.array([], np.int64)}, "at least one episode"),
        ({"episodes": np.array([0, 6])}, r"0\.\.5"),
        ({"episodes": np.array([-1])}, r"0\.\.5"),
        ({"history": 0}, "history"),
        ({"execute": 5}, "execute"),
        ({"execute": 0}, "execute"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(DataError, match=message):
        sampler(**changes)


def test_window_index_out_of_range():
    with pytest.raises(DataError, match=r"0\.\.46"):
        sampler().window(torch.tensor([47]))
    with pytest.raises(DataError, match=r"0\.\.46"):
        sampler().window(torch.tensor([-1]))


def test_no_episodes():
    with pytest.raises(DataError, match="at least one"):
        StepArrays.from_episodes([], KEYS)


def test_select_keeps_frames_and_steps_together():
    arrays = StepArrays.from_episodes(EPISODES, KEYS).select(np.array([5, 1]))
    again = StepArrays.from_episodes([EPISODES[5], EPISODES[1]], KEYS)
    for field in dataclasses.fields(arrays):
        left, right = getattr(arrays, field.name), getattr(again, field.name)
        pairs = [(left[k], right[k]) for k in KEYS] if field.name == "frames" else [(left, right)]
        for one, two in pairs:
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("number", "fraction", "held_out"),
    [(100, 0.1, 10), (10, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (10, 0.0, 0), (3, 0.99, 2)],
)
def test_split_by_episode(number, fraction, held_out):
    train, validation = split_by_episode(number, fraction, 7)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == list(range(number))
    assert len(train) >= 1
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    again = split_by_episode(number, fraction, 7)
    np.testing.assert_array_equal(again[0], train)


def test_split_depends_on_the_seed_and_refuses_nonsense():
    assert split_by_episode(50, 0.2, 0)[1].tolist() != split_by_episode(50, 0.2, 1)[1].tolist()
    with pytest.raises(DataError, match="0 episodes"):
        split_by_episode(0, 0.1, 0)
    for fraction in (1.0, -0.1):
        with pytest.raises(DataError, match="fraction"):
            split_by_episode(5, fraction, 0)
