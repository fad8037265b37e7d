"""The success classifier: figures by hand, a task whose right answer is known, and the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robot_rl.algorithms.detection import with_hysteresis
from robot_rl.data.normalizer import Normalizer
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.hardware.success import SuccessClassifier, SuccessConfig, SuccessDetector
from robot_rl.hardware.success_training import (
    SuccessFit,
    fit_success,
    score_episode,
    split_three_ways,
    success_report,
)
from robot_rl.runs.checkpoint import load_policy, save_checkpoint
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Episode

SPEC = EnvSpec(
    env_id="Near",
    observation={
        "proprio": ArraySpec("proprio", (2,)),
        "state": ArraySpec("state", (2,)),
        "image/top": ArraySpec("image/top", (8, 8, 3), dtype="uint8"),
    },
    action=ArraySpec("action", (1,)),
    action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "joint", "none", "none", "near"),
    joint_names=("j",),
    robot="near",
    control_hz=4.0,
    max_episode_steps=20,
)


def episode(rng: np.random.Generator, *, is_success: bool, length: int = 12) -> Episode:
    """Success is |state| < 0.5, held over the last 4 frames of a success; the picture is bright then."""
    radius = np.full(length + 1, 1.0) + rng.random(length + 1)
    if is_success:
        radius[-4:] = 0.3 * rng.random(4)
    angle = rng.uniform(0, 2 * np.pi, length + 1)
    state = (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    brightness = np.where(radius < 0.5, 200, 40)[:, None, None, None]
    image = (brightness + rng.integers(-30, 30, size=(length + 1, 8, 8, 3))).astype(np.uint8)
    frames = {"proprio": np.zeros_like(state), "state": state, "image/top": image}
    return Episode(
        observation={key: value[:-1] for key, value in frames.items()},
        final_observation={key: value[-1] for key, value in frames.items()},
        action=np.zeros((length, 1), dtype=np.float32),
        reward=np.zeros(length, dtype=np.float32),
        success=radius[1:] < 0.5,
        terminated=False,
        truncated=True,
        source=np.zeros(length, dtype=np.uint8),
        time=np.arange(length, dtype=np.float64),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(tmp_path_factory.mktemp("data") / "store.zarr", spec=SPEC)
    made.append_many([episode(rng, is_success=number % 2 == 0) for number in range(40)])
    return made


@pytest.mark.parametrize("keys", [("state",), ("image/top",), ("proprio", "image/top")])
def test_a_separable_task_is_learned_and_told_apart_on_held_out_episodes(
    store: EpisodeStore, keys: tuple[str, ...]
) -> None:
    """A ring around the goal is no half-plane: a linear rule would fail, and `proprio` alone says nothing."""
    _, report = fit_success(store, SuccessConfig(keys=keys, hold=2), SuccessFit(num_steps=200, batch_size=64))
    assert report.episodes == (20, 10, 10)
    assert report.auc is not None
    assert report.auc > 0.99
    assert (report.false_positives.k, report.false_positives.n) == (0, 5)
    assert report.false_positives.high == pytest.approx(0.4345, abs=1e-3)  # Wilson: z^2 / (n + z^2)
    assert (report.detected.k, report.early.k, report.delay) == (5, 0, 1.0)  # the second frame in a row
    assert report.off == pytest.approx(report.on - 2)


def test_the_same_seed_gives_the_same_classifier(store: EpisodeStore) -> None:
    first, second = (fit_success(store, SuccessConfig(), SuccessFit(num_steps=20, batch_size=64))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_score_that_knows_nothing_shows_it(store: EpisodeStore) -> None:
    """`proprio` is constant: AUC 1/2, and a threshold that lets no calibration failure pass detects nothing."""
    _, report = fit_success(store, SuccessConfig(keys=("proprio",)), SuccessFit(num_steps=20, batch_size=64))
    assert report.auc == 0.5
    assert (report.detected.k, report.false_positives.k, report.delay) == (0, 0, None)


def test_report_by_hand() -> None:
    config = SuccessConfig(on=0.8, off=0.4, hold=1)
    scores = [
        [0.1, 0.9, 0.9],  # success at frame 2, detected at 1: early
        [0.1, 0.1, 0.9],  # success at frame 1, detected one frame later
        [0.1, 0.1, 0.1],  # success at frame 1, missed
        [0.9, 0.1, 0.1],  # failure, rewarded
        [0.1, 0.7, 0.1],  # failure, not rewarded
    ]
    labels = [[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    report = success_report(
        [np.array(each) for each in scores], [np.array(each, dtype=bool) for each in labels], config=config,
        episodes=(0, 0, 5),
    )  # fmt: skip
    assert (report.false_positives.k, report.false_positives.n) == (1, 2)
    assert (report.detected.k, report.detected.n, report.early.k) == (2, 3, 1)
    assert report.delay == 0.5  # 0 and 1
    # 5 positives score .9 .1 .9 .1 .1; of the 10 negatives 2 score .9, 1 scores .7, 7 score .1.
    assert report.auc == pytest.approx((2 * (8 + 2 / 2) + 3 * (7 / 2)) / 50)
    assert report.to_json()["false_positives"]["high"] == pytest.approx(0.905, abs=1e-3)


def test_split_keeps_episodes_whole_and_both_kinds_in_each_part() -> None:
    success = [number % 4 == 0 for number in range(40)]
    parts = split_three_ways(success, SuccessFit(seed=3))
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert [sum(success[i] for i in part) for part in parts] == [6, 2, 2]
    assert [len(part) for part in parts] == [20, 10, 10]
    assert split_three_ways(success, SuccessFit(seed=4)) != parts
    with pytest.raises(DataError, match="successes"):
        split_three_ways([True, True, *[False] * 9], SuccessFit())


def test_the_detector_says_frame_by_frame_what_the_whole_episode_says(store: EpisodeStore, tmp_path: Path) -> None:
    classifier, _ = fit_success(store, SuccessConfig(hold=2), SuccessFit(num_steps=100, batch_size=64))
    save_checkpoint(tmp_path, step=100, tensors={"policy": classifier.state_dict()}, documents=classifier.documents())
    loaded, spec, _ = load_policy(tmp_path)
    assert (loaded.config, spec) == (classifier.config, SPEC)
    both = [store.episode(0), store.episode(1)]
    expected = [
        with_hysteresis(score_episode(classifier, each), on=loaded.config.on, off=loaded.config.off, hold=2)
        for each in both
    ]
    assert expected[0].any()
    detector = SuccessDetector(loaded, num_envs=2)
    for _ in range(2):  # the second time after a reset
        detector.reset(np.ones(2, dtype=bool))
        states = [np.concatenate([e.observation["state"][1:], e.final_observation["state"][None]]) for e in both]
        signals = np.stack([detector.update({"state": np.stack(frame)}) for frame in zip(*states, strict=True)])
        np.testing.assert_array_equal(signals.T, expected)


def test_refusals() -> None:
    with pytest.raises(DataError, match="Did you mean 'state'"):
        SuccessClassifier(SuccessConfig(keys=("stat",)), SPEC, Normalizer.identity({"state": 2}))
    with pytest.raises(DataError, match="off <= on"):
        SuccessClassifier(replace(SuccessConfig(), off=0.9), SPEC, Normalizer.identity({"state": 2}))
