"""Everything that stands around one robot and one policy, put up in the right order and taken down in the reverse one.

Up: black box, policy (loaded, warm), robot (connected, nothing moves), watchdog (its own connection), then the loop may run.
Down: the loop holds the robot, then watchdog and black box end. The bridge of ROS 2 and `robot-rl deploy` both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from robot_rl.contracts import Robot
from robot_rl.deploy.black_box import BlackBox, BlackBoxConfig, StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.targets import ActionReader
from robot_rl.deploy.watchdog import Watchdog, WatchdogConfig
from robot_rl.specs import EnvSpec


@dataclass(frozen=True)
class StationConfig:
    """What is put up.

    Attributes:
        policy: see PolicySource.
        log_folder: of the black box; "" for none.
        log_s: seconds of the past that it keeps.
        watchdog: "package.module:function" that opens the watchdog's own connection; "" for none.
        watchdog_config: JSON types, for it.
        loop: see LoopConfig.
        delta_gain: see ActionReader.
    """

    policy: PolicySource
    log_folder: str = "black_box"
    log_s: float = 10.0
    watchdog: str = ""
    watchdog_config: Mapping[str, Any] = field(default_factory=dict)
    loop: LoopConfig = field(default_factory=LoopConfig)
    delta_gain: float = 1.0


class Station:
    """One robot, one policy, and what looks after them. When making one fails, everything is taken down again.

    Args:
        robot: not connected yet.
        spec: of the policy.
        config: see StationConfig.
        observer: see LoopParts.
        policy: that of the config where it was started already; closed here.

    Raises:
        RobotRlError: any part does not come up; the robot has not moved.
    """

    def __init__(
        self, robot: Robot, spec: EnvSpec, config: StationConfig, *,
        observer: Callable[[StepRecord], None] | None = None, policy: ProcessPolicy | None = None,
    ) -> None:  # fmt: skip
        self._robot, self._spec, self._config = robot, spec, config
        self._policy = ProcessPolicy(config.policy) if policy is None else policy
        self._parts: list[Any] = [self._policy]
        self.watchdog: Watchdog | None = None
        try:
            self.loop = self._looped(observer)
            self._parts.append(self.loop)
            self.loop.bring_up()
        except BaseException:
            self.close()
            raise

    def _looped(self, observer: Callable[[StepRecord], None] | None) -> ControlLoop:
        config, card, spec = self._config, self._robot.card, self._spec
        targets = ActionReader(spec, card, delta_gain=config.delta_gain)  # refuses what this robot can't be told
        box = None
        if config.log_folder:
            box = BlackBox(BlackBoxConfig(config.log_folder, config.log_s), card, action_size=spec.action.size)
            self._parts.append(box)
        if config.watchdog:
            heartbeat_s = card.thresholds.heartbeat_s
            self.watchdog = Watchdog(WatchdogConfig(config.watchdog, config.watchdog_config, heartbeat_s))
            self._parts.append(self.watchdog)
        parts = LoopParts(heart=self.watchdog, black_box=box, observer=observer)
        return ControlLoop(self._robot, self._policy, targets, config=config.loop, parts=parts)

    def close(self) -> None:
        """Hold the robot, then end everything. Also twice."""
        while self._parts:
            self._parts.pop().close()
