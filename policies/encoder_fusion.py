"""Several senses -> one condition: an encoder for each key, features of To frames side by side; and what RL-100 adds in
training, reconstruction of what was seen and a variational bottleneck on each feature.

`encode` and `forward` are functions of the observation alone, in training mode too: the mean of the latent, no dropout, the
middle crop. Only `training_condition` and `penalty` draw, from the generator that they are handed. So a log-probability
computed twice is the same number (P16), whatever mode the module is in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from robot_rl.algorithms.representation import (
    LOG_VARIANCE_LIMIT,
    RL_SHARE,
    annealed,
    draw_latent,
    drop,
    gaussian_kl,
)
from robot_rl.arrays import Array, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation

from .encoder_depth import DepthEncoder
from .encoder_images import ImageEncoder, ImageEncoderConfig
from .encoder_points import PointEncoder, PointEncoderConfig
from .reconstruction import Decoder, decoder_of

IMAGE, DEPTH, POINTS = "image/", "depth/", "points"
SHARED = {IMAGE: "images", DEPTH: "depths"}


@dataclass(frozen=True)
class RepresentationConfig:
    """RL-100's regularisers of an encoder (section 1.2); 0 switches each off.

    Attributes:
        reconstruction: weight of the error of what is decoded from the features: Chamfer of points, squared error of pixels
            and proprio, all of normalised numbers. RL-100: 0.5 to 1.
        bottleneck: weight of the KL of the latents. RL-100: 1e-5 to 1e-3.
        anneal_steps: gradient steps over which the bottleneck's weight grows from 0.
        points, pixels: points and pixels a side that are decoded.
        dropout: of the latents.
    """

    reconstruction: float = 0.0
    bottleneck: float = 0.0
    anneal_steps: int = 0
    points: int = 128
    pixels: int = 32
    dropout: float = 0.0


@dataclass(frozen=True)
class EncoderConfig:
    """How a policy sees images and points; `observation_keys` says which.

    Attributes:
        images: of every camera, and of every depth image.
        points: of the point cloud.
        proprio_size: feature of proprio and state, from a hidden layer of the same size.
        representation: regularisers.
    """

    images: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    points: PointEncoderConfig = field(default_factory=PointEncoderConfig)
    proprio_size: int = 64
    representation: RepresentationConfig = field(default_factory=RepresentationConfig)


class LowDimEncoder(nn.Module):
    """Normalised proprio or state of one frame to a feature: linear, ReLU, linear."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.Linear(inputs, size), nn.ReLU(), nn.Linear(size, size))

    def forward(self, x: Float32[Array, "B To P"]) -> Float32[Array, "B To F"]:
        """Feature of every frame."""
        out: torch.Tensor = self.layers(x)
        return out


