"""Export a policy to one ONNX file and prove that it is the same policy.

Normaliser, sampler, clip and layout are inside the graph; inputs are the observation keys in physical units and the
noise, output is the action chunk in physical units. The metadata holds EnvSpec, joint names, To/Tp/Ta, the sampling
mode and the noise rule, which `evaluate` and the control loop follow.

Outputs in the run directory: export/policy.onnx, export/parity.json, export/latency.json; with `rti` also export/rti.onnx
(export_rti.py), and its parity and latency under "rti". Neither file replaces an older one before both are good.
The network may be rewritten before (`passes`); parity is that of the file against the policy as it was trained.
Parity: 100 random and 100 recorded observations at batch 1, 3 and 5; an error above `tolerance` fails the stage, and
the file is kept as policy.onnx.rejected.

Metrics (metrics.jsonl, step 0):
    export/parity_max_error        largest |torch - ONNX| over all cases, action units
    export/latency_p50_ms          of one decision at batch 1
    export/latency_p99_ms          of one decision at batch 1
With quantize=int8 also export/policy_int8.onnx (export_int8.py), and
    export/int8_max_error, export/int8_rms_error               to torch on recorded observations, action units
    export/int8_latency_p50_ms, export/int8_latency_p99_ms     of one decision at batch 1
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.deploy.noise import NoiseRule
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy, measure_latency
from robot_rl.errors import ConfigError, DeployError
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.provenance import package_versions
from robot_rl.runs.rti_verdict import as_measured
from robot_rl.stages.export_graph import example_inputs, write_graph
from robot_rl.stages.export_int8 import Int8Options, Quantize, add_int8, as_metrics
from robot_rl.stages.export_rti import RtiOptions, require_warm, write_rti
from robot_rl.stages.sampling import sampled
from robot_rl.types import Observation

log = logging.getLogger(__name__)

PARITY_BATCHES = (1, 3, 5)
PARITY_CASES = 100


@dataclass(frozen=True)
class ExportConfig:
    """Configuration of `robot-rl export`.

    Attributes:
        policy: run or checkpoint directory.
        dataset: EpisodeStore with the recorded observations of the parity test.
        mode: sampling mode of a diffusion policy, or null for its own (eta1 needs K+1 draws of noise as input).
        denoising_steps: of a diffusion policy, as in `evaluate`; null: its own.
        rti: write rti.onnx too, which starts each decision from the last chunk (docs/rti.md; level, steps, start, discrete_at,
            discrete_scale, max_jump, as in `evaluate`); null: not.
        noise_rule: fixed or seeded: how evaluate and the control loop draw the noise input.
        noise_seed: of that noise.
        passes: exact rewrites before the export (docs/infer.md): film, conv; [] exports the network as it was trained. One that
            finds nothing to rewrite is left out.
        tolerance: largest allowed difference to torch, action units.
        quantize: int8: write policy_int8.onnx too, its large products in int8 (docs/infer.md); null: not.
        int8_tolerance: largest allowed difference of that file to torch on recorded observations, action units; null: it is
            reported, and only a file whose error exceeds the spread of the actions is refused.
        provider: onnxruntime execution provider of parity and latency.
        allow_cpu: accept the CPU when `provider` does not load.
        threads: of onnxruntime.
        latency_calls: measured calls, behind 20 warm-up calls.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    dataset: str = "datasets/demonstrations.zarr"
    mode: SamplingMode | None = None
    denoising_steps: int | None = None
    rti: WarmStart | None = None
    noise_rule: NoiseRule = NoiseRule.seeded
    noise_seed: int = 0
    passes: tuple[ExportPass, ...] = (ExportPass.film, ExportPass.conv)
    tolerance: float = 1e-4
    quantize: Quantize | None = None
    int8_tolerance: float | None = None
    provider: str = "CPUExecutionProvider"
    allow_cpu: bool = False
    threads: int = 1
    latency_calls: int = 500
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = ExportConfig


