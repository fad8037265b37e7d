"""A device's command as an action of the environment, in its own format, so that policies train on what operators record.

Velocities, a tracked hand and a leader arm become a place where the arm shall be one period from now; action_writing.py says
that place in the numbers that the spec declares, as deploy/targets.ActionReader will read them. Hands and leader arms are
followed from where they were engaged, so that nothing jumps. What a device shows and an action can't say is refused when
the mapping is made: there are no kinematics here, a Cartesian command needs a Cartesian action (IK is the environment's
controller's or the robot's own), joints need an action of joints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.deploy.action_layout import ActionLayout
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.rotation_motion import difference
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import DeltaReference, EnvSpec
from robot_rl.teleop.action_writing import ActionWriter
from robot_rl.teleop.cartesian_input import CartesianInput
from robot_rl.teleop.commands import TeleopCommand
from robot_rl.teleop.gripper_input import GripperInput
from robot_rl.teleop.joint_input import JointInput
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.types import Goal, Reading

# Further apart than a controller lags, a place asked for earlier is not where the arm is any more.
_FAR_M, _FAR_RAD = 0.05, 0.25


@dataclass(frozen=True)
class Mapped:
    """What a mapping makes of a command.

    Attributes:
        action: as the environment takes it, float32 (A,), within its bounds.
        raw: what was asked, before smoothing, clamps and bounds, float32 (A,).
        clamped: why the person does not get that, one text each, for the screen: "workspace +x", "speed", "joint elbow",
            or what is wrong with a leader arm.
    """

    action: Float32[Array, " A"]
    raw: Float32[Array, " A"]
    clamped: tuple[str, ...] = ()


class ActionMapping:
    """See the text of this module.

    Args:
        spec: of the actions that are recorded.
        card: of the robot.
        config: see MappingConfig.

    Raises:
        DeployError: an action that can't be read or written, or that can't say what the device shows, with its declaration.
        ConfigError: axes, joints or numbers of `config` that there are not.
    """

    def __init__(self, spec: EnvSpec, card: RobotCard, config: MappingConfig) -> None:
        self._layout = layout = ActionLayout(spec, card)
        self._writer, self._card = ActionWriter(layout), card
        self._gripper = GripperInput(config.gripper, config.gripper_per_s)
        self._check_expressible(config)
        self._input: Any = (JointInput if layout.is_joint else CartesianInput)(layout, config)
        self._target: np.ndarray | None = None
        self._was_engaged = False

    def reset(self, reading: Reading, *, sent: Goal | None = None) -> None:
        """Begin anew where the robot is: a new episode, after a pause, or when another one drove.

        Args:
            reading: newest.
            sent: what the robot was sent last; its gripper is kept, so that a grasp is not loosened.

        Raises:
            DeployError: the reading lacks what the action is told from.
        """
        self._target, self._was_engaged = None, False
        self._target = self._start(reading, sent)
        if self._target is None:
            what = "joints" if self._layout.is_joint else "tool"
            raise DeployError(
                f"robot {self._card.name!r}", expected=f"a finite reading of where its {what} is", got="none",
                hint="Actions are told from there. Does its driver say it (inputs of the card)?",
            )  # fmt: skip
        self._input.rest()
        opening = sent.gripper if sent is not None and sent.gripper is not None else reading.gripper
        gripper = self._card.gripper
        if gripper is not None and opening is not None and math.isfinite(opening):
            self._gripper.reset((opening - gripper.closed) / (gripper.open - gripper.closed))

    def action(
        self, command: TeleopCommand, *, reading: Reading, period_s: float, share: float = 1.0, sent: Goal | None = None
    ) -> Mapped:
        """The action of one step.

        Args:
            command: the device's newest, as the clutch lets it through.
            reading: newest; where it lacks what is needed, the action asks for no motion.
            period_s: of this step.
            share: of the motion that the clutch still lets through, 0..1; a hand or leader arm is followed at 1 only.
            sent: what the robot was sent last, after safety; None: what the last action asked for.

        Raises:
            DeployError: before the first `reset`, as it does.
        """
        if self._target is None:
            self.reset(reading, sent=sent)
        assert self._target is not None
        start, notes = self._start(reading, sent), list[str]()
        is_engaged = command.engaged and share > 0 and start is not None and self._input.is_said(command, share)
        if start is None:
            start, notes = self._target, ["no reading"]
        if is_engaged:
            if not self._was_engaged:
                start = self._rereferenced(start, reading, sent)
                self._input.engage(command, start)
            goal, asked = self._input.goals(command, start, period_s, share=share, notes=notes)
            control = 0.0 if self._input.is_refused else command.gripper * share
            opening = self._gripper.follow(control, None if self._input.is_refused else command.opening, period_s)
        else:
            self._input.rest()
            goal, asked, opening = start, start, self._gripper.hold()
        self._was_engaged, self._target = is_engaged, goal
        return self._mapped(goal, asked, start, opening, notes)

    def _mapped(
        self, goal: np.ndarray, asked: np.ndarray, start: np.ndarray, opening: float, notes: list[str]
    ) -> Mapped:
        write = self._writer.joints if self._layout.is_joint else self._writer.pose
        action, is_short = self._writer.numbers(write(goal, start), opening)
        raw = self._writer.unbounded(write(asked, start), opening).astype(np.float32)
        return Mapped(action, raw, tuple(dict.fromkeys([*notes, "action bounds"] if is_short else notes)))

    @property
    def _is_measured(self) -> bool:
        return self._layout.meaning.delta_reference is DeltaReference.measured or self._layout.is_twist

    def _start(self, reading: Reading, sent: Goal | None) -> np.ndarray | None:
        """What the reader adds a delta to, as far as it is known here, or where the arm was sent last; None: unknown."""
        measured = reading.position if self._layout.is_joint else reading.pose
        last = None if sent is None else (sent.position if self._layout.is_joint else sent.pose)
        place = measured if self._is_measured else (self._target if last is None else last)
        place = measured if place is None else place
        if place is None or not np.isfinite(place).all():
            return None
        return np.asarray(place, np.float64)

    def _rereferenced(self, start: np.ndarray, reading: Reading, sent: Goal | None) -> np.ndarray:
        """Where to begin at an engage: a place that was asked for long ago, far from where the arm is, is not gone to."""
        measured = reading.position if self._layout.is_joint else reading.pose
        if self._is_measured or sent is not None or measured is None or not np.isfinite(measured).all():
            return start
        gap = np.abs(start - measured) if self._layout.is_joint else np.abs(start[:3] - measured[:3])
        angle = 0.0 if self._layout.is_joint else math.hypot(*difference(start[3:], measured[3:]).tolist())
        is_far = bool((gap > (_FAR_RAD if self._layout.is_joint else _FAR_M)).any()) or angle > _FAR_RAD
        return np.asarray(measured, np.float64) if is_far else start

    def _check_expressible(self, config: MappingConfig) -> None:
        layout, is_joint = self._layout, self._layout.is_joint
        if config.input == "joints" and not is_joint:
            raise layout.refused(
                "device",
                "an action of joints for a leader arm (mapping.input joints)",
                f"frame {layout.meaning.frame!r}",
            )
        if config.input == "pose" and is_joint:
            raise layout.refused("device", "a Cartesian action for a tracked hand (mapping.input pose)", "joints")
        if config.input == "motion" and is_joint and not any(config.jog):
            raise layout.refused(
                "device", "a Cartesian action, or mapping.jog to name the joints that axes drive", "neither"
            )
        if any(config.jog) and (config.input != "motion" or not is_joint):
            raise ConfigError(
                "mapping.jog", expected="an action of joints and mapping.input motion", got=str(list(config.jog)),
                hint='Leave it out: "mapping.jog=[]".',
            )  # fmt: skip


def require_same_joints(device: Any, card: RobotCard, config: MappingConfig) -> None:
    """A leader arm's joints are followed by their place, so one that names them must name the card's, in its order.

    Args:
        device: with `joint_names`, or without; then nothing is known.
        card: of the robot.
        config: of the mapping.

    Raises:
        ConfigError: others, or another order.
    """
    names = getattr(device, "joint_names", None)
    if config.input == "joints" and names is not None and tuple(names) != card.joints:
        raise ConfigError(
            f"device {device.name!r}, joints", expected=f"{list(card.joints)} in this order, as robot card {card.name!r} has them",
            got=str(list(names)), hint="Order teleop.joints so, or calibrate for this robot (calibrate_leader --robot).",
        )  # fmt: skip
