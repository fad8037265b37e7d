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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.data.disk_space import estimate
from robot_rl.data.store import EpisodeStore
from robot_rl.engines.tasks import EngineKind, PlayerPlan, grid_size, open_engine
from robot_rl.errors import ConfigError, DataError
from robot_rl.rollout import EpisodeRecord, read_records, summarize
from robot_rl.runs.config import config_to_json
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress, interruptible
from robot_rl.specs import EnvSpec
from robot_rl.stages.collect_teleop import SharedMode, TeleopConfig, run_teleop
from robot_rl.types import Episode

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
        engine, engine_workers, engine_address: local, or ray with that many worker processes, on this machine or on the Ray at
            that address (docs/scale.md); not with teleop.
        task_episodes: seeds of a task, the same data on every engine; null: all at once on local, 2 num_envs on ray.
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
    engine: EngineKind = EngineKind.local
    engine_workers: int = 1
    engine_address: str = ""
    task_episodes: int | None = None
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
    if config.teleop and config.engine is EngineKind.ray:
        raise ConfigError(
            "engine=ray",
            expected="no teleop",
            got="a person who drives",
            hint="A robot is never driven from behind Ray.",
        )
    if config.teleop:
        return run_teleop(config, run)
    if isinstance(config.mode, SharedMode):
        raise ConfigError("mode=intervene", expected="a person", got="no teleop", hint="Add teleop=<device>.")
    began = time.monotonic()
    size = grid_size(config.task_episodes, config.engine, num_envs=config.num_envs)
    plan = PlayerPlan("robot_rl.stages.collect_play.make_player", config_to_json(config))
    table = run.path / "episodes.jsonl"
    with (
        open_engine(config.engine, plan, workers=config.engine_workers, address=config.engine_address) as engine,
        _store(config, engine.describe()) as store,
        open(table, "a", encoding="utf-8") as file,
        MetricsWriter(run.path / "metrics.jsonl", resume_step=len(store)) as metrics,
        interruptible() as stop,
        Progress("collect", total=config.num_episodes) as progress,
    ):
        records = _played_before(table, store, config.keep)
        log.info("%s holds %d episodes, %d are wanted in all", config.dataset, len(store), config.num_episodes)
        progress.advance(len(store))
        first = _next_seed(config, store, records)

        def is_full() -> bool:
            if stop.requested:
                log.warning("stopped by the user: %d episodes are safe in %s", len(store), config.dataset)
                raise KeyboardInterrupt
            return len(store) >= config.num_episodes

        def on_episode(record: EpisodeRecord, episode: Episode | None) -> None:
            assert episode is not None
            if record.seed < first or len(store) >= config.num_episodes:  # the rest of a task that is played whole
                return
            records.append(record)
            file.write(json.dumps(record.to_json()) + "\n")
            file.flush()
            if config.keep is Keep.all or record.success_once:
                step = store.append(episode) + 1
                values: dict[str, float] = {"success_once": record.success_once, "length_steps": record.length}
                values |= {"total_reward": record.total_reward}
                metrics.write(step, {f"collect/{name}": float(value) for name, value in values.items()})
                progress.advance(1, f"{sum(r.success_once for r in records)}/{len(records)} succeeded")
            is_full()

        _say_room(store, store.spec, missing=config.num_episodes - len(store))
        engine.play(_tasks(config, store, records, size), on_episode, is_done=is_full)
        if len(store) < config.num_episodes:
            raise DataError(
                f"{config.policy or config.expert.get('_target_')} on {store.spec.env_id}",
                expected=f"{config.num_episodes} successful episodes",
                got=f"{len(store)} after {_next_seed(config, store, records) - config.first_seed} tries (they are kept)",
                hint="Use a better expert or policy, keep=all, or a larger max_tries_factor.",
            )
        stored, content, used = len(store), store.content_hash(), engine.summary()
    summary = summarize(records) if records else {"episodes": 0, "env_steps": 0, "success_once": None}
    summary |= {"dataset": config.dataset, "stored": stored, "content_hash": content}
    summary |= used | {"seconds": time.monotonic() - began}
    run.write_json("summary.json", summary)
    return summary


def _say_room(store: EpisodeStore, spec: EnvSpec, *, missing: int) -> None:
    """Say before the first episode whether all of them will fit; episodes are mostly shorter than the limit."""
    plan = estimate(store.path, spec, steps=max(missing, 0) * spec.max_episode_steps, store=store)
    log.info("%s", plan.text())
    if plan.steps_left < plan.steps:
        log.warning("room for %d of %d episodes of full length", plan.steps_left // spec.max_episode_steps, missing)


def _store(config: CollectConfig, player: dict[str, Any]) -> EpisodeStore:
    spec = EnvSpec.from_json(player["spec"])
    metadata = {"env": config.env, "protocol": player["protocol"], **player["metadata"]}
    return EpisodeStore.open_or_create(config.dataset, spec, metadata=metadata, images=config.images)


def _next_seed(config: CollectConfig, store: EpisodeStore, records: Sequence[EpisodeRecord]) -> int:
    """The first seed that was not played yet."""
    seeds = [int(seed) for seed in store.seeds] + [record.seed for record in records]
    return max([config.first_seed, *(seed + 1 for seed in seeds)])


def _tasks(
    config: CollectConfig, store: EpisodeStore, records: Sequence[EpisodeRecord], size: int | None
) -> Iterator[range]:
    """Seeds to play until the store is full or the tries are over; with a size, whole blocks of a grid."""
    first = _next_seed(config, store, records)
    limit = config.first_seed + config.max_tries_factor * config.num_episodes
    start = first if size is None else first - (first - config.first_seed) % size
    while len(store) < config.num_episodes and start < limit:
        number = config.num_episodes - len(store) if size is None else size
        yield range(start, start + number)
        start += number


def _played_before(table: Path, store: EpisodeStore, keep: Keep) -> list[EpisodeRecord]:
    """Records of this run before it was killed, without one whose episode did not reach the store (it is replayed)."""
    stored = {int(seed) for seed in store.seeds}
    records = read_records(table)
    return [r for r in records if r.seed in stored or (keep is Keep.success and not r.success_once)]
