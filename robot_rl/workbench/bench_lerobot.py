"""`bench lerobot`: a decision of LeRobot's DiffusionPolicy as its users run it, beside ours. Needs LeRobot's own environment.

    tests/peers/lerobot.sh /tmp/peer_lerobot
    robot-rl bench lerobot --peer /tmp/peer_lerobot/bin/python

LeRobot's side is its own process: predict_action of its recording loop, which computes a chunk, with DDPM over every level (its
default) and with DDIM-10. Ours, with the same sizes of observation and action, batch 1, same CPU and threads, in turns with it:
the same checkpoint read by policies/lerobot_diffusion.py, and a U-Net of our own of about as many weights. DDIM-10 and warm
decisions of RTI with 3 forwards are in torch; DDIM-10 and one forward of the checkpoint and a one-step head of our U-Net are
exported files in onnxruntime and, where it is installed, OpenVINO. Weights are random, so this is about time alone.

Nothing is timed before the same checkpoint gives LeRobot's DDIM-10 chunk for the same noise, and each file its torch policy's,
within 1e-4. "cpu ms" is the median processor time, all threads of the process that decides. In the last two columns LeRobot's
median processor time is divided by it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.runs.adopted import build_adopted, declare
from robot_rl.workbench.adopt import LOADERS
from robot_rl.workbench.bench_infer import CpuClock, checked, eager, inputs, opened, repeats_of
from robot_rl.workbench.bench_infer_nets import PASSES, random_policy
from robot_rl.workbench.bench_sample import task_spec
from robot_rl.workbench.bench_timing import BenchError, Comparison, Contender, Measurement, Options, Report, interleave

PEER = "ROBOT_RL_PEER_LEROBOT"
SCRIPT = Path(__file__).parents[2] / "tests" / "peers" / "lerobot_infer.py"
# LeRobot's channels halved, 65 M weights as deploy_perf.md 3.2; and the net of ours of that size.
CONFIG: dict[str, Any] = {"down_dims": [256, 512, 1024], "horizon": 16, "n_action_steps": 8}
NET = "unet 65 M"
NAMES = {"observation.state": "proprio", "observation.environment_state": "state"}
DDPM, DDIM = "LeRobot DDPM-100", "LeRobot DDIM-10"
EXPORTED = (("same checkpoint", "DDIM-10"), ("same checkpoint", "1 forward"), ("ours", "one-step head"))
# The issue's, for the one-step head.
TARGET = 60.0
RTI_LEVEL, RTI_STEPS = 20, 3
START_S = 300.0


@runtime_checkable
class Clock(Protocol):
    """A call that notes its processor seconds."""

    seconds: list[float]

    def __call__(self) -> object:
        """Decide once."""
        ...


class Peer:
    """LeRobot's process.

    Args:
        python: interpreter of its environment.
        folder: that `make` wrote.
        threads: of torch there.

    Raises:
        BenchError: it does not start.
    """

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        self._command = [python, str(SCRIPT), "serve", str(folder), str(threads)]
        self._errors = folder / "errors.txt"
        with open(self._errors, "w", encoding="utf-8") as errors:  # a pipe that nobody reads would fill up
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment(folder)
            )  # fmt: skip
        self.facts = self._answer()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            BenchError: it has ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _answer says what it died of
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            told = self._errors.read_text(encoding="utf-8").splitlines()[-3:]
            raise BenchError(
                " ".join(self._command), expected="an answer of LeRobot's process", got="\n".join(told) or "none",
                hint="Make its environment with tests/peers/lerobot.sh of a checkout.",
            )  # fmt: skip
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class PeerDecision:
    """A call that has LeRobot's process decide once; notes the processor time that it reports."""

    def __init__(self, peer: Peer, sampler: str) -> None:
        self._peer, self._sampler, self.seconds = peer, sampler, list[float]()

    def __call__(self) -> None:
        """Make the call."""
        self.seconds.append(float(self._peer.ask({"sampler": self._sampler})["cpu_s"]))


@dataclass(frozen=True)
class Row:
    """One decision that is timed, and where it stands in the table."""

    contender: Contender
    clock: Clock
    net: str
    sampler: str
    runtime: str


def run(options: Options) -> Report:
    """Measure.

    Raises:
        BenchError: no interpreter of LeRobot's environment, one that does not work, or other chunks than LeRobot's.
        DeployError: a file gives other actions than torch.
    """
    python = options.peer or os.environ.get(PEER)
    if not python:
        raise BenchError(
            "bench lerobot", expected=f"--peer, the Python of an environment with LeRobot (or {PEER})", got="none",
            hint="Make one: tests/peers/lerobot.sh /tmp/peer_lerobot, then --peer /tmp/peer_lerobot/bin/python.",
        )  # fmt: skip
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name, _peer(python, Path(name) / "theirs", options.threads) as (peer, theirs):
        differs = _same_chunk(peer, theirs, Path(name))
        ours = random_policy(NET)
        rows = [
            _row(f"LeRobot {sampler}", PeerDecision(peer, sampler), ("LeRobot", sampler, "its own"))
            for sampler in ("DDPM-100", "DDIM-10")
        ]
        for net, policy in (("same checkpoint", theirs), ("ours", ours)):
            rows += _rows(net, policy)
        found, errors = _exported_rows(theirs, ours, Path(name), threads=options.threads)
        rows += found
        measured = interleave([row.contender for row in rows], rounds=options.rounds)
        facts = {
            "batch": 1, "threads": options.threads, "peer": peer.facts, "difference_to_lerobot": differs, "max_error": errors,
            "parameters": {"same checkpoint": _size(theirs), "ours": _size(ours)}, "table": _table(rows, measured),
        }  # fmt: skip
    return Report(measured, tuple(_comparisons(rows)), facts)


