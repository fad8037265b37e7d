"""A robot of two joints and policies for it, for tests of the control loop; a process of a policy imports this by name."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.deploy.thresholds import Thresholds
from robot_rl.hardware.mock_robot import MockRobotConfig, mock_spec, mock_stop
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

JOINTS = ("shoulder", "elbow")
HERE = str(Path(__file__).resolve().parent)


def small_card(**changes: Any) -> RobotCard:
    """50 Hz, joints of +-2 rad, 2 rad/s, 20 rad/s2, 500 rad/s3."""
    card = RobotCard(
        name="small", robot="small", command=CommandKind.joint_position, joints=JOINTS,
        limits=JointLimits(JOINTS, (-2.0,) * 2, (2.0,) * 2, (2.0,) * 2, (20.0,) * 2, (500.0,) * 2),
        control_hz=50.0, proprio={f"position/{name}": f"position of {name}" for name in JOINTS}, home=(0.0, 0.0),
        thresholds=Thresholds(observation_s=0.1, heartbeat_s=0.2),
    )  # fmt: skip
    return replace(card, **changes)


def small_spec(card: RobotCard | None = None, config: MockRobotConfig | None = None, *, hz: float = 50.0) -> EnvSpec:
    """Of a policy for it."""
    spec = mock_spec(card or small_card(), config or MockRobotConfig(streams=("joints",)))
    return replace(spec, control_hz=hz)


class SmallPolicy:
    """Moves the joints to where it sees them + rate * time along its chunk.

    Args:
        config: "rate" (rad/s, or one a joint); "open_loop": from where earlier chunks ended instead; "history", "horizon",
            "execute", "keys", "hz"; "slow" decision -> seconds of sleep; "actions" decision -> number in every action;
            "raise" and "shape": decisions at which it fails; "load": "raise", "exit" or seconds of loading.
    """

    def __init__(self, config: Mapping[str, Any], spec: EnvSpec | None = None) -> None:
        load = config.get("load", 0)
        if load == "raise":
            raise ValueError("these weights are of another net")
        if load == "exit":
            os._exit(7)
        time.sleep(load)
        self.spec = small_spec(hz=config.get("hz", 50.0)) if spec is None else spec
        self.config = SimpleNamespace(
            observation_keys=tuple(config.get("keys", ("proprio",))), history=config.get("history", 2),
            horizon=config.get("horizon", 8), execute=config.get("execute", 4),
        )  # fmt: skip
        self._plain = dict(config)
        self._decision = 0
        self.seen: list[Observation] = []

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        """The noise holds nothing but its seed; decision numbers count calls behind the warm-up."""
        self.seen.append(observation)
        call, self._decision = self._decision - self._plain.get("warm_up", 0), self._decision + 1
        time.sleep(self._plain.get("slow", {}).get(str(call), 0.0))
        if call in self._plain.get("raise", ()):
            raise RuntimeError("no such thing")
        rate = np.asarray(self._plain.get("rate", 0.5), np.float32)
        steps = np.arange(1, self.config.horizon + 1, dtype=np.float32)[:, None] / self.spec.control_hz
        is_open = self._plain.get("open_loop", False)
        here = call * self.config.execute * rate / self.spec.control_hz if is_open else observation.proprio[0, -1, :2]
        actions = np.float32(here + rate * steps) + np.zeros(2, np.float32)
        actions[:] = self._plain.get("actions", {}).get(str(call), actions)
        if call in self._plain.get("shape", ()):
            actions = actions[:, :1]
        return ActionChunk(actions=actions[None], execute=self.config.execute)

    def noise(self) -> NoiseSource:
        """A rule that draws nothing."""
        return NoiseSource(NoiseRule.fixed, 0, (0, self.config.horizon, 2))

    def reset(self, mask: np.ndarray) -> None:
        """Keeps nothing."""


def small_policy(config: Mapping[str, Any]) -> SmallPolicy:
    """For PolicySource.target, in a process that warms up three times."""
    return SmallPolicy({"warm_up": 3, **config})


class RecurrentPolicy(SmallPolicy):
    """Every action is the number of its calls since the last reset."""

    calls = 0

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        """See the class."""
        chunk = super().act(observation, noise)
        self.calls += 1
        return ActionChunk(actions=np.full_like(chunk.actions, self.calls - 1), execute=chunk.execute)

    def reset(self, mask: np.ndarray) -> None:
        """Of one env."""
        assert mask.dtype == bool
        assert mask.tolist() == [True]
        self.calls = 0


def recurrent_policy(config: Mapping[str, Any]) -> RecurrentPolicy:
    """For PolicySource.target."""
    return RecurrentPolicy(config)


def stop_at_the_third_try(config: Mapping[str, Any]) -> Any:
    """For WatchdogConfig.stop: a connection that works at the third try."""
    tries: list[int] = []
    really = mock_stop(config)

    def stop() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no answer")
        really()

    return stop


def cannot_connect(config: Mapping[str, Any]) -> Any:
    """For WatchdogConfig.stop: no connection at all."""
    raise ConnectionError("no route to the robot")


def write_small_card(folder: Path) -> str:
    """The card of a small robot of two joints as a file, for commands; its path."""
    file = folder / "small.yaml"
    file.write_text(
        "name: small\nrobot: small\ncommand: joint_position\ncontrol_hz: 50.0\njoints: [shoulder, elbow]\n"
        "limits: {low: [-2.0, -2.0], high: [2.0, 2.0], velocity: [2.0, 2.0], acceleration: [20.0, 20.0], jerk: [500.0, 500.0]}\n"
        "proprio: {position/shoulder: position of shoulder, position/elbow: position of elbow}\nhome: [0.0, 0.0]\n"
    )
    return str(file)
