"""Reads a LeRobot export back as an import would, and compares every episode with the store it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_rl.data.episode_stream import stored_episodes
from robot_rl.data.formats.card_reader import CardReader
from robot_rl.data.formats.lerobot import LeRobotSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.data.video import psnr_db
from robot_rl.errors import DataError
from robot_rl.types import Episode

MIN_PSNR_DB = 30.0
# A shifted copy of a moving scene fits much worse than the right one; noise alone stays near 1.
_SHIFT_RATIO = 0.8


def verify(store: EpisodeStore, path: Path, card: SpecCard) -> float:
    """Compare; the worst PSNR of any frame in dB, infinite where all images came back exactly.

    Raises:
        DataError: the card can't describe the store, or an episode differs.
    """
    source, worst = LeRobotSource(path), float("inf")
    reader = CardReader(source, card)
    try:
        if reader.spec != store.spec:
            raise DataError(
                f"{store.path}, spec", expected="arrays that a card can describe: flat float32, points and uint8 images",
                got="another kind", hint="Nothing was written. Copy the store.",
            )  # fmt: skip
        for index, episode in stored_episodes(store):
            if isinstance(episode, DataError):
                raise episode
            back = reader.read(index)
            if differences := _differences(episode, back):
                raise DataError(
                    f"{path}, {reader.names[index]}", expected="what the store holds", got=f"others: {', '.join(differences)}",
                    hint="Nothing was written. The disk, or robot-rl, is at fault.",
                )  # fmt: skip
            for key in store.spec.observation:
                if key.startswith("image/"):
                    where = f"{reader.names[index]}, {key}"
                    worst = min(worst, _worst_frame(episode.observation[key], back.observation[key], where=where))
    finally:
        reader.close()
    return worst


def _differences(ours: Episode, theirs: Episode) -> list[str]:
    pairs = [
        (key, getattr(ours, key), getattr(theirs, key)) for key in ("action", "reward", "success", "source", "time")
    ]
    pairs += [(key, value, theirs.observation[key]) for key, value in ours.observation.items() if "image/" not in key]
    pairs += [(f"final {key}", value, theirs.final_observation[key]) for key, value in ours.final_observation.items()]
    plain = [key for key in ("terminated", "truncated") if getattr(ours, key) != getattr(theirs, key)]
    plain += ["metadata"] * ("collector" in ours.metadata and dict(ours.metadata) != dict(theirs.metadata))
    return plain + [
        name for name, a, b in pairs if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a, b)
    ]


def _worst_frame(images: np.ndarray, back: np.ndarray, *, where: str) -> float:
    """The worst PSNR, where every frame is in its place."""
    if np.array_equal(images, back):
        return float("inf")
    worth = [psnr_db(a, b) for a, b in zip(images, back, strict=True)]
    worst = int(np.argmin(worth))
    if worth[worst] < MIN_PSNR_DB:
        raise DataError(
            f"{where}, frame {worst}", expected=f"at least {MIN_PSNR_DB:g} dB PSNR after the codec",
            got=f"{worth[worst]:.1f} dB", hint='Nothing was written. Export with images="png".',
        )  # fmt: skip
    if len(images) > 2:
        middle = back[1:-1].astype(np.int32)
        before, here, after = (
            float(np.square(middle - images[1 + shift : len(images) - 1 + shift]).mean()) for shift in (-1, 0, 1)
        )
        if min(before, after) < _SHIFT_RATIO * here:
            raise DataError(
                where, expected="each frame in its place", got="frames that fit their neighbours better",
                hint="Nothing was written. This is a bug of the encoder.",
            )  # fmt: skip
    return worth[worst]
