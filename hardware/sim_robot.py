"""A simulated arm behind the Robot contract: one scene in this process whose time passes with the clock.

Every call first lets physics catch up with the clock, so a goal acts when it arrives and the arm holds its last target in
between, as if a thread had stepped it all along: targets change at commands only. With a ManualClock the same calls at the
same times give the same numbers. Joint names, topics and the time of the robot-side watchdog come from the card.
An episode begins with the first goal behind a reset; success is looked at once a control period, as evaluation does.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.deploy.robot_card import CommandKind, RobotCard, load_robot_card
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import DeployError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Goal, Reading

from .sim_scene import live_scene

# Physics of a longer silence of the caller is left out (and told): nobody waits for minutes of it.
_MOST_BEHIND_S = 10.0
_FIELDS = {
    CommandKind.joint_position: "position",
    CommandKind.joint_trajectory: "position",
    CommandKind.pose: "pose",
    CommandKind.twist: "twist",
}


@dataclass(frozen=True)
class SimRobotConfig:
    """Which robot in which task.

    Attributes:
        card: a YAML file or the name of a robot card.
        env: a name of configs/env.
        options: fields of that environment's configuration, in place of those of the file.
        seed: of the episode that `connect` starts.
    """

    card: str = "sim_panda"
    env: str = "pick_cube"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class EpisodeState:
    """What became of the episode so far.

    Attributes:
        seed: of its start.
        steps: control periods since its first goal.
        success: whether the task's signal was there at the end of any of them.
        is_over: success, or the time limit of the environment.
    """

    seed: int
    steps: int
    success: bool
    is_over: bool


class SimRobot:
    """See the text of this module. Calls may come from several threads.

    Args:
        config: see SimRobotConfig.
        card: instead of the one that the config names.
        spec: what the policy wants; not looked at, for the environment says what this robot is.
        clock: see Clock; None: the machine's.
        scene: instead of the one that the config names; it has what envs/maniskill_live.LiveScene has.

    Raises:
        ConfigError: no such card, environment or option.
        EnvError: the environment can't be built.
        DeployError: the card names a joint that the simulated robot does not have.
    """

    def __init__(
        self, config: SimRobotConfig, *, card: RobotCard | None = None, spec: EnvSpec | None = None,
        clock: Clock | None = None, scene: Any = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.card = load_robot_card(config.card) if card is None else card
        self._scene = live_scene(config.env, config.options) if scene is None else scene
        self.spec = self._scene.spec
        self.lost_s, self.unreachable, self.holds = 0.0, 0, 0
        self.time_limit = True  # False: an episode is over with success alone; people are slower than the limit
        self._clock: Clock = MonotonicClock() if clock is None else clock
        names = self.spec.joint_names
        self._arm = [_index(name, names, self.card) for name in self.card.joints]
        gripper = self.card.gripper
        fingers = () if gripper is None else (gripper.joint, *self.card.mimic)
        self._fingers = [_index(name, names, self.card) for name in fingers]
        self._lock, self._is_closed = threading.RLock(), False
        self._start_s, self._steps, self._seed = math.nan, 0, config.seed
        self._twist: np.ndarray | None = None
        self._target_pose = np.zeros(7)
        self._commanded_s: float | None = None
        self._first_step: int | None = None
        self._episode = EpisodeState(config.seed, 0, False, False)
        self._measured: tuple[int, Any] | None = None

    @property
    def step_s(self) -> float:
        """Between two steps of physics."""
        return float(self._scene.step_s)

    def episode(self) -> EpisodeState:
        """Up to now.

        Raises:
            DeployError: before `connect`.
        """
        with self._lock:
            self._catch_up()
            return self._episode

    def connect(self) -> None:
        """Start the first episode. Nothing moves."""
        with self._lock:
            if math.isnan(self._start_s):
                self.reset(self.config.seed)

    def reset(self, seed: int) -> None:
        """Start an episode from its seed: a new scene, every joint holding; its time runs from the first goal on.

        Raises:
            EnvError: a seed that the environment does not take.
        """
        with self._lock:
            self._scene.reset(seed)
            self._start_s, self._steps, self._measured = self._clock.now(), 0, None
            self._twist, self._commanded_s, self._first_step = None, None, None
            self._episode = EpisodeState(seed, 0, False, False)

    def read(self) -> Reading:
        """What it is like at the newest step of physics.

        Raises:
            DeployError: before `connect`.
        """
        stamp_s, state = self.snapshot()
        gripper = self.card.gripper
        streams = ("joints", "pose", *(key for key in state.frames if key != "proprio"))
        return Reading(
            frames=state.frames,
            stamps=dict.fromkeys(streams, stamp_s),
            position=state.position[self._arm],
            velocity=state.velocity[self._arm],
            pose=state.pose,
            gripper=None if gripper is None else float(state.position[self._fingers[0]]) * gripper.scale,
        )

    def snapshot(self) -> tuple[float, Any]:
        """Time of the newest step of physics, and all of its state (envs/maniskill_live.LiveState).

        Raises:
            DeployError: before `connect`.
        """
        with self._lock:
            self._catch_up()
            if self._measured is None or self._measured[0] != self._steps:
                self._measured = self._steps, self._scene.measure()
            return self._start_s + self._steps * self.step_s, self._measured[1]

    def shown(self, reading: Reading) -> dict[str, Any]:
        """What only a simulator knows, for a person's screen: "scene", name -> position (m, base frame)."""
        with self._lock:
            return {"scene": self._scene.objects() if hasattr(self._scene, "objects") else {}}

    def still(self) -> tuple[int, float, Float64[Array, " S"]]:
        """Seed of the scene, time of the newest step of physics, and where everything is (LiveScene.placement); cheap."""
        with self._lock:
            return self._episode.seed, self._start_s + self._steps * self.step_s, self._scene.placement()

    def command(self, goal: Goal) -> Goal:
        """Follow a goal from the next step of physics on; returns it with the gripper inside its range.

        A pose that can't be reached leaves the arm where it is, as ManiSkill's controllers do; `unreachable` counts.

        Raises:
            DeployError: before `connect`, or a goal that does not fit the card.
        """
        wanted = _FIELDS[self.card.command]
        value = getattr(goal, wanted)
        if value is None or not np.isfinite(value).all():
            raise DeployError(
                f"goal for {self.card.name}", expected=f"a {wanted} of finite numbers", got=str(goal),
                hint="The card says what the robot takes.",
            )  # fmt: skip
        with self._lock:
            self._catch_up()
            self._twist = None
            if wanted == "position":
                self._scene.drive(self._arm, np.asarray(value, np.float64))
            elif wanted == "pose":
                self._towards(np.asarray(value, np.float64))
            else:
                self._twist, self._target_pose = np.asarray(value, np.float64), self._scene.pose()
            self._heard()
            return Goal(**{wanted: value, "gripper": self.command_gripper(goal.gripper)})

    def command_gripper(self, opening: float | None) -> float | None:
        """Move the gripper alone, in the card's unit; returns the opening inside its range, None where there is none.

        Raises:
            DeployError: before `connect`, or no finite number.
        """
        gripper = self.card.gripper
        if opening is None or gripper is None:
            return None
        if not math.isfinite(opening):
            raise DeployError("gripper", expected="a finite opening", got=str(opening), hint="See the card's gripper.")
        with self._lock:
            self._catch_up()
            low, high = sorted((gripper.closed, gripper.open))
            inside = min(max(opening, low), high)
            self._scene.drive(self._fingers, np.full(len(self._fingers), inside / gripper.scale))
            self._heard()
            return inside

    def stop(self) -> None:
        """Hold the arm where it is; the gripper keeps its grip. Also twice, also before `connect`."""
        with self._lock:
            if not math.isnan(self._start_s):
                self._catch_up()
                self._hold()

    def close(self) -> None:
        """Release the simulator; also twice."""
        with self._lock:
            if not self._is_closed:
                self._scene.close()
            self._start_s, self._is_closed = math.nan, True

    def _heard(self) -> None:
        self._commanded_s = self._clock.now()
        if self._first_step is None:
            self._first_step = self._steps

    def _towards(self, pose: np.ndarray) -> None:
        solved = self._scene.solve(pose)
        if solved is None:
            self.unreachable += 1
            solved = self._scene.joints()
        self._scene.drive(self._arm, solved[self._arm])

    def _hold(self) -> None:
        self._twist, self._commanded_s = None, None
        self._scene.drive(self._arm, self._scene.joints()[self._arm])

    def _catch_up(self) -> None:
        if math.isnan(self._start_s):
            raise DeployError("simulated robot", expected="connect() first", got="none", hint="Call connect().")
        behind_s = self._clock.now() - self._start_s - self._steps * self.step_s
        if behind_s > _MOST_BEHIND_S:
            self._start_s += behind_s - _MOST_BEHIND_S
            self.lost_s += behind_s - _MOST_BEHIND_S
            behind_s = _MOST_BEHIND_S
        for _ in range(math.floor(behind_s / self.step_s + 1e-6)):
            self._step()

    def _step(self) -> None:
        now_s = self._start_s + self._steps * self.step_s
        if self._commanded_s is not None and now_s - self._commanded_s > self.card.thresholds.command_s:
            self._hold()
            self.holds += 1
        if self._twist is not None:
            self._target_pose = moved(self._target_pose, self._twist, self.step_s)
            self._towards(self._target_pose)
        self._scene.advance()
        self._steps += 1
        if self._first_step is None or self._episode.is_over:
            return
        gone = self._steps - self._first_step
        if gone and gone % self._scene.steps_per_control == 0:
            success, steps = self._scene.success(), gone // self._scene.steps_per_control
            over = success or (self.time_limit and steps >= self.spec.max_episode_steps)
            self._episode = EpisodeState(self._episode.seed, steps, success, over)


def moved(pose: Float64[Array, "7"], twist: Float64[Array, "6"], period_s: float) -> Float64[Array, "7"]:
    """Where a pose (m, quaternion wxyz) is after a twist (m/s, rad/s, base frame) for `period_s`."""
    turn = twist[3:] * period_s
    angle = float(np.linalg.norm(turn))
    axis = turn / angle if angle > 0 else np.zeros(3)
    w, v = math.cos(angle / 2), math.sin(angle / 2) * axis
    w0, v0 = pose[3], pose[4:]
    product = np.concatenate([[w * w0 - v @ v0], w * v0 + w0 * v + np.cross(v, v0)])
    return np.concatenate([pose[:3] + twist[:3] * period_s, product / np.linalg.norm(product)])


def _index(name: str, names: tuple[str, ...], card: RobotCard) -> int:
    if name not in names:
        raise DeployError(
            f"robot card {card.name!r}, joint {name!r}", expected="a joint of the simulated robot", got="none",
            hint=closest(name, names),
        )  # fmt: skip
    return names.index(name)
