"""Distil a diffusion policy to one step (or up to four): learn where the deterministic K-step sampler ends.

loss=regression (default): the student sees the teacher's initial noise and regresses to where the teacher's chain ends
from it (RL-100, section 1.6, loss `action_same_noise`; rpd_rti_onestep.md 3.4).
loss=consistency: at every level of the teacher the student must agree with its own slow copy (EMA target) one teacher
step further, and with the teacher's last step at the end (Song et al. 2023, consistency distillation; `back_up` in
RL-100's code). One teacher step a sample instead of K, so a gradient step is cheaper; errors add up over the levels.
loss=distribution: the student's chunks and the teacher's, `samples` of each at an observation, must be as near to each
other as among themselves (energy distance), whatever noise led to them; `critic` and `reward_weight` pull the student to
where a critic of the offline stage is high (algorithms/distribution_matching.py).

The teacher is fixed, in evaluation mode, and must be deterministic (eta0 or mean) for every loss: with fresh noise between its
steps the student would learn their average, and a head says of which deterministic map it is.

Inputs: a teacher run, the demonstrations, and states of the teacher's own roll-outs. Output: checkpoints of a
OneStepPolicy.

Metrics (metrics.jsonl, step = gradient steps):
    distill/train_loss             squared distance to the target, normalised actions
    distill/distill_mse            the same for loss=regression: to the teacher's end point
    distill/consistency_mse        the same for loss=consistency: to the EMA target one teacher step further
    distill/energy_distance        loss=distribution: to the teacher's chunks, root mean square of normalised elements
    distill/student_spread         loss=distribution: mean distance of two chunks of the student at one observation
    distill/teacher_spread         loss=distribution: the same of the teacher
    distill/reward_term            loss=distribution with a critic: minus the smallest Q over its mean size
    distill/lr                     learning rate of the step
    distill/grad_norm              before clipping
    distill/rate_hz                gradient steps per second since start
    distill/teacher_rmse           student against teacher on 512 windows, fixed noise, action units
    distill/teacher_max_error      the largest error among them
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robot_rl.algorithms.consistency import consistency_loss
from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.fitting.best_of import load_critic
from robot_rl.fitting.distribution_loss import DistributionLoss
from robot_rl.rollout import EpisodeRecord, PolicyActor, rollout
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.progress import Progress
from robot_rl.runs.training import LossFunction, TrainConfig, pick_device, train
from robot_rl.stages.evaluate import check_policy_spec
from robot_rl.types import Episode, Observation, Source, Window

log = logging.getLogger(__name__)


class DistillLoss(str, Enum):
    """What the student learns from: the ends of the teacher's chains, its single steps, or its chunks as a cloud."""

    regression = "regression"
    consistency = "consistency"
    distribution = "distribution"


@dataclass(frozen=True)
class DistillConfig:
    """Configuration of `robot-rl distill_onestep`.

    Attributes:
        teacher: run or checkpoint directory of a DiffusionPolicy.
        dataset: the EpisodeStore whose observations are used.
        env: component for the teacher's roll-outs; may be empty when rollout_episodes is 0.
        num_steps: of the student, 1 to 4.
        mode: the teacher's deterministic map: eta0 or mean; null for the teacher's own mode.
        loss: regression, consistency or distribution, see above.
        target_decay: of the EMA target (loss=consistency); RL-100 has 0.95, 0 compares with the student itself.
        samples: loss=distribution: chunks of each at an observation; a batch holds batch_size chunks in all.
        critic: loss=distribution: run of `offline` whose critic the student pleases; empty for none.
        reward_weight: of that critic; 0 exactly when there is none.
        rollout_episodes: episodes that the teacher plays first, to add the states it meets itself; 0 for none.
        rollout_first_seed: of those episodes.
        num_envs: of the roll-outs.
        train: the optimiser and its loop.
        seed, run_root, resume: as in every stage.
    """

    teacher: str = ""
    dataset: str = "datasets/demonstrations.zarr"
    env: dict[str, Any] = field(default_factory=dict)
    num_steps: int = 1
    mode: SamplingMode | None = None
    loss: DistillLoss = DistillLoss.regression
    target_decay: float = 0.95
    samples: int = 8
    critic: str = ""
    reward_weight: float = 0.0
    rollout_episodes: int = 0
    rollout_first_seed: int = 60_000
    num_envs: int = 8
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = DistillConfig

