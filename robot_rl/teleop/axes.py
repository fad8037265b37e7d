"""A device's axes as the robot's: which drives which, in which sense, turned how, and which are locked."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import ConfigError, closest

AXES = ("x", "y", "z", "roll", "pitch", "yaw")


class DeviceAxes:
    """See the text of this module.

    Args:
        axes: for x, y, z, roll, pitch, yaw of the robot, the device's axis that drives it: "x", "-y" for the other sense, or
            "" for none.
        rotation: 3 rows of 3; turns vectors of the device's frame into the robot's, after `axes`; None: as they are.
        locked: axes of the robot that do not move.

    Raises:
        ConfigError: an axis that there is not, the wrong number of them, or a matrix that is no rotation.
    """

    def __init__(
        self, axes: tuple[str, ...] = AXES, rotation: tuple[tuple[float, ...], ...] | None = None,
        locked: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        if len(axes) != len(AXES):
            raise ConfigError(
                "axes", expected=f"one for each of {AXES}", got=str(list(axes)), hint='"" drives nothing.'
            )
        self._choice = np.zeros((6, 6))
        for index, name in enumerate(axes):
            if name:
                _known(name.removeprefix("-"), "axes")
                self._choice[index, AXES.index(name.removeprefix("-"))] = -1.0 if name[0] == "-" else 1.0
        self._turn = np.eye(3) if rotation is None else np.array(rotation, np.float64)
        is_square = self._turn.shape == (3, 3)
        if (
            not is_square
            or not np.allclose(self._turn @ self._turn.T, np.eye(3), atol=1e-6)
            or np.linalg.det(self._turn) < 0
        ):
            raise ConfigError(
                "rotation", expected="a 3 x 3 rotation matrix, determinant 1", got=str(rotation),
                hint="Rows are the robot's axes in the device's frame. A mirror image is no rotation.",
            )  # fmt: skip
        for name in locked:
            _known(name, "locked")
        self._free = np.array([name not in locked for name in AXES], np.float64)

    @property
    def is_rigid(self) -> bool:
        """Whether a rotation of the device is the same rotation of the robot: no mirror image, nothing left out."""
        along, about = self._choice[:3, :3], self._choice[3:, 3:]
        return bool((along == about).all() and round(float(np.linalg.det(along))) == 1)

    def motion(self, motion: Array) -> Float64[Array, "6"]:
        """Motion along and about the device's axes (6,) along and about the robot's."""
        chosen = self._choice @ np.asarray(motion, np.float64)
        return np.concatenate([self._turn @ chosen[:3], self._turn @ chosen[3:]]) * self._free


def _known(name: str, where: str) -> None:
    if name not in AXES:
        raise ConfigError(where, expected="an axis", got=repr(name), hint=closest(name, AXES))
