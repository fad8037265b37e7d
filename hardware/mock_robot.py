"""A robot that is a formula: joints, pose and gripper follow goals with a stated lag and speed, and break on schedule.

Where it is at a time follows from the goals and their times alone, however often it is read: same clock, same goals, same
numbers. Joints and pose do not know of each other; a test commands one of them. `shared` names a file that several
processes may open: a stop by one of them outranks the commands of the others, as the stop of a real arm does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.robot_card import CommandKind, RobotCard, load_robot_card
from robot_rl.deploy.rotation_motion import difference, from_vector, multiply
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.errors import ConfigError, DeployError
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import Goal, Reading

from .mock_faults import Fault, FaultKind, spoil
from .mock_shared import SharedState

_STEP_S = 1e-3  # over which a velocity is taken
_KEEP_S = 5.0  # of the past


@dataclass(frozen=True)
class MockRobotConfig:
    """What the robot is and how slow.

    Attributes:
        card: a YAML file or the name of a robot card.
        streams: what it tells besides its cameras: "joints", "pose", "wrench", "state".
        cameras: name -> (rows, columns).
        rate_hz: of every stream; stamps lie on this grid. 0: a new frame at every read.
        latency_s: from capture until a frame can be read.
        jitter_s: up to this much more latency, drawn anew for every frame.
        command_latency_s: until a goal works.
        lag_s: time constant with which everything follows.
        speed: share of the card's speed limits that it reaches.
        rotation_rad_s, gripper_speed: how fast the tool turns without limits in the card, and how fast the gripper moves.
        wrench: what it feels, N and N m.
        state: what a simulator alone knows; the stream "state".
        seed: of the jitter.
        shared: file by which processes share what was commanded and stopped; "": none.
        faults: see mock_faults.Fault; times count from `connect`.
    """

    card: str = "sim_panda"
    streams: tuple[str, ...] = ("joints", "pose")
    cameras: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rate_hz: float = 0.0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    command_latency_s: float = 0.0
    lag_s: float = 0.01
    speed: float = 1.0
    rotation_rad_s: float = 3.0
    gripper_speed: float = 0.2
    wrench: tuple[float, ...] = (0.0,) * 6
    state: tuple[float, ...] = ()
    seed: int = 0
    shared: str = ""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class _Leg:
    """Where everything was when a goal began to work, and that goal."""

    start_s: float
    position: np.ndarray
    pose: np.ndarray
    gripper: float
    goal: Goal


class MockRobot:
    """See the text of this module.

    Args:
        config: see MockRobotConfig.
        card: instead of the one that the config names.
        spec: instead of one made of card and config.
        clock: see Clock; None: the machine's.

    Raises:
        ConfigError: no such card or stream.
    """

    def __init__(
        self, config: MockRobotConfig, *, card: RobotCard | None = None, spec: EnvSpec | None = None,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        unknown = set(config.streams) - {"joints", "pose", "wrench", "state"}
        if unknown:
            raise ConfigError(
                "mock_robot.streams",
                expected="joints, pose, wrench, state",
                got=str(sorted(unknown)),
                hint="Correct it.",
            )
        self.config = config
        self.card = load_robot_card(config.card) if card is None else card
        self.spec = mock_spec(self.card, config) if spec is None else spec
        self.commands: deque[tuple[float, Goal]] = deque(maxlen=10_000)
        self.stops: deque[float] = deque(maxlen=100)
        self._clock: Clock = MonotonicClock() if clock is None else clock
        self._legs: deque[_Leg] = deque()
        self._connected_s: float | None = None
        self._shared = SharedState(Path(config.shared)) if config.shared else None

    def connect(self) -> None:
        """Start at home, or in the middle of the limits, at rest."""
        if self._connected_s is not None:
            return
        limits, gripper = self.card.limits, self.card.gripper
        middle = (np.array(limits.low) + np.array(limits.high)) / 2
        position = middle if self.card.home is None else np.array(self.card.home, np.float64)
        self._connected_s = self._clock.now()
        opening = 0.0 if gripper is None else gripper.open
        pose = np.array([0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0], np.float64)
        self._legs.append(_Leg(self._connected_s - _KEEP_S, position, pose, opening, Goal(position=position)))

    def read(self) -> Reading:
        """The newest frame of every stream that has arrived, as its faults have it.

        Raises:
            DeployError: before `connect`, or the fault `read_error`.
        """
        now_s, since_s = self._clock.now(), self._since()
        stamp_s = self._stamp(now_s)
        position, pose, gripper = self._at(stamp_s)
        before = self._at(stamp_s - _STEP_S)
        velocity = (position - before[0]) / _STEP_S
        has = self.config.streams
        frames: dict[str, Any] = {"proprio": _proprio(self.card, position, velocity, pose, gripper)}
        number = round((stamp_s - now_s + since_s) * (self.config.rate_hz or 1e3))
        for camera, (rows, columns) in self.config.cameras.items():
            frames[f"image/{camera}"] = np.full((rows, columns, 3), number % 251, np.uint8)
        if "state" in has:
            frames["state"] = np.array(self.config.state, np.float32)
        reading = Reading(
            frames=frames,
            stamps=dict.fromkeys((*has, *(f"image/{camera}" for camera in self.config.cameras)), stamp_s),
            position=position,
            velocity=velocity,
            pose=pose if "pose" in has else None,
            gripper=None if self.card.gripper is None else gripper,
            wrench=np.array(self.config.wrench, np.float64) if "wrench" in has else None,
        )
        return spoil(reading, self.config.faults, since_s=since_s, connected_s=now_s - since_s)

    def command(self, goal: Goal) -> Goal:
        """Follow a goal from now on; a goal that names no target of this robot is refused.

        Raises:
            DeployError: before `connect`, the fault `command_error`, or a goal that does not fit the card.
        """
        now_s, since_s = self._clock.now(), self._since()
        self._require_fits(goal)
        active = {fault.kind for fault in self.config.faults if fault.is_active(since_s)}
        if FaultKind.command_error in active:
            raise DeployError(
                "mock robot", expected="a working connection", got="a fault", hint="As the test wants it."
            )
        if FaultKind.command_lost in active:
            return goal
        if self._shared is not None and self._shared.stopped_by_other:
            position, pose, gripper = self._at(now_s)
            is_pose = not self.card.command.is_joint
            return Goal(pose=pose, gripper=gripper) if is_pose else Goal(position=position, gripper=gripper)
        self.commands.append((now_s, goal))
        if self._shared is not None:
            self._shared.commanded(now_s)
        self._follow(goal, now_s + self.config.command_latency_s)
        return goal

    def stop(self) -> None:
        """Hold here; also twice, also before `connect`."""
        now_s = self._clock.now()
        self.stops.append(now_s)
        if self._shared is not None:
            self._shared.stop(now_s)
        if self._legs:
            position, pose, gripper = self._at(now_s)
            self._legs.append(_Leg(now_s, position, pose, gripper, Goal(position=position, gripper=gripper)))

    def close(self) -> None:
        """Hold, and forget."""
        if self._connected_s is not None:
            self.stop()
        self._connected_s = None
        self._legs.clear()

    def _since(self) -> float:
        if self._connected_s is None:
            raise DeployError("mock robot", expected="connect() first", got="no connection", hint="Call connect().")
        return self._clock.now() - self._connected_s

    def _stamp(self, now_s: float) -> float:
        """Capture of the newest frame that has arrived."""
        rate_hz, connected_s = self.config.rate_hz, now_s - self._since()
        if not rate_hz:
            return now_s - self.config.latency_s
        newest = math.floor((now_s - self.config.latency_s - connected_s) * rate_hz + 1e-9)
        for number in range(newest, newest - 1000, -1):
            jitter_s = 0.0
            if self.config.jitter_s:  # by the frame's number, so that it does not depend on when it is read
                draw = np.random.default_rng([self.config.seed, number + 1_000_000]).random()
                jitter_s = self.config.jitter_s * draw
            captured_s = connected_s + number / rate_hz
            if captured_s + self.config.latency_s + jitter_s <= now_s + 1e-9:
                return captured_s
        return connected_s

    def _follow(self, goal: Goal, start_s: float) -> None:
        position, pose, gripper = self._at(start_s)
        self._legs.append(_Leg(start_s, position, pose, gripper, goal))
        while len(self._legs) > 2 and self._legs[1].start_s < start_s - _KEEP_S:
            self._legs.popleft()

    def _at(self, time_s: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Joint positions, pose and gripper at a time."""
        leg = next((leg for leg in reversed(self._legs) if leg.start_s <= time_s), self._legs[0])
        gone_s, lag_s, card = max(time_s - leg.start_s, 0.0), self.config.lag_s, self.card
        position, pose, gripper = leg.position, leg.pose, leg.gripper
        if leg.goal.position is not None:
            speed = self.config.speed * np.array(card.limits.velocity)
            position = _gone(position, leg.goal.position, speed, lag_s, gone_s)
        if leg.goal.pose is not None or leg.goal.twist is not None:
            pose = self._pose_at(leg, gone_s)
        if leg.goal.gripper is not None:
            ends = np.array([gripper]), np.array([leg.goal.gripper])
            gripper = float(_gone(*ends, np.array([self.config.gripper_speed]), lag_s, gone_s)[0])
        return position, pose, gripper

    def _pose_at(self, leg: _Leg, gone_s: float) -> np.ndarray:
        limits, start = self.card.pose, leg.pose
        if leg.goal.twist is not None:
            # Silence beyond command_s and the arm holds, as MoveIt Servo does.
            moved = leg.goal.twist * min(gone_s, self.card.thresholds.command_s)
            return np.concatenate([start[:3] + moved[:3], multiply(from_vector(moved[3:]), start[3:])])
        assert leg.goal.pose is not None
        speed, turn = (1.0, self.config.rotation_rad_s) if limits is None else (limits.speed_m_s, limits.rotation_rad_s)
        way = leg.goal.pose[:3] - start[:3]
        length = float(np.linalg.norm(way))
        rotation = difference(leg.goal.pose[3:], start[3:])
        angle = float(np.linalg.norm(rotation))
        ends = np.zeros(2), np.array([length, angle])
        done = _gone(*ends, self.config.speed * np.array([speed, turn]), self.config.lag_s, gone_s)
        place = start[:3] + way * (done[0] / length if length else 0.0)
        turned = from_vector(rotation * (done[1] / angle if angle else 0.0))
        return np.concatenate([place, multiply(turned, start[3:])])

    def _require_fits(self, goal: Goal) -> None:
        kind = self.card.command
        name = "position" if kind.is_joint else kind.value
        wanted = (len(self.card.joints),) if kind.is_joint else (7,) if kind is CommandKind.pose else (6,)
        value = getattr(goal, name)
        if value is None or value.shape != wanted or not np.isfinite(value).all():
            raise DeployError(
                "mock robot", expected=f"a goal with finite {name} of shape {wanted}", got=str(goal),
                hint="Goals pass the safety layer before they come here.",
            )  # fmt: skip


