"""What proposes a better policy to the gate: gated pieces of PPO, or weighted imitation. Each is a generator.

It yields (candidate, its numbers) and is sent whether the gate kept the candidate.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.iql import advantage
from robot_rl.fitting.critic import policy_gap
from robot_rl.fitting.denoising_ppo import (
    PpoConfig,
    act_in_feature_space,
    decision_kl,
    ppo_iteration,
    sample_decisions,
)
from robot_rl.fitting.round_data import RoundData, RoundFits
from robot_rl.fitting.weights import WeightedRows, awr_weights, effective_share, success_weights
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.training import TrainConfig, train

log = logging.getLogger(__name__)

ANCHOR_BATCH = 256


class Method(str, Enum):
    """What proposes candidates; see the module."""

    merged = "merged"
    success_only = "success_only"
    awr = "awr"
    ppo = "ppo"


@dataclass(frozen=True)
class PpoProposalConfig(PpoConfig):
    """PPO in gated pieces.

    Attributes:
        proposals: pieces a round.
        iterations: PPO iterations a piece.
        shrink: factor of the learning rate at a rejection.
    """

    proposals: int = 4
    iterations: int = 6
    shrink: float = 0.5


@dataclass(frozen=True)
class ImitationConfig:
    """Weighted imitation.

    Attributes:
        temperature: of awr, in standard deviations of the advantage.
        exponent_max: of awr, cap of the exponent.
        train: optimiser and its loop; one for merged, success_only and awr, so that they have equal iterations.
    """

    temperature: float = 0.33
    exponent_max: float = 3.0
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            num_steps=2_000, learning_rate=3e-4, checkpoint_every_steps=1_000, threads=1
        )
    )


Proposals = Generator[tuple[Any, dict[str, Any]], bool, None]
"""Yields (candidate, its numbers) and is sent whether the gate kept it."""


def next_proposal(proposals: Proposals, answer: bool | None) -> tuple[Any, dict[str, Any]] | None:
    """Send the gate's answer (None before the first) and return the next proposal, or None behind the last."""
    try:
        return proposals.send(answer)  # type: ignore[arg-type]
    except StopIteration:
        return None


def ppo_proposals(
    config: PpoProposalConfig, incumbent: Any, data: RoundData, fits: RoundFits, *, seed: int
) -> Proposals:
    """PPO over the denoising steps in gated pieces of `iterations`; a rejected piece is undone and shrinks the step.

    "kl_nats" is the distance to the policy that the pieces of this round started from, not to the piece before: four
    pieces of .5 nats, each kept by all judges, took a policy from 145 to 85 of 200.
    """
    generator = torch.Generator(device=data.all_rows.feature.device).manual_seed(seed + 2)
    policy, start = _trainable(incumbent), copy.deepcopy(incumbent)
    optimizer = torch.optim.Adam(_weights(policy), lr=config.learning_rate)
    features = torch.cat([data.optimizer.feature, data.optimizer_validation.feature])
    rate = config.learning_rate
    draw = WeightedRows(success_weights(data.all_rows.success)).draw if config.anchor else None
    denoising_loss = _loss_of_features(data)

    def anchor(module: Any, source: torch.Generator) -> torch.Tensor:
        assert draw is not None
        return denoising_loss(module, draw(ANCHOR_BATCH, source), source)[0]

    for _ in range(config.proposals):
        before, optimizer_before = copy.deepcopy(policy), copy.deepcopy(optimizer.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers: dict[str, Any] = {}
        for _iteration in range(config.iterations):
            decisions, drawn = sample_decisions(policy, fits.critic, features, config=config, generator=generator)
            numbers = drawn | ppo_iteration(
                policy, decisions, optimizer, config=config, generator=generator, anchor=anchor
            )
        if numbers["dominating_steps"]:
            log.warning("denoising steps %s take most of the KL: %s", numbers["dominating_steps"], numbers["kl"])
        moved = decision_kl(policy, start, data.optimizer_validation.feature[:1024], generator)
        numbers |= {"kl_nats": float(moved.sum()), "kl_steps_nats": moved.tolist(), "learning_rate": rate}
        numbers["optimizer_q_gap"] = _optimizer_gap(policy, data, fits, generator)
        accepted = yield copy.deepcopy(policy).eval().requires_grad_(False), numbers
        if not accepted:
            policy.load_state_dict(before.state_dict())
            optimizer.load_state_dict(optimizer_before)
            rate *= config.shrink


def imitation_proposal(
    config: ImitationConfig, method: Method, incumbent: Any, data: RoundData, fits: RoundFits, *, place: Path,
    documents: Any, seed: int,
) -> Proposals:  # fmt: skip
    """Weighted imitation from the incumbent's weights: the denoising loss on windows drawn by their weight.

    Its checkpoints and metrics lie in `place/<method>`, so a killed run continues inside.
    """
    rows = data.all_rows
    if method is Method.awr:
        q, value = fits.critic.q(rows.feature, rows.action), fits.critic.value(rows.feature)
        weight = awr_weights(advantage(q, value), temperature=config.temperature, exponent_max=config.exponent_max)
    else:
        weight = success_weights(rows.success) if method is Method.success_only else torch.ones_like(rows.reward)
    draw = WeightedRows(weight).draw
    denoising_loss = _loss_of_features(data)

    def batch_loss(module: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return denoising_loss(module, draw(config.train.batch_size, generator), generator)

    policy = _trainable(incumbent)
    (place / method.value).mkdir(parents=True, exist_ok=True)
    average = train(
        policy, batch_loss, config=config.train, run=RunDirectory(place / method.value), prefix=method.value,
        documents={name: documents[name] for name in ("policy", "spec", "normalizer")}, seed=seed,
    )  # fmt: skip
    yield average, {"effective_share": effective_share(weight), "windows": len(weight)}


def _loss_of_features(
    data: RoundData,
) -> Callable[[Any, torch.Tensor, torch.Generator], tuple[torch.Tensor, dict[str, float]]]:
    """Denoising loss of windows by their index, on the features of the round: the encoder is frozen, so nothing that was
    seen is looked at twice."""
    windows, features = data.windows.without_observations(), data.all_rows.feature

    def loss(module: Any, chosen: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = chosen.to(features.device)
        window = windows.window(chosen, with_next=False)
        return module.loss(window, generator, condition=features[chosen])  # type: ignore[no-any-return]

    return loss


def _trainable(incumbent: Any) -> Any:
    """A copy whose denoiser learns; the encoder stays, for features were computed with it (RL-100, offline stage)."""
    policy = copy.deepcopy(incumbent)
    policy.denoiser.requires_grad_(True)
    policy.encoder.requires_grad_(False)
    return policy


def _weights(policy: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def _optimizer_gap(policy: Any, data: RoundData, fits: RoundFits, generator: torch.Generator) -> float:
    """Q(policy) - Q(data) of the critic that is optimised, on its own held-out episodes (P11)."""
    rows = data.optimizer_validation
    noise = torch.randn(len(rows), *policy.noise_shape, generator=generator, device=generator.device)
    return policy_gap(fits.critic, rows.feature, act_in_feature_space(policy)(rows.feature, noise), rows.action)
