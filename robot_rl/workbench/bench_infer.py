"""`bench infer`: time of one decision at batch 1 over nets, samplers and runtimes, beside the floor of the net.

Nets: the mlp, and U-Nets of 5 M and 65 M weights (random: they do not change the time). Samplers: DDPM with every level,
DDIM-10, one step. Runtimes: torch (eager), onnxruntime, OpenVINO where it is installed; both of the file that `robot-rl
export` writes. All do all of a decision: normaliser, sampler, clip. Before anything is timed, each must give torch's
actions within 1e-4.

"cpu ms" is the median processor time of a decision, all threads of this process: on a busy machine it says more than the clock.
The floor of a forward is max(bytes of the weights / bandwidth, FLOP / peak), both measured in the same turns; "of floor" is
the share of a decision's time that the floor of its forwards takes; with one thread both are processor times. The passes of
the export take weights out, so it can pass 100 %.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.openvino_policy import OpenVinoPolicy
from robot_rl.errors import DeployError
from robot_rl.types import Observation
from robot_rl.workbench.bench_infer_nets import NETS, PASSES, bare_forward, ceilings, exported, random_policy, samplers
from robot_rl.workbench.bench_timing import Comparison, Contender, Measurement, Options, Report, interleave

TOLERANCE = 1e-4
# A graph of more steps takes minutes to export, and nobody deploys one.
MOST_EXPORTED_STEPS = 10
# Best runtime, one step, against eager DDIM-10; and against one eager forward, by net (deploy_perf.md 4.1, C1 and C2).
TARGET, FORWARD_TARGETS = 60.0, {"unet 5 M": 6.0, "unet 65 M": 7.0}
ROUND_S, MOST_REPEATS = 0.2, 20


class CpuClock:
    """A call that notes the processor time that it took, in seconds."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.seconds = call, list[float]()

    def __call__(self) -> object:
        """Make the call."""
        began = time.process_time()
        result = self.call()
        self.seconds.append(time.process_time() - began)
        return result


@dataclass(frozen=True)
class Row:
    """One decision that is timed: its contender and its clock, and where it stands in the table."""

    contender: Contender
    cpu: CpuClock
    net: str
    sampler: str
    runtime: str
    forwards: int


def run(options: Options) -> Report:
    """Measure every net.

    Raises:
        DeployError: onnxruntime is missing, or a file gives other actions than torch.
    """
    torch.set_num_threads(options.threads)
    measurements: list[Measurement] = []
    comparisons: list[Comparison] = []
    facts: dict[str, Any] = {"batch": 1, "threads": options.threads, "tolerance": TOLERANCE}
    table: list[tuple[str, ...]] = [
        ("net", "sampler", "runtime", "p50 ms", "p95", "p99", "max", "Hz", "cpu ms", "of floor")
    ]
    for net in NETS:
        with tempfile.TemporaryDirectory() as folder:
            measured, facts[net], lines = _net(net, Path(folder), options)
        measurements += measured
        table += lines
        comparisons += _comparisons(net, [line[1:3] for line in lines])
    if find_spec("openvino") is None:
        facts["openvino"] = "not installed: pip install 'robot-rl[openvino]'"
    return Report(tuple(measurements), tuple(comparisons), facts | {"table": [list(line) for line in table]})


def _net(
    net: str, folder: Path, options: Options
) -> tuple[tuple[Measurement, ...], dict[str, Any], list[tuple[str, ...]]]:
    policy = random_policy(net)
    bare, moved, flop = bare_forward(net, policy)
    (forward, clock), (read, read_clock), (product, product_clock) = map(_clocked, (bare, *ceilings(net, moved)))
    rows, errors = _rows(net, policy, folder, threads=options.threads)
    measured = interleave([forward, read, product, *(row.contender for row in rows)], rounds=options.rounds)
    found = {measurement.name: measurement for measurement in measured}
    # The best that was seen, as a ceiling is: what disturbs it only makes it lower.
    # With one thread, processor time: that is what is left of a ceiling on a busy machine.
    alone = options.threads == 1
    gigabytes, gigaflops = (
        c.work / float(min(cpu.seconds) if alone else found[c.name].seconds.min())
        for c, cpu in ((read, read_clock), (product, product_clock))
    )
    floor_s = max(moved / 1e9 / gigabytes, flop / 1e9 / gigaflops)
    facts = {
        "parameters": sum(weight.numel() for weight in policy.parameters()), "weight_bytes": moved, "flop": flop,
        "gb_per_s": gigabytes, "gflop_per_s": gigaflops, "floor_ms": 1e3 * floor_s, "max_error": errors,
    }  # fmt: skip
    lines = [_line(row, found[row.contender.name], floor_s, alone=alone) for row in rows]
    lines.append(_line(Row(forward, clock, net, "bare forward", "torch", 1), found[forward.name], floor_s, alone=alone))
    return measured, facts, lines


