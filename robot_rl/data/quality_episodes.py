"""Episodes against each other: copies, repeated seeds, starts that are all the same, and how many of them succeed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.data.quality import Finding, Limits, Place, Severity, delete_command
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode

POINTS = 16
_MOST_COMPARED = 20_000
_BLOCK = 1024


@dataclass(frozen=True)
class EpisodeTrace:
    """What is kept of an episode to compare it with others.

    Attributes:
        steps: its length.
        seed: -1 for none.
        source: highest code of its steps.
        success: at any step.
        digest: of all its actions and observations.
        path: its low-dimensional trajectory at `POINTS` moments, float32 (POINTS, D).
        start: its first observation, cameras made small, float32 (F,).
    """

    steps: int
    seed: int
    source: int
    success: bool
    digest: bytes
    path: Float32[Array, "points D"]
    start: Float32[Array, " F"]


def trace(episode: Episode, spec: EnvSpec) -> EpisodeTrace:
    """Of one episode, by the observations of `spec`."""
    steps, keys = len(episode), sorted(spec.observation)
    digest = hashlib.blake2b(np.ascontiguousarray(episode.action).tobytes(), digest_size=16)
    moments = np.linspace(0, steps - 1, POINTS).round().astype(int)
    path, start = [np.asarray(episode.action).reshape(steps, -1)[moments]], []
    for key in keys:
        rows = np.ascontiguousarray(episode.observation[key])
        digest.update(rows.reshape(-1).view(np.uint8).data)
        if spec.observation[key].dtype != "uint8":
            if spec.observation[key].size <= 256:
                path.append(rows.reshape(steps, -1)[moments])
            start.append(rows[0].reshape(-1)[:4096])
        elif rows.ndim == 4:
            strides = tuple(max(1, size // 8) for size in rows.shape[1:3])
            start.append(rows[0, :: strides[0], :: strides[1]].reshape(-1) / 255)
    seed = episode.metadata.get("seed", -1)
    return EpisodeTrace(
        steps=steps,
        seed=seed if isinstance(seed, int) else -1,
        source=int(episode.source.max()),
        success=bool(episode.success.any()),
        digest=digest.digest(),
        path=np.concatenate(path, axis=1).astype(np.float32),
        start=np.concatenate(start).astype(np.float32) if start else np.zeros(0, np.float32),
    )


def duplicate_findings(traces: Sequence[EpisodeTrace], limits: Limits) -> Iterator[Finding]:
    """Exact copies by digest, then near ones by distance of their resampled trajectories."""
    first: dict[bytes, int] = {}
    copies = set[int]()
    for number, one in enumerate(traces):
        original = first.setdefault(one.digest, number)
        if original != number:
            copies.add(number)
            yield Finding(
                "duplicate", Severity.warning, Place(number), f"an exact copy of episode {original}", 0.0,
                f"It counts twice, and may be in training and validation: {delete_command(number)}",
                episodes=(number,),
            )  # fmt: skip
    others = [number for number in range(len(traces)) if number not in copies][:_MOST_COMPARED]
    for left, right, distance in near_pairs([traces[number] for number in others], limits.near):
        yield Finding(
            "near_duplicate", Severity.note, Place(others[right]),
            f"nearly episode {others[left]}: {distance:.2g} standard deviations apart", distance,
            f"See whether one was recorded twice: robot-rl data view STORE --episode {others[right]}",
            episodes=(others[right],),
        )  # fmt: skip


def near_pairs(traces: Sequence[EpisodeTrace], limit: float) -> Iterator[tuple[int, int, float]]:
    """(earlier, later, distance) for every episode that is nearer than `limit` to an earlier one of nearly its length."""
    if len(traces) < 2:
        return
    paths = np.stack([one.path for one in traces]).astype(np.float64)
    std = paths.reshape(-1, paths.shape[2]).std(axis=0)
    flat = (paths[:, :, std > 1e-9] / std[std > 1e-9]).reshape(len(traces), -1)
    if not flat.shape[1] or not np.isfinite(flat).all():
        return
    # Near the mean of all the rounding of a difference of squares is smallest.
    flat = (flat - flat.mean(axis=0)) / np.sqrt(flat.shape[1])
    squares, steps = (flat**2).sum(axis=1), np.array([one.steps for one in traces])
    for begin in range(0, len(traces), _BLOCK):
        stop = min(begin + _BLOCK, len(traces))
        distance = np.sqrt(np.maximum(squares[begin:stop, None] + squares - 2 * flat[begin:stop] @ flat.T, 0))
        is_earlier = np.arange(len(traces)) < np.arange(begin, stop)[:, None]
        is_alike = np.abs(steps - steps[begin:stop, None]) <= 0.05 * steps
        distance = np.where(is_earlier & is_alike, distance, np.inf)
        for row in np.flatnonzero((distance < limit).any(axis=1)):
            nearest = int(np.argmin(distance[row]))
            yield nearest, begin + int(row), float(distance[row, nearest])


def seed_findings(traces: Sequence[EpisodeTrace]) -> Iterator[Finding]:
    """One seed in several episodes."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, one in enumerate(traces):
        if one.seed >= 0:
            groups.setdefault((one.seed, one.source), []).append(number)
    repeated = {key: numbers for key, numbers in groups.items() if len(numbers) > 1}
    if repeated:
        (seed, _), numbers = next(iter(repeated.items()))
        later = tuple(number for group in repeated.values() for number in group[1:])
        yield Finding(
            "repeated_seed", Severity.warning, Place(numbers[1]),
            f"seed {seed}, as episode {numbers[0]}; {len(later)} episodes repeat a seed of the same source",
            float(len(later)), "They begin in one state: collect with another first_seed.", len(later), later,
        )  # fmt: skip


def start_findings(traces: Sequence[EpisodeTrace]) -> Iterator[Finding]:
    """Episodes that all begin in one state, or in very few."""
    if len(traces) < 3 or not traces[0].start.size:
        return
    starts = np.stack([one.start for one in traces])
    width = np.maximum(np.abs(starts).max(axis=0), 1e-6)
    distinct = len(np.unique(np.round(starts / width, 4), axis=0))
    if distinct == 1:
        yield Finding(
            "same_start", Severity.warning, Place(0, 0), f"all {len(traces)} episodes begin in the same state", 1.0,
            "A policy can't learn what it never saw, and its success rate will be 0 or 100 %: vary the start.",
        )  # fmt: skip
    elif distinct < 0.5 * len(traces):
        yield Finding(
            "few_starts", Severity.note, Place(0, 0), f"{len(traces)} episodes begin in {distinct} states",
            float(distinct), "Vary the start.",
        )  # fmt: skip


def success_share_findings(traces: Sequence[EpisodeTrace], spec: EnvSpec, limits: Limits) -> Iterator[Finding]:
    """How many succeed at any step."""
    won = sum(one.success for one in traces)
    if not spec.has_success or not traces:
        return
    if won == 0:
        yield Finding(
            "no_success", Severity.error, Place(), f"none of {len(traces)} episodes succeeds", 0.0,
            "If they do, label them: robot-rl data relabel STORE --success last_step; otherwise there is nothing to imitate.",
        )  # fmt: skip
    elif won < limits.few_successes * len(traces):
        yield Finding(
            "few_successes", Severity.warning, Place(), f"{won} of {len(traces)} episodes succeed", won / len(traces),
            "Imitation learns the failures too: imitate the successes only, or improve on them with `robot-rl offline`.",
        )  # fmt: skip
