"""Fit a transition model on decisions of a dataset, in a policy's feature space. Roll-outs in it: model_rollout.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.dynamics import LossScales, bounds_of_data, disagreement, model_loss, termination_weight
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.data.transitions import Transitions
from robot_rl.errors import DataError


@dataclass(frozen=True)
class ModelFitConfig:
    """How a model is fitted.

    Attributes:
        num_steps: most gradient steps.
        batch_size: decisions a step.
        learning_rate: falls to zero on a half cosine.
        weight_decay: of AdamW.
        grad_norm: gradients of each step are clipped to this norm.
        check_every_steps: steps between looks at the held-out episodes.
        patience: looks without a better value in any member before the fit stops.
        beta: see `model_loss`.
        end_weight_max: a termination counts at most this often.
        range_margin: predictions may leave the range of the training features by this share of it.
    """

    num_steps: int = 4_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    grad_norm: float = 10.0
    check_every_steps: int = 200
    patience: int = 5
    beta: float = 0.5
    end_weight_max: float = 20.0
    range_margin: float = 0.1


@dataclass(frozen=True)
class ModelReport:
    """What held-out episodes say about a fitted model.

    Attributes:
        r2: share of the variance of the features' changes that the mean over members explains, one decision ahead;
            every feature in units of its standard deviation. None where nothing changes.
        r2_members: of each member alone.
        nll: of each member, nats per feature.
        reward_r2: of the mean over members, told whether the task ended; None where the held-out reward does not vary.
        termination_log_loss: of the members' mean probability.
        termination_log_loss_constant: of always saying the training data's rate; a useful head is below it.
        termination_auc: area under the ROC curve; None unless both outcomes were held out.
        disagreement: mean over held-out decisions; the unit of disagreement in roll-outs.
        steps: gradient steps taken.
        best_steps: step whose weights each member kept.
        stopped_early: whether the held-out episodes ended the fit before `num_steps`.
        rows, validation_rows: decisions used.
    """

    r2: float | None
    r2_members: tuple[float | None, ...]
    nll: tuple[float, ...]
    reward_r2: float | None
    termination_log_loss: float
    termination_log_loss_constant: float
    termination_auc: float | None
    disagreement: float
    steps: int
    best_steps: tuple[int, ...]
    stopped_early: bool
    rows: int
    validation_rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


def whole_decisions(transitions: Transitions) -> Transitions:
    """Without decisions that the time limit cut short: they moved less than their chunk says, and would teach that.

    A cut decision is told by its discount, which is larger than gamma^Ta; with gamma = 1 none can be told.
    """
    running = ~transitions.terminated
    if not bool(running.any()):
        return transitions
    full = transitions.discount[running].min()
    return transitions.rows(transitions.terminated | (transitions.discount <= full * (1 + 1e-6)))


def bootstrap_counts(
    episode: Int64[Array, " B"], *, num_members: int, generator: torch.Generator
) -> Float32[Array, "M B"]:
    """How often each member's sample of the episodes, drawn with replacement, holds each row (Efron 1979).

    Whole episodes are drawn, for the rows of one are not independent. One less than there are: samples of n would
    spread by (n - 1) / n of the true variance, which few episodes feel (McCarthy and Snowden 1985).
    """
    _, position = torch.unique(episode, return_inverse=True)
    number = int(position.max()) + 1
    drawn = torch.randint(number, (num_members, max(number - 1, 1)), generator=generator, device=generator.device)
    counts = torch.zeros(num_members, number, device=generator.device)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype))
    return counts.to(episode.device)[:, position]


def fit_model(
    model: Any,
    train: Transitions,
    validation: Transitions,
    *,
    config: ModelFitConfig,
    generator: torch.Generator,
    on_check: Callable[[int, dict[str, float]], None] | None = None,
) -> ModelReport:
    """Fit an ensemble in place; every member keeps the weights that were best on the held-out episodes.

    Args:
        model: an nn.Module that is a TransitionModel, has `num_members` and `set_data(delta, bounds)`, and whose
            parameters all have the member as their first dimension.
        train: every member sees its own bootstrap sample of these episodes.
        validation: decisions of other episodes.
        config: of the fit.
        generator: of bootstrap and batches. The initial weights are the caller's.
        on_check: called with the step and metrics at every look at the held-out episodes.

    Raises:
        DataError: no decisions, an episode in both parts, or a loss that is no number.
    """
    _check_parts(train, validation)
    train, validation = whole_decisions(train), whole_decisions(validation)
    delta = train.next_feature - train.feature
    bounds = bounds_of_data(
        train.feature, train.next_feature, reward=train.reward, terminated=train.terminated, margin=config.range_margin
    )
    model.set_data(delta, bounds)
    counts = bootstrap_counts(train.episode, num_members=model.num_members, generator=generator)
    scales = LossScales(
        delta_std=model.delta_std,
        reward_std=max(float(train.reward.std(unbiased=False)), 1e-3),
        end_weight=termination_weight(train.terminated, largest=config.end_weight_max),
    )
    best = _Best(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    step = 0
    while step < config.num_steps and best.looks_without_gain < config.patience:
        optimizer.param_groups[0]["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.num_steps))
        index = torch.randint(len(train), (config.batch_size,), generator=generator, device=generator.device)
        index = index.to(counts.device)
        loss, _ = _losses(model, train.rows(index), counts[:, index], scales, beta=config.beta)
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_norm)
        optimizer.step()
        step += 1
        if step % config.check_every_steps == 0 or step == config.num_steps:
            value, parts = validation_loss(model, validation, scales)
            best.look(model, value, step)
            if on_check is not None:
                on_check(step, {name: float(part.mean()) for name, part in parts.items()})
    best.restore(model)
    return _report(model, train, validation, best=best, steps=step, config=config)


@torch.no_grad()
def validation_loss(
    model: Any, validation: Transitions, scales: LossScales
) -> tuple[Float32[Array, " M"], dict[str, Float32[Array, " M"]]]:
    """What members are chosen by: squared errors of feature and reward, and cross-entropy of termination; and all parts.

    The likelihood is reported but does not choose, as in MBPO: one surprise in a feature that hardly ever moves can
    outweigh everything else in it.

    Raises:
        DataError: a member's loss is no finite number.
    """
    total: dict[str, torch.Tensor] = {}
    for rows in _batches(validation):
        ones = torch.ones(model.num_members, len(rows), device=rows.feature.device)
        _, parts = _losses(model, rows, ones, scales, beta=0.0)
        for name, value in parts.items():
            total[name] = total.get(name, torch.zeros_like(value)) + value * len(rows) / len(validation)
    loss = total["delta_mse"] + total["reward_mse"] + total["termination_loss"]
    if not bool(torch.isfinite(loss).all()):
        raise DataError(
            "fit of the transition model", expected="finite losses on the held-out episodes",
            got=str(loss.tolist()), hint="Lower the learning rate; look for extreme features in the data.",
        )  # fmt: skip
    return loss, {f"validation_{name}": value for name, value in {"loss": loss, **total}.items()}


def _losses(
    model: Any, rows: Transitions, row_weight: torch.Tensor, scales: LossScales, *, beta: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return model_loss(
        model(rows.feature, rows.action), delta=rows.next_feature - rows.feature, reward=rows.reward,
        terminated=rows.terminated, row_weight=row_weight, scales=scales, beta=beta,
    )  # fmt: skip


class _Best:
    """Each member's best weights so far; members are chosen apart, for their samples differ."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]
        self.value = torch.full((len(self.weights[0]),), torch.inf, device=self.weights[0].device)
        self.steps = torch.zeros(len(self.value), dtype=torch.int64, device=self.value.device)
        self.looks_without_gain = 0

    @torch.no_grad()
    def look(self, model: nn.Module, value: torch.Tensor, step: int) -> None:
        better = value < self.value
        self.looks_without_gain = 0 if bool(better.any()) else self.looks_without_gain + 1
        self.value = torch.where(better, value, self.value)
        self.steps[better] = step
        for kept, parameter in zip(self.weights, model.parameters(), strict=True):
            kept[better] = parameter[better]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        for kept, parameter in zip(self.weights, model.parameters(), strict=True):
            parameter.copy_(kept)


