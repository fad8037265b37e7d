"""What the speed scripts of all peers do alike. Imported by scripts of this folder, in the peer's own environment."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from typing import Any


def common_parser(text: str | None, *, batch: int) -> argparse.ArgumentParser:
    """Sizes and limits that every script takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=1, help="observations of a window")
    parser.add_argument("--horizon", type=int, default=16, help="actions of a window")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def measured(dataset: Any, options: argparse.Namespace, *, actions: str, opened_s: float) -> dict[str, Any]:
    """One pass of a shuffling DataLoader, or as much of it as `--seconds` allow; `epoch_s` is then scaled up.

    Args:
        dataset: of the peer.
        options: of `common_parser`.
        actions: key of the actions in a batch.
        opened_s: seconds that opening the dataset took.
    """
    import torch

    loader = torch.utils.data.DataLoader(
        dataset, batch_size=options.batch, shuffle=True, num_workers=options.workers, drop_last=False
    )
    began, windows = time.perf_counter(), 0
    for batch in loader:
        windows += len(batch[actions])
        if time.perf_counter() - began > options.seconds:
            break
    spent = time.perf_counter() - began
    return {
        "windows": len(dataset),
        "windows_read": windows,
        "windows_per_s": windows / spent,
        "epoch_s": spent * len(dataset) / windows,
        "open_s": opened_s,
        "history": options.history,
        "horizon": options.horizon,
        "batch": options.batch,
        "workers": options.workers,
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
