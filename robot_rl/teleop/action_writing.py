"""Where the arm shall go as the numbers of an action: the inverse of deploy/targets.ActionReader. Needs scipy for rotations."""

from __future__ import annotations

import math

import numpy as np

from robot_rl.arrays import Array, Float32, Float64
from robot_rl.data.rotations import convert_rotations
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.deploy.rotation_motion import multiply
from robot_rl.deploy.targets import turned
from robot_rl.specs import ActionKind

_CONJUGATE = np.array([1.0, -1.0, -1.0, -1.0])
# Rounding to float32 must not put a vector of the longest length above it.
_BELOW = 1 - 1e-6


class ActionWriter:
    """Writes actions of one declaration for one robot.

    Args:
        layout: how the numbers are read.

    Raises:
        DeployError: standing still can't be said, or a rotation can't be written.
    """

    def __init__(self, layout: ActionLayout) -> None:
        self._layout, self._is_absolute = layout, layout.meaning.kind is ActionKind.absolute
        rotation = layout.meaning.rotation
        if self._is_absolute and rotation.startswith("euler"):
            raise layout.refused("rotation", "rotvec, rot6d, matrix or a quaternion to write poses", repr(rotation))
        still = -layout.offset / layout.scale
        arm = layout.arm
        if not self._is_absolute and ((still < layout.low) | (still > layout.high))[arm].any():
            raise layout.refused("bounds", "numbers that say: stand still", f"{still[arm].tolist()} out of bounds")
        self._still = still
        # What is shortened as one keeps its direction.
        self._groups = [arm] if layout.is_joint else [group for group in (arm[:3], arm[3:]) if group]

    def joints(self, goal: Float64[Array, " J"], start: Float64[Array, " J"]) -> Float64[Array, " J"]:
        """Values (SI) that take the joints from `start`, which the reader adds to, to `goal`, in the card's order."""
        if self._is_absolute:
            return goal
        return (goal - start) / (self._layout.period_s if self._layout.meaning.kind is ActionKind.velocity else 1.0)

    def pose(self, goal: Float64[Array, "7"], start: Float64[Array, "7"]) -> Float64[Array, " V"]:
        """Values (SI) that take the tool from `start`, which the reader adds to, to `goal`; m and quaternion wxyz.

        What the declaration has no numbers for (the rotation) is left out.
        """
        meaning = self._layout.meaning
        way, turn = goal[:3], goal[3:]
        if not self._is_absolute:
            way, back = goal[:3] - start[:3], start[3:] * _CONJUGATE
            if meaning.frame == "tool":
                way, turn = turned(way, back), multiply(back, goal[3:])
            else:
                turn = multiply(goal[3:], back)
        values = np.concatenate([way, self._rotation(turn)])
        return values / self._layout.period_s if meaning.kind is ActionKind.velocity else values

    def numbers(self, values: Float64[Array, " V"], opening: float) -> tuple[Float32[Array, " A"], bool]:
        """Values as an action within its bounds.

        Args:
            values: of the arm, SI, in the order of the layout.
            opening: of the gripper, 0 closed to 1 open.

        Returns:
            The action, and whether the arm gets less than was asked.
        """
        numbers = self.unbounded(values, opening)
        bounded = numbers.copy()
        if not self._is_absolute:
            for group in self._groups:
                bounded[group] = self._shortened(bounded[group], group)
        for group, most in self._layout.norms:
            length = math.hypot(*bounded[group].tolist())
            bounded[group] *= most * _BELOW / length if length > most * _BELOW else 1.0
        bounded = np.clip(bounded, self._layout.low, self._layout.high)
        arm = self._layout.arm
        return self._rounded(bounded), bool((np.abs(bounded - numbers)[arm] > 1e-6).any())

    def unbounded(self, values: Float64[Array, " V"], opening: float) -> Float64[Array, " A"]:
        """Values as numbers, whatever the bounds."""
        layout = self._layout
        numbers, arm = np.zeros(layout.size), layout.arm
        numbers[arm] = (values - layout.offset[arm]) / layout.scale[arm]
        if layout.gripper is not None:
            closed, opened = layout.ends
            numbers[layout.gripper] = closed + opening * (opened - closed)
        return numbers

    def _rotation(self, quaternion: np.ndarray) -> np.ndarray:
        from scipy.spatial.transform import Rotation

        name = self._layout.meaning.rotation
        if name == "none":
            return np.zeros(0)
        if name.startswith("euler_"):
            angles: np.ndarray = Rotation.from_quat(np.roll(quaternion, -1)).as_euler(name.removeprefix("euler_"))
            return angles
        written: np.ndarray = convert_rotations(quaternion[None], "quat_wxyz", name, where="action")[0]
        return written

    def _shortened(self, numbers: np.ndarray, group: list[int]) -> np.ndarray:
        """The same direction, as far as the bounds allow."""
        still, way = self._still[group], numbers - self._still[group]
        room = np.where(way > 0, self._layout.high[group] - still, still - self._layout.low[group])
        need = np.abs(way)
        share = np.divide(room, need, out=np.ones_like(room), where=need > room)
        shortened: np.ndarray = still + way * float(share.min(initial=1.0))
        return shortened

    def _rounded(self, numbers: np.ndarray) -> np.ndarray:
        action = numbers.astype(np.float32)
        low, high = np.float32(-np.inf), np.float32(np.inf)
        action = np.where(action > self._layout.high, np.nextafter(action, low), action)
        action = np.where(action < self._layout.low, np.nextafter(action, high), action)
        rounded: np.ndarray = action.astype(np.float32)
        return rounded
