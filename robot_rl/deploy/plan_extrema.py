"""How far a plan of Ruckig goes: lowest and highest position on the way."""

from __future__ import annotations

import math
from typing import Any


def extrema(plan: Any) -> tuple[float, float]:
    """Lowest and highest position on a plan of one joint, from its pieces of constant jerk.

    Ruckig 0.19's own `position_extrema` misses a turn inside a piece of constant acceleration.
    """
    profile = plan.profiles[0][0]
    places = [plan.at_time(plan.duration)[0][0]]
    for part in (profile.brake, profile) if profile.brake.duration > 0 else (profile,):
        for time_s, jerk, start, speed, acceleration in zip(part.t, part.j, part.p, part.v, part.a, strict=False):
            if time_s <= 0:
                continue
            places.append(start)
            change = time_s * jerk
            # Where the speed goes one way and keeps its sign there is no turn; most pieces are so, and roots cost time.
            if (
                acceleration * (acceleration + change) >= 0
                and speed * (speed + time_s * (acceleration + change / 2)) >= 0
            ):
                continue
            for turn_s in _roots(0.5 * jerk, acceleration, speed):
                if 0 < turn_s < time_s:
                    places.append(start + turn_s * (speed + turn_s * (acceleration / 2 + turn_s * jerk / 6)))
    return min(places), max(places)


def _roots(a: float, b: float, c: float) -> tuple[float, ...]:
    """Real roots of a x^2 + b x + c."""
    if a == 0:
        return (-c / b,) if b else ()
    inside = b * b - 4 * a * c
    if inside < 0:
        return ()
    # Without the difference of near equal numbers.
    q = -0.5 * (b + math.copysign(math.sqrt(inside), b))
    return (q / a, c / q) if q else (0.0,)
