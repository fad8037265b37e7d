"""`bench train`: training samples per second of imitation, MLP and U-Net, data gathering included.

One call is one gradient step as `runs/training.py` does it: windows, loss, backward, clip, fused AdamW, weight average.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.runs.composition import compose_config
from robot_rl.runs.config import build
from robot_rl.runs.training import TrainConfig, update_average
from robot_rl.stages.imitate import fit_normalizer
from robot_rl.workbench.bench_sample import random_demonstrations
from robot_rl.workbench.bench_timing import Contender, Options, Report, interleave

NETS = ("mlp", "unet")


def run(options: Options) -> Report:
    """Measure both nets at the batch size of `robot-rl imitate`.

    Raises:
        DataError: the dataset can't be read.
    """
    torch.set_num_threads(options.threads)
    config = TrainConfig()
    contenders, facts = [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.dataset) if options.dataset else random_demonstrations(Path(folder) / "demos.zarr")
        with EpisodeStore.open(path, mode="r") as store:
            for net in NETS:
                node = compose_config([f"policy={net}"], name="imitate")["policy"]
                policy, step = _training(store, node, config)
                contenders.append(Contender(net, step, config.batch_size, "samples", repeats=5))
                with FlopCounterMode(display=False) as counter:
                    step()
                parameters = sum(p.numel() for p in policy.parameters())
                facts[net] = {"parameters": parameters, "gflop_per_step": counter.get_total_flops() / 1e9}
    measured = interleave(contenders, rounds=options.rounds)
    for measurement in measured:
        rate = measurement.rate / config.batch_size
        facts[measurement.name]["gflop_per_s"] = facts[measurement.name]["gflop_per_step"] * rate
    facts |= {"batch": config.batch_size, "threads": options.threads, "dataset": options.dataset or "random numbers"}
    return Report(measured, (), facts)


def _training(store: EpisodeStore, node: dict[str, Any], config: TrainConfig) -> tuple[Any, Callable[[], None]]:
    """A policy with fresh weights, and one step of its training."""
    episodes = np.arange(len(store))
    torch.manual_seed(0)
    keys = tuple(node["observation_keys"])
    policy = build(node, spec=store.spec, normalizer=fit_normalizer(store, episodes, keys=keys))
    size = policy.config
    windows = WindowSampler(
        store, history=size.history, horizon=size.horizon, execute=size.execute, keys=("proprio", *keys),
        episodes=episodes, device="cpu",
    )  # fmt: skip
    average = copy.deepcopy(policy).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        loss, _parts = policy.loss(windows.sample(config.batch_size, generator), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.grad_norm)
        optimizer.step()
        update_average(average, policy, step=1000, ema_max=config.ema_max)

    return policy, step
