"""Conformance suite for Policy: what rollout, evaluation, distillation and export rely on."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array
from robot_rl.checks.findings import Finding, error, run_checks, skipped, to_numpy, warning
from robot_rl.contracts import Policy
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import ActionChunk, Observation

ROWS = 3
TOLERANCE = 1e-5
POLICY_CHECKS = (
    "contract", "chunk", "finite_actions", "action_bounds", "determinism", "noise_is_used", "batch_independence",
    "inputs_unchanged", "reset_mask", "train_and_eval", "deepcopy", "save_and_load",
)  # fmt: skip

_NO_MODULE = skipped(
    "policy", expected="an nn.Module", got="something else", fix="Nothing to do for an exported or a scripted policy."
)


def sample_observation(spec: EnvSpec, *, history: int, seed: int, num_envs: int = ROWS) -> Observation:
    """Random observation inside the spec's bounds, numpy: (N, To, ...) by key, and time at 0.

    Args:
        spec: of the environment.
        history: To.
        seed: of the numbers.
        num_envs: N.
    """
    rng = np.random.default_rng(seed)

    def one(array: ArraySpec) -> np.ndarray:
        if np.dtype(array.dtype).kind == "f":
            return array.sample(rng)
        low, high = (0, 255) if array.low is None or array.high is None else (min(array.low), max(array.high))
        return rng.integers(int(low), int(high) + 1, size=array.shape).astype(array.dtype)

    arrays = {
        key: np.stack([np.stack([one(array) for _ in range(history)]) for _ in range(num_envs)])
        for key, array in spec.observation.items()
    }
    return Observation.from_arrays(arrays, time=np.zeros((num_envs, history)))


class PolicyTrial:
    """One policy under test, with two observations of three envs and noise for them.

    Args:
        policy: under test.
        spec: of its environment.
        first, second: numpy observations of ROWS envs.
    """

    def __init__(self, policy: Any, spec: EnvSpec, *, first: Observation, second: Observation) -> None:
        self.policy, self.spec, self.first, self.second = policy, spec, first, second
        self.rows = int(first.proprio.shape[0])

    def noise(self, seed: int = 0) -> np.ndarray:
        """Standard normal float32 (N, *noise_shape)."""
        shape = (self.rows, *self.policy.noise_shape)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def ask(
        self, observation: Observation, noise: np.ndarray, *, policy: Any = None, fresh: bool = True
    ) -> ActionChunk:
        """One decision, in the arrays that the policy wants; `fresh` resets every env before it."""
        policy = self.policy if policy is None else policy
        if fresh:
            policy.reset(np.ones(len(noise), dtype=bool))
        device = getattr(policy, "device", None)

        def given(array: np.ndarray) -> Array:
            # A copy: what the policy does to its inputs must not reach the next question.
            return array.copy() if device is None else torch.from_numpy(array.copy()).to(device)

        with torch.inference_mode():
            chunk: ActionChunk = policy.act(observation.map(given), given(noise))
        return chunk

    def actions(
        self, observation: Observation, noise: np.ndarray, *, policy: Any = None, fresh: bool = True
    ) -> np.ndarray:
        """Actions of one decision, numpy float64 (N, Tp, A)."""
        return to_numpy(self.ask(observation, noise, policy=policy, fresh=fresh).actions).astype(np.float64)

    @property
    def scale(self) -> float:
        """What differences are compared with: the widest action range, at least 1."""
        action = self.spec.action
        if action.low is None or action.high is None:
            return 1.0
        return max(1.0, float(np.max(np.subtract(action.high, action.low))))

    def contract(self) -> Iterator[Finding]:
        """Methods are there, and noise_shape fits the action."""
        if not isinstance(self.policy, Policy):
            missing = [name for name in ("noise_shape", "act", "reset") if not hasattr(self.policy, name)]
            yield error(
                type(self.policy).__name__, expected="all of Policy", got=f"no {missing}", fix="See contracts.py."
            )
        shape = self.policy.noise_shape
        good = isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(n, int) for n in shape)
        if not good or shape[0] < 0 or shape[1] < 1 or shape[2] != self.spec.action.size:
            yield error(
                "noise_shape", expected=f"(draws >= 0, Tp >= 1, A={self.spec.action.size}), a tuple of int", got=repr(shape),
                fix="Without noise say (0, Tp, A).",
            )  # fmt: skip

    def chunk(self) -> Iterator[Finding]:
        """Chunks are float32 (N, Tp, A) and execute 1 to Tp of it, for one env and for several."""
        _draws, denoised, size = self.policy.noise_shape
        # A policy may denoise actions before the first that it returns; then its configuration says Tp.
        horizon = min(getattr(getattr(self.policy, "config", None), "horizon", denoised), denoised)
        for number in (self.rows, 1):
            chunk = self.ask(_take(self.first, slice(number)), self.noise()[:number])
            actions, wanted = to_numpy(chunk.actions), (number, horizon, size)
            if actions.shape != wanted or actions.dtype != np.float32:
                yield error(
                    f"act of {number} envs", expected=f"float32 {wanted}", got=f"{actions.dtype} {actions.shape}",
                    fix="Return physical actions (N, Tp, A) in float32; config.horizon, or else noise_shape, says Tp.",
                )  # fmt: skip
            if not 1 <= chunk.execute <= actions.shape[1]:
                yield error(
                    "execute", expected=f"1 to Tp={actions.shape[1]}", got=str(chunk.execute), fix="Correct it."
                )

    def finite_actions(self) -> Iterator[Finding]:
        """Actions are finite, also for an observation of zeros and for large noise."""
        zeros = self.first.map(np.zeros_like)
        asked = {
            "random observation": (self.first, self.noise()),
            "observation of zeros": (zeros, self.noise()),
            "noise of 5 standard deviations": (self.first, 5 * np.sign(self.noise())),
        }
        for what, (observation, noise) in asked.items():
            actions = self.actions(observation, noise)
            if not np.isfinite(actions).all():
                yield error(what, expected="finite actions", got="NaN or infinity", fix="Look for divisions and logs.")

    def action_bounds(self) -> Iterator[Finding]:
        """Actions stay inside the spec's bounds."""
        action, actions = self.spec.action, self.actions(self.first, self.noise())
        if action.low is None or action.high is None:
            return
        low, high = np.array(action.low), np.array(action.high)
        outside = (actions < low - TOLERANCE * self.scale) | (actions > high + TOLERANCE * self.scale)
        if outside.any():
            row, step, element = np.argwhere(outside)[0]
            yield warning(
                f"env {row}, action {step}, element {element}", expected=f"{low[element]:g} to {high[element]:g}",
                got=f"{actions[row, step, element]:.6g}", fix="Clip to the spec's bounds, as robots and simulators will.",
            )  # fmt: skip

    def determinism(self) -> Iterator[Finding]:
        """The same observation and noise give the same actions, whatever the global random generators say."""
        # A policy that draws from a global generator moves it on, and differs the second time.
        found = [self.actions(self.first, self.noise()) for _ in range(2)]
        if not np.array_equal(found[0], found[1]):
            yield error(
                "act twice", expected="the same actions", got=_difference(found[0], found[1]),
                fix="Take randomness from `noise` alone, and let `reset` clear all state.",
            )  # fmt: skip

    def noise_is_used(self) -> Iterator[Finding]:
        """A policy that asks for noise makes use of it."""
        one, other = (self.actions(self.first, self.noise(seed)) for seed in (0, 1))
        if self.policy.noise_shape[0] and np.array_equal(one, other):
            yield warning(
                f"noise_shape={self.policy.noise_shape}", expected="other actions under other noise", got="the same",
                fix="Say (0, Tp, A) when no noise is wanted.",
            )  # fmt: skip

    def batch_independence(self) -> Iterator[Finding]:
        """Row i of a batch is what env i alone gets."""
        together, noise = self.actions(self.first, self.noise()), self.noise()
        for row in range(self.rows):
            alone = self.actions(_take(self.first, slice(row, row + 1)), noise[row : row + 1])[0]
            if not self._near(together[row], alone):
                yield error(
                    f"env {row} of {self.rows}", expected="the actions that it gets alone", got=_difference(together[row], alone),
                    fix="Nothing may mix envs: no BatchNorm, no statistics over the batch.",
                )  # fmt: skip

    def inputs_unchanged(self) -> Iterator[Finding]:
        """`act` does not write into the observation or the noise."""
        device, noise = getattr(self.policy, "device", None), self.noise()

        def given(array: np.ndarray) -> Array:
            return array.copy() if device is None else torch.from_numpy(array.copy()).to(device)

        observation, drawn = self.first.map(given), given(noise)
        self.policy.reset(np.ones(self.rows, dtype=bool))
        with torch.inference_mode():
            self.policy.act(observation, drawn)
        before = {**self.first.arrays(), "noise": noise}
        for key, value in {**observation.arrays(), "noise": drawn}.items():
            if not np.array_equal(to_numpy(value), before[key]):
                yield error(
                    f"act, input {key!r}", expected="unchanged", got="other numbers", fix="Clone before writing."
                )

    def reset_mask(self) -> Iterator[Finding]:
        """`reset(mask)` makes the masked envs new, and leaves the others as they were."""
        noise, mask = self.noise(), np.arange(self.rows) == 0
        new = self.actions(self.second, noise)
        self.ask(self.first, noise)
        went_on = self.actions(self.second, noise, fresh=False)
        self.ask(self.first, noise)
        self.policy.reset(mask)
        after = self.actions(self.second, noise, fresh=False)
        if not self._near(after[mask], new[mask]):
            yield error(
                "reset of env 0", expected="the actions of a new episode", got=_difference(after[mask], new[mask]),
                fix="Forget everything about envs in `mask`.",
            )  # fmt: skip
        if not self._near(after[~mask], went_on[~mask]):
            yield error(
                "reset of env 0, the other envs", expected="the actions without a reset",
                got=_difference(after[~mask], went_on[~mask]), fix="Keep the state of envs outside `mask`.",
            )  # fmt: skip

    def train_and_eval(self) -> Iterator[Finding]:
        """Training mode changes nothing: the RL ratio of unchanged weights must be one."""
        if not isinstance(self.policy, torch.nn.Module):
            yield _NO_MODULE
            return
        was = self.policy.training
        found = [self.actions(self.first, self.noise(), policy=self.policy.train(mode)) for mode in (True, False)]
        self.policy.train(was)
        if not self._near(found[0], found[1]):
            yield warning(
                "train() against eval()", expected="the same actions", got=_difference(*found),
                fix="No dropout and no BatchNorm: the ratio of PPO would not start at one.",
            )  # fmt: skip

    def deepcopy(self) -> Iterator[Finding]:
        """A deep copy acts the same (training keeps an average of the weights as one)."""
        if isinstance(self.policy, torch.nn.Module):
            yield from self._same_actions(copy.deepcopy(self.policy), "copy.deepcopy")
        else:
            yield _NO_MODULE

    def save_and_load(self) -> Iterator[Finding]:
        """A checkpoint of the policy loads, and acts the same."""
        from robot_rl.runs.checkpoint import load_policy, save_checkpoint

        if not isinstance(self.policy, torch.nn.Module):
            yield _NO_MODULE
            return
        policy: Any = self.policy
        kind, missing = type(policy), [name for name in ("config", "spec", "normalizer") if not hasattr(policy, name)]
        if missing or not hasattr(policy.config, "to_json"):
            yield skipped(
                "checkpoint", expected="config with to_json, spec and normalizer on the policy",
                got=f"no {missing or ['config.to_json']}", fix="`imitate` and `evaluate` need them; see docs/own_env_and_policy.md.",
            )  # fmt: skip
            return
        documents = {
            "policy": {"_target_": f"{kind.__module__}.{kind.__qualname__}", "config": policy.config.to_json()},
            "spec": policy.spec.to_json(),
            "normalizer": policy.normalizer.to_json(),
        }
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(folder, step=0, tensors={"policy": policy.state_dict()}, documents=documents)
            loaded, _spec, _checkpoint = load_policy(Path(folder), device=getattr(policy, "device", None) or "cpu")
        yield from self._same_actions(loaded, "save_checkpoint, load_policy")

    def _near(self, one: np.ndarray, other: np.ndarray) -> bool:
        return np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * self.scale)

    def _same_actions(self, other: Any, where: str) -> Iterator[Finding]:
        found = [self.actions(self.first, self.noise(), policy=policy) for policy in (self.policy, other)]
        if not np.array_equal(found[0], found[1]):
            yield error(
                where, expected="the same actions", got=_difference(*found),
                fix="Register every tensor as a parameter or (persistent) buffer, or derive it from the configuration.",
            )  # fmt: skip


