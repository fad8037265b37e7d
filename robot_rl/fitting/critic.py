"""Fit the critic of the offline stage, or one of its judges, by implicit Q-learning (Kostrikov, Nair, Levine 2022).

When to stop, and which weights to keep. The training loss of a bootstrapped critic says little, because its targets
move with it; neither does the held-out TD error alone: Q = 0 has a small one under a sparse reward, and a critic that
memorised which episode succeeded is consistent along a new episode while wrong about all of it (Fujimoto et al. 2022,
arXiv 2201.12417). What such a critic can't fake is the return that followed in episodes that it has not seen. But the
level of that return is the behaviour policy's, and an expectile above 0.5 and the missing rest behind a time limit lift
Q over it on purpose. So the validation loss is, on held-out episodes and in units of the variance of their returns,

    TD error of Q  +  squared error of the returns left by the best rising line in Q,  i.e.  td / var + 1 - max(rho, 0)^2.

The latest weights within `tolerance` of the smallest loss are kept, not those of the smallest: values that have not yet
travelled back from the reward can rank as well as the finished ones, and the difference is the noise of few episodes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from robot_rl.algorithms.iql import q_loss, q_target, value_loss
from robot_rl.arrays import Array, Float32
from robot_rl.data.transitions import Transitions
from robot_rl.errors import DataError, RunError

VALIDATION_ROWS_AT_ONCE = 8192


@runtime_checkable
class CriticNetwork(Protocol):
    """What is fitted: an nn.Module with Q members and V (policies/critics.py, or the user's own)."""

    def q(self, feature: Float32[Array, "B F"], action: Float32[Array, "B D"]) -> Float32[Array, "E B"]:
        """Q of every member."""
        ...

    def value(self, feature: Float32[Array, "B F"]) -> Float32[Array, " B"]:
        """V."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As nn.Module."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As nn.Module."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As nn.Module."""
        ...


@dataclass(frozen=True)
class CriticFitConfig:
    """How it is fitted.

    Attributes:
        num_steps: gradient steps at most.
        batch_size: decisions a step.
        learning_rate: of Adam.
        expectile: tau of V; 0.5 is the value of the behaviour policy, larger ones lean to its better actions.
        target_rate: of the Polyak average; V is fitted to its Q.
        check_every_steps: between two measurements of the validation loss.
        patience: stop after so many checks without one that is within `tolerance` of the smallest loss.
        tolerance: relative; weights that are not worse than this are kept for being later.
    """

    num_steps: int = 6_000
    batch_size: int = 256
    learning_rate: float = 5e-4
    expectile: float = 0.7
    target_rate: float = 0.005
    check_every_steps: int = 300
    patience: int = 5
    tolerance: float = 0.02


@dataclass(frozen=True)
class ValidationPoint:
    """One check.

    Attributes:
        step: gradient steps done.
        loss: td_error / variance of the returns + return_error.
        td_error: mean squared error of the mean Q against its clamped target, in squared units of return.
        return_error: share of the variance of held-out returns that the best rising line in the mean Q leaves, 1 -
            max(rho, 0)^2 with Pearson's rho; 0 when all returns are equal.
    """

    step: int
    loss: float
    td_error: float
    return_error: float


@dataclass(frozen=True)
class CriticReport:
    """How a fit went. Everything but the target's figures is measured on validation episodes with the kept weights.

    Attributes:
        steps: gradient steps done.
        best_step: of the weights that were kept.
        stopped_by: "validation" or "num_steps".
        curve: of the validation loss.
        target_max: largest target of Q before the clamp, over the whole fit (P8).
        target_clamped_share: share of the targets that the clamp moved.
        value_at_starts: mean V at the starts.
        return_at_starts: mean Monte-Carlo return of the same episodes; the rest behind a time limit is missing in it.
        q_data: mean over the data of the smallest member's Q.
        rank_correlation: Spearman's, of that Q with the return that followed, over all rows; None without variation.
        rank_correlation_starts: Spearman's of V with the return, over the starts; None without variation.
    """

    steps: int
    best_step: int
    stopped_by: str
    curve: tuple[ValidationPoint, ...]
    target_max: float
    target_clamped_share: float
    value_at_starts: float
    return_at_starts: float
    q_data: float
    rank_correlation: float | None
    rank_correlation_starts: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"curve": [asdict(point) for point in self.curve]}


