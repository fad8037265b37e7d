"""Exact rewrites of a policy before it is exported: the same function in fewer bytes and cheaper operators.

film: what a denoiser does to (level embedding, condition) is linear behind a pointwise function, so it splits: the part of
the level becomes a table with one row for each of the sampler's levels, the part of the condition is computed once an
observation instead of once a denoising step, and the network that embeds levels is gone.
conv: Conv1d and ConvTranspose1d become matrix products. The chunk is short (2 to 16 steps), where runtimes' convolutions
read their weights badly.

Both are exact but for the order of float32 sums (docs/infer.md has the measured gain). For inference only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float, Float32, Int64
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.errors import PolicyError
from robot_rl.types import Observation

from .denoisers import ResidualMlp, UNet1d


def rewritten(policy: Any, passes: Sequence[ExportPass]) -> tuple[Any, tuple[ExportPass, ...]]:
    """A copy of a policy after the passes that fit its network, and which those were.

    Args:
        policy: a ChainPolicy (has `denoiser`, `encoder`, `sampler`), or another one, which is returned as it is.
        passes: in any order; a pass that finds nothing to do is left out of the answer.

    Returns:
        The policy itself where no pass applied; else a deep copy for inference at its sampler's levels.
    """
    if not all(hasattr(policy, name) for name in ("denoiser", "encoder", "sampler")):
        return policy, ()
    splits = ExportPass.film in passes and isinstance(policy.denoiser, (ResidualMlp, UNet1d))
    multiplies = ExportPass.conv in passes and any(_convolutions(policy.denoiser))
    if not (splits or multiplies):
        return policy, ()
    other = copy.deepcopy(policy).eval().requires_grad_(False)
    applied = []
    if splits:
        split = _split_mlp if isinstance(other.denoiser, ResidualMlp) else _split_unet
        other.denoiser, projection = split(other.denoiser, other.sampler.levels)
        other.encoder = _ProjectingEncoder(other.encoder, projection)
        applied.append(ExportPass.film)
    if multiplies:
        for parent, name, module in list(_convolutions(other.denoiser)):
            setattr(parent, name, MatmulConv1d(module) if isinstance(module, nn.Conv1d) else MatmulUpsample(module))
        applied.append(ExportPass.conv)
    return other, tuple(applied)


def _convolutions(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv1d | nn.ConvTranspose1d]]:
    """Parent, name and module of every convolution that has a product to be replaced by."""
    for parent in network.modules():
        for name, module in parent.named_children():
            if not isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                continue
            if module.groups != 1 or module.dilation != (1,) or module.padding_mode != "zeros":
                continue
            shape = (module.kernel_size, module.stride, module.padding, module.output_padding)
            if isinstance(module, nn.Conv1d) or shape == ((4,), (2,), (1,), (0,)):
                yield parent, name, module


def _taps(x: Array, shifts: Sequence[int], *, count: int, stride: int = 1) -> Array:
    """(B, L, C), zeros outside, read at stride * l + shift for l < count: (B, count, len(shifts) * C)."""
    before = max(0, -min(shifts))
    after = max(0, stride * (count - 1) + max(shifts) - (x.shape[1] - 1))
    x = functional.pad(x, (0, 0, before, after))
    rows = [x[:, before + s : before + s + stride * (count - 1) + 1 : stride] for s in shifts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=2)


class MatmulConv1d(nn.Module):
    """A Conv1d as one matrix product of shifted copies with packed weights.

    Args:
        source: any stride, kernel and padding; groups 1, dilation 1, padding with zeros.

    Raises:
        PolicyError: its padding is given by name.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, source: nn.Conv1d) -> None:
        super().__init__()
        if isinstance(source.padding, str):
            raise PolicyError(
                "pass conv", expected="padding as a number", got=repr(source.padding), hint="Leave conv out of passes."
            )
        self.kernel, self.stride, self.padding = source.kernel_size[0], source.stride[0], source.padding[0]
        packed = source.weight.detach().permute(2, 1, 0).reshape(-1, source.out_channels)
        self.register_buffer("weight", packed.contiguous())
        self.register_buffer("bias", None if source.bias is None else source.bias.detach().clone())

    def forward(self, x: Float[Array, "B In L"]) -> Float[Array, "B Out L2"]:
        """As the convolution."""
        count = (x.shape[2] + 2 * self.padding - self.kernel) // self.stride + 1
        shifts = range(-self.padding, self.kernel - self.padding)
        taps = _taps(x.transpose(1, 2), shifts, count=count, stride=self.stride)
        out = torch.matmul(taps, self.weight)
        return (out if self.bias is None else out + self.bias).transpose(1, 2)