def _take(observation: Observation, rows: slice) -> Observation:
    taken = observation.map(lambda array: array[rows])
    return taken if taken.instruction is None else replace(taken, instruction=taken.instruction[rows])


def _difference(one: np.ndarray, other: np.ndarray) -> str:
    return f"a difference of up to {float(np.abs(one - other).max()):.3g}"


def check_policy(
    policy: Any, spec: EnvSpec, *, observations: tuple[Observation, Observation] | None = None
) -> list[Finding]:
    """Check a policy against the Policy contract.

    Args:
        policy: under test; it gets tensors on `policy.device`, or numpy arrays when it has none.
        spec: of the environment it acts in.
        observations: two observations of the same two or more envs, real ones; random ones of three envs otherwise,
            with `policy.config.history` frames (1 without).

    Returns:
        Findings of the checks `POLICY_CHECKS`; none when the policy keeps the contract.
    """
    if observations is None:
        history = int(getattr(getattr(policy, "config", None), "history", 1))
        first, second = (sample_observation(spec, history=history, seed=seed) for seed in (0, 1))
    else:
        first, second = (observation.map(to_numpy) for observation in observations)
    trial = PolicyTrial(policy, spec, first=first, second=second)
    findings = run_checks({"contract": trial.contract, "chunk": trial.chunk})
    if not any(finding.check in ("contract", "chunk") for finding in findings):
        return findings + run_checks({name: getattr(trial, name) for name in POLICY_CHECKS[2:]})
    unseen = skipped("", expected="chunks of the right shape", got="others", fix="Correct the findings above first.")
    return findings + [replace(unseen, check=name) for name in POLICY_CHECKS[2:]]