def _size(policy: Any) -> int:
    return sum(weight.numel() for weight in policy.parameters())


@contextmanager
def _peer(python: str, folder: Path, threads: int) -> Iterator[tuple[Peer, Any]]:
    """LeRobot's process with a new checkpoint, and the same checkpoint as a policy of ours, DDIM-10."""
    spec = task_spec()
    sizes = {
        "state": spec.observation["proprio"].size, "environment": spec.observation["state"].size, "action": spec.action.size,
        "config": CONFIG,
    }  # fmt: skip
    command = [python, str(SCRIPT), "make", str(folder), json.dumps(sizes)]
    folder.mkdir()
    try:
        subprocess.run(command, capture_output=True, text=True, env=_environment(folder), timeout=START_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        told = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise BenchError(
            f"{python} {SCRIPT.name}", expected="a checkpoint that LeRobot saves", got=" ".join(told),
            hint="Make its environment with tests/peers/lerobot.sh of a checkout.",
        ) from error  # fmt: skip
    component = {"_target_": LOADERS["diffusion"], "names": NAMES, "num_steps": 10, "mode": SamplingMode.eta0.value}
    declare(folder, component, spec)
    policy, _ = build_adopted(folder)
    peer = Peer(python, folder, threads)
    try:
        yield peer, policy.requires_grad_(False)
    finally:
        peer.close()


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}


def _same_chunk(peer: Peer, policy: Any, folder: Path) -> float:
    """Largest difference of our DDIM-10 chunk to LeRobot's; see bench_infer.checked."""
    observation, noise = inputs(policy)
    np.savez(folder / "in.npz", noise=noise[:, 0], **observation.arrays())
    peer.ask({"check": str(folder / "in.npz"), "out": str(folder / "out.npy")})
    actions = policy.act(observation, noise).actions.numpy()
    # Ours are clipped to the bounds of the spec, which are those of the statistics.
    return checked(np.clip(np.load(folder / "out.npy"), -1, 1), actions, "LeRobot's checkpoint, DDIM-10")


def _rows(net: str, policy: Any) -> list[Row]:
    """DDIM-10 and warm decisions of RTI, in torch."""
    observation, noise = inputs(policy)
    warm = policy.warm_started(WarmStart(level=RTI_LEVEL, steps=RTI_STEPS, discrete_at=()))
    started = eager(warm, observation, noise)
    started()  # the first decision has no chunk to start from
    found = [
        _row(f"{net} {sampler} torch", CpuClock(call), (net, sampler, "torch"))
        for sampler, call in (("DDIM-10", eager(policy, observation, noise)), (f"RTI-{RTI_STEPS}", started))
    ]
    assert warm.counts.first == 1
    return found


def _exported_rows(theirs: Any, ours: Any, folder: Path, *, threads: int) -> tuple[list[Row], dict[str, float]]:
    """Rows of EXPORTED in every runtime, and their differences to torch."""
    rows, errors = list[Row](), dict[str, float]()
    for net, sampler in EXPORTED:
        passes: tuple[ExportPass, ...] = PASSES
        if sampler == "DDIM-10":
            policy, passes = theirs, ()  # unrolled: the passes would double the minutes of its export
        else:
            policy = (
                theirs.with_steps(1)
                if net == "same checkpoint"
                else ours.one_step_student(1).eval().requires_grad_(False)
            )
        observation, noise = inputs(policy)
        wanted = eager(policy, observation, noise)()
        files = opened(policy, folder / f"{net} {sampler}.onnx", threads=threads, passes=passes)
        for runtime, file in files.items():
            name, call = f"{net} {sampler} {runtime}", partial(file.act, observation, noise)
            errors[name] = checked(wanted, call().actions, name)
            rows.append(_row(name, CpuClock(call), (net, sampler, runtime)))
    return rows, errors


def _row(name: str, clock: Clock, place: tuple[str, str, str]) -> Row:
    """A row whose round takes about bench_infer.ROUND_S."""
    return Row(Contender(name, clock, 1, "decisions", repeats=repeats_of(clock)), clock, *place)


def _table(rows: list[Row], measured: tuple[Measurement, ...]) -> list[list[str]]:
    cpu = {row.contender.name: float(np.median(row.clock.seconds)) for row in rows}
    lines = [["net", "sampler", "runtime", "p50 ms", "p95", "cpu ms", "times DDPM-100", "times DDIM-10"]]
    for row, one in zip(rows, measured, strict=True):
        own = cpu[row.contender.name]
        times = [f"{1e3 * float(np.percentile(one.seconds, q)):.3g}" for q in (50, 95)]
        ratios = [f"{cpu[theirs] / own:.3g}" for theirs in (DDPM, DDIM)]
        lines.append([row.net, row.sampler, row.runtime, *times, f"{1e3 * own:.3g}", *ratios])
    return lines


def _comparisons(rows: list[Row]) -> Iterator[Comparison]:
    """Everything of ours against LeRobot's default and its DDIM-10; the one-step head has a target."""
    best = "openvino" if any(row.runtime == "openvino" for row in rows) else "onnx"
    for row in rows:
        if row.net == "LeRobot":
            continue
        target = TARGET if row.sampler == "one-step head" and row.runtime == best else None
        yield Comparison(row.contender.name, DDPM, target)
        yield Comparison(row.contender.name, DDIM, target)
