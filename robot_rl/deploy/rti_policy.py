"""RTI as two exported files: policy.onnx denoises in full, rti.onnx goes on from the rest of the last chunk (numpy, no torch).

rti.onnx has the remaining denoising levels as its graph; its inputs are the observation keys, `guess` (physical actions)
and, where something is drawn, `noise`. What jumps is decided here and not in the graph, so that a graph is smooth and every
runtime and precision can be compared with onnxruntime: whether the observation jumped, and the sign of an element with two
values. The numbers for it are in the file's metadata, under "rti". Source: RTI-DP (arXiv 2508.05396), docs/rti.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.deploy.engine_cache import file_sha256
from robot_rl.deploy.noise import NoiseSource
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.errors import DeployError, PolicyError
from robot_rl.types import ActionChunk, Observation

FULL_FILE = "policy.onnx"
# Of both files, or they are not of one policy.
_SAME = ("spec", "config", "policy", "noise", "checkpoint")


@dataclass
class WarmCounts:
    """Decisions so far, one for each env of each call. Shared by shallow copies of a policy, on purpose: it counts them all.

    Attributes:
        warm: started from the last chunk.
        first: denoised in full, for there was no chunk (first call, after a reset, or the robot held).
        jump: denoised in full, for the observation jumped or the last chunk was not finite.
        full: denoised in full, for rti.level is the noisiest level.
    """

    warm: int = 0
    first: int = 0
    jump: int = 0
    full: int = 0

    def to_json(self) -> dict[str, int]:
        """Plain dict of JSON types."""
        return asdict(self)


def check_rows(number: int, *, before: int) -> None:
    """Refuse another number of envs than at the last decision.

    Raises:
        PolicyError: naming both.
    """
    if number != before:
        raise PolicyError(
            "rti", expected=f"{before} envs, as at the last decision", got=str(number),
            hint="Call reset with a mask of all True before the number of envs changes.",
        )  # fmt: skip


@dataclass(frozen=True)
class TwoValues:
    """An element of the action with two values, physical units.

    Attributes:
        at: the element.
        middle: from here on it is the upper one.
        starts: what stands for the two in a guess.
        ends: what is played.
    """

    at: int
    middle: float
    starts: tuple[float, float]
    ends: tuple[float, float]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TwoValues:
        """Inverse of dataclasses.asdict, of its JSON."""
        return cls(int(data["at"]), float(data["middle"]), tuple(data["starts"]), tuple(data["ends"]))


@dataclass(frozen=True)
class _Last:
    """After a decision: guess (N, G, A) for the next one, newest frame (N, D) normalised, and who has a guess (N,)."""

    guess: np.ndarray
    frame: np.ndarray
    known: np.ndarray


class RtiPolicy:
    """A Policy of two exported files. Every row keeps its own state, which is replaced and never changed in place.

    Args:
        full: policy.onnx.
        warm: rti.onnx, on the same runtime.

    Attributes:
        discrete: elements of the action with two values.
        counts: see WarmCounts.

    Raises:
        DeployError: they are files of two policies.
    """

    device = None
    starts_warm = True

    def __init__(self, full: OnnxPolicy, warm: OnnxPolicy) -> None:
        for key in _SAME:
            if full.metadata.get(key) != warm.metadata.get(key):
                raise _mismatch(warm.path, f"the {key} of {full.path}", "another")
        self.full, self.warm, self.path = full, warm, warm.path
        self.spec, self.config, self.metadata = warm.spec, warm.config, warm.metadata
        self.sampling, self.provider, self.threads = warm.sampling, warm.provider, warm.threads
        self.runtime = warm.runtime
        self.noise_rule, self.noise_seed, self.noise_shape = warm.noise_rule, warm.noise_seed, warm.noise_shape
        told = warm.metadata["rti"]
        self._settings: dict[str, Any] = told["settings"]
        self._draws = int(told["noise_draws"])
        self.discrete = tuple(TwoValues.from_json(element) for element in told["discrete"])
        self._maps = {
            key: tuple(np.float32(numbers[part]) for part in ("offset", "gain", "limit"))
            for key, numbers in told["frame"].items()
        }
        self.counts = WarmCounts()
        self._last: _Last | None = None

    def describe(self) -> dict[str, Any]:
        """JSON types for the protocol of an evaluation: as WarmStartedPolicy.describe."""
        return dict(self._settings)

    def noise(self) -> NoiseSource:
        """The noise source that the file states."""
        return self.warm.noise()

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """Forget the chunks of the envs in `mask`.

        Raises:
            PolicyError: another number of envs than before, and not all of them begin anew.
        """
        begins = np.asarray(mask, dtype=bool)
        if bool(begins.all()):
            self._last = None
        elif self._last is not None:
            self._check_rows(len(begins))
            self._last = replace(self._last, known=self._last.known & ~begins)

    def start_from(self, rest: Float32[Array, "Tp A"] | None) -> None:
        """What the next decision of the one env starts from, in place of the rest of its last chunk.

        Args:
            rest: physical actions from the next decision on; None: nothing, so it is denoised in full.

        Raises:
            PolicyError: there are several envs.
        """
        if self._last is None:
            return  # without a frame to compare with, the decision is denoised in full anyway
        self._check_rows(1)
        known = np.full(1, rest is not None)
        guess = self._last.guess if rest is None else self._shifted(np.asarray(rest, np.float32)[None], 0)
        self._last = replace(self._last, guess=guess, known=known)

    def act(self, observation: Observation, noise: Float32[Array, "N draws G A"]) -> ActionChunk:
        """Choose the next chunk; numpy in and out.

        Raises:
            DeployError: a key that the graphs want is missing, or noise of another shape.
            PolicyError: the number of envs changed without a reset of all.
        """
        if noise.shape[1:] != self.noise_shape:
            raise DeployError(
                f"{self.path}: noise", expected=f"(N, *{self.noise_shape})", got=str(noise.shape), hint="Draw it by noise()."
            )  # fmt: skip
        inputs = self.full.inputs(observation)
        frame = self._frame(inputs, len(noise))
        known, is_warm = self._rows(frame)
        actions = np.empty((len(noise), self.config.horizon, *self.spec.action.shape), np.float32)
        if not is_warm.all():
            feed = {"noise": noise} | inputs
            actions[~is_warm] = self.full.session.run(["actions"], _rows_of(feed, ~is_warm))[0]
        if is_warm.any():
            actions[is_warm] = self._continued(inputs, noise, is_warm)
        self._count(known, is_warm)
        self._last = _Last(self._shifted(actions, self.config.execute), frame, np.ones_like(known))
        return ActionChunk(actions=actions, execute=self.config.execute)

    def _continued(self, inputs: dict[str, Array], noise: Array, rows: np.ndarray) -> np.ndarray:
        assert self._last is not None
        guess = self._last.guess.copy()
        for two in self.discrete:
            guess[..., two.at] = np.where(guess[..., two.at] >= np.float32(two.middle), two.starts[1], two.starts[0])
        feed = inputs | {"guess": guess} | ({"noise": noise[:, : self._draws]} if self._draws else {})
        # A copy: a runtime may own the memory of its answer.
        actions = np.array(self.warm.session.run(["actions"], _rows_of(feed, rows))[0])
        for two in self.discrete:
            actions[..., two.at] = np.where(actions[..., two.at] >= np.float32(two.middle), two.ends[1], two.ends[0])
        return actions

    def _shifted(self, actions: np.ndarray, executed: int) -> np.ndarray:
        """As algorithms.warm_start.shift_chunk, as long as what is denoised."""
        horizon = self.config.horizon
        first = executed - (self.noise_shape[1] - horizon)
        return actions[:, np.clip(np.arange(first, executed + horizon), 0, horizon - 1)]

    def _frame(self, inputs: dict[str, Array], count: int) -> np.ndarray:
        """Newest frame of the observed numbers, normalised float32 (N, D); of images alone one zero: nothing is watched."""
        parts = [np.zeros((count, 0 if self._maps else 1), np.float32)]
        for key, (offset, gain, limit) in self._maps.items():
            parts.append(np.clip((inputs[key][:, -1] - offset) * gain, -limit, limit))
        return np.concatenate(parts, axis=-1)

    def _rows(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows with a guess, and those of them that may start from it."""
        last = self._last
        if last is None:
            nobody = np.zeros(len(frame), bool)
            return nobody, nobody
        self._check_rows(len(frame))
        with np.errstate(invalid="ignore"):
            change = np.abs(frame - last.frame).max(axis=-1)
            # A comparison with NaN is False: what can't be compared is a jump.
            is_near = change <= np.float32(self._settings["max_jump"])
        return last.known, last.known & is_near & np.isfinite(last.guess).all(axis=(1, 2))

    def _check_rows(self, number: int) -> None:
        assert self._last is not None
        check_rows(number, before=len(self._last.known))

    def _count(self, known: np.ndarray, is_warm: np.ndarray) -> None:
        warm, first = int(is_warm.sum()), int((~known).sum())
        self.counts.warm += warm
        self.counts.first += first
        self.counts.jump += len(known) - warm - first


