"""Diffusion policy: denoises a chunk of actions from noise, given the last To observations.

Source: Diffusion Policy (arXiv 2303.04137); noise, clean-sample or v prediction; sampled as robot_rl.algorithms.diffusion
says. Actions live normalised to [-1, 1] ("range" mode of the normaliser, key "action"); the chain is never clipped,
only the action that is executed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

import torch
from torch import nn

from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    add_noise,
    leading_levels,
    prediction_target,
    squared_cosine_alpha_bar,
)
from robot_rl.algorithms.few_steps import sampling_text
from robot_rl.algorithms.warm_start import WarmStart
from robot_rl.arrays import Array, Float32, Int64
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation, Window

from .acting import ACTION, ChainPolicy
from .denoisers import DenoiserKind, build_denoiser
from .encoder_fusion import EncoderConfig
from .encoders import build_encoder


@dataclass(frozen=True)
class DiffusionPolicyConfig:
    """Configuration of a diffusion policy; flat but for the encoder, JSON-able.

    Attributes:
        denoiser: mlp, unet (for long chunks), or transformer.
        prediction: what the network predicts.
        history: To, frames seen.
        horizon: Tp, actions predicted.
        execute: Ta, actions played before the next decision, 1 to Tp.
        observation_keys: "state", "proprio", "image/<camera>", "depth/<camera>" and "points", in this order in the condition.
        encoder: of images and points (config group `encoder`); null: numbers, as they are.
        num_levels: levels of the training schedule.
        num_steps: K, denoising steps at levels spaced as in leading_levels.
        mode: sampling mode of `act`.
        final_alpha, sigma_min, sigma_max, clip_sample: see Sampler.
        hidden_width, num_blocks: of the mlp or the transformer.
        channels: of the unet, finest level first.
        level_embedding: size of the level embedding.
    """

    denoiser: DenoiserKind = DenoiserKind.mlp
    prediction: Prediction = Prediction.epsilon
    history: int = 1
    horizon: int = 8
    execute: int = 8
    observation_keys: tuple[str, ...] = ("state",)
    encoder: EncoderConfig | None = None
    num_levels: int = 100
    num_steps: int = 10
    mode: SamplingMode = SamplingMode.eta0
    final_alpha: FinalAlpha = FinalAlpha.alpha_bar_0
    sigma_min: float = 0.01
    sigma_max: float = 0.8
    clip_sample: float | None = 1.0
    hidden_width: int = 256
    num_blocks: int = 2
    channels: tuple[int, ...] = (64, 128)
    level_embedding: int = 64

    @property
    def sampler(self) -> Sampler:
        """The sampler this configuration describes. Raises PolicyError when there is none."""
        return Sampler(
            levels=leading_levels(self.num_levels, self.num_steps),
            prediction=self.prediction,
            num_levels=self.num_levels,
            final_alpha=self.final_alpha,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            clip_sample=self.clip_sample,
            mode=self.mode,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DiffusionPolicyConfig:
        """Inverse of `to_json`. Raises PolicyError on an unknown key or enum value."""
        return cls(**config_fields_from_json(cls, data))


def config_to_json(config: Any) -> dict[str, Any]:
    """Plain dict of a configuration dataclass: enums by value, tuples as lists, nested ones as dicts."""
    plain: dict[str, Any] = _plain(asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return value.value if isinstance(value, Enum) else value


def config_fields_from_json(config_class: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration dataclass from JSON types; each field's default tells its type.

    Raises:
        PolicyError: an unknown key or enum value.
    """
    defaults = {f.name: f.default for f in fields(config_class)}
    out = {}
    for key, value in data.items():
        where = f"{config_class.__name__}.{key}"
        if key not in defaults:
            raise PolicyError(where, expected="a known key", got=repr(key), hint=closest(key, defaults))
        kind = type(defaults[key])
        if key == "encoder" and value is not None:
            value = _nested(EncoderConfig, value)
        if issubclass(kind, Enum):
            options = [str(member.value) for member in kind]
            if value not in options:
                raise PolicyError(where, expected=f"a {kind.__name__}", got=repr(value), hint=closest(value, options))
        out[key] = kind(value) if issubclass(kind, (Enum, tuple)) else value
    return out


def _nested(config_class: type, data: Mapping[str, Any]) -> Any:
    """A dataclass of dataclasses, every field of which has a default."""
    inner = {f.name: f.default_factory for f in fields(config_class) if f.default_factory is not MISSING}
    flat = {k: _nested(inner[k], v) if k in inner and isinstance(v, Mapping) else v for k, v in data.items()}  # type: ignore[arg-type]
    nested = {key: value for key, value in flat.items() if key in inner}
    return config_class(
        **config_fields_from_json(config_class, {k: v for k, v in flat.items() if k not in inner}), **nested
    )


def check_chunk(*, history: int, horizon: int, execute: int) -> None:
    """Raise PolicyError unless To >= 1 and 1 <= Ta <= Tp."""
    if history < 1 or not 1 <= execute <= horizon:
        raise PolicyError(
            "policy configuration",
            expected="history >= 1 and 1 <= execute <= horizon",
            got=f"history {history}, execute {execute}, horizon {horizon}",
            hint="execute is the part of the predicted chunk that is played.",
        )


