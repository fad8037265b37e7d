"""A simulated Panda that is its own scene, for `robot-rl deploy` in tests: a formula, no torch, no simulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robot_rl.deploy.onnx_policy import FORMAT
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig, mock_spec
from robot_rl.hardware.sim_robot import EpisodeState
from robot_rl.specs import EnvSpec
from robot_rl.types import Goal

CARD = "sim_panda_joints"
STEP = 0.01  # rad that the served policy moves joint 1 in an action
HORIZON, EXECUTE = 8, 4


@dataclass(frozen=True)
class SceneRobotConfig:
    """`kill_pid` gets SIGKILL at the command with the number `kill_at`; 0: never."""

    kill_pid: int = 0
    kill_at: int = 0


class SceneRobot(MockRobot):
    """Stands still between episodes; `is_success` is set by whoever plays the judge."""

    def __init__(self, config: SceneRobotConfig, *, card: RobotCard, spec: EnvSpec) -> None:
        self.kill, self.number, self.is_success, self.seed = config, 0, False, 0
        super().__init__(MockRobotConfig(streams=("joints",), lag_s=0.02), card=card)

    def reset(self, seed: int) -> None:
        self.seed, self.is_success = seed, False

    def episode(self) -> EpisodeState:
        return EpisodeState(self.seed, self.number, self.is_success, self.is_success)

    def command(self, goal: Goal) -> Goal:
        self.number += 1
        if self.number == self.kill.kill_at:
            os.kill(self.kill.kill_pid, signal.SIGKILL)
        return super().command(goal)


def panda_spec() -> EnvSpec:
    return mock_spec(load_robot_card(CARD), MockRobotConfig(streams=("joints",)))


def write_moving_policy(path: Path, spec: EnvSpec) -> Path:
    """An exported policy of absolute joints: where the arm is, joint 1 moved on by STEP for each action, gripper open."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inputs, size = spec.observation["proprio"].size, spec.action.size
    here = np.zeros((inputs, size), np.float32)
    here[np.arange(7), np.arange(7)] = 1.0
    ramp = np.zeros((1, HORIZON, size), np.float32)
    ramp[0, :, 0], ramp[0, :, -1] = STEP * np.arange(1, HORIZON + 1), 1.0
    weights = [numpy_helper.from_array(here, "here"), numpy_helper.from_array(ramp, "ramp")]
    nodes = [
        helper.make_node("MatMul", ["proprio", "here"], ["now"]),
        helper.make_node("Add", ["now", "ramp"], ["actions"]),
    ]
    shapes = {"proprio": ["b", 1, inputs], "noise": ["b", 0, HORIZON, size], "actions": ["b", HORIZON, size]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "moving", [values["proprio"], values["noise"]], [values["actions"]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata = {
        "spec": spec.to_json(), "sampling": "none", "noise": {"rule": "fixed", "seed": 0, "shape": [0, HORIZON, size]},
        "config": {"observation_keys": ["proprio"], "history": 1, "horizon": HORIZON, "execute": EXECUTE},
    }  # fmt: skip
    helper.set_model_props(model, {"format": FORMAT} | {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, str(path))
    return path


def run_torch_free(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`robot-rl <words>` in a process of its own that fails where the command has loaded torch into it."""
    code = (
        f"import sys; from robot_rl.cli import main; code = main({list(words)!r});"
        "assert 'torch' not in sys.modules, 'torch'; sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)


class ServeProcess:
    """A real `robot-rl serve` in a process of its own, on a free port or a given one."""

    def __init__(self, policy: Path, *, port: int = 0) -> None:
        command = [sys.executable, "-m", "robot_rl", "serve", f"policy={policy}", f"port={port}", "--json"]
        environment = {key: value for key, value in os.environ.items() if key != "ROBOT_RL_SERVE_KEY"}
        self.process = subprocess.Popen(
            command, cwd=policy.parent, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.uri = ""

    def wait(self) -> str:
        """Its address, when it serves."""
        assert self.process.stderr is not None
        line = next((line for line in self.process.stderr if "on ws://" in line), None)
        assert line is not None, "the server ended"
        self.uri = line.split()[-1]
        return self.uri

    @property
    def port(self) -> int:
        return int(self.uri.rsplit(":", 1)[1])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
