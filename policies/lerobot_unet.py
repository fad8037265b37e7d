"""The U-Net of LeRobot 0.4.4's diffusion policy, written anew: the same function under the same parameter names.

It differs from denoisers.UNet1d: two blocks a level, Mish, `scale * h + shift` without the 1, a ConvTranspose1d behind every
decoder level, the finest skip unused, and a last block whose norm always has 8 groups. Source: Diffusion Policy (arXiv
2303.04137), and LeRobot's own network, which tests/policies/test_lerobot_diffusion_peer.py compares with this one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from robot_rl.arrays import Array, Float32, Int64
from robot_rl.errors import PolicyError

from .denoisers import LevelEmbedding
from .lerobot_config import LeRobotConfig

LAST_GROUPS = 8


class _ConvBlock(nn.Module):
    """Convolution, GroupNorm, Mish."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(channels_in, channels_out, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(groups, channels_out), nn.Mish())

    def forward(self, x: Float32[Array, "B In L"]) -> Float32[Array, "B Out L"]:
        out: torch.Tensor = self.block(x)
        return out


class _ResidualBlock(nn.Module):
    """Two convolutions around what the embedding does to the channels (FiLM, or a shift alone), and a way past them."""

    def __init__(self, channels_in: int, channels_out: int, *, embedding: int, config: LeRobotConfig) -> None:
        super().__init__()
        sizes = {"kernel": config.kernel_size, "groups": config.n_groups}
        self.scales = config.use_film_scale_modulation
        self.conv1 = _ConvBlock(channels_in, channels_out, **sizes)
        self.cond_encoder = nn.Sequential(
            nn.Mish(), nn.Linear(embedding, 2 * channels_out if self.scales else channels_out)
        )
        self.conv2 = _ConvBlock(channels_out, channels_out, **sizes)
        self.residual_conv = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float32[Array, "B In L"], embedding: Float32[Array, "B W"]) -> Float32[Array, "B Out L"]:
        h, film = self.conv1(x), self.cond_encoder(embedding).unsqueeze(-1)
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            h = scale * h + shift
        else:
            h = h + film
        out: torch.Tensor = self.conv2(h) + self.residual_conv(x)
        return out


class LeRobotUNet(nn.Module):
    """Denoises a chunk as a LeRobot checkpoint does; its state_dict is the part of the file behind "diffusion.unet.".

    Args:
        config: of the checkpoint.
        action_size: A.
        condition_size: C.

    Raises:
        PolicyError: no level, channels that the groups do not divide, or a horizon that can't be halved that often.
    """

    def __init__(self, config: LeRobotConfig, *, action_size: int, condition_size: int) -> None:
        super().__init__()
        channels, width = config.down_dims, config.diffusion_step_embed_dim
        _check_sizes(config)
        self.diffusion_step_encoder = nn.Sequential(
            LevelEmbedding(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )

        def two_blocks(channels_in: int, channels_out: int) -> list[nn.Module]:
            size = width + condition_size
            return [
                _ResidualBlock(channels_in, channels_out, embedding=size, config=config),
                _ResidualBlock(channels_out, channels_out, embedding=size, config=config),
            ]

        self.down_modules = nn.ModuleList()
        for level, (before, here) in enumerate(pairwise((action_size, *channels))):
            is_last = level == len(channels) - 1
            downsample = nn.Identity() if is_last else nn.Conv1d(here, here, 3, stride=2, padding=1)
            self.down_modules.append(nn.ModuleList([*two_blocks(before, here), downsample]))
        self.mid_modules = nn.ModuleList(two_blocks(channels[-1], channels[-1]))
        self.up_modules = nn.ModuleList(
            nn.ModuleList([*two_blocks(2 * coarse, fine), nn.ConvTranspose1d(fine, fine, 4, stride=2, padding=1)])
            for coarse, fine in pairwise(reversed(channels))
        )
        last = _ConvBlock(channels[0], channels[0], kernel=config.kernel_size, groups=LAST_GROUPS)
        self.final_conv = nn.Sequential(last, nn.Conv1d(channels[0], action_size, 1))

    def forward(
        self, latent: Float32[Array, "B H A"], level: Int64[Array, " B"], condition: Float32[Array, "B C"]
    ) -> Float32[Array, "B H A"]:
        """Denoise a batch of chunks of LeRobot's whole horizon H."""
        embedding = torch.cat([self.diffusion_step_encoder(level), condition], dim=1)
        x, skips = latent.transpose(1, 2), []
        down, up = cast(Any, self.down_modules), cast(Any, self.up_modules)  # lists of lists
        for first, second, downsample in down:
            x = second(first(x, embedding), embedding)
            skips.append(x)
            x = downsample(x)
        for block in self.mid_modules:
            x = block(x, embedding)
        for first, second, upsample in up:
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(second(first(x, embedding), embedding))
        out: torch.Tensor = self.final_conv(x)
        return out.transpose(1, 2)


def _check_sizes(config: LeRobotConfig) -> None:
    channels, unit = config.down_dims, 2 ** max(len(config.down_dims) - 1, 0)
    divides = channels and all(c % config.n_groups == 0 for c in channels) and channels[0] % LAST_GROUPS == 0
    if not divides or config.horizon % unit or config.kernel_size % 2 == 0:
        raise PolicyError(
            "LeRobot's U-Net", expected=f"down_dims that n_groups={config.n_groups} (and, the first, {LAST_GROUPS}) divides, "
            f"an odd kernel, a horizon that is a multiple of {unit}",
            got=f"down_dims {list(channels)}, kernel_size {config.kernel_size}, horizon {config.horizon}",
            hint="LeRobot itself can't build this network: is config.json damaged?",
        )  # fmt: skip
