"""Time engine=ray against engine=local on the same tasks, in turns, and print one JSON line (docs/scale.md).

    python -m robot_rl.workbench.bench_scale --rounds 5 --tasks 8 env=pick_cube expert=scripted num_envs=4 task_episodes=4
    python -m robot_rl.workbench.bench_scale --rounds 5 --tasks 40 --sleep-ms 50

The first times evaluations (its words are those of `evaluate`): this process, one worker, two workers. The second times what
Ray adds to tasks that only wait. Starting Ray and the environments is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from robot_rl.engines.ray_workers import RayEngine
from robot_rl.engines.tasks import Engine, LocalEngine, OnEpisode, PlayerPlan, blocks
from robot_rl.runs.config import config_to_json, load_config
from robot_rl.stages.evaluate import EvaluateConfig


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


def main(words: Sequence[str]) -> int:
    """Measure and print; 0."""
    parser = argparse.ArgumentParser(prog="python -m robot_rl.workbench.bench_scale")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sleep-ms", type=float)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(list(words))
    if options.sleep_ms is not None:
        plan, size = PlayerPlan(f"{Waiting.__module__}.Waiting", {"sleep_s": options.sleep_ms / 1e3}), 1
    else:
        config = load_config(EvaluateConfig, options.overrides, name="evaluate")
        plan = PlayerPlan("robot_rl.stages.evaluate_play.make_player", config_to_json(config))
        size = config.task_episodes or config.num_envs
    ray = RayEngine(plan, workers=options.workers, address="")
    ray.describe()
    engines: dict[str, Engine] = {"local": LocalEngine(plan), "ray 1": ray.narrowed(1), f"ray {options.workers}": ray}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    loads = []
    for number in range(options.rounds + 1):  # the first round warms up
        for name, engine in engines.items():
            began = time.perf_counter()
            tasks = blocks(100_000, options.tasks * size, size)
            engine.play(tasks, lambda *_: None, is_done=lambda: False)
            if number:
                seconds[name].append(time.perf_counter() - began)
        loads.append(os.getloadavg()[0])
    ray.close()
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    print(json.dumps({
        "tasks": options.tasks, "task_ms_local": 1e3 * middle["local"] / options.tasks, "median_s": middle,
        "overhead": middle["ray 1"] / middle["local"] - 1, "speed_up": middle["ray 1"] / middle[f"ray {options.workers}"],
        "seconds": seconds, "load": [min(loads), max(loads)],
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    # By its full name: workers import the player from there.
    from robot_rl.workbench import bench_scale

    sys.exit(bench_scale.main(sys.argv[1:]))
