"""The data types of the whole project. Nothing here imports torch: arrays are numpy on a robot, tensors in training.

Dimension legend, the only one:
    N parallel envs, B batch, T time in an episode, To observation history, Tp predicted chunk, Ta executed part,
    A action, P proprioception, S low-dimensional state, K denoising steps, M points, E ensemble, C condition,
    H W image rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum, IntEnum
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32, Float64, Int64, UInt8
from robot_rl.errors import DataError


class Source(IntEnum):
    """Who chose an action. Stored per step as uint8."""

    teleop = 0
    scripted = 1
    policy = 2
    intervention = 3


class ActionKind(str, Enum):
    """What the numbers of an action mean."""

    absolute = "absolute"
    delta = "delta"
    velocity = "velocity"


class DeltaReference(str, Enum):
    """What a delta is added to: the measured pose, or the last commanded target."""

    none = "none"
    measured = "measured"
    target = "target"


@dataclass(frozen=True)
class ActionSemantics:
    """How a robot reads an action; kept in dataset, checkpoint and export, and compared before use.

    Attributes:
        kind: absolute, delta or velocity.
        delta_reference: what a delta is added to; `none` unless kind is delta.
        frame: "joint", or the frame of a Cartesian action ("base", "tool").
        rotation: representation of the rotation part ("none", "euler_xyz", "rotvec", "quat_wxyz", ...).
        gripper: meaning of the gripper number, e.g. "-1 closed .. 1 open"; "none" without a gripper.
        control_mode: the simulator's or driver's own name of the mode.
    """

    kind: ActionKind
    delta_reference: DeltaReference
    frame: str
    rotation: str
    gripper: str
    control_mode: str


@dataclass(frozen=True)
class ArraySpec:
    """Shape, type, range, unit and meaning of one named array (without the batch and time dimensions).

    Attributes:
        name: key in observations and datasets.
        shape: of one sample.
        dtype: numpy name ("float32", "uint8").
        low, high: per element, flattened; None where unbounded or unknown.
        units, meanings: one entry for all elements, or one per element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    units: tuple[str, ...] = ("1",)
    meanings: tuple[str, ...] = ("unspecified",)

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return math.prod(self.shape)

    def validate(self, array: Array, *, where: str) -> None:
        """Check that `array` has this shape behind any leading dimensions, and only finite numbers.

        Raises:
            DataError: naming `where`, this key and the first bad row.
        """
        got_shape = tuple(array.shape)
        if got_shape[len(got_shape) - len(self.shape) :] != self.shape or len(got_shape) < len(self.shape):
            raise DataError(
                f"{where}, key {self.name!r}",
                expected=f"trailing shape {self.shape}",
                got=f"shape {got_shape}",
                hint="The data belongs to another task, robot or observation mode.",
            )
        if np.dtype(self.dtype).kind != "f":
            return
        flat = np.asarray(array).reshape(-1, self.size)
        bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
        if bad.size:
            element = int(np.flatnonzero(~np.isfinite(flat[bad[0]]))[0])
            raise DataError(
                f"{where}, key {self.name!r}, step {int(bad[0])}, element {element}",
                expected="finite numbers",
                got=f"{flat[bad[0], element]} ({bad.size} bad rows)",
                hint="Drop or repair this episode before you use it; nothing was written or trained.",
            )

    def zeros(self) -> np.ndarray:
        """One sample of zeros."""
        return np.zeros(self.shape, dtype=self.dtype)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """One uniform sample inside [low, high] (standard normal where unbounded).

        Raises:
            DataError: when low and high do not have `size` entries.
        """
        if self.low is None or self.high is None:
            return rng.standard_normal(self.shape).astype(self.dtype)
        if len(self.low) != self.size or len(self.high) != self.size:
            raise DataError(
                f"ArraySpec {self.name!r}",
                expected=f"{self.size} lows and highs",
                got=f"{len(self.low)} and {len(self.high)}",
                hint="Give one bound per element.",
            )
        return rng.uniform(self.low, self.high).reshape(self.shape).astype(self.dtype)


