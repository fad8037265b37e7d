"""A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), pre-norm, small by default.

Names and layout of the weights are those of DINO's files (and timm's): ViT-S/16 of DINO is width 384, 12 blocks, 6 heads,
patch 16, `layer_norm_eps` 1e-6.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float
from robot_rl.errors import PolicyError

MLP_RATIO = 4
LAYER_NORM_EPS = 1e-6


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Float[Array, "B D H W"]) -> Float[Array, "B L E"]:
        out: torch.Tensor = self.proj(images)
        return out.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        out: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = _Mlp(width)

    def forward(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """The class token of images.

    Args:
        image_size: rows and columns that it is made for.
        width: of a token.
        num_blocks: of attention and MLP.
        heads: divide the width.
        patch: pixels a side, divides the image.
        channels: of an image.

    Raises:
        PolicyError: sizes that do not divide each other.
    """

    def __init__(
        self, image_size: int, *, width: int, num_blocks: int, heads: int, patch: int, channels: int = 3
    ) -> None:
        super().__init__()
        if min(width, num_blocks, heads, patch) < 1 or image_size % patch or width % heads:
            raise PolicyError(
                "vision transformer", expected="a patch that divides the image, and heads that divide the width",
                got=f"image {image_size}, patch {patch}, width {width}, heads {heads}, blocks {num_blocks}",
                hint="Crop or resize the image (crop, image_size), or take another patch.",
            )  # fmt: skip
        self.channels = width
        self.patch_embed = _PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, images: Float[Array, "B D H W"]) -> Float[Array, "B C"]:
        """Normalised images of exactly `image_size` to the normed class token."""
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.norm(x)[:, 0]
        return out
