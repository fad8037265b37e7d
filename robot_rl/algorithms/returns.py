"""Returns and advantages over decisions: the only place that knows discount, termination, truncation and chunk length.

A decision plays `executed` env steps, so the discount to the next one is gamma^executed. A termination has no future;
a truncation (time limit) has one that was not played: its value is bootstrapped from the observation before the
auto-reset. Both cut the recursion, for the next row belongs to another episode.
"""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Bool, Float32, Int64


def chunk_reward(rewards: Float32[Array, "N Ta"], mask: Bool[Array, "N Ta"], *, gamma: float) -> Float32[Array, " N"]:
    """Discounted reward of a chunk, sum_j gamma^j r_j over the executed steps (RL-100, chunk MDP).

    Args:
        rewards: of each step, as the simulator gave them.
        mask: True where the step was executed; what stands elsewhere (padding) does not count.
        gamma: discount per env step.

    Returns:
        float32 (N,).
    """
    steps = torch.arange(rewards.shape[1], device=rewards.device, dtype=torch.float32)
    # A masked reward may be anything, even NaN, and NaN * 0 is NaN.
    return (torch.where(mask, rewards, 0.0) * gamma**steps).sum(dim=1)


def decision_discount(
    executed: Int64[Array, "..."], terminated: Bool[Array, "..."], *, gamma: float
) -> Float32[Array, "..."]:
    """Discount of the value behind a decision: gamma^executed, and 0 where the task ended.

    Args:
        executed: env steps that the decision really played; less than Ta when the episode ended inside the chunk.
        terminated: a true end; a time limit is none.
        gamma: discount per env step.
    """
    return torch.where(terminated, 0.0, gamma ** executed.to(torch.float32))


def generalized_advantage(
    reward: Float32[Array, "T N"],
    value: Float32[Array, "T N"],
    next_value: Float32[Array, "T N"],
    *,
    executed: Int64[Array, "T N"],
    terminated: Bool[Array, "T N"],
    truncated: Bool[Array, "T N"],
    gamma: float,
    trace: float,
) -> tuple[Float32[Array, "T N"], Float32[Array, "T N"]]:
    """GAE over decisions (Schulman et al. 2016, eq. 16), correct at time limits and for chunks of differing length.

    Args:
        reward: `chunk_reward` of each decision.
        value: V of the observation that the decision answered to.
        next_value: V of `StepResult.final_observation`, before the auto-reset.
        executed: env steps of each decision; 0 for an idle env, whose row is passed over.
        terminated: a true end behind the decision.
        truncated: the time limit behind the decision.
        gamma: discount per env step.
        trace: lambda of GAE, per decision.

    Returns:
        Advantages and returns (advantage + value), both (T, N); zero and `value` in idle rows.
    """
    discount = decision_discount(executed, terminated, gamma=gamma)
    playing = executed > 0
    delta = torch.where(playing, reward + discount * next_value - value, 0.0)
    carry = torch.where(terminated | truncated | ~playing, 0.0, discount * trace)
    advantage = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for row in reversed(range(len(delta))):
        running = delta[row] + carry[row] * running
        advantage[row] = running
    return advantage, advantage + value


def returns_to_go(reward: Float32[Array, " T"], *, gamma: float) -> Float32[Array, " T"]:
    """Monte-Carlo return behind every env step of one whole episode: G_t = r_t + gamma G_{t+1}.

    Args:
        reward: of each env step.
        gamma: discount per env step.
    """
    out = torch.zeros_like(reward)
    running = torch.zeros((), dtype=reward.dtype, device=reward.device)
    for step in reversed(range(len(reward))):
        running = reward[step] + gamma * running
        out[step] = running
    return out


def reachable_range(low: float, high: float, *, gamma: float, max_steps: int, only_once: bool) -> tuple[float, float]:
    """Smallest and largest return that any policy can have; a target outside it is an error of the critic (P8).

    Args:
        low: smallest reward of a step.
        high: largest reward of a step.
        gamma: discount per env step.
        max_steps: time limit in env steps.
        only_once: the reward differs from zero at most once an episode (sparse, the episode ends with it).

    Returns:
        (lowest, highest) return.
    """
    steps = 1.0 if only_once else (float(max_steps) if gamma == 1.0 else (1.0 - gamma**max_steps) / (1.0 - gamma))
    return min(low, 0.0) * steps, max(high, 0.0) * steps
