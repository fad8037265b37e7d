"""Players in worker processes of Ray, one each; the driver hands out tasks and repeats those of a worker that died.

What crosses processes are the plan (plain data), seeds, and records and episodes (numpy). Ray pickles them on the way, so the
members of a cluster must trust each other: a Ray that is started here listens on the loopback device alone.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import robot_rl.errors
from robot_rl.engines.tasks import EpisodePlayer, OnEpisode, PlayerPlan
from robot_rl.errors import RobotRlError, RunError

log = logging.getLogger(__name__)

STORE_BYTES = 512 * 2**20  # of a Ray that is started here; more is spilled to disk
ATTEMPTS = 3
SHORT_S = 1.0
_POLL_S = 0.5
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Refusal:
    """A RobotRlError on its way to the driver: exceptions with keyword arguments can't be pickled."""

    kind: str
    where: str
    expected: str
    got: str
    hint: str

    def error(self) -> RobotRlError:
        """The error it was."""
        made: RobotRlError = getattr(robot_rl.errors, self.kind)(
            self.where, expected=self.expected, got=self.got, hint=self.hint
        )
        return made


class PlayerProcess:
    """What runs in a worker: its player, made at the first call, so that what stands against it can be said.

    Args:
        plan: of the player.
    """

    def __init__(self, plan: PlayerPlan) -> None:
        self._plan = plan
        self._player: EpisodePlayer | None = None

    def describe(self) -> Any:
        """The player's description and this process's id, or a Refusal."""
        return self._answer(lambda player: player.describe() | {"pid": os.getpid()})

    def play(self, seeds: list[int]) -> Any:
        """Seconds that it took and (record, episode) of each seed, or a Refusal."""

        def episodes(player: EpisodePlayer) -> tuple[float, list[Any]]:
            out: list[Any] = []
            began = time.monotonic()
            player.play(seeds, lambda record, episode: out.append((record, episode)))
            return time.monotonic() - began, out

        return self._answer(episodes)

    def _answer(self, ask: Callable[[EpisodePlayer], Any]) -> Any:
        try:
            if self._player is None:
                self._player = self._plan.build()
            return ask(self._player)
        except RobotRlError as error:
            kind = type(error).__name__
            known = kind if hasattr(robot_rl.errors, kind) else "RunError"
            return Refusal(known, error.where, error.expected, error.got, error.hint)


@dataclass
class _Task:
    """Task `number`, and how many workers died in it."""

    number: int
    seeds: list[int]
    deaths: int = 0


# Reference of a call -> its task and the place of its worker, in the order of their start.
_Running = dict[Any, tuple[_Task, int]]


def _named(task: _Task) -> str:
    return f"episodes {task.seeds[0]} to {task.seeds[-1]} on engine=ray"


