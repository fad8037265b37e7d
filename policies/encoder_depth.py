"""Depth images -> one vector: the network of encoder_images.py with one channel, metres scaled to -1 (nearest) .. 1.

The range is that of the spec where it states one, else ImageEncoderConfig.depth_m. Beyond it depths are clipped. A pixel
without a surface (0, or not finite) counts as the farthest: nothing is in the way there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from robot_rl.arrays import Array, Float32
from robot_rl.errors import PolicyError
from robot_rl.specs import ArraySpec

from .encoder_images import ImageEncoder, ImageEncoderConfig


class DepthEncoder(ImageEncoder):
    """One network for depth images of one size, trained from scratch. `size` is that of its feature.

    Args:
        config: see ImageEncoderConfig.
        spec: of the camera: float32, (H, W, 1), m.

    Raises:
        PolicyError: another kind of image or unit, a configuration that does not fit it, or no range.
    """

    dtype, channels = torch.float32, 1

    def __init__(self, config: ImageEncoderConfig, spec: ArraySpec) -> None:
        super().__init__(replace(config, pretrained="", licence=""), spec)
        self.near_m, self.far_m = depth_range(config, spec)

    def scaled(self, depth_m: Float32[Array, "..."]) -> Float32[Array, "..."]:
        """Metres to -1 .. 1."""
        is_surface = torch.isfinite(depth_m) & (depth_m > 0)
        metres = torch.where(is_surface, depth_m, self.far_m).clamp(self.near_m, self.far_m)
        return 2 * (metres - self.near_m) / (self.far_m - self.near_m) - 1

    def _pixels(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Scaled depth, float32 (B * To, 1, h, w)."""
        # Scaled first: between a surface and a pixel without one, a mean of metres would mean nothing.
        return self._resized(self.scaled(self._cropped(images, generator)))


def depth_range(config: ImageEncoderConfig, spec: ArraySpec) -> tuple[float, float]:
    """Nearest and farthest depth in metres, from the spec or else the configuration.

    Raises:
        PolicyError: a spec in another unit, or two numbers that are no range.
    """
    if spec.units != ("m",) and set(spec.units) != {"m"}:
        raise PolicyError(
            f"encoder of {spec.name!r}", expected="depth in m", got=", ".join(sorted(set(spec.units))),
            hint="Convert it; the spec says in `units` what it is.",
        )  # fmt: skip
    is_stated = spec.low is not None and spec.high is not None
    found = (min(spec.low or ()), max(spec.high or ())) if is_stated else config.depth_m
    if len(found) != 2 or not all(map(math.isfinite, found)) or not 0 <= found[0] < found[1]:
        raise PolicyError(
            f"encoder of {spec.name!r}", expected="a range in m, nearest and farthest", got=str(found),
            hint="Set policy.encoder.images.depth_m=[0.2,1.5], or low and high in the spec.",
        )  # fmt: skip
    return float(found[0]), float(found[1])
