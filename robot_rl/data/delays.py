"""Delays of a robot and its cameras: the file of `robot-rl calibrate latency`, and the same in an episode's metadata.

They lie beside the stamps of each step (recorded_columns.py), under the key "delays" of an episode: another session of the
same dataset may have been recorded with another camera or another driver.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robot_rl.arrays import Array
from robot_rl.errors import DataError, closest

FORMAT, VERSION = "robot_rl.delays", 1
KEY = "delays"


@dataclass(frozen=True)
class RobotDelays:
    """How an arm follows its commands, as a delayed first-order lag: T x'(t) = u(t - d) - x(t).

    Attributes:
        card: name of the robot card.
        command_delay_s: d, from sending a command to the first motion, by the stamps of the readings; median of the steps.
        command_delay_spread_s: interquartile range of the steps.
        time_constant_s, time_constant_spread_s: T, likewise.
        reading_age_s: median age of a reading when a command is sent.
        resolution_s: median time between two readings.
        steps: how many were fitted.
        moved: what was stepped and how far, e.g. "joint4 by 0.05 rad".
        method: how it was measured.
        created: ISO 8601, UTC.
    """

    card: str
    command_delay_s: float
    command_delay_spread_s: float
    time_constant_s: float
    time_constant_spread_s: float
    reading_age_s: float
    resolution_s: float
    steps: int
    moved: str
    method: str
    created: str


@dataclass(frozen=True)
class CameraDelays:
    """How far a camera's stamps lag behind what its pictures show: one stamped t shows the world at t - camera_delay_s.

    Attributes:
        camera_delay_s, camera_delay_spread_s: median and interquartile range of the blinks.
        frame_period_s: median time between two frames.
        blinks: changes of light that were used.
        method: how it was measured.
        created: ISO 8601, UTC.
    """

    camera_delay_s: float
    camera_delay_spread_s: float
    frame_period_s: float
    blinks: int
    method: str
    created: str


@dataclass(frozen=True)
class Delays:
    """What was measured: of the robot (None: nothing), and of cameras by name (as in the key image/<camera>)."""

    robot: RobotDelays | None = None
    cameras: Mapping[str, CameraDelays] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def load_delays(path: Path) -> Delays:
    """Read what `robot-rl calibrate latency` wrote.

    Raises:
        DataError: no such file, another format or version, a key missing or unknown, a number that is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path), expected="a JSON file of `robot-rl calibrate latency`", got=str(error),
            hint="Measure first: robot-rl calibrate latency --output delays.json robot=... driver=...",
        ) from error  # fmt: skip
    return delays_from(content, where=str(path))


def load_delays_for(path: Path, *, card: str, cameras: tuple[str, ...]) -> Delays:
    """Read delays that are to be stored with episodes of a robot.

    Args:
        path: the file.
        card: name of the robot's card.
        cameras: names of the cameras that are recorded.

    Raises:
        DataError: as `load_delays`; of another robot, or of a camera that is not recorded.
    """
    found = load_delays(path)
    if found.robot is not None and found.robot.card != card:
        raise DataError(
            f"{path}: robot.card", expected=repr(card), got=repr(found.robot.card), hint="Measure this robot's delays."
        )
    for name in found.cameras:
        if name not in cameras:
            raise DataError(
                f"{path}: cameras", expected="cameras that are recorded", got=repr(name), hint=closest(name, cameras)
            )
    return found


def delays_of(metadata: Mapping[str, Any], *, where: str = "episode") -> Delays | None:
    """Delays in an episode's metadata; None where none were stored.

    Raises:
        DataError: they can't be read.
    """
    content = metadata.get(KEY)
    return None if content is None else delays_from(content, where=f"{where}, metadata {KEY!r}")


def align_columns(columns: Mapping[str, Array], delays: Delays) -> dict[str, Array]:
    """Stamps of an episode's steps as they would be without delays.

    Args:
        columns: of `recorded_columns.unpack_columns`: `capture_s/<stream>` and `command_s`, (T,) s.
        delays: of this episode.

    Returns:
        The columns, with `capture_s/image/<camera>` moved back by that camera's delay, and `works_s` (T,): when each command
        begins to move the arm. What was not measured is not moved.
    """
    out = dict(columns)
    for name, camera in delays.cameras.items():
        key = f"capture_s/image/{name}"
        if key in out:
            out[key] = out[key] - camera.camera_delay_s
    if delays.robot is not None and "command_s" in out:
        out["works_s"] = out["command_s"] + delays.robot.command_delay_s
    return out


def delays_from(content: Any, *, where: str) -> Delays:
    """Delays of their JSON.

    Raises:
        DataError: see `load_delays`.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT or content.get("version") != VERSION:
        got = content.get("format", "no format") if isinstance(content, Mapping) else type(content).__name__
        raise DataError(
            where, expected=f"format {FORMAT!r}, version {VERSION}", got=f"{got!r}",
            hint="Give the file that `robot-rl calibrate latency` wrote.",
        )  # fmt: skip
    robot, cameras = content.get("robot"), content.get("cameras")
    if not isinstance(cameras, Mapping):
        raise DataError(f"{where}: cameras", expected="an object", got=repr(cameras), hint="Measure again.")
    return Delays(
        None if robot is None else _part(RobotDelays, robot, f"{where}: robot"),
        {str(name): _part(CameraDelays, part, f"{where}: cameras.{name}") for name, part in cameras.items()},
    )


def _part(kind: Any, content: Any, where: str) -> Any:
    """One of the two dataclasses, every key of its type, and numbers finite."""
    hints: dict[str, str] = kind.__annotations__
    keys = set(content) if isinstance(content, Mapping) else set()
    if keys != set(hints):
        raise DataError(
            where, expected=f"keys {', '.join(hints)}", got=", ".join(sorted(map(str, keys))) or repr(content),
            hint="Measure again; do not edit.",
        )  # fmt: skip
    for key, hint in hints.items():
        value = content[key]
        if hint == "str":
            is_good = isinstance(value, str)
        else:
            # A camera's stamps may be early, too; everything else lasts or counts.
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            is_good = is_number and (value >= 0 or key == "camera_delay_s")
        if not is_good:
            raise DataError(f"{where}.{key}", expected="seconds" if hint == "float" else hint, got=repr(value), hint="")
    return kind(**content)
