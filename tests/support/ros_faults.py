"""A control loop on Ros2Robot and FakeArm that notes every step, for tests that break something while it runs.

As a program it runs one episode while its network link is cut and mended again, and prints what happened as JSON; the test
starts it inside a network namespace.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from robot_rl.deploy.black_box import BlackBox, StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import SameThreadPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.deploy.targets import ActionReader
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

OBSERVATION_S, PERIOD_S = 0.5, 0.05
STEPS, FAULT_STEP = 70, 15
MENDED_AFTER_S = 1.2


def fault_card() -> RobotCard:
    """The simulated Panda with limits that FakeArm's joints are inside of; 500 ms instead of 200 ms for a busy machine."""
    card = load_robot_card("sim_panda_joints")
    count = len(card.joints)
    limits = JointLimits(card.joints, *((value,) * count for value in (-3.0, 3.0, 2.0, 20.0, 500.0)))
    return replace(card, limits=limits, thresholds=Thresholds(observation_s=OBSERVATION_S, connect_s=20.0))


class RampPolicy:
    """Asks the first joint for 0.1 rad + 0.1 rad/s * time of the episode, and the others to stay where FakeArm is."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.config = SimpleNamespace(observation_keys=("proprio",), history=1, horizon=4, execute=2)
        self.calls = 0

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        self.calls += 1
        actions = np.tile(np.float32([*(0.1 * np.arange(1, 8)), 0.02]), (4, 1))
        actions[:, 0] += 0.1 * PERIOD_S * (2 * self.calls + np.arange(4))
        return ActionChunk(actions=actions[None], execute=2)

    def noise(self) -> NoiseSource:
        return NoiseSource(NoiseRule.fixed, 0, (0, 4, 8))

    def reset(self, mask: np.ndarray) -> None:
        """Keeps nothing."""


class FaultLoop:
    """One loop; `run` plays one episode and calls `fault` at step FAULT_STEP, whose time is `fault_s`."""

    def __init__(self, domain: int, *, box: Callable[[RobotCard], BlackBox] | None = None) -> None:
        card = fault_card()
        self.robot = Ros2Robot(Ros2RobotConfig(domain_id=domain, inputs=("joints",)), card=card)
        self.policy, clock = RampPolicy(self.robot.spec), MonotonicClock()
        self.steps: list[dict[str, Any]] = []
        self.fault: Callable[[], None] = lambda: None
        self.fault_s = np.nan
        self.box = None if box is None else box(card)
        quiet = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)
        self.loop = ControlLoop(
            self.robot, SameThreadPolicy(self.policy, clock=clock), ActionReader(self.policy.spec, card),
            config=LoopConfig(realtime=quiet),
            parts=LoopParts(observer=self._note, clock=clock, black_box=self.box),
        )  # fmt: skip
        self.loop.bring_up()

    def _note(self, record: StepRecord) -> None:
        place = None if record.sent.position is None else float(record.sent.position[0])
        self.steps.append(
            {
                "monotonic_s": record.monotonic_s, "reasons": int(record.reasons),
                "has_goal": record.goal is not None, "place": place, "age_s": record.age_s,
            }
        )  # fmt: skip
        if len(self.steps) == FAULT_STEP:
            self.fault_s = time.monotonic()
            self.fault()

    def run(self) -> dict[str, Any]:
        """One episode, as JSON types."""
        summary = self.loop.run_episode(max_steps=STEPS)
        return {
            "fault_s": self.fault_s, "steps": self.steps, "reasons": int(summary.reasons), "ended_by": summary.ended_by,
            "files": list(summary.black_box),
        }  # fmt: skip

    def close(self) -> None:
        """Hold, and end everything."""
        self.loop.close()
        if self.box is not None:
            self.box.close()


def hold_after(told: dict[str, Any], reason: Reason) -> tuple[float, dict[str, Any]]:
    """Seconds from the fault until the first step that holds for a reason, and that step."""
    step = next(step for step in told["steps"] if step["reasons"] & reason)
    assert not step["has_goal"]
    return step["monotonic_s"] - told["fault_s"], step


def _main(domain: int, link: str) -> None:
    loop = FaultLoop(domain)

    def cut() -> None:
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        time.sleep(MENDED_AFTER_S)
        subprocess.run(["ip", "link", "set", link, "up"], check=True)

    loop.fault = threading.Thread(target=cut).start
    try:
        sys.stdout.write(json.dumps(loop.run()) + "\n")
    finally:
        loop.close()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
