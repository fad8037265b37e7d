"""What a robot was really sent in one step, in the numbers of an action: what episodes keep in place of what was asked.

The safety layer may shorten, delay or refuse a motion. An element that says the same as the one that was asked is kept bit for
bit; the others are written anew from the goals that were sent (robot_rl/teleop/action_writing.py).
"""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.rotation_motion import from_vector, multiply
from robot_rl.specs import DeltaReference, EnvSpec
from robot_rl.teleop.action_writing import ActionWriter
from robot_rl.types import Goal, Reading

_SAME = 1e-5  # numbers of an action: rounding of float32 and of rotations


class ExecutedAction:
    """Follows the commands of one step.

    Args:
        spec: of the actions.
        card: of the robot.

    Raises:
        DeployError: an action that can't be read, or that can't be written back.
    """

    def __init__(self, spec: EnvSpec, card: RobotCard) -> None:
        self._layout = ActionLayout(spec, card)
        self._writer, self._card = ActionWriter(self._layout), card
        self._start = self._place = np.zeros(0)

    def begin(self, reading: Reading, sent: Goal | None) -> None:
        """A step begins.

        Args:
            reading: that its action is read with.
            sent: what the robot was sent before; None: nothing in this episode.
        """
        is_measured = self._layout.meaning.delta_reference is DeltaReference.measured or self._layout.is_twist
        if self._layout.is_joint:
            before = None if sent is None else sent.position
            start = reading.position if is_measured or before is None else before
        else:
            before = None if sent is None else sent.pose
            start = reading.pose if is_measured or before is None else before
        self._start = self._place = np.full(7, np.nan) if start is None else np.asarray(start, np.float64)
        self._gripper: float | None = None

    def add(self, sent: Goal, period_s: float) -> None:
        """One command of this step went out, for `period_s`."""
        if sent.twist is not None:
            step = sent.twist * period_s
            turned = multiply(from_vector(step[3:]), self._place[3:])
            self._place = np.concatenate([self._place[:3] + step[:3], turned])
        else:
            place = sent.position if self._layout.is_joint else sent.pose
            self._place = self._place if place is None else np.asarray(place, np.float64)
        self._gripper = sent.gripper

    def action(self, asked: Float32[Array, " A"]) -> Float32[Array, " A"]:
        """The step as an action within its bounds, float32 (A,)."""
        if not (np.isfinite(self._start).all() and np.isfinite(self._place).all()):
            return asked.copy()
        write = self._writer.joints if self._layout.is_joint else self._writer.pose
        values = write(self._place, self._start)
        numbers, _ = self._writer.numbers(values, self._opening(asked))
        return np.where(np.abs(numbers - asked) <= _SAME, asked, numbers).astype(np.float32)

    def _opening(self, asked: np.ndarray) -> float:
        """0 closed to 1 open, as sent; as asked where the robot says nothing of a gripper."""
        gripper = self._card.gripper
        if gripper is not None and self._gripper is not None:
            return float((self._gripper - gripper.closed) / (gripper.open - gripper.closed))
        if self._layout.gripper is None:
            return 0.0
        closed, opened = self._layout.ends
        return float((asked[self._layout.gripper] - closed) / (opened - closed))
