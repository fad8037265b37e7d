"""Ways for PushT's pusher around the block: shortest paths over the corners of the grown block."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64

from .pusht_sim import AGENT_RADIUS_PX, OUTLINE, SIZE_PX, to_world

_BESIDE_PX = 2.0
_CLEARANCE_PX = 9.0
_WALL_PX = 7.0


def free_of_block(point: Float64[Array, " 2"], block: Float64[Array, " 3"]) -> bool:
    """Whether the pusher can stand at `point` px: off the walls and off the block."""
    import shapely

    edge = AGENT_RADIUS_PX + _WALL_PX
    if point.min() < edge or point.max() > SIZE_PX - edge:
        return False
    return bool(shapely.distance(_polygon(block), shapely.Point(point)) > AGENT_RADIUS_PX + _BESIDE_PX)


def route(
    start: Float64[Array, " 2"], end: Float64[Array, " 2"], block: Float64[Array, " 3"], *, step_px: float
) -> Float64[Array, "M 2"]:
    """Targets at most `step_px` apart from `start` (not in it) to `end` (in it), around the block.

    A start nearer than the clearance first leaves the block by the shortest way; an end that is nearer is approached
    from its nearest point outside. Without any way (walls on both sides) the straight line is returned.
    """
    import shapely
    from scipy.sparse.csgraph import dijkstra

    grown = _polygon(block).buffer(AGENT_RADIUS_PX + _CLEARANCE_PX, join_style="mitre")
    out, into = _outside(start, grown), _outside(end, grown)
    corners = np.array(grown.exterior.coords)[:-1]
    edge = AGENT_RADIUS_PX + _WALL_PX
    corners = corners[((corners > edge) & (corners < SIZE_PX - edge)).all(axis=1)]
    nodes = np.concatenate([[out, into], corners])
    first, second = np.triu_indices(len(nodes), k=1)
    lines = shapely.linestrings(np.stack([nodes[first], nodes[second]], axis=1))
    clear = ~shapely.intersects(grown.buffer(-0.5), lines)
    lengths = np.zeros((len(nodes), len(nodes)))
    lengths[first[clear], second[clear]] = np.maximum(shapely.length(lines[clear]), 1e-6)
    _, before = dijkstra(lengths, directed=False, indices=0, return_predecessors=True)
    via = [end, into]
    node = 1
    while before[node] >= 0 and node != 0:
        node = int(before[node])
        via.append(nodes[node])
    via += [out, start]
    return _spaced(np.array(via[::-1]), step_px)


def _polygon(block: Float64[Array, " 3"]) -> Any:
    from shapely.geometry import Polygon

    return Polygon(to_world(OUTLINE, block))


def _outside(point: Float64[Array, " 2"], grown: Any) -> Float64[Array, " 2"]:
    from shapely.geometry import Point

    at = Point(point)
    if not grown.contains(at):
        return point
    line = grown.exterior
    return np.array(line.interpolate(line.project(at)).coords[0])


def _spaced(corners: Float64[Array, "M 2"], step_px: float) -> Float64[Array, "M2 2"]:
    """Points every `step_px` along a polyline, without its first, with its last."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    count = max(int(np.ceil(lengths[-1] / step_px)), 1)
    at = np.linspace(0.0, lengths[-1], count + 1)[1:]
    return np.stack([np.interp(at, lengths, corners[:, axis]) for axis in range(2)], axis=1)
