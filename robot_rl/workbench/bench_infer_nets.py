"""What `bench infer` measures: policies (random weights or a run), their samplers, their exports, and the floor of their nets."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import ConfigError
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.runs.rti_verdict import as_measured
from robot_rl.stages.export import recorded_observations, rewritten, write_onnx
from robot_rl.types import Observation
from robot_rl.workbench.bench_infer_table import ONE_STEP
from robot_rl.workbench.bench_sample import task_spec
from robot_rl.workbench.bench_timing import BenchError, Contender, Options
from robot_rl.workbench.judge_play import environment
from robot_rl.workbench.rti_settings import as_ddpm, reference_of

PASSES = (ExportPass.film, ExportPass.conv)
# Sizes of deploy_perf.md: a chunk of 16; the middle one stays in a processor's cache, the large one does not.
NETS = {
    "mlp": ("policy=mlp",),
    "unet 5 M": ("policy=unet", "policy.horizon=16", "policy.channels=[112,224,448]", "policy.level_embedding=128"),
    "unet 65 M": ("policy=unet", "policy.horizon=16", "policy.channels=[448,896,1792]", "policy.level_embedding=256"),
}
MATRIX = 512  # a few ms: a busy machine rarely breaks into one
DDIM_STEPS = 10
# RTI starts there (docs/rti.md), or at the noisiest level below the policy's own where that is less.
RTI_LEVEL, RTI_STEPS = 21, (1, 2, 3)
CALIBRATION_ROWS = 100


@dataclass(frozen=True)
class Subject:
    """What one table is about.

    Attributes:
        name: of the net, or "policy".
        policy: a diffusion policy.
        head: a one-step policy of the same shape, None for none.
        calibration: observations (M, To, ...), torch; the first is the one that is timed.
        env: component where the policies are played; None: random weights play nothing.
        run: where the policy comes from, whose rti.json RTI reads; empty for random weights.
    """

    name: str
    policy: Any
    head: Any
    calibration: Observation
    env: Mapping[str, Any] | None = None
    run: str = ""


@dataclass(frozen=True)
class Sampled:
    """One sampler around the weights of a subject.

    Attributes:
        name: in the table.
        policy: a Policy.
        forwards: of the network, a decision (of RTI a warm one).
        is_file: whether it is exported too.
    """

    name: str
    policy: Any
    forwards: int
    is_file: bool = False


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


def subject_of(net: str, options: Options) -> Subject:
    """The subject that a part of the benchmark names: one of NETS, or "policy" for the run of `options`.

    Raises:
        BenchError: a run without a dataset.
        RobotRlError: a run, head, dataset or environment that can't be used.
    """
    if net != "policy":
        policy = random_policy(net)
        rng = torch.Generator().manual_seed(0)
        arrays = {
            key: torch.randn(CALIBRATION_ROWS, policy.config.history, *array.shape, generator=rng)
            for key, array in policy.spec.observation.items()
        }
        head = policy.one_step_student(1).eval().requires_grad_(False)
        return Subject(net, policy, head, Observation.from_arrays(arrays))
    if not options.policy or not options.dataset:
        raise BenchError(
            "bench infer --policy", expected="a run and --dataset, the episodes whose observations calibrate int8",
            got=f"--policy {options.policy} --dataset {options.dataset}", hint="Give the dataset that it was trained on.",
        )  # fmt: skip
    policy = reference_of(options.policy).policy.requires_grad_(False)
    with EpisodeStore.open(options.dataset, mode="r") as store:
        recorded = recorded_observations(store, policy, seed=0)
    head = None
    if options.one_step:
        from robot_rl.runs.checkpoint import load_policy

        head = load_policy(Path(options.one_step))[0].eval().requires_grad_(False)
        if head.spec != policy.spec:
            raise ConfigError(
                options.one_step, expected=f"a head of {policy.spec.env_id}", got=head.spec.env_id, hint="Another run?"
            )
    return Subject("policy", policy, head, recorded, environment(options.env, []), options.policy)


def samplers(subject: Subject) -> list[Sampled]:
    """The weights of a subject under every sampler; the second is DDIM, which the others are compared with."""
    policy = subject.policy
    steps = min(DDIM_STEPS, policy.sampler.num_levels)
    ddim = policy.with_steps(steps, mode=SamplingMode.eta0)
    levels = policy.sampler.num_levels
    found = [Sampled(f"DDPM-{levels}", as_ddpm(policy), levels), Sampled(f"DDIM-{steps}", ddim, steps, is_file=True)]
    level = min(RTI_LEVEL, ddim.sampler.levels[0] - 1)
    # Random weights have no gripper to freeze.
    warm = WarmStart(level=level, discrete_at=() if subject.env is None else None)
    warm = as_measured(subject.run, warm) if subject.run else warm
    found += [Sampled(f"RTI-{count}", ddim.warm_started(replace(warm, steps=count)), count) for count in RTI_STEPS]
    if subject.head is not None:
        found.append(Sampled(ONE_STEP, subject.head, subject.head.sampler.num_steps, is_file=True))
    return found


def compiled(policy: Any) -> Any:
    """A copy whose network is compiled by torch.compile, at the first call."""
    other = copy.deepcopy(policy)
    other.denoiser.compile(dynamic=False)
    return other


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
