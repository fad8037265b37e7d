"""Teachers that fail, for tests; their `_target_` is `odd_teachers.<name>`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from robot_rl.data.teacher_card import card_of
from robot_rl.errors import DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation


@dataclass(frozen=True)
class DyingConfig:
    """Attributes: answers: how many calls it answers before it is gone for good."""

    answers: int = 10


class DyingTeacher:
    """Says 0 until it is gone."""

    is_remote = False
    history = 1

    def __init__(
        self, config: DyingConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        self.left, self.size = config.answers, spec.action.size
        self.card = card_of(spec, name="dying", history=1, keys=())

    def label(self, observation: Observation) -> ActionChunk:
        if self.left == 0:
            raise DeployError("server", expected="an answer", got="connection refused", hint="It is gone.")
        self.left -= 1
        return ActionChunk(torch.zeros(len(observation.proprio), 1, self.size), execute=1)


class DrawingTeacher:
    """Says something else every time."""

    is_remote = False
    history = 1

    def __init__(
        self, config: DyingConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        self.size, self.generator = spec.action.size, torch.Generator().manual_seed(0)
        self.card = card_of(spec, name="drawing", history=1, keys=())

    def label(self, observation: Observation) -> ActionChunk:
        drawn = torch.rand(len(observation.proprio), 1, self.size, generator=self.generator)
        return ActionChunk(2 * drawn - 1, execute=1)


class AwayTeacher:
    """A server that is not there."""

    def __init__(
        self, config: DyingConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        raise DeployError("server", expected="a policy server", got="connection refused", hint="It is not there.")


class SlowTeacher(DyingTeacher):
    """A remote one that says 0 after 20 ms; `closed` counts the connections that were ended."""

    is_remote, is_one_frame = True, False
    closed = 0

    def label(self, observation: Observation) -> ActionChunk:
        time.sleep(0.02)
        return ActionChunk(torch.zeros(len(observation.proprio), 1, self.size), execute=1)

    def close(self) -> None:
        SlowTeacher.closed += 1


class Untouchable:
    """Must not be built."""

    def __init__(
        self, config: DyingConfig, *, spec: EnvSpec, build: Callable[..., Any], load: Callable[..., Any]
    ) -> None:
        raise AssertionError("a teacher of weight 0 was built")
