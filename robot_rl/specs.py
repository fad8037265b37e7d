"""What arrays mean: shape, unit, range and meaning of observations and actions. No torch here.

A spec goes into every dataset, checkpoint and export, so that numbers never travel without their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from enum import Enum
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import DataError, closest


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
class CameraSpec:
    """How a camera sees: a pinhole without distortion, axes as OpenCV's (x right, y down, z forward).

    Attributes:
        width, height: pixels.
        fx, fy: focal lengths, pixels.
        cx, cy: where the optical axis meets the image, pixels; the middle of the first pixel is (0, 0), as in OpenCV.
        position_m: of the camera in `frame`.
        quaternion_wxyz: of unit length; turns the camera's axes into those of `frame`.
        frame: "base" (of the robot), or the link that the camera is mounted on.
        channels: of its images; "RGB" is what everything here stores and reads.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    position_m: tuple[float, ...] = (0.0, 0.0, 0.0)
    quaternion_wxyz: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    frame: str = "base"
    channels: str = "RGB"


@dataclass(frozen=True)
class EnvSpec:
    """What an environment offers. Inside every dataset, checkpoint and export.

    Attributes:
        env_id: name of the task.
        observation: key -> ArraySpec. Keys: "proprio", "state", "points", "image/<camera>" and "depth/<camera>" (m).
        action: physical action as the environment takes it.
        action_semantics: how it is read.
        joint_names: names of the joints in proprio, in order.
        robot: name of the robot.
        control_hz: actions per second.
        max_episode_steps: time limit in env steps.
        has_success: whether the environment reports success.
        cameras: camera -> how it sees, for those that are known; the names are those of "image/<camera>".
        point_cloud: how "points" were cropped and sampled (deploy/point_cloud.py, `points_to_json`); empty: not known.
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
    cameras: Mapping[str, CameraSpec] = field(default_factory=dict)
    point_cloud: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `cameras` and `point_cloud` only where there are some."""
        out = asdict(replace(self, observation={}, cameras={}))
        out.pop("cameras")
        if not self.point_cloud:
            out.pop("point_cloud")
        if self.cameras:
            out["cameras"] = {name: asdict(camera) for name, camera in self.cameras.items()}
        out["observation"] = {key: asdict(spec) for key, spec in self.observation.items()}
        out["action_semantics"] = {k: getattr(v, "value", v) for k, v in out["action_semantics"].items()}
        return out

    @classmethod
    def from_json(cls, data: Any, *, where: str = "spec of an environment") -> EnvSpec:
        """Inverse of `to_json`; every field must have its type and a length that fits the shape.

        Args:
            data: what a JSON or YAML file holds.
            where: the file, for errors.

        Raises:
            DataError: naming the field: unknown, missing, of another type, not finite, or against another field.
        """
        plain = _fields(data, cls, where)
        arrays = _typed(plain["observation"], Mapping, f"{where}, observation", "an object of arrays")
        plain["observation"] = {key: _array_spec(value, f"{where}, {key}") for key, value in arrays.items()}
        for key, array in plain["observation"].items():
            _require(array.name == key, f"{where}, {key}, name", repr(key), repr(array.name))
        plain["action"] = _array_spec(plain["action"], f"{where}, action")
        plain["action_semantics"] = _action_semantics(plain["action_semantics"], f"{where}, action_semantics")
        plain["joint_names"] = _texts(plain["joint_names"], f"{where}, joint_names")
        for key in ("env_id", "robot"):
            _typed(plain[key], str, f"{where}, {key}", "a text")
        hz, steps = plain["control_hz"], plain["max_episode_steps"]
        _require(_is_number(hz) and 0 < hz < math.inf, f"{where}, control_hz", "a number above 0", _shown(hz))
        _require(_is_whole(steps) and steps > 0, f"{where}, max_episode_steps", "a whole number above 0", _shown(steps))
        _typed(plain.get("has_success", True), bool, f"{where}, has_success", "true or false")
        cameras = _typed(plain.get("cameras", {}), Mapping, f"{where}, cameras", "an object of cameras")
        plain["cameras"] = {
            name: camera_from_json(value, where=f"{where}, camera {name!r}") for name, value in cameras.items()
        }
        plain["point_cloud"] = _typed(plain.get("point_cloud", {}), Mapping, f"{where}, point_cloud", "an object")
        return cls(**{**plain, "control_hz": float(hz)})


_CORRECT = "Correct it, or restore the file from a copy; nothing was read."


