"""Diffusion over action chunks: noise schedule, one reverse step as a Gaussian, the chain of steps, its density.

Everything a sampler needs is one frozen `Sampler`; it is saved beside the weights and never rebuilt from defaults.
Levels count noise, 0 = least. A sampler names its levels one by one, and a step goes to the next level in that list
(not to the level below, and not by arithmetic on the number of steps: both are known ways to get every mean wrong).

Sources: DDIM (arXiv 2010.02502, eq. 12 and 16), squared cosine schedule (arXiv 2102.09672, eq. 17), the denoising MDP
and the clipped variance (RL-100, arXiv 2510.14830, section on K-step denoising).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch

from robot_rl.arrays import Array, Float, Float32, Float64, Int64
from robot_rl.errors import PolicyError, closest
from robot_rl.types import DenoisingChain

MAX_BETA = 0.999

Denoise = Callable[[Any, Any], Any]
"""Network with its condition bound: latent (B, Tp, A), level int64 (B,) -> output (B, Tp, A)."""


class Prediction(str, Enum):
    """What a network's output means: the noise in the latent, the clean sample, or the velocity.

    v = sqrt(ab) epsilon - sqrt(1 - ab) x0 (arXiv 2202.00512, section 4): of unit size at every level.
    """

    epsilon = "epsilon"
    sample = "sample"
    v = "v"


class FinalAlpha(str, Enum):
    """alpha_bar that the last step lands on: that of level 0 (a little noise is left), or one (none)."""

    alpha_bar_0 = "alpha_bar_0"
    one = "one"


class SamplingMode(str, Enum):
    """How latents move. Same weights, three policies: success differs by tens of points, so always name the mode.

    eta0: DDIM with eta 0, a deterministic map of the first noise that keeps most of the spread.
    eta1: eta 1 with noise at every step; the only mode with a density, so the one RL uses.
    mean: the mean path of eta 1 without its noise; nearly forgets the first noise and so collapses modes.
    """

    eta0 = "eta0"
    eta1 = "eta1"
    mean = "mean"


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Complete description of a sampler.

    Attributes:
        levels: noisiest first, strictly descending, inside [0, num_levels).
        prediction: what the network was trained to predict.
        num_levels: levels of the training schedule (squared cosine).
        final_alpha: where the last step lands.
        sigma_min, sigma_max: the noise added in mode eta1 is clipped to this range (normalised action units).
        clip_sample: the predicted clean sample is clamped to +-clip_sample; None: never.
        mode: see SamplingMode.

    Raises:
        PolicyError: levels or noise range make no sampler.
    """

    levels: tuple[int, ...]
    prediction: Prediction
    num_levels: int = 100
    final_alpha: FinalAlpha = FinalAlpha.alpha_bar_0
    sigma_min: float = 0.01
    sigma_max: float = 0.8
    clip_sample: float | None = 1.0
    mode: SamplingMode = SamplingMode.eta0

    def __post_init__(self) -> None:
        inside = all(0 <= level < self.num_levels for level in self.levels)
        descending = all(a > b for a, b in pairwise(self.levels))
        if not (self.levels and inside and descending):
            raise PolicyError(
                "sampler levels",
                expected=f"strictly descending levels in 0..{self.num_levels - 1}, noisiest first",
                got=str(self.levels),
                hint="Take them from leading_levels or linspace_levels.",
            )
        if self.levels[-1] == 0 and self.final_alpha is FinalAlpha.alpha_bar_0:
            raise PolicyError(
                "sampler levels",
                expected="a last level above 0, because final_alpha=alpha_bar_0 ends at level 0",
                got=str(self.levels),
                hint="Use final_alpha=one, or drop level 0.",
            )
        if not 0 < self.sigma_min <= self.sigma_max:
            raise PolicyError(
                "sampler noise range",
                expected="0 < sigma_min <= sigma_max (without noise there is no density)",
                got=f"[{self.sigma_min}, {self.sigma_max}]",
                hint="Use mode eta0 or mean for sampling without noise.",
            )
        if self.clip_sample is not None and self.clip_sample <= 0:
            raise PolicyError(
                "sampler clip_sample", expected="a positive bound or None", got=str(self.clip_sample), hint="Try 1.0."
            )

    @property
    def num_steps(self) -> int:
        """K, the number of denoising steps."""
        return len(self.levels)

    @property
    def noise_draws(self) -> int:
        """Standard normal tensors per chunk: the first latent, and one per step in mode eta1."""
        return 1 + self.num_steps if self.mode is SamplingMode.eta1 else 1

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        plain = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()}
        return plain | {"levels": list(self.levels)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sampler:
        """Inverse of `to_json`.

        Raises:
            PolicyError: an unknown key or enum value, a missing key, or an invalid sampler.
        """
        plain = dict(data)
        names = {f.name for f in fields(cls)}
        for key in plain.keys() - names:
            raise PolicyError("sampler", expected="a known key", got=repr(key), hint=closest(key, names))
        for key in {"levels", "prediction"} - plain.keys():
            raise PolicyError("sampler", expected=f"key {key!r}", got="none", hint="The file is not a saved sampler.")
        plain["levels"] = tuple(plain["levels"])
        for key, kind in _SAMPLER_ENUMS.items():
            if key in plain:
                plain[key] = _member(kind, str(plain[key]), where=f"sampler {key}")
        return cls(**plain)


_SAMPLER_ENUMS: dict[str, type[Enum]] = {"prediction": Prediction, "final_alpha": FinalAlpha, "mode": SamplingMode}


def _member(kind: type[Enum], name: str, *, where: str) -> Enum:
    options = [member.value for member in kind]
    if name not in options:
        raise PolicyError(where, expected=f"a {kind.__name__}", got=repr(name), hint=closest(name, options))
    return kind(name)


@dataclass(frozen=True)
class StepCoefficients:
    """One reverse step in numbers.

    Attributes:
        level: the level it starts from.
        signal, noise: sqrt(alpha_bar) and sqrt(1 - alpha_bar) of that level.
        next_signal: sqrt(alpha_bar) of the level it lands on.
        direction: coefficient of the predicted noise in the mean, from the unclipped sigma.
        sigma: eta * sqrt((1-ab')/(1-ab)) * sqrt(1-ab/ab'), unclipped; 0 in mode eta0.
        std: of the noise really added, clipped; 0 unless the mode is eta1.
    """

    level: int
    signal: float
    noise: float
    next_signal: float
    direction: float
    sigma: float
    std: float


def squared_cosine_alpha_bar(num_levels: int = 100) -> Float64[Array, " T"]:
    """alpha_bar of the squared cosine schedule ("squaredcos_cap_v2"), float64 (num_levels,)."""
    return torch.tensor(_schedule(num_levels), dtype=torch.float64)


def alpha_bar_at(level: int, num_levels: int) -> float:
    """One value of `squared_cosine_alpha_bar` as a Python float, which an exporter sees as a constant."""
    return _schedule(num_levels)[level]


def _schedule(num_levels: int) -> list[float]:
    # Plain floats, so that an exporter that traces a policy sees constants and no tensor code.
    curve = [math.cos((k / num_levels + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(num_levels + 1)]
    alphas = [1 - min(1 - b / a, MAX_BETA) for a, b in pairwise(curve)]
    return list(accumulate(alphas, operator.mul))


def _check_steps(num_levels: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_levels:
        raise PolicyError(
            "denoising steps",
            expected=f"1 to {num_levels} (num_levels)",
            got=str(num_steps),
            hint="Lower num_steps or train with more levels.",
        )


def leading_levels(num_levels: int, num_steps: int, offset: int = 1) -> tuple[int, ...]:
    """Every (num_levels // num_steps)-th level from `offset` up, noisiest first: 91, 81, ..., 1 for 100, 10, 1.

    Where that would pass the noisiest level, from lower down: 99, ..., 0 for 100, 100, 1.

    Raises:
        PolicyError: more steps than levels.
    """
    _check_steps(num_levels, num_steps)
    stride = num_levels // num_steps
    first = min(offset, num_levels - 1 - stride * (num_steps - 1))
    return tuple(k * stride + first for k in reversed(range(num_steps)))


def linspace_levels(num_levels: int, num_steps: int) -> tuple[int, ...]:
    """Rounded even spacing from num_levels - 1 to 0, noisiest first (one step: the noisiest level alone).

    Raises:
        PolicyError: more steps than levels.
    """
    _check_steps(num_levels, num_steps)
    if num_steps == 1:
        return (num_levels - 1,)
    return tuple(round((num_levels - 1) * k / (num_steps - 1)) for k in reversed(range(num_steps)))


@lru_cache(maxsize=256)
def step_coefficients(sampler: Sampler) -> tuple[StepCoefficients, ...]:
    """The table of a sampler, one row per step, computed in float64 and kept as Python floats."""
    schedule = _schedule(sampler.num_levels)
    last = schedule[0] if sampler.final_alpha is FinalAlpha.alpha_bar_0 else 1.0
    alpha_bars = [schedule[level] for level in sampler.levels]
    rows = []
    for level, now, then in zip(sampler.levels, alpha_bars, [*alpha_bars[1:], last], strict=True):
        eta = 0.0 if sampler.mode is SamplingMode.eta0 else 1.0
        sigma = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        clipped = min(max(sigma, sampler.sigma_min), sampler.sigma_max)
        rows.append(
            StepCoefficients(
                level=level,
                signal=math.sqrt(now),
                noise=math.sqrt(1 - now),
                next_signal=math.sqrt(then),
                direction=math.sqrt(max(1 - then - sigma**2, 0.0)),
                sigma=sigma,
                std=clipped if sampler.mode is SamplingMode.eta1 else 0.0,
            )
        )
    return tuple(rows)


def add_noise(
    x0: Float[Array, "B Tp A"],
    noise: Float[Array, "B Tp A"],
    level: Int64[Array, " B"],
    alpha_bar: Float64[Array, " T"],
) -> Float[Array, "B Tp A"]:
    """Forward process: sqrt(ab) x0 + sqrt(1 - ab) noise at each row's level; `alpha_bar` is the whole schedule."""
    chosen = alpha_bar[level][:, None, None]
    return chosen.sqrt().to(x0.dtype) * x0 + (1 - chosen).sqrt().to(x0.dtype) * noise


def prediction_target(
    x0: Float[Array, "B Tp A"],
    noise: Float[Array, "B Tp A"],
    level: Int64[Array, " B"],
    *,
    alpha_bar: Float64[Array, " T"],
    prediction: Prediction,
) -> Float[Array, "B Tp A"]:
    """What a network of this prediction must output for the latent that `add_noise` makes of the same arguments."""
    if prediction is Prediction.epsilon:
        return noise
    if prediction is Prediction.sample:
        return x0
    chosen = alpha_bar[level][:, None, None]
    return chosen.sqrt().to(x0.dtype) * noise - (1 - chosen).sqrt().to(x0.dtype) * x0


def predict_x0_epsilon(
    row: StepCoefficients, latent: Float[Array, "B Tp A"], output: Float[Array, "B Tp A"], *, prediction: Prediction
) -> tuple[Float[Array, "B Tp A"], Float[Array, "B Tp A"]]:
    """Clean sample and noise that a network's output implies at the level of `row`; no clamp."""
    if prediction is Prediction.epsilon:
        return (latent - row.noise * output) / row.signal, output
    if prediction is Prediction.v:
        return row.signal * latent - row.noise * output, row.noise * latent + row.signal * output
    return output, (latent - row.signal * output) / row.noise


def reverse_step(
    sampler: Sampler, latent: Float[Array, "B Tp A"], output: Float[Array, "B Tp A"], step: int
) -> tuple[Float[Array, "B Tp A"], float]:
    """Mean and standard deviation of the next latent at step 0 (noisiest) .. K-1; the one rule for acting and for RL.

    The clean sample is clamped, the noise is not recomputed from it (as RL-100 does): a policy whose log-probability
    is re-evaluated under another rule is another policy.
    """
    row = step_coefficients(sampler)[step]
    x0, epsilon = predict_x0_epsilon(row, latent, output, prediction=sampler.prediction)
    if sampler.clip_sample is not None:
        x0 = x0.clamp(-sampler.clip_sample, sampler.clip_sample)
    return row.next_signal * x0 + row.direction * epsilon, row.std


def step_log_prob(mean: Float[Array, "B Tp A"], std: float, following: Float[Array, "B Tp A"]) -> Float[Array, " B"]:
    """log N(following; mean, std^2), summed over Tp and A.

    Raises:
        PolicyError: std is zero: a step of mode eta0 or mean has no density.
    """
    if std <= 0:
        raise PolicyError(
            "log-probability of a denoising step",
            expected="a noisy step (SamplingMode.eta1)",
            got=f"std {std}",
            hint="Sample with with_mode(SamplingMode.eta1) for RL.",
        )
    square = ((following - mean) / std).square()
    return (-0.5 * square - (math.log(std) + 0.5 * math.log(2 * math.pi))).sum(dim=(1, 2))


def _advance(
    denoise: Denoise, latent: Array, noise: Array, *, sampler: Sampler, step: int
) -> tuple[Array, float, Array]:
    """One step of a chain: mean, std, next latent."""
    level = torch.full((latent.shape[0],), sampler.levels[step], dtype=torch.int64, device=latent.device)
    mean, std = reverse_step(sampler, latent, denoise(latent, level), step)
    return mean, std, mean + std * noise[:, step + 1] if std > 0 else mean


def sample_chain(denoise: Denoise, noise: Float32[Array, "B draws Tp A"], sampler: Sampler) -> DenoisingChain:
    """Run all steps and keep what RL needs. `noise[:, 0]` is the first latent, `noise[:, 1 + k]` the noise of step k.

    Latents are stored unclipped. Differentiable; wrap in no_grad for acting.
    """
    latents = [noise[:, 0]]
    log_probs = []
    for step in range(sampler.num_steps):
        mean, std, following = _advance(denoise, latents[-1], noise, sampler=sampler, step=step)
        deterministic = torch.zeros(noise.shape[0], dtype=noise.dtype, device=noise.device)
        log_probs.append(step_log_prob(mean, std, following) if std > 0 else deterministic)
        latents.append(following)
    levels = torch.tensor(sampler.levels, dtype=torch.int64, device=noise.device)
    return DenoisingChain(latents=torch.stack(latents, 1), log_prob=torch.stack(log_probs, 1), levels=levels)


def sample_final(denoise: Denoise, noise: Float[Array, "B draws Tp A"], sampler: Sampler) -> Float[Array, "B Tp A"]:
    """The last latent of `sample_chain` alone, unclipped: the same numbers with a smaller graph (export, students)."""
    latent = noise[:, 0]
    for step in range(sampler.num_steps):
        latent = _advance(denoise, latent, noise, sampler=sampler, step=step)[2]
    return latent
