"""A probabilistic ensemble of transition models: its output, its loss, one step of it, and how far members disagree.

Members predict the change of a feature vector as a Gaussian, the reward of the decision and whether the task ends
(PETS, arXiv 1805.12114; MBPO, arXiv 1906.08253; RL-100's model lives in the same feature space). Pure functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from robot_rl.arrays import Array, Bool, Float32, Int64


@dataclass(frozen=True)
class ModelOutput:
    """What every member predicts for every row, in the units of the data.

    Attributes:
        mean: float32 (M, B, F), expected change of the feature.
        log_std: float32 (M, B, F), logarithm of the standard deviation of that change.
        reward: float32 (M, B), expected reward of a decision behind which the task goes on.
        end_reward: float32 (M, B), expected reward of a decision that ends the task. Apart from the other, for a sparse
            reward comes with the end only: one head for both would pay a little at every step, without end.
        termination_logit: float32 (M, B), log odds that the task ends within the decision.
    """

    mean: Float32[Array, "M B F"]
    log_std: Float32[Array, "M B F"]
    reward: Float32[Array, "M B"]
    end_reward: Float32[Array, "M B"]
    termination_logit: Float32[Array, "M B"]


@dataclass(frozen=True)
class ModelBounds:
    """Where predictions are cut off, so that no roll-out runs away from the data.

    Attributes:
        feature_low, feature_high: float32 (F,).
        reward_low, reward_high: float32 (2,), of decisions behind which the task goes on, and of those that end it.
    """

    feature_low: Float32[Array, " F"]
    feature_high: Float32[Array, " F"]
    reward_low: Float32[Array, "2"]
    reward_high: Float32[Array, "2"]


def bounds_of_data(
    feature: Float32[Array, "B F"],
    next_feature: Float32[Array, "B F"],
    *,
    reward: Float32[Array, " B"],
    terminated: Bool[Array, " B"],
    margin: float,
) -> ModelBounds:
    """Smallest and largest value seen, features widened at both ends by `margin` times the range.

    The reward of a kind of decision that the data has none of is bounded to zero.
    """
    low = torch.minimum(feature.amin(0), next_feature.amin(0))
    high = torch.maximum(feature.amax(0), next_feature.amax(0))
    room = margin * (high - low)
    kinds = [part if len(part) else reward.new_zeros(1) for part in (reward[~terminated], reward[terminated])]
    reward_low, reward_high = (torch.stack([edge(part) for part in kinds]) for edge in (torch.min, torch.max))
    return ModelBounds(low - room, high + room, reward_low, reward_high)


def gaussian_nll(output: ModelOutput, delta: Float32[Array, "B F"]) -> Float32[Array, "M B F"]:
    """-log N(delta; mean, std^2) of every member, row and feature."""
    scaled = (delta - output.mean) * torch.exp(-output.log_std)
    return 0.5 * scaled.square() + output.log_std + 0.5 * math.log(2 * math.pi)


def termination_loss(
    logit: Float32[Array, "M B"], terminated: Bool[Array, " B"], *, weight: float
) -> Float32[Array, "M B"]:
    """Cross-entropy in which a termination counts `weight` times, and whose minimiser is still the true log odds.

    A weight alone would make the model end its roll-outs too often: the minimiser of the weighted loss is logit p +
    log weight. That shift is added here, so what the network learns is logit p (Elkan 2001, theorem 2).
    """
    target = terminated.to(logit.dtype).expand_as(logit)
    shifted = logit + math.log(weight)
    counts = torch.tensor(weight, dtype=logit.dtype, device=logit.device)
    return functional.binary_cross_entropy_with_logits(shifted, target, pos_weight=counts, reduction="none")


def termination_weight(terminated: Bool[Array, " B"], *, largest: float) -> float:
    """How often a termination counts so that both classes weigh alike, at most `largest`; 1 where there is none."""
    ends = int(terminated.sum())
    return min(max((len(terminated) - ends) / ends, 1.0), largest) if ends else 1.0


@dataclass(frozen=True)
class LossScales:
    """Units of the parts of a loss, from the training data.

    Attributes:
        delta_std: float32 (F,), standard deviation of every feature's change.
        reward_std: of the reward.
        end_weight: how often a termination counts; see `termination_loss`.
    """

    delta_std: Float32[Array, " F"]
    reward_std: float
    end_weight: float


def model_loss(
    output: ModelOutput,
    *,
    delta: Float32[Array, "B F"],
    reward: Float32[Array, " B"],
    terminated: Bool[Array, " B"],
    row_weight: Float32[Array, "M B"],
    scales: LossScales,
    beta: float,
) -> tuple[Float32[Array, " M"], dict[str, Float32[Array, " M"]]]:
    """Loss of every member: Gaussian likelihood, squared error of the reward, cross-entropy of termination.

    Args:
        output: of the ensemble.
        delta: next_feature - feature.
        reward: of the decision.
        terminated: true ends only. A time limit is none, for the world goes on behind it (P9).
        row_weight: how often each member's bootstrap sample holds each row.
        scales: squared errors are in units of them.
        beta: 0 is the plain likelihood; with b > 0 its terms are weighted by (std / delta_std)^(2b), without gradient,
            so that rows that are hard to predict are not given up early (arXiv 2203.09168; 0.5 is their advice).

    Returns:
        Loss (M,), means over rows and features; and {"nll" (plain), "delta_mse", "reward_mse", "termination_loss"}.
    """
    share = row_weight / row_weight.sum(dim=1, keepdim=True).clamp(min=1e-8)
    nll = gaussian_nll(output, delta)
    trust = torch.exp(2 * beta * (output.log_std.detach() - scales.delta_std.log()))
    error = ((delta - output.mean) / scales.delta_std).square()
    paid = torch.where(terminated, output.end_reward, output.reward)
    reward_error = ((paid - reward) / scales.reward_std).square()
    ends = termination_loss(output.termination_logit, terminated, weight=scales.end_weight)
    parts = {
        "nll": (nll.mean(dim=2) * share).sum(dim=1).detach(),
        "delta_mse": (error.mean(dim=2) * share).sum(dim=1).detach(),
        "reward_mse": (reward_error * share).sum(dim=1).detach(),
        "termination_loss": (ends * share).sum(dim=1).detach(),
    }
    return (((nll * trust).mean(dim=2) + reward_error + ends) * share).sum(dim=1), parts


def model_step(
    output: ModelOutput,
    feature: Float32[Array, "B F"],
    *,
    noise: Float32[Array, "B F"],
    uniform: Float32[Array, " B"],
    member: Int64[Array, " B"],
    bounds: ModelBounds,
) -> tuple[Float32[Array, "B F"], Float32[Array, " B"], Bool[Array, " B"]]:
    """One step of every row in the member chosen for it.

    Args:
        output: of the ensemble at (feature, action).
        feature: where the rows are.
        noise: standard normal.
        uniform: in [0, 1); the task ends where it is below the predicted probability.
        member: index of a member per row.
        bounds: the next feature and the reward are clamped to them.

    Returns:
        Next feature, expected reward of a decision that ends or goes on as it does, and whether the task ended.
    """
    row = torch.arange(len(feature), device=feature.device)
    following = feature + output.mean[member, row] + output.log_std[member, row].exp() * noise
    following = torch.minimum(torch.maximum(following, bounds.feature_low), bounds.feature_high)
    rewards = torch.stack([output.reward[member, row], output.end_reward[member, row]])
    rewards = torch.minimum(torch.maximum(rewards, bounds.reward_low[:, None]), bounds.reward_high[:, None])
    ended = uniform < torch.sigmoid(output.termination_logit[member, row])
    return following, torch.where(ended, rewards[1], rewards[0]), ended


def disagreement(mean: Float32[Array, "M B F"], *, scale: Float32[Array, " F"]) -> Float32[Array, " B"]:
    """How far the members are apart: standard deviation of their means, root mean square over the features.

    Args:
        mean: of ModelOutput.
        scale: unit of every feature's change; its standard deviation in the data.

    Returns:
        float32 (B,); 1 means as far apart as typical changes are large. 0 for a single member.
    """
    return (mean.std(dim=0, unbiased=False) / scale).square().mean(dim=1).sqrt()
