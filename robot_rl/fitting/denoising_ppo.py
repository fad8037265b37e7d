"""One PPO iteration over the denoising steps of a diffusion policy, with a critic for its reward (RL-100, section 1.3).

States come from the data, actions from the policy (offline PPO as in BPPO): Q is asked about actions that the data
does not hold, so an iteration is short, its KL is bounded, and a gate that uses another critic decides whether it stays
(P11). Everything happens in the policy's feature space; the encoder does not move.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from robot_rl.algorithms.ppo import (
    AdvantageRule,
    StepBalance,
    clipped_loss,
    dominating_steps,
    executed_log_prob,
    scale_advantage,
    step_statistics,
    step_weights,
)
from robot_rl.arrays import Array, Float, Float32, Int64
from robot_rl.errors import ConfigError, RunError
from robot_rl.types import Observation

log = logging.getLogger(__name__)

RATIO_ERROR_LIMIT = 1e-3


class Baseline(str, Enum):
    """What is subtracted from Q: V of the state, or the mean Q of the `group` actions drawn at the same state."""

    value = "value"
    group = "group"


class StepSampling(str, Enum):
    """Which denoising steps of a decision a gradient step uses: all K summed, or one drawn uniformly (times K)."""

    all = "all"
    uniform = "uniform"


class LogProbReduction(str, Enum):
    """A ratio of joint densities (sum over executed actions), or its root over their number (mean, as DPPO; P7)."""

    sum = "sum"
    mean = "mean"


@dataclass(frozen=True)
class PpoConfig:
    """PPO over denoising.

    Attributes:
        num_states: states of the data an iteration. Many, for the surrogate's noise moves the policy as well: at equal KL
            1,024 decisions in 16 steps took a policy from 51 to 22 %, 2,048 in 2 steps did not (docs/offline.md).
        group: actions drawn at each.
        epochs: passes over the decisions of an iteration.
        batch_size: decisions a gradient step.
        learning_rate: of Adam, without schedule.
        grad_norm: gradients are clipped to this norm.
        clip: e of every denoising step's ratio.
        kl_stop: the iteration ends when the KL of a decision (summed over denoising steps) passes this; nats.
        baseline: see Baseline.
        advantage: how the batch's advantages are scaled; stated in the decisions of the gate.
        steps: see StepSampling.
        balance: see StepBalance.
        reduction: see LogProbReduction; with `mean` a clip near 0.01 belongs.
        anchor: weight of the denoising loss on windows of successful episodes that is added to every step; 0: none.
            Without it success fell from 156 to 128 of 200 in 16 iterations, with it it stayed (docs/offline.md).
    """

    num_states: int = 512
    group: int = 8
    epochs: int = 1
    batch_size: int = 1_024
    learning_rate: float = 5e-6
    grad_norm: float = 0.5
    clip: float = 0.2
    kl_stop: float = 1.0
    baseline: Baseline = Baseline.group
    advantage: AdvantageRule = AdvantageRule.scale
    steps: StepSampling = StepSampling.all
    balance: StepBalance = StepBalance.fisher
    reduction: LogProbReduction = LogProbReduction.sum
    anchor: float = 3.0


@dataclass(frozen=True)
class Decisions:
    """Sampled decisions of one iteration.

    Attributes:
        feature: float32 (B, F).
        latents: float32 (B, K+1, Tp, A), the stored chains, unclipped.
        advantage: float32 (B,), scaled.
        observation: of the decisions, where the encoder learns too; else None.
        log_prob: float32 (B, K), `chain_log_prob` under the weights that drew, where those are older than the ones that learn;
            None: they are the same.
    """

    feature: Float32[Array, "B F"]
    latents: Float32[Array, "B K1 Tp A"]
    advantage: Float32[Array, " B"]
    observation: Observation | None = None
    log_prob: Float32[Array, "B K"] | None = None

    def condition(self, policy: Any, rows: Int64[Array, " R"]) -> Float32[Array, "R F"]:
        """Condition vectors of some rows: as sampled, or encoded anew with gradient where the encoder learns."""
        if self.observation is None:
            return self.feature[rows]
        encoded: torch.Tensor = policy.encode(self.observation.map(lambda x: x[rows]))
        return encoded

    def penalty(self, policy: Any, rows: Int64[Array, " R"], generator: torch.Generator) -> torch.Tensor | None:
        """Reconstruction and bottleneck of some rows (RL-100: weights / 10); None where the encoder has or learns nothing."""
        of = getattr(policy, "representation_penalty", None)
        if self.observation is None or of is None:
            return None
        value: torch.Tensor | None = of(self.observation.map(lambda x: x[rows]), generator)
        return value


def executed_action(policy: Any, final: Float32[Array, "B Tp A"]) -> Float32[Array, "B D"]:
    """The part of a final latent that is played, as critics and models want it: clipped to [-1, 1] and flattened."""
    return final[:, : policy.config.execute].clamp(-1, 1).flatten(1)


def act_in_feature_space(policy: Any) -> Callable[[Any, Any], Any]:
    """`act(feature (B, F), noise (B, draws, Tp, A)) -> action (B, D)` of a DiffusionPolicy."""
    return lambda feature, noise: executed_action(policy, policy.sample(feature, noise))


@torch.no_grad()
def sample_latents(
    policy: Any, feature: Float32[Array, "B F"], generator: torch.Generator
) -> Float32[Array, "B K1 Tp A"]:
    """Chains of a policy in mode eta1, drawn with `generator`."""
    noise = torch.randn(len(feature), *policy.noise_shape, generator=generator, device=generator.device)
    return latents_from(policy, feature, noise.to(feature.device))


@torch.no_grad()
def latents_from(
    policy: Any, feature: Float32[Array, "B F"], noise: Float32[Array, "B draws Tp A"]
) -> Float32[Array, "B K1 Tp A"]:
    """Chains of a policy in mode eta1 from given noise: the first latent, then that of every step."""
    latents = [noise[:, 0]]
    for step in range(policy.sampler.num_steps):
        mean, std = policy.reverse_step(latents[-1], step, feature)
        latents.append(mean + std * noise[:, step + 1])
    return torch.stack(latents, 1)


def chain_log_prob(
    policy: Any,
    latents: Float[Array, "B K1 Tp A"],
    feature: Float[Array, "B F"],
    *,
    reduction: LogProbReduction,
    only: Int64[Array, " B"] | None = None,
) -> Float[Array, "B K"]:
    """log-probability of every stored denoising step over the executed actions; with gradient.

    Args:
        policy: in mode eta1; the same Gaussian that sampled (P3).
        latents: stored chains.
        feature: of the decisions.
        reduction: sum or mean over executed actions.
        only: compute just this step of each row; the others are 0.
    """
    execute = policy.config.execute
    out = []
    for step in range(policy.sampler.num_steps):
        rows = torch.arange(len(latents), device=latents.device) if only is None else (only == step).nonzero().flatten()
        mean, std = policy.reverse_step(latents[rows, step], step, feature[rows])
        value = executed_log_prob(mean, std, latents[rows, step + 1], execute=execute)
        out.append(value if only is None else value.new_zeros(len(latents)).index_add(0, rows, value))
    joined = torch.stack(out, 1)
    return joined / (execute * latents.shape[-1]) if reduction is LogProbReduction.mean else joined


def sample_decisions(
    policy: Any, critic: Any, features: Float32[Array, "S F"], *, config: PpoConfig, generator: torch.Generator
) -> tuple[Decisions, dict[str, float]]:
    """Draw states, `group` actions at each, and score them by the critic's smaller Q.

    Returns:
        The decisions, and {"advantage_std", "q_policy"} before scaling.
    """
    if config.baseline is Baseline.group and config.group < 2:
        raise ConfigError("ppo.group", expected="at least 2 for baseline=group", got=str(config.group), hint="Use 8.")
    index = torch.randint(len(features), (config.num_states,), generator=generator, device=generator.device)
    feature = features[index.to(features.device)].repeat_interleave(config.group, dim=0)
    latents = sample_latents(policy, feature, generator)
    with torch.no_grad():
        q = critic.q(feature, executed_action(policy, latents[:, -1])).amin(0)
        if config.baseline is Baseline.group:
            advantage = (q.view(-1, config.group) - q.view(-1, config.group).mean(1, keepdim=True)).flatten()
        else:
            advantage = q - critic.value(feature)
    scaled = scale_advantage(advantage, rule=config.advantage)
    return Decisions(feature, latents, scaled), {"advantage_std": float(advantage.std()), "q_policy": float(q.mean())}


def ppo_iteration(
    policy: Any,
    decisions: Decisions,
    optimizer: torch.optim.Optimizer,
    *,
    config: PpoConfig,
    generator: torch.Generator,
    anchor: Callable[[Any, torch.Generator], torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Epochs of clipped updates on the decisions; the policy is changed in place.

    `anchor(policy, generator)` is a loss that `config.anchor` weighs; it is not asked for, and draws nothing, at 0.

    Old log-probabilities are computed here, with the update's own batches, so that the ratio is 1 at the first one; where
    older weights drew (`decisions.log_prob`) they are theirs, and `kl_stop` counts from them.

    Returns:
        {"loss", "gradient_steps", "kl" and "clip_share" (lists over denoising steps), "kl_total", "ratio_error",
        "dominating_steps"}; KL of the last batch of the last epoch that was run.

    Raises:
        RunError: the ratio is not 1 before the first step, or a loss is no number.
    """
    sampler = policy.sampler
    clip = torch.full((sampler.num_steps,), config.clip, device=decisions.feature.device)
    weight = step_weights(sampler, config.balance).to(clip.device)
    order = torch.randperm(len(decisions.feature), generator=generator, device=generator.device).to(clip.device)
    batches = torch.split(order, config.batch_size)
    old = [_old_log_prob(policy, decisions, rows, reduction=config.reduction) for rows in batches]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    last: dict[str, Any] = {"gradient_steps": 0}
    for _epoch in range(config.epochs):
        for position in torch.randperm(len(batches), generator=generator, device=generator.device).tolist():
            rows, before = batches[position], old[position]
            new, share = _new_log_prob(policy, decisions, rows, before, config=config, generator=generator)
            loss = clipped_loss(new, before, decisions.advantage[rows], clip=clip, weight=weight * share)
            last |= _statistics(new, before, clip=clip, share=share, loss=loss)
            if last["gradient_steps"] == 0 and decisions.log_prob is None:
                _check_ratio(last["ratio_error"])
            elif last["kl_total"] > config.kl_stop:
                return last
            if config.anchor and anchor is not None:
                loss = loss + config.anchor * anchor(policy, generator)
            penalty = decisions.penalty(policy, rows, generator)
            loss = loss if penalty is None else loss + penalty
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_norm)
            optimizer.step()
            last["gradient_steps"] += 1
    return last


