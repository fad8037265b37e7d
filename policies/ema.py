"""Exponential moving average of a network's weights: what is evaluated and what RL starts from."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema(nn.Module):
    """Averaged copy of a module; `ema.module` is used like the original.

    After update number i (from 0) the average is d a + (1 - d) w with d = min(max_decay, 1 - (1 + i)^-power), so the
    first update copies the weights and power 1 is the plain mean of all updates. `state_dict` holds the step.

    Args:
        module: copied; the copy needs no gradient.
        power: how fast the decay grows.
        max_decay: its limit.
    """

    num_updates: torch.Tensor

    def __init__(self, module: nn.Module, *, power: float = 0.75, max_decay: float = 0.9999) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.power = power
        self.max_decay = max_decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def decay(self) -> float:
        """Decay that the next update will use."""
        return float(min(self.max_decay, 1 - (1 + int(self.num_updates)) ** -self.power))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average, in place, toward the weights of `module`; buffers are copied."""
        average: list[torch.Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(average, list(module.parameters()), 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)
        self.num_updates += 1
