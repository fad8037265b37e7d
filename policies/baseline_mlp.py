"""The Gaussian MLP actors of Stable-Baselines3 and robomimic as a policy of ours: a JSON description and plain tensors.

A baseline is trained by its library and played without it: the network is rebuilt from `BaselineMlpConfig`, its weights
come from safetensors, and nothing is unpickled. One decision is one action (horizon 1, execute 1).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.arrays import Array, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation

from .acting import ActingPolicy, check_noise
from .diffusion import config_to_json
from .encoder_fusion import EncoderConfig
from .encoders import build_encoder

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class GaussianHead(str, Enum):
    """How the network's mean m and standard deviation s become an action in [-1, 1], with standard normal e.

    clipped: clip(m + s e), one s for all observations (SB3's PPO). squashed: tanh(m + s e), s of the observation (SB3's
    SAC). bounded_mean: clip(tanh(m) + s e), s = init_std softplus(n) / log 2 of a second output n
    (robomimic's Gaussian actor).
    """

    clipped = "clipped"
    squashed = "squashed"
    bounded_mean = "bounded_mean"


@dataclass(frozen=True)
class BaselineMlpConfig:
    """Configuration of a baseline's actor; flat, JSON-able.

    Attributes:
        head: see GaussianHead.
        hidden: widths of the hidden layers.
        activation: "tanh" or "relu", behind every hidden layer.
        is_stochastic: whether `act` draws from the Gaussian, or takes its centre.
        history: To, frames seen.
        horizon, execute: 1; a baseline decides at every step.
        observation_keys: in this order in the input.
        encoder: of images and points (config group `encoder`); null: numbers, as they are.
        min_log_std, max_log_std: bounds of log s under the squashed head.
        init_std, min_std, max_std: s at n = 0 and its bounds under the bounded_mean head.
    """

    head: GaussianHead = GaussianHead.clipped
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    is_stochastic: bool = False
    history: int = 1
    horizon: int = 1
    execute: int = 1
    observation_keys: tuple[str, ...] = ("state",)
    encoder: EncoderConfig | None = None
    min_log_std: float = -20.0
    max_log_std: float = 2.0
    init_std: float = 0.3
    min_std: float = 0.007
    max_std: float = 7.5

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return config_to_json(self)


class BaselineMlpPolicy(ActingPolicy):
    """A Policy: MLP, then a Gaussian over one normalised action. It keeps nothing between calls.

    Args:
        config: see BaselineMlpConfig.
        spec: of the environment.
        normalizer: with "action" (see `unit_actions`) and every observation key; becomes part of the policy.

    Raises:
        PolicyError: an unknown activation, no hidden layer, or a chunk longer than one action.
    """

    config: BaselineMlpConfig

    def __init__(self, config: BaselineMlpConfig, spec: EnvSpec, normalizer: Normalizer) -> None:
        super().__init__(config, spec)
        if config.activation not in ACTIVATIONS or not config.hidden or (config.horizon, config.execute) != (1, 1):
            raise PolicyError(
                "baseline policy", expected=f"activation in {sorted(ACTIVATIONS)}, a hidden layer, horizon=execute=1",
                got=f"{config.activation!r}, hidden {config.hidden}, horizon {config.horizon}, execute {config.execute}",
                hint="Take the policy.json that `robot-rl baseline` wrote.",
            )  # fmt: skip
        keys = tuple(config.observation_keys)
        self.encoder = build_encoder(spec, keys, history=config.history, normalizer=normalizer, config=config.encoder)
        widths = (self.encoder.size, *config.hidden)
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(widths):
            layers += [nn.Linear(size_in, size_out), ACTIVATIONS[config.activation]()]
        self.body = nn.Sequential(*layers)
        self.mean = nn.Linear(widths[-1], spec.action.size)
        if config.head is GaussianHead.clipped:
            self.log_std = nn.Parameter(torch.zeros(spec.action.size))
        else:
            self.spread = nn.Linear(widths[-1], spec.action.size)

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"{self.config.head.value} Gaussian, {'stochastic' if self.config.is_stochastic else 'deterministic'}"

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(1, 1, A) when stochastic, else (0, 1, A)."""
        return int(self.config.is_stochastic), 1, self.spec.action.size

    def with_mode(self, mode: SamplingMode) -> BaselineMlpPolicy:
        """The same weights (shared) as deterministic (`mean`) or stochastic (`eta1`) policy. Raises PolicyError on eta0."""
        other = copy.copy(self)
        other.config = replace(self.config, is_stochastic=is_stochastic(mode))
        return other

    def normalized_action(
        self, observation: Observation, noise: Float32[Array, "B draws 1 A"]
    ) -> Float32[Array, "B 1 A"]:
        """Chosen action in [-1, 1]; with gradient."""
        check_noise(noise, self.noise_shape)
        return self._sample(self.encoder(observation), noise)

    def forward(self, arrays: dict[str, Any], noise: Float32[Array, "N draws 1 A"]) -> Float32[Array, "N 1 A"]:
        """The whole policy as one graph, for export: float32 arrays (N, To, size) by key -> physical actions."""
        return self.physical_action(self._sample(self.encoder.encode(arrays), noise))

    def _sample(self, condition: Array, noise: Array) -> Array:
        hidden = self.body(condition)
        centre = self.mean(hidden)
        if self.config.head is GaussianHead.bounded_mean:
            centre = torch.tanh(centre)
        if self.config.is_stochastic:
            centre = centre + self._std(hidden) * noise[:, 0, 0]
        bounded = torch.tanh(centre) if self.config.head is GaussianHead.squashed else centre.clamp(-1, 1)
        return bounded[:, None]

    def _std(self, hidden: Array) -> Array:
        if self.config.head is GaussianHead.clipped:
            return self.log_std.exp()
        if self.config.head is GaussianHead.squashed:
            return self.spread(hidden).clamp(self.config.min_log_std, self.config.max_log_std).exp()
        scale = self.config.init_std / math.log(2)
        return (functional.softplus(self.spread(hidden)) * scale).clamp(self.config.min_std, self.config.max_std)


def is_stochastic(mode: SamplingMode) -> bool:
    """Whether a Gaussian baseline draws: `mean` takes the centre, `eta1` draws. Raises PolicyError on eta0."""
    if mode is SamplingMode.eta0:
        raise PolicyError(
            "mode of a baseline", expected="mean (deterministic) or eta1 (stochastic)", got=mode.value,
            hint="A Gaussian has no deterministic map from noise that keeps its spread.",
        )  # fmt: skip
    return mode is SamplingMode.eta1
