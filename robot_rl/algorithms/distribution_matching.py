"""Distribution matching for one-step heads: the energy distance between a student's and a teacher's chunks, and a reward term.

At each observation the student draws m chunks and the teacher n. The energy distance between the two clouds is zero only when
both come from the same distribution (Szekely and Rizzo 2013), so a head that falls onto one mode, or onto the mean between two,
pays for it. It needs no second network and no score: the other distribution matching losses (DMD, arXiv 2311.18828; OneDP, arXiv
2410.21257) train a copy of the teacher beside the head, which is two learning rates more. As a proper scoring rule for
generators: Bouchacourt et al. 2016 (DISCO nets), De Bortoli et al. 2025 (arXiv 2502.02483). The reward term pulls samples to
where a critic is high, scaled by the critic's own size (TD3+BC, arXiv 2106.06860), as RACTD (arXiv 2506.07822) adds one to
consistency distillation.
"""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Float
from robot_rl.errors import PolicyError

# Inside the root, so that two equal chunks have a gradient of zero and not of 0 / 0.
_TINY = 1e-12


def energy_distance(
    student: Float[Array, "B m Tp A"], teacher: Float[Array, "B n Tp A"]
) -> tuple[Float[Array, ""], dict[str, float]]:
    """2 E|x - y| - E|x - x'| - E|y - y'|, mean over B; |.| is the root mean square over the elements of a chunk.

    Pairs of a sample with itself are left out, so the estimate is without bias and can be below zero.

    Args:
        student: m >= 2 chunks at each observation, normalised; with gradient.
        teacher: n >= 2 chunks at each observation; gets no gradient.

    Returns:
        The scalar, and {"energy_distance", "student_spread" (E|x - x'|), "teacher_spread"}.

    Raises:
        PolicyError: fewer than two chunks.
    """
    for name, cloud in (("student", student), ("teacher", teacher)):
        if cloud.shape[1] < 2:
            raise PolicyError(
                "energy distance", expected=f"at least 2 chunks of the {name} at an observation", got=str(cloud.shape[1]),
                hint="Set samples to 4 or more.",
            )  # fmt: skip
    x, y = student.flatten(2), teacher.detach().flatten(2)
    across, within, known = _distances(x, y).mean(), _spread(x), _spread(y)
    loss = 2 * across - within - known
    return loss, {
        "energy_distance": float(loss.detach()), "student_spread": float(within.detach()), "teacher_spread": float(known),
    }  # fmt: skip


def reward_term(q: Float[Array, "E B"]) -> Float[Array, ""]:
    """Minus the mean of the smallest critic, over the mean size of it (no gradient through the scale)."""
    least = q.amin(0)
    return -least.mean() / least.detach().abs().mean().clamp(min=1e-6)


def _distances(x: Float[Array, "B m D"], y: Float[Array, "B n D"]) -> Float[Array, "B m n"]:
    return ((x[:, :, None] - y[:, None]).square().mean(-1) + _TINY).sqrt()


def _spread(x: Float[Array, "B m D"]) -> Float[Array, ""]:
    number = x.shape[1]
    off = ~torch.eye(number, dtype=torch.bool, device=x.device)
    return _distances(x, x)[:, off].mean()
