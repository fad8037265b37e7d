"""How far a replay of recorded actions drifts from what was recorded: numbers only, nothing is played here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Int64
from robot_rl.data.element_names import names_of
from robot_rl.errors import ConfigError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

DEFAULT_THRESHOLD = 1e-4
IMAGE_THRESHOLD = 2.0


@dataclass(frozen=True)
class KeyDrift:
    """Drift of one observation key. Step 0 is the start, step t what action t led to.

    Attributes:
        unit: of the differences: that of the largest one's element, or "levels" (0..255) of an image.
        max_per_step, mean_per_step: largest and mean absolute difference over the elements, one entry a step.
        max_difference, mean_difference: over all steps.
        worst: step and name of the element with the largest difference.
        threshold: that `first_over` goes by.
        first_over: first step with a difference over the threshold, or None.
    """

    unit: str
    max_per_step: tuple[float, ...]
    mean_per_step: tuple[float, ...]
    max_difference: float
    mean_difference: float
    worst: str
    threshold: float
    first_over: int | None


@dataclass(frozen=True)
class EpisodeDrift:
    """One episode, recorded and replayed.

    Attributes:
        episode: index in the store.
        seed: that it was started from, or None on a robot.
        steps, played: actions recorded, and played before the environment ended the episode.
        keys: drift by observation key.
        success, replayed_success: at any step; None where nobody judged the replay (a robot).
        first_success, replayed_first_success: first action that led to success, or None.
    """

    episode: int
    seed: int | None
    steps: int
    played: int
    keys: Mapping[str, KeyDrift]
    success: bool
    replayed_success: bool | None
    first_success: int | None
    replayed_first_success: int | None

    @property
    def is_same(self) -> bool:
        """All actions played, no key over its threshold, and the same success."""
        over = any(key.first_over is not None for key in self.keys.values())
        agrees = self.replayed_success in (None, self.success)
        return not over and self.played == self.steps and agrees

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self) | {"same": self.is_same}


def thresholds_of(words: Mapping[str, float], spec: EnvSpec) -> dict[str, float]:
    """A threshold for every observation key.

    Args:
        words: key -> threshold; "" stands for all keys of numbers.
        spec: of the data.

    Raises:
        ConfigError: a key that the data do not have, or a threshold below 0.
    """
    numbers = words.get("", DEFAULT_THRESHOLD)
    out = {key: IMAGE_THRESHOLD if array.dtype == "uint8" else numbers for key, array in spec.observation.items()}
    for key, value in words.items():
        if key and key not in out:
            raise ConfigError(f"--threshold {key}", expected="an observation key", got=key, hint=closest(key, out))
        if not value >= 0:
            raise ConfigError(f"--threshold {key}", expected="0 or more", got=f"{value}", hint="In the key's own unit.")
        out |= {key: value} if key else {}
    return out


def drift_of(
    episode: Episode,
    frames: Mapping[str, Array],
    success: Bool[Array, " L"] | bool | None,
    *,
    spec: EnvSpec,
    thresholds: Mapping[str, float],
    index: int,
    seed: int | None,
    at: Int64[Array, " M"] | None = None,
) -> EpisodeDrift:
    """Compare an episode with its replay.

    Args:
        episode: as recorded, T actions.
        frames: key -> (M, ...): the start and what each of the L actions played led to, M = L + 1. Keys that the replay
            does not have are not compared.
        success: after each action played; one verdict on all of it; or None where nobody judged.
        spec: of the data.
        thresholds: key -> largest difference that counts as the same.
        index, seed: of the episode, for the report.
        at: steps of the frames, where some are missing (a robot's loop may skip some).
    """
    keys = {}
    rows = len(next(iter(frames.values())))
    steps = np.arange(rows) if at is None else at
    each = None if success is None or isinstance(success, bool) else success
    for key, array in spec.observation.items():
        if key not in frames:
            continue
        recorded = np.concatenate(
            [np.asarray(episode.observation[key]), np.asarray(episode.final_observation[key])[None]]
        )
        replayed = np.asarray(frames[key])
        keys[key] = _key_drift(recorded[steps], replayed, names_of(array), array.units, thresholds[key], steps)
    return EpisodeDrift(
        episode=index,
        seed=seed,
        steps=len(episode),
        played=int((steps < len(episode)).sum()) if each is None else len(each),
        keys=keys,
        success=bool(episode.success.any()),
        replayed_success=None if success is None else bool(np.any(success)),
        first_success=_first(episode.success),
        replayed_first_success=None if each is None else _first(each),
    )


def _key_drift(
    recorded: Array, replayed: Array, names: tuple[str, ...], units: tuple[str, ...], threshold: float, steps: Array
) -> KeyDrift:
    is_image = recorded.dtype == np.uint8
    gaps = np.abs(recorded.astype(np.float64) - replayed.astype(np.float64)).reshape(len(recorded), -1)
    # One pixel may differ by rounding; the mean over an image shows whether the scene does.
    largest = gaps.mean(axis=1) if is_image else gaps.max(axis=1)
    row = int(largest.argmax())
    element = int(gaps[row].argmax())
    step = int(steps[row])
    over = np.flatnonzero(largest > threshold)
    unit = "levels" if is_image else (units[element] if len(units) > 1 else units[0])
    place = f"step {step}" if is_image or len(names) != gaps.shape[1] else f"step {step}, {names[element]}"
    if not gaps.any():
        place = "nowhere"
    return KeyDrift(
        unit=unit,
        max_per_step=tuple(gaps.max(axis=1).tolist()),
        mean_per_step=tuple(gaps.mean(axis=1).tolist()),
        max_difference=float(gaps.max()),
        mean_difference=float(gaps.mean()),
        worst=place,
        threshold=threshold,
        first_over=int(steps[over[0]]) if over.size else None,
    )


def _first(success: Array) -> int | None:
    found = np.flatnonzero(success)
    return int(found[0]) if found.size else None
