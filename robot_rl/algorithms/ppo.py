"""PPO over denoising steps: each reverse step is an action of an inner MDP that pays only at its end (RL-100, DPPO).

All K steps of a decision share the advantage of the decision. Log-probabilities are sums over the executed actions
(a true joint ratio), so clip ranges are those of RL-100 (0.2), not those of DPPO, which takes means (0.01).
"""

from __future__ import annotations

import math
from enum import Enum

import torch

from robot_rl.algorithms.diffusion import Prediction, Sampler, step_coefficients, step_log_prob
from robot_rl.arrays import Array, Float, Float32
from robot_rl.errors import PolicyError


class AdvantageRule(str, Enum):
    """How advantages of a batch are scaled before use.

    none: as they are. scale: divided by their root mean square; signs stay. centre: mean subtracted, then divided by their
    standard deviation, so that half of a batch is pushed down even where all of it was good (or up where all was bad, P12).
    """

    none = "none"
    scale = "scale"
    centre = "centre"


class StepBalance(str, Enum):
    """How denoising steps share an update.

    none: all count alike, so the step whose Gaussian is narrowest against its mean's reach takes the trust region.
    fisher: step k counts 1 / s_k^2 (mean 1 over the steps), s_k of `step_sensitivity`: a natural gradient in the
        network's output, under which all steps move the same KL for the same advantage.
    """

    none = "none"
    fisher = "fisher"


def step_sensitivity(sampler: Sampler) -> Float32[Array, " K"]:
    """s_k = |d mean / d output| / std of every denoising step, noisiest first; KL_k = s_k^2 |d output|^2 / 2.

    Without the clamp of the clean sample. With K = 5 of 100 levels and epsilon prediction the last but one step has
    8.8 where the others have 1.3 to 2.1 (measured.md, part 1, section 4).

    Raises:
        PolicyError: the sampler is deterministic.
    """
    values = []
    for row in step_coefficients(sampler):
        if row.std <= 0:
            raise PolicyError(
                "sensitivity of denoising steps", expected="SamplingMode.eta1", got=sampler.mode.value,
                hint="Use with_mode(SamplingMode.eta1) for RL.",
            )  # fmt: skip
        slope = {
            Prediction.epsilon: row.direction - row.next_signal * row.noise / row.signal,
            Prediction.sample: row.next_signal - row.direction * row.signal / row.noise,
            Prediction.v: row.direction * row.signal - row.next_signal * row.noise,
        }[sampler.prediction]
        values.append(abs(slope) / row.std)
    return torch.tensor(values)


def step_weights(sampler: Sampler, balance: StepBalance) -> Float32[Array, " K"]:
    """Weight of every denoising step in the loss, mean 1; see StepBalance."""
    if balance is StepBalance.none:
        return torch.ones(sampler.num_steps)
    inverse = step_sensitivity(sampler).square().reciprocal()
    return inverse / inverse.mean()


def executed_log_prob(
    mean: Float[Array, "B Tp A"], std: float, following: Float[Array, "B Tp A"], *, execute: int
) -> Float[Array, " B"]:
    """log N(following; mean, std^2) summed over the first `execute` actions; the tail is never played and has none.

    Raises:
        PolicyError: std is zero.
    """
    return step_log_prob(mean[:, :execute], std, following[:, :execute])


def scale_advantage(advantage: Float32[Array, " B"], *, rule: AdvantageRule) -> Float32[Array, " B"]:
    """Apply `rule` to a batch; detached. A batch without spread is returned unscaled (all zeros stay zeros)."""
    values = advantage.detach()
    if rule is AdvantageRule.none:
        return values
    if rule is AdvantageRule.centre:
        values = values - values.mean()
    spread = float(values.std(unbiased=False)) if rule is AdvantageRule.centre else float(values.square().mean().sqrt())
    return values / spread if spread > 1e-8 else values


def clipped_loss(
    new: Float[Array, "B K"],
    old: Float[Array, "B K"],
    advantage: Float[Array, " B"],
    *,
    clip: Float[Array, " K"],
    weight: Float[Array, " K"] | None = None,
) -> torch.Tensor:
    """-mean over decisions of sum over steps of w_k min(r A, clip(r, 1-e_k, 1+e_k) A) (PPO, eq. 7; RL-100's J_i).

    Args:
        new: log-probabilities of the stored chains under the weights that learn.
        old: the same under the weights that sampled, without gradient.
        advantage: of the decision, shared by its K steps.
        clip: e_k of every denoising step, noisiest first.
        weight: w_k of `step_weights`; None: all 1.
    """
    ratio = (new - old).exp()
    gain = advantage[:, None]
    smaller = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    loss: torch.Tensor = -(smaller if weight is None else smaller * weight).sum(dim=1).mean()
    return loss


def clip_schedule(num_steps: int, *, last: float, first: float, rate: float) -> Float32[Array, " K"]:
    """Clip range of every denoising step, smallest at the noisiest (DPPO): first + (last - first)(e^{rate x}-1)/(e^rate-1).

    Args:
        num_steps: K.
        last: at the least noisy step.
        first: at the noisiest step.
        rate: bend; 0 is a straight line.

    Returns:
        float32 (K,), x running from 0 to 1. A single step has `last`.
    """
    x = torch.linspace(0.0, 1.0, num_steps) if num_steps > 1 else torch.ones(1)
    bend = x if rate == 0.0 else (torch.exp(rate * x) - 1) / (math.exp(rate) - 1)
    return first + (last - first) * bend


def step_statistics(
    new: Float[Array, "B K"], old: Float[Array, "B K"], *, clip: Float[Array, " K"]
) -> dict[str, Float[Array, " K"]]:
    """What an update did to every denoising step; to be logged, and to stop on.

    Returns:
        "kl": k3 estimate of KL(old || new), E[(r - 1) - log r], never negative (Schulman 2020).
        "clip_share": share of decisions whose ratio left the clip range.
        "ratio_error": largest |r - 1|; below 1e-3 in float32 before the first optimiser step, or sampling and
        evaluation are not the same Gaussian (P3).
    """
    log_ratio = (new - old).detach()
    ratio = log_ratio.exp()
    return {
        "kl": (ratio - 1 - log_ratio).mean(dim=0),
        "clip_share": ((ratio - 1).abs() > clip).to(log_ratio.dtype).mean(dim=0),
        "ratio_error": (ratio - 1).abs().max(dim=0).values,
    }


def dominating_steps(kl: Float[Array, " K"], *, factor: float = 5.0) -> list[int]:
    """Denoising steps whose KL is more than `factor` times the median of all steps: they eat the trust region alone."""
    return torch.nonzero(kl > factor * kl.median()).flatten().tolist() if len(kl) > 2 else []


def value_loss(
    value: Float32[Array, " B"], target: Float32[Array, " B"], *, old: Float32[Array, " B"] | None, clip: float
) -> torch.Tensor:
    """0.5 (V - target)^2, with `old` the larger of it and of the loss of V clipped to old +- clip (PPO's code).

    Args:
        value: of the weights that learn.
        target: returns.
        old: values when the data was collected, or None for no clipping; the clip is in units of return (P21).
        clip: half width.
    """
    plain = (value - target).square()
    if old is None:
        loss: torch.Tensor = 0.5 * plain.mean()
        return loss
    clipped = (old + (value - old).clamp(-clip, clip) - target).square()
    return 0.5 * torch.maximum(plain, clipped).mean()
