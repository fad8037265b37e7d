"""RTI warm starts: the previous chunk, moved on by what was executed, starts the next denoising at a low noise level.

Source: Real-Time Iteration for Diffusion Policy (RTI-DP, arXiv 2508.05396). It feeds the clean guess itself
(`StartKind.clean`); `scaled` is the mean of the forward process from the guess, and `noised` is a draw of it. A start at
a low level can't flip a two-valued element (odds: docs/concepts.md); RTI-DP has its sign enter at a small size. Behind a noised start
that is no latent the network knows, and it lost most episodes (docs/rti.md): there it enters as it is, and what changes it
is the end of the plan. What is executed is thresholded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from robot_rl.algorithms.diffusion import Sampler, alpha_bar_at, linspace_levels
from robot_rl.arrays import Array, Float
from robot_rl.errors import ConfigError, PolicyError

# A choice, not a measurement: on PickCube and PullCube the 99th percentile of a policy's own changes was 4.7 and 5.0.
UNMEASURED_JUMP = 2.0


class StartKind(str, Enum):
    """How a guess becomes a latent.

    clean: the guess itself (RTI-DP).
    scaled: sqrt(alpha_bar) times the guess, the mean of the forward process.
    noised: a draw of the forward process, sqrt(alpha_bar) guess + sqrt(1 - alpha_bar) noise.
    """

    clean = "clean"
    scaled = "scaled"
    noised = "noised"


@dataclass(frozen=True)
class WarmStart:
    """How a policy starts from its previous chunk.

    Attributes:
        level: noise level of the start; at or above the noisiest level of the policy's sampler: always full denoising.
        steps: network forwards from there, evenly spaced levels; null: the sampler's own levels at or below `level`.
        start: clean, scaled or noised.
        discrete_at: elements of the action that take two values; null: the grippers that the spec names. [] for none.
        discrete_scale: size of the sign of such an element in the guess, normalised; null: 1 for a noised start, which noise
            brings to where the network was trained, and 0.1 as in RTI-DP for the other starts; 0 forgets it.
        max_jump: largest change of an observed element between decisions, in normalised units (standard deviations of
            the training data); more means full denoising. null: what `rti tune` measured on this run
            (runs/rti_verdict.py), or UNMEASURED_JUMP.
    """

    level: int = -1
    steps: int | None = None
    start: StartKind = StartKind.noised
    discrete_at: tuple[int, ...] | None = None
    discrete_scale: float | None = None
    max_jump: float | None = None

    @property
    def sign_size(self) -> float:
        """`discrete_scale`, or that of the kind of start."""
        if self.discrete_scale is not None:
            return self.discrete_scale
        return 1.0 if self.start is StartKind.noised else 0.1

    @property
    def jump_limit(self) -> float:
        """`max_jump`, or that of a policy on which nobody measured."""
        return UNMEASURED_JUMP if self.max_jump is None else self.max_jump

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: no level, or a number out of range.
        """
        if self.level < 0 or (self.steps is not None and self.steps < 1):
            raise ConfigError(
                "rti", expected="level of 0 or more, steps of 1 or more", got=f"level={self.level} steps={self.steps}",
                hint="E.g. rti.level=21 rti.steps=3; docs/rti.md says what they mean.",
            )  # fmt: skip
        if not (0 <= self.sign_size <= 1 and self.jump_limit > 0):
            raise ConfigError(
                "rti", expected="discrete_scale in 0..1, max_jump above 0",
                got=f"discrete_scale={self.discrete_scale} max_jump={self.max_jump}", hint="Correct these fields.",
            )  # fmt: skip


def watched_frame(
    arrays: Mapping[str, Array], keys: Sequence[str], normalize: Callable[[str, Array], Array]
) -> Float[Array, "N D"]:
    """What `max_jump` is compared with: the newest frame of the numbers among `keys`, normalised. Images and points are left out.

    Args:
        arrays: observation by key, (N, To, ...).
        keys: that the policy observes; of images alone nothing is watched: zeros.
        normalize: of a key's numbers.
    """
    numbers = [key for key in keys if arrays[key].ndim == 3]
    if not numbers:
        first = arrays[keys[0]]
        return torch.zeros(len(first), 1, device=first.device)
    return torch.cat([normalize(key, arrays[key][:, -1]) for key in numbers], dim=-1)


