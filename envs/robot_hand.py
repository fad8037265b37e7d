"""A person who takes over from the policy that learns, with a teleoperation device: the Intervener of the online stage."""

from __future__ import annotations

import numpy as np

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.deploy.safety import Reason
from robot_rl.teleop.clutch import Clutch
from robot_rl.teleop.mapping import ActionMapping, require_same_joints
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.teleop.pilots import MOVES
from robot_rl.types import Observation

from .robot_play import RobotPlayer


class RobotHand:
    """Who holds the clutch drives; letting go hands back. Mapping and clutch are those of `robot-rl collect teleop=`.

    Args:
        player: of the robot; its people have the device.
        config: of the mapping.

    Raises:
        DeployError, ConfigError: the device's commands can't be said in the robot's actions.
    """

    def __init__(self, player: RobotPlayer, config: MappingConfig) -> None:
        require_same_joints(player.people.device, player.card, config)
        limits = player.card.thresholds
        self._player = player
        self._clutch = Clutch(limits.operator_release_s, limits.operator_fault_s)
        self._mapping = ActionMapping(player.spec, player.card, config)
        self._was_human = False
        self.steps, self.count = 0, 0

    def take_over(
        self, observation: Observation, *, episode_seeds: Int64[Array, " 1"], new_episode: Bool[Array, " 1"]
    ) -> tuple[Bool[Array, " 1"], Float32[Array, "1 A"]]:
        """Whether the person drives the next step, and the action. Never waits.

        `steps` and `count` of take-overs go up with it. A device that falls silent while it drives stops the robot, behind
        thresholds.operator_fault_s.
        """
        player = self._player
        command = player.people.hearing.command()
        engagement = self._clutch.judge(command, player.clock.now())
        if engagement.state == "fault" and self._was_human and not bool(new_episode[0]):
            # As in `collect`: whoever was driving can't let go any more, and the policy is not what they handed over to.
            with player.keeper.busy(then_hold=True):
                player.driver.stop(Reason.emergency, "no command from the operator's device while it drove")
        is_human = engagement.state in MOVES and player.reading is not None and int(episode_seeds[0]) >= 0
        actions = np.zeros((1, player.spec.action.size), np.float32)
        if is_human:
            assert player.reading is not None
            if not self._was_human or bool(new_episode[0]):
                self.count += 1
                self._mapping.reset(player.reading, sent=player.driver.sent)
            mapped = self._mapping.action(
                command, reading=player.reading, period_s=1 / player.spec.control_hz, share=engagement.share,
                sent=player.driver.sent,
            )  # fmt: skip
            actions[0] = mapped.action
            self.steps += 1
        self._was_human = is_human
        return np.array([is_human]), actions
