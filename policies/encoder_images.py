"""Images -> one vector: uint8 RGB in, preprocessing inside, so that training, evaluation and export see the same pixels.

crop (random in training, else the middle) -> 0..1 -> colour jitter (in training) -> resize -> (x - mean) / std ->
ResNet or ViT -> spatial softmax (Finn et al. 2016, arXiv 1509.06113) or mean -> linear and LayerNorm.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn
from torch.nn import functional

from robot_rl.algorithms.augment import centre_crop, colour_jitter, random_crop
from robot_rl.arrays import Array, Float32, Shaped
from robot_rl.errors import PolicyError
from robot_rl.specs import ArraySpec

from .resnet import ResNet
from .vit import VisionTransformer

log = logging.getLogger(__name__)

# PushCube from 64 pixels: 48 and 53 of 100 with a last map of 2 x 2 (docs/vision.md).
LEAST_PLACES = 4


class Backbone(str, Enum):
    """Which network looks at an image."""

    resnet18 = "resnet18"
    resnet34 = "resnet34"
    vit = "vit"


class Pooling(str, Enum):
    """How a ResNet's map becomes a vector: where each of `keypoints` channels is (softmax), or the mean of the map."""

    spatial_softmax = "spatial_softmax"
    mean = "mean"


@dataclass(frozen=True)
class ImageEncoderConfig:
    """How images are encoded.

    Attributes:
        backbone: see Backbone.
        width: channels of a ResNet's first stage (64 in the paper), or of a ViT's token.
        num_stages: of a ResNet, 1 to 4; each halves the map.
        num_blocks, heads, patch: of a ViT.
        pooling: see Pooling; a ViT gives its class token.
        keypoints: of the spatial softmax.
        size: of a camera's feature.
        is_shared: one network for all cameras, else one each.
        crop: pixels a side that are kept of the camera's image; 0: all.
        jitter: strength of brightness, contrast and saturation in training, 0 to 1.
        image_size: pixels a side that the network sees; 0: what the crop leaves.
        mean, std: of RGB in 0..1, subtracted and divided by.
        pretrained: file of weights that stay as they are (pretrained.py); "": trained here. Read once, by `imitate`.
        licence: of these weights, as their card says; to be stated by whoever uses them.
        depth_m: nearest and farthest depth that a depth image tells apart, where its spec states no range
            (encoder_depth.py: same network, without jitter, mean, std and pretrained weights).
    """

    backbone: Backbone = Backbone.resnet18
    width: int = 64
    num_stages: int = 4
    num_blocks: int = 4
    heads: int = 4
    patch: int = 8
    pooling: Pooling = Pooling.spatial_softmax
    keypoints: int = 32
    size: int = 64
    is_shared: bool = False
    crop: int = 0
    jitter: float = 0.0
    image_size: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pretrained: str = ""
    licence: str = ""
    depth_m: tuple[float, ...] = (0.0, 2.0)


class SpatialSoftmax(nn.Module):
    """Expected place of each channel's softmax: (B, C, H, W) -> (B, 2 C), x then y of every channel, in [-1, 1]."""

    def forward(self, maps: Float32[Array, "B C H W"]) -> Float32[Array, "B D"]:
        """A map of one row or column has its place at 0."""
        rows, columns = maps.shape[-2:]
        weight = maps.flatten(2).softmax(dim=-1).reshape(maps.shape)
        x = (weight.sum(dim=-2) * _places(columns, maps)).sum(-1)
        y = (weight.sum(dim=-1) * _places(rows, maps)).sum(-1)
        return torch.cat([x, y], dim=1)


def _places(number: int, like: torch.Tensor) -> torch.Tensor:
    if number == 1:
        return like.new_zeros(1)
    return torch.linspace(-1, 1, number, device=like.device, dtype=like.dtype)


