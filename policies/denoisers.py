"""Networks that denoise an action chunk: a residual MLP (small, fast on a CPU), a FiLM U-Net, a transformer.

All map latent (B, Tp, A), level int64 (B,), condition (B, C) to (B, Tp, A). No BatchNorm and no dropout: the RL ratio
of unchanged weights must be exactly one.

Sources: conditional 1-D U-Net of Diffusion Policy (arXiv 2303.04137), residual MLP of IDQL (arXiv 2304.10573).
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float32, Int64
from robot_rl.errors import PolicyError

from .transformer import ChunkTransformer

MAX_PERIOD = 10_000.0
LARGEST_GROUP_COUNT = 8
SMALLEST_GROUP = 8


class DenoiserKind(str, Enum):
    """Which network denoises."""

    mlp = "mlp"
    unet = "unet"
    transformer = "transformer"


@runtime_checkable
class DenoiserFields(Protocol):
    """The fields of a policy's configuration that describe its network."""

    @property
    def denoiser(self) -> DenoiserKind:
        """Which network."""
        ...

    @property
    def horizon(self) -> int:
        """Tp."""
        ...

    @property
    def hidden_width(self) -> int:
        """Width of the MLP, or of a token of the transformer."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the MLP or the transformer."""
        ...

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the U-Net, finest level first."""
        ...

    @property
    def level_embedding(self) -> int:
        """Size of the level embedding."""
        ...


class LevelEmbedding(nn.Module):
    """Sines and cosines of the level, `size` numbers (arXiv 1706.03762, section 3.5).

    Raises:
        PolicyError: size is odd or below 4.
    """

    frequencies: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 4 or size % 2:
            raise PolicyError("level embedding", expected="an even size from 4 up", got=str(size), hint="Try 64.")
        half = size // 2
        exponent = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(MAX_PERIOD) * exponent).float(), persistent=False)

    def forward(self, level: Int64[Array, " B"]) -> Float32[Array, "B L"]:
        """Embed int64 levels (B,)."""
        angle = level.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _level_network(size: int) -> nn.Sequential:
    return nn.Sequential(LevelEmbedding(size), nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))


class _MlpBlock(nn.Module):
    """x + MLP(LayerNorm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Float32[Array, "B W"]) -> Float32[Array, "B W"]:
        out: torch.Tensor = x + self.project(functional.silu(self.expand(self.norm(x))))
        return out


class ResidualMlp(nn.Module):
    """Residual MLP on the flattened chunk, the level embedding and the condition, concatenated.

    Args:
        horizon: Tp.
        action_size: A.
        condition_size: C.
        hidden_width: width of every layer.
        num_blocks: residual blocks.
        level_embedding: size of the level embedding.
    """

    def __init__(
        self,
        *,
        horizon: int,
        action_size: int,
        condition_size: int,
        hidden_width: int = 256,
        num_blocks: int = 2,
        level_embedding: int = 64,
    ) -> None:
        super().__init__()
        chunk = horizon * action_size
        self.embed = _level_network(level_embedding)
        self.enter = nn.Linear(chunk + level_embedding + condition_size, hidden_width)
        self.blocks = nn.Sequential(*[_MlpBlock(hidden_width) for _ in range(num_blocks)])
        self.leave = nn.Linear(hidden_width, chunk)

    def forward(
        self, latent: Float32[Array, "B Tp A"], level: Int64[Array, " B"], condition: Float32[Array, "B C"]
    ) -> Float32[Array, "B Tp A"]:
        """Denoise a batch."""
        x = self.enter(torch.cat([latent.flatten(1), self.embed(level), condition], dim=1))
        out: torch.Tensor = self.leave(functional.silu(self.blocks(x)))
        return out.view(latent.shape)


