"""Collect episodes: a person, a scripted expert or a policy plays, and each finished one is stored before the next counts.

Inputs: an environment, and an expert or a policy; or, with `teleop=<device>`, a robot that a person drives
(docs/collect.md). Outputs: an EpisodeStore (zarr) at `dataset`; episodes.jsonl with one line for every episode played, stored
or not.
Episodes are stored in the order of their seeds, so the dataset does not depend on `num_envs`. `num_episodes` is the
total that the dataset shall hold: running again continues, and says what is there already.

Metrics (metrics.jsonl, step = episodes stored):
    collect/success_once     1 if the episode succeeded
    collect/length_steps     env steps of the episode
    collect/total_reward     sum of raw rewards
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.contracts import check_is_diffusion
from robot_rl.data.disk_space import estimate
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError, DataError
from robot_rl.rollout import Actor, EpisodeRecord, PolicyActor, read_records, rollout, summarize
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.specs import EnvSpec
from robot_rl.stages.collect_teleop import SharedMode, TeleopConfig, run_teleop
from robot_rl.stages.evaluate import check_spec
from robot_rl.types import Episode, Source

log = logging.getLogger(__name__)


class Keep(str, Enum):
    """Which episodes are stored."""

    all = "all"
    success = "success"


@dataclass(frozen=True)
class CollectConfig:
    """Configuration of `robot-rl collect`.

    Attributes:
        env: component: which environment.
        expert: component: who acts when `policy` is empty.
        policy: run or checkpoint directory of a policy that plays instead (its mistakes are what offline RL learns from).
        teleop: component: the device of a person who drives instead; then `env`, `robot` and `driver` say what.
        robot: with teleop: a robot card, its name or a YAML file.
        driver: with teleop: component group, as in `deploy`.
        session: with teleop: see collect_teleop.TeleopConfig.
        mode: sampling mode of that policy, or null for its own; with teleop and policy: intervene.
        sigma_min: noise floor of mode eta1, or null for the policy's own.
        dataset: where the store is (made when missing, continued when there).
        images: how cameras are kept: "arrays", "video" or "video_lossless"; null: as the dataset does, arrays in a new one.
        num_episodes: total number of episodes that the dataset shall hold.
        keep: store all episodes, or only those with success_once.
        num_envs: environments stepped side by side; does not change the data.
        first_seed: seed of the first episode; the next ones follow.
        max_tries_factor: with keep=success, give up after num_episodes times this many episodes.
        seed: of a policy's noise and of the run directory's name; the expert has its own.
        run_root: folder of run directories.
        resume: run directory to continue, or null.
    """

    env: dict[str, Any] = field(default_factory=dict)
    expert: dict[str, Any] = field(default_factory=dict)
    policy: str = ""
    teleop: dict[str, Any] | None = None
    robot: str = "sim_panda"
    driver: dict[str, Any] = field(default_factory=dict)
    session: TeleopConfig = field(default_factory=TeleopConfig)
    mode: SamplingMode | SharedMode | None = None
    sigma_min: float | None = None
    dataset: str = "datasets/demonstrations.zarr"
    images: str | None = None
    num_episodes: int = 100
    keep: Keep = Keep.all
    num_envs: int = 8
    first_seed: int = 0
    max_tries_factor: int = 10
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = CollectConfig


def run(config: CollectConfig, run: RunDirectory) -> dict[str, Any]:
    """Fill the dataset up to `num_episodes` and return the summary of the episodes played in this run."""
    if config.num_episodes < 1 or config.num_envs < 1:
        raise ConfigError(
            "collect",
            expected="num_episodes and num_envs of at least 1",
            got=f"{config.num_episodes} and {config.num_envs}",
            hint="Set both to a positive number.",
        )
    if config.teleop:
        return run_teleop(config, run)
    if isinstance(config.mode, SharedMode):
        raise ConfigError("mode=intervene", expected="a person", got="no teleop", hint="Add teleop=<device>.")
    began = time.monotonic()
    policy = _policy(config) if config.policy else None
    history = 1 if policy is None else policy.config.history
    env = build(config.env, num_envs=min(config.num_envs, config.num_episodes), history=history)
    metadata = {"env": config.env, "protocol": env.protocol()}
    actor: Actor
    if policy is None:
        actor, source = build(config.expert, spec=env.spec), Source.scripted
        metadata |= {"collector": "scripted", "expert": config.expert}
    else:
        check_spec(policy.spec, env.spec, where=config.policy)
        noise = NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=policy.noise_shape)
        actor, source = PolicyActor(policy, noise), Source.policy
        sampling = {"mode": policy.sampling, "sigma_min": config.sigma_min, "noise_seed": config.seed}
        metadata |= {"collector": "policy", "policy": config.policy, **sampling}
    table = run.path / "episodes.jsonl"
    with (
        EpisodeStore.open_or_create(config.dataset, env.spec, metadata=metadata, images=config.images) as store,
        open(table, "a", encoding="utf-8") as file,
        MetricsWriter(run.path / "metrics.jsonl", resume_step=len(store)) as metrics,
        interruptible() as stop,
        Progress("collect", total=config.num_episodes) as progress,
    ):
        records = _played_before(table, store, config.keep)
        log.info("%s holds %d episodes, %d are wanted in all", config.dataset, len(store), config.num_episodes)
        progress.advance(len(store))

        def on_episode(record: EpisodeRecord, episode: Episode | None) -> None:
            assert episode is not None
            records.append(record)
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            if config.keep is Keep.all or record.success_once:
                step = store.append(episode) + 1
                values: dict[str, float] = {"success_once": record.success_once, "length_steps": record.length}
                values |= {"total_reward": record.total_reward}
                metrics.write(step, {f"collect/{name}": float(value) for name, value in values.items()})
                progress.advance(1, f"{sum(r.success_once for r in records)}/{len(records)} succeeded")
            if stop.requested:
                log.warning("stopped by the user: %d episodes are safe in %s", len(store), config.dataset)
                raise KeyboardInterrupt

        _say_room(store, env.spec, missing=config.num_episodes - len(store))
        while len(store) < config.num_episodes:
            seeds = [int(seed) for seed in store.seeds] + [record.seed for record in records]
            first = max([config.first_seed, *(seed + 1 for seed in seeds)])
            if first - config.first_seed >= config.max_tries_factor * config.num_episodes:
                raise DataError(
                    f"{config.policy or config.expert.get('_target_')} on {env.spec.env_id}",
                    expected=f"{config.num_episodes} successful episodes",
                    got=f"{len(store)} after {first - config.first_seed} tries (they are kept)",
                    hint="Use a better expert or policy, keep=all, or a larger max_tries_factor.",
                )
            block = range(first, first + config.num_episodes - len(store))
            rollout(env, actor, block, on_episode=on_episode, source=source)
        stored, content = len(store), store.content_hash()
    env.close()
    summary = summarize(records) if records else {"episodes": 0, "env_steps": 0, "success_once": None}
    summary |= {"dataset": config.dataset, "stored": stored, "content_hash": content}
    summary |= {"seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def _say_room(store: EpisodeStore, spec: EnvSpec, *, missing: int) -> None:
    """Say before the first episode whether all of them will fit; episodes are mostly shorter than the limit."""
    plan = estimate(store.path, spec, steps=max(missing, 0) * spec.max_episode_steps, store=store)
    log.info("%s", plan.text())
    if plan.steps_left < plan.steps:
        log.warning("room for %d of %d episodes of full length", plan.steps_left // spec.max_episode_steps, missing)


def _policy(config: CollectConfig) -> Any:
    policy, _spec, _checkpoint = load_policy(Path(config.policy))
    policy.eval()
    if config.mode is None and config.sigma_min is None:
        return policy
    check_is_diffusion(policy, config.policy, hint="Leave mode and sigma_min out.")
    return policy.with_mode(config.mode or policy.config.mode, sigma_min=config.sigma_min)


def _played_before(table: Path, store: EpisodeStore, keep: Keep) -> list[EpisodeRecord]:
    """Records of this run before it was killed, without one whose episode did not reach the store (it is replayed)."""
    stored = {int(seed) for seed in store.seeds}
    records = read_records(table)
    return [r for r in records if r.seed in stored or (keep is Keep.success and not r.success_once)]