class RayEngine:
    """An Engine of `workers` actors, each with one core.

    Args:
        plan: of their players.
        workers: how many.
        address: of a running cluster; empty: one of our own.

    Raises:
        RunError: no Ray at `address`, or a cluster with fewer cores.
    """

    def __init__(self, plan: PlayerPlan, *, workers: int, address: str) -> None:
        self._plan, self._ray = plan, connect(workers=workers, address=address)
        self._remote = self._ray.remote(num_cpus=1)(PlayerProcess)
        self._workers = [self._remote.remote(plan) for _ in range(workers)]
        self._depth = 1
        # Stays 0 unless a worker died; the result is the same.
        self.repeated = 0

    def describe(self) -> dict[str, Any]:
        """See Engine; asked of the first worker, and everybody is ready then."""
        first, *_others = self._descriptions()
        return {key: value for key, value in first.items() if key != "pid"}

    def process_ids(self) -> list[int]:
        """Of the workers, those of other machines too."""
        return [int(each["pid"]) for each in self._descriptions()]

    def _descriptions(self) -> list[dict[str, Any]]:
        """Of all workers, which make their players at the same time."""
        return [_opened(answer) for answer in self._ray.get([worker.describe.remote() for worker in self._workers])]

    def play(self, tasks: Iterable[Iterable[int]], on_episode: OnEpisode, *, is_done: Callable[[], bool]) -> None:
        """See Engine. Nothing is begun that is far ahead of what is written."""
        waiting = (_Task(number, list(seeds)) for number, seeds in enumerate(tasks))
        again: list[_Task] = []
        running: _Running = {}
        finished: dict[int, list[Any]] = {}
        written = 0
        while True:
            self._begin(waiting if len(finished) < 4 * len(self._workers) else iter(()), again, running)
            if is_done() or not running:
                return
            ready, _ = self._ray.wait(list(running), timeout=_POLL_S)
            for reference in ready:
                if reference in running:  # else it went with its worker
                    finished |= self._end(reference, again, running)
            while written in finished:
                for record, episode in finished.pop(written):
                    on_episode(record, episode)
                written += 1

    def _begin(self, waiting: Iterator[_Task], again: list[_Task], running: _Running) -> None:
        """Give tasks to the workers that have the fewest, until they have enough."""
        while True:
            held = Counter(place for _, place in running.values())
            place = min(range(len(self._workers)), key=lambda number: held[number])
            task = None if held[place] >= self._depth else again.pop(0) if again else next(waiting, None)
            if task is None:
                return
            running[self._workers[place].play.remote(task.seeds)] = task, place

    def _end(self, reference: Any, again: list[_Task], running: _Running) -> dict[int, list[Any]]:
        """Episodes of a task that ended, by its number; of a worker that died, whatever it had finished."""
        task, place = running[reference]
        try:
            seconds, episodes = _opened(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            raise RuntimeError(f"{_named(task)}: {error}") from error
        except self._ray.exceptions.RayError:
            return self._replace(place, again, running)
        del running[reference]
        # A second task in a worker's queue hides the way to it, and would only be in the way of a fair end where tasks are long.
        self._depth = 2 if seconds < SHORT_S else 1
        return {task.number: episodes}

    def _replace(self, place: int, again: list[_Task], running: _Running) -> dict[int, list[Any]]:
        """A new worker for one that died; its tasks go to `again`. The oldest of them is the one that it died in."""
        finished: dict[int, list[Any]] = {}
        lost: list[_Task] = []
        for reference in [reference for reference, (_, at) in running.items() if at == place]:
            task, _ = running.pop(reference)
            try:
                finished[task.number] = _opened(self._ray.get(reference))[1]
            except self._ray.exceptions.RayError as error:
                lost.append(task)
                reason, cause = str(error).strip().splitlines()[0], error
        lost[0].deaths += 1
        if lost[0].deaths >= ATTEMPTS:
            raise RunError(
                _named(lost[0]), expected="workers that live", got=f"{ATTEMPTS} that died ({reason})",
                hint="Play these seeds with engine=local to see why; rows before them are safe, continue with resume=.",
            ) from cause  # fmt: skip
        log.warning("a worker died in %s (%s); it is played again", _named(lost[0]), reason)
        again += lost
        self.repeated += len(lost)
        self._ray.kill(self._workers[place])
        self._workers[place] = self._remote.remote(self._plan)
        return finished

    def narrowed(self, workers: int) -> RayEngine:
        """The same engine with its first `workers` alone, for comparisons."""
        other = copy.copy(self)
        other._workers = self._workers[:workers]
        return other

    def summary(self) -> dict[str, Any]:
        """See Engine."""
        return {"engine": {"kind": "ray", "workers": len(self._workers), "repeated_tasks": self.repeated}}

    def close(self) -> None:
        """See Engine; a Ray that was started here ends."""
        self._ray.shutdown()


def connect(*, workers: int, address: str) -> Any:
    """The module `ray`, connected.

    Raises:
        RunError: no cluster at `address`, or too few cores.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's workers would stand back (15) behind everything else on a machine that others use.
    os.environ.setdefault("RAY_worker_niceness", "0")
    host, _, port = address.rpartition(":")
    if not address or host in ("127.0.0.1", "localhost"):
        # Ray's only switch for the loopback device, read when it is imported; it is no matter of Windows here.
        if "ray" in sys.modules and os.environ.get(_LOOPBACK) != "0":
            raise RunError(
                "engine=ray", expected="a process that has not imported ray yet", got="one that has",
                hint=f"Set {_LOOPBACK}=0 before it starts: else Ray listens on the network.",
            )  # fmt: skip
        os.environ[_LOOPBACK] = "0"
    if port.isdigit():
        _check_listens(host, int(port))
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning", "configure_logging": False}
    if address:
        options |= {"address": address}
    else:
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_ray(address, str(error.__cause__ or error).strip().splitlines()[-1]) from error
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < workers:
        ray.shutdown()
        raise RunError(
            f"Ray at {address}", expected=f"{workers} cores for engine_workers={workers}", got=f"{cores}",
            hint="Take fewer workers, or add machines with `ray start --address=...`.",
        )  # fmt: skip
    return ray


def _check_listens(host: str, port: int) -> None:
    """Ray itself tries for ten minutes."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise _no_ray(f"{host}:{port}", str(error)) from error


def _no_ray(address: str, got: str) -> RunError:
    hint = "Start one with `ray start --head`, or leave engine_address out for one on this machine. Where the cluster wants a "
    hint += "token (Ray's own default), set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here too."
    return RunError(f"engine_address={address}", expected="a Ray that answers", got=got, hint=hint)


def _opened(answer: Any) -> Any:
    if isinstance(answer, Refusal):
        raise answer.error()
    return answer
