"""Response of the robot to its actions: how many steps later it moves, and whether the gripper goes the declared way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.data.element_names import gripper_elements, names_of, open_is_high, rotations, units_of, width_elements
from robot_rl.data.quality import Finding, Limits, Place, Severity
from robot_rl.specs import ActionKind, EnvSpec
from robot_rl.types import Episode

MOST_STEPS = 10
_LEAST_STEPS = 100
# A weaker correlation than this says nothing about when or which way something moves.
_CLEAR = 0.5
_NO_POSITION = re.compile(r"/s|^N|qvel|velocity|force|torque|effort|grasp|contact|(^|[^a-z])is_")


@dataclass(frozen=True)
class Lag:
    """When an element of the action shows in an observation.

    Attributes:
        element: of the action.
        key, column: the coordinate whose speed follows it best.
        steps: 0: it moves between this observation and the next; negative: before the action.
        correlation: at that lag.
    """

    element: int
    key: str
    column: int
    steps: int
    correlation: float


@dataclass
class Response:
    """Sums over episodes from which lags and polarity are read; feed it with `add`.

    Attributes:
        spec: of the dataset.
    """

    spec: EnvSpec
    _cross: np.ndarray | None = None
    _action: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _speed: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _grip: np.ndarray | None = None
    _steps: int = 0

    def __post_init__(self) -> None:
        self._columns = position_columns(self.spec)
        self._grippers = gripper_elements(self.spec.action)
        self._widths = [
            (key, column)
            for key in sorted(self.spec.observation, key=lambda key: key != "proprio")
            if len(self.spec.observation[key].shape) == 1
            for column in width_elements(self.spec.observation[key], self.spec)
        ]

    def add(self, episode: Episode) -> None:
        """Count one episode; one with numbers that are not finite is left out."""
        steps = len(episode)
        if steps < 3 or not np.isfinite(episode.action).all():
            return
        action = np.asarray(episode.action, np.float64).reshape(steps, -1)
        self._steps += steps
        if self._columns:
            moved = np.diff(_columns(episode, self._columns), axis=0)
            wanted = action
            if self.spec.action_semantics.kind is ActionKind.absolute:
                wanted = np.diff(action, axis=0, prepend=action[:1])
            self._add_motion(wanted, moved)
        if self._grippers and self._widths:
            self._add_grip(action[:, self._grippers], _columns(episode, self._widths))

    def lags(self) -> list[Lag]:
        """For each element of the action that clearly moves something; grippers left out."""
        if self._cross is None or self._steps < _LEAST_STEPS:
            return []
        scale = np.sqrt(np.outer(self._action, self._speed))
        correlation = np.where(scale > 0, self._cross / np.where(scale > 0, scale, 1), 0)
        out = []
        for element in range(correlation.shape[1]):
            if element in self._grippers:
                continue
            shift, column = np.unravel_index(np.argmax(np.abs(correlation[:, element])), correlation[:, element].shape)
            best = float(correlation[shift, element, column])
            if abs(best) >= _CLEAR:
                key, index = self._columns[int(column)]
                out.append(Lag(element, key, index, int(shift) - MOST_STEPS, best))
        return out

    def grip(self) -> float | None:
        """Strongest correlation between a gripper's command and its width, with its sign; None where neither moves."""
        if self._grip is None or self._steps < _LEAST_STEPS:
            return None
        count, a, w, aw, aa, ww = self._grip
        covariance = aw * count - a * w
        scale = np.sqrt(np.maximum(aa * count - a**2, 0) * np.maximum(ww * count - w**2, 0))
        clear = scale > 1e-9 * count**2 * 1e-6
        correlation = np.where(clear, covariance / np.where(clear, scale, 1), 0)
        best = float(correlation.flat[np.argmax(np.abs(correlation))])
        return best if clear.any() else None

    def _add_motion(self, wanted: np.ndarray, moved: np.ndarray) -> None:
        steps = len(wanted)
        wanted, moved = wanted - wanted.mean(axis=0), moved - moved.mean(axis=0)
        if self._cross is None:
            self._cross = np.zeros((2 * MOST_STEPS + 1, wanted.shape[1], moved.shape[1]))
            self._action, self._speed = np.zeros(wanted.shape[1]), np.zeros(moved.shape[1])
        for index, shift in enumerate(range(-MOST_STEPS, MOST_STEPS + 1)):
            if abs(shift) < steps:
                early, late = (wanted, moved) if shift >= 0 else (moved, wanted)
                product = early[: steps - abs(shift)].T @ late[abs(shift) :]
                self._cross[index] += product if shift >= 0 else product.T
        self._action += (wanted**2).sum(axis=0)
        self._speed += (moved**2).sum(axis=0)

    def _add_grip(self, command: np.ndarray, width: np.ndarray) -> None:
        """Sums for commands against widths 1 to MOST_STEPS steps later."""
        if self._grip is None:
            self._grip = np.zeros((6, MOST_STEPS, command.shape[1], width.shape[1]))
        for later in range(1, MOST_STEPS + 1):
            a, w = command[: len(width) - later], width[later:]
            if not len(w):
                break
            ones_a, ones_w = np.ones_like(a), np.ones_like(w)
            pairs = ((ones_a, ones_w), (a, ones_w), (ones_a, w), (a, w), (a**2, ones_w), (ones_a, w**2))
            self._grip[:, later - 1] += np.stack([left.T @ right for left, right in pairs])