class _ConvBlock(nn.Module):
    """Two convolutions with GroupNorm; the embedding scales and shifts the channels between them (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, *, embedding: int) -> None:
        super().__init__()
        # A group of two numbers is normalised to +-1, and all but a sign is lost: keep at least 8 channels in one.
        groups = math.gcd(LARGEST_GROUP_COUNT, max(1, channels_out // SMALLEST_GROUP))
        self.first = nn.Conv1d(channels_in, channels_out, 3, padding=1)
        self.first_norm = nn.GroupNorm(groups, channels_out)
        self.film = nn.Linear(embedding, 2 * channels_out)
        self.second = nn.Conv1d(channels_out, channels_out, 3, padding=1)
        self.second_norm = nn.GroupNorm(groups, channels_out)
        self.skip = nn.Conv1d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Float32[Array, "B In Tp"], embedding: Float32[Array, "B W"]) -> Float32[Array, "B Out Tp"]:
        scale, shift = self.film(embedding).unsqueeze(-1).chunk(2, dim=1)
        h = functional.silu(self.first_norm(self.first(x)))
        h = functional.silu(self.second_norm(self.second((1 + scale) * h + shift)))
        out: torch.Tensor = h + self.skip(x)
        return out


class UNet1d(nn.Module):
    """FiLM-conditioned U-Net along the chunk; each level but the last halves the time axis.

    Args:
        horizon: Tp, a multiple of 2^(len(channels) - 1).
        action_size: A.
        condition_size: C.
        channels: per level, finest first.
        level_embedding: size of the level embedding.

    Raises:
        PolicyError: the horizon can't be halved that often, or there is no level.
    """

    def __init__(
        self,
        *,
        horizon: int,
        action_size: int,
        condition_size: int,
        channels: tuple[int, ...] = (64, 128),
        level_embedding: int = 64,
    ) -> None:
        super().__init__()
        _check_horizon(horizon, channels)
        width = level_embedding
        self.embed = _level_network(width)
        film = width + condition_size
        sizes = (action_size, *channels)
        self.down = nn.ModuleList(_ConvBlock(a, b, embedding=film) for a, b in zip(sizes, channels, strict=False))
        self.downsample = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.middle = _ConvBlock(channels[-1], channels[-1], embedding=film)
        coarse_to_fine = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(a, b, 4, stride=2, padding=1) for a, b in coarse_to_fine)
        self.up = nn.ModuleList(_ConvBlock(2 * b, b, embedding=film) for _, b in coarse_to_fine)
        self.leave = nn.Conv1d(channels[0], action_size, 1)

    def forward(
        self, latent: Float32[Array, "B Tp A"], level: Int64[Array, " B"], condition: Float32[Array, "B C"]
    ) -> Float32[Array, "B Tp A"]:
        """Denoise a batch."""
        return self.denoise(latent, functional.silu(torch.cat([self.embed(level), condition], dim=1)))

    def denoise(self, latent: Float32[Array, "B Tp A"], embedding: Float32[Array, "B W"]) -> Float32[Array, "B Tp A"]:
        """`forward` behind the embedding of level and condition, which every block projects."""
        x = latent.transpose(1, 2)
        skips = []
        for block, downsample in zip(self.down, [*self.downsample, None], strict=True):
            x = block(x, embedding)
            if downsample is not None:
                skips.append(x)
                x = downsample(x)
        x = self.middle(x, embedding)
        for upsample, block in zip(self.upsample, self.up, strict=True):
            x = block(torch.cat([upsample(x), skips.pop()], dim=1), embedding)
        out: torch.Tensor = self.leave(x)
        return out.transpose(1, 2)


def _check_horizon(horizon: int, channels: tuple[int, ...]) -> None:
    if not channels:
        raise PolicyError("U-Net channels", expected="at least one level", got="()", hint="Try (64, 128).")
    unit = 2 ** (len(channels) - 1)
    if horizon < 1 or horizon % unit:
        valid = ", ".join(str(unit * k) for k in (1, 2, 3, 4))
        raise PolicyError(
            "U-Net horizon",
            expected=f"a multiple of {unit} for {len(channels)} levels of channels",
            got=str(horizon),
            hint=f"Valid horizons: {valid}, ...; or use fewer channels, or the mlp denoiser.",
        )


def build_denoiser(
    config: DenoiserFields, *, action_size: int, condition_size: int
) -> ResidualMlp | UNet1d | ChunkTransformer:
    """Build the network that a policy's configuration describes.

    Raises:
        PolicyError: the horizon does not fit the U-Net, or the width the transformer.
    """
    if config.denoiser is DenoiserKind.unet:
        return UNet1d(
            horizon=config.horizon,
            action_size=action_size,
            condition_size=condition_size,
            channels=tuple(config.channels),
            level_embedding=config.level_embedding,
        )
    if config.denoiser is DenoiserKind.transformer:
        return ChunkTransformer(
            horizon=config.horizon,
            action_size=action_size,
            condition_size=condition_size,
            level_network=_level_network(config.level_embedding),
            hidden_width=config.hidden_width,
            num_blocks=config.num_blocks,
            level_embedding=config.level_embedding,
        )
    return ResidualMlp(
        horizon=config.horizon,
        action_size=action_size,
        condition_size=condition_size,
        hidden_width=config.hidden_width,
        num_blocks=config.num_blocks,
        level_embedding=config.level_embedding,
    )
