"""What a camera above PointReach's square would see, drawn: for tests of everything that looks, without a renderer."""

from __future__ import annotations

import torch

from robot_rl.arrays import Array, Float32, UInt8
from robot_rl.specs import ArraySpec

CAMERA, POINTS = "image/top", "points"
RADIUS_M = 0.15
GOAL_HEIGHT_M = 0.2  # tells the goal's points from the point's where colours are not looked at
_COLOURS = ((230, 40, 40), (40, 210, 60))
_FLOOR = (30, 30, 40)


def picture(state: Float32[Array, "N 4"], size: int) -> UInt8[Array, "N H W 3"]:
    """The square of 2 m from above, x to the right and y up: a red disc at the point, a green one at the goal."""
    middles = (torch.arange(size) + 0.5) * (2 / size) - 1
    image = torch.tensor(_FLOOR, dtype=torch.float32).expand(len(state), size, size, 3)
    # The point lies on top: it is drawn last.
    for place, colour in ((state[:, 2:], _COLOURS[1]), (state[:, :2], _COLOURS[0])):
        x = middles[None, None, :] - place[:, 0, None, None]
        y = -middles[None, :, None] - place[:, 1, None, None]
        covered = ((RADIUS_M - torch.hypot(x, y)) * size / 2 + 0.5).clamp(0, 1)[..., None]
        image = image * (1 - covered) + covered * torch.tensor(colour, dtype=torch.float32)
    return image.round().to(torch.uint8)


def cloud(state: Float32[Array, "N 4"], number: int) -> Float32[Array, "N M 6"]:
    """`number` points with colours, half on a disc about the point, half on one about the goal, 0.2 m higher."""
    halves = (number // 2, number - number // 2)
    parts = []
    for part, count in enumerate(halves):
        # A sunflower: even, and the same in every frame.
        index = torch.arange(count, dtype=torch.float32)
        radius, angle = RADIUS_M * ((index + 0.5) / max(count, 1)).sqrt(), 2.399963 * index
        offset = torch.stack(
            [radius * angle.cos(), radius * angle.sin(), torch.full_like(index, GOAL_HEIGHT_M * part)], 1
        )
        place = torch.cat([state[:, 2 * part : 2 * part + 2], torch.zeros(len(state), 1)], 1)
        colour = torch.tensor(_COLOURS[part], dtype=torch.float32).expand(len(state), count, 3) / 255
        parts.append(torch.cat([place[:, None] + offset, colour], dim=-1))
    return torch.cat(parts, dim=1)


def view_specs(image_size: int, num_points: int) -> dict[str, ArraySpec]:
    """Specs of the views that are switched on."""
    out = {}
    if image_size:
        shape = (image_size, image_size, 3)
        out[CAMERA] = ArraySpec(CAMERA, shape, dtype="uint8", meanings=("RGB, rows from the top",))
    if num_points:
        meaning = "x, y, z in the base frame (m), red, green, blue (0..1)"
        out[POINTS] = ArraySpec(POINTS, (num_points, 6), meanings=(meaning,))
    return out


def views(state: Float32[Array, "N 4"], image_size: int, num_points: int) -> dict[str, torch.Tensor]:
    """The views that are switched on, by key."""
    out = {CAMERA: picture(state, image_size)} if image_size else {}
    return out | ({POINTS: cloud(state, num_points)} if num_points else {})