def open_rti(warm: OnnxPolicy, opened: Callable[[Path], OnnxPolicy]) -> RtiPolicy:
    """The policy of an rti.onnx and of the policy.onnx beside it.

    Args:
        warm: rti.onnx.
        opened: opens the other file on the same runtime.

    Raises:
        DeployError: policy.onnx is missing, or another one than rti.onnx was exported with.
    """
    beside = Path(warm.path).parent / FULL_FILE
    if not beside.is_file():
        raise DeployError(
            warm.path, expected=f"{FULL_FILE} beside it, which denoises in full", got="no such file",
            hint="Keep the two files of one export together: the first decision and every jump need it.",
        )  # fmt: skip
    wanted, got = str(warm.metadata["rti"]["policy_sha256"]), file_sha256(beside)
    if got != wanted:
        raise _mismatch(
            warm.path, f"the {FULL_FILE} that it was exported with ({wanted[:12]})", f"{beside} ({got[:12]})"
        )
    return RtiPolicy(opened(beside), warm)


def _rows_of(feed: dict[str, Array], rows: np.ndarray) -> dict[str, Array]:
    return feed if rows.all() else {key: array[rows] for key, array in feed.items()}


def _mismatch(path: str, expected: str, got: str) -> DeployError:
    return DeployError(path, expected=expected, got=got, hint="Keep the two files of one export together.")
