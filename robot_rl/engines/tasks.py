"""What an engine plays: tasks of whole episodes, each named by its seeds, and who plays them.

A task is a block of a grid of seeds (first_seed, size): the same in every engine and after a restart. So a task can be
repeated by any process, and its rows are the same bits: the batch that an episode is in depends on the seeds alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from robot_rl.errors import ConfigError, EnvError

# A record and, where it is kept, the episode (EpisodeRecord, Episode | None); a player of something else has rows of its own.
OnEpisode = Callable[[Any, Any], None]


class EngineKind(str, Enum):
    """local: this process. ray: worker processes, on this machine or on a running cluster."""

    local = "local"
    ray = "ray"


@runtime_checkable
class EpisodePlayer(Protocol):
    """An environment and who acts in it, in one process."""

    def describe(self) -> dict[str, Any]:
        """What is played, JSON types: at least `protocol`, the env's own."""
        ...

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        """Play each seed once; `on_episode` is called in the order of the seeds."""
        ...

    def close(self) -> None:
        """Release the environment."""
        ...


@dataclass(frozen=True)
class PlayerPlan:
    """How a process makes its player, as plain data that may cross machines.

    Attributes:
        target: dotted name of a function that takes `config` and returns an EpisodePlayer.
        config: the stage's configuration, JSON types.
    """

    target: str
    config: dict[str, Any]

    def build(self) -> EpisodePlayer:
        """Make the player here. Raises what its environment and policy raise."""
        module, _, name = self.target.rpartition(".")
        player: EpisodePlayer = getattr(importlib.import_module(module), name)(self.config)
        return player


@runtime_checkable
class Engine(Protocol):
    """Plays tasks of episodes."""

    def describe(self) -> dict[str, Any]:
        """What its players describe; they all play the same."""
        ...

    def play(self, tasks: Iterable[Iterable[int]], on_episode: OnEpisode, *, is_done: Callable[[], bool]) -> None:
        """Play the tasks; `on_episode` is called in the order of the tasks and of the seeds in each.

        Args:
            tasks: asked for the next one whenever somebody is free.
            on_episode: called in this process.
            is_done: asked at least twice a second and between tasks; True drops what is still being played. May raise.
        """
        ...

    def summary(self) -> dict[str, Any]:
        """What the stage's summary says of the engine, JSON types; nothing of `local`."""
        ...

    def close(self) -> None:
        """End the players."""
        ...


class LocalEngine:
    """One player in this process.

    Args:
        plan: of the player.
    """

    def __init__(self, plan: PlayerPlan) -> None:
        self.player = plan.build()

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return self.player.describe()

    def play(self, tasks: Iterable[Iterable[int]], on_episode: OnEpisode, *, is_done: Callable[[], bool]) -> None:
        """See Engine; `is_done` is asked between tasks alone, `on_episode` may raise at any episode."""
        for seeds in tasks:
            if is_done():
                return
            self.player.play(seeds, on_episode)

    def summary(self) -> dict[str, Any]:
        """See Engine."""
        return {}

    def close(self) -> None:
        """See Engine."""
        self.player.close()


@contextmanager
def open_engine(kind: EngineKind, plan: PlayerPlan, *, workers: int, address: str) -> Iterator[Engine]:
    """The engine of that kind, closed at the end.

    Args:
        kind: see EngineKind.
        plan: of its players.
        workers: processes of ray, one player each.
        address: of a running Ray cluster, host:port or "auto"; empty: a Ray of our own on this machine, loopback only.

    Raises:
        ConfigError: workers or an address without ray, fewer than one worker, or Ray is not installed.
        EnvError: a real robot behind Ray.
        RunError: no Ray at `address`.
    """
    if workers < 1 or (kind is EngineKind.local and (workers > 1 or address)):
        raise ConfigError(
            f"engine={kind.value}", expected="engine_workers of at least 1, and with engine=local one and no engine_address",
            got=f"engine_workers={workers} engine_address={address!r}", hint="Use engine=ray for several processes.",
        )  # fmt: skip
    engine: Engine
    if kind is EngineKind.local:
        engine = LocalEngine(plan)
    else:
        from robot_rl.engines.ray_workers import RayEngine

        engine = RayEngine(plan, workers=workers, address=address)
    try:
        if kind is EngineKind.ray and engine.describe()["protocol"].get("real_time"):
            raise EnvError(
                "engine=ray", expected="a simulated environment", got="a real robot",
                hint="A robot is never driven from behind Ray: leave engine out.",
            )  # fmt: skip
        yield engine
    finally:
        engine.close()


def grid_size(size: int | None, kind: EngineKind, *, num_envs: int) -> int | None:
    """Episodes of a task: `size`, else everything at once on `local` and two rounds of the envs on `ray`.

    Raises:
        ConfigError: less than one episode.
    """
    if size is not None and size < 1:
        raise ConfigError("task_episodes", expected="1 or more, or null", got=f"{size}", hint="Leave it out.")
    return 2 * num_envs if size is None and kind is EngineKind.ray else size


def blocks(first: int, number: int, size: int) -> Iterator[range]:
    """`number` seeds from `first` on in blocks of `size`; the last may be shorter."""
    for start in range(first, first + number, size):
        yield range(start, min(start + size, first + number))