def mock_stop(config: Mapping[str, Any]) -> Any:
    """A connection of its own for a watchdog: returns a function that stops the robot of `config` ("shared")."""
    robot = MockRobot(replace(MockRobotConfig(), shared=str(config["shared"])))
    return robot.stop


def mock_spec(card: RobotCard, config: MockRobotConfig) -> EnvSpec:
    """A spec for a mock: proprio as the card has it, absolute joints, pose or twist as action, then the gripper."""
    meanings = tuple(card.proprio.values())
    observation = {"proprio": ArraySpec("proprio", (len(meanings),), meanings=meanings)}
    if config.state:
        observation["state"] = ArraySpec("state", (len(config.state),))
    for camera, shape in config.cameras.items():
        observation[f"image/{camera}"] = ArraySpec(f"image/{camera}", (*shape, 3), dtype="uint8")
    is_joint = card.command.is_joint
    names, units, rotation = card.joints, ("rad",) * len(card.joints), "none"
    if card.command is CommandKind.pose:
        names, units, rotation = ("x", "y", "z", "qw", "qx", "qy", "qz"), ("m",) * 3 + ("1",) * 4, "quat_wxyz"
    if card.command is CommandKind.twist:
        names, units, rotation = ("vx", "vy", "vz", "wx", "wy", "wz"), ("m/s",) * 3 + ("rad/s",) * 3, "rotvec"
    if card.gripper is not None:
        names, units = (*names, "gripper"), (*units, "1")
    kind = ActionKind.velocity if card.command is CommandKind.twist else ActionKind.absolute
    gripper = "none" if card.gripper is None else "-1 closed .. 1 open"
    return EnvSpec(
        env_id=f"mock-{card.name}",
        observation=observation,
        action=ArraySpec("action", (len(names),), units=units, meanings=names),
        action_semantics=ActionSemantics(
            kind, DeltaReference.none, "joint" if is_joint else "base", rotation, gripper, "mock"
        ),
        joint_names=card.joints,
        robot=card.robot,
        control_hz=card.control_hz,
        max_episode_steps=200,
    )  # fmt: skip


