"""The gradient loop that imitation and distillation share: optimise, average, log, save, resume bit-equal.

What a stage supplies is its loss; what it gets back is the averaged (EMA) module, the one that is evaluated, saved as
`policy` and used by everything after. All randomness of a step comes from one generator whose state is in every
checkpoint, so a run killed at any step continues on the CPU as if nothing had happened.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robot_rl.engines.ranks import Ranks
from robot_rl.errors import ConfigError, RunError
from robot_rl.runs.checkpoint import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible

log = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, torch.Generator], tuple[Tensor, dict[str, float]]]


@runtime_checkable
class TargetLoss(Protocol):
    """A loss against a slowly moving copy of the module: `target` follows it by `decay` after every step.

    The target is part of every checkpoint, so that a resumed run is the same run.
    """

    target: nn.Module
    decay: float

    def __call__(self, module: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One step's scalar and its metrics."""
        ...


class Precision(str, Enum):
    """Number format of the forward pass; weights and optimiser stay float32."""

    fp32 = "fp32"
    bf16 = "bf16"
    auto = "auto"


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser and its loop.

    Attributes:
        num_steps: gradient steps.
        batch_size: windows a step.
        learning_rate: peak; linear warm-up, then cosine to zero.
        warmup_steps: of the linear warm-up.
        weight_decay: of AdamW.
        grad_norm: gradients are clipped to this norm.
        ema_max: largest decay of the weight average, min(ema_max, 1 - step^-0.75).
        checkpoint_every_steps: a checkpoint, and the stage's own evaluation where it has one.
        log_every_steps: a line in metrics.jsonl.
        device: "cpu", "cuda" or "cuda:N"; one that is not there is an error.
        threads: torch threads on the CPU; 0 measures 1 against all cores and takes the faster.
        precision: fp32, bf16, or auto (measured; bf16 must be at least 10 % faster).
    """

    num_steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    grad_norm: float = 1.0
    ema_max: float = 0.999
    checkpoint_every_steps: int = 2_000
    log_every_steps: int = 100
    device: str = "cpu"
    threads: int = 0
    precision: Precision = Precision.fp32


def pick_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ConfigError: when it does not exist on this machine. Never falls back.
    """
    try:
        device = torch.device(name)
        on_gpu = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
        available = device.type == "cpu" or on_gpu
    except RuntimeError:
        available = False
    if not available:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(
            "train.device", expected="a device of this machine: " + ", ".join(found), got=repr(name),
            hint="Set train.device=cpu, or run `robot-rl info` to see why the GPU is not found.",
        )  # fmt: skip
    return device


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of gradient step `step` (0-based): linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(config.num_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass
class TrainState:
    """What a checkpoint holds of a training: everything that the next step depends on."""

    module: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    threads: int
    precision: Precision
    step: int = 0
    target: nn.Module | None = None


def train(
    module: nn.Module,
    loss: LossFunction,
    *,
    config: TrainConfig,
    run: RunDirectory,
    prefix: str,
    documents: Mapping[str, Any],
    seed: int,
    on_checkpoint: Callable[[nn.Module, int], dict[str, float]] | None = None,
) -> nn.Module:
    """Minimise `loss(module, generator)` and return the averaged module in evaluation mode.

    Args:
        module: trained in place; only parameters with requires_grad are.
        loss: one step's scalar and its metrics; it may be a TargetLoss.
        config: of the loop.
        run: receives checkpoints and metrics; one with checkpoints in it is continued.
        prefix: of the metric names.
        documents: JSON documents of every checkpoint ("policy", "spec", "normalizer").
        seed: of the generator.
        on_checkpoint: called with the averaged module after each checkpoint; returns metrics.

    Raises:
        RunError: when the loss is no finite number, or a checkpoint does not fit.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    ranks = _ranks(loss, config)
    state = _start(module, loss, config=config, run=run, seed=seed)
    shared = ranks.shared(state.module, loss)
    torch.set_num_threads(state.threads)
    began, first = time.monotonic(), state.step
    with (
        MetricsWriter(run.path / "metrics.jsonl", resume_step=state.step) as metrics,
        interruptible() as stop,
        Progress(prefix, total=config.num_steps) as progress,
    ):
        progress.advance(state.step)
        while state.step < config.num_steps:
            value, parts = _step(state, shared, config)
            value, parts, is_stopped = ranks.agreed(value, parts, stop.requested, device=state.generator.device)
            progress.advance(1)
            if state.step % config.log_every_steps == 0 or state.step == config.num_steps:
                rate = (state.step - first) / (time.monotonic() - began)
                _check_finite(value, state.step, run)
                values = {"train_loss": value, "lr": learning_rate_at(state.step - 1, config), "rate_hz": rate}
                metrics.write(state.step, {f"{prefix}/{name}": v for name, v in (values | parts).items()})
                progress.advance(0, f"loss {value:.4f}")
            if is_stopped or state.step % config.checkpoint_every_steps == 0 or state.step == config.num_steps:
                _check_finite(value, state.step, run)
                if ranks.rank == 0:
                    _save(state, run, documents)
                if is_stopped:
                    log.warning("stopped by the user at step %d; continue with resume=%s", state.step, run.path)
                    raise KeyboardInterrupt
                if on_checkpoint is not None and ranks.rank == 0:
                    with progress.share("evaluation"):
                        metrics.write(state.step, on_checkpoint(state.average, state.step))
    return state.average.eval()


def _ranks(loss: LossFunction, config: TrainConfig) -> Ranks:
    ranks = Ranks.of_environment()
    if ranks.count > 1 and (isinstance(loss, TargetLoss) or config.precision is Precision.auto):
        raise ConfigError(
            "torchrun", expected="train.precision=fp32 or bf16, and no target network", got="another",
            hint="Processes that measure might choose differently.",
        )  # fmt: skip
    return ranks


def _start(module: nn.Module, loss: LossFunction, *, config: TrainConfig, run: RunDirectory, seed: int) -> TrainState:
    """A fresh state, or the one of the newest complete checkpoint."""
    device = pick_device(config.device)
    parameters = [p for p in module.parameters() if p.requires_grad]
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator(device=device).manual_seed(seed)
    newest = latest_checkpoint(run.path)
    target = loss.target if isinstance(loss, TargetLoss) else None
    if newest is None:
        threads, precision = fastest(module, loss, config, seed=seed)
        return TrainState(module, average, optimizer, generator, threads, precision, target=target)
    saved = load_checkpoint(newest)
    average.load_state_dict(saved.tensors["policy"])
    module.load_state_dict(saved.tensors["raw"])
    if target is not None:
        target.load_state_dict(saved.tensors["target"])
    restore_optimizer(optimizer, saved.tensors["optimizer"])
    generator.set_state(saved.tensors["random"]["generator"])
    trainer = saved.documents["trainer"]
    log.info("continuing at step %d of %d from %s", saved.step, config.num_steps, newest)
    threads, precision = int(trainer["threads"]), Precision(trainer["precision"])
    return TrainState(module, average, optimizer, generator, threads, precision, step=saved.step, target=target)


def _step(state: TrainState, loss: LossFunction, config: TrainConfig) -> tuple[float, dict[str, float]]:
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(state.step, config)
    state.module.train()
    value, parts = _forward(state.module, loss, state.generator, state.precision)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.module.parameters(), config.grad_norm)
    state.optimizer.step()
    state.step += 1
    update_average(state.average, state.module, step=state.step, ema_max=config.ema_max)
    if isinstance(loss, TargetLoss):
        follow(loss.target, state.module, decay=loss.decay)
    return float(value.detach()), parts | {"grad_norm": float(norm)}


def _forward(
    module: nn.Module, loss: LossFunction, generator: torch.Generator, precision: Precision
) -> tuple[Tensor, dict[str, float]]:
    if precision is Precision.fp32:
        return loss(module, generator)
    with torch.autocast(generator.device.type, dtype=torch.bfloat16):
        return loss(module, generator)


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, *, step: int, ema_max: float) -> None:
    """Exponential moving average of the weights, in place; decay d = min(ema_max, 1 - step^-0.75), d a + (1 - d) w.

    `step` counts finished gradient steps from 1, so the first update copies the weights (the power schedule of
    Diffusion Policy). Buffers (the normaliser) are constants and are not averaged.
    """
    follow(average, module, decay=min(ema_max, 1 - step**-0.75))


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, *, decay: float) -> None:
    """a <- decay a + (1 - decay) w for every weight, in place."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def _check_finite(value: float, step: int, run: RunDirectory) -> None:
    if not math.isfinite(value):
        raise RunError(
            f"{run.path} step {step}", expected="a finite loss", got=str(value),
            hint="Lower train.learning_rate; the last good checkpoint is kept. Look for extreme values with the dataset's normaliser.",
        )  # fmt: skip


def _save(state: TrainState, run: RunDirectory, documents: Mapping[str, Any]) -> None:
    trainer = {"threads": state.threads, "precision": state.precision.value, "step": state.step}
    target = {} if state.target is None else {"target": state.target.state_dict()}
    save_checkpoint(
        run.path,
        step=state.step,
        tensors=target
        | {
            "policy": state.average.state_dict(),
            "raw": state.module.state_dict(),
            "optimizer": flatten_optimizer(state.optimizer),
            "random": {"generator": state.generator.get_state()},
        },
        documents=dict(documents) | {"trainer": trainer},
    )


def fastest(module: nn.Module, loss: LossFunction, config: TrainConfig, *, seed: int) -> tuple[int, Precision]:
    """Measure thread counts and number formats on a throw-away copy and return the quickest pair.

    Two threads on contended cores can be ten times slower than one, and bf16 helps convolutions but not every CPU, so
    neither is guessed. What is set in `config` is taken as it is.
    """
    device = pick_device(config.device)
    counts = [config.threads] if config.threads else sorted({1, len(os.sched_getaffinity(0))})
    formats = [Precision.fp32, Precision.bf16] if config.precision is Precision.auto else [config.precision]
    if device.type != "cpu":
        counts = counts[:1]
    if len(counts) * len(formats) == 1:
        return counts[0], formats[0]
    trial = copy.deepcopy(module)
    seconds = {}
    for count in counts:
        torch.set_num_threads(count)
        for precision in formats:
            generator = torch.Generator(device=device).manual_seed(seed)
            times = []
            for _ in range(12):
                began = time.perf_counter()
                value, _parts = _forward(trial, loss, generator, precision)
                value.backward()  # type: ignore[no-untyped-call]
                times.append(time.perf_counter() - began)
            # bf16 rounds, so it must earn its place.
            seconds[count, precision] = sorted(times)[len(times) // 2] * (1.0 if precision is Precision.fp32 else 1.1)
    best = min(seconds, key=lambda pair: seconds[pair])
    shown = ", ".join(
        f"{count} thread(s) {precision.value} {1e3 * s:.1f} ms" for (count, precision), s in seconds.items()
    )
    log.info("training step measured: %s; using %d thread(s) %s", shown, best[0], best[1].value)
    return best
