"""Teacher hacking: the student gets ever nearer to the teacher and ever worse at the task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_FALL = 0.05
Z = 3.0


def is_hacking(losses: Sequence[float], returns: Sequence[float], *, window: int) -> bool:
    """Whether the distillation loss fell and the return fell as well, of the last `window` updates against those before.

    The loss fell when its mean lies under the mean before by more than 5 % of that one's size (the losses of distil, redi
    and rlad may be negative); the return when it lies more than three standard errors under it. False with fewer than
    2 * window updates.

    Args:
        losses: distillation loss of each update, oldest first.
        returns: mean reward of each update's roll-out.
        window: 2 or more.
    """
    if min(len(losses), len(returns)) < 2 * window:
        return False
    (before, now), (old, new) = (
        np.split(np.asarray(each[-2 * window :], dtype=np.float64), 2) for each in (losses, returns)
    )
    error = np.sqrt((old.var(ddof=1) + new.var(ddof=1)) / window)
    least = LEAST_FALL * abs(before.mean())
    return bool(now.mean() < before.mean() - least and new.mean() < old.mean() - Z * error)
