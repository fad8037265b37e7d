"""Nothing is imported in a turn of a robot's loop: a watchdog takes 0.2 s of it for a lost loop, and stops the robot."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from dataclasses import replace

import torch

from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.schedule import ManualClock
from robot_rl.envs.real_robot import By, RealRobotConfig, RobotParts, make_env
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig, mock_spec
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference
from robot_rl.types import ActionChunk

card, config, clock = load_robot_card("sim_panda"), MockRobotConfig(streams=("joints", "pose")), ManualClock()
units = ("1 = 0.1 m",) * 3 + ("-1 = -0.01 m, 1 = 0.04 m",)
action = ArraySpec("action", (4,), low=(-1.0,) * 4, high=(1.0,) * 4, units=units, meanings=("x", "y", "z", "gripper"))
meaning = ActionSemantics(ActionKind.delta, DeltaReference.measured, "base", "none", "-1 closed .. 1 open", "deltas")
spec = replace(mock_spec(card, config), action=action, action_semantics=meaning, control_hz=card.control_hz)


class Person:
    def publish(self, view):
        self.state = view.state

    def events(self):
        from robot_rl.teleop.panel import PanelEvent

        return [PanelEvent("start")] if getattr(self, "state", "") == "ready" else []

    def close(self):
        pass


parts = RobotParts(robot=MockRobot(config, card=card, spec=spec, clock=clock), panel=Person(), clock=clock)
env = make_env(RealRobotConfig(reward=By.person, resets=By.person), num_envs=1, history=1, parts=parts)
env.reset([0])
before = set(sys.modules)
result = env.step(ActionChunk(torch.tensor([[[0.5, 0.0, 0.0, 1.0]]]), execute=1))
assert float(result.played[0, 0, 0]) > 0
print(sorted(set(sys.modules) - before))
env.close()
"""


def test_nothing_is_imported_in_the_first_step() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
