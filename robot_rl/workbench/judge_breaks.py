"""What `robot-rl judge sabotage` breaks: everything that the optimiser of the offline stage learns from, never a judge.

flipped_advantages   the optimiser's critic gives -Q and -V
learning_rate_x100   of PPO and of weighted imitation
wrong_normalizer     the optimiser sees observations and actions under the statistics of some other dataset; its
                     candidates are then judged and played under the right ones
shuffled_rewards     the optimiser's critic is fitted to rewards and returns in random order
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import nn

from robot_rl.arrays import Array, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.data.transitions import Transitions
from robot_rl.fitting.round_data import RoundData, RoundFits, fit_optimizer_critic
from robot_rl.stages.offline import OfflineConfig, loaded_round

RATE_FACTOR = 100.0
FOREIGN_SHIFT = 0.5
FOREIGN_LOG_SPREAD = 0.5


class Sabotage(str, Enum):
    """See the module; `none` is the honest run."""

    none = "none"
    flipped_advantages = "flipped_advantages"
    learning_rate_x100 = "learning_rate_x100"
    wrong_normalizer = "wrong_normalizer"
    shuffled_rewards = "shuffled_rewards"


SABOTAGES = tuple(kind for kind in Sabotage if kind is not Sabotage.none)


@dataclass(frozen=True)
class Broken:
    """What the optimiser gets instead of the honest things.

    Attributes:
        config: of the offline stage.
        data: what imitation and PPO draw from.
        fits: with the optimiser's critic.
        normalizer: of the policy while it learns.
    """

    config: OfflineConfig
    data: RoundData
    fits: RoundFits
    normalizer: Normalizer


class FlippedCritic(nn.Module):
    """Minus the smallest Q and minus V of a critic, so that every advantage changes its sign and nothing else."""

    def __init__(self, critic: Any) -> None:
        super().__init__()
        self.critic = critic

    def q(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> Float32[Array, "E B"]:
        """Minus the smallest member's Q, for every member."""
        q: torch.Tensor = self.critic.q(feature, action)
        return -q.amin(0).expand_as(q)

    def value(self, feature: Float32[Array, "B F"]) -> Float32[Array, " B"]:
        """Minus V."""
        value: torch.Tensor = self.critic.value(feature)
        return -value


def sabotage(
    kind: Sabotage, config: OfflineConfig, incumbent: Any, data: RoundData, fits: RoundFits, *, seed: int
) -> Broken:
    """The honest things with one of them broken.

    Args:
        kind: of sabotage.
        config: of the offline stage.
        incumbent: the policy that the round starts from.
        data: the honest data.
        fits: the honest fits; the judges' part is handed on as it is.
        seed: of the round, and of the sabotage.
    """
    honest = Broken(config, data, fits, incumbent.normalizer)
    generator = torch.Generator().manual_seed(seed)
    if kind is Sabotage.flipped_advantages:
        return replace(honest, fits=replace(fits, critic=FlippedCritic(fits.critic)))
    if kind is Sabotage.learning_rate_x100:
        train = config.imitation.train
        fast = replace(config.imitation, train=replace(train, learning_rate=RATE_FACTOR * train.learning_rate))
        ppo = replace(config.ppo, learning_rate=RATE_FACTOR * config.ppo.learning_rate)
        return replace(honest, config=replace(config, imitation=fast, ppo=ppo))
    if kind is Sabotage.shuffled_rewards:
        learned = shuffled(data.optimizer, generator)
        held_out = shuffled(data.optimizer_validation, generator)
        broken = replace(data, optimizer=learned, optimizer_validation=held_out)
        critic, _report = fit_optimizer_critic(broken, config.critic, config=config.critic_fit, seed=seed)
        return replace(honest, fits=replace(fits, critic=critic))
    if kind is Sabotage.wrong_normalizer:
        wrong = foreign(incumbent.normalizer, generator)
        seen = loaded_round(config, config.datasets, under(incumbent, wrong), seed=seed, device=torch.device("cpu"))
        return replace(honest, data=seen, normalizer=wrong)
    return honest


def shuffled(rows: Transitions, generator: torch.Generator) -> Transitions:
    """The same decisions with rewards and returns in one random order; what follows what stays."""
    order = torch.randperm(len(rows), generator=generator)
    return replace(rows, reward=rows.reward[order], return_to_go=rows.return_to_go[order])


def foreign(normalizer: Normalizer, generator: torch.Generator) -> Normalizer:
    """The normaliser of some other dataset: each element's centre moved by N(0, FOREIGN_SHIFT^2) of its spread, and its
    spread multiplied by exp(N(0, FOREIGN_LOG_SPREAD^2)). Constant elements stay constant."""
    document = normalizer.to_json()
    for parts in document.values():
        number = len(parts["offset"])
        shift = FOREIGN_SHIFT * torch.randn(number, generator=generator)
        factor = (FOREIGN_LOG_SPREAD * torch.randn(number, generator=generator)).exp()
        scale = torch.tensor(parts["scale"])
        parts["offset"] = (torch.tensor(parts["offset"]) + shift * scale).tolist()
        parts["scale"] = (scale * factor).tolist()
        parts["gain"] = (torch.tensor(parts["gain"]) / factor).tolist()
    return Normalizer.from_json(document)


def under(policy: Any, normalizer: Normalizer) -> Any:
    """A copy of a diffusion policy with the same weights and another normaliser."""
    other = copy.deepcopy(policy)
    other.encoder.normalizer = copy.deepcopy(normalizer)
    return other
