"""What both studies of `robot-rl judge` need: an environment from words, true success by roll-outs, and the origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robot_rl.algorithms.comparison import count_pairs, mcnemar_p, paired_interval
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.rollout import PolicyActor, rollout
from robot_rl.runs.config import build, load_config
from robot_rl.stages.evaluate import EvaluateConfig, check_policy_spec


def environment(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The env component of `env=<name>` with `env.key=value` words.

    Raises:
        ConfigError: wrong words.
    """
    return load_config(EvaluateConfig, [f"env={name}", *overrides], name="evaluate").env


def play(env: Mapping[str, Any], policy: Any, seeds: Sequence[int], *, num_envs: int) -> list[bool]:
    """Success of a policy on every seed, with the noise that `robot-rl evaluate` gives it.

    Args:
        env: component.
        policy: in the mode that is judged.
        seeds: of the episodes.
        num_envs: side by side; changes nothing.

    Raises:
        PolicyError: the policy is of another environment.
    """
    built = build(env, num_envs=min(num_envs, len(seeds)), history=policy.config.history)
    try:
        check_policy_spec(policy, built.spec, where="policy")
        actor = PolicyActor(policy, NoiseSource(rule=NoiseRule.seeded, seed=0, shape=policy.noise_shape))
        return [record.success_once for record in rollout(built, actor, seeds)]
    finally:
        built.close()


def against(candidate: Sequence[bool], incumbent: Sequence[bool]) -> dict[str, Any]:
    """Candidate against incumbent on the same seeds.

    Returns:
        {"k", "incumbent_k", "n", "difference", "low", "high" (Tango's 95 % interval), "p_value" (exact McNemar),
        "is_worse", "is_better" (the interval is without zero)}.
    """
    pairs = count_pairs(incumbent, candidate)
    interval = paired_interval(pairs["only_a"], pairs["only_b"], n=len(candidate))
    return {
        "k": sum(candidate), "incumbent_k": sum(incumbent), "n": len(candidate), "difference": interval.difference,
        "low": interval.low, "high": interval.high, "p_value": mcnemar_p(pairs["only_a"], pairs["only_b"]),
        "is_worse": interval.high < 0, "is_better": interval.low > 0,
    }  # fmt: skip
