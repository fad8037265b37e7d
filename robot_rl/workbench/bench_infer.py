"""`bench infer`: time of one decision at batch 1: eager with K steps, eager with one, ONNX with K and with one.

All four have the same denoiser with the same (random) weights, and do all of a decision: normaliser, sampler, clip.
Before anything is timed, each ONNX file must give the actions of its torch policy within 1e-4.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import DeployError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.stages.export import write_onnx
from robot_rl.types import ActionChunk, Observation
from robot_rl.workbench.bench_sample import task_spec
from robot_rl.workbench.bench_timing import Comparison, Contender, Options, Report, interleave

NETS = ("mlp", "unet")
TOLERANCE = 1e-4
TARGET = 8.0


def run(options: Options) -> Report:
    """Measure both nets.

    Raises:
        DeployError: onnxruntime is missing, or a file gives other actions than torch.
    """
    torch.set_num_threads(options.threads)
    contenders, comparisons, facts = [], [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for net in NETS:
            teacher = _policy(net)
            student = teacher.one_step_student(1).eval().requires_grad_(False)
            steps = teacher.config.num_steps
            facts[net] = {"parameters": sum(p.numel() for p in teacher.parameters()), "denoising_steps": steps}
            names = {}
            for policy, count in ((teacher, steps), (student, 1)):
                exported = _exported(policy, Path(folder) / f"{net}{count}.onnx", threads=options.threads)
                eager, onnx, error = _decisions(policy, exported)
                facts[net][f"max_error_{count}_steps"] = error
                for kind, call in (("eager", eager), ("ONNX", onnx)):
                    names[kind, count] = f"{net} {kind}, {count} step{'s' if count > 1 else ''}"
                    contenders.append(Contender(names[kind, count], call, 1, "decisions", repeats=20))
            comparisons.append(Comparison(names["ONNX", 1], names["eager", steps], TARGET))
            comparisons.append(Comparison(names["ONNX", steps], names["eager", steps]))
            comparisons.append(Comparison(names["ONNX", 1], names["eager", 1]))
        facts |= {"batch": 1, "threads": options.threads, "provider": exported.provider}
        measured = interleave(contenders, rounds=options.rounds)
    return Report(measured, tuple(comparisons), facts)


def _policy(net: str) -> Any:
    """A diffusion policy of `configs/policy/<net>.yaml` with random weights."""
    spec = task_spec()
    rng = torch.Generator().manual_seed(0)
    data = {
        "state": torch.randn(1000, spec.observation["state"].size, generator=rng),
        "proprio": torch.randn(1000, spec.observation["proprio"].size, generator=rng),
        "action": 2 * torch.rand(1000, spec.action.size, generator=rng) - 1,
    }
    modes = {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range}
    torch.manual_seed(0)
    node = compose_config([f"policy={net}"], name="imitate")["policy"]
    return build(node, spec=spec, normalizer=Normalizer.fit(data, modes)).eval().requires_grad_(False)


def _exported(policy: Any, path: Path, *, threads: int) -> OnnxPolicy:
    config = policy.config
    metadata = {
        "spec": policy.spec.to_json(),
        "config": {
            "observation_keys": list(config.observation_keys),
            "history": config.history,
            "horizon": config.horizon,
            "execute": config.execute,
        },
        "sampling": policy.sampling,
        "noise": {"rule": "seeded", "seed": 0, "shape": list(policy.noise_shape)},
    }
    write_onnx(policy, path, metadata={key: json.dumps(value) for key, value in metadata.items()})
    return OnnxPolicy(path, threads=threads)


def _decisions(policy: Any, exported: OnnxPolicy) -> tuple[Callable[[], ActionChunk], Callable[[], ActionChunk], float]:
    """One decision by torch, the same by ONNX, and the largest difference of their actions.

    Raises:
        DeployError: the difference is above TOLERANCE.
    """
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.standard_normal((1, policy.config.history, *array.shape)).astype(np.float32)
        for key, array in policy.spec.observation.items()
    }
    noise = rng.standard_normal((1, *policy.noise_shape)).astype(np.float32)
    in_numpy = Observation.from_arrays(arrays)
    in_torch, torch_noise = in_numpy.map(torch.from_numpy), torch.from_numpy(noise)

    def eager() -> ActionChunk:
        with torch.inference_mode():
            chunk: ActionChunk = policy.act(in_torch, torch_noise)
        return chunk

    def onnx() -> ActionChunk:
        return exported.act(in_numpy, noise)

    error = float(np.abs(eager().actions.numpy() - onnx().actions).max())
    if not error <= TOLERANCE:
        raise DeployError(
            exported.path, expected=f"torch's actions within {TOLERANCE}", got=f"a difference of {error}",
            hint="The export is broken; a faster wrong policy is not measured.",
        )  # fmt: skip
    return eager, onnx, error
