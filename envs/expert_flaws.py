"""How a scripted expert errs: systematic flaws that last an episode, and noise that changes every step.

Everything is drawn from (expert seed, episode seed), so an episode is the same however many envs run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Bool, Float64
from robot_rl.errors import ConfigError

# A person who closes too early does so with the fingertips above the cube, so that they meet with nothing between.
EARLY_CLOSE_HEIGHT_M = (0.045, 0.07)
# A drop happens on the way, this far before the goal.
DROP_DISTANCE_M = (0.04, 0.12)
# How long such a slip lasts, in control steps: the fingers need one or two to move.
EARLY_CLOSE_STEPS = 4
DROP_STEPS = 3


@dataclass(frozen=True)
class ExpertConfig:
    """Flaws of a scripted expert; the defaults are the perfect one.

    Attributes:
        seed: of all draws, >= 0.
        speed_low, speed_high: range of the speed factor of an episode, in (0, 2]; 1 is the expert's own speed.
        grasp_offset_m: standard deviation, m, of the x and y error of the grasp (pushing: of the contact) point.
        goal_offset_m: standard deviation, m, of the error of the goal, each of x, y, z (only x and y where the goal
            lies on a surface).
        early_close_probability: of an episode in which the gripper closes once above the cube, and opens again.
        drop_probability: of an episode in which the gripper opens once on the way to the goal.
        action_noise: standard deviation of Gaussian noise on the three position actions of every step, in units of
            the normalised action (1 = 0.1 m commanded); the result is clipped to [-1, 1].
    """

    seed: int = 0
    speed_low: float = 1.0
    speed_high: float = 1.0
    grasp_offset_m: float = 0.0
    goal_offset_m: float = 0.0
    early_close_probability: float = 0.0
    drop_probability: float = 0.0
    action_noise: float = 0.0

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: naming the field.
        """
        checks = {
            "seed": (self.seed >= 0, ">= 0"),
            "speed_low": (0.0 < self.speed_low <= self.speed_high, "0 < speed_low <= speed_high"),
            "speed_high": (self.speed_high <= 2.0, "<= 2"),
            "grasp_offset_m": (0.0 <= self.grasp_offset_m < np.inf, "a finite number >= 0"),
            "goal_offset_m": (0.0 <= self.goal_offset_m < np.inf, "a finite number >= 0"),
            "early_close_probability": (0.0 <= self.early_close_probability <= 1.0, "0..1"),
            "drop_probability": (0.0 <= self.drop_probability <= 1.0, "0..1"),
            "action_noise": (0.0 <= self.action_noise < np.inf, "a finite number >= 0"),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ConfigError(
                    f"expert configuration, {name}",
                    expected=expected,
                    got=repr(getattr(self, name)),
                    hint="Correct this field; the default is the perfect expert.",
                )


@dataclass(frozen=True)
class EpisodeFlaws:
    """The systematic flaws of the episodes of N envs.

    Attributes:
        speed: float64 (N,), factor of the expert's speed.
        grasp_offset: float64 (N, 2), m.
        goal_offset: float64 (N, 3), m.
        early_height: float64 (N,), m above the cube at which the gripper closes once; -inf: never.
        drop_distance: float64 (N,), m before the goal at which the gripper opens once; -inf: never.
    """

    speed: Float64[Array, " N"]
    grasp_offset: Float64[Array, "N 2"]
    goal_offset: Float64[Array, "N 3"]
    early_height: Float64[Array, " N"]
    drop_distance: Float64[Array, " N"]

    @classmethod
    def none(cls, num_envs: int) -> EpisodeFlaws:
        """No flaws, for N envs (arrays to be filled by `draw`)."""
        return cls(
            speed=np.ones(num_envs),
            grasp_offset=np.zeros((num_envs, 2)),
            goal_offset=np.zeros((num_envs, 3)),
            early_height=np.full(num_envs, -np.inf),
            drop_distance=np.full(num_envs, -np.inf),
        )

    def draw(self, row: int, config: ExpertConfig, episode_seed: int) -> None:
        """Write the flaws of episode `episode_seed` into `row`.

        Every number is drawn whether it is used or not: raising one flaw leaves the draws of the others as they were.
        """
        rng = np.random.default_rng([config.seed, episode_seed])
        self.speed[row] = config.speed_low + (config.speed_high - config.speed_low) * rng.random()
        self.grasp_offset[row] = config.grasp_offset_m * rng.standard_normal(2)
        self.goal_offset[row] = config.goal_offset_m * rng.standard_normal(3)
        early, early_height = rng.random(), rng.uniform(*EARLY_CLOSE_HEIGHT_M)
        drop, drop_distance = rng.random(), rng.uniform(*DROP_DISTANCE_M)
        self.early_height[row] = early_height if early < config.early_close_probability else -np.inf
        self.drop_distance[row] = drop_distance if drop < config.drop_probability else -np.inf


class Slips:
    """The two mistakes that happen once an episode, for N envs: fingers shut above the cube, cube dropped on the way.

    Args:
        flaws: of the same N envs, kept by reference.
    """

    def __init__(self, flaws: EpisodeFlaws) -> None:
        num_envs = len(flaws.speed)
        self._flaws = flaws
        self._early_due = np.zeros(num_envs, dtype=bool)
        self._drop_due = np.zeros(num_envs, dtype=bool)
        self._early_left = np.zeros(num_envs, dtype=np.int64)
        self._drop_left = np.zeros(num_envs, dtype=np.int64)

    def begin(self, row: int) -> None:
        """A new episode begins in env `row`; its flaws are drawn already."""
        self._early_due[row] = self._flaws.early_height[row] > 0
        self._drop_due[row] = self._flaws.drop_distance[row] > 0
        self._early_left[row] = self._drop_left[row] = 0

    def step(
        self,
        *,
        above: Float64[Array, "N 3"],
        to_goal: Float64[Array, "N 3"],
        holding: Bool[Array, " N"],
    ) -> tuple[Bool[Array, " N"], Bool[Array, " N"]]:
        """Advance by one step.

        Args:
            above: m, from the cube to the tool.
            to_goal: m, from the cube to its goal.
            holding: whether the cube is carried.

        Returns:
            bool (N,) where the fingers wrongly shut, and bool (N,) where they wrongly open.
        """
        aside = np.sqrt((above[:, :2] ** 2).sum(axis=1))
        early = self._early_due & (aside < 0.03) & (above[:, 2] < self._flaws.early_height)
        drop = self._drop_due & holding & (np.sqrt((to_goal**2).sum(axis=1)) < self._flaws.drop_distance)
        self._early_due &= ~early
        self._drop_due &= ~drop
        self._early_left = np.where(early, EARLY_CLOSE_STEPS, np.maximum(self._early_left - 1, 0))
        self._drop_left = np.where(drop, DROP_STEPS, np.maximum(self._drop_left - 1, 0))
        return self._early_left > 0, self._drop_left > 0


def noise_stream(config: ExpertConfig, episode_seed: int) -> np.random.Generator:
    """The stream of per-step noise of one episode, apart from the stream of its systematic flaws."""
    return np.random.default_rng([config.seed, episode_seed, 1])