class _Bottleneck(nn.Module):
    """Mean and log variance of a latent of the feature's size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(size, size), nn.Linear(size, size)

    def spread(self, feature: Float32[Array, "... F"]) -> Float32[Array, "... F"]:
        """Log variance, kept within +-LOG_VARIANCE_LIMIT."""
        out: torch.Tensor = self.log_variance(feature)
        return out.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


class FusionEncoder(nn.Module):
    """See the text of this module; the contract is that of encoders.py.

    Args:
        config: see EncoderConfig.
        spec: where shapes come from; it has every key.
        keys: of the observation, in this order in the condition.
        history: To.
        normalizer: knows every key but images and depths; kept as a submodule.

    Raises:
        PolicyError: a key does not fit its encoder.
    """

    step: torch.Tensor

    def __init__(
        self, config: EncoderConfig, spec: EnvSpec, keys: tuple[str, ...], *, history: int, normalizer: Normalizer
    ) -> None:
        super().__init__()
        self.config, self.keys, self.history, self.normalizer = config, keys, history, normalizer
        self.shapes = {key: tuple(spec.observation[key].shape) for key in keys}
        self.parts = nn.ModuleDict()
        self._part_of = {key: self._add_part(key, spec) for key in keys}
        sizes = {key: int(self.parts[self._part_of[key]].size) for key in keys}  # type: ignore[arg-type]
        wanted = config.representation
        self.bottlenecks = nn.ModuleDict({k: _Bottleneck(sizes[k]) for k in keys if wanted.bottleneck})
        self.decoders = nn.ModuleDict(
            {k: decoder_of(k, sizes[k], self.shapes[k], points=wanted.points, pixels=wanted.pixels) for k in keys}
            if wanted.reconstruction
            else {}
        )
        # Of the annealing. A buffer, so that a resumed run goes on where it was; RL starts behind the annealing.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.size = history * sum(sizes.values())

    def _add_part(self, key: str, spec: EnvSpec) -> str:
        """Make the encoder of a key, or find the shared one; its name in `parts`."""
        kind = kind_of(key)
        if kind is not None:
            name = SHARED[kind] if self.config.images.is_shared else key
            if name in self.parts:
                shared: ImageEncoder = self.parts[name]  # type: ignore[assignment]
                if self.shapes[key] != shared.shape:
                    raise PolicyError(
                        f"encoder of {key!r}", expected=f"images of {shared.shape}, shared by all cameras",
                        got=str(self.shapes[key]), hint="Set policy.encoder.images.is_shared=false.",
                    )  # fmt: skip
                return name
            network = ImageEncoder if kind == IMAGE else DepthEncoder
            self.parts[name] = network(self.config.images, spec.observation[key])
            return name
        if key == POINTS:
            self.parts[key] = PointEncoder(self.config.points, spec.observation[key])
        else:
            self.parts[key] = LowDimEncoder(spec.observation[key].size, self.config.proprio_size)
        return key

    def forward(self, observation: Observation) -> Float32[Array, "B C"]:
        """Condition of a batch of observations; nothing is random."""
        return self.encode(observation.arrays())

    def encode(self, arrays: Mapping[str, Array]) -> Float32[Array, "B C"]:
        """Condition from tensors (B, To, ...) by key.

        Raises:
            PolicyError: a key is missing, or its shape or type is another.
        """
        return torch.cat([self._mean(key, f).flatten(1) for key, f in self._features(arrays, None).items()], dim=1)

    @property
    def learns(self) -> bool:
        """Whether any weight of it is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def has_penalty(self) -> bool:
        """Whether it reconstructs or has a bottleneck; else `penalty` would encode everything again for a zero."""
        return bool(self.decoders) or bool(self.bottlenecks)

    def training_condition(
        self, observation: Observation, generator: torch.Generator
    ) -> tuple[Float32[Array, "B C"], Float32[Array, ""], dict[str, float]]:
        """Condition with crop, colours, latents and dropout drawn; the weighted penalty; its parts. Counts a step.

        Returns:
            (B, C); scalar; {"reconstruction", "bottleneck_kl"}, unweighted, those that are switched on.
        """
        out = self._drawn(observation, generator, annealed(int(self.step), self.config.representation.anneal_steps))
        self.step += 1
        return out

    def penalty(self, observation: Observation, generator: torch.Generator) -> Float32[Array, ""]:
        """The penalty as RL adds it: weights divided by 10 and fully annealed."""
        return RL_SHARE * self._drawn(observation, generator, 1.0)[1]

    def _drawn(
        self, observation: Observation, generator: torch.Generator, anneal: float
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        arrays, weights = observation.arrays(), self.config.representation
        latents, kls, errors = [], [], []
        for key, feature in self._features(arrays, generator).items():
            latent = self._mean(key, feature)
            if key in self.bottlenecks:
                spread = self.bottlenecks[key].spread(feature)  # type: ignore[operator]
                kls.append(gaussian_kl(latent, spread).mean())
                latent = draw_latent(latent, spread, generator)
            if key in self.decoders:
                decoder: Decoder = self.decoders[key]  # type: ignore[assignment]
                errors.append(decoder.error(latent.flatten(0, 1), self._target(key, arrays[key])).mean())
            latents.append(drop(latent.flatten(1), weights.dropout, generator))
        condition = torch.cat(latents, dim=1)
        penalty, parts = condition.new_zeros(()), {}
        if errors:
            error = torch.stack(errors).sum()
            penalty, parts["reconstruction"] = penalty + weights.reconstruction * error, float(error.detach())
        if kls:
            kl = torch.stack(kls).sum()
            penalty, parts["bottleneck_kl"] = penalty + anneal * weights.bottleneck * kl, float(kl.detach())
        return condition, penalty, parts

    def _features(self, arrays: Mapping[str, Array], generator: torch.Generator | None) -> dict[str, torch.Tensor]:
        """(B, To, F) of every key."""
        out = {}
        for key in self.keys:
            if key not in arrays:
                raise PolicyError(
                    "policy input", expected=f"key {key!r}", got=", ".join(sorted(arrays)), hint="See observation_keys."
                )
            array, part = arrays[key], self.parts[self._part_of[key]]
            if tuple(array.shape[1:]) != (self.history, *self.shapes[key]):
                raise PolicyError(
                    f"policy input {key!r}", expected=f"shape (N, {self.history}, {', '.join(map(str, self.shapes[key]))})",
                    got=str(tuple(array.shape)), hint="Frames in the middle; images have rows, columns, channels.",
                )  # fmt: skip
            out[key] = part(array, generator) if kind_of(key) else part(self.normalizer.apply(key, array))
        return out

    def _mean(self, key: str, feature: torch.Tensor) -> torch.Tensor:
        if key not in self.bottlenecks:
            return feature
        mean: torch.Tensor = self.bottlenecks[key].mean(feature)  # type: ignore[operator]
        return mean

    def _target(self, key: str, array: torch.Tensor) -> torch.Tensor:
        """What a decoder must find, of B * To frames: uint8 pixels, scaled depths, or normalised numbers."""
        kind, part = kind_of(key), self.parts[self._part_of[key]]
        if isinstance(part, DepthEncoder):
            array = part.scaled(array)
        return (array if kind else self.normalizer.apply(key, array)).flatten(0, 1)


def kind_of(key: str) -> str | None:
    """IMAGE or DEPTH for an observation key that is seen, None for numbers and points."""
    return next((kind for kind in (IMAGE, DEPTH) if key.startswith(kind)), None)
