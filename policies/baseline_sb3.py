"""Stable-Baselines3's PPO and SAC (Raffin et al. 2021) as learners of `robot-rl baseline`.

The library trains; what comes out is a `BaselineMlpPolicy` with the actor's weights, which needs no library to be played.
Defaults are SB3's own but for the network widths and, in SAC, one gradient step for every env step of all envs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from robot_rl.contracts import VectorEnv
from robot_rl.data.normalizer import Normalizer, unit_actions
from robot_rl.errors import ConfigError
from robot_rl.specs import EnvSpec

from .baseline_mlp import ACTIVATIONS, BaselineMlpConfig, BaselineMlpPolicy, GaussianHead
from .baseline_vec_env import as_vec_env

# Called with the env steps so far, the policy so far and the library's training metrics.
OnEvaluation = Callable[[int, BaselineMlpPolicy, Mapping[str, float]], None]
EXTRA = "pip install 'robot-rl[baselines]'"


@dataclass(frozen=True)
class PpoConfig:
    """SB3's PPO; names and meanings are the library's.

    Attributes:
        hidden: widths of the actor's and, separately, the critic's hidden layers (tanh).
        learning_rate: of Adam, constant.
        n_steps: env steps of each env between updates.
        batch_size: of a minibatch.
        n_epochs: passes over the data of an update.
        gamma: discount per env step.
        gae_lambda: trace of GAE.
        clip_range: of the ratio.
        ent_coef: weight of the entropy.
        target_kl: an update stops above 1.5 times this; null for never.
        log_std_init: of the Gaussian, actions in [-1, 1].
        history: To, frames seen.
        observation_keys: low-dimensional keys that the networks see.
    """

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    n_steps: int = 256
    batch_size: int = 256
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    target_kl: float | None = None
    log_std_init: float = 0.0
    history: int = 1
    observation_keys: tuple[str, ...] = ("state",)


@dataclass(frozen=True)
class SacConfig:
    """SB3's SAC; names and meanings are the library's.

    Attributes:
        hidden: widths of the hidden layers of actor and critics (ReLU).
        learning_rate: of Adam, constant.
        buffer_size: transitions kept.
        learning_starts: env steps with random actions first.
        batch_size: of a gradient step.
        tau: of the target networks.
        gamma: discount per env step.
        train_freq: steps of all envs together between updates.
        gradient_steps: a time; -1 for as many as env steps were played.
        history: To, frames seen.
        observation_keys: low-dimensional keys that the networks see.
    """

    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    buffer_size: int = 1_000_000
    learning_starts: int = 1_000
    batch_size: int = 256
    tau: float = 0.005
    gamma: float = 0.99
    train_freq: int = 1
    gradient_steps: int = -1
    history: int = 1
    observation_keys: tuple[str, ...] = ("state",)


class Sb3Learner:
    """One algorithm of SB3 on our environments. Use `ppo` or `sac`.

    Args:
        config: of the algorithm.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: stable_baselines3 is not installed.
    """

    learns_from = "env"

    def __init__(self, config: PpoConfig | SacConfig, *, device: str = "cpu") -> None:
        if find_spec("stable_baselines3") is None:
            raise ConfigError(
                "algo", expected="the package stable_baselines3", got="not installed", hint=f"Install it: {EXTRA}."
            )
        self.config, self.device = config, device

    @property
    def history(self) -> int:
        """To, frames that the environment must stack."""
        return self.config.history

    def learn(
        self,
        env: VectorEnv,
        *,
        num_steps: int,
        seed: int,
        first_env_seed: int,
        evaluate_every: int,
        on_evaluation: OnEvaluation,
    ) -> None:
        """Train for `num_steps` env steps (of all envs together; PPO ends with the roll-out it is in).

        Args:
            env: the training environments.
            num_steps: the budget.
            seed: of networks and exploration.
            first_env_seed: training episodes take the seeds from here on.
            evaluate_every: env steps between calls of `on_evaluation`; it is called at the start and at the end too.
            on_evaluation: see OnEvaluation.
        """
        normalizer = unit_actions(env.spec, tuple(self.config.observation_keys))
        vec_env = as_vec_env(
            env, keys=tuple(self.config.observation_keys), history=self.config.history, normalizer=normalizer,
            seeds=itertools.count(first_env_seed),
        )  # fmt: skip
        model = self.build(vec_env, seed=seed)

        def evaluate() -> None:
            on_evaluation(model.num_timesteps, self.policy(model, env.spec, normalizer), training_metrics(model))

        due = evaluate_every

        def on_step(_local: dict[str, Any], _global: dict[str, Any]) -> bool:
            nonlocal due
            if due <= model.num_timesteps < num_steps:
                due += evaluate_every * (1 + (model.num_timesteps - due) // evaluate_every)
                evaluate()
            return True

        evaluate()
        model.learn(num_steps, callback=on_step)
        evaluate()

    def build(self, vec_env: Any, *, seed: int) -> Any:
        """The library's model, untrained."""
        from stable_baselines3 import PPO, SAC

        config = self.config
        activation = "tanh" if isinstance(config, PpoConfig) else "relu"
        networks: dict[str, Any] = {"net_arch": list(config.hidden), "activation_fn": ACTIVATIONS[activation]}
        options = {"seed": seed, "device": self.device, "learning_rate": config.learning_rate, "gamma": config.gamma}
        if isinstance(config, PpoConfig):
            return PPO(
                "MlpPolicy", vec_env, n_steps=config.n_steps, batch_size=config.batch_size, n_epochs=config.n_epochs,
                gae_lambda=config.gae_lambda, clip_range=config.clip_range, ent_coef=config.ent_coef,
                target_kl=config.target_kl, policy_kwargs=networks | {"log_std_init": config.log_std_init}, **options,
            )  # fmt: skip
        return SAC(
            "MlpPolicy", vec_env, buffer_size=config.buffer_size, learning_starts=config.learning_starts,
            batch_size=config.batch_size, tau=config.tau, train_freq=config.train_freq,
            gradient_steps=config.gradient_steps, policy_kwargs=networks, **options,
        )  # fmt: skip

    def policy(self, model: Any, spec: EnvSpec, normalizer: Normalizer) -> BaselineMlpPolicy:
        """A copy of the model's actor as our policy, deterministic."""
        is_ppo = isinstance(self.config, PpoConfig)
        config = BaselineMlpConfig(
            head=GaussianHead.clipped if is_ppo else GaussianHead.squashed,
            hidden=tuple(self.config.hidden),
            activation="tanh" if is_ppo else "relu",
            history=self.config.history,
            observation_keys=tuple(self.config.observation_keys),
        )
        policy = BaselineMlpPolicy(config, spec, normalizer)
        actor = model.policy if is_ppo else model.policy.actor
        parts = (
            (policy.body, actor.mlp_extractor.policy_net if is_ppo else actor.latent_pi),
            (policy.mean, actor.action_net if is_ppo else actor.mu),
        )
        for ours, theirs in parts if is_ppo else (*parts, (policy.spread, actor.log_std)):
            ours.load_state_dict(theirs.state_dict(), strict=True)
        if is_ppo:
            with torch.no_grad():
                policy.log_std.copy_(actor.log_std)
        return policy.eval()


def ppo(config: PpoConfig, *, device: str = "cpu") -> Sb3Learner:
    """SB3's PPO (Schulman et al. 2017); see Sb3Learner."""
    return Sb3Learner(config, device=device)


def sac(config: SacConfig, *, device: str = "cpu") -> Sb3Learner:
    """SB3's SAC (Haarnoja et al. 2018); see Sb3Learner."""
    return Sb3Learner(config, device=device)


def training_metrics(model: Any) -> dict[str, float]:
    """What the library logged of its last update under train/, name -> finite number, without the prefix.

    It says NaN where a number does not exist (explained variance of returns that are all equal): left out here.
    """
    if not hasattr(model, "_logger"):  # it has no logger before `learn`
        return {}
    found = {name: float(value) for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
    return {name.removeprefix("train/"): found[name] for name in sorted(found) if math.isfinite(found[name])}