def _rows(net: str, policy: Any, folder: Path, *, threads: int) -> tuple[list[Row], dict[str, float]]:
    rows: list[Row] = []
    errors: dict[str, float] = {}
    for sampler, (sampled, forwards) in samplers(policy).items():
        observation, noise = inputs(sampled)
        calls = {"torch": eager(sampled, observation, noise)}
        if forwards <= MOST_EXPORTED_STEPS:
            for runtime, file in opened(sampled, folder / f"{forwards}.onnx", threads=threads).items():
                calls[runtime] = _from_file(file, observation, noise)
                errors[f"{sampler} {runtime}"] = checked(calls["torch"](), calls[runtime](), file.path)
        for runtime, call in calls.items():
            name = f"{net} {sampler} {runtime}"
            contender, cpu = _clocked(Contender(name, call, 1, "decisions", repeats=repeats_of(call)))
            rows.append(Row(contender, cpu, net, sampler, runtime, forwards))
    return rows, errors


def opened(policy: Any, path: Path, *, threads: int, passes: Sequence[ExportPass] = PASSES) -> dict[str, OnnxPolicy]:
    """The policy, exported to `path` after `passes`, by runtime: onnxruntime, and OpenVINO where it is installed."""
    found = {"onnx": exported(policy, path, threads=threads, passes=passes)}
    if find_spec("openvino") is not None:
        found["openvino"] = OpenVinoPolicy(path, threads=threads)
    return found


def inputs(policy: Any) -> tuple[Observation, Float32[Array, "1 draws Tp A"]]:
    """One seeded decision, numpy."""
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.standard_normal((1, policy.config.history, *array.shape)).astype(np.float32)
        for key, array in policy.spec.observation.items()
    }
    return Observation.from_arrays(arrays), rng.standard_normal((1, *policy.noise_shape)).astype(np.float32)


def eager(policy: Any, observation: Observation, noise: Array) -> Callable[[], Array]:
    """A decision of a torch policy, numpy in and out."""
    in_torch, torch_noise = observation.map(torch.from_numpy), torch.from_numpy(noise)

    def decide() -> Array:
        with torch.inference_mode():
            return policy.act(in_torch, torch_noise).actions.numpy()

    return decide


def checked(expected: Array, got: Array, where: str) -> float:
    """Largest difference of two chunks.

    Raises:
        DeployError: it is above TOLERANCE.
    """
    error = float(np.abs(expected - got).max())
    if not error <= TOLERANCE:
        raise DeployError(
            where, expected=f"torch's actions within {TOLERANCE}", got=f"a difference of {error}",
            hint="The export is broken; a faster wrong policy is not measured.",
        )  # fmt: skip
    return error


def _from_file(policy: OnnxPolicy, observation: Observation, noise: Array) -> Callable[[], Array]:
    return lambda: policy.act(observation, noise).actions


def repeats_of(call: Callable[[], object]) -> int:
    """Calls in a round: as many as fit ROUND_S."""
    began = time.perf_counter()
    call()
    return int(np.clip(ROUND_S / max(time.perf_counter() - began, 1e-6), 1, MOST_REPEATS))


def _clocked(contender: Contender) -> tuple[Contender, CpuClock]:
    clock = CpuClock(contender.call)
    return replace(contender, call=clock), clock


def _line(row: Row, measured: Measurement, floor_s: float, *, alone: bool) -> tuple[str, ...]:
    p50, p95, p99 = np.percentile(1e3 * measured.seconds, [50, 95, 99]).tolist()
    cpu = 1e3 * float(np.median(row.cpu.seconds))
    share = row.forwards * 1e3 * floor_s / (cpu if alone else p50)
    times = [f"{value:.3g}" for value in (p50, p95, p99, 1e3 * float(measured.seconds.max()), 1e3 / p50, cpu)]
    return (row.net, row.sampler, row.runtime, *times, f"{100 * share:.0f} %")


def _comparisons(net: str, lines: list[tuple[str, ...]]) -> list[Comparison]:
    """Each runtime against eager torch under the same sampler, and one step on the best one against eager DDIM."""
    best = "openvino" if any(runtime == "openvino" for _, runtime in lines) else "onnx"
    ddim = next(sampler for sampler, _ in lines if sampler.startswith("DDIM"))
    found = [Comparison(f"{net} one step {best}", f"{net} {ddim} torch", TARGET)]
    for sampler, runtime in lines:
        if runtime != "torch":
            is_forward = sampler == "one step" and runtime == best
            target = FORWARD_TARGETS.get(net) if is_forward else None
            found.append(Comparison(f"{net} {sampler} {runtime}", f"{net} {sampler} torch", target))
    return found
