"""A scripted stand-in for the person who takes over: what tests and simulations of interventions use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import ConfigError
from robot_rl.runs.config import build
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation


@dataclass(frozen=True)
class ScriptedHumanConfig:
    """When it takes over.

    Attributes:
        expert: component of the scripted expert that steers then; it must choose single actions in closed loop.
        after_steps: env steps of an episode that the policy has alone; the human keeps the arm from then on.
        share: of the episodes in which he takes over at all.
        seed: of the choice of episodes.
    """

    expert: dict[str, Any] = field(default_factory=dict)
    after_steps: int = 30
    share: float = 1.0
    seed: int = 0


class ScriptedHuman:
    """An Intervener: lets the policy try for `after_steps`, then finishes the episode himself.

    Args:
        config: see ScriptedHumanConfig.
        spec: of the environment.

    Raises:
        ConfigError: no expert, or numbers that can't be.
    """

    def __init__(self, config: ScriptedHumanConfig, spec: EnvSpec) -> None:
        if not config.expert or config.after_steps < 0 or not 0 <= config.share <= 1:
            raise ConfigError(
                "intervener", expected="an expert, after_steps of 0 or more and a share between 0 and 1",
                got=f"expert={config.expert} after_steps={config.after_steps} share={config.share}",
                hint="Set intervener.expert._target_ to the expert of the task.",
            )  # fmt: skip
        self.config = config
        self._expert = build(config.expert, spec=spec)
        self._steps = np.zeros(0, dtype=np.int64)

    def take_over(
        self, observation: Observation, *, episode_seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]
    ) -> tuple[Bool[Array, " N"], Float32[Array, "N A"]]:
        """Whom he steers now, and his actions."""
        if self._steps.shape != episode_seeds.shape:
            self._steps = np.zeros_like(episode_seeds)
        self._steps[new_episode] = 0
        chosen = np.array([self._draws(seed) < self.config.share for seed in episode_seeds.tolist()], dtype=bool)
        human = chosen & (self._steps >= self.config.after_steps)
        self._steps += 1
        chunk = self._expert.act(observation, episode_seeds=episode_seeds, new_episode=new_episode)
        return human, np.asarray(torch.as_tensor(chunk.actions)[:, 0].cpu(), dtype=np.float32)

    def _draws(self, episode_seed: int) -> float:
        return float(np.random.default_rng([self.config.seed, max(episode_seed, 0)]).random())