class MatmulUpsample(nn.Module):
    """A ConvTranspose1d of kernel 4, stride 2, padding 1 as two products, one for the even outputs, one for the odd.

    out[2m] = W3 x[m-1] + W1 x[m], out[2m+1] = W2 x[m] + W0 x[m+1], from out[o] = sum of W[k] x[i] over o = 2i - 1 + k.

    Args:
        source: such a ConvTranspose1d, groups 1.
    """

    even: torch.Tensor
    odd: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, source: nn.ConvTranspose1d) -> None:
        super().__init__()
        taps = source.weight.detach().permute(2, 0, 1)  # (4, In, Out)
        self.register_buffer("even", torch.cat([taps[3], taps[1]]).contiguous())
        self.register_buffer("odd", torch.cat([taps[2], taps[0]]).contiguous())
        self.register_buffer("bias", None if source.bias is None else source.bias.detach().clone())

    def forward(self, x: Float[Array, "B In L"]) -> Float[Array, "B Out L2"]:
        """As the convolution: twice the length."""
        count, x = x.shape[2], x.transpose(1, 2)
        pairs = [
            torch.matmul(_taps(x, (-1, 0), count=count), self.even),
            torch.matmul(_taps(x, (0, 1), count=count), self.odd),
        ]
        out = torch.stack(pairs, dim=2).reshape(-1, 2 * count, self.even.shape[1])
        return (out if self.bias is None else out + self.bias).transpose(1, 2)


class _LevelTable(nn.Module):
    """One row for each of the sampler's levels."""

    rows: torch.Tensor
    row_of: torch.Tensor

    def __init__(self, levels: Sequence[int], rows: Float32[Array, "K F"]) -> None:
        super().__init__()
        self.register_buffer("rows", rows.contiguous())
        row_of = torch.zeros(max(levels) + 1, dtype=torch.int64)
        row_of[torch.tensor(levels)] = torch.arange(len(levels))
        self.register_buffer("row_of", row_of)

    def forward(self, level: Int64[Array, " B"]) -> Float32[Array, "B F"]:
        return self.rows[self.row_of[level]]


class _Columns(nn.Module):
    """Columns [begin, end) of (B, F): stands where a block projected the embedding by itself."""

    def __init__(self, begin: int, end: int) -> None:
        super().__init__()
        self.begin, self.end = begin, end

    def forward(self, x: Float32[Array, "B F"]) -> Float32[Array, "B G"]:
        return x[:, self.begin : self.end]


class _SplitUNet(nn.Module):
    """A UNet1d whose condition is the projection of it for all blocks."""

    def __init__(self, unet: UNet1d, table: _LevelTable) -> None:
        super().__init__()
        self.unet, self.table = unet, table

    def forward(self, latent: Array, level: Array, condition: Array) -> Array:
        return self.unet.denoise(latent, condition + self.table(level))


class _SplitMlp(nn.Module):
    """A ResidualMlp whose condition is already at the width of its first layer."""

    weight: torch.Tensor

    def __init__(self, mlp: ResidualMlp, table: _LevelTable, weight: Array) -> None:
        super().__init__()
        self.blocks, self.leave, self.table = mlp.blocks, mlp.leave, table
        self.register_buffer("weight", weight.t().contiguous())

    def forward(self, latent: Array, level: Array, condition: Array) -> Array:
        x = torch.matmul(latent.flatten(1), self.weight) + (condition + self.table(level))
        out: torch.Tensor = self.leave(functional.silu(self.blocks(x)))
        return out.view(latent.shape)


def _split_unet(unet: UNet1d, levels: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    blocks: list[Any] = [*unet.down, unet.middle, *unet.up]
    weight = torch.cat([block.film.weight for block in blocks]).detach()
    bias = torch.cat([block.film.bias for block in blocks]).detach()
    begin = 0
    for block in blocks:
        end = begin + block.film.out_features
        block.film, begin = _Columns(begin, end), end
    embedded = functional.silu(unet.embed(torch.tensor(levels)))
    width = embedded.shape[1]
    table = _LevelTable(levels, (embedded @ weight[:, :width].t()).detach())
    unet.embed = nn.Identity()  # type: ignore[assignment]  # its weights must not get into the file
    return _SplitUNet(unet, table), nn.Sequential(nn.SiLU(), _linear(weight[:, width:], bias))


def _split_mlp(mlp: ResidualMlp, levels: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    weight, chunk = mlp.enter.weight.detach(), mlp.leave.out_features
    embedded = mlp.embed(torch.tensor(levels))
    end = chunk + embedded.shape[1]
    table = _LevelTable(levels, (embedded @ weight[:, chunk:end].t()).detach())
    return _SplitMlp(mlp, table, weight[:, :chunk]), _linear(weight[:, end:], mlp.enter.bias.detach())


def _linear(weight: Array, bias: Array) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.contiguous(), bias.clone()
    return layer.requires_grad_(False)


class _ProjectingEncoder(nn.Module):
    """An encoder, and behind it what the denoiser does to the condition alone."""

    def __init__(self, encoder: Any, projection: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection
        self.keys, self.normalizer = encoder.keys, encoder.normalizer

    def forward(self, observation: Observation) -> Array:
        out: torch.Tensor = self.projection(self.encoder(observation))
        return out

    def encode(self, arrays: Mapping[str, Array]) -> Array:
        out: torch.Tensor = self.projection(self.encoder.encode(arrays))
        return out
