"""One-step students of a K-step teacher: same-noise regression, or consistency distillation with an EMA target.

Regression: the student learns the teacher's map from first noise to action. The teacher must be a deterministic map of
that noise. Its eta1 chain adds noise that the student never sees, so the regression would average over it and quietly
teach the mean path instead. A few steps (2 to 4) chain the same network by DDIM with eta 0; the network predicts the
clean sample, so one step returns its output unchanged.

Consistency: f(x, level) is the end of the teacher's chain from any of its levels. f at a level must equal f_target one
teacher step further, and at the end of the chain f is the identity, which its scalings make exact (Song et al. 2023,
eq. 5 and algorithm 2). f estimates what the chain lands on, so it is a clean sample in training and in use alike; the
teacher's step converts its own prediction by its own sampler (RL-100's code confuses both, rpd_rti_onestep.md 3.3).

Source: RL-100 (arXiv 2510.14830), consistency head: the losses its code calls "action_same_noise" and "back_up".
"""

from __future__ import annotations

import torch

from robot_rl.algorithms.diffusion import Denoise, FinalAlpha, Prediction, Sampler, SamplingMode, sample_final
from robot_rl.arrays import Array, Float, Int64
from robot_rl.errors import PolicyError

MAX_STUDENT_STEPS = 4
SIGMA_DATA = 0.5
LEVEL_SCALE = 10.0


def check_teacher(sampler: Sampler) -> None:
    """Raise PolicyError unless the teacher's chain is a deterministic map of its first noise."""
    if sampler.mode is SamplingMode.eta1:
        raise PolicyError(
            "teacher of a one-step student",
            expected="a deterministic sampling mode (eta0 or mean)",
            got="eta1, whose step noise the student can't see: it would learn an average of actions",
            hint="Pass teacher.with_mode(SamplingMode.eta0), which keeps modes, or mean, which keeps only the centre.",
        )


def student_sampler(teacher: Sampler, num_steps: int) -> Sampler:
    """Sampler of a student: `num_steps` of the teacher's levels, beginning with its first, clean-sample prediction.

    It is not clamped: a clamp would stop the gradient at the bound. Actions are clipped when they are executed.

    Raises:
        PolicyError: the teacher is stochastic, or num_steps is not 1 to min(4, teacher steps).
    """
    check_teacher(teacher)
    most = min(MAX_STUDENT_STEPS, teacher.num_steps)
    if not 1 <= num_steps <= most:
        raise PolicyError(
            "steps of a one-step student", expected=f"1 to {most}", got=str(num_steps), hint="1 is the usual choice."
        )
    levels = tuple(teacher.levels[k * teacher.num_steps // num_steps] for k in range(num_steps))
    return Sampler(
        levels=levels,
        prediction=Prediction.sample,
        num_levels=teacher.num_levels,
        final_alpha=FinalAlpha.one,
        clip_sample=None,
        mode=SamplingMode.eta0,
    )


def boundary_scalings(distance: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(c_skip, c_out) of f = c_skip x + c_out F: (1, 0) at the end of the chain, so that f is the identity there.

    c_skip = s^2 / ((10 d)^2 + s^2) and c_out = 10 d / sqrt((10 d)^2 + s^2), s = 0.5 (Luo et al. 2023, LCM; RL-100's code).

    Args:
        distance: d, levels between the latent and the end of the chain; 0 at the end.
    """
    scaled = LEVEL_SCALE * distance
    spread = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / spread, scaled / spread.sqrt()


def distance_to_end(level: Int64[Array, " B"], final_alpha: FinalAlpha) -> Float[Array, " B"]:
    """Levels between `level` and where the teacher's chain ends: level 0, or the clean sample one below it."""
    return level.to(torch.float32) + (0.0 if final_alpha is FinalAlpha.alpha_bar_0 else 1.0)


def consistency_loss(
    student: Float[Array, "B Tp A"], target: Float[Array, "B Tp A"]
) -> tuple[Float[Array, ""], dict[str, float]]:
    """Mean square between f at a level and the target network's f one teacher step further (normalised, unclipped).

    The target gets no gradient. Returns the scalar and {"consistency_mse"}.
    """
    loss = (student - target.detach()).square().mean()
    return loss, {"consistency_mse": float(loss.detach())}


def student_sample(denoise: Denoise, noise: Float[Array, "B 1 Tp A"], sampler: Sampler) -> Float[Array, "B Tp A"]:
    """The student's normalised, unclipped action; differentiable through all its steps."""
    return sample_final(denoise, noise, sampler)


def same_noise_loss(
    student: Float[Array, "B Tp A"], teacher: Float[Array, "B Tp A"]
) -> tuple[Float[Array, ""], dict[str, float]]:
    """Mean square between two final latents (normalised, unclipped) that came from the same first noise.

    The teacher gets no gradient. Returns the scalar and {"distill_mse"}.
    """
    loss = (student - teacher.detach()).square().mean()
    return loss, {"distill_mse": float(loss.detach())}