def fit_critic(
    critic: CriticNetwork,
    train: Transitions,
    validation: Transitions,
    *,
    config: CriticFitConfig,
    generator: torch.Generator,
    low: float,
    high: float,
    on_step: Callable[[int], None] | None = None,
) -> CriticReport:
    """Fit `critic` in place and leave the weights of the best validation loss in it.

    The Polyak average that IQL keeps of Q, as the target of V, is kept of V as well; it is what is validated and
    returned, for it has less noise of the batches. Deterministic given the critic's weights, the data and the generator.

    Args:
        critic: Q ensemble and V.
        train: decisions of the training episodes.
        validation: decisions of other episodes.
        config: of the fit.
        generator: draws the batches; on the data's device.
        low: of `returns.reachable_range`.
        high: of `returns.reachable_range`.
        on_step: called with the number of steps done, for a progress line.

    Raises:
        DataError: no rows to train or to validate on, or no starts among the latter.
        RunError: a loss that is no number, with its step.
    """
    _check_rows(train, validation)
    average = copy.deepcopy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.learning_rate, fused=True)
    curve = [_validate(average, validation, step=0, low=low, high=high)]
    best_step, kept = 0, copy.deepcopy(average.state_dict())
    target_max, clamped_share, step, stopped_by = -math.inf, 0.0, 0, "num_steps"
    for step in range(1, config.num_steps + 1):
        drawn = torch.randint(len(train), (config.batch_size,), generator=generator, device=generator.device)
        metrics = _update(critic, average, optimizer, train.rows(drawn), config=config, low=low, high=high)
        _check_finite(metrics["loss"], step)
        target_max = max(target_max, metrics["target_max"])
        clamped_share += (metrics["target_clamped_share"] - clamped_share) / step
        if on_step is not None:
            on_step(step)
        if step % config.check_every_steps == 0 or step == config.num_steps:
            curve.append(_validate(average, validation, step=step, low=low, high=high))
            if curve[-1].loss <= (1 + config.tolerance) * min(point.loss for point in curve):
                best_step, kept = step, copy.deepcopy(average.state_dict())
            elif step - best_step >= config.patience * config.check_every_steps:
                stopped_by = "validation"
                break
    critic.load_state_dict(kept)
    return CriticReport(
        steps=step, best_step=best_step, stopped_by=stopped_by, curve=tuple(curve), target_max=target_max,
        target_clamped_share=clamped_share, **critic_quality(critic, validation),
    )  # fmt: skip


def _update(
    critic: CriticNetwork,
    average: CriticNetwork,
    optimizer: torch.optim.Optimizer,
    batch: Transitions,
    *,
    config: CriticFitConfig,
    low: float,
    high: float,
) -> dict[str, float]:
    """One step of V and Q at once; the figures of `q_target`, and the loss."""
    with torch.no_grad():
        goal_of_value = average.q(batch.feature, batch.action)
        following = critic.value(batch.next_feature)
    loss_v, _ = value_loss(goal_of_value, critic.value(batch.feature), expectile=config.expectile)
    goal, metrics = q_target(batch.reward, batch.discount, following, low=low, high=high)
    loss = loss_v + q_loss(critic.q(batch.feature, batch.action), goal)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    _polyak(average, critic, rate=config.target_rate)
    return metrics | {"loss": float(loss.detach())}


