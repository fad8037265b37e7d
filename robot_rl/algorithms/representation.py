"""Losses that keep an encoder's latent about what it saw: reconstruction and a variational bottleneck (RL-100, section 1.2).

Source: L_recon = Chamfer(points) + |proprio|^2 (and pixels for images), L_KL = KL(q(z | o) || N(0, I)), the weight of the
latter annealed from 0; both weights divided by 10 during RL (Lei et al. 2025, arXiv 2510.14830).
P16: a latent is drawn in these losses alone. Whatever has a log-probability is computed from the mean of the latent.
"""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Bool, Float
from robot_rl.errors import ConfigError

RL_SHARE = 0.1
LOG_VARIANCE_LIMIT = 10.0


def chamfer(a: Float[Array, "B M 3"], b: Float[Array, "B L 3"]) -> Float[Array, " B"]:
    """Chamfer distance of two point sets: mean squared distance to the nearest point of the other, both ways, summed.

    In the square of the points' unit. {(0,0,0)} and {(1,0,0)}: 2. With gradient to both, through the nearest pairs.
    """
    with torch.no_grad():
        distance = torch.cdist(a, b)
        to_b, to_a = distance.argmin(dim=2), distance.argmin(dim=1)
    there = (a - b.gather(1, to_b[:, :, None].expand_as(a))).square().sum(-1).mean(1)
    back = (b - a.gather(1, to_a[:, :, None].expand_as(b))).square().sum(-1).mean(1)
    return there + back


def squared_error(got: Float[Array, "B ..."], wanted: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Mean squared error of every row: pixels, or elements of proprio."""
    return (got - wanted).square().flatten(1).mean(1)


def gaussian_kl(mean: Float[Array, "*batch C"], log_variance: Float[Array, "*batch C"]) -> Float[Array, "*batch"]:
    """KL(N(mean, exp(log_variance)) || N(0, I)), summed over elements, nats. mean 1, sigma 0.5: 0.818147 an element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def draw_latent(
    mean: Float[Array, "*batch C"], log_variance: Float[Array, "*batch C"], generator: torch.Generator
) -> Float[Array, "*batch C"]:
    """mean + sigma * noise, the noise from `generator`; with gradient (Kingma & Welling 2013, arXiv 1312.6114)."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device, mean.dtype)
    return mean + (0.5 * log_variance).exp() * noise


def drop(x: Float[Array, "*batch C"], probability: float, generator: torch.Generator) -> Float[Array, "*batch C"]:
    """Dropout by a passed generator: no module has a random mode that RL would have to remember to switch off."""
    if probability == 0:
        return x
    kept: Bool[Array, "*batch C"] = torch.rand(x.shape, generator=generator, device=generator.device) >= probability
    return x * kept.to(x.device) / (1 - probability)


def annealed(step: int, anneal_steps: int) -> float:
    """Share of the bottleneck's weight at gradient step `step`: linear from 0 to 1 over `anneal_steps`, then 1.

    Raises:
        ConfigError: a negative number of steps.
    """
    if anneal_steps < 0:
        raise ConfigError(
            "anneal_steps", expected="0 or more", got=str(anneal_steps), hint="0: the whole weight at once."
        )
    return 1.0 if anneal_steps == 0 else min(1.0, step / anneal_steps)