def position_columns(spec: EnvSpec) -> list[tuple[str, int]]:
    """(key, element) of the coordinates whose speed may answer an action: proprio first, no speeds and no rotations."""
    out = []
    for key in sorted(spec.observation, key=lambda key: key != "proprio"):
        array = spec.observation[key]
        if len(array.shape) != 1 or np.dtype(array.dtype).kind != "f" or array.size > 256 or key.startswith("age/"):
            continue
        taken = {column for group in rotations(array) for column in range(group.first, group.stop)}
        for column, (name, unit) in enumerate(zip(names_of(array), units_of(array), strict=True)):
            if column not in taken and not _NO_POSITION.search(unit) and not _NO_POSITION.search(name.lower()):
                out.append((key, column))
    return out


def response_findings(response: Response, limits: Limits) -> Iterator[Finding]:
    """Actions that show before they are given or much later, and a gripper that goes the other way."""
    spec, lags = response.spec, response.lags()
    if lags:
        median = float(np.median([lag.steps for lag in lags]))
        late_ms = 1000 * median / spec.control_hz
        said = ", ".join(f"{names_of(spec.action)[lag.element]}: {lag.steps}" for lag in lags[:4])
        if median <= -1:
            yield Finding(
                "lag", Severity.error, Place(key="action", element=lags[0].element),
                f"motion comes {-median:g} steps ({-late_ms:.0f} ms) before the action that causes it ({said})", median,
                "Actions and observations are shifted against each other: correct the source and import again.",
            )  # fmt: skip
        elif median > 2 and late_ms > limits.late_ms:
            yield Finding(
                "lag", Severity.warning, Place(key="action", element=lags[0].element),
                f"motion follows its action only after {median:g} steps ({late_ms:.0f} ms; {said})", median,
                "Check the delay of the robot and the stamps of the observations; give the policy a longer history.",
            )  # fmt: skip
    yield from _polarity(response)


def _polarity(response: Response) -> Iterator[Finding]:
    spec = response.spec
    grippers, declared = gripper_elements(spec.action), open_is_high(spec.action_semantics.gripper)
    if not grippers:
        return
    place = Place(key="action", element=grippers[0])
    if declared is None:
        yield Finding(
            "gripper", Severity.note, place,
            f"the declared gripper {spec.action_semantics.gripper!r} does not say which number opens", None,
            'Write it as "-1 closed .. 1 open".',
        )  # fmt: skip
        return
    seen = response.grip()
    if seen is not None and abs(seen) >= _CLEAR and (seen > 0) != declared:
        yield Finding(
            "gripper", Severity.error, place,
            f"{spec.action_semantics.gripper!r} is declared, but larger numbers "
            f"{'open' if seen > 0 else 'close'} the fingers (correlation {seen:.2f})", seen,
            "Correct the declaration, or the sign when importing: a robot would open where it shall grasp.",
        )  # fmt: skip


def _columns(episode: Episode, columns: Sequence[tuple[str, int]]) -> Float64[Array, "T1 D"]:
    """Columns of the observations and the final one, (T + 1, D)."""
    by_key: dict[str, list[int]] = {}
    for key, column in columns:
        by_key.setdefault(key, []).append(column)
    parts = []
    for key, picked in by_key.items():
        rows = np.concatenate([episode.observation[key], np.asarray(episode.final_observation[key])[None]])
        parts.append(rows[:, picked].astype(np.float64))
    joined: np.ndarray = np.concatenate(parts, axis=1)
    return joined
