"""How many env steps a learner needed to a target success, read off its learning curve, censored at the budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robot_rl.errors import DataError


@dataclass(frozen=True)
class StepsToTarget:
    """When a target was first met.

    Attributes:
        target: success rate that was asked for, 0 to 1.
        env_steps: of the first evaluation at which it was met; the budget where it never was.
        is_censored: whether it never was: the true number is larger than `env_steps`.
    """

    target: float
    env_steps: int
    is_censored: bool

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{'> ' if self.is_censored else ''}{self.env_steps:,} env steps to {self.target:.0%}"


def steps_to_target(env_steps: Sequence[int], success: Sequence[float], *, target: float, budget: int) -> StepsToTarget:
    """First evaluation at which success >= target.

    It is the first crossing of a noisy curve: earlier than the step at which the true success crosses, the more so the
    fewer episodes an evaluation has. Compare learners only with the same episodes, seeds and spacing.

    Args:
        env_steps: of the evaluations, strictly increasing.
        success: success rate of each, 0 to 1.
        target: 0 to 1.
        budget: env steps that the learner was given; evaluations behind it do not count.

    Raises:
        DataError: lists of different length, steps that do not increase, or a rate outside 0 to 1.
    """
    ordered = all(a < b for a, b in itertools.pairwise(env_steps))
    if len(env_steps) != len(success) or not ordered or not all(0 <= rate <= 1 for rate in (*success, target)):
        raise DataError(
            "learning curve", expected="as many rates in 0..1 as strictly increasing env steps",
            got=f"env_steps {list(env_steps)[:8]}, success {list(success)[:8]}, target {target}",
            hint="Give the evaluations of one run, in order.",
        )  # fmt: skip
    for steps, rate in zip(env_steps, success, strict=True):
        if rate >= target and steps <= budget:
            return StepsToTarget(target, steps, is_censored=False)
    return StepsToTarget(target, budget, is_censored=True)