@torch.no_grad()
def critic_quality(critic: CriticNetwork, data: Transitions) -> dict[str, Any]:
    """The figures of CriticReport that any critic can be asked for, on any episodes.

    Returns:
        {"value_at_starts", "return_at_starts", "q_data", "rank_correlation", "rank_correlation_starts"}.
    """
    smallest = _over_rows(data, lambda rows: critic.q(rows.feature, rows.action).min(dim=0).values)
    starts = data.rows(data.step == 0)
    value = _over_rows(starts, lambda rows: critic.value(rows.feature))
    return {
        "value_at_starts": float(value.mean()),
        "return_at_starts": float(starts.return_to_go.mean()),
        "q_data": float(smallest.mean()),
        "rank_correlation": rank_correlation(smallest, data.return_to_go),
        "rank_correlation_starts": rank_correlation(value, starts.return_to_go),
    }


@torch.no_grad()
def policy_gap(
    critic: CriticNetwork,
    feature: Float32[Array, "B F"],
    policy_action: Float32[Array, "B D"],
    data_action: Float32[Array, "B D"],
) -> float:
    """Mean Q of the policy's actions minus mean Q of the data's, smallest member: how far Q is asked off the data (P11).

    Args:
        critic: the one that is being optimised, or a judge.
        feature: states of the data.
        policy_action: one action of the policy for each.
        data_action: the recorded one.
    """
    gap = critic.q(feature, policy_action).min(dim=0).values - critic.q(feature, data_action).min(dim=0).values
    return float(gap.mean())


def rank_correlation(first: Float32[Array, " B"], second: Float32[Array, " B"]) -> float | None:
    """Spearman's rank correlation, or None when one of them does not vary or there are fewer than three."""
    from scipy.stats import spearmanr

    if len(first) < 3 or bool((first == first[0]).all()) or bool((second == second[0]).all()):
        return None
    return float(spearmanr(first.cpu().numpy(), second.cpu().numpy()).statistic)


@torch.no_grad()
def _validate(critic: CriticNetwork, data: Transitions, *, step: int, low: float, high: float) -> ValidationPoint:
    """See the head of this file."""
    q = _over_rows(data, lambda rows: critic.q(rows.feature, rows.action).mean(dim=0))
    following = _over_rows(data, lambda rows: critic.value(rows.next_feature))
    goal, _ = q_target(data.reward, data.discount, following, low=low, high=high)
    td_error = float((q - goal).square().mean())
    variance = float(data.return_to_go.double().var(correction=0))
    return_error = 0.0
    if variance > 0:
        both = torch.stack([q, data.return_to_go]).double()
        # A falling line would make a critic that ranks the wrong way round look good.
        return_error = 1 - float(torch.corrcoef(both)[0, 1].nan_to_num(0.0).clamp_min(0.0)) ** 2
    loss = td_error / (variance or 1.0) + return_error
    _check_finite(loss, step)
    return ValidationPoint(step=step, loss=loss, td_error=td_error, return_error=return_error)


def _over_rows(data: Transitions, score: Callable[[Transitions], torch.Tensor]) -> torch.Tensor:
    positions = torch.arange(len(data), device=data.feature.device)
    return torch.cat([score(data.rows(part)) for part in torch.split(positions, VALIDATION_ROWS_AT_ONCE)])


@torch.no_grad()
def _polyak(average: CriticNetwork, critic: CriticNetwork, *, rate: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(critic.parameters()), rate)


def _check_rows(train: Transitions, validation: Transitions) -> None:
    if not len(train) or not len(validation) or not bool((validation.step == 0).any()):
        raise DataError(
            "critic", expected="decisions to train on, and others with starts of episodes to validate on",
            got=f"{len(train)} and {len(validation)} rows", hint="Collect more episodes, or change validation_fraction.",
        )  # fmt: skip


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise RunError(
            f"critic, step {step}", expected="a finite loss", got=str(loss),
            hint="Look for NaN in rewards and features (`robot-rl data check`), or lower learning_rate.",
        )  # fmt: skip
