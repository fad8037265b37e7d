"""What `bench infer` measures: policies with random weights, their samplers, their exports, and the floor of their nets."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import FinalAlpha, SamplingMode
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.stages.export import rewritten, write_onnx
from robot_rl.workbench.bench_sample import task_spec
from robot_rl.workbench.bench_timing import Contender

PASSES = (ExportPass.film, ExportPass.conv)
# Sizes of deploy_perf.md: a chunk of 16; the middle one stays in a processor's cache, the large one does not.
NETS = {
    "mlp": ("policy=mlp",),
    "unet 5 M": ("policy=unet", "policy.horizon=16", "policy.channels=[112,224,448]", "policy.level_embedding=128"),
    "unet 65 M": ("policy=unet", "policy.horizon=16", "policy.channels=[448,896,1792]", "policy.level_embedding=256"),
}
MATRIX = 512  # a few ms: a busy machine rarely breaks into one


def random_policy(net: str) -> Any:
    """A diffusion policy of NETS with random weights."""
    spec = task_spec()
    rng = torch.Generator().manual_seed(0)
    data = {
        "state": torch.randn(1000, spec.observation["state"].size, generator=rng),
        "proprio": torch.randn(1000, spec.observation["proprio"].size, generator=rng),
        "action": 2 * torch.rand(1000, spec.action.size, generator=rng) - 1,
    }
    modes = {"state": NormalizerMode.standard, "proprio": NormalizerMode.standard, "action": NormalizerMode.range}
    torch.manual_seed(0)
    node = compose_config(list(NETS[net]), name="imitate")["policy"]
    return build(node, spec=spec, normalizer=Normalizer.fit(data, modes)).eval().requires_grad_(False)


def samplers(policy: Any) -> dict[str, tuple[Any, int]]:
    """Name -> (the same weights under this sampler, network forwards of a decision)."""
    every = copy.copy(policy)
    levels = tuple(reversed(range(policy.sampler.num_levels)))
    every.sampler = replace(policy.sampler, levels=levels, final_alpha=FinalAlpha.one, mode=SamplingMode.eta1)
    student = policy.one_step_student(1).eval().requires_grad_(False)
    return {
        f"DDPM-{len(levels)}": (every, len(levels)),
        f"DDIM-{policy.sampler.num_steps}": (policy, policy.sampler.num_steps),
        "one step": (student, 1),
    }


def exported(policy: Any, path: Path, *, threads: int, passes: Sequence[ExportPass] = PASSES) -> OnnxPolicy:
    """The policy as a file after `passes`, opened by onnxruntime."""
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
    cheaper, _ = rewritten(policy, passes)
    write_onnx(cheaper, path, metadata={key: json.dumps(value) for key, value in metadata.items()})
    return OnnxPolicy(path, threads=threads)


def bare_forward(net: str, policy: Any) -> tuple[Contender, float, float]:
    """One eager forward of the network alone at batch 1; bytes of its weights, and FLOPs (1 multiplication and 1 addition: 2).

    FLOPs are those of products and convolutions, as torch.utils.flop_counter counts them.
    """
    from torch.utils.flop_counter import FlopCounterMode

    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(1, policy.config.horizon, policy.spec.action.size, generator=rng)
    condition, level = torch.randn(1, policy.encoder.size, generator=rng), torch.tensor([policy.sampler.levels[0]])
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        policy.denoiser(latent, level, condition)
    moved = float(sum(weight.numel() * weight.element_size() for weight in policy.denoiser.parameters()))

    def forward() -> None:
        with torch.inference_mode():
            policy.denoiser(latent, level, condition)

    return (
        Contender(f"{net} bare forward, torch", forward, 1, "forwards", repeats=5),
        moved,
        float(counter.get_total_flops()),
    )


def ceilings(net: str, moved: float) -> list[Contender]:
    """What bounds a forward here: reading as many bytes as its weights have, and float32 products.

    A net that fits the cache is read from there, so the bandwidth is that of its own size.
    """
    weights = torch.ones(int(moved) // 4)
    left = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0))
    right, out = left.clone(), torch.empty_like(left)
    return [
        Contender(f"{net} read weights", lambda: torch.sum(weights), moved / 1e9, "GB", repeats=5),
        Contender(f"{net} matmul", lambda: torch.mm(left, right, out=out), 2 * MATRIX**3 / 1e9, "GFLOP", repeats=5),
    ]
