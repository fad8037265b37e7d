"""ResNet-18 and -34 (He et al. 2015, arXiv 1512.03385) with GroupNorm, or with fixed statistics of pretrained weights.

Written out here: PyPI's torchvision is built for CUDA and does not import beside the CPU build of torch. Names of the weights
are torchvision's, so that files made for its ResNets load. No BatchNorm: a running average and an EMA of weights disagree,
and the RL ratio of unchanged weights must be one. Groups of 16 channels as in Diffusion Policy (arXiv 2303.04137).
"""

from __future__ import annotations

import torch
from torch import nn

from robot_rl.arrays import Array, Float
from robot_rl.errors import PolicyError

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
CHANNELS_PER_GROUP = 16
FROZEN_EPS = 1e-5


class FrozenNorm(nn.Module):
    """What a trained BatchNorm does in use: an affine map per channel. Four buffers, named as torchvision's; no weights."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Array, "B C H W"]) -> Float[Array, "B C H W"]:
        """(x - mean) / std * weight + bias."""
        gain = self.weight * (self.running_var + FROZEN_EPS).rsqrt()
        return x * gain[:, None, None] + (self.bias - self.running_mean * gain)[:, None, None]


def _norm(channels: int, is_frozen: bool) -> nn.Module:
    return FrozenNorm(channels) if is_frozen else nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels)


class _Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, inputs: int, channels: int, *, stride: int, is_frozen: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = _norm(channels, is_frozen)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = _norm(channels, is_frozen)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != channels:
            shortcut = nn.Conv2d(inputs, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(channels, is_frozen))

    def forward(self, x: Float[Array, "B I H W"]) -> Float[Array, "B C h w"]:
        skip = x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + skip)


class ResNet(nn.Module):
    """Feature map of images; no pooling at the end, no classifier.

    Args:
        name: "resnet18" or "resnet34".
        width: channels of the first stage, 64 in the paper; each stage has twice those of the one before.
        num_stages: 1 to 4; fewer for small images, whose last map would be a pixel or two.
        is_frozen: norms with fixed statistics, for pretrained weights.
        channels: of an image.

    Raises:
        PolicyError: unknown name, or a width or number of stages that can't be.
    """

    def __init__(
        self, name: str, *, width: int = 64, num_stages: int = 4, is_frozen: bool = False, channels: int = 3
    ) -> None:
        super().__init__()
        if name not in BLOCKS or not 1 <= num_stages <= 4 or width < 1:
            raise PolicyError(
                "ResNet", expected=f"{' or '.join(BLOCKS)}, width from 1 up, 1 to 4 stages",
                got=f"{name}, width {width}, {num_stages} stages", hint="The paper has width 64 and 4 stages.",
            )  # fmt: skip
        self.num_stages = num_stages
        self.channels = width * 2 ** (num_stages - 1)
        self.reduction = 4 * 2 ** (num_stages - 1)
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(width, is_frozen)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = width
        for stage in range(num_stages):
            outputs = width * 2**stage
            blocks = []
            for block in range(BLOCKS[name][stage]):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(inputs, outputs, stride=stride, is_frozen=is_frozen))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Array, "B D H W"]) -> Float[Array, "B C h w"]:
        """Normalised images to a map of ceil(H / reduction) x ceil(W / reduction)."""
        x: torch.Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x
