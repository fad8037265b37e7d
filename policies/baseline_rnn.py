"""robomimic's BC-RNN-GMM actor (Mandlekar et al. 2021, arXiv 2108.03298) as a policy of ours: LSTM, then a mixture.

The mixture is played as the library plays it: one component is drawn and its mean taken, without its spread (stochastic);
or the likeliest component (deterministic). The hidden state starts at zero with the episode and again after every
`sequence` steps, the length it was trained on. One decision is one action.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.diffusion import SamplingMode
from robot_rl.arrays import Array, Bool, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation

from .acting import ActingPolicy, check_noise
from .baseline_mlp import is_stochastic
from .diffusion import config_to_json
from .encoders import build_encoder


@dataclass(frozen=True)
class BaselineRnnConfig:
    """Configuration of the recurrent actor; flat, JSON-able.

    Attributes:
        hidden: size of the LSTM's state.
        num_layers: stacked LSTMs.
        sequence: steps after which the state starts again.
        num_modes: components of the mixture.
        is_stochastic: whether a component is drawn, or the likeliest one taken.
        history, horizon, execute: 1; the state is the memory.
        observation_keys: low-dimensional keys, in this order in the input.
    """

    hidden: int = 400
    num_layers: int = 2
    sequence: int = 10
    num_modes: int = 5
    is_stochastic: bool = False
    history: int = 1
    horizon: int = 1
    execute: int = 1
    observation_keys: tuple[str, ...] = ("state",)

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return config_to_json(self)


class BaselineRnnPolicy(ActingPolicy):
    """A Policy with a hidden state per env, which `reset` clears. See the module docstring.

    Args:
        config: see BaselineRnnConfig.
        spec: of the environment.
        normalizer: with "action" and every observation key; becomes part of the policy.

    Raises:
        PolicyError: a history or chunk longer than one.
    """

    config: BaselineRnnConfig
    _steps: torch.Tensor
    _state: tuple[torch.Tensor, torch.Tensor]

    def __init__(self, config: BaselineRnnConfig, spec: EnvSpec, normalizer: Normalizer) -> None:
        super().__init__(config, spec)
        if (config.history, config.horizon, config.execute) != (1, 1, 1):
            raise PolicyError(
                "recurrent baseline", expected="history=horizon=execute=1",
                got=f"{config.history}, {config.horizon}, {config.execute}", hint="Its memory is its hidden state.",
            )  # fmt: skip
        self.encoder = build_encoder(spec, tuple(config.observation_keys), history=1, normalizer=normalizer)
        self.lstm = nn.LSTM(self.encoder.size, config.hidden, config.num_layers, batch_first=True)
        self.means = nn.Linear(config.hidden, config.num_modes * spec.action.size)
        self.logits = nn.Linear(config.hidden, config.num_modes)
        self._forget_all(0)

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"mixture, {'component drawn' if self.config.is_stochastic else 'likeliest component'}"

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(1, 1, A) when stochastic (its first number draws the component), else (0, 1, A)."""
        return int(self.config.is_stochastic), 1, self.spec.action.size

    def with_mode(self, mode: SamplingMode) -> BaselineRnnPolicy:
        """The same weights (shared), states of its own, deterministic (`mean`) or drawing (`eta1`).

        Raises:
            PolicyError: mode eta0.
        """
        other = copy.copy(self)
        other.config = replace(self.config, is_stochastic=is_stochastic(mode))
        other._forget_all(0)
        return other

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget the state of the envs in `mask`."""
        chosen = torch.as_tensor(mask).cpu()
        if len(chosen) != len(self._steps):
            self._forget_all(len(chosen))
        # Not in place: `act` may have made it under torch.inference_mode.
        self._steps = torch.where(chosen, 0, self._steps)

    def normalized_action(
        self, observation: Observation, noise: Float32[Array, "B draws 1 A"]
    ) -> Float32[Array, "B 1 A"]:
        """Chosen action in [-1, 1]; moves the hidden states on."""
        check_noise(noise, self.noise_shape)
        condition = self.encoder(observation)
        if len(condition) != len(self._steps):
            self._forget_all(len(condition))
        fresh = (self._steps % self.config.sequence == 0).to(self.device)
        state = [torch.where(fresh[None, :, None], 0.0, part.to(self.device)) for part in self._state]
        hidden, (short, long) = self.lstm(condition[:, None], (state[0], state[1]))
        self._state, self._steps = (short, long), self._steps + 1
        return self._choose(hidden[:, 0], noise)[:, None]

    def _choose(self, hidden: Array, noise: Array) -> Array:
        logits = self.logits(hidden)
        if self.config.is_stochastic:
            uniform = torch.special.ndtr(noise[:, 0, 0, :1])
            chosen = (logits.softmax(dim=1).cumsum(dim=1) < uniform).sum(dim=1).clamp(max=self.config.num_modes - 1)
        else:
            chosen = logits.argmax(dim=1)
        means = self.means(hidden).view(len(hidden), self.config.num_modes, -1)
        return torch.tanh(means[torch.arange(len(hidden), device=hidden.device), chosen])

    def _forget_all(self, num_envs: int) -> None:
        shape = (self.config.num_layers, num_envs, self.config.hidden)
        self._state = (torch.zeros(shape), torch.zeros(shape))
        self._steps = torch.zeros(num_envs, dtype=torch.int64)
