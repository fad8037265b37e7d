"""Outcome of one episode: success, reward and end against each other, its length against a training window and the
time limit, and time in which nothing happens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robot_rl.arrays import Array, Bool, Float32, Float64
from robot_rl.data.quality import Finding, Limits, Place, Severity, delete_command, trim_command
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode


def windows_of(steps: int, *, history: int, horizon: int, execute: int) -> int:
    """Training windows that diffusion_policy's sampler cuts from an episode: T - Tp + (To - 1) + (Ta - 1) + 1, or none.

    Our own sampler (data/windows.py) cuts one a step and pads at both ends.
    """
    return max(0, steps - horizon + execute + history - 1)


def outcome_findings(episode: Episode, number: int, spec: EnvSpec, limits: Limits) -> Iterator[Finding]:
    """All checks of this module."""
    steps = len(episode)
    yield from length_findings(steps, number, limit=spec.max_episode_steps, limits=limits)
    yield from ending_findings(episode, number, spec)
    if spec.has_success:
        at_reset = bool(episode.metadata.get("success_at_reset", False))
        yield from success_findings(episode.success, episode.reward, number, at_reset=at_reset)


def length_findings(steps: int, number: int, *, limit: int, limits: Limits) -> Iterator[Finding]:
    """Too short for a training window, or longer than the environment allows."""
    if not windows_of(steps, history=limits.history, horizon=limits.horizon, execute=limits.execute):
        yield Finding(
            "no_window", Severity.warning, Place(number),
            f"{steps} steps: with To={limits.history}, Tp={limits.horizon}, Ta={limits.execute} diffusion_policy's sampler "
            f"cuts no window from it, without a word; ours cuts {steps}, all of them padded", float(steps),
            f"Take a smaller horizon, or leave it out: {delete_command(number)}",
        )  # fmt: skip
    elif steps < limits.horizon:
        yield Finding(
            "short_episode", Severity.note, Place(number),
            f"{steps} steps, less than the horizon of {limits.horizon}: every window is padded", float(steps),
            "Take a smaller horizon, if many are so short.",
        )  # fmt: skip
    if steps > limit:
        yield Finding(
            "over_limit", Severity.warning, Place(number, limit),
            f"{steps} steps; the environment ends an episode after {limit}", float(steps),
            f"A policy that learns this pace is cut off: give env.max_episode_steps={steps} to imitate and evaluate.",
        )  # fmt: skip


def ending_findings(episode: Episode, number: int, spec: EnvSpec) -> Iterator[Finding]:
    """How it says that it ended."""
    steps = len(episode)
    if episode.terminated and episode.truncated:
        yield Finding(
            "both_ends", Severity.note, Place(number, steps - 1), "both terminated and truncated", None,
            "Value targets take it as terminated; say which one is meant.",
        )  # fmt: skip
    elif episode.truncated and steps < spec.max_episode_steps and not episode.success[-1]:
        yield Finding(
            "early_truncation", Severity.note, Place(number, steps - 1),
            f"truncated after {steps} steps, the limit is {spec.max_episode_steps}", float(steps),
            "Someone ended it: leave `terminated` and `truncated` false for that, or correct the limit of the spec.",
        )  # fmt: skip


def success_findings(
    success: Bool[Array, " T"], reward: Float32[Array, " T"], number: int, *, at_reset: bool = False
) -> Iterator[Finding]:
    """Success at the first step, lost again, long before the end, and against a reward of zeros and ones.

    Args:
        success: after each action.
        reward: of each action.
        number: of the episode.
        at_reset: the environment said that it began solved.
    """
    steps, hits = len(success), np.flatnonzero(success)
    if at_reset or (hits.size and hits[0] == 0 and steps > 1):
        yield Finding(
            "success_at_start", Severity.warning, Place(number, 0, "success"),
            "it is solved at the first step: any policy would succeed", None,
            f"Leave it out, or correct the rule of success: {delete_command(number)}",
        )  # fmt: skip
    if hits.size and not success[-1]:
        yield Finding(
            "success_lost", Severity.note, Place(number, int(hits[-1]) + 1, "success"),
            f"success at step {hits[0]}, none at the end", float(hits[0]),
            "It counts for success_once and not for success_at_end; see which one is meant.",
        )  # fmt: skip
    if np.isin(reward, (0.0, 1.0)).all() and reward.any():
        differs = np.flatnonzero((reward > 0) != success)
        if differs.size:
            step = int(differs[0])
            yield Finding(
                "reward_and_success", Severity.error, Place(number, step, "reward"),
                f"reward {reward[step]:g} where success is {bool(success[step])} ({differs.size} of {steps} steps)",
                float(differs.size), "Label it anew from success: robot-rl data relabel STORE --reward sparse",
                int(differs.size),
            )  # fmt: skip
    elif hits.size and not reward.any():
        yield Finding(
            "no_reward", Severity.warning, Place(number, int(hits[0]), "reward"), "success, and no reward at any step", 0.0,
            "Reinforcement learning needs one: robot-rl data relabel STORE --reward sparse",
        )  # fmt: skip


def idle_findings(rows: Float64[Array, "T D"], number: int, *, control_hz: float, limits: Limits) -> Iterator[Finding]:
    """Time at the beginning and the end during which nothing moves.

    Args:
        rows: everything that is measured, one column an element; it stands still within 1 % of its range.
        number: of the episode.
        control_hz: declared rate.
        limits: see Limits.
    """
    steps, width = len(rows), np.ptp(rows, axis=0)
    columns = width > 1e-3
    least = max(2, round(limits.idle_s * control_hz))
    if not columns.any() or steps <= least:
        return
    scaled = rows[:, columns] / width[columns]
    away = (np.abs(scaled - scaled[0]) > 0.01).any(axis=1), (np.abs(scaled - scaled[-1]) > 0.01).any(axis=1)
    head, tail = int(np.argmax(away[0])), int(np.argmax(away[1][::-1]))
    for count, side, place, cut in (
        (head, "beginning", 0, {"begin": head}), (tail, "end", steps - tail, {"end": tail}),
    ):  # fmt: skip
        if count > least:
            yield Finding(
                "idle", Severity.note, Place(number, place),
                f"nothing moves for {count / control_hz:.1f} s at the {side}", count / control_hz,
                f"A policy learns to wait: {trim_command(number, **cut)}",
            )  # fmt: skip
