"""One iteration of online PPO on a batch of whole episodes: V, advantages, ratio loss, imitation of the human's actions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from robot_rl.algorithms.ppo import AdvantageRule, scale_advantage, value_loss
from robot_rl.arrays import Array, Float32
from robot_rl.errors import RunError
from robot_rl.fitting.denoising_ppo import Decisions, PpoConfig, chain_kl, chain_log_prob, ppo_iteration
from robot_rl.fitting.on_policy import OnPolicyBatch, advantages

ROWS_AT_ONCE = 8192
SHRINK = 0.5


@dataclass(frozen=True)
class OnlinePpoConfig(PpoConfig):
    """PPO with GAE; what differs from the offline stage is the default.

    `num_states`, `group` and `baseline` mean nothing here (`online` refuses them): the decisions are those that were
    played. Advantages are scaled over the whole batch of an iteration, as in RL-100's code (P12). `anchor` weighs the
    denoising loss on the human's actions and on demonstrations, where there are any.
    """

    epochs: int = 5
    batch_size: int = 512
    learning_rate: float = 3e-5
    kl_stop: float = 1.0
    advantage: AdvantageRule = AdvantageRule.centre
    anchor: float = 1.0


@dataclass(frozen=True)
class ValueConfig:
    """How V follows the returns.

    Attributes:
        epochs: passes over the batch of an iteration.
        batch_size: decisions a gradient step.
        learning_rate: of Adam.
        clip: half width of PPO's value clip, in units of return; null: none (P21).
    """

    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    clip: float | None = None


@dataclass(frozen=True)
class UpdateConfig:
    """What one iteration does with a batch.

    Attributes:
        gamma: discount per env step.
        trace: lambda of GAE, per decision.
        ppo: of the policy.
        value: of V.
        max_kl: nats a decision; an update that ends beyond it is undone, and the learning rate halved. `ppo.kl_stop` stops
            between minibatches and can't see what the last one did.
        train_encoder: encode the observations anew, with gradient.
    """

    gamma: float
    trace: float
    ppo: OnlinePpoConfig
    value: ValueConfig
    max_kl: float = 2.0
    train_encoder: bool = False


@dataclass
class Learner:
    """What learns online, and all state of it that the next iteration depends on.

    Attributes:
        policy: a DenoisingPolicy in mode eta1.
        critic: its V is used.
        optimizer, value_optimizer: of policy and V.
        generator: of the order of the batches.
    """

    policy: Any
    critic: Any
    optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    generator: torch.Generator

    def shrink(self) -> None:
        """Halve the policy's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] *= SHRINK


@torch.no_grad()
def values_of(critic: Any, feature: Float32[Array, "B F"]) -> Float32[Array, " B"]:
    """V of every row."""
    return torch.cat([critic.value(rows) for rows in torch.split(feature, ROWS_AT_ONCE)])


