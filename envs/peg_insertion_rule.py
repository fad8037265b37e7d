"""What the expert for PegInsertionSide-v1 does, as a function of the present state alone.

The stages are those of ManiSkill's motion planning for this task (grasp near the tail, align before the hole, insert),
without its plan: every step looks at where the peg is now, so a peg that slips in the fingers, or falls, is caught up
with. Stages are regions of the state, joined by ramps, so that a policy that sees one frame can learn all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from robot_rl.arrays import Array, Bool, Float64

from .expert_flaws import EpisodeFlaws

# Where the tool holds the peg: this far behind its middle, or half of its half length and 1 cm more. The peg goes in as
# far as its middle, so the hand stays outside of the box.
LEAST_BEHIND_M = 0.05
# Height over the peg at which the open fingers touch nothing.
HOVER_M = 0.06
# The fingers start to shut within the first distance of the grasp point and go on shutting within the second.
NEAR_M = 0.012
KEEP_NEAR_M = 0.024
NEAR_RAD = 0.12
# How far before the box the head waits until the peg is aligned, and how far past the middle of the box it is pushed.
STANDOFF_M = 0.02
PAST_M = 0.01
# Error of the peg's axis, at its middle or at its head, up to which it goes in at once, and from which on it waits.
ALIGNED_M = (0.0015, 0.0035)
# The same inside of the hole, whose walls correct what is left.
STUCK_M = (0.004, 0.008)
# How far ahead the push aims. Speed along the hole pulls the peg aside (the joints lag by different amounts): faster
# before the hole than this, peg and rule swing to and fro between pushing and waiting.
PUSH_BEFORE_M = 0.012
PUSH_INSIDE_M = 0.025
BACK_M = 0.008
# The arm gives way to the peg's weight by about this much (measured, 0.6 to 1 mm of the 3 mm that are free).
SAG_M_PER_KG = 0.0025
DENSITY_KG_PER_M3 = 1000.0


@dataclass(frozen=True)
class Bench:
    """What the rule looks at, world frame.

    Attributes:
        tcp: float64 (N, 3), m, tool centre point between the fingertips.
        tcp_axes: float64 (N, 3, 3), its axes in columns: y is the way the fingers open, z points out of the hand.
        finger: float64 (N,), m, mean opening of a finger, 0 closed .. 0.04 open.
        peg: float64 (N, 3), m, its middle.
        peg_axes: float64 (N, 3, 3), x from the tail to the head.
        half_length: float64 (N,), m, of the peg; the box is as deep as the peg is long.
        radius: float64 (N,), m, half of the peg's width.
        hole: float64 (N, 3), m, the middle of the hole, where the head shall go.
        hole_axes: float64 (N, 3, 3), x is the way in.
    """

    tcp: Float64[Array, "N 3"]
    tcp_axes: Float64[Array, "N 3 3"]
    finger: Float64[Array, " N"]
    peg: Float64[Array, "N 3"]
    peg_axes: Float64[Array, "N 3 3"]
    half_length: Float64[Array, " N"]
    radius: Float64[Array, " N"]
    hole: Float64[Array, "N 3"]
    hole_axes: Float64[Array, "N 3 3"]


@dataclass(frozen=True)
class Motion:
    """What the rule wants, world frame.

    Attributes:
        displacement: float64 (N, 3), m, of the point that is moved: the tool, or the peg's middle while it is held.
        turn: float64 (N, 3), rad, rotation vector, of the tool.
        lever: float64 (N, 3), m, from the tool to the point that is moved.
        close: bool (N,), fingers shut.
        holding: bool (N,), the peg is in the fingers.
        above: float64 (N, 3), m, from the grasp point to the tool.
        to_wait: float64 (N, 3), m, from the peg's middle to where it waits before the hole.
    """

    displacement: Float64[Array, "N 3"]
    turn: Float64[Array, "N 3"]
    lever: Float64[Array, "N 3"]
    close: Bool[Array, " N"]
    holding: Bool[Array, " N"]
    above: Float64[Array, "N 3"]
    to_wait: Float64[Array, "N 3"]


def insert_peg(bench: Bench, flaws: EpisodeFlaws) -> Motion:
    """Grasp the peg near its tail, align it before the hole and push its head to the middle of the box.

    Args:
        bench: see there.
        flaws: grasp_offset moves the grasp point along and across the peg; y and z of goal_offset move the place where
            the hole is believed to be, in the hole's frame.
    """
    reach, turn_to_peg = _to_grasp(bench, flaws)
    near = np.linalg.norm(reach, axis=1) < np.where(bench.finger < 0.037, KEEP_NEAR_M, NEAR_M)
    near &= (np.linalg.norm(turn_to_peg, axis=1) < NEAR_RAD) & (bench.finger > 0.008)
    # Shut fingers must open above the peg, and the hand must have turned before it goes down.
    height = HOVER_M * np.max(
        [
            np.interp(np.linalg.norm(reach[:, :2], axis=1), (0.008, 0.03), (0.0, 1.0)),
            np.interp(np.linalg.norm(turn_to_peg, axis=1), (0.1, 0.3), (0.0, 1.0)),
            np.interp(bench.finger, (0.03, 0.036), (1.0, 0.0)),
        ],
        axis=0,
    )
    funnel = reach + np.where(near, 0.0, height)[:, None] * np.array([0.0, 0.0, 1.0])
    holding = _holding(bench)
    held = holding[:, None]
    carry, to_wait = _to_hole(bench, flaws)
    return Motion(
        displacement=np.where(held, carry, funnel),
        turn=np.where(held, _turn_to_hole(bench), turn_to_peg),
        lever=np.where(held, bench.peg - bench.tcp, 0.0),
        close=near | holding,
        holding=holding,
        above=-reach,
        to_wait=to_wait,
    )


def _to_grasp(bench: Bench, flaws: EpisodeFlaws) -> tuple[Float64[Array, "N 3"], Float64[Array, "N 3"]]:
    """Displacement and turn of the tool to the grasp: from above, fingers on both sides."""
    axis = bench.peg_axes[:, :, 0]
    along = axis * np.array([1.0, 1.0, 0.0])
    along /= np.maximum(np.linalg.norm(along, axis=1), 1e-6)[:, None]
    down = np.broadcast_to(np.array([0.0, 0.0, -1.0]), along.shape)
    across = np.cross(down, along)
    behind = np.maximum(LEAST_BEHIND_M, 0.5 * bench.half_length + 0.01)
    grasp = bench.peg - behind[:, None] * axis
    grasp += flaws.grasp_offset[:, :1] * along + flaws.grasp_offset[:, 1:] * across
    return grasp - bench.tcp, _rotation_vector(np.stack([along, across, down], axis=2), bench.tcp_axes)


def _to_hole(bench: Bench, flaws: EpisodeFlaws) -> tuple[Float64[Array, "N 3"], Float64[Array, "N 3"]]:
    """Displacement of the held peg, and its way to where it waits before the hole."""
    middle = np.einsum("nji,nj->ni", bench.hole_axes, bench.peg - bench.hole)
    axis = np.einsum("nji,nj->ni", bench.hole_axes, bench.peg_axes[:, :, 0])
    head = middle + bench.half_length[:, None] * axis
    aim = flaws.goal_offset[:, 1:]
    error = np.maximum(np.linalg.norm(middle[:, 1:] - aim, axis=1), np.linalg.norm(head[:, 1:] - aim, axis=1))
    inside = head[:, 0] > -bench.half_length + 0.003
    advance = np.where(inside, np.interp(error, STUCK_M, (1.0, 0.0)), np.interp(error, ALIGNED_M, (1.0, 0.0)))
    wait = -2.0 * bench.half_length - STANDOFF_M - middle[:, 0]
    back = np.where(inside, 0.0, np.maximum(wait, -BACK_M))
    push = np.minimum(np.where(inside, PUSH_INSIDE_M, PUSH_BEFORE_M), PAST_M - head[:, 0])
    aside = aim - middle[:, 1:]
    way = np.column_stack([back + advance * (push - back), aside])
    displacement = np.einsum("nij,nj->ni", bench.hole_axes, way)
    displacement[:, 2] += SAG_M_PER_KG * DENSITY_KG_PER_M3 * 8.0 * bench.half_length * bench.radius**2
    return displacement, np.einsum("nij,nj->ni", bench.hole_axes, np.column_stack([wait, aside]))


def _turn_to_hole(bench: Bench) -> Float64[Array, "N 3"]:
    """Turn of the held peg into the hole's direction. It is square: the nearest quarter turn about its length will do."""
    relative = np.einsum("nji,njk->nik", bench.hole_axes, bench.peg_axes)
    roll = np.arctan2(relative[:, 2, 1] - relative[:, 1, 2], relative[:, 1, 1] + relative[:, 2, 2])
    quarter = Rotation.from_euler("x", np.round(roll / (np.pi / 2))[:, None] * 90.0, degrees=True).as_matrix()
    return _rotation_vector(bench.hole_axes @ quarter, bench.peg_axes)


def _holding(bench: Bench) -> Bool[Array, " N"]:
    """Whether the peg is in the fingers: they are as far apart as it is wide, and the tool is on its axis."""
    offset = np.einsum("nji,nj->ni", bench.peg_axes, bench.tcp - bench.peg)
    on_axis = (np.linalg.norm(offset[:, 1:], axis=1) < 0.012) & (np.abs(offset[:, 0]) < bench.half_length)
    return on_axis & (np.abs(bench.finger - bench.radius) < 0.003)


def _rotation_vector(wanted: Float64[Array, "N 3 3"], present: Float64[Array, "N 3 3"]) -> Float64[Array, "N 3"]:
    return np.asarray(Rotation.from_matrix(wanted @ present.transpose(0, 2, 1)).as_rotvec())
