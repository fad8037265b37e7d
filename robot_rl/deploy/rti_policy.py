"""RTI as two exported files: policy.onnx denoises in full, rti.onnx goes on from the rest of the last chunk (numpy, no torch).

rti.onnx has the remaining denoising levels as its graph; its inputs are the observation keys, `guess` (physical actions)
and, where something is drawn, `noise`. What jumps is decided here and not in the graph, so that a graph is smooth and every
runtime and precision can be compared with onnxruntime: whether the observation jumped, and the sign of an element with two
values. The numbers for it are in the file's metadata, under "rti". Source: RTI-DP (arXiv 2508.05396), docs/rti.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Bool, Float32
from robot_rl.deploy.engine_cache import file_sha256
from robot_rl.deploy.noise import NoiseSource
from robot_rl.deploy.onnx_policy import OnnxPolicy
from robot_rl.deploy.warm_memory import WarmCounts, WarmMemory
from robot_rl.errors import DeployError
from robot_rl.types import ActionChunk, Observation

FULL_FILE = "policy.onnx"
# Of both files, or they are not of one policy.
_SAME = ("spec", "config", "policy", "noise", "checkpoint")


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


class RtiPolicy:
    """A Policy of two exported files. Every row keeps its own state (warm_memory.py).

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
        # Actions that are denoised before the first one that is returned.
        self._past = self.noise_shape[1] - self.config.horizon
        self._memory = WarmMemory()

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
        self._memory = self._memory.without(np.asarray(mask, dtype=bool))

    def start_from(self, rest: Float32[Array, "Tp A"] | None) -> None:
        """What the next decision of the one env starts from, in place of the rest of its last chunk.

        Args:
            rest: physical actions from the next decision on; None: nothing, so it is denoised in full.

        Raises:
            PolicyError: there are several envs.
        """
        self._memory = self._memory.told(rest, past=self._past)

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
        known, is_warm = self._memory.rows(frame, max_jump=self._settings["max_jump"])
        actions = np.empty((len(noise), self.config.horizon, *self.spec.action.shape), np.float32)
        if not is_warm.all():
            feed = {"noise": noise} | inputs
            actions[~is_warm] = self.full.session.run(["actions"], _rows_of(feed, ~is_warm))[0]
        if is_warm.any():
            actions[is_warm] = self._continued(inputs, noise, is_warm)
        self.counts.add(known, is_warm)
        self._memory = WarmMemory.after(actions, frame, executed=self.config.execute, past=self._past)
        return ActionChunk(actions=actions, execute=self.config.execute)

    def _continued(self, inputs: dict[str, Array], noise: Array, rows: np.ndarray) -> np.ndarray:
        guess = self._memory.guess.copy()
        for two in self.discrete:
            guess[..., two.at] = np.where(guess[..., two.at] >= np.float32(two.middle), two.starts[1], two.starts[0])
        feed = inputs | {"guess": guess} | ({"noise": noise[:, : self._draws]} if self._draws else {})
        # A copy: a runtime may own the memory of its answer.
        actions = np.array(self.warm.session.run(["actions"], _rows_of(feed, rows))[0])
        for two in self.discrete:
            actions[..., two.at] = np.where(actions[..., two.at] >= np.float32(two.middle), two.ends[1], two.ends[0])
        return actions

    def _frame(self, inputs: dict[str, Array], count: int) -> np.ndarray:
        """Newest frame of the observed numbers, normalised float32 (N, D); of images alone one zero: nothing is watched."""
        parts = [np.zeros((count, 0 if self._maps else 1), np.float32)]
        for key, (offset, gain, limit) in self._maps.items():
            parts.append(np.clip((inputs[key][:, -1] - offset) * gain, -limit, limit))
        return np.concatenate(parts, axis=-1)


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
