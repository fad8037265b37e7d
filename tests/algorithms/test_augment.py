"""Crops and colours: hand numbers, all places reached, frames of one decision treated alike."""

from __future__ import annotations

import pytest
import torch

from robot_rl.algorithms.augment import centre_crop, colour_jitter, random_crop
from robot_rl.errors import ConfigError


def numbered(batch: int = 1, frames: int = 1, size: int = 4) -> torch.Tensor:
    """Pixel (r, c) of every frame has the value 10 r + c in all channels."""
    rows = 10 * torch.arange(size)[:, None] + torch.arange(size)
    return rows[None, None, :, :, None].expand(batch, frames, size, size, 3).to(torch.uint8)


def test_the_middle() -> None:
    assert centre_crop(numbered(), 2)[0, 0, :, :, 0].tolist() == [[11, 12], [21, 22]]
    assert centre_crop(numbered(), 3)[0, 0, 0, 0, 0] == 0
    with pytest.raises(ConfigError, match="1 to 4 pixels"):
        centre_crop(numbered(), 5)


def test_random_windows_are_windows_reach_every_place_and_keep_frames_together() -> None:
    images = numbered(900, 2)
    images = torch.stack([images[:, 0], images[:, 1] + 100], dim=1)
    cropped = random_crop(images, 2, torch.Generator().manual_seed(0))
    corner = cropped[:, 0, 0, 0, 0].long()
    assert torch.equal(cropped[:, 0, 1, 1, 2].long(), corner + 11)
    assert torch.equal(cropped[:, 1].long(), cropped[:, 0].long() + 100)
    places, counts = corner.unique(return_counts=True)
    assert places.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    # Binomial(900, 1/9): five standard deviations.
    assert bool(((counts - 100).abs() < 5 * (900 / 9 * 8 / 9) ** 0.5).all())
    assert torch.equal(cropped, random_crop(images, 2, torch.Generator().manual_seed(0)))
    assert torch.equal(random_crop(images, 4, torch.Generator()), images)


def test_colours_against_the_formulas_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.4 * torch.rand(2, 1, 3, 3, 3, generator=generator, dtype=torch.float64)
    got = colour_jitter(images, 0.1, torch.Generator().manual_seed(5))
    drawn = torch.rand(3, 2, 1, 1, 1, 1, generator=torch.Generator().manual_seed(5)).flatten(1)
    for row in range(2):
        b, c, s = (1 + 0.1 * (2 * drawn[:, row].double() - 1)).tolist()
        pixels = images[row, 0] * b
        grey = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
        pixels = grey.mean() + c * (pixels - grey.mean())
        grey = (0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2])[..., None]
        torch.testing.assert_close(got[row, 0], grey + s * (pixels - grey), rtol=1e-6, atol=1e-7)


def test_colours_differ_between_decisions_not_between_frames_and_stay_in_range() -> None:
    images = torch.rand(1, 1, 4, 4, 3, generator=torch.Generator().manual_seed(1)).expand(8, 2, 4, 4, 3)
    got = colour_jitter(images, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(got[:, 0], got[:, 1])
    assert len({float(row.sum()) for row in got}) == 8
    assert float(got.min()) >= 0
    assert float(got.max()) <= 1
    torch.testing.assert_close(colour_jitter(images, 0.0, torch.Generator()), images, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="strength"):
        colour_jitter(images, 1.5, torch.Generator())
