"""What arrays mean: shape, unit, range and meaning of observations and actions. No torch here.

A spec goes into every dataset, checkpoint and export, so that numbers never travel without their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import DataError


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
