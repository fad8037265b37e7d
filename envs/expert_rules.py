"""What a scripted expert does, as functions of the present state alone, one rule a task family.

A rule has no memory and no clock: phases are regions of the state (with hysteresis through the width of the gripper),
so that a policy that sees one frame can learn all of it. Heights fall along a funnel, a continuous function of the
horizontal distance, instead of by phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robot_rl.arrays import Array, Bool, Float64

from .expert_flaws import EpisodeFlaws

CUBE_HALF_M = 0.02
# Height over the cube at which the open fingers, or the shut ones that go round it, touch nothing.
HOVER_M = 0.06
ROUND_M = 0.07
# The fingers start to shut within the first distance of the grasp point and go on shutting within the second.
NEAR_M = 0.012
KEEP_NEAR_M = 0.025
# Where a shoved cube is to stop before the centre of its goal (radius 0.1 m): inside, and in reach of the arm.
STOP_SHORT_M = 0.06


@dataclass(frozen=True)
class Scene:
    """What the rules look at, world frame.

    Attributes:
        tcp: float64 (N, 3), m, tool centre point between the fingertips.
        finger: float64 (N,), m, mean opening of a finger, 0 closed .. 0.04 open.
        cube: float64 (N, 3), m, centre of the cube to move.
        goal: float64 (N, 3), m, where its centre shall go.
        grasped: bool (N,), the simulator's own flag, or None where the task has none.
    """

    tcp: Float64[Array, "N 3"]
    finger: Float64[Array, " N"]
    cube: Float64[Array, "N 3"]
    goal: Float64[Array, "N 3"]
    grasped: Bool[Array, " N"] | None = None


@dataclass(frozen=True)
class Command:
    """What a rule wants.

    Attributes:
        displacement: float64 (N, 3), m, of the tool centre point from where it is.
        close: bool (N,), fingers shut.
        holding: bool (N,), the cube is in the gripper and on its way.
    """

    displacement: Float64[Array, "N 3"]
    close: Bool[Array, " N"]
    holding: Bool[Array, " N"]


def pick(scene: Scene, flaws: EpisodeFlaws) -> Command:
    """Grasp the cube and bring it to a goal in the air."""
    reach, near = _approach(scene, flaws)
    holding = _holding(scene) if scene.grasped is None else scene.grasped
    carry = scene.goal + flaws.goal_offset - scene.cube
    return Command(np.where(holding[:, None], carry, reach), near | holding, holding)


def stack(scene: Scene, flaws: EpisodeFlaws) -> Command:
    """Grasp the cube, set it on another one (`goal` is the place on top) and let go."""
    reach, near = _approach(scene, flaws)
    goal = scene.goal + flaws.goal_offset * np.array([1.0, 1.0, 0.0])
    to_goal = goal - scene.cube
    distance = _norm(to_goal[:, :2])
    holding = _holding(scene)
    # Over the edge of the lower cube first, then across, then down the funnel.
    carry = to_goal.copy()
    carry[:, 2] += 0.03 * _ramp(distance, 0.012, 0.04)
    across = np.where(distance > 0.02, _ramp(-to_goal[:, 2], -0.012, 0.01), 1.0)
    carry[:, :2] *= across[:, None]
    placed = (distance < 0.015) & (np.abs(to_goal[:, 2]) < 0.006)
    leave = np.zeros_like(carry)
    leave[:, 2] = np.where(scene.finger > 0.035, scene.cube[:, 2] + HOVER_M - scene.tcp[:, 2], 0.0)
    displacement = np.where(placed[:, None], leave, np.where(holding[:, None], carry, reach))
    return Command(displacement, (near | holding) & ~placed, holding & ~placed)


def shove(scene: Scene, flaws: EpisodeFlaws) -> Command:
    """Move the cube over the table with closed fingers, from the side that faces away from the goal."""
    goal = scene.goal[:, :2] + flaws.goal_offset[:, :2]
    way = goal - scene.cube[:, :2]
    distance = _norm(way)
    direction = way / np.maximum(distance, 1e-6)[:, None]
    across = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    contact = scene.cube[:, :2] + flaws.grasp_offset[:, 1:] * across
    offset = scene.tcp[:, :2] - contact
    along, aside = _dot(offset, direction), _dot(offset, across)
    behind = (along < -CUBE_HALF_M - 0.005) & (np.abs(aside) < 0.015) & (scene.tcp[:, 2] < 0.045)
    start = contact - 0.055 * direction
    reach = np.zeros_like(scene.tcp)
    reach[:, :2] = start - scene.tcp[:, :2]
    reach[:, 2] = CUBE_HALF_M + ROUND_M * _ramp(_norm(reach[:, :2]), 0.012, 0.04) - scene.tcp[:, 2]
    push = np.zeros_like(scene.tcp)
    push[:, :2] = direction * (distance - STOP_SHORT_M)[:, None] - across * aside[:, None]
    push[:, 2] = CUBE_HALF_M - scene.tcp[:, 2]
    always = np.ones(len(scene.tcp), dtype=bool)
    return Command(np.where(behind[:, None], push, reach), always, ~always)


def _approach(scene: Scene, flaws: EpisodeFlaws) -> tuple[Float64[Array, "N 3"], Bool[Array, " N"]]:
    """Displacement to the grasp point, and whether the fingers shall close there."""
    reach = scene.cube - scene.tcp
    reach[:, :2] += flaws.grasp_offset
    aside = _norm(reach[:, :2])
    distance = _norm(reach)
    near = (distance < NEAR_M) | ((distance < KEEP_NEAR_M) & (scene.finger < 0.037))
    near &= scene.finger > 0.008
    # Shut fingers must open above the cube: they would push it down or away.
    height = HOVER_M * np.maximum(_ramp(aside, 0.008, 0.03), _ramp(-scene.finger, -0.036, -0.03))
    reach[:, 2] += np.where(near, 0.0, height)
    return reach, near


def _holding(scene: Scene) -> Bool[Array, " N"]:
    """Whether the fingers hold the cube, for tasks without a grasp flag.

    By width alone: the cube takes 0.020 to 0.028 m of half width, depending on its yaw. (The simulated speeds of the
    fingers are no help; they don't vanish while the fingers press on something.)
    """
    inside = _norm(scene.cube - scene.tcp) < KEEP_NEAR_M
    return inside & (scene.finger > 0.015) & (scene.finger < 0.031)


def _ramp(value: Float64[Array, " N"], low: float, high: float) -> Float64[Array, " N"]:
    """0 at `low` and below, 1 at `high` and above, straight between."""
    return np.clip((value - low) / (high - low), 0.0, 1.0)


def _norm(vector: Float64[Array, "N D"]) -> Float64[Array, " N"]:
    return np.sqrt((vector * vector).sum(axis=1))


def _dot(left: Float64[Array, "N D"], right: Float64[Array, "N D"]) -> Float64[Array, " N"]:
    return (left * right).sum(axis=1)
