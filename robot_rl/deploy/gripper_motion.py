"""A gripper within its range and velocity."""

from __future__ import annotations

import math

from robot_rl.deploy.robot_card import GripperCard
from robot_rl.deploy.safety import Reason, is_period
from robot_rl.errors import ConfigError, DeployError


class GripperLimiter:
    """Range and velocity of a gripper, by itself or inside PoseSafetyFilter.

    Args:
        card: `closed` and `open` bound the range, whichever is larger.
        opening: now, in the gripper's own unit.

    Raises:
        ConfigError: ends that are equal or not finite, or a velocity that is not above 0.
        DeployError: an opening outside the range.
    """

    def __init__(self, card: GripperCard, opening: float) -> None:
        self._low, self._high = sorted((card.closed, card.open))
        if not (math.isfinite(self._high - self._low) and self._low < self._high and 0 < card.velocity < math.inf):
            raise ConfigError(
                "gripper", expected="two ends and a velocity above 0", got=f"{card}", hint="Correct the robot's card."
            )
        self._velocity, self.opening = card.velocity, self._inside(opening)
        if not abs(self.opening - opening) <= 0.1 * (self._high - self._low):
            raise DeployError(
                "gripper", expected=f"an opening in {self._low:g} .. {self._high:g}", got=f"{opening:g}",
                hint="Is it told in another unit than the card's?",
            )  # fmt: skip

    def step(self, asked: float, period_s: float) -> tuple[float, Reason]:
        """The opening to send, and why it is not `asked`: range, gripper (velocity), or not_finite and period (it holds)."""
        if not math.isfinite(asked):
            return self.opening, Reason.not_finite
        if not is_period(period_s):
            return self.opening, Reason.period
        wanted, reasons = self._inside(asked), Reason.none
        if wanted != asked:
            reasons |= Reason.range
        most = self._velocity * period_s
        if abs(wanted - self.opening) > most:
            reasons |= Reason.gripper
            wanted = self._inside(self.opening + math.copysign(most, wanted - self.opening))
        self.opening = wanted
        return wanted, reasons

    def _inside(self, opening: float) -> float:
        return min(max(opening, self._low), self._high)
