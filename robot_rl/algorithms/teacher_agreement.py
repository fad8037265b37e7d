"""How a teacher's actions compare with actions that were shown for the same observations, element by element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32

FEWEST_ROWS = 20
INSIDE = 0.98


@dataclass(frozen=True)
class Agreement:
    """Of B pairs of actions.

    Attributes:
        rows: B.
        error: mean absolute difference, in half ranges of the element (0.01 is 1 % of what stands between middle and end).
        slope: for each element sum(t d) / sum(d^2) over pairs that lie both inside the bounds; NaN for too few. 1 agrees,
            2 is a doubled delta, below 0 another direction.
        same_side: for each element, share of shown actions away from the middle of the range that the teacher has on the
            same side of it; NaN for too few. Near 0 at a gripper: flipped polarity.
    """

    rows: int
    error: float
    slope: tuple[float, ...]
    same_side: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; NaN becomes None."""

        def plain(values: tuple[float, ...]) -> list[float | None]:
            return [None if np.isnan(value) else value for value in values]

        out = {"rows": self.rows, "error_half_ranges": self.error}
        return out | {"slope": plain(self.slope), "same_side": plain(self.same_side)}


def agreement(
    teacher: Float32[Array, "B A"],
    shown: Float32[Array, "B A"],
    *,
    low: Float32[Array, " A"],
    high: Float32[Array, " A"],
) -> Agreement:
    """Compare; physical actions, numpy.

    Args:
        teacher: its actions, t.
        shown: of a demonstration or an expert, d.
        low, high: bounds of the environment's action.
    """
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
    scaled_teacher, scaled_shown = (teacher - middle) / half, (shown - middle) / half
    inside = (np.abs(scaled_teacher) < INSIDE) & (np.abs(scaled_shown) < INSIDE)
    away = np.abs(scaled_shown) > 0.1
    slope, same = [], []
    for element in range(shown.shape[1]):
        rows = inside[:, element] & (np.abs(scaled_shown[:, element]) > 0.02)
        t, d = teacher[rows, element].astype(np.float64), shown[rows, element].astype(np.float64)
        slope.append(float((t * d).sum() / (d * d).sum()) if rows.sum() >= FEWEST_ROWS else float("nan"))
        far = away[:, element]
        sides = np.sign(scaled_teacher[far, element]) == np.sign(scaled_shown[far, element])
        same.append(float(sides.mean()) if far.sum() >= FEWEST_ROWS else float("nan"))
    error = float(np.abs(np.clip(scaled_teacher, -1, 1) - np.clip(scaled_shown, -1, 1)).mean())
    return Agreement(len(shown), error, tuple(slope), tuple(same))
