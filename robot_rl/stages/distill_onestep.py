"""Distil a diffusion policy to one step (or up to four): same-noise regression to the deterministic K-step sampler.

The student sees the teacher's initial noise and regresses to where the teacher's chain ends from it (RL-100, section
1.6, loss `action_same_noise`; rpd_rti_onestep.md 3.4). The teacher is fixed, in evaluation mode, and must be
deterministic (eta0 or mean): with fresh noise between its steps the regression would learn their average.

Inputs: a teacher run, the demonstrations, and states of the teacher's own roll-outs. Output: checkpoints of a
OneStepPolicy.

Metrics (metrics.jsonl, step = gradient steps):
    distill/train_loss             squared distance to the teacher's end point, normalised actions
    distill/distill_mse            the same, as the policy names it
    distill/lr                     learning rate of the step
    distill/grad_norm              before clipping
    distill/rate_hz                gradient steps per second since start
    distill/teacher_rmse           student against teacher on 512 windows, fixed noise, action units
    distill/teacher_max_error      the largest error among them
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.store import EpisodeStore
from robot_rl.data.windows import WindowSampler
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import PolicyError
from robot_rl.rollout import EpisodeRecord, PolicyActor, rollout
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.progress import Progress
from robot_rl.runs.training import TrainConfig, pick_device, train
from robot_rl.stages.evaluate import check_spec
from robot_rl.types import Episode, Observation, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillConfig:
    """Configuration of `robot-rl distill_onestep`.

    Attributes:
        teacher: run or checkpoint directory of a DiffusionPolicy.
        dataset: the EpisodeStore whose observations are used.
        env: component for the teacher's roll-outs; may be empty when rollout_episodes is 0.
        num_steps: of the student, 1 to 4.
        mode: the teacher's deterministic map: eta0 or mean; null for the teacher's own mode.
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
    rollout_episodes: int = 0
    rollout_first_seed: int = 60_000
    num_envs: int = 8
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = DistillConfig


def run(config: DistillConfig, run: RunDirectory) -> dict[str, Any]:
    """Distil and return the student's distance to its teacher."""
    began = time.monotonic()
    device = pick_device(config.train.device)
    teacher, spec, saved = load_policy(Path(config.teacher), device=str(device))
    teacher.eval().requires_grad_(False)
    if config.mode is not None:
        teacher = teacher.with_mode(config.mode)
    torch.manual_seed(config.seed)
    student = teacher.one_step_student(config.num_steps).to(device)
    sources, env_steps = _state_sources(config, teacher, run, device)
    share = config.train.batch_size // len(sources)

    def observations(generator: torch.Generator, count: int) -> Observation:
        batches = [source.sample(count, generator).observation for source in sources]
        if len(batches) == 1:
            return batches[0]
        arrays = [batch.arrays() for batch in batches]
        return Observation.from_arrays({key: torch.cat([a[key] for a in arrays]) for key in arrays[0]})

    def pair(generator: torch.Generator, count: int) -> tuple[Observation, torch.Tensor, torch.Tensor]:
        observation = observations(generator, count)
        rows = observation.proprio.shape[0]
        noise = torch.randn((rows, *teacher.noise_shape), generator=generator, device=device)
        with torch.no_grad():
            return observation, noise, teacher.normalized_action(observation, noise)

    def batch_loss(module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return module.loss(*pair(generator, share))  # type: ignore[no-any-return, operator]

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
        "teacher": {"path": str(saved.path), "mode": teacher.sampling, "data": saved.documents.get("data")},
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
        check_spec(teacher.spec, store.spec, where=config.dataset)
        sources = [WindowSampler(store, episodes=np.arange(len(store)), **sampling)]
    if not config.rollout_episodes:
        return sources, 0
    with _teacher_episodes(config, teacher, run) as store:
        sources.append(WindowSampler(store, episodes=np.arange(len(store)), **sampling))
        return sources, int(store.lengths.sum())


def _teacher_episodes(config: DistillConfig, teacher: Any, run: RunDirectory) -> EpisodeStore:
    """The store of the teacher's episodes, completed when an earlier run was killed."""
    env = build(config.env, num_envs=min(config.num_envs, config.rollout_episodes), history=teacher.config.history)
    check_spec(teacher.spec, env.spec, where=config.teacher)
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
