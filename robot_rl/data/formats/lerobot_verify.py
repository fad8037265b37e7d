"""Reads a LeRobot export back as an import would, and compares every episode with the store it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_rl.data.formats.exporting import verify_export
from robot_rl.data.formats.lerobot import LeRobotSource
from robot_rl.data.formats.spec_card import SpecCard
from robot_rl.data.store import EpisodeStore
from robot_rl.data.video import MIN_PSNR_DB, is_out_of_place, neighbour_errors, psnr_db
from robot_rl.errors import DataError


def verify(store: EpisodeStore, path: Path, card: SpecCard) -> float:
    """Compare; the worst PSNR of any frame in dB, infinite where all images came back exactly.

    Raises:
        DataError: the card can't describe the store, or an episode differs.
    """
    worst, cameras = float("inf"), [key for key in store.spec.observation if key.startswith("image/")]
    compared = verify_export(
        store, LeRobotSource(path), card, hint="Copy the store.", may_differ=lambda key: key.startswith("image/")
    )
    for name, episode, back in compared:
        for key in cameras:
            found = _worst_frame(episode.observation[key], back.observation[key], where=f"{name}, {key}")
            worst = min(worst, found)
    return worst


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
    if is_out_of_place(np.sum([neighbour_errors(image, images, number) for number, image in enumerate(back)], axis=0)):
        raise DataError(
            where, expected="each frame in its place", got="frames that fit their neighbours better",
            hint="Nothing was written. This is a bug of the encoder.",
        )  # fmt: skip
    return worth[worst]