class DiffusionPolicy(ChainPolicy):
    """A DenoisingPolicy. It keeps nothing between calls.

    Args:
        config: see DiffusionPolicyConfig.
        spec: of the environment.
        normalizer: with "action" (range) and every observation key (standard); becomes part of the policy.

    Raises:
        PolicyError: the configuration fits neither the spec nor the network.
    """

    config: DiffusionPolicyConfig
    alpha_bar: torch.Tensor

    def __init__(self, config: DiffusionPolicyConfig, spec: EnvSpec, normalizer: Normalizer) -> None:
        super().__init__(config, spec)
        check_chunk(history=config.history, horizon=config.horizon, execute=config.execute)
        self.sampler = config.sampler
        keys = tuple(config.observation_keys)
        self.encoder = build_encoder(spec, keys, history=config.history, normalizer=normalizer, config=config.encoder)
        self.denoiser = build_denoiser(config, action_size=spec.action.size, condition_size=self.encoder.size)
        self.register_buffer("alpha_bar", squared_cosine_alpha_bar(config.num_levels), persistent=False)

    @property
    def sampling(self) -> str:
        """How it samples, for reports: mode and number of steps."""
        return sampling_text(self.sampler, self.config.sampler)

    def one_step_student(self, num_steps: int = 1, *, head: str = "plain") -> nn.Module:
        """A student for `distill_onestep`; see OneStepPolicy.from_teacher and OneStepHead."""
        from .onestep import OneStepHead, OneStepPolicy

        return OneStepPolicy.from_teacher(self, num_steps, head=OneStepHead(head))

    def consistency_pairs(
        self, observation: Observation, x0: Float32[Array, "B Tp A"], noise: Float32[Array, "B Tp A"]
    ) -> tuple[Float32[Array, "B Tp A"], Int64[Array, " B"], Float32[Array, "B Tp A"], Int64[Array, " B"]]:
        """Pairs for `distill_onestep loss=consistency`; see onestep.teacher_steps."""
        from .onestep import teacher_steps

        return teacher_steps(self, observation, x0, noise)

    def warm_started(self, warm: WarmStart) -> Any:
        """This policy, each decision started from its last chunk (RTI); see WarmStartedPolicy, also for its errors."""
        from .warm_started import WarmStartedPolicy

        return WarmStartedPolicy(self, warm)

    def continuing(self, most: float) -> Any:
        """This policy, each chunk pulled to the one being played (execution=rtc); see ContinuingPolicy."""
        from .inpainting import ContinuingPolicy

        return ContinuingPolicy(self, most)

    def with_mode(self, mode: SamplingMode, *, sigma_min: float | None = None) -> DiffusionPolicy:
        """The same weights (shared, not copied) under another sampling mode, and another noise floor if one is given."""
        # A shallow copy of a module shares the tables of its parameters and submodules.
        other = copy.copy(self)
        other.config = replace(
            self.config, mode=mode, sigma_min=self.config.sigma_min if sigma_min is None else sigma_min
        )
        other.sampler = other.config.sampler
        return other

    def with_steps(self, num_steps: int, *, mode: SamplingMode | None = None) -> DiffusionPolicy:
        """The same weights (shared, not copied) with another number of denoising steps, and another mode if one is given.

        Raises:
            PolicyError: more steps than levels, or none.
        """
        other = copy.copy(self)
        other.config = replace(self.config, num_steps=num_steps, mode=self.config.mode if mode is None else mode)
        other.sampler = other.config.sampler
        return other

    def loss(
        self,
        window: Window,
        generator: torch.Generator,
        *,
        part: slice | None = None,
        condition: Float32[Array, "B C"] | None = None,
    ) -> tuple[Float32[Array, ""], dict[str, float]]:
        """Denoising loss, mean square over the valid elements of a batch; levels and noise from `generator`.

        Args:
            window: the batch.
            generator: draws for the whole batch, whatever `part` is.
            part: rows that count, one of several equal parts: the mean of the parts' losses is the batch's. What an encoder
                draws differs from part to part.
            condition: `encode` of the observations, computed before, where the encoder is frozen; they are not looked at.

        Returns:
            The scalar, and {"denoise_mse"}; where an encoder of images or points trains, also its own penalty in the scalar
            and its parts (see FusionEncoder.training_condition).
        """
        x0 = self.normalizer.apply(ACTION, window.actions)
        place = generator.device  # a CPU generator gives the same numbers whatever device trains
        level = torch.randint(self.config.num_levels, (len(x0),), generator=generator, device=place).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator, device=place).to(x0.device)
        weight = window.valid[:, :, None].expand_as(x0)
        observation, total = window.observation, weight.sum().clamp(min=1)
        if part is not None:
            # A copy draws the seed, so that the next batch is the one that a single process would draw.
            fork = torch.Generator(device=place)
            fork.set_state(generator.get_state())
            seed = int(torch.randint(2**62, (), generator=fork, device=place))
            generator = fork.manual_seed(seed + part.start)
            observation = observation.map(lambda array: array[part])
            condition = None if condition is None else condition[part]
            x0, level, noise, weight, batch = x0[part], level[part], noise[part], weight[part], len(x0)
            total = total * len(x0) / batch
        penalty, parts = None, dict[str, float]()
        if condition is None:
            condition, penalty, parts = self.training_condition(observation, generator)
        output = self.denoiser(add_noise(x0, noise, level, self.alpha_bar), level, condition)
        target = prediction_target(x0, noise, level, alpha_bar=self.alpha_bar, prediction=self.sampler.prediction)
        loss = ((output - target).square() * weight).sum() / total
        return loss if penalty is None else loss + penalty, {"denoise_mse": float(loss.detach())} | parts

    def _output(self, latent: Array, level: Array, condition: Array) -> Array:
        return self.denoiser(latent, level, condition)
