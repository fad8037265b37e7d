"""Scripted expert for the bowling task, with flaws on request: how it aims, how fast, when it lets go, how steadily.

The gripper, three quarters open, is a fork with the ball lying against both fingers. The expert goes behind the ball,
moves up to it slowly (a ball that is hit by one finger first flies aside), then speeds up along the line to the pins
with the ball in the fork and corrects by the ball's own velocity. Past the release line it stands still, and the ball
rolls on. Without flaws the action is a function of the present state alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float64, Int64
from robot_rl.errors import ConfigError
from robot_rl.specs import EnvSpec
from robot_rl.types import ActionChunk, Observation

from .bowling import ENV_ID
from .expert_memory import require_known, require_task

CONTROL_MODE = "pd_ee_delta_pos"
STATE_SIZE = 61
# qpos (9), qvel (9), tcp_pose (7), head_pos (3), ball_pos (3), ball_vel (3), then spin and pins.
TCP, HEAD, BALL, BALL_VELOCITY = slice(18, 21), slice(25, 28), slice(28, 31), slice(31, 34)
METRES_PER_ACTION = 0.1
# What the tool does at an action of 1, m/s.
FULL_SPEED = 0.8
GRIP = 0.75
TOOL_HEIGHT_M = 0.045
# Where the tool stands behind the ball's centre before it moves up, and the distance at which the fork touches.
BEHIND_M = 0.075
SEATED_M = 0.052
APPROACH_SPEED = 0.2
REACH_SPEED = 0.8
# How much faster than the ball the tool wants to be, in action units: the push, without leaving the ball behind.
RAMP = 0.2
STEER = 0.5
RELEASE_X_M = 0.08
# Ball speeds at which somebody who lets go too early does so, m/s.
EARLY_RELEASE_SPEED = (0.2, 0.45)


@dataclass(frozen=True)
class BowlingExpertConfig:
    """Flaws of the bowling expert; the defaults are the perfect one.

    Attributes:
        seed: of all draws, >= 0.
        aim_offset_m: standard deviation, m, of an episode's error of the aim point across the lane, at the head pin.
        speed_low, speed_high: range of an episode's top speed, in (0, 1]; 1 is the arm's full speed.
        early_release_probability: of an episode in which the arm stops before the ball has its speed.
        action_noise: standard deviation of Gaussian noise on the three position actions of every step, in units of
            the normalised action (1 = 0.1 m commanded); the result is clipped to [-1, 1].
    """

    seed: int = 0
    aim_offset_m: float = 0.0
    speed_low: float = 1.0
    speed_high: float = 1.0
    early_release_probability: float = 0.0
    action_noise: float = 0.0

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: naming the field.
        """
        checks = {
            "seed": (self.seed >= 0, ">= 0"),
            "aim_offset_m": (0.0 <= self.aim_offset_m < np.inf, "a finite number >= 0"),
            "speed_low": (0.0 < self.speed_low <= self.speed_high, "0 < speed_low <= speed_high"),
            "speed_high": (self.speed_high <= 1.0, "<= 1"),
            "early_release_probability": (0.0 <= self.early_release_probability <= 1.0, "0..1"),
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
class Lane:
    """What the rule looks at, world frame.

    Attributes:
        tcp: float64 (N, 3), m, tool centre point between the fingertips.
        ball: float64 (N, 3), m, its centre.
        velocity: float64 (N, 3), m/s, of the ball.
        head: float64 (N, 3), m, where the head pin was set up.
    """

    tcp: Float64[Array, "N 3"]
    ball: Float64[Array, "N 3"]
    velocity: Float64[Array, "N 3"]
    head: Float64[Array, "N 3"]


def strike(lane: Lane, aim: Float64[Array, " N"], top_speed: Float64[Array, " N"]) -> Float64[Array, "N 3"]:
    """Position actions from the present state.

    Args:
        lane: see there.
        aim: m, where across the lane to aim at, from the head pin.
        top_speed: action units, 0..1.
    """
    way = lane.head[:, :2] - lane.ball[:, :2]
    way[:, 1] += aim
    along = way / np.maximum(_norm(way), 1e-6)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    forward = (lane.velocity[:, :2] * along).sum(axis=1)
    drift = np.where(forward > 0.1, (lane.velocity[:, :2] * across).sum(axis=1), 0.0)
    gap = lane.ball[:, :2] - lane.tcp[:, :2]
    low = np.clip((TOOL_HEIGHT_M - lane.tcp[:, 2]) / METRES_PER_ACTION, -1.0, 1.0)
    centre = np.clip(gap[:, 1] / METRES_PER_ACTION, -1.0, 1.0)
    approach = np.stack([np.full_like(low, APPROACH_SPEED), centre, low], axis=1)
    # A little faster than the ball along the line, against its drift across it, and the ball in the middle of the fork.
    pace = np.minimum(top_speed, np.maximum(forward, 0.0) / FULL_SPEED + RAMP)
    push = along * pace[:, None] - across * (STEER * drift / FULL_SPEED)[:, None]
    push[:, 1] += centre
    push /= np.maximum(1.0, np.abs(push).max(axis=1, keepdims=True))
    push = np.concatenate([push, low[:, None]], axis=1)
    seated = (gap[:, 0] < SEATED_M) | (forward >= 0.1)
    behind = (gap[:, 0] > 0.02) & (gap[:, 0] < 0.1) & (np.abs(gap[:, 1]) < 0.015) & (lane.tcp[:, 2] < 0.06)
    action = np.where(behind[:, None], np.where(seated[:, None], push, approach), _reach(lane))
    return np.where((lane.ball[:, 0] > RELEASE_X_M)[:, None], 0.0, action)


def _reach(lane: Lane) -> Float64[Array, "N 3"]:
    """To the place behind the ball: across at a height that clears the ball, then down a funnel."""
    reach = lane.ball - lane.tcp
    reach[:, 0] -= BEHIND_M
    aside = _norm(reach[:, :2])
    reach[:, 2] = TOOL_HEIGHT_M + 0.07 * np.clip((aside - 0.008) / 0.032, 0.0, 1.0) - lane.tcp[:, 2]
    action = reach / METRES_PER_ACTION
    return action * np.minimum(1.0, REACH_SPEED / np.maximum(np.abs(action).max(axis=1), 1e-9))[:, None]


def _norm(vector: Float64[Array, "N D"]) -> Float64[Array, " N"]:
    return np.sqrt((vector * vector).sum(axis=1))


class BowlingExpert:
    """Solves Bowling-v1 with `pd_ee_delta_pos`.

    With flaws it remembers, per env, what was drawn for the episode, whether the ball was let go too early, and the
    stream of the noise. An episode's draws depend on (expert seed, episode seed) alone.

    Args:
        config: flaws, noise and seed.
        spec: of the environment; needs the observation key "state".

    Raises:
        EnvError: for another task, control mode or observation.
        ConfigError: for a flaw out of range.
    """

    def __init__(self, config: BowlingExpertConfig, spec: EnvSpec) -> None:
        config.validate()
        require_task(spec, env_id=ENV_ID, control_mode=CONTROL_MODE, state_size=STATE_SIZE, name="bowling")
        self.config = config
        self._forget(0)

    def act(
        self,
        observation: Observation,
        *,
        episode_seeds: Int64[Array, " N"],
        new_episode: Bool[Array, " N"],
    ) -> ActionChunk:
        """Choose the next action of N envs from the newest frame of `observation.state`.

        Args:
            observation: state float32 (N, To, 61).
            episode_seeds: int64 (N,), -1 for an idle env (its action means nothing).
            new_episode: bool (N,), True where this is the first decision of an episode.

        Returns:
            A chunk of one action, float32 (N, 1, 4) in [-1, 1]: x, y, z deltas and the gripper.

        Raises:
            EnvError: when an episode goes on that never began.
        """
        frame = torch.as_tensor(observation.state)[:, -1].detach()
        self._begin(torch.as_tensor(episode_seeds).cpu().numpy(), torch.as_tensor(new_episode).cpu().numpy())
        state = frame.cpu().numpy().astype(np.float64)
        lane = Lane(state[:, TCP], state[:, BALL], state[:, BALL_VELOCITY], state[:, HEAD])
        action = strike(lane, self._aim, self._speed)
        self._let_go |= _norm(lane.velocity[:, :2]) > self._early_speed
        action[self._let_go] = 0.0
        if self.config.action_noise > 0.0:
            action += self.config.action_noise * np.stack([rng.standard_normal(3) for rng in self._noise])
        grip = np.full((len(action), 1), GRIP)
        action = np.concatenate([np.clip(action, -1.0, 1.0), grip], axis=1)
        return ActionChunk(torch.as_tensor(action[:, None], dtype=torch.float32, device=frame.device), execute=1)

    def _forget(self, num_envs: int) -> None:
        """Empty memory for N envs."""
        self._episodes = np.full(num_envs, -1, dtype=np.int64)
        self._aim = np.zeros(num_envs)
        self._speed = np.ones(num_envs)
        self._early_speed = np.full(num_envs, np.inf)
        self._let_go = np.zeros(num_envs, dtype=bool)
        self._noise = [np.random.default_rng(0) for _ in range(num_envs)]

    def _begin(self, seeds: Int64[Array, " N"], new_episode: Bool[Array, " N"]) -> None:
        """Draw the flaws of every episode that begins."""
        if len(self._episodes) != len(seeds):
            self._forget(len(seeds))
        for row in np.flatnonzero(new_episode & (seeds >= 0)).tolist():
            self._draw(row, int(seeds[row]))
        require_known(seeds, self._episodes, who="bowling expert")

    def _draw(self, row: int, seed: int) -> None:
        """Every number is drawn whether it is used or not: raising one flaw leaves the others' draws as they were."""
        config = self.config
        rng = np.random.default_rng([config.seed, seed])
        self._episodes[row] = seed
        self._speed[row] = config.speed_low + (config.speed_high - config.speed_low) * rng.random()
        self._aim[row] = config.aim_offset_m * rng.standard_normal()
        early, early_speed = rng.random(), rng.uniform(*EARLY_RELEASE_SPEED)
        self._early_speed[row] = early_speed if early < config.early_release_probability else np.inf
        self._let_go[row] = False
        self._noise[row] = np.random.default_rng([config.seed, seed, 1])
