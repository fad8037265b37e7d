"""Where the policy of a robot's loop comes from, and how it answers one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32, Float64
from robot_rl.deploy.child_process import function_of
from robot_rl.deploy.onnx_policy import CPU_PROVIDER
from robot_rl.deploy.policy_words import PolicyInfo, checked
from robot_rl.deploy.tensorrt_policy import DEFAULT_CACHE, EngineOptions, Runtime, open_policy
from robot_rl.errors import DeployError
from robot_rl.types import Observation


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from: a file, or a function of somebody's own.

    Attributes:
        onnx: an exported policy.
        runtime: what runs it; provider, allow_cpu, threads: see OnnxPolicy.
        engine_cache: folder of engines and of what runtime=auto measured.
        target: "package.module:function" instead: called with `config`, returns an object with the attributes and methods
            of OnnxPolicy that are used here (spec, config, act, reset, noise).
        config: JSON types, for `target`.
        fifo_priority: SCHED_FIFO priority asked for, below the loop's; None: the system's usual scheduling. On a busy machine
            it keeps answers in time; a policy of several threads may then keep everything else from running.
    """

    onnx: str = ""
    runtime: Runtime | str = Runtime.onnx  # a name where it comes out of JSON
    engine_cache: str = DEFAULT_CACHE
    provider: str = CPU_PROVIDER
    allow_cpu: bool = False
    threads: int = 1
    target: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    fifo_priority: int | None = None


def load_policy(source: PolicySource) -> Any:
    """The policy of a source; see PolicySource.

    Raises:
        DeployError: none or two are named, or it can't be loaded.
    """
    if bool(source.onnx) == bool(source.target):
        raise DeployError("policy", expected="either onnx or target", got=f"{source}", hint="Name one of them.")
    if source.target:
        return function_of(source.target)(dict(source.config))
    options = EngineOptions(cache=source.engine_cache, max_batch=1)  # a robot asks for one decision at a time
    return open_policy(
        source.onnx, runtime=Runtime(source.runtime), provider=source.provider, allow_cpu=source.allow_cpu,
        threads=source.threads, options=options,
    )  # fmt: skip


def info_of(policy: Any) -> PolicyInfo:
    """What a loop must know of a policy."""
    config = policy.config
    return PolicyInfo(
        policy.spec, tuple(config.observation_keys), config.history, config.horizon, config.execute,
        can_continue=hasattr(policy, "continue_from"), starts_warm=bool(getattr(policy, "starts_warm", False)),
    )  # fmt: skip


def decide(
    policy: Any, observation: Observation, *, episode_seed: int, decision: int,
    plan: Float32[Array, "Tp A"] | None = None, weights: Float64[Array, " Tp"] | None = None,
) -> Float32[Array, "Tp A"]:  # fmt: skip
    """The answer to one question; where an episode begins, the policy first forgets what was before.

    Args:
        policy: see PolicySource.
        observation: one env.
        episode_seed, decision: for the noise, see deploy/noise.py; decision 0 begins an episode.
        plan: what is being played from this question on, to start from or to be continued; None: nothing.
        weights: of `plan`, for a policy that continues it.

    Raises:
        WrongShapeError: actions of another shape than the policy says.
        Exception: whatever the policy raises.
    """
    info = info_of(policy)
    if decision == 0 and plan is None:
        policy.reset(np.ones(1, bool))
    if info.starts_warm:  # without a plan from nothing: what it remembers is not what the robot plays
        policy.start_from(plan)
    elif plan is not None:
        policy.continue_from(plan, weights)
    chunk = policy.act(observation, policy.noise().draw([episode_seed], [decision]))
    return checked(chunk.actions, info)
