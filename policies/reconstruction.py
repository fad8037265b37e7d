"""Decoders of features, for training alone: points, pixels of a small image, proprio (RL-100, section 1.2)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn import functional

from robot_rl.algorithms.representation import chamfer, squared_error
from robot_rl.arrays import Array, Float32, Shaped
from robot_rl.errors import PolicyError

SEED_PIXELS = 4


@runtime_checkable
class Decoder(Protocol):
    """Says how far what a feature holds is from what was seen."""

    def error(self, feature: Float32[Array, "B F"], seen: Shaped[Array, "B ..."]) -> Float32[Array, " B"]:
        """Reconstruction error of every row, in normalised units; with gradient to the feature."""
        ...


class PointDecoder(nn.Module):
    """F -> 512 -> 1024 -> `number` points, compared by Chamfer distance with as many of the points seen."""

    def __init__(self, size: int, number: int) -> None:
        super().__init__()
        self.number = number
        self.layers = nn.Sequential(
            nn.Linear(size, 512), nn.LayerNorm(512), nn.ReLU(),
            nn.Linear(512, 1024), nn.LayerNorm(1024), nn.ReLU(), nn.Linear(1024, 3 * number),
        )  # fmt: skip

    def error(self, feature: Float32[Array, "B F"], seen: Float32[Array, "B M D"]) -> Float32[Array, " B"]:
        """Chamfer distance; of more than `number` points seen every k-th is taken (sampled points have no order)."""
        every = max(1, seen.shape[1] // self.number)
        return chamfer(self.layers(feature).unflatten(1, (self.number, 3)), seen[:, ::every, :3].contiguous())


class PixelDecoder(nn.Module):
    """F -> a map of 4 x 4, doubled until `pixels` a side, compared with the image seen, shrunk to this size, in 0..1."""

    def __init__(self, size: int, pixels: int, *, channels: int = 3) -> None:
        super().__init__()
        doublings = (pixels // SEED_PIXELS).bit_length() - 1
        if pixels != SEED_PIXELS * 2**doublings or doublings < 0:
            raise PolicyError(
                "representation.pixels", expected="4, 8, 16, 32, 64, ...", got=str(pixels), hint="32 is enough."
            )
        self.pixels, width = pixels, 64
        self.start = nn.Linear(size, width * SEED_PIXELS**2)
        layers: list[nn.Module] = []
        for _ in range(doublings):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, max(8, width // 2), 3, padding=1), nn.ReLU()]
            width = max(8, width // 2)
        self.layers = nn.Sequential(nn.ReLU(), *layers, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())

    def error(self, feature: Float32[Array, "B F"], seen: Shaped[Array, "B H W 3"]) -> Float32[Array, " B"]:
        """Mean squared error of RGB in 0..1."""
        return self._error(feature, seen.float() / 255)

    def _error(self, feature: Float32[Array, "B F"], seen: Float32[Array, "B H W C"]) -> Float32[Array, " B"]:
        wanted = functional.adaptive_avg_pool2d(seen.permute(0, 3, 1, 2), self.pixels)
        return squared_error(self.layers(self.start(feature).unflatten(1, (-1, SEED_PIXELS, SEED_PIXELS))), wanted)


class DepthDecoder(PixelDecoder):
    """As PixelDecoder, of one channel."""

    def __init__(self, size: int, pixels: int) -> None:
        super().__init__(size, pixels, channels=1)

    def error(self, feature: Float32[Array, "B F"], seen: Float32[Array, "B H W 1"]) -> Float32[Array, " B"]:
        """Mean squared error of depths that are scaled to -1 .. 1, in halves of that range."""
        return self._error(feature, (seen + 1) / 2)


class VectorDecoder(nn.Module):
    """F -> 128 -> the numbers of proprio or state, normalised."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, outputs))

    def error(self, feature: Float32[Array, "B F"], seen: Float32[Array, "B P"]) -> Float32[Array, " B"]:
        """Mean squared error."""
        return squared_error(self.layers(feature), seen)


def decoder_of(key: str, size: int, shape: tuple[int, ...], *, points: int, pixels: int) -> nn.Module:
    """The decoder of an observation key.

    Args:
        key: "points", "image/<camera>", "depth/<camera>", "proprio" or "state".
        size: of the feature.
        shape: of one frame of the observation.
        points: that are decoded, no more than there are.
        pixels: a side of the decoded image.

    Raises:
        PolicyError: pixels that are no doubling of 4.
    """
    if key == "points":
        return PointDecoder(size, min(points, shape[0]))
    if key.startswith("image/"):
        return PixelDecoder(size, pixels)
    if key.startswith("depth/"):
        return DepthDecoder(size, pixels)
    return VectorDecoder(size, shape[0])
