"""Who scores policies in `robot-rl judge calibrate`: a player whose tasks are policies, so that an engine can spread them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from robot_rl.algorithms.statistics import proportion
from robot_rl.engines.tasks import OnEpisode
from robot_rl.workbench.judge_calibrate import check_same_space, in_mode, rebuild
from robot_rl.workbench.judge_play import play


class CheckpointJudge:
    """An EpisodePlayer whose "seeds" are places in a list of policies, and whose records are their rows.

    The judges are fitted once in each process, from the run's own data and seed, so every process has the same ones.

    Args:
        config: {"run" (of the offline stage), "policies" (paths), "env" (component), "first_seed", "episodes", "num_envs"}.

    Raises:
        RunError, DataError, PolicyError: as judge_calibrate.calibrate.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._asked = config
        self._config, self._judges, self._incumbent, self._data = rebuild(Path(config["run"]))

    def describe(self) -> dict[str, Any]:
        """See EpisodePlayer."""
        return {"protocol": {}, "judge_seed": self._config.seed}

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        """Score and play the policies at these places; a row each: {"policy", "success", a number of every judge}."""
        asked = self._asked
        episodes = range(asked["first_seed"], asked["first_seed"] + asked["episodes"])
        for place in seeds:
            path = asked["policies"][place]
            policy = in_mode(path, self._config, device=self._incumbent.device)
            check_same_space(path, policy, self._incumbent, self._data)
            scores = self._judges.score(policy).to_json()
            won = play(asked["env"], policy, episodes, num_envs=asked["num_envs"])
            found = proportion(sum(won), len(won))
            success = {"k": found.k, "n": found.n, "low": found.low, "high": found.high}
            on_episode({"policy": path, "success": success} | scores, None)

    def close(self) -> None:
        """Nothing to release."""
