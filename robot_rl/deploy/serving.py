"""What a policy server answers to one client: endpoints, names of observations, history and noise. No sockets here.

Endpoints (key "endpoint" of a message; none is "infer", what openpi's client sends):
    infer    one frame -> the chunk. The history of frames and the noise are kept here, one for each client.
    observe  one frame into the history, no chunk: a policy that sees To > 1 frames wants one every control step.
    act      a whole batch and its noise, as robot_rl.contracts.Policy.act takes them -> the chunks.
    reset    a new episode; "seed" of its noise may be given, "mask" names the rows of `act` that begin.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.deploy.chunking import ObservationHistory
from robot_rl.deploy.images import stored_image
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import DataError, PolicyError, closest
from robot_rl.specs import ArraySpec, EnvSpec
from robot_rl.types import Observation, Reading

ENDPOINTS = ("infer", "observe", "act", "reset")
PROTOCOL = "robot-rl serve 1"
MOST_ROWS = 256


def metadata(policy: Any, noise: NoiseSource, computed: Mapping[str, Any]) -> dict[str, Any]:
    """First frame of a server: what a client must know of the policy; JSON types. `computed`: see computed_by."""
    config = policy.config
    return {
        "protocol": PROTOCOL,
        "spec": policy.spec.to_json(),
        "observation_keys": list(config.observation_keys),
        "history": config.history,
        "horizon": config.horizon,
        "execute": config.execute,
        "sampling": str(getattr(policy, "sampling", "")),
        "noise": {"rule": noise.rule.value, "seed": noise.seed, "shape": list(noise.shape)},
        "computed": dict(computed),
    }


def noise_of(policy: Any, *, rule: NoiseRule | None = None, seed: int | None = None) -> NoiseSource:
    """The noise of a policy: its own rule and seed (an export states them; else seeded, 0) where none is given."""
    own_rule, own_seed = getattr(policy, "noise_rule", NoiseRule.seeded), getattr(policy, "noise_seed", 0)
    return NoiseSource(own_rule if rule is None else rule, own_seed if seed is None else seed, policy.noise_shape)


class ClientSession:
    """One client's episode.

    Args:
        policy: shared by all clients. A shallow copy is kept, so weights are shared, and state between decisions is not
            as long as the policy replaces it (as ours do) and does not change it in place.
        noise: its source.
        names: our key -> the client's keys, joined in this order; a key that is missing has our own name.
        next_seed: gives the noise's episode seed of an episode whose reset names none.
        most_rows: of one `act` or mask: small pictures fit a message by the thousand, and what a policy needs for them does not
            fit the memory.
    """

    def __init__(
        self, policy: Any, noise: NoiseSource, *, names: Mapping[str, tuple[str, ...]], next_seed: Callable[[], int],
        most_rows: int = MOST_ROWS,
    ) -> None:  # fmt: skip
        self._most_rows = most_rows
        self._policy, self._noise, self._names, self._next_seed = copy.copy(policy), noise, names, next_seed
        spec, config = policy.spec, policy.config
        self._spec: EnvSpec = spec
        self._keys = tuple(config.observation_keys)
        self._history = ObservationHistory(spec, keys=self._keys, history=config.history)
        self._begin(next_seed())

    def answer(self, message: Any) -> dict[str, Any]:
        """The answer to one message.

        Raises:
            DataError: a message of another form, or an observation that is not the policy's.
            Exception: whatever the policy raises.
        """
        if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
            raise DataError(
                "message", expected="a map with text keys", got=type(message).__name__, hint="Send an observation."
            )
        rest = dict(message)
        endpoint, number = rest.pop("endpoint", "infer"), rest.pop("request_id", None)
        if endpoint not in ENDPOINTS:
            raise DataError(
                "message, endpoint", expected="a known one", got=repr(endpoint)[:80], hint=closest(str(endpoint)[:80], ENDPOINTS)
            )  # fmt: skip
        if not (number is None or type(number) in (int, str)):
            raise DataError(
                "message, request_id", expected="a number or text", got=type(number).__name__, hint="Count."
            )
        out: dict[str, Any] = getattr(self, f"_{endpoint}")(rest)
        return out if number is None else out | {"request_id": number}

    def _begin(self, seed: int) -> None:
        self.episode_seed, self.decision = seed, 0
        self._history.forget()
        self._policy.reset(np.ones(1, bool))

    def _reset(self, message: dict[str, Any]) -> dict[str, Any]:
        mask, seed = message.get("mask"), message.get("seed")
        if mask is not None:
            if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 1:
                raise DataError("message, mask", expected="bool (N,)", got=_shape(mask), hint="One entry for each row.")
            self._check_rows("mask", len(mask))
            self._policy.reset(mask.copy())
            return {"reset": int(mask.sum())}
        if not (seed is None or (type(seed) is int and 0 <= seed < 1 << 63)):
            raise DataError(
                "message, seed", expected="a whole number of 0 or more", got=repr(seed)[:80], hint="Or none."
            )
        self._begin(self._next_seed() if seed is None else seed)
        return {"reset": 1, "seed": self.episode_seed}

    def _observe(self, message: dict[str, Any]) -> dict[str, Any]:
        frames = {key: self._frame(message, key) for key in self._keys}
        self._history.push(Reading(frames, {}, np.zeros(0)))
        return {}

    def _infer(self, message: dict[str, Any]) -> dict[str, Any]:
        self._observe(message)
        noise = self._noise.draw([self.episode_seed], [self.decision])
        self.decision += 1
        out = self._ask(self._history.observation(), noise)
        return out | {"actions": out["actions"][0]}

    def _act(self, message: dict[str, Any]) -> dict[str, Any]:
        arrays, noise = message.get("observation"), message.get("noise")
        history = self._policy.config.history
        if not isinstance(arrays, dict) or not isinstance(noise, np.ndarray):
            raise DataError(
                "message", expected="observation and noise", got=f"{sorted(message)}", hint="As `act` takes."
            )
        rows, checked = len(noise) if noise.ndim else 0, {}
        self._check_rows("noise", rows)
        for key in self._keys:
            spec, value = self._spec.observation[key], arrays.get(key)
            checked[key] = _fitting(value, spec, (rows, history, *spec.shape), where=f"observation, key {key!r}")
        if noise.dtype != np.float32 or noise.shape != (rows, *self._noise.shape) or rows < 1:
            raise DataError(
                "message, noise", expected=f"float32 (N, {', '.join(map(str, self._noise.shape))})", got=_shape(noise),
                hint="Draw it with the noise_shape that this server tells.",
            )  # fmt: skip
        if "proprio" not in checked:  # a policy of images alone; Observation wants the key
            checked["proprio"] = np.zeros((rows, history, 0), np.float32)
        return self._ask(Observation.from_arrays(checked), noise.copy())

    def _check_rows(self, key: str, rows: int) -> None:
        if rows > self._most_rows:
            raise DataError(
                f"message, {key}", expected=f"at most {self._most_rows} rows", got=str(rows),
                hint="Ask in several messages, or start the server with a larger most_rows.",
            )  # fmt: skip

    def _ask(self, observation: Observation, noise: Array) -> dict[str, Any]:
        began = time.perf_counter()
        chunk = self._policy.act(observation, noise)
        actions = chunk.actions.cpu() if hasattr(chunk.actions, "cpu") else chunk.actions  # a tensor, and no torch here
        actions = np.ascontiguousarray(actions, np.float32)
        wanted = (len(noise), self._policy.config.horizon, *self._spec.action.shape)
        if actions.shape != wanted:
            raise PolicyError(
                "policy", expected=f"actions of shape {wanted}", got=str(actions.shape), hint="A bug of it."
            )
        timing = {"infer_ms": 1e3 * (time.perf_counter() - began)}
        return {"actions": actions, "execute": int(chunk.execute), "policy_timing": timing}

    def _frame(self, message: dict[str, Any], key: str) -> np.ndarray:
        """One frame of `key` (...), from the client's names."""
        spec, names = self._spec.observation[key], self._names.get(key, (key,))
        parts = [_looked_up(message, name, ours=key) for name in names]
        where = f"observation, key {' + '.join(names)!r}"
        if len(parts) > 1:
            parts = [np.concatenate([np.atleast_1d(_array(part, where)) for part in parts])]
        value = _array(parts[0], where)
        if key.startswith("image/"):  # (3, H, W) too, as openpi's ALOHA client sends it
            value = stored_image(value, spec, where=where)
        return _fitting(value, spec, spec.shape, where=where)


