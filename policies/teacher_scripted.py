"""A scripted expert as a teacher of known quality: exact, noisy, systematically wrong, or lying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from robot_rl.data.element_names import gripper_elements
from robot_rl.data.observation_digest import row_digests
from robot_rl.data.teacher_card import TeacherCard, card_of
from robot_rl.errors import ConfigError, PolicyError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .acting import action_bounds


@dataclass(frozen=True)
class ScriptedTeacherConfig:
    """How a scripted teacher errs. All of it is a function of what it sees: the same observation, the same answer.

    Attributes:
        expert: component; without flaws of its own, for those last an episode, which a teacher does not see.
        name: in reports and in the cache.
        noise: standard deviation of normal noise on every element but the gripper's, action units.
        flip_probability: of the gripper's number (its distance to the middle of its range) being turned round.
        lie_probability: of a uniform random action in place of the expert's; 1: a teacher that knows nothing.
        scale: factor of every element but the gripper's; 2 is the classic doubled delta.
        bias: added to the action, one number an element; empty: none.
        belief_key: observation key of which it believes something wrong.
        belief_elements: elements of that key.
        belief_offset: added to them before the expert looks (a goal 4 cm aside), one number each.
        wrong_element: of belief_key; it errs only where that is above wrong_above; null: everywhere.
        wrong_above: see wrong_element.
        seed: of noise, flips and lies.
    """

    expert: dict[str, Any] = field(default_factory=dict)
    name: str = "scripted"
    noise: float = 0.0
    flip_probability: float = 0.0
    lie_probability: float = 0.0
    scale: float = 1.0
    bias: tuple[float, ...] = ()
    belief_key: str = "state"
    belief_elements: tuple[int, ...] = ()
    belief_offset: tuple[float, ...] = ()
    wrong_element: int | None = None
    wrong_above: float = 0.0
    seed: int = 0


class ScriptedTeacher:
    """A Teacher over an expert of `robot-rl collect`.

    Args:
        config: see ScriptedTeacherConfig.
        spec: of the environment.
        build: of components (runs/config.py).
        load: of policies; not used.

    Raises:
        ConfigError: no expert, or a number out of range.
    """

    is_remote = False
    history = 1

    def __init__(
        self, config: ScriptedTeacherConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        _check(config, spec)
        self.config, self.spec = config, spec
        self.expert = build(config.expert, spec=spec)
        key = config.belief_key
        self.card: TeacherCard = card_of(
            spec, name=config.name, history=1, keys=(key,) if config.belief_elements else ()
        )
        low, high = action_bounds(spec)
        self._low, self._high = low.numpy(), high.numpy()
        self._gripper = np.zeros(spec.action.size, dtype=bool)
        self._gripper[list(gripper_elements(spec.action))] = True
        self._is_checked = False

    def label(self, observation: Observation) -> ActionChunk:
        """The expert's action, as wrong as configured, inside the spec's bounds; float32 (N, 1, A) on the CPU.

        Raises:
            PolicyError: the expert has flaws or noise of its own.
        """
        observation = observation.map(lambda x: torch.as_tensor(x).cpu())
        believed = self._believed(observation)
        action = self._ask(believed, seed=0)
        if not self._is_checked and not np.array_equal(action, self._ask(believed, seed=1_000)):
            raise PolicyError(
                f"teacher {self.config.name!r}", expected="an expert whose action depends on the observation alone",
                got="other actions in other episodes", hint="Take the expert's flaws out and give the teacher's own: noise, bias, "
                "belief_offset.",
            )  # fmt: skip
        self._is_checked = True
        wrong = self._is_wrong(observation)
        erring = np.where(self._gripper, action, self.config.scale * action)
        erring += np.asarray(self.config.bias or (0.0,) * action.shape[1], dtype=np.float32)
        action = np.where(wrong[:, None], erring, action)
        action = self._disturbed(action, observation)
        return ActionChunk(
            torch.from_numpy(np.clip(action, self._low, self._high).astype(np.float32))[:, None], execute=1
        )

    def _ask(self, observation: Observation, *, seed: int) -> np.ndarray:
        number = len(observation.proprio)
        chunk = self.expert.act(
            observation, episode_seeds=np.arange(seed, seed + number), new_episode=np.ones(number, dtype=bool)
        )
        return torch.as_tensor(chunk.actions)[:, 0].numpy().copy()

    def _is_wrong(self, observation: Observation) -> np.ndarray:
        """Where scale, bias and belief are off."""
        if self.config.wrong_element is None:
            return np.ones(len(observation.proprio), dtype=bool)
        seen = observation.arrays()[self.config.belief_key][:, -1].numpy()
        return np.asarray(seen[:, self.config.wrong_element] > self.config.wrong_above)

    def _believed(self, observation: Observation) -> Observation:
        if not self.config.belief_elements:
            return observation
        key = self.config.belief_key
        array = observation.arrays()[key].clone()
        offset = torch.tensor(self.config.belief_offset) * torch.from_numpy(self._is_wrong(observation))[:, None]
        array[:, :, list(self.config.belief_elements)] += offset[:, None]
        return replace(observation, **{key: array})

    def _disturbed(self, action: np.ndarray, observation: Observation) -> np.ndarray:
        config = self.config
        if not (config.noise or config.flip_probability or config.lie_probability):
            return action
        out = action.copy()
        middle = (self._low + self._high) / 2
        for row, digest in enumerate(row_digests(observation)):
            rng = np.random.default_rng([config.seed, int.from_bytes(digest[:8], "little")])
            noise, flip, lie = rng.standard_normal(action.shape[1]), rng.random(), rng.random()
            out[row] += np.where(self._gripper, 0.0, config.noise * noise)
            if flip < config.flip_probability:
                out[row] = np.where(self._gripper, 2 * middle - out[row], out[row])
            if lie < config.lie_probability:
                out[row] = rng.uniform(self._low, self._high)
        return out


def _check(config: ScriptedTeacherConfig, spec: EnvSpec) -> None:
    keys = [key for key in ("proprio", "state") if key in spec.observation]
    size = spec.observation[config.belief_key].size if config.belief_key in keys else 0
    elements = [*config.belief_elements, *([] if config.wrong_element is None else [config.wrong_element])]
    checks = {
        "expert": (bool(config.expert), "a component"),
        "noise": (config.noise >= 0, "0 or more"),
        "flip_probability": (0 <= config.flip_probability <= 1, "0..1"),
        "lie_probability": (0 <= config.lie_probability <= 1, "0..1"),
        "bias": (len(config.bias) in (0, spec.action.size), f"{spec.action.size} numbers or none"),
        "belief_offset": (len(config.belief_offset) == len(config.belief_elements), "one number for each of belief_elements"),
        "belief_elements": (all(0 <= e < size for e in elements), f"elements of {' or '.join(keys)}, wrong_element too"),
    }  # fmt: skip
    for name, (good, expected) in checks.items():
        if not good:
            raise ConfigError(f"teacher.{name}", expected=expected, got=repr(getattr(config, name)), hint="Correct it.")
