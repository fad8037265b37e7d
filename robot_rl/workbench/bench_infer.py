"""`bench infer`: time of one decision at batch 1 over nets, samplers and runtimes, beside the floor of the net.

Nets: the mlp, and U-Nets of 5 M and 65 M weights (random: they do not change the time), or with --policy a trained one.
Samplers: DDPM with every level, DDIM-10, warm decisions of RTI with 1, 2 and 3 forwards, one step. Runtimes: torch (eager, and
compiled with --compile), onnxruntime, OpenVINO where it is installed; the last two of the file that `robot-rl export` writes,
in float32 and in int8. All do all of a decision: normaliser, sampler, clip. Before anything is timed, each float32 file must
give torch's actions within 1e-4. Each net is a part of its own, printed and written when it is done.

"cpu ms" is the median processor time of a decision, all threads of this process: on a busy machine it says more than the clock.
The floor of a forward is max(bytes of the weights / bandwidth, FLOP / peak), both measured in the same turns; "of floor" is
the share of a decision's time that the floor of its forwards takes; with one thread both are processor times. The passes of
the export take weights out, and int8 three quarters of their bytes, so it can pass 100 %.
"rms off" and "max off" are differences of the timed chunk to that of eager DDIM-10, action units. With random weights they say
something only between rows of one sampler. With --policy the episodes behind the table tell what a sampler or int8 costs.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
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
from robot_rl.runs.progress import Progress
from robot_rl.stages.export_int8 import NothingToQuantiseError, feeds, note_errors, quantise
from robot_rl.types import Observation
from robot_rl.workbench.bench_infer_nets import (
    NETS,
    PASSES,
    Sampled,
    Subject,
    bare_forward,
    ceilings,
    compiled,
    exported,
    samplers,
    subject_of,
)
from robot_rl.workbench.bench_infer_play import HEADING as EPISODES
from robot_rl.workbench.bench_infer_play import as_cells, played
from robot_rl.workbench.bench_infer_table import HEADING, ONE_STEP, Row, comparisons, line
from robot_rl.workbench.bench_infer_turn import TURN, turn_calls
from robot_rl.workbench.bench_timing import BenchError, Contender, Measurement, Options, Report, interleave

TOLERANCE = 1e-4
ROUND_S, MOST_REPEATS = 0.2, 20
log = logging.getLogger(__name__)

# A slow contender plays fewer rounds than asked for: as many as fit, and at least two.
CONTENDER_S, LEAST_ROUNDS = 15.0, 2
JUDGED_ROWS = 8
SHORT = {"mlp": "mlp", "unet5": "unet 5 M", "unet65": "unet 65 M"}


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


def parts(options: Options) -> dict[str, Options]:
    """One part for each net of `options`, or one for the policy.

    Raises:
        BenchError: an unknown net, or no compiler where one is needed.
    """
    unknown = [net for net in options.nets if net not in SHORT]
    if unknown or (options.nets and options.policy):
        raise BenchError(
            "bench infer --nets", expected=f"some of {', '.join(SHORT)}, without --policy",
            got=f"{', '.join(options.nets)}{' with --policy' if options.policy else ''}", hint="Separate by commas.",
        )  # fmt: skip
    for word, given in (("one-step", options.one_step), ("episodes", options.episodes)):
        if given and not options.policy:
            raise BenchError(
                f"bench infer --{word}", expected="--policy RUN, whose head or episodes they are", got="no --policy",
                hint="Without a run all weights are random.",
            )  # fmt: skip
    compiler = os.environ.get("CXX", "g++")
    if options.compiled and shutil.which(compiler) is None:
        raise BenchError(
            "bench infer --compile", expected="a C++ compiler for torch.compile", got=f"no {compiler}",
            hint="apt-get install g++, or set CXX, or leave --compile out.",
        )  # fmt: skip
    if options.policy:
        return {"policy": options}
    return {net: replace(options, nets=(net,)) for net in options.nets or SHORT}


def run(options: Options) -> Report:
    """Measure the nets of `options` (all where it names none), or its policy.

    Raises:
        DeployError: onnxruntime is missing, or a file gives other actions than torch.
        RobotRlError: as subject_of.
    """
    torch.set_num_threads(options.threads)
    measurements, ratios, table = list[Measurement](), list[Any](), [HEADING]
    facts: dict[str, Any] = {"batch": 1, "threads": options.threads, "tolerance": TOLERANCE}
    for net in ["policy"] if options.policy else [SHORT[short] for short in options.nets] or list(NETS):
        subject = subject_of(net, options)
        with tempfile.TemporaryDirectory() as folder:
            measured, facts[net], rows = _net(subject, Path(folder), options)
            table += rows
            measurements += measured
            ratios += comparisons(net, [(row[1], row[2]) for row in rows])
    if find_spec("openvino") is None:
        facts["openvino"] = "not installed: pip install 'robot-rl[openvino]'"
    tables = {"table": [list(row) for row in table]}
    tables |= {} if not options.policy else {"episodes_table": facts["policy"].pop("episodes_table")}
    return Report(tuple(measurements), tuple(ratios), facts | tables)


def _net(
    subject: Subject, folder: Path, options: Options
) -> tuple[tuple[Measurement, ...], dict[str, Any], list[tuple[str, ...]]]:
    net, policy = subject.name, subject.policy
    bare, moved, flop = bare_forward(net, policy)
    (forward, clock), (read, read_clock), (product, product_clock) = map(_clocked, (bare, *ceilings(net, moved)))
    began = time.perf_counter()
    rows, noted = _rows(subject, folder, options)
    prepared_s = time.perf_counter() - began
    contenders = [forward, read, product, *(row.contender for row in rows)]
    turns = sum(1 + min(options.rounds, c.most_rounds or options.rounds) for c in contenders)
    with Progress(f"infer {net}", total=turns) as progress:
        measured = interleave(contenders, rounds=options.rounds, on_turn=partial(progress.advance, 1))
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
        "gb_per_s": gigabytes, "gflop_per_s": gigaflops, "floor_ms": 1e3 * floor_s, "prepared_s": prepared_s,
    } | noted  # fmt: skip
    rows.append(Row(forward, clock, net, "bare forward", "torch", 1))
    return measured, facts, [line(row, found[row.contender.name], floor_s, alone=alone) for row in rows]


def _rows(subject: Subject, folder: Path, options: Options) -> tuple[list[Row], dict[str, Any]]:
    """What is timed, and what was seen while it was prepared: errors, compile times, episodes."""
    rows, errors, compile_s = list[Row](), dict[str, float](), dict[str, float]()
    found = samplers(subject)
    wanted: Array | None = None
    with Progress(f"infer {subject.name}: files", total=len(found)) as progress:
        for sampled in [found[1], found[0], *found[2:]]:  # the reference of all differences first
            for runtime, call, path in _calls(sampled, subject, folder, options):
                began = time.perf_counter()
                chunk = call()
                took_s = time.perf_counter() - began
                wanted = chunk if wanted is None else wanted
                name = f"{subject.name} {sampled.name} {runtime}"
                if runtime == "torch":
                    expected = chunk
                elif runtime == "compiled":
                    compile_s[sampled.name] = took_s
                elif path is not None:
                    errors[f"{sampled.name} {runtime}"] = checked(expected, chunk, path)
                often = pace(call)
                contender, cpu = _clocked(
                    Contender(name, call, 1, "decisions", often["repeats"], most_rounds=often["most_rounds"])
                )
                # A turn draws noise of its own: its chunk says nothing about the runtime.
                off = None if runtime.endswith(f" {TURN}") else np.abs(chunk - wanted)
                rows.append(Row(contender, cpu, subject.name, sampled.name, runtime, sampled.forwards, off))
            progress.advance(1, sampled.name)
    rows.sort(key=lambda row: [sampled.name for sampled in found].index(row.sampler))
    noted: dict[str, Any] = {"max_error": errors}
    noted |= {"first_call_of_compiled_s": compile_s} if options.compiled else {}
    if subject.env is not None:
        paths = {s.name: _int8_path(folder, s.name) for s in found if s.is_file}
        int8 = {name: OnnxPolicy(path, threads=options.threads) for name, path in paths.items() if path.is_file()}
        noted["episodes"] = played(subject, found, int8, options)
        noted["episodes_table"] = [list(EPISODES), *(list(as_cells(row)) for row in noted["episodes"])]
    return rows, noted


def _calls(
    sampled: Sampled, subject: Subject, folder: Path, options: Options
) -> Iterator[tuple[str, Callable[[], Array], str | None]]:
    """Runtime, a decision of it, and the file that must give torch's actions (None: no such promise)."""
    observation, noise = subject.calibration.map(lambda x: x[:1].numpy()), _first_noise(sampled.policy)
    call = eager(sampled.policy, observation, noise)
    if hasattr(sampled.policy, "counts"):
        call()  # RTI has no chunk to start from before
    yield "torch", call, None
    if not sampled.is_file:
        return
    if options.compiled:
        yield "compiled", eager(compiled(sampled.policy), observation, noise), None
    path = folder / f"{sampled.name}.onnx"
    int8 = _int8_path(folder, sampled.name)
    for runtime, file in opened(sampled.policy, path, threads=options.threads).items():
        yield runtime, _from_file(file, observation, noise), file.path
        if sampled.name == ONE_STEP:
            for part, one in turn_calls(file, subject.policy.spec, observation, noise).items():
                yield f"{runtime} {part}", one, None if part == TURN else file.path
    try:
        small = opened_int8(sampled.policy, path, int8, subject.calibration, threads=options.threads)
    except NothingToQuantiseError as error:
        log.warning("no int8 rows: %s", error)
        small = {}
    for runtime, file in small.items():
        yield f"{runtime} int8", _from_file(file, observation, noise), None


