"""What every torch policy of ours does alike: from an observation and noise to a physical action, within the spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.diffusion import Sampler, reverse_step, sample_chain, sample_final
from robot_rl.arrays import Array, Bool, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.deploy.onnx_passes import ExportPass
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, DenoisingChain, Observation

from .pretrained import load_pretrained

ACTION = "action"


def check_noise(noise: Float32[Array, "N draws Tp A"], shape: tuple[int, int, int]) -> None:
    """Raise PolicyError unless `noise` is (N, *shape)."""
    if tuple(noise.shape[1:]) != shape:
        raise PolicyError(
            "noise of a policy",
            expected=f"shape (N, {', '.join(map(str, shape))}): (N, draws, Tp, A)",
            got=str(tuple(noise.shape)),
            hint="Draw it with policy.noise_shape; the number of draws depends on the sampling mode.",
        )


def action_bounds(spec: EnvSpec) -> tuple[Float32[Array, " A"], Float32[Array, " A"]]:
    """Lowest and highest physical action; the largest float32 where the spec gives none."""
    limit = torch.finfo(torch.float32).max
    low = spec.action.low or (-limit,) * spec.action.size
    high = spec.action.high or (limit,) * spec.action.size
    return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)


class ActingPolicy(nn.Module):
    """The Policy contract but for what a policy is: a subclass gives `encoder`, `noise_shape` and `normalized_action`.

    Args:
        config: of the subclass; has `execute`.
        spec: of the environment.
    """

    action_low: torch.Tensor
    action_high: torch.Tensor
    encoder: Any

    def __init__(self, config: Any, spec: EnvSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        low, high = action_bounds(spec)
        self.register_buffer("action_low", low, persistent=False)
        self.register_buffer("action_high", high, persistent=False)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser that these weights were trained with."""
        found: Normalizer = self.encoder.normalizer
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.action_low.device

    def load_pretrained(self) -> list[dict[str, Any]]:
        """Read the weights that the encoder's configuration names; see pretrained.load_pretrained, also for its errors."""
        return load_pretrained(self.encoder)

    def normalized_action(
        self, observation: Observation, noise: Float32[Array, "B draws Tp A"]
    ) -> Float32[Array, "B Tp A"]:
        """Chosen chunk, normalised; a subclass says whether clipped and with gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def act(self, observation: Observation, noise: Float32[Array, "N draws Tp A"]) -> ActionChunk:
        """Choose the next chunk. Tensors on the policy's device, or numpy arrays; returns tensors.

        Raises:
            PolicyError: the noise or an observation has another shape than this policy wants.
        """
        observation = observation.map(lambda array: torch.as_tensor(array, device=self.device))
        normalized = self.normalized_action(observation, torch.as_tensor(noise, device=self.device))
        return ActionChunk(actions=self.physical_action(normalized), execute=self.config.execute)

    def physical_action(self, normalized: Float32[Array, "B Tp A"]) -> Float32[Array, "B Tp A"]:
        """Action to execute: clip to [-1, 1], un-normalise, clip to the spec's bounds."""
        action = self.normalizer.invert(ACTION, normalized.clamp(-1, 1))
        return torch.clamp(action, self.action_low, self.action_high)

    def normalized_chunk(self, actions: Float32[Array, "B G A"]) -> Float32[Array, "B G A"]:
        """Inverse of `physical_action`, as far as it has one: to [-1, 1]; an element that never varied to its constant.

        Args:
            actions: physical; as many as the policy denoises (noise_shape).
        """
        return self.normalizer.apply(ACTION, actions).clamp(-1, 1)

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Nothing to forget, where a policy keeps no state between decisions."""


class ChainPolicy(ActingPolicy):
    """A DenoisingPolicy but for its network: a subclass gives `sampler` and `_output`. It keeps nothing between calls."""

    sampler: Sampler

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(draws, Tp, A); draws depends on the sampling mode."""
        return self.sampler.noise_draws, self.config.horizon, self.spec.action.size

    def encode(self, observation: Observation) -> Float32[Array, "B C"]:
        """Condition vector of the network."""
        condition: torch.Tensor = self.encoder(observation)
        return condition

    def training_condition(
        self, observation: Observation, generator: torch.Generator
    ) -> tuple[Float32[Array, "B C"], Float32[Array, ""] | None, dict[str, float]]:
        """Condition for a gradient step of imitation, the encoder's penalty and its parts.

        As `encode`, without penalty, where the encoder draws nothing or does not learn, and outside training mode.
        """
        trains = self.training and torch.is_grad_enabled() and getattr(self.encoder, "learns", False)
        if not trains:
            return self.encode(observation), None, {}
        return self.encoder.training_condition(observation, generator)  # type: ignore[no-any-return]

    def representation_penalty(self, observation: Observation, generator: torch.Generator) -> Float32[Array, ""] | None:
        """What RL adds to its loss where the encoder learns too (RL-100: weights / 10); None where there is nothing."""
        if not (getattr(self.encoder, "learns", False) and self.encoder.has_penalty):
            return None
        return self.encoder.penalty(observation, generator)

    def reverse_step(
        self, latent: Float32[Array, "B Tp A"], step: int, condition: Float32[Array, "B C"]
    ) -> tuple[Float32[Array, "B Tp A"], float]:
        """Mean and standard deviation of the next latent at step 0 (noisiest) .. K-1; with gradient."""
        level = torch.full((latent.shape[0],), self.sampler.levels[step], dtype=torch.int64, device=latent.device)
        return reverse_step(self.sampler, latent, self._output(latent, level, condition), step)

    @torch.no_grad()
    def chain(self, observation: Observation, noise: Float32[Array, "B draws Tp A"]) -> DenoisingChain:
        """All latents of one decision and their log-probabilities, without gradient; nothing is clipped."""
        check_noise(noise, self.noise_shape)
        condition = self.encode(observation)
        return sample_chain(lambda latent, level: self._output(latent, level, condition), noise, self.sampler)

    @torch.no_grad()
    def normalized_action(
        self, observation: Observation, noise: Float32[Array, "B draws Tp A"]
    ) -> Float32[Array, "B Tp A"]:
        """Last latent of the chain, normalised and unclipped: what a critic scores and a student imitates."""
        return self.sample(self.encode(observation), noise)

    @torch.no_grad()
    def sample(
        self, condition: Float32[Array, "B C"], noise: Float32[Array, "B draws Tp A"]
    ) -> Float32[Array, "B Tp A"]:
        """`normalized_action` from a condition vector instead of an observation: what model roll-outs need."""
        check_noise(noise, self.noise_shape)
        return self._sample(condition, noise)

    def forward(self, arrays: dict[str, Any], noise: Float32[Array, "N draws Tp A"]) -> Float32[Array, "N Tp A"]:
        """The whole policy as one graph, for export: float32 arrays (N, To, size) by key -> physical actions.

        Same numbers as `act`: normaliser, all denoising steps and clips are inside; no state, no randomness.
        """
        return self.physical_action(self._sample(self.encoder.encode(arrays), noise))

    def for_export(self, passes: Sequence[ExportPass]) -> tuple[Any, tuple[ExportPass, ...]]:
        """The same policy in cheaper operators, for inference, and the passes that applied; see export_passes.rewritten."""
        from .export_passes import rewritten

        return rewritten(self, passes)

    def _sample(self, condition: Array, noise: Array) -> Array:
        return sample_final(lambda latent, level: self._output(latent, level, condition), noise, self.sampler)

    def _output(self, latent: Array, level: Array, condition: Array) -> Array:
        """What the network makes of a latent, read as `sampler.prediction` says."""
        raise NotImplementedError
