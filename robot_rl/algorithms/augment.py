"""Random crop and colour jitter of images on their own device, from a passed generator; used in training only.

The To frames of one decision get the same crop and the same colours: what moves between them is then motion.
"""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Float, Shaped
from robot_rl.errors import ConfigError

# ITU-R BT.601 luma, as torchvision's and PIL's grey.
_GREY = (0.299, 0.587, 0.114)


def centre_crop(images: Shaped[Array, "B To H W C"], size: int) -> Shaped[Array, "B To h w C"]:
    """The middle `size` x `size` pixels; an odd rest leaves one row more below and one column more to the right.

    Raises:
        ConfigError: the image is smaller.
    """
    _check_size(images, size)
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def random_crop(
    images: Shaped[Array, "B To H W C"], size: int, generator: torch.Generator
) -> Shaped[Array, "B To h w C"]:
    """A window of `size` x `size` pixels of each row, every place equally likely.

    Raises:
        ConfigError: the image is smaller.
    """
    _check_size(images, size)
    batch, place, device = images.shape[0], generator.device, images.device
    corners = [
        torch.randint(images.shape[axis] - size + 1, (batch, 1), generator=generator, device=place).to(device)
        for axis in (2, 3)
    ]
    along = torch.arange(size, device=device)
    rows, columns = corners[0] + along, corners[1] + along
    row = torch.arange(batch, device=device)[:, None, None]
    # Advanced indices around a slice come out in front: (B, h, w, To, 3).
    return images[row, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2, 4)


def colour_jitter(
    images: Float[Array, "B To H W 3"], strength: float, generator: torch.Generator
) -> Float[Array, "B To H W 3"]:
    """Brightness, contrast and saturation of RGB in 0..1, each by a factor of U(1 - strength, 1 + strength), clipped.

    In this order; contrast is about the mean grey of each frame, saturation about each pixel's grey.

    Raises:
        ConfigError: a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ConfigError("jitter", expected="a strength in [0, 1]", got=str(strength), hint="Try 0.2.")
    drawn = torch.rand(3, images.shape[0], 1, 1, 1, 1, generator=generator, device=generator.device)
    brightness, contrast, saturation = (1 + strength * (2 * drawn - 1)).to(images.device, images.dtype)
    images = (images * brightness).clamp(0, 1)
    middle = _grey(images).mean(dim=(2, 3, 4), keepdim=True)
    images = (middle + contrast * (images - middle)).clamp(0, 1)
    grey = _grey(images)
    return (grey + saturation * (images - grey)).clamp(0, 1)


def _grey(images: torch.Tensor) -> torch.Tensor:
    return (images * torch.tensor(_GREY, device=images.device, dtype=images.dtype)).sum(-1, keepdim=True)


def _check_size(images: torch.Tensor, size: int) -> None:
    if not 1 <= size <= min(images.shape[2:4]):
        raise ConfigError(
            "crop", expected=f"1 to {min(images.shape[2:4])} pixels", got=str(size), hint="0 crops nothing."
        )
