"""One-step policy: a student that jumps from noise to the chunk that its diffusion teacher would reach in K steps.

Trained by same-noise regression or by consistency distillation (robot_rl.algorithms.consistency). The network has the
teacher's shape, gets the teacher's levels, and its output is read as the clean sample, in training and in use alike.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

import torch

from robot_rl.algorithms.consistency import (
    boundary_scalings,
    check_teacher,
    distance_to_end,
    same_noise_loss,
    student_sample,
    student_sampler,
)
from robot_rl.algorithms.diffusion import (
    FinalAlpha,
    Prediction,
    Sampler,
    SamplingMode,
    add_noise,
    leading_levels,
)
from robot_rl.arrays import Array, Float32, Int64
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation

from .acting import ChainPolicy
from .denoisers import DenoiserKind, build_denoiser
from .diffusion import (
    DiffusionPolicy,
    check_chunk,
    config_fields_from_json,
    config_to_json,
)
from .encoder_fusion import EncoderConfig
from .encoders import build_encoder


class OneStepHead(str, Enum):
    """How the network's output F becomes the jump f(x, level).

    plain: f = F; what same-noise regression trains. consistency: f = c_skip(level) x + c_out(level) F, the identity
    where the teacher's chain ends.
    """

    plain = "plain"
    consistency = "consistency"


@dataclass(frozen=True)
class OneStepPolicyConfig:
    """Configuration of a one-step policy; flat, JSON-able.

    Attributes:
        num_steps: network evaluations per decision, 1 to 4.
        teacher_steps: K of the teacher; the student's levels are taken from the teacher's.
        teacher_mode: which map of the teacher is imitated: eta0 (keeps modes) or mean (keeps the centre).
        head: see OneStepHead.
        final_alpha: where the teacher's last step lands, and so what f jumps to.
        denoiser, history, horizon, execute, observation_keys, encoder, num_levels, hidden_width, num_blocks, channels,
            level_embedding: as in DiffusionPolicyConfig, equal to the teacher's.
    """

    num_steps: int = 1
    teacher_steps: int = 10
    teacher_mode: SamplingMode = SamplingMode.eta0
    head: OneStepHead = OneStepHead.plain
    final_alpha: FinalAlpha = FinalAlpha.alpha_bar_0
    denoiser: DenoiserKind = DenoiserKind.mlp
    history: int = 1
    horizon: int = 8
    execute: int = 8
    observation_keys: tuple[str, ...] = ("state",)
    encoder: EncoderConfig | None = None
    num_levels: int = 100
    hidden_width: int = 256
    num_blocks: int = 2
    channels: tuple[int, ...] = (64, 128)
    level_embedding: int = 64

    @property
    def sampler(self) -> Sampler:
        """The student's sampler. Raises PolicyError for teacher_mode eta1 or an impossible number of steps."""
        levels = leading_levels(self.num_levels, self.teacher_steps)
        teacher = Sampler(
            levels=levels, prediction=Prediction.sample, num_levels=self.num_levels, mode=self.teacher_mode,
            final_alpha=self.final_alpha,
        )  # fmt: skip
        return student_sampler(teacher, self.num_steps)

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OneStepPolicyConfig:
        """Inverse of `to_json`. Raises PolicyError on an unknown key or enum value."""
        return cls(**config_fields_from_json(cls, data))


def teacher_target(
    teacher: DiffusionPolicy, observation: Observation, noise: Float32[Array, "B draws Tp A"]
) -> Float32[Array, "B Tp A"]:
    """What a student must reach from `noise`: the teacher's last latent, normalised and unclipped, no gradient.

    Raises:
        PolicyError: the teacher samples in mode eta1.
    """
    check_teacher(teacher.sampler)
    target: torch.Tensor = teacher.normalized_action(observation, noise)
    return target


@torch.no_grad()
def teacher_steps(
    teacher: DiffusionPolicy,
    observation: Observation,
    x0: Float32[Array, "B Tp A"],
    noise: Float32[Array, "B Tp A"],
) -> tuple[Float32[Array, "B Tp A"], Int64[Array, " B"], Float32[Array, "B Tp A"], Int64[Array, " B"]]:
    """Pairs for consistency distillation: latents at the teacher's levels, and the same one teacher step further.

    Row i takes denoising step i modulo K, so a batch holds every level equally often.

    Args:
        teacher: deterministic (mode eta0 or mean).
        observation: of the B decisions.
        x0: clean chunks of the data, normalised.
        noise: standard normal; makes the noisy latents from x0.

    Returns:
        latent, its level, following latent, its level (-1 where the chain has ended).

    Raises:
        PolicyError: the teacher samples in mode eta1.
    """
    check_teacher(teacher.sampler)
    condition, levels = teacher.encode(observation), teacher.sampler.levels
    step = torch.arange(len(x0), device=x0.device) % len(levels)
    level = torch.tensor(levels, device=x0.device)[step]
    latent = add_noise(x0, noise, level, teacher.alpha_bar)
    following = torch.empty_like(latent)
    for k in range(len(levels)):
        rows = step == k
        following[rows] = teacher.reverse_step(latent[rows], k, condition[rows])[0]
    return latent, level, following, torch.tensor([*levels[1:], -1], device=x0.device)[step]


