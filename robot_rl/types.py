"""The data types of the whole project. Nothing here imports torch: arrays are numpy on a robot, tensors in training.

Dimension legend, the only one:
    N parallel envs, B batch, T time in an episode, To observation history, Tp predicted chunk, Ta executed part,
    A action, P proprioception, S low-dimensional state, K denoising steps, M points, E ensemble, C condition,
    H W image rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from robot_rl.arrays import Array, Bool, Float32, Float64, Int64, UInt8


class Source(IntEnum):
    """Who chose an action. Stored per step as uint8."""

    teleop = 0
    scripted = 1
    policy = 2
    intervention = 3


@dataclass(frozen=True)
class Observation:
    """What a policy sees: a history of To frames for each of N envs.

    Attributes:
        proprio: the robot's own sensors, float32 (N, To, P), units in the spec.
        state: low-dimensional state of robot and scene that only a simulator knows, float32 (N, To, S), or None.
        images: camera -> uint8 (N, To, H, W, 3), RGB.
        points: float32 (N, To, M, 3 or 6), metres in the base frame (and RGB 0..1), or None.
        depth: camera -> float32 (N, To, H, W, 1), metres along the camera's axis, 0 where there is no surface.
        instruction: one text per env, or None.
        time: float64 (N, To), seconds since the episode began, or None.
    """

    proprio: Float32[Array, "N To P"]
    state: Float32[Array, "N To S"] | None = None
    images: Mapping[str, UInt8[Array, "N To H W 3"]] = field(default_factory=dict)
    points: Float32[Array, "N To M D"] | None = None
    depth: Mapping[str, Float32[Array, "N To H W 1"]] = field(default_factory=dict)
    instruction: tuple[str, ...] | None = None
    time: Float64[Array, "N To"] | None = None

    def arrays(self) -> dict[str, Array]:
        """Flat view: key of EnvSpec.observation -> array (time and instruction left out)."""
        out = {"proprio": self.proprio}
        if self.state is not None:
            out["state"] = self.state
        if self.points is not None:
            out["points"] = self.points
        out |= {f"image/{camera}": image for camera, image in self.images.items()}
        return out | {f"depth/{camera}": depth for camera, depth in self.depth.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], *, time: Array | None = None) -> Observation:
        """Inverse of `arrays`. Raises KeyError when "proprio" is missing."""
        images = {k.removeprefix("image/"): v for k, v in arrays.items() if k.startswith("image/")}
        return cls(
            proprio=arrays["proprio"],
            state=arrays.get("state"),
            images=images,
            points=arrays.get("points"),
            depth={k.removeprefix("depth/"): v for k, v in arrays.items() if k.startswith("depth/")},
            time=time,
        )

    def map(self, function: Callable[[Array], Array]) -> Observation:
        """Apply `function` to every array (to move, copy, index or convert all at once)."""
        return replace(
            self,
            proprio=function(self.proprio),
            state=None if self.state is None else function(self.state),
            images={k: function(v) for k, v in self.images.items()},
            points=None if self.points is None else function(self.points),
            depth={k: function(v) for k, v in self.depth.items()},
            time=None if self.time is None else function(self.time),
        )


@dataclass(frozen=True)
class ActionChunk:
    """Actions for the next Tp control steps; the first `execute` of them are meant to be played.

    Attributes:
        actions: float32 (N, Tp, A), physical units.
        execute: Ta, 1 <= Ta <= Tp.
        start_time: float64 (N,), seconds; when the first action is due, or None in simulation.
    """

    actions: Float32[Array, "N Tp A"]
    execute: int
    start_time: Float64[Array, " N"] | None = None


@dataclass(frozen=True)
class StepResult:
    """What one ActionChunk did in N envs.

    Attributes:
        observation: after auto-reset: the first frame of the next episode where one ended.
        final_observation: before auto-reset: what the last executed action led to (bootstrap from this one).
        rewards: float32 (N, Ta), as the simulator gave them, zero where not executed; gamma enters in returns.py only.
        mask: bool (N, Ta), True where the action was really executed.
        executed: int64 (N,), number of executed actions; 0 for an idle env.
        terminated: bool (N,), a true end of the task.
        truncated: bool (N,), the time limit, or a person or a stop ended the episode.
        success: bool (N,), success at any step of this chunk.
        success_at_end: bool (N,), success at the last executed step.
        step_success: bool (N, Ta), success after each executed action.
        frames: key of EnvSpec.observation -> (N, Ta, ...), the frame after each executed action, for recorders that
            want every step of a chunk; rows behind `executed` are undefined.
        played: float32 (N, Ta, A), the actions as they were executed, where limits may bend them (a robot); None: as asked.
    """

    observation: Observation
    final_observation: Observation
    rewards: Float32[Array, "N Ta"]
    mask: Bool[Array, "N Ta"]
    executed: Int64[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    success: Bool[Array, " N"]
    success_at_end: Bool[Array, " N"]
    step_success: Bool[Array, "N Ta"]
    frames: Mapping[str, Array]
    played: Float32[Array, "N Ta A"] | None = None


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, numpy. Row t of `observation` is what action t answered to.

    Attributes:
        observation: key of EnvSpec.observation -> (T, ...).
        final_observation: key -> (...), what the last action led to.
        action: float32 (T, A), executed, physical units.
        reward: float32 (T,).
        success: bool (T,), success signal after each action.
        terminated, truncated: how it ended (both False: cut by a person).
        source: uint8 (T,), see Source.
        time: float64 (T,), seconds since the episode began.
        metadata: JSON types: "seed", "collector", and whatever a tool adds.
    """

    observation: Mapping[str, Array]
    final_observation: Mapping[str, Array]
    action: Float32[Array, "T A"]
    reward: Float32[Array, " T"]
    success: Bool[Array, " T"]
    terminated: bool
    truncated: bool
    source: UInt8[Array, " T"]
    time: Float64[Array, " T"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.action.shape[0])


