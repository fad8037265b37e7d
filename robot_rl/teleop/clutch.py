"""The deadman: a command moves the robot only while a person holds on to it, and only while it is fresh.

What a device said last is worth nothing when it is old: behind `release_s` motion fades, behind `fault_s` it is a fault.
At the start and after a fault the person must be seen to let go, by a fresh command, before holding on counts again: a key
that lies under a book, or a trigger that sticks, never starts the robot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robot_rl.errors import ConfigError
from robot_rl.teleop.commands import TeleopCommand

# Stamps are of this clock; one that lies further ahead is not, and its age can't be told.
_AHEAD_S = 0.02

State = Literal["open", "engaged", "releasing", "fault"]


@dataclass(frozen=True)
class Engagement:
    """What a clutch lets through.

    Attributes:
        state: "open": nobody holds on, or nobody was seen to let go yet; "engaged"; "releasing": held, but the command
            grows old; "fault": it was held and fell silent.
        share: of the motion that is followed, 0..1; 1 when engaged, falling when releasing, else 0.
    """

    state: State
    share: float


class Clutch:
    """See the text of this module.

    Args:
        release_s: age of a held command from which motion fades.
        fault_s: age of a held command that is a fault.
        ramp_s: how long fading takes; it ends at `fault_s` at the latest.

    Raises:
        ConfigError: times that are not in this order, or not above 0.
    """

    def __init__(self, release_s: float = 0.1, fault_s: float = 0.5, ramp_s: float = 0.1) -> None:
        if not 0 < release_s < fault_s < float("inf") or not 0 < ramp_s < float("inf"):
            raise ConfigError(
                "clutch", expected="0 < release_s < fault_s and 0 < ramp_s, in seconds",
                got=f"{release_s}, {fault_s}, {ramp_s}", hint="Usual are 0.1, 0.5 and 0.1.",
            )  # fmt: skip
        self._release_s, self._fault_s = release_s, fault_s
        self._ramp_s = min(ramp_s, fault_s - release_s)
        self._is_ready, self._is_fault, self._was_engaged = False, False, False

    def judge(self, command: TeleopCommand, now_s: float) -> Engagement:
        """Whether the device's newest command may move the robot.

        Args:
            command: the newest; also the same one again.
            now_s: CLOCK_MONOTONIC seconds.
        """
        age_s = now_s - command.stamp_s if command.sequence > 0 else float("inf")
        is_fresh = -_AHEAD_S <= age_s <= self._release_s
        if not command.engaged:
            # Only a fresh word is believed: a device that is silent may hold anything by now.
            if is_fresh:
                self._is_ready, self._is_fault = True, False
            self._was_engaged = False
        elif not self._is_ready:
            self._was_engaged = False
        elif is_fresh:
            self._was_engaged = True
            return Engagement("engaged", 1.0)
        elif self._was_engaged and 0 <= age_s <= self._fault_s:
            return Engagement("releasing", max(0.0, 1.0 - (age_s - self._release_s) / self._ramp_s))
        elif not 0 <= age_s <= self._fault_s:
            self._is_ready, self._is_fault, self._was_engaged = False, True, False
        return Engagement("fault" if self._is_fault else "open", 0.0)
