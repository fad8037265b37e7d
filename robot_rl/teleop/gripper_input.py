"""What a person does with the gripper's control as an opening, 0 closed to 1 open."""

from __future__ import annotations

import math

from robot_rl.errors import ConfigError, closest

MODES = ("rate", "ends", "toggle")


class GripperInput:
    """Holds an opening and changes it.

    Args:
        mode: "rate": moves while the control is held, and follows a device that knows an opening. "ends": one press asks for the
            open or the closed end. "toggle": each press, of whatever sense, asks for the other end. In the last two an end is
            asked for at once and stays asked for when the person lets go, as a grasp must; how fast the gripper goes there
            its card limits. A device that knows an opening chooses an end there.
        rate_per_s: strokes a second, at most, in mode "rate".
        press, release: shares of the control's travel, or of an opening, that mean so; between them nothing changes.

    Raises:
        ConfigError: an unknown mode, or numbers out of their range.
    """

    def __init__(
        self, mode: str = "rate", rate_per_s: float = 2.0, *, press: float = 0.6, release: float = 0.4
    ) -> None:
        if mode not in MODES:
            raise ConfigError("gripper", expected="a mode", got=repr(mode), hint=closest(mode, MODES))
        if not 0 < release < press < 1 or not 0 < rate_per_s < float("inf"):
            raise ConfigError(
                "gripper", expected="0 < release < press < 1, strokes a second above 0",
                got=f"{release:g}, {press:g}, {rate_per_s:g}", hint="Usual are 0.4, 0.6 and 2.",
            )  # fmt: skip
        self._mode, self._rate_per_s, self._press, self._release = mode, rate_per_s, press, release
        self.reset(1.0)

    def reset(self, opening: float) -> None:
        """It is here; a control that is pressed now says nothing until it was let go."""
        self.opening = min(max(opening, 0.0), 1.0)
        self._pressed = math.inf

    def hold(self) -> float:
        """Nobody is engaged: as it is."""
        self._pressed = 0.0
        return self.opening

    def follow(self, control: float, opening: float | None, period_s: float) -> float:
        """The opening behind one period.

        Args:
            control: share of the greatest speed, -1 closing to 1 opening.
            opening: that the device asks for, or None.
            period_s: of actions.
        """
        if self._mode == "rate":
            step = self._rate_per_s * period_s
            wanted = self.opening + control * step if opening is None else opening
            wanted = min(max(wanted, self.opening - step), self.opening + step)
        else:
            wanted = self._of_press(control) if opening is None else self._of_opening(opening)
        self.opening = min(max(wanted, 0.0), 1.0)
        return self.opening

    def _of_opening(self, opening: float) -> float:
        if self._release < opening < self._press:
            return self.opening
        return 1.0 if opening >= self._press else 0.0

    def _of_press(self, control: float) -> float:
        if abs(control) <= self._release:
            self._pressed = 0.0
        sense = math.copysign(1.0, control)
        if abs(control) < self._press or self._pressed in (sense, math.inf):
            return self.opening
        self._pressed = sense
        if self._mode == "toggle":
            return 0.0 if self.opening > 0.5 else 1.0
        return 1.0 if control > 0 else 0.0