@torch.no_grad()
def _old_log_prob(
    policy: Any, decisions: Decisions, rows: torch.Tensor, *, reduction: LogProbReduction
) -> Float32[Array, "R K"]:
    if decisions.log_prob is not None:
        return decisions.log_prob[rows]
    return chain_log_prob(policy, decisions.latents[rows], decisions.condition(policy, rows), reduction=reduction)


def _new_log_prob(
    policy: Any,
    decisions: Decisions,
    rows: torch.Tensor,
    old: torch.Tensor,
    *,
    config: PpoConfig,
    generator: torch.Generator,
) -> tuple[torch.Tensor, int]:
    """log-probabilities under the weights that learn, and what a step counts: K where only one of K was drawn."""
    latents, feature = decisions.latents[rows], decisions.condition(policy, rows)
    if config.steps is StepSampling.all:
        return chain_log_prob(policy, latents, feature, reduction=config.reduction), 1
    number = old.shape[1]
    drawn = torch.randint(number, (len(rows),), generator=generator, device=generator.device).to(old.device)
    new = chain_log_prob(policy, latents, feature, reduction=config.reduction, only=drawn)
    chosen = torch.nn.functional.one_hot(drawn, number).bool()
    return torch.where(chosen, new, old), number


def _statistics(
    new: torch.Tensor, old: torch.Tensor, *, clip: torch.Tensor, share: int, loss: torch.Tensor
) -> dict[str, Any]:
    found = step_statistics(new, old, clip=clip)
    kl = found["kl"] * share
    if not bool(torch.isfinite(loss)):
        raise RunError(
            "PPO over denoising", expected="a finite loss", got=str(float(loss)), hint="Lower ppo.learning_rate."
        )
    return {
        "loss": float(loss.detach()),
        "kl": kl.tolist(),
        "kl_total": float(kl.sum()),
        "clip_share": (found["clip_share"] * share).tolist(),
        "ratio_error": float(found["ratio_error"].max()),
        "dominating_steps": dominating_steps(kl),
    }