@dataclass(frozen=True)
class Window:
    """A batch of training samples cut from episodes.

    Attributes:
        observation: (B, To, ...).
        actions: float32 (B, Tp, A), physical units (the policy normalises).
        valid: bool (B, Tp), False behind the end of the episode (there the last action is repeated).
        reward: float32 (B, Tp), zero where not valid.
        next_observation: (B, To, ...), after the first `execute` actions, or None when not asked for.
        discount: float32 (B,), gamma^executed * (1 - terminated), or None when not asked for.
        source: uint8 (B,), of the first action.
    """

    observation: Observation
    actions: Float32[Array, "B Tp A"]
    valid: Bool[Array, "B Tp"]
    reward: Float32[Array, "B Tp"]
    next_observation: Observation | None
    discount: Float32[Array, " B"] | None
    source: UInt8[Array, " B"]


@dataclass(frozen=True)
class DenoisingChain:
    """Everything PPO needs of one sampling: states and actions of the denoising MDP (RL-100, section 1.3).

    Attributes:
        latents: float32 (B, K+1, Tp, A), index 0 = pure noise; normalised, never clipped.
        log_prob: float32 (B, K), summed over Tp and A; zero for a deterministic step.
        levels: int64 (K,), the diffusion level each step starts from, noisiest first.
    """

    latents: Float32[Array, "B K1 Tp A"]
    log_prob: Float32[Array, "B K"]
    levels: Int64[Array, " K"]


@dataclass(frozen=True)
class OpeEstimate:
    """Paired off-policy estimate of a candidate against the incumbent on the same start states."""

    candidate: float
    incumbent: float
    difference: float
    low: float
    high: float
    start_states: int


@dataclass(frozen=True)
class GateDecision:
    """Whether an update is kept, and why."""

    estimate: OpeEstimate
    accepted: bool
    reason: str


@dataclass(frozen=True)
class Reading:
    """What a robot measured last: one frame of everything, each with the time of its capture.

    Attributes:
        frames: key of EnvSpec.observation -> array without batch and time, as the policy's spec has it.
        stamps: stream ("joints", "pose", "wrench", "state", "image/<camera>") -> CLOCK_MONOTONIC seconds of capture.
            A stream that never came is missing.
        position: joint positions in the order of RobotCard.joints, float64 (J,), rad or m.
        velocity: likewise, float64 (J,), or None where the robot does not say.
        pose: of the end effector in the base frame, m and quaternion wxyz, float64 (7,), or None.
        gripper: opening in the robot's own unit (RobotCard.gripper), or None.
        wrench: force N and torque N m, float64 (6,), or None.
    """

    frames: Mapping[str, Array]
    stamps: Mapping[str, float]
    position: Float64[Array, " J"]
    velocity: Float64[Array, " J"] | None = None
    pose: Float64[Array, "7"] | None = None
    gripper: float | None = None
    wrench: Float64[Array, "6"] | None = None


@dataclass(frozen=True)
class Goal:
    """What a robot is told to do next. Exactly one of position, pose and twist is there (RobotCard.command says which).

    Attributes:
        position: joint positions in the order of RobotCard.joints, float64 (J,), rad or m.
        pose: of the end effector in the base frame, m and quaternion wxyz, float64 (7,).
        twist: of the end effector in the base frame, m/s and rad/s, float64 (6,).
        velocity: of the joints at `position`, float64 (J,), where the robot takes it.
        gripper: opening in the robot's own unit, or None without a gripper.
    """

    position: Float64[Array, " J"] | None = None
    pose: Float64[Array, "7"] | None = None
    twist: Float64[Array, "6"] | None = None
    velocity: Float64[Array, " J"] | None = None
    gripper: float | None = None


@dataclass(frozen=True)
class CameraFrame:
    """One picture.

    Attributes:
        image: uint8 (H, W, 3), RGB, read-only; a copy of the reader's own, it never changes.
        stamp_s: capture, CLOCK_MONOTONIC seconds (time.monotonic()).
        sequence: 1, 2, ... since `connect`; the same number is the same frame.
    """

    image: UInt8[Array, "H W 3"]
    stamp_s: float
    sequence: int


@dataclass(frozen=True)
class CameraStatus:
    """How a camera does.

    Attributes:
        name: of the camera.
        state: closed, starting, streaming, frozen (streaming, but no new picture for `frozen_after_s`), disconnected
            (the device is looked for) or failed (its process has ended; `read` raises).
        age_s: since the capture of the newest frame; infinite before the first.
        frames: new pictures so far.
        dropped: lost on the way, by the device's count or by gaps between stamps.
        repeats: pictures equal to the one before, bit for bit; `repeats_in_row` up to now without a new one.
        wrong_shapes: pictures of another size.
        reconnects: times the device was lost and came back.
        rate_hz: of the last 30 intervals; 0 before.
        stamps: "driver" (the driver's capture times) or "arrival" (it has none that can be used).
        problems: one text for each thing that is wrong now.
    """

    name: str
    state: str
    age_s: float = float("inf")
    frames: int = 0
    dropped: int = 0
    repeats: int = 0
    repeats_in_row: int = 0
    wrong_shapes: int = 0
    reconnects: int = 0
    rate_hz: float = 0.0
    stamps: str = ""
    problems: tuple[str, ...] = ()
