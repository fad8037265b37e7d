"""One process's part of a collection: the environment, and the expert or policy in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robot_rl.contracts import check_is_diffusion
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.engines.tasks import EngineKind, OnEpisode
from robot_rl.rollout import Actor, PolicyActor, rollout
from robot_rl.runs.checkpoint import load_policy
from robot_rl.runs.config import build, build_for, convert_config
from robot_rl.stages.collect import CollectConfig
from robot_rl.stages.evaluate import check_policy_spec
from robot_rl.types import Source


def make_player(config: Mapping[str, Any]) -> CollectPlayer:
    """The player of a CollectConfig as JSON types."""
    return CollectPlayer(convert_config(CollectConfig, dict(config), where="collect"))


class CollectPlayer:
    """An EpisodePlayer that hands over whole episodes.

    Args:
        config: of the collection, checked, without teleop.

    Raises:
        PolicyError: the policy can't be loaded or does not fit the environment.
        EnvError: the environment can't be built.
    """

    def __init__(self, config: CollectConfig) -> None:
        if config.engine is EngineKind.ray or config.task_episodes is not None:
            import torch

            # The number of threads is part of how sums are rounded, and several workers share the cores.
            torch.set_num_threads(1)
        policy = _policy(config) if config.policy else None
        history = 1 if policy is None else policy.config.history
        count = min(config.num_envs, config.num_episodes)
        self._env = build_for(config.env, None if policy is None else policy.spec, num_envs=count, history=history)
        self._actor: Actor
        if policy is None:
            self._actor, self._source = build(config.expert, spec=self._env.spec), Source.scripted
            self._metadata = {"collector": "scripted", "expert": config.expert}
        else:
            check_policy_spec(policy, self._env.spec, where=config.policy)
            noise = NoiseSource(rule=NoiseRule.seeded, seed=config.seed, shape=policy.noise_shape)
            self._actor, self._source = PolicyActor(policy, noise), Source.policy
            sampling = {"mode": policy.sampling, "sigma_min": config.sigma_min, "noise_seed": config.seed}
            self._metadata = {"collector": "policy", "policy": config.policy, **sampling}

    def describe(self) -> dict[str, Any]:
        """`protocol` and `spec` of the environment, and `metadata` for the dataset."""
        return {
            "protocol": self._env.protocol(), "spec": self._env.spec.to_json(), "metadata": self._metadata,
        }  # fmt: skip

    def play(self, seeds: Iterable[int], on_episode: OnEpisode) -> None:
        """See EpisodePlayer."""
        rollout(self._env, self._actor, seeds, on_episode=on_episode, source=self._source)

    def close(self) -> None:
        """See EpisodePlayer."""
        self._env.close()


def _policy(config: CollectConfig) -> Any:
    policy, _spec, _checkpoint = load_policy(Path(config.policy))
    policy.eval()
    if config.mode is None and config.sigma_min is None:
        return policy
    check_is_diffusion(policy, config.policy, hint="Leave mode and sigma_min out.")
    return policy.with_mode(config.mode or policy.config.mode, sigma_min=config.sigma_min)