class ImageEncoder(nn.Module):
    """One network for images of one size. `size` is that of its feature.

    Args:
        config: see ImageEncoderConfig.
        spec: of the camera: uint8, (H, W, 3).

    Raises:
        PolicyError: another kind of image, or a configuration that does not fit it.
    """

    mean: torch.Tensor
    std: torch.Tensor
    dtype, channels = torch.uint8, 3

    def __init__(self, config: ImageEncoderConfig, spec: ArraySpec) -> None:
        super().__init__()
        self.config, self.size, self.shape = config, config.size, tuple(spec.shape)
        check_image_spec(config, spec, channels=self.channels)
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.std), persistent=False)
        self.backbone, features, self.pool = self._network()
        self.project = nn.Sequential(nn.Linear(features, config.size), nn.LayerNorm(config.size))
        if config.pretrained:
            self.backbone.requires_grad_(False)

    def _network(self) -> tuple[nn.Module, int, nn.Module]:
        config = self.config
        if config.backbone is Backbone.vit:
            seen = seen_size(config, self.shape)
            sizes = {
                "width": config.width,
                "num_blocks": config.num_blocks,
                "heads": config.heads,
                "patch": config.patch,
                "channels": self.channels,
            }
            return VisionTransformer(seen[0], **sizes), config.width, nn.Identity()
        network = ResNet(
            config.backbone.value, width=config.width, num_stages=config.num_stages, is_frozen=bool(config.pretrained),
            channels=self.channels,
        )  # fmt: skip
        if config.pooling is Pooling.mean:
            return network, network.channels, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        _require_places(config, seen_size(config, self.shape), network.reduction)
        keypoints = nn.Conv2d(network.channels, config.keypoints, 1)
        return network, 2 * config.keypoints, nn.Sequential(keypoints, SpatialSoftmax())

    def forward(
        self, images: Shaped[Array, "B To H W C"], generator: torch.Generator | None = None
    ) -> Float32[Array, "B To F"]:
        """Feature of every frame; with a generator crop and colours are drawn, without one nothing is random.

        Raises:
            PolicyError: images of another size, type or layout than the spec's.
        """
        if images.dtype != self.dtype or images.ndim != 5 or tuple(images.shape[2:]) != self.shape:
            raise PolicyError(
                "policy input, images", expected=f"{_name(self.dtype)} (N, To, {', '.join(map(str, self.shape))}), "
                + ("RGB" if self.channels == 3 else "metres"),
                got=f"{images.dtype} {tuple(images.shape)}",
                hint="rows, columns, channels; robot_rl.deploy.images brings other layouts into this one.",
            )  # fmt: skip
        pixels = self._pixels(images, generator)
        features: torch.Tensor = self.project(self.pool(self.backbone(pixels)))
        return features.reshape(images.shape[0], images.shape[1], self.size)

    def _pixels(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Normalised RGB, float32 (B * To, 3, h, w)."""
        pixels = self._cropped(images, generator).float() / 255
        if self.config.jitter and generator is not None:
            pixels = colour_jitter(pixels, self.config.jitter, generator)
        return (self._resized(pixels) - self.mean[:, None, None]) / self.std[:, None, None]

    def _cropped(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        crop = self.config.crop
        if not crop:
            return images
        out: torch.Tensor = centre_crop(images, crop) if generator is None else random_crop(images, crop, generator)
        return out

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, To, H, W, C) to (B * To, C, h, w)."""
        pixels, size = pixels.flatten(0, 1).permute(0, 3, 1, 2), self.config.image_size
        if not size or tuple(pixels.shape[2:]) == (size, size):
            return pixels
        return functional.interpolate(pixels, [size, size], mode="bilinear", align_corners=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def seen_size(config: ImageEncoderConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that the network sees of an image (H, W, 3)."""
    rows, columns = (config.crop, config.crop) if config.crop else shape[:2]
    return (config.image_size, config.image_size) if config.image_size else (rows, columns)


def _require_places(config: ImageEncoderConfig, seen: tuple[int, int], reduction: int) -> None:
    """Raise PolicyError where a spatial softmax has one place to choose from; warn where it has few."""
    rows, columns = (math.ceil(side / reduction) for side in seen)
    hint = f"Take fewer stages (policy.encoder.images.num_stages={max(1, config.num_stages - 1)}), larger images or pooling=mean."
    if rows * columns == 1:
        raise PolicyError(
            "encoder of images", expected="a last map of 2 x 2 or more for pooling=spatial_softmax",
            got=f"{rows} x {columns} from {seen[0]} x {seen[1]} pixels and {config.num_stages} stages: the same feature for every image",
            hint=hint,
        )  # fmt: skip
    if min(rows, columns) < LEAST_PLACES:
        log.warning(
            "images: a last map of %d x %d from %d x %d pixels says little about where things are. %s",
            rows,
            columns,
            *seen,
            hint,
        )


def check_image_spec(config: ImageEncoderConfig, spec: ArraySpec, *, channels: int = 3) -> None:
    """Raise PolicyError unless `spec` is of an RGB image (1 channel: of depth) that the configuration can take."""
    where, dtype = f"encoder of {spec.name!r}", "uint8" if channels == 3 else "float32"
    if len(spec.shape) != 3 or spec.shape[2] != channels or spec.dtype != dtype:
        raise PolicyError(
            where, expected=f"{dtype} (H, W, {channels})", got=f"{spec.dtype} {spec.shape}",
            hint="RGB is image/<camera>, depth in metres depth/<camera>.",
        )  # fmt: skip
    rows, columns = seen_size(config, spec.shape)
    is_square = rows == columns or config.backbone is not Backbone.vit
    if config.crop > min(spec.shape[:2]) or not is_square or (len(config.mean), len(config.std)) != (3, 3):
        raise PolicyError(
            where, expected="a crop within the image, a square one for a ViT, three numbers for mean and std",
            got=f"image {spec.shape[:2]}, crop {config.crop}, image_size {config.image_size}, mean {config.mean}, std {config.std}",
            hint="Correct policy.encoder.images.",
        )  # fmt: skip
