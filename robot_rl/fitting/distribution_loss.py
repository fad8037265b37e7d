"""Distribution matching as a loss of the training loop (robot_rl/algorithms/distribution_matching.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.consistency import student_sample
from robot_rl.algorithms.distribution_matching import energy_distance, reward_term
from robot_rl.errors import ConfigError
from robot_rl.fitting.denoising_ppo import executed_action
from robot_rl.types import Observation


class DistributionLoss:
    """Energy distance of a head of one or a few steps to its teacher, less `reward_weight` times a critic's opinion of the head.

    Args:
        teacher: DiffusionPolicy, frozen, in the sampling mode to match.
        observations: draws a batch.
        samples: chunks of the teacher, and of the head, at each observation; at least 2.
        critic: of `robot-rl offline` in the teacher's feature space, or None.
        reward_weight: of the critic's term; 0 without a critic.

    Raises:
        ConfigError: fewer than 2 samples, or a weight without a critic (or the other way round).
    """

    def __init__(
        self, teacher: Any, observations: Callable[[torch.Generator], Observation], *, samples: int, critic: Any,
        reward_weight: float,
    ) -> None:  # fmt: skip
        if samples < 2 or reward_weight < 0 or (critic is None) is not (reward_weight == 0):
            raise ConfigError(
                "distill_onestep loss=distribution",
                expected="samples of 2 or more, and reward_weight above 0 exactly when a critic is given",
                got=f"samples={samples} reward_weight={reward_weight} critic {'none' if critic is None else 'given'}",
                hint="E.g. samples=8 critic=runs/<offline run> reward_weight=0.1.",
            )  # fmt: skip
        self.teacher, self.observations, self.samples = teacher, observations, samples
        self.critic, self.reward_weight = critic, reward_weight

    def __call__(self, module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch and its metrics."""
        observation = self.observations(generator).map(lambda array: array.repeat_interleave(self.samples, dim=0))
        rows, place = len(observation.proprio), generator.device
        head: Any = module

        def drawn(policy: Any) -> torch.Tensor:
            noise = torch.randn((rows, *policy.noise_shape), generator=generator, device=place)
            return noise.to(observation.proprio.device)

        with torch.no_grad():
            goal = self.teacher.normalized_action(observation, drawn(self.teacher))
        # Through all steps of the head: a level that it plays and that no gradient reaches would be noise.
        made = student_sample(lambda latent, level: head.jump(observation, latent, level), drawn(head), head.sampler)
        loss, values = energy_distance(made.unflatten(0, (-1, self.samples)), goal.unflatten(0, (-1, self.samples)))
        if self.critic is not None:
            term = reward_term(self.critic.q(self.teacher.encode(observation), executed_action(self.teacher, made)))
            loss = loss + self.reward_weight * term
            values["reward_term"] = float(term.detach())
        return loss, values