class OneStepPolicy(ChainPolicy):
    """A Policy of one (or few) network evaluations. It keeps nothing between calls.

    Args:
        config: see OneStepPolicyConfig.
        spec: of the environment.
        normalizer: the teacher's.

    Raises:
        PolicyError: the configuration fits neither the spec nor the network.
    """

    config: OneStepPolicyConfig

    def __init__(self, config: OneStepPolicyConfig, spec: EnvSpec, normalizer: Normalizer) -> None:
        super().__init__(config, spec)
        check_chunk(history=config.history, horizon=config.horizon, execute=config.execute)
        self.sampler = config.sampler
        keys = tuple(config.observation_keys)
        self.encoder = build_encoder(spec, keys, history=config.history, normalizer=normalizer, config=config.encoder)
        self.denoiser = build_denoiser(config, action_size=spec.action.size, condition_size=self.encoder.size)

    @classmethod
    def from_teacher(
        cls, teacher: DiffusionPolicy, num_steps: int = 1, *, head: OneStepHead = OneStepHead.plain
    ) -> OneStepPolicy:
        """A student with the teacher's shape, normaliser and weights (copied).

        A teacher of noise prediction only lends its weights as a start: the student's output means the clean sample
        from the first update on, so an untrained student of such a teacher is no policy yet.

        Raises:
            PolicyError: the teacher samples in mode eta1, or num_steps is impossible.
        """
        check_teacher(teacher.sampler)
        shared = {f.name for f in fields(OneStepPolicyConfig)} & {f.name for f in fields(teacher.config)} - {
            "num_steps"
        }
        config = OneStepPolicyConfig(
            num_steps=num_steps,
            teacher_steps=teacher.config.num_steps,
            teacher_mode=teacher.config.mode,
            head=head,
            **{name: getattr(teacher.config, name) for name in shared},
        )
        student = cls(config, teacher.spec, copy.deepcopy(teacher.normalizer)).to(teacher.action_low.device)
        student.denoiser.load_state_dict(teacher.denoiser.state_dict())
        student.encoder.load_state_dict(teacher.encoder.state_dict())
        return student

    @property
    def sampling(self) -> str:
        """How it samples, for reports."""
        return f"one-step head, {self.sampler.num_steps} of {self.config.teacher_steps} steps"

    def with_mode(self, mode: SamplingMode, *, sigma_min: float | None = None) -> OneStepPolicy:
        """The same weights (shared): eta0 as they are, or eta1, the exact Gaussian N(f(noise), sigma_min^2) that RL needs.

        In mode eta1 a decision is one denoising step from the noise, which is part of what is stored: given it, the
        chunk's density is exact.

        Raises:
            PolicyError: another mode, more than one step, or eta1 without a noise.
        """
        if mode is SamplingMode.eta0 and sigma_min is None:
            return self
        if mode is not SamplingMode.eta1 or sigma_min is None or self.config.num_steps != 1:
            raise PolicyError(
                "mode of a one-step head", expected="eta0, or eta1 with sigma_min=<noise> of a head with one step",
                got=f"{mode.value}, sigma_min {sigma_min}, {self.config.num_steps} step(s)",
                hint="For RL on the head itself give sigma_min, e.g. 0.05 (normalised action units).",
            )  # fmt: skip
        other = copy.copy(self)
        other.sampler = replace(self.config.sampler, mode=mode, sigma_min=sigma_min, sigma_max=sigma_min)
        return other

    def loss(
        self, observation: Observation, noise: Float32[Array, "B 1 Tp A"], target: Float32[Array, "B Tp A"]
    ) -> tuple[Float32[Array, ""], dict[str, float]]:
        """Same-noise regression to `target` (see teacher_target), which came from the same observation and noise.

        Returns:
            The scalar, and {"distill_mse"}, in normalised units.
        """
        return same_noise_loss(self._sample(self.encoder(observation), noise), target)

    def jump(
        self, observation: Observation, latent: Float32[Array, "B Tp A"], level: Int64[Array, " B"]
    ) -> Float32[Array, "B Tp A"]:
        """f(x, level): where the teacher's chain ends from a latent at one of its levels; with gradient."""
        return self._output(latent, level, self.encoder(observation))

    def _sample(self, condition: Array, noise: Array) -> Array:
        if self.sampler.mode is SamplingMode.eta1:
            return super()._sample(condition, noise)
        return student_sample(lambda latent, level: self._output(latent, level, condition), noise, self.sampler)

    def _output(self, latent: Array, level: Array, condition: Array) -> Array:
        output = self.denoiser(latent, level, condition)
        if self.config.head is OneStepHead.plain:
            return output
        skip, out = boundary_scalings(distance_to_end(level, self.config.final_alpha))
        return skip[:, None, None] * latent + out[:, None, None] * output
