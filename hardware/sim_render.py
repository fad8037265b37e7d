"""The simulator's own picture of a simulated robot, for people, from a process of its own (sim_render_process.py).

The control loop hands over where everything is, not faster than asked for, and takes what picture there is: a few tens of
microseconds and a copy of a picture. The renderer draws the newest placement and skips the others; it may be slow, starve or
crash, and the loop goes on. It runs only while somebody looks on.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import Child
from robot_rl.errors import ConfigError, RobotRlError

from .camera_ring import SharedRing

PLACEMENT_BYTES = 1 << 16
SLOTS = 3
_MODULE = "robot_rl.hardware.sim_render_process"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RenderedViewConfig:
    """Of a RenderedView.

    Attributes:
        hz: most pictures a second.
        width, height: pixels.
        eye_m, target_m: where the camera is and what it looks at, robot's base frame; as the drawn view looks, from behind.
        is_idle: draw only in time that no other process wants (SCHED_IDLE). False: as any process, also where all cores are
            busy; it then takes time from the control loop.
    """

    hz: float = 10.0
    width: int = 512
    height: int = 384
    eye_m: tuple[float, float, float] = (-0.4, 0.6, 0.6)
    target_m: tuple[float, float, float] = (0.6, 0.0, 0.15)
    is_idle: bool = True

    def __post_init__(self) -> None:
        for key, low, high in (("hz", 0.1, 60), ("width", 32, 2048), ("height", 32, 2048)):
            if not low <= getattr(self, key) <= high:
                got = repr(getattr(self, key))
                raise ConfigError(
                    f"driver.view.{key}", expected=f"{low:g} to {high:g}", got=got, hint="driver.view=null: none."
                )
        across_m = math.dist(self.eye_m[:2], self.target_m[:2])
        if not 1e-6 < across_m < math.inf:
            raise ConfigError(
                "driver.view.eye_m", expected="not straight above or below target_m, for a picture with its top up",
                got=f"{self.eye_m} for a target at {self.target_m}", hint="Move it a little aside, e.g. by 0.01 m.",
            )  # fmt: skip


class RenderedView:
    """See the text of this module.

    Args:
        config: see RenderedViewConfig.
        robot: a sim_robot.SimRobot.
    """

    def __init__(self, config: RenderedViewConfig, *, robot: Any) -> None:
        self.config, self._robot = config, robot
        self._child: Child | None = None
        self._has_failed = False
        self._due_s = float("-inf")
        self._picture: np.ndarray | None = None
        self._stamp_s, self._seen = float("nan"), 0

    def shown(self, now_s: float, *, is_watched: bool) -> dict[str, Any]:
        """Hand over what the scene is like and take what was drawn; never waits, raises nothing.

        Args:
            now_s: CLOCK_MONOTONIC seconds.
            is_watched: whether anybody looks on; if not, nothing more is drawn.

        Returns:
            "pictures", {"render": uint8 (H, W, 3)}, and "ages_ms", {"render": of what it shows}; nothing before the first.
        """
        if not is_watched or self._has_failed:
            return {}
        if self._child is None:
            try:
                self._start()
            except (OSError, ValueError, RobotRlError) as error:  # no memory, no process, or a scene that is none
                self._fail(str(error))
                return {}
        elif not self._hear(self._child):
            return {}
        if now_s >= self._due_s:
            self._due_s = now_s + 1 / self.config.hz
            seed, stamp_s, placement = self._robot.still()
            self._placements.write(np.concatenate([[float(seed)], placement]), stamp_s=stamp_s)
        entry = self._pictures.read(after=self._seen)
        if entry is not None:
            self._seen, self._stamp_s = entry.sequence, entry.stamp_s
            self._picture = np.frombuffer(entry.payload, np.uint8).reshape(self.config.height, self.config.width, 3)
        if self._picture is None:
            return {}
        return {"pictures": {"render": self._picture}, "ages_ms": {"render": 1e3 * (now_s - self._stamp_s)}}

    def close(self) -> None:
        """End the renderer; also twice."""
        child, self._child, self._picture = self._child, None, None
        if child is not None:
            child.close(grace_s=0.2)  # it may be in the middle of a picture, and has nothing to save

    def _start(self) -> None:
        config, sizes = self.config, {"placements": PLACEMENT_BYTES, "pictures": picture_bytes(self.config)}
        fds = {
            name: SharedRing.create_memory(f"render-{name}", slots=SLOTS, payload_bytes=size)
            for name, size in sizes.items()
        }
        try:
            rings = {name: SharedRing(fds[name], slots=SLOTS, payload_bytes=size) for name, size in sizes.items()}
            self._placements, self._pictures, self._seen = rings["placements"], rings["pictures"], 0
            told = {
                "view": asdict(config), "env": self._robot.config.env, "options": dict(self._robot.config.options),
                "rings": fds,
            }  # fmt: skip
            self._child = Child(_MODULE, told, fds=tuple(fds.values()))
        finally:
            for fd in fds.values():
                os.close(fd)

    def _hear(self, child: Child) -> bool:
        """Whether it still draws; says once why not."""
        message = child.receive()
        if message is None and child.exit_code is None:
            return True
        why = "" if message is None else json.loads(message)["failure"]
        self._fail(why or f"its process ended with {child.exit_code}")
        child.hang_up()  # `close` waits for its end: nobody may, in the turn of a control loop
        return False

    def _fail(self, why: str) -> None:
        _log.warning("no rendered view: %s; the drawn one stays", why)
        self._has_failed, self._picture = True, None


def picture_bytes(config: RenderedViewConfig) -> int:
    """Of one picture."""
    return config.width * config.height * 3