def run(config: ExportConfig, run: RunDirectory) -> dict[str, Any]:
    """Write the file, test it, measure it."""
    began = time.monotonic()
    if config.int8_tolerance is not None and config.quantize is None:
        raise ConfigError(
            "int8_tolerance",
            expected="quantize=int8, whose file it judges",
            got="no quantize",
            hint="Add quantize=int8.",
        )
    policy, spec, saved = load_policy(Path(config.policy))
    policy.eval().requires_grad_(False)
    policy = sampled(policy, mode=config.mode, denoising_steps=config.denoising_steps, where=config.policy)
    start = None if config.rti is None else as_measured(config.policy, config.rti)
    warm = None if start is None else require_warm(policy, start, where=config.policy)
    with EpisodeStore.open(config.dataset, mode="r") as store:
        recorded, others = (recorded_observations(store, policy, seed=config.seed + k) for k in (0, 1))
    folder = run.path / "export"
    folder.mkdir(exist_ok=True)
    path, temporary = folder / "policy.onnx", folder / "policy.onnx.tmp"
    cheaper, applied = rewritten(policy, config.passes)
    names = [one.value for one in applied]
    metadata = _metadata(config, policy, spec.to_json(), saved.documents) | {"passes": json.dumps(names)}
    write_onnx(cheaper, temporary, metadata=metadata)
    exported = OnnxPolicy(temporary, provider=config.provider, allow_cpu=config.allow_cpu, threads=config.threads)
    cases = {"random": random_observations(policy, recorded, seed=config.seed), "recorded": recorded}
    parity = {name: parity_errors(policy, exported, case, seed=config.seed) for name, case in cases.items()}
    worst = max(error for errors in parity.values() for error in errors.values())
    rewriting = {name: _difference(policy, cheaper, case, seed=config.seed) for name, case in cases.items()}
    facts = {"tolerance": config.tolerance, "max_error": worst, "cases": PARITY_CASES}
    document = facts | parity | {"passes": {"applied": names, "max_error_torch": rewriting}}
    run.write_json("export/parity.json", document)
    if not worst <= config.tolerance:
        rejected = path.with_suffix(".onnx.rejected")
        os.replace(temporary, rejected)
        raise DeployError(
            str(rejected), expected=f"the same actions as torch within {config.tolerance}", got=f"a difference of {worst}",
            hint="See export/parity.json; do not deploy this file.",
        )  # fmt: skip
    one = _rows(recorded, slice(0, 1))
    told: dict[str, Any] = {}
    if warm is not None and start is not None:
        options = RtiOptions(start, config.passes, config.tolerance, PARITY_BATCHES, config.seed)
        rti = write_rti(warm, exported, metadata, cases, options)
        run.write_json("export/parity.json", document | {"rti": rti.told})
        os.replace(temporary, path)
        rti.publish()
        told = {"onnx": str(rti.path), "bytes": rti.path.stat().st_size, "parity_max_error": rti.told["max_error"]}
        told |= {"latency": measure_latency(rti.policy, one, calls=config.latency_calls)}
    else:
        os.replace(temporary, path)
    latency = measure_latency(exported, one, calls=config.latency_calls)
    latency |= {"rti": told["latency"]} if told else {}
    run.write_json("export/latency.json", latency)
    summary = {"onnx": str(path), "bytes": path.stat().st_size, "parity_max_error": worst, "latency": latency}
    summary |= {"passes": names} | ({"rti": told} if told else {})
    run.write_json("summary.json", summary)  # of a good file, whatever becomes of int8
    int8: dict[str, Any] = {}
    if config.quantize is not None:
        judged = Int8Options(config.int8_tolerance, config.threads, config.latency_calls, config.seed)
        int8 = {"int8": add_int8(run, policy, others, cases, judged)}
    with MetricsWriter(run.path / "metrics.jsonl") as metrics:
        latencies = {f"export/latency_{q}_ms": latency[f"{q}_ms"] for q in ("p50", "p99")}
        metrics.write(0, {"export/parity_max_error": worst} | latencies | (as_metrics(int8["int8"]) if int8 else {}))
    log.info(
        "passes %s, parity %.2g, latency p50 %.2f ms p99 %.2f ms",
        ", ".join(names) or "none", worst, latency["p50_ms"], latency["p99_ms"],
    )  # fmt: skip
    summary |= int8 | {"seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def rewritten(policy: Any, passes: Sequence[ExportPass]) -> tuple[Any, tuple[ExportPass, ...]]:
    """The policy in cheaper operators and the passes that applied; the policy itself where it knows none."""
    offer = getattr(policy, "for_export", None)
    found: tuple[Any, tuple[ExportPass, ...]] = (policy, ()) if offer is None else offer(passes)
    return found


class PolicyGraph(torch.nn.Module):
    """A policy as a pure function of named tensors, the form that is exported."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        self.keys = tuple(policy.config.observation_keys)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Observation tensors in the order of `keys`, then noise; returns actions (N, Tp, A), physical units."""
        arrays = dict(zip(self.keys, inputs[:-1], strict=True))
        return self.policy.forward(arrays, inputs[-1])  # type: ignore[no-any-return]


def write_onnx(policy: Any, path: Path, *, metadata: dict[str, str]) -> None:
    """Trace the policy to one ONNX file with a dynamic batch, and put `metadata` (JSON texts) into it."""
    inputs = dict(zip(policy.config.observation_keys, example_inputs(policy), strict=True))
    inputs |= {"noise": torch.zeros(2, *policy.noise_shape)}
    write_graph(PolicyGraph(policy), inputs, path, metadata=metadata)


def _metadata(config: ExportConfig, policy: Any, spec: dict[str, Any], documents: Mapping[str, Any]) -> dict[str, str]:
    plain = {
        "spec": spec,
        "joint_names": list(policy.spec.joint_names),
        "config": {
            "observation_keys": list(policy.config.observation_keys),
            "history": policy.config.history,
            "horizon": policy.config.horizon,
            "execute": policy.config.execute,
        },
        "policy": documents["policy"],
        "sampling": policy.sampling,
        "noise": {"rule": config.noise_rule.value, "seed": config.noise_seed, "shape": list(policy.noise_shape)},
        "checkpoint": config.policy,
        "versions": package_versions(),
    }
    return {key: json.dumps(value) for key, value in plain.items()}


def recorded_observations(store: EpisodeStore, policy: Any, *, seed: int) -> Observation:
    """PARITY_CASES observations of the dataset, drawn at random."""
    keys = tuple(dict.fromkeys(("proprio", *policy.config.observation_keys)))
    sampler = WindowSampler(
        store, history=policy.config.history, horizon=policy.config.horizon, execute=policy.config.execute, keys=keys,
        episodes=np.arange(len(store)), device=torch.device("cpu"),
    )  # fmt: skip
    return sampler.sample(PARITY_CASES, torch.Generator().manual_seed(seed)).observation


def random_observations(policy: Any, recorded: Observation, *, seed: int) -> Observation:
    """As many random observations: each element drawn wider than it was recorded, so that the clips act too."""
    generator = torch.Generator().manual_seed(seed)

    def scatter(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.uint8:
            return torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
        if x.dtype != torch.float32:
            return x
        spread = x.std(dim=0, keepdim=True) + 0.1
        return x.mean(dim=0, keepdim=True) + 3 * spread * torch.randn(x.shape, generator=generator)

    return recorded.map(scatter)


def parity_errors(policy: Any, exported: OnnxPolicy, observation: Observation, *, seed: int) -> dict[str, float]:
    """Largest |torch - ONNX| of all cases at each batch size; NaN counts as infinite."""
    generator = torch.Generator().manual_seed(seed)
    count = observation.proprio.shape[0]
    noise = torch.randn((count, *policy.noise_shape), generator=generator)
    errors = {}
    for batch in PARITY_BATCHES:
        worst = 0.0
        for begin in range(0, count, batch):
            part, its_noise = _rows(observation, slice(begin, begin + batch)), noise[begin : begin + batch]
            with torch.inference_mode():
                expected = policy.act(part, its_noise).actions
            got = exported.act(part.map(lambda x: x.numpy()), its_noise.numpy()).actions
            difference = float((expected - torch.from_numpy(got)).abs().max())
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
        errors[f"batch_{batch}"] = worst
    return errors


def _difference(policy: Any, other: Any, observation: Observation, *, seed: int) -> float:
    """Largest difference of two torch policies' actions, action units."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((observation.proprio.shape[0], *policy.noise_shape), generator=generator)
    with torch.inference_mode():
        return float((policy.act(observation, noise).actions - other.act(observation, noise).actions).abs().max())


def _rows(observation: Observation, rows: slice) -> Observation:
    return observation.map(lambda x: x[rows])
