"""A mock robot of two joints with a scene: a goal, starts by seed, and a person made of rules. For real-robot RL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from small_robot import JOINTS, small_card

from robot_rl.deploy.motion import JointLimits
from robot_rl.deploy.robot_card import RobotCard
from robot_rl.deploy.schedule import Clock, ManualClock
from robot_rl.envs.real_robot import RealRobotConfig, RealRobotEnv, RobotParts, make_env
from robot_rl.hardware.mock_robot import MockRobot, MockRobotConfig, mock_spec
from robot_rl.hardware.sim_robot import EpisodeState
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.teleop.panel import PanelEvent, SessionView
from robot_rl.types import ActionChunk, Observation

STEP = 0.05  # rad that an action of 1 moves a joint
NEAR = 0.08  # rad


def quick_card(velocity: float = 10.0) -> RobotCard:
    """The small robot with limits of a simulation, but for its speed (rad/s)."""
    limits = JointLimits(JOINTS, (-2.0,) * 2, (2.0,) * 2, (velocity,) * 2, (400.0,) * 2, (30000.0,) * 2)
    return small_card(limits=limits)


def reach_spec(card: RobotCard, config: MockRobotConfig, *, hz: float = 10.0, steps: int = 20) -> EnvSpec:
    """Joints of `card` moved by deltas in -1..1, added to what was measured."""
    names = card.joints
    return replace(
        mock_spec(card, config),
        env_id="Reach", control_hz=hz, max_episode_steps=steps,
        action=ArraySpec(
            "action", (2,), low=(-1.0,) * 2, high=(1.0,) * 2, units=(f"1 = {STEP} rad",) * 2, meanings=names
        ),
        action_semantics=ActionSemantics(ActionKind.delta, DeltaReference.measured, "joint", "none", "none", "reach"),
    )  # fmt: skip


class ReachRobot(MockRobot):
    """Also its own scene: `reset` puts it to the start of a seed, `episode` says whether a joint reading is at the goal."""

    def __init__(self, config: MockRobotConfig, *, card: RobotCard | None = None, clock: Clock | None = None) -> None:
        card = quick_card() if card is None or card.name != "small" else card
        config = replace(config, streams=("joints", "state"), state=(0.0, 0.0))
        super().__init__(config, card=card, spec=reach_spec(card, config), clock=clock)
        self.seed, self.is_success = 0, False
        self.goal = np.zeros(2)

    def reset(self, seed: int) -> None:
        """Somewhere with a goal elsewhere, by the seed alone."""
        rng = np.random.default_rng(seed)
        start, angle = rng.uniform(-0.6, 0.6, 2), rng.uniform(0, 2 * np.pi)
        self.goal = start + 0.3 * np.array([np.cos(angle), np.sin(angle)])
        self.seed, self.is_success = seed, False
        self.card = replace(self.card, home=tuple(start.tolist()))
        self.config = replace(self.config, state=tuple(np.float32([*start, *self.goal]).tolist()))
        self.close()
        self.connect()

    def read(self) -> Any:
        """With the place and the goal as state."""
        reading = super().read()
        state = np.float32([*reading.position, *self.goal])[-2:] - np.float32(reading.position)
        return replace(reading, frames={**reading.frames, "state": state})

    def episode(self) -> EpisodeState:
        """At the goal now, or before."""
        reading = super().read()
        self.is_success = self.is_success or float(np.abs(reading.position - self.goal).max()) < NEAR
        return EpisodeState(self.seed, 0, self.is_success, self.is_success)


@dataclass
class ReachExpertConfig:
    """Noise of the expert."""

    noise_sd: float = 0.0


class ReachExpert:
    """Goes straight to the goal."""

    def __init__(self, config: ReachExpertConfig, spec: EnvSpec) -> None:
        self.config, self.rng = config, np.random.default_rng(0)

    def act(self, observation: Observation, *, episode_seeds: np.ndarray, new_episode: np.ndarray) -> ActionChunk:
        """One action towards the goal."""
        way = np.asarray(observation.state)[:, -1] / STEP
        way = way + self.rng.normal(0, self.config.noise_sd, way.shape) if self.config.noise_sd else way
        return ActionChunk(torch.from_numpy(np.float32(np.clip(way, -1, 1)))[:, None], execute=1)


@dataclass
class Person:
    """A panel that says what `rule` makes of each view."""

    rule: Callable[[SessionView], list[str]] = lambda view: []
    views: list[SessionView] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def publish(self, view: SessionView) -> None:
        self.views.append(view)
        self.asked += self.rule(view)

    def events(self) -> list[PanelEvent]:
        asked, self.asked = self.asked, []
        return [PanelEvent(name, by="person") for name in asked]

    def close(self) -> None:
        pass


def reach_env(
    *, history: int = 2, clock: Clock | None = None, mock: dict[str, Any] | None = None, card: RobotCard | None = None,
    device: Any = None, panel: Any = None, has_scene: bool = True, **config: Any,
) -> tuple[RealRobotEnv, ReachRobot]:  # fmt: skip
    """The env with one ReachRobot, on a clock that moves only by sleeping unless another is given."""
    clock = ManualClock() if clock is None else clock
    robot = ReachRobot(MockRobotConfig(**(mock or {})), card=card, clock=clock)
    parts = RobotParts(robot=robot, scene=robot if has_scene else None, device=device, panel=panel, clock=clock)
    return make_env(RealRobotConfig(**config), num_envs=1, history=history, parts=parts), robot


class SideBySide:
    """N envs of one robot each as one VectorEnv: the conformance suite asks for several at once."""

    def __init__(self, envs: list[RealRobotEnv]) -> None:
        self.envs, self.num_envs = envs, len(envs)
        self.spec, self.device = envs[0].spec, envs[0].device

    @property
    def episode_seeds(self) -> np.ndarray:
        return np.concatenate([env.episode_seeds for env in self.envs])

    @property
    def success_at_reset(self) -> np.ndarray:
        return np.concatenate([env.success_at_reset for env in self.envs])

    def reset(self, seeds: Any) -> Observation:
        queue = iter(seeds)
        return _joined([env.reset(queue) for env in self.envs])

    def step(self, chunk: ActionChunk) -> Any:
        assert len(chunk.actions) <= self.num_envs
        rows = [env.step(replace(chunk, actions=chunk.actions[row : row + 1])) for row, env in enumerate(self.envs)]
        fields = {}
        for name in rows[0].__dataclass_fields__:
            values = [getattr(row, name) for row in rows]
            if name in ("observation", "final_observation"):
                fields[name] = _joined(values)
            elif name == "frames":
                fields[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
            else:
                fields[name] = torch.cat(values)
        return type(rows[0])(**fields)

    def protocol(self) -> dict[str, Any]:
        return self.envs[0].protocol()

    def close(self) -> None:
        for env in self.envs:
            env.close()


def _joined(observations: list[Observation]) -> Observation:
    arrays = [observation.arrays() for observation in observations]
    return Observation.from_arrays(
        {key: torch.cat([row[key] for row in arrays]) for key in arrays[0]},
        time=torch.cat([observation.time for observation in observations]),
    )