def _check_ratio(error: float) -> None:
    if error > RATIO_ERROR_LIMIT:
        raise RunError(
            "PPO over denoising", expected=f"ratios of 1 before the first step (within {RATIO_ERROR_LIMIT})",
            got=f"an error of {error:.3g}", hint="Sampling and evaluation differ: dropout, another mode or other noise clips.",
        )  # fmt: skip


@torch.no_grad()
def decision_kl(
    candidate: Any, incumbent: Any, feature: Float32[Array, "B F"], generator: torch.Generator
) -> Float32[Array, " K"]:
    """KL(incumbent || candidate) of every denoising step over the executed actions, exact along the incumbent's chains.

    Both in mode eta1 with one sampler. Mean over the B decisions, nats.
    """
    return chain_kl(candidate, incumbent, sample_latents(incumbent, feature, generator), (feature, feature))


@torch.no_grad()
def chain_kl(
    candidate: Any,
    incumbent: Any,
    latents: Float32[Array, "B K1 Tp A"],
    conditions: tuple[Float32[Array, "B F"], Float32[Array, "B F"]],
) -> Float32[Array, " K"]:
    """`decision_kl` along given chains of the incumbent; condition vectors for candidate and incumbent."""
    out = []
    for step in range(incumbent.sampler.num_steps):
        mean, std = incumbent.reverse_step(latents[:, step], step, conditions[1])
        moved, _ = candidate.reverse_step(latents[:, step], step, conditions[0])
        gap = (moved - mean)[:, : incumbent.config.execute]
        out.append((gap.square().sum((1, 2)) / (2 * std**2)).mean())
    return torch.stack(out)
