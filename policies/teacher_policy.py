"""A checkpoint or an export of ours as a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robot_rl.data.same_spec import require_same_actions
from robot_rl.data.teacher_card import TeacherCard, card_of, require_same_observation
from robot_rl.deploy.noise import NoiseRule, NoiseSource
from robot_rl.errors import ConfigError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation


@dataclass(frozen=True)
class TeacherPolicyConfig:
    """A teacher from a run, a checkpoint or an .onnx file.

    Attributes:
        policy: where it is.
        mode: sampling mode (eta0, eta1, mean), or null for the policy's own. A teacher's noise is fixed in any of them.
        noise_seed: of that noise.
        name: in reports and in the cache; empty: the path.
    """

    policy: str = ""
    mode: str | None = None
    noise_seed: int = 0
    name: str = ""


class TeacherPolicy:
    """A Teacher: the policy's chunk for what it is shown, with the same noise every time, so one answer an observation.

    Args:
        config: see TeacherPolicyConfig.
        spec: of the environment.
        build: of components (runs/config.py); not used.
        load: (path, sampling mode or None) -> a policy of ours.

    Raises:
        ConfigError: no path.
        PolicyError: its actions mean something else than the environment's.
    """

    is_remote = False

    def __init__(
        self, config: TeacherPolicyConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        if not config.policy:
            raise ConfigError(
                "teacher.policy",
                expected="a run, a checkpoint or an .onnx file",
                got="none",
                hint="teacher.policy=runs/<run>.",
            )
        self.policy = load(config.policy, config.mode)
        trained: EnvSpec = self.policy.spec
        require_same_actions(
            trained.action_semantics, spec.action_semantics, where=config.policy, taker=spec.env_id,
            hint="Choose the environment that this teacher was trained in.",
        )  # fmt: skip
        self.history = int(self.policy.config.history)
        keys = tuple(str(key) for key in getattr(self.policy.config, "observation_keys", ()))
        require_same_observation(trained, spec, keys, where=config.policy)
        self.card: TeacherCard = card_of(trained, name=config.name or config.policy, history=self.history, keys=keys)
        self._noise = NoiseSource(rule=NoiseRule.fixed, seed=config.noise_seed, shape=self.policy.noise_shape)
        self._device: torch.device | None = getattr(self.policy, "device", None)

    def label(self, observation: Observation) -> ActionChunk:
        """What the policy would do, physical actions as a tensor on the CPU; it remembers nothing between calls."""
        number, device = len(observation.proprio), self._device
        self.policy.reset(np.ones(number, dtype=bool))
        noise = self._noise.draw([0] * number, [0] * number)
        if device is None:
            chunk = self.policy.act(observation.map(lambda x: np.asarray(x.cpu())), noise)
        else:
            with torch.inference_mode():
                chunk = self.policy.act(observation.map(lambda x: x.to(device)), torch.from_numpy(noise).to(device))
        actions = torch.as_tensor(chunk.actions).detach().cpu().clone()
        return ActionChunk(actions=actions, execute=chunk.execute)
