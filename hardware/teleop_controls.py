"""What keys, buttons and sticks mean, from a configuration: control -> meaning.

+x -x ... +yaw -yaw     motion along or about a robot's axis: x forward, y left, z up, roll, pitch, yaw
open  close             the gripper
clutch                  held: engaged. Where no control means this, whatever moves engages
event:<name>            asks for an event of the session (robot_rl.teleop.panel.EVENTS), once a press
button:<name>           a button of your own
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.errors import ConfigError, closest
from robot_rl.teleop.axes import AXES
from robot_rl.teleop.commands import EVENT
from robot_rl.teleop.panel import EVENTS

BUTTON = "button:"
PLAIN = ("open", "close", "clutch")
_PRESSED = 0.5


@dataclass(frozen=True)
class Said:
    """What the controls say together; see TeleopCommand."""

    engaged: bool
    motion: Float32[Array, "6"]
    gripper: float
    buttons: frozenset[str]


class Controls:
    """See the text of this module.

    Args:
        meanings: control -> meaning.
        where: for errors.
        known: controls that the device can have; None: any.

    Raises:
        ConfigError: a control or a meaning that there is not.
    """

    def __init__(self, meanings: Mapping[str, str], *, where: str, known: Collection[str] | None = None) -> None:
        for control, meaning in meanings.items():
            if known is not None and control not in known:
                raise ConfigError(where, expected="a control", got=repr(control), hint=closest(control, known))
            _check_meaning(meaning, f"{where}, {control!r}")
        self.meanings = {control: meaning for control, meaning in meanings.items() if meaning}
        self._has_clutch = "clutch" in self.meanings.values()

    def is_analog(self, control: str) -> bool:
        """Whether it drives an axis, in both senses."""
        return self.meanings.get(control, "")[:1] in ("+", "-")

    def said(self, values: Mapping[str, float]) -> Said:
        """What these controls say.

        Args:
            values: control -> 1 for a button held, -1..1 for a stick, 0..1 for a trigger; what is left out is at rest.
        """
        motion, gripper, is_clutch, buttons = np.zeros(6), 0.0, False, set[str]()
        for control, value in values.items():
            meaning = self.meanings.get(control, "")
            if not meaning:
                continue
            if meaning[0] in "+-":
                motion[AXES.index(meaning[1:])] += value if meaning[0] == "+" else -value
            elif meaning in ("open", "close"):
                gripper += value if meaning == "open" else -value
            elif value > _PRESSED and meaning == "clutch":
                is_clutch = True
            elif value > _PRESSED:
                buttons.add(meaning if meaning.startswith(EVENT) else meaning.removeprefix(BUTTON))
        motion, gripper = np.clip(motion, -1.0, 1.0), min(max(gripper, -1.0), 1.0)
        engaged = is_clutch if self._has_clutch else bool(motion.any() or gripper)
        # The screen must not show motion that does not come.
        return Said(engaged, (motion * engaged).astype(np.float32), gripper * engaged, frozenset(buttons))


def _check_meaning(meaning: str, where: str) -> None:
    is_axis = meaning[:1] in ("+", "-") and meaning[1:] in AXES
    is_event = meaning.startswith(EVENT) and meaning.removeprefix(EVENT) in EVENTS
    is_own = meaning.startswith(BUTTON) and meaning != BUTTON
    if meaning and not (is_axis or is_event or is_own or meaning in PLAIN):
        options = [*PLAIN, *(f"{sense}{axis}" for axis in AXES for sense in "+-"), *(EVENT + name for name in EVENTS)]
        raise ConfigError(where, expected="a meaning", got=repr(meaning), hint=closest(meaning, options))
