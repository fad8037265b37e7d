"""Implicit Q-learning (Kostrikov, Nair, Levine 2022) on chunk transitions: pure losses, no networks."""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Float32


def expectile_loss(difference: Float32[Array, "..."], *, expectile: float) -> Float32[Array, "..."]:
    """|tau - 1(u < 0)| u^2 for each element of u = Q - V (IQL, eq. 5).

    The V that minimises its mean is the tau-expectile of Q: the mean for tau = 0.5, the largest in-support value as
    tau goes to 1.

    Args:
        difference: Q - V; gradients reach V through it, Q is to be detached.
        expectile: tau, in (0, 1).
    """
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return weight * difference.square()


def value_loss(
    q: Float32[Array, "E B"], value: Float32[Array, " B"], *, expectile: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean expectile loss of V against the smaller of the target Qs.

    Args:
        q: of every member of the target ensemble at (s, a) of the data; detached here.
        value: V(s).
        expectile: tau.

    Returns:
        The scalar loss, and {"value_mean", "q_data_mean"}.
    """
    smallest = q.detach().min(dim=0).values
    loss = expectile_loss(smallest - value, expectile=expectile).mean()
    return loss, {"value_mean": float(value.detach().mean()), "q_data_mean": float(smallest.mean())}


def q_target(
    reward: Float32[Array, " B"],
    discount: Float32[Array, " B"],
    next_value: Float32[Array, " B"],
    *,
    low: float,
    high: float,
) -> tuple[Float32[Array, " B"], dict[str, float]]:
    """R + gamma^executed (1 - terminated) V(s'), clamped to the returns that can be reached (IQL, eq. 6; P8).

    Args:
        reward: `returns.chunk_reward`.
        discount: `returns.decision_discount`.
        next_value: V of the observation behind the decision.
        low: of `returns.reachable_range`.
        high: of `returns.reachable_range`.

    Returns:
        The target, without gradient, and {"target_max", "target_clamped_share"} of the values before the clamp.
    """
    raw = (reward + discount * next_value).detach()
    clamped = (raw < low) | (raw > high)
    metrics = {"target_max": float(raw.max()), "target_clamped_share": float(clamped.float().mean())}
    return raw.clamp(low, high), metrics


def q_loss(q: Float32[Array, "E B"], target: Float32[Array, " B"]) -> torch.Tensor:
    """Mean squared error of every member against the one target, summed over members."""
    loss: torch.Tensor = (q - target).square().mean(dim=1).sum()
    return loss


def advantage(q: Float32[Array, "E B"], value: Float32[Array, " B"]) -> Float32[Array, " B"]:
    """min over the members of Q, minus V; without gradient."""
    return (q.min(dim=0).values - value).detach()
