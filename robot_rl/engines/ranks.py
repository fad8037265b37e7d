"""The processes that torchrun starts: each computes the gradient of its part of every batch, rank 0 alone writes.

    torchrun --nproc-per-node 2 -m robot_rl imitate dataset=demos.zarr env=pick_cube

All ranks draw the same batch and the same noise from the same generator and keep their rows, so the mean of their gradients is
that of one process with the whole batch, up to the order of sums.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from robot_rl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from robot_rl.runs.directory import RunDirectory

# Rank 0 evaluates while the others wait for its next gradient.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """Which of torchrun's processes this is.

    Attributes:
        rank: 0 to count - 1; 0 writes.
        count: of processes.
        local: number on this machine, that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Ranks:
        """From torchrun's variables; one process without it."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        return cls(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))

    def device(self, name: str) -> str:
        """Device of this process: its own GPU for "cuda"."""
        return f"cuda:{self.local}" if self.count > 1 and name == "cuda" else name

    def part(self, batch_size: int) -> slice | None:
        """Rows of a batch that are this process's; None: all of them, there is one process.

        Raises:
            ConfigError: parts would differ in size.
        """
        if self.count == 1:
            return None
        if batch_size % self.count:
            raise ConfigError(
                "train.batch_size", expected=f"a multiple of torchrun's {self.count} processes", got=f"{batch_size}",
                hint="It is the batch of all processes together.",
            )  # fmt: skip
        rows = batch_size // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def shared(self, module: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
        """`loss(module, generator)` whose backward pass leaves the mean gradient of all processes in `module`."""
        if self.count == 1:
            return loss
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        class Forward(nn.Module):
            """DDP hooks into `forward`."""

            def __init__(self) -> None:
                super().__init__()
                self.module = module

            def forward(self, generator: Any) -> Any:
                """The loss."""
                return loss(self.module, generator)

        _join(next(module.parameters()).device.type)
        wrapped = DistributedDataParallel(Forward(), broadcast_buffers=False)
        return lambda _module, generator: wrapped(generator)

    def agreed(
        self, value: float, parts: Mapping[str, float], stop: bool, *, device: Any
    ) -> tuple[float, dict[str, float], bool]:
        """Means over the processes of a step's loss and metrics, and whether any of them was asked to stop."""
        if self.count == 1:
            return value, dict(parts), stop
        import torch

        sums = torch.tensor([value, *parts.values(), float(stop)], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(sums)
        first, *rest, stops = (sums / self.count).tolist()
        return first, dict(zip(parts, rest, strict=True)), stops > 0


@cache
def _join(kind: str) -> None:
    import torch

    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)


def refuse_ranks(stage: Any, name: str) -> None:
    """Raise ConfigError when torchrun started a stage that has no use for it."""
    if Ranks.of_environment().count > 1 and not getattr(stage, "HAS_RANKS", False):
        raise ConfigError(
            f"torchrun with {name}", expected="imitate, the one stage that shares a gradient", got=name,
            hint=f"Start `robot-rl {name}` without torchrun.",
        )  # fmt: skip


def follow(stage: Any, config: Any, resumed: RunDirectory | None) -> int:
    """Run a stage beside rank 0; what it writes goes to a folder that is removed.

    Args:
        stage: its module.
        config: its configuration.
        resumed: the run that rank 0 continues; it is only read here.
    """
    from robot_rl.runs.directory import RunDirectory

    with tempfile.TemporaryDirectory(prefix="robot-rl-rank-") as scratch:
        own = RunDirectory.create(scratch, stage="rank", task="none", seed=config.seed, config_yaml="", command=[])
        if resumed is not None:
            (own.path / "checkpoints").symlink_to((resumed.path / "checkpoints").resolve())
        stage.run(config, own)
    return 0