def _array_spec(data: Any, where: str) -> ArraySpec:
    plain = _fields(data, ArraySpec, where)
    _typed(plain["name"], str, f"{where}, name", "a text")
    shape = tuple(_typed(plain["shape"], list | tuple, f"{where}, shape", "a list of whole numbers"))
    _require(all(_is_whole(n) and n > 0 for n in shape), f"{where}, shape", "whole numbers above 0", _shown(shape))
    dtype, size = plain.get("dtype", "float32"), math.prod(shape)
    _require(dtype in _DTYPES, f"{where}, dtype", f"one of {', '.join(_DTYPES)}", _shown(dtype))
    out: dict[str, Any] = {**plain, "shape": shape}
    for key in ("low", "high"):
        if plain.get(key) is None:
            continue
        bound = tuple(_typed(plain[key], list | tuple, f"{where}, {key}", "a list of numbers, or null"))
        _require(all(map(_is_number, bound)), f"{where}, {key}", "numbers that are not NaN", _shown(bound))
        _require(len(bound) == size, f"{where}, {key}", f"{size} numbers", f"{len(bound)}")
        out[key] = tuple(map(float, bound))
    low, high = out.get("low"), out.get("high")
    if low is not None and high is not None:
        wrong = [number for number, pair in enumerate(zip(low, high, strict=True)) if pair[0] > pair[1]]
        _require(not wrong, f"{where}, low and high", "low <= high", f"the opposite in elements {_shown(wrong)}")
    for key in ("units", "meanings"):
        if key in plain:
            out[key] = _texts(plain[key], f"{where}, {key}")
            _require(len(out[key]) in (1, size), f"{where}, {key}", f"1 or {size} texts", f"{len(out[key])}")
    return ArraySpec(**out)


def camera_from_json(data: Any, *, where: str) -> CameraSpec:
    """A camera as a dict of JSON types holds it.

    Args:
        data: fields of a CameraSpec.
        where: the file and the camera, for errors.

    Raises:
        DataError: naming the field: unknown, missing, of another type, or no camera's.
    """
    plain = _fields(data, CameraSpec, where)
    for key in ("width", "height"):
        size = plain[key]
        _require(_is_whole(size) and size > 0, f"{where}, {key}", "a whole number above 0", _shown(size))
    for key, length in (("position_m", 3), ("quaternion_wxyz", 4)):
        if key in plain:
            numbers = tuple(_typed(plain[key], list | tuple, f"{where}, {key}", f"a list of {length} numbers"))
            is_fine = len(numbers) == length and all(_is_number(n) and math.isfinite(n) for n in numbers)
            _require(is_fine, f"{where}, {key}", f"{length} numbers", _shown(numbers))
            plain[key] = tuple(map(float, numbers))
    for key in ("fx", "fy", "cx", "cy"):
        is_fine = _is_number(plain[key]) and math.isfinite(plain[key]) and (key[0] == "c" or plain[key] > 0)
        _require(is_fine, f"{where}, {key}", "a finite number, focal lengths above 0", _shown(plain[key]))
        plain[key] = float(plain[key])
    for key in ("frame", "channels"):
        _typed(plain.get(key, ""), str, f"{where}, {key}", "a text")
    camera = CameraSpec(**plain)
    norm = math.hypot(*camera.quaternion_wxyz)
    _require(abs(norm - 1) < 1e-3, f"{where}, quaternion_wxyz", "unit length", f"length {norm:g}")
    return camera


def _action_semantics(data: Any, where: str) -> ActionSemantics:
    plain = _fields(data, ActionSemantics, where)
    for key in plain:
        _typed(plain[key], str, f"{where}, {key}", "a text")
    kinds: dict[str, type[Enum]] = {"kind": ActionKind, "delta_reference": DeltaReference}
    for key, words in kinds.items():
        options = [word.value for word in words]
        _require(plain[key] in options, f"{where}, {key}", f"one of {', '.join(options)}", repr(plain[key]))
        plain[key] = words(plain[key])
    fits = plain["kind"] is ActionKind.delta or plain["delta_reference"] is DeltaReference.none
    _require(fits, f"{where}, delta_reference", "none unless kind is delta", str(plain["delta_reference"].value))
    return ActionSemantics(**plain)


_DTYPES = (
    "float32",
    "float64",
    "float16",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
)


def _fields(data: Any, cls: type[Any], where: str) -> dict[str, Any]:
    """A JSON object with the fields of a dataclass, no others, and none missing that has no default."""
    plain = dict(_typed(data, Mapping, where, "an object"))
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
    for name in plain:
        if name not in known:
            raise DataError(
                where, expected=f"fields of {cls.__name__}", got=_shown(name), hint=closest(str(name), known)
            )
    missing = [name for name, is_required in known.items() if is_required and name not in plain]
    _require(not missing, where, f"all fields of {cls.__name__}", f"no {', '.join(missing)}")
    return plain


def _typed(value: Any, kind: Any, where: str, expected: str) -> Any:
    _require(isinstance(value, kind), where, expected, _shown(value))
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = tuple(_typed(value, list | tuple, where, "a list of texts"))
    _require(all(isinstance(text, str) for text in texts), where, "texts only", _shown(texts))
    return texts


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) and abs(value) < 2**63) or (isinstance(value, float) and not math.isnan(value))


def _require(holds: bool, where: str, expected: str, got: str) -> None:
    if not holds:
        raise DataError(where, expected=expected, got=got, hint=_CORRECT)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:80] + ' ...' if len(text) > 80 else text} ({type(value).__name__})"
