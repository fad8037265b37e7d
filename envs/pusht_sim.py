"""A light copy of PushT's simulator for planning: any state can be set, and nothing is drawn or counted.

Same bodies, controller and integration as gym-pusht 0.1.8 (envs/pusht.py of that package), built with its own public
functions, so a step from the same state gives the same bits. Where pusher, block and walls touch already, the real
space also keeps impulses from before that no observation shows, and poses then differ by a fraction of a pixel. Left
out: the Python contact counter and the coverage at every step, which take most of the real env's time. All positions
in pixels, angles in radians.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64

SIZE_PX = 512.0
AGENT_RADIUS_PX = 15.0
GOAL_POSE = (256.0, 256.0, np.pi / 4)
# Corners of the T in its own frame in the order of PushTEnv.get_keypoints, and its outline, counter-clockwise.
KEYPOINTS = np.array([(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], float)
OUTLINE = KEYPOINTS[[0, 1, 2, 5, 6, 7, 4, 3]]
_WALLS = (((5, 506), (5, 5)), ((5, 5), (506, 5)), ((506, 5), (506, 506)), ((5, 506), (506, 506)))
_SUBSTEPS = 10
_DT_S = 0.01
_K_P, _K_V = 100, 20


def to_world(points: Float64[Array, "M 2"], pose: Float64[Array, " 3"]) -> Float64[Array, "M 2"]:
    """Points of the block's frame in the world, at block pose (x, y, angle)."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    world: np.ndarray = points @ np.array([[cos, sin], [-sin, cos]]) + pose[:2]
    return world


def pose_of(keypoints: Float64[Array, "8 2"]) -> Float64[Array, " 3"]:
    """Block pose (x, y, angle) from its corners; the inverse of `to_world(KEYPOINTS, pose)`."""
    along = keypoints[1] - keypoints[0]
    angle = float(np.arctan2(along[1], along[0]))
    rotated = to_world(KEYPOINTS, np.array([0.0, 0.0, angle]))
    return np.append((keypoints - rotated).mean(axis=0), angle)


class PushSim:
    """One pusher and one block, at rest or with the pusher moving.

    Raises:
        ModuleNotFoundError: when gym-pusht is not installed (the env itself tells how to install it).
    """

    def __init__(self) -> None:
        import pymunk
        from gym_pusht.envs.pusht import PushTEnv

        self._space = pymunk.Space()
        self._space.gravity = 0, 0
        self._space.damping = 0.0
        self._space.add(*[PushTEnv.add_segment(self._space, a, b, 2) for a, b in _WALLS])
        self._agent = PushTEnv.add_circle(self._space, (256, 400), AGENT_RADIUS_PX)
        self._block, _ = PushTEnv.add_tee(self._space, (256, 300), 0)

    @property
    def agent(self) -> Float64[Array, " 4"]:
        """Position and velocity of the pusher: x, y in px and vx, vy in px/s."""
        return np.array([*self._agent.position, *self._agent.velocity], dtype=np.float64)

    @property
    def block(self) -> Float64[Array, " 3"]:
        """Pose of the block: x, y, angle (not wrapped)."""
        return np.array([*self._block.position, self._block.angle], dtype=np.float64)

    def set(self, agent: Float64[Array, " 4"], block: Float64[Array, " 3"]) -> None:
        """Put pusher (position, velocity) and block (pose, at rest) exactly there.

        PushTEnv's reset_to_state sets the position before the angle, which turns the block about its centre of mass
        and so moves it; here the angle comes first.
        """
        self._agent.position, self._agent.velocity = tuple(agent[:2].tolist()), tuple(agent[2:].tolist())
        self._block.angle = float(block[2])
        self._block.position = tuple(block[:2].tolist())
        self._block.velocity, self._block.angular_velocity = (0.0, 0.0), 0.0
        for body in (self._agent, self._block):
            self._space.reindex_shapes_for_body(body)

    def step(self, target: Float64[Array, " 2"]) -> None:
        """One control step (0.1 s) towards `target`, px."""
        agent, step = self._agent, self._space.step
        x, y = float(target[0]), float(target[1])
        for _ in range(_SUBSTEPS):
            (px, py), (vx, vy) = agent.position, agent.velocity
            ax, ay = _K_P * (x - px) + _K_V * (0 - vx), _K_P * (y - py) + _K_V * (0 - vy)
            agent.velocity = (vx + ax * _DT_S, vy + ay * _DT_S)
            step(_DT_S)


def distance_to_goal(block: Float64[Array, " 3"]) -> float:
    """Mean distance in px between the block's corners and where they belong."""
    return float(np.linalg.norm(to_world(KEYPOINTS, block) - _GOAL_KEYPOINTS, axis=1).mean())


def coverage(block: Float64[Array, " 3"]) -> float:
    """Share of the goal that the block covers, 0 to 1 (the task's success: above 0.95)."""
    from shapely.geometry import Polygon

    polygon, goal = Polygon(to_world(OUTLINE, block)), Polygon(to_world(OUTLINE, np.array(GOAL_POSE)))
    return float(polygon.intersection(goal).area / goal.area)


_GOAL_KEYPOINTS: Any = to_world(KEYPOINTS, np.array(GOAL_POSE))