def _check_parts(train: Transitions, validation: Transitions) -> None:
    shared = set(train.episode.unique().tolist()) & set(validation.episode.unique().tolist())
    if not len(train) or not len(validation) or shared:
        raise DataError(
            "data of the transition model", expected="training and held-out decisions of different episodes",
            got=f"{len(train)} and {len(validation)} decisions, {len(shared)} episodes in both",
            hint="Split by episode, with at least one on each side.",
        )  # fmt: skip


@torch.no_grad()
def _report(
    model: Any, train: Transitions, validation: Transitions, *, best: _Best, steps: int, config: ModelFitConfig
) -> ModelReport:
    parts = [model(rows.feature, rows.action) for rows in _batches(validation)]
    mean = torch.cat([part.mean for part in parts], dim=1)
    running, ending = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("reward", "end_reward"))
    reward = torch.where(validation.terminated, ending, running).mean(0)
    probability = torch.cat([part.termination_logit for part in parts], dim=1).sigmoid().mean(0)
    delta = validation.next_feature - validation.feature
    _, losses = validation_loss(model, validation, LossScales(model.delta_std, reward_std=1.0, end_weight=1.0))
    rate = train.terminated.float().mean().expand_as(probability)
    return ModelReport(
        r2=_explained(delta / model.delta_std, mean.mean(0) / model.delta_std),
        r2_members=tuple(_explained(delta / model.delta_std, one / model.delta_std) for one in mean),
        nll=tuple(losses["validation_nll"].tolist()),
        reward_r2=_explained(validation.reward, reward),
        termination_log_loss=_log_loss(probability, validation.terminated),
        termination_log_loss_constant=_log_loss(rate, validation.terminated),
        termination_auc=area_under_curve(probability, validation.terminated),
        disagreement=float(disagreement(mean, scale=model.delta_std).mean()),
        steps=steps,
        best_steps=tuple(best.steps.tolist()),
        stopped_early=steps < config.num_steps,
        rows=len(train),
        validation_rows=len(validation),
    )


def _batches(transitions: Transitions, *, batch_size: int = 4096) -> list[Transitions]:
    index = torch.arange(len(transitions), device=transitions.feature.device)
    return [transitions.rows(rows) for rows in torch.split(index, batch_size)]


def _explained(target: torch.Tensor, predicted: torch.Tensor) -> float | None:
    """1 - squared error / squared distance from the mean; None where the target does not vary."""
    spread = (target - target.mean(0)).square().sum()
    return float(1 - (target - predicted).square().sum() / spread) if spread > 0 else None


def _log_loss(probability: torch.Tensor, happened: torch.Tensor) -> float:
    safe = probability.clamp(1e-6, 1 - 1e-6)
    return float(-torch.where(happened, safe.log(), (1 - safe).log()).mean())


def area_under_curve(score: Float32[Array, " B"], positive: Bool[Array, " B"]) -> float | None:
    """Probability that a positive row scores higher than a negative one, ties half; None unless there are both."""
    if bool(positive.all()) or not bool(positive.any()):
        return None
    from scipy.stats import mannwhitneyu

    high, low = score[positive].double().cpu().numpy(), score[~positive].double().cpu().numpy()
    return float(mannwhitneyu(high, low).statistic) / (len(high) * len(low))
