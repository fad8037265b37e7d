"""From chunks to the action that is due now, and from readings to the history a policy wants.

A chunk is followed by time: action i of it is due from start + i * period on, where start is the time of the slot whose
observation it answers. So an answer that comes late begins at the action that is due then, not at its first one, and after
the last usable action nothing is due: it is never played again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from robot_rl.arrays import Array, Float32
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation, Reading

# A slot that begins a rounding error before its time is in time.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class DueAction:
    """The action of one moment.

    Attributes:
        action: float32 (A,), physical units.
        request: number of the request that its chunk answers.
        index: of the action in its chunk.
    """

    action: Float32[Array, " A"]
    request: int
    index: int


@dataclass(frozen=True)
class _Chunk:
    actions: np.ndarray
    request: int
    start_s: float


class ChunkFollower:
    """Which action is due; see the text of this module.

    Args:
        period_s: between two actions.
        execute: Ta, actions that a chunk is meant to give.
        late_s: how long the next chunk may be late: so much more of a chunk's prediction may be used, as far as it goes.
    """

    def __init__(self, *, period_s: float, execute: int, late_s: float) -> None:
        self.period_s = period_s
        self.usable = execute + math.floor(late_s / period_s + _ROUNDING)
        self._chunk: _Chunk | None = None
        self._oldest_request = 0
        self.dropped = 0

    def forget(self, *, next_request: int) -> None:
        """A new episode: nothing is due, and answers to requests before `next_request` are dropped when they come."""
        self._chunk, self._oldest_request = None, next_request

    def take(self, actions: Float32[Array, "Tp A"], *, request: int, start_s: float, now_s: float) -> bool:
        """Hand over to a chunk that came just now.

        Args:
            actions: of the chunk.
            request: which request it answers; one not newer than that of the chunk being followed is dropped.
            start_s: time of the slot whose observation it answers.
            now_s: a chunk of which nothing is due any more is dropped.

        Returns:
            Whether it is followed from now on.
        """
        chunk = _Chunk(actions, request, start_s)
        newest = self._oldest_request - 1 if self._chunk is None else self._chunk.request
        if request <= newest or request < self._oldest_request or self._index(chunk, now_s) is None:
            self.dropped += 1
            return False
        self._chunk = chunk
        return True

    def due(self, now_s: float) -> DueAction | None:
        """The action for `now_s`; None without a chunk, before its start, and after its last usable action."""
        chunk = self._chunk
        index = None if chunk is None else self._index(chunk, now_s)
        if chunk is None or index is None:
            return None
        return DueAction(chunk.actions[index], chunk.request, index)

    def _index(self, chunk: _Chunk, now_s: float) -> int | None:
        index = math.floor((now_s - chunk.start_s) / self.period_s + _ROUNDING)
        return index if 0 <= index < min(self.usable, len(chunk.actions)) else None


@dataclass(frozen=True)
class AgeVerdict:
    """How old a reading is.

    Attributes:
        age_s: of the stream that used up most of its threshold; inf: one never came; negative: a stamp in the future.
        stream: its name; "" for a robot without streams.
        is_stale: whether it is too old, missing, or of the future.
    """

    age_s: float
    stream: str
    is_stale: bool


@dataclass(frozen=True)
class AgeCheck:
    """Judges the stamps of readings.

    Attributes:
        thresholds_s: stream -> largest age; each one must be there.
        future_s: how far a stamp may lie ahead, for the rounding between two clocks.
    """

    thresholds_s: Mapping[str, float] = field(default_factory=dict)
    future_s: float = 2e-3

    def judge(self, reading: Reading, now_s: float) -> AgeVerdict:
        """The worst stream of a reading at `now_s`, in seconds of CLOCK_MONOTONIC."""
        worst, worst_share = AgeVerdict(0.0, "", False), -math.inf
        for stream, most_s in self.thresholds_s.items():
            age_s = now_s - reading.stamps.get(stream, -math.inf)
            is_bad = not -self.future_s <= age_s <= most_s
            share = age_s / most_s if age_s >= -self.future_s else math.inf
            if math.isnan(age_s) or share > worst_share:
                worst, worst_share = AgeVerdict(age_s, stream, is_bad), math.inf if math.isnan(age_s) else share
        return worst


class ObservationHistory:
    """The last To frames as a policy wants them; at the beginning the first frame fills the past, as in training.

    Args:
        spec: of the policy.
        keys: that the policy uses.
        history: To.
    """

    def __init__(self, spec: EnvSpec, *, keys: tuple[str, ...], history: int) -> None:
        self._specs = {key: spec.observation[key] for key in keys}
        self._frames: deque[dict[str, np.ndarray]] = deque(maxlen=history)

    def forget(self) -> None:
        """A new episode begins."""
        self._frames.clear()

    def push(self, reading: Reading) -> None:
        """Add the frame of one action period.

        Raises:
            DeployError: a key is missing.
            DataError: a shape is not the policy's, or a number is not finite.
        """
        frame = {}
        for key, spec in self._specs.items():
            if key not in reading.frames:
                raise DeployError(
                    f"reading, key {key!r}", expected="a frame", got=f"only {sorted(reading.frames)}",
                    hint="The stream did not come, or the robot has no such sensor.",
                )  # fmt: skip
            value = np.asarray(reading.frames[key])
            if value.shape != spec.shape:
                raise DataError(
                    f"reading, key {key!r}", expected=f"shape {spec.shape}", got=str(value.shape),
                    hint="The policy was trained on another resolution or sensor.",
                )  # fmt: skip
            spec.validate(value, where="reading")
            frame[key] = value.astype(spec.dtype, copy=True)
        while len(self._frames) < (self._frames.maxlen or 1) - 1:
            self._frames.append(frame)
        self._frames.append(frame)

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to ask a policy about."""
        return bool(self._frames)

    def observation(self) -> Observation:
        """All To frames, for one env."""
        arrays = {key: np.stack([frame[key] for frame in self._frames])[None] for key in self._specs}
        if "proprio" not in arrays:  # a policy of images alone; Observation wants the key
            arrays["proprio"] = np.zeros((1, len(self._frames), 0), np.float32)
        return Observation.from_arrays(arrays)
