"""Transformer that denoises an action chunk: one token per action, attention along the horizon.

Level and condition enter through AdaLN-Zero: each block's norms are scaled and shifted, and its two branches gated,
by a linear map of the embedding. No dropout: the RL ratio of unchanged weights must be exactly one.

Sources: transformer denoiser of Diffusion Policy (arXiv 2303.04137), adaLN of DiT (arXiv 2212.09748, section 3.2).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float32, Int64
from robot_rl.errors import PolicyError

INITIAL_GATE_STD = 0.02


class _TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm that the embedding scales and shifts, each gated by it."""

    def __init__(self, width: int, *, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = nn.Linear(embedding, 6 * width)
        # DiT starts at exactly zero, which hides every other weight from the first gradient; a small start does not.
        nn.init.normal_(self.modulate.weight, std=INITIAL_GATE_STD)
        nn.init.zeros_(self.modulate.bias)
        self.attend_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attend_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Float32[Array, "B Tp W"], embedding: Float32[Array, "B E"]) -> Float32[Array, "B Tp W"]:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulate(embedding).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate * self._attend((1 + scale) * self.attend_norm(x) + shift)
        h = (1 + mlp_scale) * self.mlp_norm(x) + mlp_shift
        out: torch.Tensor = x + mlp_gate * self.project(functional.gelu(self.expand(h)))
        return out

    def _attend(self, x: Array) -> Array:
        # (B, Tp, 3 W) -> three of (B, heads, Tp, W / heads)
        parts = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        out: torch.Tensor = functional.scaled_dot_product_attention(query, key, value)
        attended: torch.Tensor = self.attend_out(out.transpose(1, 2).flatten(2))
        return attended


class ChunkTransformer(nn.Module):
    """Full (not causal) attention over the chunk, learned positions, level and condition by AdaLN.

    Args:
        horizon: Tp.
        action_size: A.
        condition_size: C.
        level_network: int64 levels (B,) -> (B, level_embedding).
        hidden_width: width of a token, a multiple of `heads`.
        num_blocks: transformer blocks.
        level_embedding: size of the level embedding.
        heads: attention heads.

    Raises:
        PolicyError: the width can't be shared among the heads.
    """

    def __init__(
        self,
        *,
        horizon: int,
        action_size: int,
        condition_size: int,
        level_network: nn.Module,
        hidden_width: int = 256,
        num_blocks: int = 2,
        level_embedding: int = 64,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_width % heads:
            raise PolicyError(
                "transformer width",
                expected=f"a multiple of {heads} (attention heads)",
                got=str(hidden_width),
                hint="Try hidden_width 128 or 256.",
            )
        embedding = level_embedding + condition_size
        self.embed = level_network
        self.enter = nn.Linear(action_size, hidden_width)
        self.position = nn.Parameter(0.02 * torch.randn(1, horizon, hidden_width))
        self.blocks = nn.ModuleList(
            _TransformerBlock(hidden_width, heads=heads, embedding=embedding) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden_width, elementwise_affine=False)
        self.film = nn.Linear(embedding, 2 * hidden_width)
        self.leave = nn.Linear(hidden_width, action_size)

    def forward(
        self, latent: Float32[Array, "B Tp A"], level: Int64[Array, " B"], condition: Float32[Array, "B C"]
    ) -> Float32[Array, "B Tp A"]:
        """Denoise a batch."""
        embedding = functional.silu(torch.cat([self.embed(level), condition], dim=1))
        x = self.enter(latent) + self.position
        for block in self.blocks:
            x = block(x, embedding)
        scale, shift = self.film(embedding).unsqueeze(1).chunk(2, dim=-1)
        out: torch.Tensor = self.leave((1 + scale) * self.norm(x) + shift)
        return out
