"""`bench scale`: engine=ray against engine=local on the same tasks, in turns (docs/scale.md).

Tasks that only wait 50 ms say what Ray adds; episodes of an expert say what a second worker brings where a core is free for it.
Starting Ray and the environments is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from robot_rl.engines.ray_workers import RayEngine
from robot_rl.engines.tasks import Engine, LocalEngine, OnEpisode, PlayerPlan, blocks
from robot_rl.runs.composition import group_choices
from robot_rl.runs.config import config_to_json, load_config
from robot_rl.stages.evaluate import EvaluateConfig
from robot_rl.workbench.bench_timing import Comparison, Contender, Measurement, Options, Report, interleave, own_seconds

WORKERS = 2
SLEEP_S, WAITING_TASKS = 0.05, 40
EPISODE_TASKS, EPISODES_A_TASK = 8, 2
FIRST_SEED = 100_000
# Ray adds less than 5 % to tasks of 50 ms, and two workers bring 1.7 times one (issue 12).
LEAST_OF_LOCAL, LEAST_SPEED_UP = 1 / 1.05, 1.7


class Waiting:
    """An EpisodePlayer whose tasks take `sleep_s` of no work.

    Args:
        config: {"sleep_s": seconds}.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._sleep_s = float(config["sleep_s"])

    def describe(self) -> dict[str, Any]:
        """See EpisodePlayer."""
        return {"protocol": {}}

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        """Wait."""
        time.sleep(self._sleep_s)

    def close(self) -> None:
        """Nothing to release."""


def run(options: Options) -> Report:
    """Measure both kinds of tasks; `options.env` is what the expert plays.

    Raises:
        ConfigError: an environment without a configuration of its expert, or Ray is not installed.
        RunError: a machine with fewer than two cores.
    """
    waiting = PlayerPlan(f"{Waiting.__module__}.Waiting", {"sleep_s": SLEEP_S})
    config = load_config(
        EvaluateConfig, [f"env={options.env}", f"expert={expert_of(options.env)}", "num_envs=1"], name="evaluate"
    )
    playing = PlayerPlan("robot_rl.stages.evaluate_play.make_player", config_to_json(config))
    waited, unseen_s = _turns("waiting", waiting, tasks=WAITING_TASKS, size=1, rounds=options.rounds)
    played, also_s = _turns("episodes", playing, tasks=EPISODE_TASKS, size=EPISODES_A_TASK, rounds=options.rounds)
    comparisons = (
        Comparison("waiting, one worker", "waiting, local", LEAST_OF_LOCAL),
        Comparison("waiting, two workers", "waiting, one worker"),
        Comparison("episodes, one worker", "episodes, local"),
        Comparison("episodes, two workers", "episodes, one worker", LEAST_SPEED_UP),
    )
    facts = {"env": options.env, "sleep_s": SLEEP_S, "episodes_a_task": EPISODES_A_TASK, "workers": WORKERS}
    return Report((*waited, *played), comparisons, facts, unseen_s=unseen_s + also_s)


def expert_of(env: str) -> str:
    """Config choice of the expert that plays `env` in benchmarks: its own where there is one, else the scripted one."""
    return env if env in group_choices()["expert"] else "scripted"


def _turns(name: str, plan: PlayerPlan, *, tasks: int, size: int, rounds: int) -> tuple[tuple[Measurement, ...], float]:
    """Times of the three engines, and CPU seconds of Ray's processes that went out of sight when it ended."""
    with closing(LocalEngine(plan)) as local:
        with closing(RayEngine(plan, workers=WORKERS, address="")) as ray:
            ray.describe()  # everybody is ready then
            engines: dict[str, Engine] = {"local": local, "one worker": ray.narrowed(1), "two workers": ray}

            def player(engine: Engine) -> Callable[[], None]:
                return lambda: engine.play(
                    blocks(FIRST_SEED, tasks * size, size), lambda *_: None, is_done=lambda: False
                )

            contenders = [
                Contender(f"{name}, {key}", player(engine), tasks, "tasks") for key, engine in engines.items()
            ]
            found, seen_s = interleave(contenders, rounds=rounds), own_seconds()
        return found, max(seen_s - own_seconds(), 0.0)