def fit_value(
    critic: Any,
    feature: Float32[Array, "B F"],
    returns: Float32[Array, " B"],
    optimizer: torch.optim.Optimizer,
    *,
    before: Float32[Array, " B"],
    config: ValueConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """Fit V to returns, in place; `before` is V of every row as it is.

    Returns:
        {"value_loss" (mean of the last epoch), "explained_variance" (of the returns, before the fit)}.

    Raises:
        RunError: a loss that is no number.
    """
    spread = float(returns.var(unbiased=False))
    explained = 1 - float((returns - before).var(unbiased=False)) / spread if spread > 0 else 0.0
    losses: list[float] = []
    for _epoch in range(config.epochs):
        order = torch.randperm(len(feature), generator=generator, device=generator.device).to(feature.device)
        losses = []
        for rows in torch.split(order, config.batch_size):
            old = None if config.clip is None else before[rows]
            loss = value_loss(critic.value(feature[rows]), returns[rows], old=old, clip=config.clip or 0.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
    mean = sum(losses) / max(len(losses), 1)
    if not mean < float("inf"):
        raise RunError("value", expected="a finite loss", got=str(mean), hint="Lower value.learning_rate.")
    return {"value_loss": mean, "explained_variance": explained}


def improve(
    learner: Learner,
    batch: OnPolicyBatch,
    *,
    config: UpdateConfig,
    move_policy: bool = True,
    anchor: Callable[[Any, torch.Generator], torch.Tensor] | None = None,
    drawn_by: Any = None,
) -> dict[str, Any]:
    """Advantages with V as it was, then V, then the policy; both are changed in place, by what the policy chose.

    Args:
        learner: whose policy played the batch, unless `drawn_by` did.
        batch: whole episodes.
        config: of the update.
        move_policy: False while the critic warms up.
        anchor: see `ppo_iteration`.
        drawn_by: the policy with the older weights that played the batch; the ratio is over its density. None: the learner's.

    Returns:
        Numbers of `ppo_iteration` and `fit_value`, "advantage_std", "kl_after" and "undone"; of a batch in which a human
        acted in every decision, from which nothing is learned, "advantage_std" alone.
    """
    policy, critic = learner.policy, learner.critic
    now, behind = values_of(critic, batch.feature), values_of(critic, batch.next_feature)
    advantage, returns = advantages(batch, now, behind, gamma=config.gamma, trace=config.trace)
    chosen = ~batch.human
    if not bool(chosen.any()):
        return {"advantage_std": 0.0}
    # V is the policy's own: had it learned what the human achieves, his success would be credited, through the value of
    # the state where he came in, to the decisions that made him come in.
    numbers: dict[str, Any] = fit_value(
        critic, batch.feature[chosen], returns[chosen], learner.value_optimizer, before=now[chosen],
        config=config.value, generator=learner.generator,
    )  # fmt: skip
    numbers |= {"advantage_std": float(advantage[chosen].std(unbiased=False))}
    if not move_policy:
        return numbers
    decisions = Decisions(
        batch.feature[chosen], batch.latents[chosen], scale_advantage(advantage[chosen], rule=config.ppo.advantage),
        observation=batch.observation.map(lambda x: x[chosen]) if config.train_encoder else None,
    )  # fmt: skip
    if drawn_by is not None:
        decisions = replace(decisions, log_prob=log_prob_of(drawn_by, decisions, config.ppo))
    before, optimizer_before = copy.deepcopy(policy.state_dict()), copy.deepcopy(learner.optimizer.state_dict())
    numbers |= ppo_iteration(
        policy, decisions, learner.optimizer, config=config.ppo, generator=learner.generator, anchor=anchor
    )
    numbers["kl_after"] = kl_after(policy, before, decisions, config.ppo)
    numbers["undone"] = not numbers["kl_after"] <= config.max_kl
    if numbers["undone"]:
        policy.load_state_dict(before)
        learner.optimizer.load_state_dict(optimizer_before)
        learner.shrink()
    return numbers


def let_encoder_learn(encoder: torch.nn.Module, learns: bool) -> None:
    """Freeze an encoder, or let what trains in it train; what is frozen already (pretrained weights) stays as it is.

    Args:
        encoder: of a policy that was just loaded or built.
        learns: whether PPO moves it too.
    """
    for parameter in encoder.parameters():
        parameter.requires_grad_(learns and parameter.requires_grad)


@torch.no_grad()
def log_prob_of(policy: Any, decisions: Decisions, config: PpoConfig) -> Float32[Array, "B K"]:
    """`chain_log_prob` of every decision under `policy`, with its own encoder where that learns."""
    return torch.cat([
        chain_log_prob(policy, decisions.latents[part], decisions.condition(policy, part), reduction=config.reduction)
        for part in _parts(decisions, config)
    ])  # fmt: skip


@torch.no_grad()
def kl_after(policy: Any, before: Mapping[str, torch.Tensor], decisions: Decisions, config: PpoConfig) -> float:
    """KL(old || new) of a decision along the chains that the weights `before` drew, exact; nats, mean over the batch."""
    old = copy.deepcopy(policy)
    old.load_state_dict(before)
    total = 0.0
    for part in _parts(decisions, config):
        conditions = decisions.condition(policy, part), decisions.condition(old, part)
        total += float(chain_kl(policy, old, decisions.latents[part], conditions).sum()) * len(part)
    return total / max(len(decisions.feature), 1)


def _parts(decisions: Decisions, config: PpoConfig) -> tuple[torch.Tensor, ...]:
    """Row numbers, in parts that fit the memory: of observations as many as in a gradient step, whose maps are far larger."""
    rows = torch.arange(len(decisions.feature), device=decisions.feature.device)
    return torch.split(rows, ROWS_AT_ONCE if decisions.observation is None else config.batch_size)


def numbers_to_log(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What the online stage writes of `improve`'s numbers, name without prefix -> number."""
    names = ("value_loss", "explained_variance", "advantage_std", "gradient_steps")
    values = {name: float(numbers[name]) for name in names if name in numbers}
    if "kl_after" in numbers:
        values["kl_nats"] = min(numbers["kl_after"], 1e9)
        values["undone"] = float(numbers["undone"])
        values["clip_share"] = sum(numbers["clip_share"]) / len(numbers["clip_share"])
    return values
