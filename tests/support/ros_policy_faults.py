"""A control loop on Ros2Robot, FakeArm and a policy in its own process, for tests that break policy, camera or action.

One loop, one arm and one policy serve all cases: between two of them a person releases the robot. `fault_policy` is what the
process of the policy imports; it is told by a file what to do wrong, and notes when it did.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from fake_arm import FakeArm, until
from ros_faults import FAULT_STEP, OBSERVATION_S, PERIOD_S

from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.loop_parts import LoopConfig, LoopParts
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.targets import ActionReader
from robot_rl.hardware.ros2_reading import POSE, spec_of
from robot_rl.hardware.ros2_robot import Ros2Robot, Ros2RobotConfig
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk, Observation

BOX = ((0.1, -0.4, 0.05), (0.7, 0.5, 0.6))
SPEED, ROTATION, LATE_S = 0.5, 4.0, 2.0
HORIZON, EXECUTE, WAIT_S = 16, 2, 0.5 * PERIOD_S
HOME = np.array([0.4, 0.1, 0.3, 0.8, 0.6, 0.0, 0.0])  # FakeArm's
ROLL = 2 * np.arctan2(0.6, 0.8)
CARD = Path(__file__).parents[2] / "configs" / "robot" / "sim_panda.yaml"


def write_card(path: Path) -> Path:
    """The simulated Panda by its pose, with a camera; 500 ms instead of 200 ms for a busy machine."""
    plain = yaml.safe_load(CARD.read_text())
    del plain["gripper"], plain["ros2"]["outputs"]["gripper"], plain["ros2"]["inputs"]["state"]
    plain["ros2"]["inputs"]["image/wrist"] = {"topic": "wrist/image_raw", "type": "Image"}
    plain["limits"]["low"], plain["limits"]["high"] = [-3.0] * 7, [3.0] * 7
    plain["pose"] |= {"box": [list(corner) for corner in BOX], "speed_m_s": SPEED, "rotation_rad_s": ROTATION}
    plain["pose"] |= {"step_m": 0.4, "step_rad": 2.0}
    plain["proprio"] = {f"pose/{name}": name for name in POSE}
    plain["thresholds"] = {"observation_s": OBSERVATION_S, "connect_s": 20.0}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def fault_spec(card: RobotCard) -> EnvSpec:
    """Of the policy: pose and picture in; place and Euler angles out."""
    spec = spec_of(card)
    image = ArraySpec("image/wrist", (4, 6, 3), dtype="uint8")
    names = ("x", "y", "z", "roll", "pitch", "yaw")
    return replace(
        spec, observation={**spec.observation, "image/wrist": image},
        action=ArraySpec("action", (6,), units=("m",) * 3 + ("rad",) * 3, meanings=names),
        action_semantics=ActionSemantics(ActionKind.absolute, DeltaReference.none, "base", "euler_xyz", "none", "pose"),
    )  # fmt: skip


class FaultPolicy:
    """Moves along x at 0.1 m/s from where it sees the arm, until the file `orders` names a fault.

    nan, size, late: one chunk; x1000, outside (the box), jump (by 90 degrees), turn (2 rad/s, across the branch of the
    angle at pi): from then on.
    """

    def __init__(self, spec: EnvSpec, orders: Path, noted: Path) -> None:
        self.spec, self._orders, self._noted, self._fault = spec, orders, noted, ""
        self._from, self._turned = np.zeros(7, np.float32), 0.0
        keys = ("proprio", "image/wrist")
        self.config = SimpleNamespace(observation_keys=keys, history=1, horizon=HORIZON, execute=EXECUTE)

    def act(self, observation: Observation, noise: np.ndarray) -> ActionChunk:
        is_new = self._orders.exists()
        if is_new:
            self._fault = self._orders.read_text()
            self._orders.unlink()
        if is_new and self._fault == "late":
            self._note()
            time.sleep(LATE_S)
        place, steps = observation.proprio[0, 0], np.arange(1, HORIZON + 1)
        actions = np.zeros((HORIZON, 6), np.float32)
        actions[:, :3] = place[:3]
        actions[:, 3] = 2 * np.arctan2(place[4], place[3])
        if self._fault == "turn":
            self._from, self._turned = (
                (place.copy(), 0.0) if is_new else (self._from, self._turned + 2.0 * PERIOD_S * EXECUTE)
            )
            roll = 2 * np.arctan2(self._from[4], self._from[3]) + self._turned + 2.0 * PERIOD_S * steps
            actions[:, :3], actions[:, 3] = self._from[:3], np.remainder(roll + np.pi, 2 * np.pi) - np.pi
        else:
            actions[:, 0] += 0.1 * PERIOD_S * steps
        if self._fault == "jump":
            actions[:, 3] = ROLL + np.pi / 2
        if self._fault == "outside":
            actions[:, 0] = 2.0
        if self._fault == "x1000":
            actions *= 1000.0
        if is_new and self._fault == "nan":
            actions[0, 1] = np.nan
        if is_new and self._fault == "size":
            actions = actions[:, :5]
        if is_new and self._fault != "late":
            self._note()
        return ActionChunk(actions=actions[None], execute=EXECUTE)

    def _note(self) -> None:
        part = self._noted.with_suffix(".part")
        part.write_text(json.dumps(time.monotonic()))
        part.rename(self._noted)

    def noise(self) -> NoiseSource:
        return NoiseSource(NoiseRule.fixed, 0, (0, HORIZON, 6))

    def reset(self, mask: np.ndarray) -> None:
        """Keeps nothing that an order does not set."""


def fault_policy(config: Mapping[str, Any]) -> FaultPolicy:
    """For PolicySource.target."""
    spec = fault_spec(load_robot_card(config["card"]))
    return FaultPolicy(spec, Path(config["orders"]), Path(config["noted"]))


@dataclass(frozen=True)
class Played:
    """One episode.

    Attributes:
        steps, sent_s: of each step its record, and when its command was out, CLOCK_MONOTONIC.
        fault_s: when the fault began, in the process where it began.
        summary: of the loop.
    """

    steps: tuple[StepRecord, ...]
    sent_s: tuple[float, ...]
    fault_s: float
    summary: EpisodeSummary

    def first(self, reason: Reason) -> int:
        """Number of the first step with a reason."""
        return next(number for number, step in enumerate(self.steps) if step.reasons & reason)

    def after_s(self, reason: Reason) -> float:
        """From the fault until the first command with a reason was out."""
        return self.sent_s[self.first(reason)] - self.fault_s

    def late_s(self, reason: Reason) -> float:
        """How late this machine let the loop be between fault and reason.

        The largest delay of a command behind the due time of its own slot, beyond the wait for an answer that every slot
        may have. A loop that lets slots pass in time without a hold is not excused by it.
        """
        due_s = [step.monotonic_s - step.slot * PERIOD_S for step in self.steps]
        origin_s = min(due_s)
        over = [
            sent_s - (origin_s + step.slot * PERIOD_S) - WAIT_S
            for step, sent_s in zip(self.steps[: self.first(reason) + 1], self.sent_s, strict=False)
            if sent_s >= self.fault_s
        ]
        return max(0.0, *over) if over else 0.0

    def poses(self) -> np.ndarray:
        """float64 (N, 7): what was sent."""
        return np.array([step.sent.pose for step in self.steps])


class PolicyFaultLoop:
    """The loop, its arm and its policy; `play` plays one case.

    Args:
        folder: for the card and what the policy is told.
        domain: of ROS.
    """

    def __init__(self, folder: Path, domain: int) -> None:
        path = write_card(folder / "arm.yaml")
        self._orders, self._noted = folder / "orders", folder / "noted"
        self.arm = FakeArm(path, domain, still=True)
        card = load_robot_card(path)
        spec = fault_spec(card)
        self.robot = Ros2Robot(Ros2RobotConfig(domain_id=domain), card=card, spec=spec)
        config = {"card": str(path), "orders": str(self._orders), "noted": str(self._noted)}
        self.policy = ProcessPolicy(PolicySource(target="ros_policy_faults:fault_policy", config=config))
        self._steps: list[StepRecord] = []
        self._sent_s: list[float] = []
        self._at: dict[int, Callable[[], object]] = {}
        quiet = RealtimeConfig(freeze_gc=False, fifo_priority=None, lock_memory=False)
        self.loop = ControlLoop(
            self.robot, self.policy, ActionReader(spec, card), config=LoopConfig(realtime=quiet, wait_s=WAIT_S),
            parts=LoopParts(observer=self._note),
        )  # fmt: skip
        self.loop.bring_up()

    def _note(self, record: StepRecord) -> None:
        self._sent_s.append(time.monotonic())
        self._steps.append(record)
        if (act := self._at.get(len(self._steps))) is not None:
            act()

    def order(self, fault: str) -> None:
        """Have the policy do something wrong at its next question."""
        part = self._orders.with_suffix(".part")
        part.write_text(fault)
        part.rename(self._orders)

    def kill_policy(self) -> float:
        """As the kernel does when memory runs out; tells when."""
        now_s = time.monotonic()
        os.kill(self.policy.pid, 9)
        return now_s

    def play(
        self, fault: Callable[[], float | None], *, steps: int, at: Mapping[int, Callable[[], object]] | None = None,
        began: list[float] | None = None,
    ) -> Played:  # fmt: skip
        """One episode from HOME, released before.

        Args:
            fault: called at step FAULT_STEP; returns when the fault began, or None where the policy notes it.
            began: filled with that time while the episode runs, where another process tells it later.
            steps: actions.
            at: what else is done, by number of the step.
        """
        self._go_home()
        self._steps, self._sent_s, began_s = [], [], list[float | None]()
        self._at = {FAULT_STEP: lambda: began_s.append(fault()), **(at or {})}
        summary = self.loop.run_episode(max_steps=steps)
        told = began[:1] if began is not None else [time_s for time_s in began_s if time_s is not None]
        fault_s = told[0] if told else json.loads(self._noted.read_text())
        return Played(tuple(self._steps), tuple(self._sent_s), fault_s, summary)

    def _go_home(self) -> None:
        self._noted.unlink(missing_ok=True)
        self.order("none")
        self.arm.set(follow=False, mute="")
        until(lambda: bool(np.allclose(self.robot.read().pose, HOME)), what="the arm is at home")
        self.arm.set(follow=True)
        if self.loop.latched:
            self.loop.release()

    def close(self) -> None:
        """Hold, and end everything."""
        self.loop.close()
        self.arm.kill()
