"""What people ask for, from panels and from buttons of the device, and the device's newest command. Nothing here raises."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from robot_rl.contracts import TeleopDevice
from robot_rl.teleop.commands import EVENT, TeleopCommand
from robot_rl.teleop.panel import EDITS, EVENTS, OperatorPanel, PanelEvent, SessionView

log = logging.getLogger(__name__)

_LEFT_OUT = "panel %s fails and is left out from now on"


class Hearing:
    """The people's side of a session.

    Args:
        device: connected and closed by the caller.
        panels: that show the session; one that fails is left out from then on.
    """

    def __init__(self, device: TeleopDevice, panels: Sequence[OperatorPanel]) -> None:
        self._device, self.panels = device, list(panels)
        self._command, self._buttons = TeleopCommand(), frozenset[str]()
        self._pressed: list[PanelEvent] = []
        self.problem = ""

    def command(self) -> TeleopCommand:
        """The device's newest command; when reading fails, the one before, which grows older."""
        try:
            self._command = self._device.read()
            self.problem = ""
        except Exception as error:  # a device is somebody's own code; whatever it does, the robot must come to rest
            if not self.problem:
                log.exception("device %s can't be read", self._device.name)
            self.problem = f"{type(error).__name__}: {error}"
        # Here and not in `events`: between two calls of that the device may be read more than once.
        for button in sorted(self._command.buttons - self._buttons):
            if button.startswith(EVENT):
                stamp_s = self._command.stamp_s
                self._pressed.append(PanelEvent(button.removeprefix(EVENT), stamp_s=stamp_s, by=self._device.name))
        self._buttons = self._command.buttons
        return self._command

    def events(self, now_s: float) -> list[PanelEvent]:
        """Everything asked for since the last call; a stamp of the future, or none, is now."""
        found, self._pressed = self._pressed, []
        for panel in list(self.panels):
            try:
                found += panel.events()
            except Exception:
                log.exception(_LEFT_OUT, type(panel).__name__)
                self.panels.remove(panel)
        return [_stamped(event, now_s) for event in found if _is_known(event)]

    def show(self, view: SessionView) -> None:
        """Hand a view to every panel."""
        for panel in list(self.panels):
            try:
                panel.publish(view)
            except Exception:
                log.exception(_LEFT_OUT, type(panel).__name__)
                self.panels.remove(panel)

    def status(self) -> dict[str, Any]:
        """Of the device, for the screen."""
        try:
            status = asdict(self._device.status())
        except Exception as error:
            status = {"name": "device", "problems": (f"{type(error).__name__}: {error}",)}
        if self.problem:
            status["problems"] = (*status.get("problems", ()), self.problem)
        return status

    def close(self) -> None:
        """Take all panels down."""
        for panel in self.panels:
            try:
                panel.close()
            except Exception:
                log.exception("a panel can't be closed")
        self.panels = []


def _is_known(event: PanelEvent) -> bool:
    is_known = event.name in EVENTS or event.name in EDITS
    if not is_known:
        log.warning("%s asks for %r, which there is not", event.by or "a panel", event.name)
    return is_known


def _stamped(event: PanelEvent, now_s: float) -> PanelEvent:
    is_good = math.isfinite(event.stamp_s) and 0 < event.stamp_s <= now_s
    return event if is_good else replace(event, stamp_s=now_s)
