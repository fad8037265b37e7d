"""One-step students by same-noise regression: the student learns the teacher's map from first noise to action.

The teacher must be a deterministic map of that noise. Its eta1 chain adds noise that the student never sees, so the
regression would average over it and quietly teach the mean path instead. A few steps (2 to 4) chain the same network
by DDIM with eta 0; the network predicts the clean sample, so one step returns its output unchanged.

Source: RL-100 (arXiv 2510.14830), consistency head, the loss its code calls "action_same_noise".
"""

from __future__ import annotations

from robot_rl.algorithms.diffusion import Denoise, FinalAlpha, Prediction, Sampler, SamplingMode, sample_final
from robot_rl.arrays import Array, Float
from robot_rl.errors import PolicyError

MAX_STUDENT_STEPS = 4


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