def _looked_up(message: dict[str, Any], name: str, *, ours: str) -> Any:
    """The value of a name; "a/b" is that very key, or key b in the map a."""
    if name in message:
        return message[name]
    value: Any = message
    for part in name.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        raise DataError(
            f"observation, key {name!r}", expected=f"an array (it is the policy's {ours!r})",
            got=f"only {sorted(message)}"[:300],
            hint="Send it, or name the client's own key with observation={...} (docs/serving.md).",
        )  # fmt: skip
    return value


def _array(value: Any, where: str) -> np.ndarray:
    if isinstance(value, (np.ndarray, np.generic, float, int)) or _is_numbers(value):
        return np.asarray(value)
    raise DataError(where, expected="an array", got=type(value).__name__, hint="Pack numbers as a numpy array.")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, (float, int)) for item in value)


def _fitting(value: Any, spec: ArraySpec, shape: tuple[int, ...], *, where: str) -> np.ndarray:
    """`value` as the spec's dtype and of this shape, finite; floats may come in another precision, pictures may not."""
    is_float = np.dtype(spec.dtype).kind == "f"
    is_fine = isinstance(value, np.ndarray) and value.shape == shape
    if not is_fine or (value.dtype.kind not in "fiu" if is_float else value.dtype != spec.dtype):
        raise DataError(
            where, expected=f"{spec.dtype} {shape}", got=_shape(value), hint="As the first frame's spec says."
        )
    with np.errstate(over="ignore"):
        cast: np.ndarray = value.astype(spec.dtype)
    spec.validate(cast, where=where)
    return cast


def _shape(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
