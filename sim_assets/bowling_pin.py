"""The bowling pin's mesh, written by a program: `python -m robot_rl.sim_assets.bowling_pin` makes bowling_pin.obj anew.

A solid of revolution with twelve sides whose profile is convex, so that its own mesh is its collision shape. 60 corners
and 50 faces: inside the limits of 64 that PhysX has for convex shapes on a GPU.
"""

from __future__ import annotations

import math
from pathlib import Path

PIN_OBJ = Path(__file__).with_name("bowling_pin.obj")
SIDES = 12
HEIGHT_M = 0.13
# Height over the base and radius, m, from the base up.
PROFILE_M = ((0.0, 0.012), (0.04, 0.019), (0.085, 0.016), (0.12, 0.009), (HEIGHT_M, 0.005))


def obj_text() -> str:
    """Wavefront OBJ of the pin, metres, z up, the origin in the middle of the base; faces turn outwards."""
    lines = ["# Bowling pin. Own work of the robot-rl project, Apache-2.0; made by bowling_pin.py."]
    for height, radius in PROFILE_M:
        for side in range(SIDES):
            angle = 2.0 * math.pi * side / SIDES
            lines.append(f"v {radius * math.cos(angle):.6f} {radius * math.sin(angle):.6f} {height:.6f}")
    for ring in range(len(PROFILE_M) - 1):
        for side in range(SIDES):
            here, beside = ring * SIDES + side + 1, ring * SIDES + (side + 1) % SIDES + 1
            lines.append(f"f {here} {beside} {beside + SIDES} {here + SIDES}")
    top = (len(PROFILE_M) - 1) * SIDES
    lines.append("f " + " ".join(str(SIDES - side) for side in range(SIDES)))
    lines.append("f " + " ".join(str(top + side + 1) for side in range(SIDES)))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PIN_OBJ.write_text(obj_text(), encoding="utf-8")
