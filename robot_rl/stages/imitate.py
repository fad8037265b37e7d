"""Imitate: fit a diffusion policy to demonstrations (Chi et al. 2023, arXiv 2303.04137; RL-100, section 1.2).

Inputs: an EpisodeStore. Output: checkpoints of a DiffusionPolicy; `policy` in them is the EMA.
The data lies in memory on the training device and windows are gathered there. Episodes are split into training and
validation as a whole. The last checkpoint is the result: none is picked by a lucky roll-out.

Metrics (metrics.jsonl, step = gradient steps):
    imitate/train_loss                 denoising mean squared error of the batch, normalised actions
    imitate/denoise_mse                the same, as the policy names it
    imitate/reconstruction             what an encoder of images or points decodes against what it saw, unweighted
    imitate/bottleneck_kl              KL of its latents to N(0, I), nats, unweighted
    imitate/lr                         learning rate of the step
    imitate/grad_norm                  before clipping
    imitate/rate_hz                    gradient steps per second since start
    imitate/val_loss                   the EMA's denoising error on validation episodes, fixed noise
    imitate/train_replay_rmse          open loop: sampled against recorded actions, training episodes, action units
    imitate/val_replay_rmse            the same on validation episodes
    imitate/success_once               periodic roll-outs of the EMA, development seeds
    imitate/success_once_low           lower end of its Wilson 95 % interval
    imitate/success_once_high          upper end
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from robot_rl.contracts import check_is_diffusion
from robot_rl.data.normalizer import Normalizer, NormalizerMode
from robot_rl.data.quality_gate import require_trainable
from robot_rl.data.same_spec import observing
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler, split_by_episode
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.engines.ranks import Ranks
from robot_rl.errors import DataError
from robot_rl.rollout import PolicyActor, rollout, summarize
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build, validate_component
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.training import TrainConfig, pick_device, train
from robot_rl.specs import EnvSpec
from robot_rl.stages.evaluate import check_policy_spec, check_spec

log = logging.getLogger(__name__)

SEEING_WINDOWS = 128


@dataclass(frozen=True)
class ImitateConfig:
    """Configuration of `robot-rl imitate`.

    Attributes:
        dataset: the EpisodeStore.
        policy: component: which policy; not used with `init`.
        init: run or checkpoint directory of a policy that this one starts from: its architecture, weights and
            normaliser (fine-tuning); empty: from random weights.
        env: component for the periodic roll-outs; may be empty when rollout_episodes is 0.
        train: the optimiser and its loop.
        only_success: leave out the episodes that did not succeed.
        validation_fraction: share of the episodes that is never trained on.
        rollout_episodes: episodes of each periodic roll-out (at every checkpoint); 0 for none.
        rollout_first_seed: development seeds; never those of the final evaluation.
        num_envs: of the roll-outs.
        ignore_checks: checks of `robot-rl data check` whose errors shall not keep the training from starting; what they
            found is in the run's provenance.json.
        seed, run_root, resume: as in every stage.
    """

    dataset: str = "datasets/demonstrations.zarr"
    policy: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    env: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    only_success: bool = True
    validation_fraction: float = 0.1
    rollout_episodes: int = 0
    rollout_first_seed: int = 50_000
    num_envs: int = 8
    ignore_checks: list[str] = field(default_factory=list)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = ImitateConfig
HAS_RANKS = True  # torchrun may start it


def run(config: ImitateConfig, run: RunDirectory) -> dict[str, Any]:
    """Train and return the last metrics."""
    began = time.monotonic()
    ranks = Ranks.of_environment()
    config = replace(config, train=replace(config.train, device=ranks.device(config.train.device)))
    part = ranks.part(config.train.batch_size)
    own = {} if part is None else {"part": part}
    device = pick_device(config.train.device)
    start = _loaded(config.init, device) if config.init else None
    node = config.policy if start is None else start.node
    _target, policy_config = validate_component(node, where="policy")
    with EpisodeStore.open(config.dataset, mode="r") as store:
        spec, content = store.spec, store.content_hash()
        if start is not None:
            check_policy_spec(start.policy, spec, where=config.init)
        episodes = _usable_episodes(store, config)
        checked = require_trainable([config.dataset], episodes=episodes.tolist(), ignore=config.ignore_checks)
        run.write_json("provenance.json", {**run.read_json("provenance.json"), "data_check": checked})
        first, second = split_by_episode(len(episodes), config.validation_fraction, config.seed)
        sampling = {
            "history": policy_config.history,
            "horizon": policy_config.horizon,
            "execute": policy_config.execute,
            "keys": tuple(dict.fromkeys(("proprio", *policy_config.observation_keys))),
            "device": device,
        }
        training = WindowSampler(store, episodes=episodes[first], **sampling)
        validation = WindowSampler(store, episodes=episodes[second], **sampling) if len(second) else None
        normalizer = (
            fit_normalizer(store, episodes[first], keys=tuple(policy_config.observation_keys))
            if start is None
            else start.normalizer
        )
    env = None
    if config.rollout_episodes:
        env = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=policy_config.history)
        check_spec(observing(spec, policy_config.observation_keys), env.spec, where=config.dataset)
    torch.manual_seed(config.seed)
    policy = build(node, spec=spec, normalizer=normalizer).to(device) if start is None else start.policy
    cards = policy.load_pretrained() if start is None and hasattr(policy, "load_pretrained") else []
    if cards:
        run.write_json("provenance.json", {**run.read_json("provenance.json"), "pretrained": cards})
    size = sum(p.numel() for p in policy.parameters())
    log.info("%d training windows of %d episodes, %d parameters", training.num_windows, len(first), size)
    log.info("%s", sight(spec, policy_config.observation_keys))
    last: dict[str, float] = {}

    def batch_loss(module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        window = training.sample(config.train.batch_size, generator)
        return module.loss(window, generator, **own)  # type: ignore[no-any-return, operator]

    def on_checkpoint(average: nn.Module, step: int) -> dict[str, float]:
        values = {"train_replay_rmse": replay_rmse(average, training, seed=config.seed)}
        if validation is not None:
            values["val_replay_rmse"] = replay_rmse(average, validation, seed=config.seed)
            values["val_loss"] = _validation_loss(average, validation, seed=config.seed)
        if env is not None:
            seeds = range(config.rollout_first_seed, config.rollout_first_seed + config.rollout_episodes)
            noise = NoiseSource(rule=NoiseRule.seeded, seed=0, shape=average.noise_shape)  # type: ignore[arg-type]
            actor = PolicyActor(average, noise)  # type: ignore[arg-type]
            success = summarize(rollout(env, actor, seeds))["success_once"]
            values |= {"success_once": success["rate"], "success_once_low": success["low"]}
            values |= {"success_once_high": success["high"]}
        last.clear()
        last.update({f"imitate/{name}": value for name, value in values.items()})
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return dict(last)

    documents = {
        "policy": {"_target_": node["_target_"], "config": policy_config.to_json()},
        "spec": (spec if start is None else start.spec).to_json(),  # of what the policy was built with
        "normalizer": normalizer.to_json(),
        "data": {"dataset": config.dataset, "content_hash": content, "training_episodes": episodes[first].tolist()}
        | ({} if start is None else {"init": start.path}),
    }
    average = train(
        policy, batch_loss, config=config.train, run=run, prefix="imitate", documents=documents, seed=config.seed,
        on_checkpoint=on_checkpoint,
    )  # fmt: skip
    if not last and ranks.rank == 0:
        on_checkpoint(average, config.train.num_steps)
    if env is not None:
        env.close()
    summary = {"metrics": dict(last), "parameters": size, "seconds": time.monotonic() - began, "dataset_hash": content}
    summary |= {
        "training_windows": training.num_windows,
        "near_constant": {key: normalizer.near_constant(key) for key in normalizer.keys},
    }
    run.write_json("summary.json", summary)
    return summary


@dataclass(frozen=True)
class _Start:
    """A policy to go on from, its component and what it was saved with."""

    policy: Any
    node: dict[str, Any]
    spec: EnvSpec
    normalizer: Normalizer
    path: str


def _loaded(path: str, device: torch.device) -> _Start:
    policy, spec, checkpoint = load_policy(path, device=device)
    check_is_diffusion(policy, path, hint="Fine-tune the teacher of a head; distil again behind it.")
    document = checkpoint.documents["policy"]
    node = {"_target_": document["_target_"], **document["config"]}
    normalizer = Normalizer.from_json(checkpoint.documents["normalizer"])
    log.info("starting from %s; `policy` of the configuration is not used", checkpoint.path)
    return _Start(policy, node, spec, normalizer, str(checkpoint.path))


def sight(spec: EnvSpec, keys: Sequence[str]) -> str:
    """One line: which keys of the observation a policy sees, and which it does not.

    Without it nobody notices that a policy of an environment of one's own never sees where it is.

    Args:
        spec: of the dataset.
        keys: `observation_keys` of the policy.
    """
    unseen = [key for key in spec.observation if key not in keys]
    text = f"the policy sees {', '.join(keys)}"
    return f"{text}; it does not see {', '.join(unseen)} (policy.observation_keys)" if unseen else text


def _usable_episodes(store: EpisodeStore, config: ImitateConfig) -> np.ndarray:
    success = np.asarray(store.success)
    episodes = np.flatnonzero(success) if config.only_success else np.arange(len(store))
    dropped = len(store) - len(episodes)
    if dropped:
        log.info("%d of %d episodes did not succeed and are left out (only_success=true)", dropped, len(store))
    if not len(episodes):
        raise DataError(
            config.dataset, expected="at least one usable episode", got=f"{len(store)} episodes, {dropped} left out",
            hint="Collect more demonstrations, or set only_success=false.",
        )  # fmt: skip
    return episodes


def fit_normalizer(store: EpisodeStore, episodes: np.ndarray, *, keys: tuple[str, ...]) -> Normalizer:
    """Statistics of the training episodes: observations standardised, actions to [-1, 1]. Images and depths need none."""
    low_dim = [key for key in keys if not key.startswith(("image/", "depth/"))]
    arrays = store.load([*low_dim, "action"])
    ends = np.cumsum(store.lengths)
    rows = np.concatenate([np.arange(ends[i] - store.lengths[i], ends[i]) for i in episodes])
    data = {key: torch.from_numpy(arrays[key][rows]) for key in arrays}
    modes = dict.fromkeys(low_dim, NormalizerMode.standard) | {"action": NormalizerMode.range}
    return Normalizer.fit(data, modes)


@torch.no_grad()
def _validation_loss(policy: nn.Module, windows: WindowSampler, *, seed: int) -> float:
    """Denoising error of 1,024 validation windows (128 with images or points), the same noise each time."""
    generator = torch.Generator(device=policy.device).manual_seed(seed)  # type: ignore[arg-type]
    window = windows.sample(SEEING_WINDOWS if _sees(policy) else 1024, generator)
    value, _parts = policy.loss(window, generator)  # type: ignore[operator]
    return float(value)


def _sees(policy: Any) -> bool:
    """Whether images or points are among what the policy observes: a window of them costs far more than one of numbers."""
    return any(key.startswith(("image/", "depth/")) or key == "points" for key in policy.config.observation_keys)


@torch.inference_mode()
def replay_rmse(policy: nn.Module, windows: WindowSampler, *, seed: int) -> float:
    """Open-loop replay: sampled actions against the recorded ones on 512 windows (128 with images or points).

    The executed part, in action units.
    """
    generator = torch.Generator(device=policy.device).manual_seed(seed)  # type: ignore[arg-type]
    count = SEEING_WINDOWS if _sees(policy) else 512
    window = windows.sample(count, generator)
    noise = torch.randn((count, *policy.noise_shape), generator=generator, device=generator.device)  # type: ignore[misc]
    chunk = policy.act(window.observation, noise)  # type: ignore[operator]
    valid = window.valid[:, : chunk.execute]
    error = (chunk.actions - window.actions)[:, : chunk.execute][valid]
    return float(error.square().mean().sqrt())
