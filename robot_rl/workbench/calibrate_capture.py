"""Pictures of a board from a live camera for `robot-rl calibrate camera`: taken by themselves when they add something."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import DataError
from robot_rl.workbench.calibrate_board import BoardSpec, Sight, find_board
from robot_rl.workbench.calibrate_camera import cell_counts, empty_places

STEADY_PX = 1.0
MOVED_PART = 0.06
WAIT_S = 0.01


@dataclass(frozen=True)
class LiveConfig:
    """What `robot-rl calibrate camera camera=...` is given.

    Attributes:
        camera: component of the camera.
    """

    camera: dict[str, Any]


def open_camera(words: Sequence[str], *, config_dir: Path | None) -> Any:
    """The camera of `camera=<choice> camera.key=value` words, not yet connected.

    Raises:
        ConfigError: wrong words, or a missing package.
    """
    from robot_rl.runs.config import build, load_config

    return build(load_config(LiveConfig, list(words), name="calibrate", config_dir=config_dir).camera)


def capture(
    camera: Any, folder: Path, spec: BoardSpec, *, number: int, timeout_s: float, say: Callable[[str], None]
) -> None:
    """Fill an empty folder with pictures in which the board is still and somewhere new.

    Args:
        camera: connected (contract Camera).
        folder: of the pictures, made when missing.
        spec: the board.
        number: of pictures.
        timeout_s: after which it gives up.
        say: told of each picture, and of places where the board was not seen yet.

    Raises:
        DataError: the folder is not empty, or too few pictures came in time.
        CameraError: the camera failed.
    """
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(
            str(folder), expected="an empty folder for new pictures", got="files in it",
            hint="Name another folder, or leave camera=... out to calibrate from these.",
        )  # fmt: skip
    taken: list[Sight] = []
    before: Sight | None = None
    last, until = 0, time.monotonic() + timeout_s
    while len(taken) < number:
        if time.monotonic() > until:
            raise DataError(
                str(folder), expected=f"{number} pictures within {timeout_s:g} s", got=f"{len(taken)}",
                hint="Hold the board still, in places and turns that were not there yet.",
            )  # fmt: skip
        frame = camera.read()
        if frame.sequence == last:
            time.sleep(WAIT_S)
            continue
        last = frame.sequence
        sight = find_board(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), spec, name=f"{len(taken):03}.png")
        size = (frame.image.shape[1], frame.image.shape[0])
        is_steady = before is not None and _apart(sight, before) < STEADY_PX
        if sight.is_usable() and is_steady and all(_apart(sight, old) > MOVED_PART * size[0] for old in taken):
            cv2.imwrite(str(folder / sight.name), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
            taken.append(sight)
            places = empty_places(cell_counts(taken, size=size))
            say(f"{len(taken)}/{number} {sight.name}: {len(sight.ids)} corners; not seen yet: {places or 'nowhere'}")
        before = sight if sight.is_usable() else None


def _apart(one: Sight, other: Sight) -> float:
    """Mean distance of the corners that both have, pixels; infinite without any."""
    places: Mapping[int, np.ndarray] = dict(zip(other.ids.tolist(), other.corners, strict=True))
    shared = [(corner, places[key]) for key, corner in zip(one.ids.tolist(), one.corners, strict=True) if key in places]
    if not shared:
        return float("inf")
    return float(np.mean([np.linalg.norm(here - there) for here, there in shared]))
