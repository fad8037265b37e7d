"""One process's part of an evaluation: the environment, the policy or expert in it, and what the summary says of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robot_rl.chunk_execution import DelayedActor
from robot_rl.deploy.computed_by import computed_by
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.engines.tasks import EngineKind, OnEpisode
from robot_rl.errors import PolicyError
from robot_rl.rollout import Actor, PolicyActor, rollout
from robot_rl.runs.config import build, build_for, convert_config
from robot_rl.runs.rti_verdict import as_measured
from robot_rl.stages.evaluate import EvaluateConfig, check_policy_spec, disturbed_env, load_any_policy


def make_player(config: Mapping[str, Any]) -> EvaluatePlayer:
    """The player of an EvaluateConfig as JSON types."""
    return EvaluatePlayer(convert_config(EvaluateConfig, dict(config), where="evaluate"))


class EvaluatePlayer:
    """An EpisodePlayer that keeps records alone.

    Args:
        config: of the evaluation, checked.

    Raises:
        PolicyError: the policy can't be loaded, does not fit the environment, or has no warm start.
        EnvError: the environment can't be built.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self._policy: Any = load_any_policy(config) if config.policy else None
        if config.rti is not None:
            self._policy = _warm_started(self._policy, config)
        if _is_warm(self._policy) and config.engine is EngineKind.ray:
            raise PolicyError(
                config.policy, expected="no rti.onnx with engine=ray", got="one",
                hint="Its counts aren't gathered from several processes: use engine=local.",
            )  # fmt: skip
        history = 1 if self._policy is None else self._policy.config.history
        node, _push = disturbed_env(config)
        count = min(config.num_envs, config.num_episodes)
        spec = None if self._policy is None else self._policy.spec
        self._env = build_for(node, spec, num_envs=count, history=history)
        self._actor: Actor
        self._described: dict[str, Any]
        if self._policy is None:
            self._actor, self._described = build(config.expert, spec=self._env.spec), {"expert": config.expert}
        else:
            check_policy_spec(self._policy, self._env.spec, where=config.policy)
            if _is_warm(self._policy) and config.execution is None and self._env.protocol().get("real_time"):
                raise PolicyError(
                    config.policy, expected="no RTI on a robot here, where nobody tells it of holds and pauses", got="RTI",
                    hint="`robot-rl deploy policy=<export run>/export/rti.onnx` tells it.",
                )  # fmt: skip
            self._actor, self._described = policy_actor(self._policy, config)

    def describe(self) -> dict[str, Any]:
        """`protocol`, `num_envs`, `control_hz`, `policy`, and `counts` of what has been played here so far."""
        # Counts are not part of the protocol: idle envs are in them, and a run that was resumed has its last part alone.
        counts: dict[str, Any] = {}
        counts |= {"chunk_execution": self._actor.summary()} if isinstance(self._actor, DelayedActor) else {}
        counts |= {"rti_decisions": self._policy.counts.to_json()} if _is_warm(self._policy) else {}
        return {
            "protocol": self._env.protocol(), "num_envs": self._env.num_envs, "control_hz": self._env.spec.control_hz,
            "policy": self._described, "counts": counts,
        }  # fmt: skip

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        """See EpisodePlayer."""
        rollout(self._env, self._actor, seeds, on_episode=on_episode)

    def close(self) -> None:
        """See EpisodePlayer."""
        self._env.close()


def _warm_started(policy: Any, config: EvaluateConfig) -> Any:
    if not hasattr(policy, "warm_started"):
        raise PolicyError(
            config.policy or "expert", expected="a run or checkpoint directory of a diffusion policy for rti, without critic",
            got=type(policy).__name__ if config.policy else "no policy",
            hint="Leave rti out. `robot-rl export policy=<run> rti.level=...` writes rti.onnx, which brings its own.",
        )  # fmt: skip
    assert config.rti is not None
    return policy.warm_started(as_measured(config.policy, config.rti))


def _is_warm(policy: Any) -> bool:
    """Whether each decision starts from the last chunk: rti=..., or an rti.onnx."""
    return bool(getattr(policy, "starts_warm", False))


def policy_actor(policy: Any, config: EvaluateConfig) -> tuple[Actor, dict[str, Any]]:
    """The actor of a policy, and what the protocol says of it."""
    own: NoiseRule = getattr(policy, "noise_rule", NoiseRule.seeded)
    rule = own if config.noise_rule is None else config.noise_rule
    seed = getattr(policy, "noise_seed", 0) if config.noise_seed is None else config.noise_seed
    noise = NoiseSource(rule=rule, seed=seed, shape=policy.noise_shape)
    described = {
        "path": config.policy,
        "class": type(policy).__name__,
        "sampling": policy.sampling,
        "noise_rule": rule.value,
        "noise_seed": seed,
        "horizon": policy.config.horizon,
        "execute": policy.config.execute,
        "history": policy.config.history,
    } | computed_by(policy, precision=config.precision, threads=config.threads)
    described |= {"rti": policy.describe()} if _is_warm(policy) else {}
    if config.critic:
        described |= {"best_of": config.best_of, "critic": config.critic}
    if config.execution is None:
        return PolicyActor(policy, noise), described
    delayed = DelayedActor(policy, noise, kind=config.execution, rule=config.chunks, latency_ms=config.latency_ms)
    return delayed, described | {"execution": delayed.description}
