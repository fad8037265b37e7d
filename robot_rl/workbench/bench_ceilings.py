"""`bench ceilings`: what the processor can do at most: memory bandwidth and matrix products per second.

No net runs faster than max(bytes / bandwidth, FLOP / peak), so these numbers tell how far a time is from its floor.
A copy of n bytes counts 2n: read and written. Caches may write without reading first; if they do not, the memory moves
half as much again.
"""

from __future__ import annotations

import numpy as np
import torch

from robot_rl.workbench.bench_timing import Contender, Options, Report, interleave

COPY_BYTES = 256 * 2**20
MATRIX = 1024


def run(options: Options) -> Report:
    """Measure big copies (larger than any cache) by torch and numpy, and square matrix products by torch.

    Units: "GB" is 1e9 bytes, "GFLOP" 1e9 multiplications or additions.
    """
    torch.set_num_threads(options.threads)
    source = torch.zeros(COPY_BYTES // 4).add_(1)  # written once: untouched pages are one page of zeros
    target = torch.zeros(COPY_BYTES // 4).add_(1)
    moved = 2 * COPY_BYTES / 1e9
    contenders = [
        Contender("copy, torch", lambda: target.copy_(source), moved, "GB"),
        Contender("copy, numpy (1 thread)", lambda: np.copyto(target.numpy(), source.numpy()), moved, "GB"),
    ]
    products = 2 * MATRIX**3 / 1e9
    for dtype in (torch.float32, torch.bfloat16):
        contenders.append(_matmul(dtype, products))
    measured = interleave(contenders, rounds=options.rounds)
    return Report(measured, (), {"threads": options.threads, "copy_bytes": COPY_BYTES, "matrix": MATRIX})


def _matmul(dtype: torch.dtype, products: float) -> Contender:
    left = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0)).to(dtype)
    right, out = left.clone(), torch.empty_like(left)
    name = str(dtype).removeprefix("torch.")
    return Contender(f"matmul, {name}", lambda: torch.mm(left, right, out=out), products, "GFLOP", repeats=3)
