"""Rows, columns and ratios of `bench infer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.workbench.bench_infer_turn import GRAPH, TURN, TURN_TARGETS
from robot_rl.workbench.bench_timing import Comparison, Contender, Measurement

HEADING: tuple[str, ...] = (
    "net", "sampler", "runtime", "p50 ms", "p95", "p99", "max", "Hz", "cpu ms", "of floor", "rms off", "max off",
)  # fmt: skip
# Best runtime, one step, against eager DDIM-10; and against one eager forward, by net (deploy_perf.md 4.1, C1 and C2).
TARGET, FORWARD_TARGETS = 60.0, {"unet 5 M": 6.0, "unet 65 M": 7.0}
# RTI with at most 3 forwards, against DDIM-10 in the same runtime (the issue).
RTI, RTI_TARGET = "RTI-3", 3.0
ONE_STEP = "one step"


@runtime_checkable
class Clock(Protocol):
    """A call that notes its processor seconds."""

    seconds: list[float]


@dataclass(frozen=True)
class Row:
    """One decision that is timed: its contender and its clock, and where it stands in the table.

    Attributes:
        contender, cpu: what is timed.
        net, sampler, runtime: its place.
        forwards: of the network.
        off: |its chunk - that of eager DDIM|, action units (1, Tp, A); None where there is none.
    """

    contender: Contender
    cpu: Clock
    net: str
    sampler: str
    runtime: str
    forwards: int
    off: Float32[Array, "1 Tp A"] | None = None


def line(row: Row, measured: Measurement, floor_s: float, *, alone: bool) -> tuple[str, ...]:
    """The cells of HEADING.

    Args:
        row: what was timed.
        measured: its times.
        floor_s: of one forward, seconds.
        alone: one thread, so that the share of the floor is of processor time.
    """
    p50, p95, p99 = np.percentile(1e3 * measured.seconds, [50, 95, 99]).tolist()
    cpu = 1e3 * float(np.median(row.cpu.seconds))
    share = row.forwards * 1e3 * floor_s / (cpu if alone else p50)
    times = [f"{value:.3g}" for value in (p50, p95, p99, 1e3 * float(measured.seconds.max()), 1e3 / p50, cpu)]
    off = ("-", "-")
    if row.off is not None:
        off = f"{np.sqrt(np.mean(np.square(row.off))):.2g}", f"{row.off.max():.2g}"
    return (row.net, row.sampler, row.runtime, *times, f"{100 * share:.0f} %", *off)


def comparisons(net: str, places: Sequence[tuple[str, ...]]) -> list[Comparison]:
    """One step on the best float32 runtime against eager DDIM, RTI against it, and each runtime against eager torch.

    Args:
        net: of the rows.
        places: (sampler, runtime) of every row.
    """
    best = "openvino" if any(runtime == "openvino" for _, runtime in places) else "onnx"
    ddim = next(sampler for sampler, _ in places if sampler.startswith("DDIM"))
    found = []
    if (ONE_STEP, best) in places:
        found.append(Comparison(f"{net} {ONE_STEP} {best}", f"{net} {ddim} torch", TARGET))
    for sampler, runtime in places:
        if sampler == RTI:
            found.append(Comparison(f"{net} {sampler} {runtime}", f"{net} {ddim} {runtime}", RTI_TARGET))
        elif runtime.endswith(f" {TURN}"):
            graph = f"{runtime.removesuffix(TURN)}{GRAPH}"
            found.append(Comparison(f"{net} {sampler} {runtime}", f"{net} {sampler} {graph}", TURN_TARGETS.get(net)))
        elif runtime != "torch" and not runtime.endswith(f" {GRAPH}"):
            is_forward = sampler == ONE_STEP and runtime == best
            target = FORWARD_TARGETS.get(net) if is_forward else None
            found.append(Comparison(f"{net} {sampler} {runtime}", f"{net} {sampler} torch", target))
    return found
