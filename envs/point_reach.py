"""PointReach: a point that moves to a goal in a square. Batched torch, for fast tests of everything above an env.

State (x, y, goal_x, goal_y), all in [-1, 1] m. An action in [-1, 1] moves the point by up to 0.1 m along each axis.
Success within 0.05 m of the goal. With `has_obstacle`, a disc of 0.2 m about the origin is death (fail).
With `image_size` or `num_points` it is also seen from above (point_pictures.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.disturbance import Push, Shift
from robot_rl.algorithms.view_shift import ViewShift
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError, closest
from robot_rl.specs import ActionKind, ActionSemantics, ArraySpec, DeltaReference, EnvSpec
from robot_rl.types import ActionChunk, Observation

from .history import Frame, HistoryEnv
from .perturbations import pushed
from .perturbations_view import seen_otherwise
from .point_pictures import view_specs, views

_STEP_M = 0.1
_SUCCESS_M = 0.05
_OBSTACLE_M = 0.2
_START_M = 0.9  # starts are drawn from this square about the origin
_BODIES = {"point": slice(0, 2), "goal": slice(2, 4)}


class PointReward(str, Enum):
    """sparse: 1 at success, else 0. dense: minus the distance in metres."""

    sparse = "sparse"
    dense = "dense"


@dataclass(frozen=True)
class PointReachConfig:
    """Options of PointReach.

    Attributes:
        has_obstacle: the disc in the middle ends the episode as a failure.
        reward_mode: see PointReward.
        terminate_on_success: whether success ends an episode.
        max_episode_steps: time limit.
        push: an offset on the action in every episode (nothing here has a mass), or None.
        shift: starts of "point" and "goal" moved, inside the square all the same, or None.
        image_size: rows and columns of "image/top"; 0: none.
        num_points: of "points"; 0: none.
        view_shift: other colours of what is drawn, or None.
    """

    has_obstacle: bool = False
    reward_mode: PointReward = PointReward.sparse
    terminate_on_success: bool = True
    max_episode_steps: int = 30
    push: Push | None = None
    shift: Shift | None = None
    image_size: int = 0
    num_points: int = 0
    view_shift: ViewShift | None = None


def make_env(config: PointReachConfig, *, num_envs: int, history: int) -> HistoryEnv:
    """Build `num_envs` PointReach envs with `history` frames per observation.

    Raises:
        EnvError, ConfigError: a push of a body, or a shift that leaves the square.
    """
    sim = seen_otherwise(pushed(PointReach(config, num_envs=num_envs), config.push), config.view_shift)
    return HistoryEnv(sim, history=history, terminate_on_success=config.terminate_on_success)


class PointReach:
    """The StepEnv; see the module docstring.

    Args:
        config: options.
        num_envs: N.
    """

    def __init__(self, config: PointReachConfig, *, num_envs: int) -> None:
        self.config = config
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.spec = _spec(config)
        self._state = torch.zeros(num_envs, 4)
        if config.shift is not None:
            _check_shift(config.shift)

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes: point and goal at least 0.3 m apart, outside 0.3 m of the origin, from the seed alone."""
        for row in np.flatnonzero(mask):
            self._state[row] = _start_state(int(seeds[row]))
        if self.config.shift is not None:
            started = torch.from_numpy(mask.copy())
            for part in [_BODIES[name] for name in self.config.shift.bodies or _BODIES]:
                moved = self.config.shift.moved(self._state[started, part], centre=torch.zeros(2))
                self._state[started, part] = moved
        return self._frame()

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Move the active points."""
        moving = torch.from_numpy(active.copy())[:, None]
        moved = (self._state[:, :2] + _STEP_M * action.clamp(-1, 1)).clamp(-1, 1)
        self._state[:, :2] = torch.where(moving, moved, self._state[:, :2])
        return self._frame()

    def protocol(self) -> dict[str, Any]:
        """JSON block for reports."""
        shift = {} if self.config.shift is None else {"shift": self.config.shift.to_json()}
        return shift | {
            "task": self.spec.env_id,
            "reward_mode": self.config.reward_mode.value,
            "has_obstacle": self.config.has_obstacle,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }

    def close(self) -> None:
        """Nothing to release."""

    def _frame(self) -> Frame:
        distance = (self._state[:, 2:] - self._state[:, :2]).norm(dim=1)
        success = distance <= _SUCCESS_M
        hit = self._state[:, :2].norm(dim=1) < _OBSTACLE_M
        return Frame(
            observation={"proprio": self._state[:, :2].clone(), "state": self._state.clone()}
            | views(self._state, self.config.image_size, self.config.num_points),
            reward=success.float() if self.config.reward_mode is PointReward.sparse else -distance,
            success=success,
            fail=hit & self.config.has_obstacle,
        )


def _start_state(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    while True:
        state = rng.uniform(-_START_M, _START_M, size=4).astype(np.float32)
        point, goal = state[:2], state[2:]
        if np.linalg.norm(point - goal) > 0.3 and min(np.linalg.norm(point), np.linalg.norm(goal)) > 0.3:
            return torch.from_numpy(state)


def _check_shift(shift: Shift) -> None:
    shift.validate()
    for name in shift.bodies:
        if name not in _BODIES:
            raise EnvError(
                "shift.bodies", expected="objects of PointReach", got=repr(name), hint=closest(name, _BODIES)
            )
    reach = _START_M * shift.scale + max(map(abs, shift.xy_m))
    if reach > 1:
        raise EnvError(
            "shift of PointReach", expected="starts inside the square of 1 m", got=f"starts up to {reach:g} m",
            hint=f"Starts lie within {_START_M} m of the origin: take a smaller shift or scale.",
        )  # fmt: skip


def _spec(config: PointReachConfig) -> EnvSpec:
    def metres(name: str, meanings: tuple[str, ...]) -> ArraySpec:
        size = len(meanings)
        return ArraySpec(name, (size,), low=(-1.0,) * size, high=(1.0,) * size, units=("m",) * size, meanings=meanings)

    return EnvSpec(
        env_id="PointReach",
        observation={
            "proprio": metres("proprio", ("x", "y")),
            "state": metres("state", ("x", "y", "goal_x", "goal_y")),
        }
        | view_specs(config.image_size, config.num_points),
        action=ArraySpec(
            "action",
            (2,),
            low=(-1.0, -1.0),
            high=(1.0, 1.0),
            units=("1 = 0.1 m", "1 = 0.1 m"),
            meanings=("move x", "move y"),
        ),
        action_semantics=ActionSemantics(
            kind=ActionKind.delta,
            delta_reference=DeltaReference.measured,
            frame="base",
            rotation="none",
            gripper="none",
            control_mode="delta_position",
        ),
        joint_names=("x", "y"),
        robot="point",
        control_hz=10.0,
        max_episode_steps=config.max_episode_steps,
    )


@dataclass(frozen=True)
class PointReachExpertConfig:
    """Options of the expert.

    Attributes:
        noise_sd: standard deviation of normal noise on each action element, in action units.
        seed: of the noise.
    """

    noise_sd: float = 0.0
    seed: int = 0


class PointReachExpert:
    """Walks straight at the goal (it does not know the obstacle).

    Args:
        config: options.
        spec: of PointReach.
    """

    def __init__(self, config: PointReachExpertConfig, spec: EnvSpec) -> None:
        self.config = config
        self.spec = spec
        self._rngs: dict[int, np.random.Generator] = {}

    def act(
        self,
        observation: Observation,
        episode_seeds: Int64[Array, " N"],
        new_episode: Bool[Array, " N"],
    ) -> ActionChunk:
        """One action (N, 1, 2) towards the goal; its noise depends on (seed, episode seed, step) alone."""
        assert observation.state is not None
        state = observation.state[:, -1]
        action = ((state[:, 2:] - state[:, :2]) / _STEP_M).clamp(-1, 1)
        if self.config.noise_sd > 0:
            for row, seed in enumerate(np.asarray(episode_seeds).tolist()):
                if seed < 0:
                    continue
                if bool(new_episode[row]) or seed not in self._rngs:
                    self._rngs[seed] = np.random.default_rng([self.config.seed, seed])
                noise = self._rngs[seed].normal(0.0, self.config.noise_sd, size=2)
                action[row] += torch.from_numpy(noise).to(action)
        return ActionChunk(actions=action.clamp(-1, 1)[:, None], execute=1)
