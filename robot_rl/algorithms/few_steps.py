"""Fewer denoising steps than a policy has of its own, without any training."""

from __future__ import annotations

from dataclasses import replace

from robot_rl.algorithms.diffusion import Sampler, linspace_levels


def few_steps(sampler: Sampler, num_steps: int) -> Sampler:
    """The sampler with few steps, at levels spread evenly from its own noisiest to its last: 91, 46, 1 for 91 .. 1 and 3.

    Not `leading_levels`, diffusers' default, which of 100 levels takes 51 and 1 for two: no latent of level 51 is unit noise. Nor
    from the noisiest level that there is, where a network that predicts noise says next to nothing of the action.

    Raises:
        PolicyError: no step, or more than there are levels in that range.
    """
    first, last = sampler.levels[0], sampler.levels[-1]
    return replace(sampler, levels=tuple(last + level for level in linspace_levels(first - last + 1, num_steps)))


def sampling_text(sampler: Sampler, own: Sampler) -> str:
    """Mode and number of steps, for reports; their levels where they aren't those of the policy's own sampler."""
    levels = "" if sampler.levels == own.levels else f" at levels {', '.join(map(str, sampler.levels))}"
    return f"{sampler.mode.value}, {sampler.num_steps} steps{levels}"
