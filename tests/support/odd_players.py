"""Players for the engine tests: importable in a worker process too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import Any

from robot_rl.engines.tasks import OnEpisode
from robot_rl.rollout import EpisodeRecord


class OddPlayer:
    """Sleeps `sleep_s` a task and reports its seeds; dies at the seed `deadly`; may claim to be a real robot."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def describe(self) -> dict[str, Any]:
        return {"protocol": {"real_time": bool(self.config.get("real_time"))}}

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        time.sleep(self.config.get("sleep_s", 0.0))
        for seed in seeds:
            if seed == self.config.get("deadly"):
                os.kill(os.getpid(), signal.SIGKILL)
            if seed == self.config.get("bug"):
                raise ZeroDivisionError("a bug in a plug-in")
            on_episode(record_of(seed), None)

    def close(self) -> None:
        pass


def record_of(seed: int) -> EpisodeRecord:
    return EpisodeRecord(
        seed=seed, length=1, total_reward=0.0, success_once=True, success_at_end=True, success_at_reset=False,
        terminated=True, truncated=False, steps_to_success=1, action_change_rms=0.0, action_jerk_rms=0.0,
        gripper_flips=0, initial_state="",
    )  # fmt: skip