def scale_discrete(guess: Float[Array, "B Tp A"], at: Sequence[int], scale: float) -> Float[Array, "B Tp A"]:
    """The guess with its elements `at` replaced by their sign (zero counts as +) times `scale`."""
    signs = threshold_discrete(guess, at)
    factor = torch.ones(guess.shape[-1], dtype=guess.dtype, device=guess.device)
    factor[list(at)] = scale
    return signs * factor


def threshold_discrete(chunk: Float[Array, "B Tp A"], at: Sequence[int]) -> Float[Array, "B Tp A"]:
    """The chunk with its elements `at` replaced by -1 or +1, the ends of a normalised element (zero: +1)."""
    out = chunk.clone()
    index = list(at)
    out[..., index] = torch.where(chunk[..., index] >= 0, 1.0, -1.0).to(chunk.dtype)
    return out


def start_latent(
    guess: Float[Array, "B Tp A"], noise: Float[Array, "B Tp A"], *, level: int, num_levels: int, kind: StartKind
) -> Float[Array, "B Tp A"]:
    """The latent at `level` that a guess stands for; `noise` (standard normal) is read for `noised` alone."""
    if kind is StartKind.clean:
        return guess
    alpha_bar = alpha_bar_at(level, num_levels)
    scaled = math.sqrt(alpha_bar) * guess
    return scaled + math.sqrt(1 - alpha_bar) * noise if kind is StartKind.noised else scaled


def remaining_sampler(full: Sampler, level: int, steps: int | None = None) -> Sampler:
    """The sampler of a warm start: that of the policy with the levels that remain from `level` down.

    Args:
        full: the sampler of the policy (any mode, so DDIM and DDPM).
        level: of the start.
        steps: evenly spaced from `level` to the last level of `full`; None: the levels of `full` at or below `level`.

    Returns:
        `full` itself when `level` reaches its noisiest level: then there is nothing to start from but noise.

    Raises:
        PolicyError: no such levels, or more forwards than full denoising takes.
    """
    if level >= full.levels[0]:
        if steps not in (None, full.num_steps):
            raise PolicyError(
                "rti levels", expected=f"no rti.steps with rti.level={level}: at or above the policy's noisiest level, "
                f"{full.levels[0]}, every decision is denoised in full ({full.num_steps} steps)", got=f"rti.steps={steps}",
                hint="Leave rti.steps out, or choose a lower rti.level.",
            )  # fmt: skip
        return full
    if steps is None:
        kept = tuple(known for known in full.levels if known <= level)
    else:
        last = full.levels[-1]
        fits = last <= level and 1 <= steps <= min(full.num_steps, level - last + 1)
        kept = _spread(level, last, steps) if fits else ()
    if not kept:
        raise PolicyError(
            "rti levels", expected=f"a start within levels {full.levels[-1]}..{full.levels[0]} of the policy, in at most "
            f"{full.num_steps} steps and as many as there are levels", got=f"level {level}, steps {steps}",
            hint="Leave rti.steps out for the policy's own levels at or below rti.level.",
        )  # fmt: skip
    return replace(full, levels=kept)


def _spread(level: int, last: int, steps: int) -> tuple[int, ...]:
    return (level,) if steps == 1 else tuple(last + k for k in linspace_levels(level - last + 1, steps))


def measured_contraction(
    finish: Callable[[Float[Array, "B Tp A"]], Float[Array, "B Tp A"]],
    latent: Float[Array, "B Tp A"],
    *,
    radius: float,
    generator: torch.Generator,
) -> Float[Array, " B"]:
    """Distance of two chunks over the distance of their starts, one random direction a row.

    Args:
        finish: from a start to the chunk, with the same noise at every call.
        latent: the starts.
        radius: distance of the second start, root mean square over the elements, above 0.
        generator: of the directions, on the CPU.
    """
    direction = torch.randn(latent.shape, generator=generator).to(latent)
    direction = direction / direction.square().mean(dim=(1, 2), keepdim=True).sqrt()
    difference = finish(latent + radius * direction) - finish(latent)
    return difference.square().mean(dim=(1, 2)).sqrt() / radius
