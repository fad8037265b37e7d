"""What people may ask of a robot that plays by itself, and what they are shown: a prompt, a label, a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robot_rl.contracts import TeleopDevice
from robot_rl.teleop.commands import DeviceStatus, TeleopCommand
from robot_rl.teleop.hearing import Hearing
from robot_rl.teleop.panel import OperatorPanel, SessionView

ALLOWED = {
    "ready": ("start", "estop", "quit"),
    "recording": ("success", "failure", "stop", "pause", "estop", "quit"),
    "paused": ("resume", "stop", "estop", "quit"),
    "fault": ("release", "quit"),
}


class _NoDevice:
    """Nobody's hand; nothing is ever engaged."""

    name = "none"

    def connect(self) -> None:
        """Nothing to open."""

    def read(self) -> TeleopCommand:
        """Nothing was said."""
        return TeleopCommand()

    def status(self) -> DeviceStatus:
        """Of nothing."""
        return DeviceStatus(self.name, is_connected=True)

    def close(self) -> None:
        """Nothing to give back."""


class People:
    """Panels and a device, with what was asked since the last turn.

    Args:
        device: whose buttons ask for events too, or None.
        panels: that show and hear.
    """

    def __init__(self, device: TeleopDevice | None, panels: Sequence[OperatorPanel]) -> None:
        self.device: TeleopDevice = _NoDevice() if device is None else device
        self.hearing = Hearing(self.device, panels)
        self.is_there = device is not None or bool(panels)
        self.command = TeleopCommand()
        self._told: tuple[str, str] = ("", "")

    def hear(self, now_s: float) -> list[str]:
        """Names of events since the last call; reads the device.

        Raises:
            KeyboardInterrupt: somebody quits; who closes the env brings the robot to rest.
        """
        self.command = self.hearing.command()
        names = [event.name for event in self.hearing.events(now_s)]
        if "quit" in names:
            raise KeyboardInterrupt
        return names

    def show(self, state: str, message: str, **more: Any) -> None:
        """A view for every panel; `more`: fields of SessionView."""
        episode = {"steps": 0, "seconds": 0.0, "source": "policy", "label": "", "problems": ()} | more.pop(
            "episode", {}
        )
        totals = {"saved": 0, "wanted": 0} | more.pop("totals", {})
        loop = {"achieved_hz": 0.0} | more.pop("loop", {})
        self.hearing.show(
            SessionView(
                state, ALLOWED.get(state, ()), message, episode=episode, totals=totals, loop=loop,
                device=self.hearing.status(), **more,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Panels down, the device given back."""
        self.hearing.close()
        self.device.close()