def _proprio(
    card: RobotCard, position: np.ndarray, velocity: np.ndarray, pose: np.ndarray, gripper: float
) -> np.ndarray:
    """The elements that the card lists, float32 (P,). A finger is its share of the gripper's opening, at rest."""
    scale = 1.0 if card.gripper is None else card.gripper.scale
    known = {f"position/{name}": value for name, value in zip(card.joints, position, strict=True)}
    known |= {f"velocity/{name}": value for name, value in zip(card.joints, velocity, strict=True)}
    known |= {f"pose/{name}": value for name, value in zip(("x", "y", "z", "qw", "qx", "qy", "qz"), pose, strict=True)}
    known["gripper"] = gripper
    other = {"position": gripper / scale, "velocity": 0.0}
    return np.array([known.get(key, other.get(key.split("/")[0], 0.0)) for key in card.proprio], np.float32)


def _gone(start: np.ndarray, goal: np.ndarray, speed: np.ndarray, lag_s: float, gone_s: float) -> np.ndarray:
    """x(gone_s) of x' = clip((goal - x) / lag, -speed, speed), x(0) = start: a line, then an exponential."""
    way = np.asarray(goal, np.float64) - start
    length, ramp = np.abs(way), speed * lag_s
    line_s = np.maximum(length - ramp, 0.0) / speed
    left = np.minimum(length, ramp) * np.exp(-np.maximum(gone_s - line_s, 0.0) / lag_s) if lag_s > 0 else 0.0 * length
    done = np.where(gone_s <= line_s, speed * gone_s, length - left)
    moved: np.ndarray = start + np.sign(way) * np.minimum(done, length)
    return moved