@dataclass(frozen=True)
class EnvSpec:
    """What an environment offers. Inside every dataset, checkpoint and export.

    Attributes:
        env_id: name of the task.
        observation: key -> ArraySpec. Keys: "proprio", "state", "points", and "image/<camera>".
        action: physical action as the environment takes it.
        action_semantics: how it is read.
        joint_names: names of the joints in proprio, in order.
        robot: name of the robot.
        control_hz: actions per second.
        max_episode_steps: time limit in env steps.
        has_success: whether the environment reports success.
    """

    env_id: str
    observation: Mapping[str, ArraySpec]
    action: ArraySpec
    action_semantics: ActionSemantics
    joint_names: tuple[str, ...]
    robot: str
    control_hz: float
    max_episode_steps: int
    has_success: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        out = asdict(replace(self, observation={}))
        out["observation"] = {key: asdict(spec) for key, spec in self.observation.items()}
        out["action_semantics"] = {k: getattr(v, "value", v) for k, v in out["action_semantics"].items()}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EnvSpec:
        """Inverse of `to_json`. Raises KeyError or TypeError on foreign data."""
        semantics = dict(data["action_semantics"])
        semantics["kind"] = ActionKind(semantics["kind"])
        semantics["delta_reference"] = DeltaReference(semantics["delta_reference"])
        known = {f.name for f in fields(cls)}
        plain = {k: v for k, v in data.items() if k in known}
        plain["observation"] = {k: _array_spec(v) for k, v in data["observation"].items()}
        plain["action"] = _array_spec(data["action"])
        plain["action_semantics"] = ActionSemantics(**semantics)
        plain["joint_names"] = tuple(data["joint_names"])
        return cls(**plain)


def _array_spec(data: Mapping[str, Any]) -> ArraySpec:
    plain = dict(data)
    for key in ("shape", "low", "high", "units", "meanings"):
        if plain.get(key) is not None:
            plain[key] = tuple(plain[key])
    return ArraySpec(**plain)


@dataclass(frozen=True)
class Observation:
    """What a policy sees: a history of To frames for each of N envs.

    Attributes:
        proprio: the robot's own sensors, float32 (N, To, P), units in the spec.
        state: low-dimensional state of robot and scene that only a simulator knows, float32 (N, To, S), or None.
        images: camera -> uint8 (N, To, H, W, 3), RGB.
        points: float32 (N, To, M, 3 or 6), metres in the base frame (and RGB 0..1), or None.
        instruction: one text per env, or None.
        time: float64 (N, To), seconds since the episode began, or None.
    """

    proprio: Float32[Array, "N To P"]
    state: Float32[Array, "N To S"] | None = None
    images: Mapping[str, UInt8[Array, "N To H W 3"]] = field(default_factory=dict)
    points: Float32[Array, "N To M D"] | None = None
    instruction: tuple[str, ...] | None = None
    time: Float64[Array, "N To"] | None = None

    def arrays(self) -> dict[str, Array]:
        """Flat view: key of EnvSpec.observation -> array (time and instruction left out)."""
        out = {"proprio": self.proprio}
        if self.state is not None:
            out["state"] = self.state
        if self.points is not None:
            out["points"] = self.points
        return out | {f"image/{camera}": image for camera, image in self.images.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], *, time: Array | None = None) -> Observation:
        """Inverse of `arrays`. Raises KeyError when "proprio" is missing."""
        images = {k.removeprefix("image/"): v for k, v in arrays.items() if k.startswith("image/")}
        return cls(
            proprio=arrays["proprio"],
            state=arrays.get("state"),
            images=images,
            points=arrays.get("points"),
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
        truncated: bool (N,), the time limit.
        success: bool (N,), success at any step of this chunk.
        success_at_end: bool (N,), success at the last executed step.
        step_success: bool (N, Ta), success after each executed action.
        frames: key of EnvSpec.observation -> (N, Ta, ...), the frame after each executed action, for recorders that
            want every step of a chunk; rows behind `executed` are undefined.
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