def _first_noise(policy: Any) -> Float32[Array, "1 draws Tp A"]:
    """Seeded; the first draw is the same whatever the sampler."""
    return np.random.default_rng(0).standard_normal((1, *policy.noise_shape)).astype(np.float32)


def _int8_path(folder: Path, sampler: str) -> Path:
    return folder / f"{sampler}.int8.onnx"


def opened_int8(
    policy: Any, source: Path, target: Path, calibration: Observation, *, threads: int
) -> dict[str, OnnxPolicy]:
    """The float32 file `source` of a policy in int8, written to `target`, by runtime.

    Raises:
        DeployError: nothing to quantise.
    """
    noise = torch.randn((len(calibration.proprio), *policy.noise_shape), generator=torch.Generator().manual_seed(1))
    quantise(source, target, feeds(policy.config.observation_keys, calibration, noise))
    note_errors(policy, target, {"recorded": calibration.map(lambda x: x[:JUDGED_ROWS])}, seed=2)
    found = {"onnx": OnnxPolicy(target, threads=threads)}
    if find_spec("openvino") is not None:
        found["openvino"] = OpenVinoPolicy(target, threads=threads)
    return found


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


def pace(call: Callable[[], object]) -> dict[str, int]:
    """`repeats` of a call in a round, as many as fit ROUND_S, and `most_rounds`, as many as fit CONTENDER_S."""
    began = time.perf_counter()
    call()
    seconds = max(time.perf_counter() - began, 1e-6)
    repeats = int(np.clip(ROUND_S / seconds, 1, MOST_REPEATS))
    return {"repeats": repeats, "most_rounds": max(LEAST_ROUNDS, int(CONTENDER_S / (repeats * seconds)))}


def repeats_of(call: Callable[[], object]) -> int:
    """Calls in a round: as many as fit ROUND_S."""
    return pace(call)["repeats"]


def _clocked(contender: Contender) -> tuple[Contender, CpuClock]:
    clock = CpuClock(contender.call)
    return replace(contender, call=clock), clock