# Read for one loss alone.
_OWNER = {
    "target_decay": DistillLoss.consistency, "samples": DistillLoss.distribution, "critic": DistillLoss.distribution,
    "reward_weight": DistillLoss.distribution,
}  # fmt: skip


def run(config: DistillConfig, run: RunDirectory) -> dict[str, Any]:
    """Distil and return the student's distance to its teacher."""
    began = time.monotonic()
    _check_fields(config)
    device = pick_device(config.train.device)
    teacher, spec, saved = load_policy(Path(config.teacher), device=str(device))
    teacher.eval().requires_grad_(False)
    if config.mode is not None:
        teacher = teacher.with_mode(config.mode)
    torch.manual_seed(config.seed)
    is_consistency = config.loss is DistillLoss.consistency
    student = teacher.one_step_student(config.num_steps, head="consistency" if is_consistency else "plain").to(device)
    sources, env_steps = _state_sources(config, teacher, run, device)
    share = config.train.batch_size // len(sources)

    def windows(generator: torch.Generator, count: int) -> list[Window]:
        return [source.sample(count, generator) for source in sources]

    def pair(generator: torch.Generator, count: int) -> tuple[Observation, torch.Tensor, torch.Tensor]:
        observation = _joined([window.observation for window in windows(generator, count)])
        rows = observation.proprio.shape[0]
        noise = torch.randn((rows, *teacher.noise_shape), generator=generator, device=device)
        with torch.no_grad():
            return observation, noise, teacher.normalized_action(observation, noise)

    def regression(module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return module.loss(*pair(generator, share))  # type: ignore[no-any-return, operator]

    batch_loss: LossFunction = regression
    if is_consistency:
        batch_loss = ConsistencyLoss(teacher, student, lambda g: windows(g, share), decay=config.target_decay)
    if config.loss is DistillLoss.distribution:
        batch_loss = DistributionLoss(
            teacher, lambda g: _joined([w.observation for w in windows(g, max(1, share // config.samples))]),
            samples=config.samples, critic=load_critic(config.critic, teacher) if config.critic else None,
            reward_weight=config.reward_weight,
        )  # fmt: skip

    def on_checkpoint(average: nn.Module, step: int) -> dict[str, float]:
        values = {f"distill/{name}": value for name, value in _distance(average, teacher, pair, config.seed).items()}
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        last.update(values)
        return values

    last: dict[str, float] = {}
    documents = {
        "policy": {
            "_target_": f"{type(student).__module__}.{type(student).__qualname__}",
            "config": student.config.to_json(),
        },
        "spec": spec.to_json(),
        "normalizer": saved.documents["normalizer"],
        "teacher": {
            "path": str(saved.path),
            "mode": teacher.sampling,
            "data": saved.documents.get("data"),
            "loss": config.loss.value,
        },
    }
    average = train(
        student, batch_loss, config=config.train, run=run, prefix="distill", documents=documents, seed=config.seed,
        on_checkpoint=on_checkpoint,
    )  # fmt: skip
    if not last:
        on_checkpoint(average, config.train.num_steps)
    summary = {"metrics": dict(last), "seconds": time.monotonic() - began, "teacher": str(saved.path)}
    summary |= {"env_steps": env_steps, "episodes": config.rollout_episodes}
    run.write_json("summary.json", summary)
    return summary


def _check_fields(config: DistillConfig) -> None:
    for name, owner in _OWNER.items():
        value = getattr(config, name)
        if config.loss is not owner and value != getattr(DistillConfig, name):
            raise ConfigError(
                name, expected=f"loss={owner.value} with it", got=f"{name}={value} with loss={config.loss.value}",
                hint=f"Leave {name} out, or set loss={owner.value}.",
            )  # fmt: skip


class ConsistencyLoss:
    """Consistency distillation (Song et al. 2023, algorithm 2) as a TargetLoss of the training loop.

    Args:
        teacher: deterministic DiffusionPolicy, frozen.
        student: where the target starts from.
        windows: draws the batch: chunks of the data, which are made noisy, and their observations.
        decay: of the target.
    """

    def __init__(
        self, teacher: Any, student: nn.Module, windows: Callable[[torch.Generator], list[Window]], *, decay: float
    ) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("target_decay", expected="in [0, 1)", got=str(decay), hint="RL-100 uses 0.95.")
        self.teacher, self.windows, self.decay = teacher, windows, decay
        self.target = copy.deepcopy(student).eval().requires_grad_(False)

    def __call__(self, module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch; row i is at denoising step i modulo K."""
        drawn = self.windows(generator)
        observation = _joined([window.observation for window in drawn])
        x0 = self.teacher.normalizer.apply("action", torch.cat([window.actions for window in drawn]))
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        latent, level, following, next_level = self.teacher.consistency_pairs(observation, x0, noise)
        with torch.no_grad():
            ahead = self.target.jump(observation, following, next_level.clamp(min=0))  # type: ignore[operator]
            target = torch.where((next_level < 0)[:, None, None], following, ahead)
        return consistency_loss(module.jump(observation, latent, level), target)  # type: ignore[operator]


def _joined(observations: list[Observation]) -> Observation:
    """One batch of several, row behind row."""
    if len(observations) == 1:
        return observations[0]
    arrays = [observation.arrays() for observation in observations]
    return Observation.from_arrays({key: torch.cat([a[key] for a in arrays]) for key in arrays[0]})


def _state_sources(
    config: DistillConfig, teacher: Any, run: RunDirectory, device: torch.device
) -> tuple[list[WindowSampler], int]:
    """Windows of the demonstrations and of the teacher's own episodes, and the env steps of the latter."""
    sampling = {
        "history": teacher.config.history,
        "horizon": teacher.config.horizon,
        "execute": teacher.config.execute,
        "keys": tuple(dict.fromkeys(("proprio", *teacher.config.observation_keys))),
        "device": device,
    }
    with EpisodeStore.open(config.dataset, mode="r") as store:
        check_policy_spec(teacher, store.spec, where=config.dataset)
        sources = [WindowSampler(store, episodes=np.arange(len(store)), **sampling)]
    if not config.rollout_episodes:
        return sources, 0
    with _teacher_episodes(config, teacher, run) as store:
        sources.append(WindowSampler(store, episodes=np.arange(len(store)), **sampling))
        return sources, int(store.lengths.sum())


def _teacher_episodes(config: DistillConfig, teacher: Any, run: RunDirectory) -> EpisodeStore:
    """The store of the teacher's episodes, completed when an earlier run was killed."""
    env = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=teacher.config.history)
    check_policy_spec(teacher, env.spec, where=config.teacher)
    store = EpisodeStore.open_or_create(
        str(run.path / "teacher_rollouts.zarr"), env.spec, metadata={"collector": "teacher"}
    )
    wanted = range(config.rollout_first_seed, config.rollout_first_seed + config.rollout_episodes)
    done = {int(seed) for seed in store.seeds}
    actor = PolicyActor(teacher, NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=teacher.noise_shape))
    with Progress("teacher roll-outs", total=len(wanted)) as progress:
        progress.advance(len(done))

        def on_episode(_record: EpisodeRecord, episode: Episode | None) -> None:
            assert episode is not None
            store.append(episode)
            progress.advance(1)

        rollout(env, actor, [s for s in wanted if s not in done], on_episode=on_episode, source=Source.policy)
    env.close()
    return store


@torch.inference_mode()
def _distance(student: nn.Module, teacher: Any, pair: Any, seed: int) -> dict[str, float]:
    """Student against teacher in action units on 512 windows or more, the executed part of the chunk."""
    generator = torch.Generator(device=teacher.device).manual_seed(seed)
    observation, noise, _target = pair(generator, 512)
    expected, got = teacher.act(observation, noise), student.act(observation, noise)  # type: ignore[operator]
    error = (expected.actions - got.actions)[:, : expected.execute]
    if not bool(torch.isfinite(error).all()):
        raise PolicyError("student", expected="finite actions", got="NaN or inf", hint="Lower train.learning_rate.")
    return {"teacher_rmse": float(error.square().mean().sqrt()), "teacher_max_error": float(error.abs().max())}
