"""Fit a success classifier to an EpisodeStore, calibrate its threshold, and say how far it can be trusted.

Labels: the store's `success` after action t belongs to the frame that action t led to; the first frame of an episode is
left out. Episodes are split as a whole into training, calibration and test, successes and failures apart. The thresholds
see the calibration episodes alone, the figures the test episodes alone. The figure that counts is the share of held-out
failures that the detector would have rewarded, with its interval: at 0 of 20, up to 16 % are still possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.detection import area_under_curve, calibrate_on, episode_peak, with_hysteresis
from robot_rl.algorithms.statistics import Proportion, proportion
from robot_rl.arrays import Array, Bool, Float64
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.data.store import EpisodeStore
from robot_rl.errors import DataError
from robot_rl.types import Episode

from .success import IMAGE, SuccessClassifier, SuccessConfig


@dataclass(frozen=True)
class SuccessFit:
    """How the classifier is trained and calibrated.

    Attributes:
        num_steps: gradient steps.
        batch_size: frames a step, half of them successes.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        calibration_fraction, test_fraction: shares of the successes and of the failures that are held out.
        false_positive_rate: share of the calibration failures that `on` may let pass.
        release: off = on - release, in log odds.
        seed: of the split, the weights and the batches.
    """

    num_steps: int = 1_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    calibration_fraction: float = 0.25
    test_fraction: float = 0.25
    false_positive_rate: float = 0.0
    release: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class SuccessReport:
    """Figures on the test episodes, which neither weights nor thresholds have seen.

    Attributes:
        auc: area under the curve over all frames; None when the test episodes hold frames of one kind only.
        false_positives: failures in which the detector ever went on.
        detected: successes in which it went on at the first success or later.
        early: successes in which it went on before the first success: rewarded for nothing.
        delay: mean frames from the first success to the detection, of those detected; None without any.
        on, off, hold: of the detector.
        episodes: number of training, calibration and test episodes.
    """

    auc: float | None
    false_positives: Proportion
    detected: Proportion
    early: Proportion
    delay: float | None
    on: float
    off: float
    hold: int
    episodes: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self) | {"episodes": list(self.episodes)}


@dataclass(frozen=True)
class SuccessTask:
    """What the stage `success` builds: the classifier and how it is trained.

    Attributes:
        classifier: see SuccessConfig.
        fit: see SuccessFit.
    """

    classifier: SuccessConfig = field(default_factory=SuccessConfig)
    fit: SuccessFit = field(default_factory=SuccessFit)


class SuccessFitter:
    """A component of the stage `success`. Called with a store, it returns the classifier and its figures.

    Args:
        config: see SuccessTask.
    """

    def __init__(self, config: SuccessTask) -> None:
        self.config = config

    def __call__(self, store: EpisodeStore, *, seed: int) -> tuple[SuccessClassifier, dict[str, Any]]:
        """See fit_success; `seed` replaces that of the configuration."""
        classifier, report = fit_success(store, self.config.classifier, replace(self.config.fit, seed=seed))
        return classifier, report.to_json()


def fit_success(store: EpisodeStore, config: SuccessConfig, fit: SuccessFit) -> tuple[SuccessClassifier, SuccessReport]:
    """Train, calibrate and test.

    Args:
        store: episodes that succeeded and episodes that failed, at least 3 of each.
        config: of the classifier; its `on` and `off` are replaced by the calibrated ones.
        fit: see SuccessFit.

    Raises:
        DataError: too few episodes of one kind, or a key that the store does not have.
    """
    episodes = [store.episode(index) for index in range(len(store))]
    training, calibration, test = split_three_ways([bool(each.success.any()) for each in episodes], fit)
    classifier = _train([episodes[i] for i in training], store, config, fit)
    scored = {i: score_episode(classifier, episodes[i]) for i in (*calibration, *test)}
    peaks: dict[bool, list[float]] = {True: [], False: []}
    for i in calibration:
        peaks[bool(episodes[i].success.any())].append(episode_peak(scored[i], hold=config.hold))
    allowed = int(fit.false_positive_rate * len(peaks[False]))
    on = calibrate_on(peaks[True], peaks[False], allowed=allowed)
    classifier.config = replace(config, on=on, off=on - fit.release)
    labels = [np.asarray(episodes[i].success, dtype=bool) for i in test]
    sizes = (len(training), len(calibration), len(test))
    return classifier, success_report([scored[i] for i in test], labels, config=classifier.config, episodes=sizes)


def success_report(
    scores: Sequence[Float64[Array, "_"]],
    labels: Sequence[Bool[Array, "_"]],
    *,
    config: SuccessConfig,
    episodes: tuple[int, int, int],
) -> SuccessReport:
    """Figures of a detector on episodes of scores and labels.

    Args:
        scores: log odds of every frame, one array an episode.
        labels: success of every frame.
        config: its thresholds.
        episodes: sizes of the split, for the record.

    Raises:
        DataError: no success or no failure among the episodes.
    """
    signals = [with_hysteresis(score, on=config.on, off=config.off, hold=config.hold) for score in scores]
    failures = [signal for signal, label in zip(signals, labels, strict=True) if not label.any()]
    delays, early, successes = [], 0, 0
    for signal, label in zip(signals, labels, strict=True):
        if label.any():
            first, successes = int(label.argmax()), successes + 1
            early += bool(signal[:first].any())
            if signal[first:].any():
                delays.append(int(signal[first:].argmax()))
    every_score, every_label = np.concatenate(list(scores)), np.concatenate(list(labels))
    return SuccessReport(
        auc=None if every_label.all() or not every_label.any() else area_under_curve(every_score, every_label),
        false_positives=proportion(sum(bool(signal.any()) for signal in failures), len(failures)),
        detected=proportion(len(delays), successes),
        early=proportion(early, successes),
        delay=float(np.mean(delays)) if delays else None,
        on=config.on,
        off=config.off,
        hold=config.hold,
        episodes=episodes,
    )


def split_three_ways(success: Sequence[bool], fit: SuccessFit) -> tuple[list[int], list[int], list[int]]:
    """Sorted indices of the training, calibration and test episodes; each part gets successes and failures.

    Raises:
        DataError: fewer than 3 episodes of a kind, or fractions that leave nothing to train on.
    """
    rng = np.random.default_rng(fit.seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for kind in (True, False):
        chosen = rng.permutation([i for i, each in enumerate(success) if each is kind])
        held = [max(1, round(share * len(chosen))) for share in (fit.calibration_fraction, fit.test_fraction)]
        if len(chosen) - sum(held) < 1:
            raise DataError(
                f"{'successes' if kind else 'failures'} for the success classifier",
                expected="at least 3, and fractions that leave some to train on", got=f"{len(chosen)}",
                hint="Record more episodes of this kind; failures tell most about false rewards.",
            )  # fmt: skip
        bounds = np.cumsum(held)
        for part, indices in zip(
            parts, np.split(chosen, [len(chosen) - bounds[1], len(chosen) - bounds[0]]), strict=True
        ):
            part.extend(int(index) for index in indices)
    return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])


def score_episode(classifier: SuccessClassifier, episode: Episode) -> Float64[Array, " T"]:
    """Log odds of the frame behind every action."""
    score: np.ndarray = classifier.score(_frames(episode, classifier.config.keys))
    return score.astype(np.float64)


def _frames(episode: Episode, keys: tuple[str, ...]) -> dict[str, Array]:
    """The frame that every action led to."""
    return {key: np.concatenate([episode.observation[key][1:], episode.final_observation[key][None]]) for key in keys}


def _train(
    episodes: Sequence[Episode], store: EpisodeStore, config: SuccessConfig, fit: SuccessFit
) -> SuccessClassifier:
    if missing := [key for key in config.keys if key not in store.spec.observation]:
        raise DataError(
            str(store.path), expected=f"observation keys {config.keys}", got=f"no {missing[0]!r}",
            hint=f"It has {', '.join(store.spec.observation)}.",
        )  # fmt: skip
    parts = [_frames(episode, config.keys) for episode in episodes]
    frames = {key: torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in config.keys}
    label = torch.from_numpy(np.concatenate([episode.success for episode in episodes]))
    plain = [key for key in config.keys if not key.startswith(IMAGE)]
    flat = {key: frames[key].flatten(1) for key in plain}
    torch.manual_seed(fit.seed)
    classifier = SuccessClassifier(
        config, store.spec, Normalizer.fit(flat, dict.fromkeys(plain, NormalizerMode.standard))
    )
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    generator = torch.Generator().manual_seed(fit.seed)
    kinds = [torch.nonzero(label == kind).flatten() for kind in (True, False)]
    half = max(fit.batch_size // 2, 1)
    target = torch.cat([torch.ones(half), torch.zeros(half)])
    for _ in range(fit.num_steps):
        rows = torch.cat([kind[torch.randint(len(kind), (half,), generator=generator)] for kind in kinds])
        batch: Mapping[str, torch.Tensor] = {key: value[rows] for key, value in frames.items()}
        loss = torch.nn.functional.binary_cross_entropy_with_logits(classifier(batch), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()
