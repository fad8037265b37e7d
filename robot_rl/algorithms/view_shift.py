"""Domain shift of what cameras see: moved cameras, other light, other colours, with a strength each, drawn from the seed.

A strength says how much; the direction (or sign) depends on (seed, seed of the episode) alone and not on the strength, so
that the episodes of two strengths differ by nothing else. The policy is not told: depths and points are computed with the
camera's old pose, as on a robot whose camera was knocked and not calibrated again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float64
from robot_rl.errors import ConfigError

# Keeps these draws apart from others of (seed, episode seed).
_STREAM = 1_718_185_573
STRENGTHS = ("camera_deg", "camera_m", "light_stops", "light_deg", "hue_deg", "brightness")
OF_CAMERAS, OF_LIGHTS, OF_COLOURS = STRENGTHS[:2], STRENGTHS[2:4], STRENGTHS[4:]


@dataclass(frozen=True)
class ViewDraw:
    """Directions of one episode.

    Attributes:
        turn_axis, move_axis: float64 (K, 3), unit vectors in the frame of each of K cameras.
        light_axis: float64 (3,), unit vector.
        light_sign, hue_sign, brightness_sign: -1 or 1.
    """

    turn_axis: Float64[Array, "K 3"]
    move_axis: Float64[Array, "K 3"]
    light_axis: Float64[Array, " 3"]
    light_sign: int
    hue_sign: int
    brightness_sign: int


@dataclass(frozen=True)
class ViewShift:
    """How much of each; 0 leaves it as it is.

    Attributes:
        camera_deg: every camera is turned by this angle about an axis of its own, degrees.
        camera_m: every camera is moved by this distance in a direction of its own, m.
        light_stops: all lights are 2^stops times brighter or darker.
        light_deg: all lights are turned together by this angle, degrees.
        hue_deg: colours of pictures and points are turned about the grey axis by this angle, either way, degrees.
        brightness: colours are multiplied by 1 plus or minus this share, below 1, and clipped.
        seed: of the draws.
    """

    camera_deg: float = 0.0
    camera_m: float = 0.0
    light_stops: float = 0.0
    light_deg: float = 0.0
    hue_deg: float = 0.0
    brightness: float = 0.0
    seed: int = 0

    def validate(self) -> None:
        """Check the numbers. Raises ConfigError when one can't be, or all are 0."""
        values = {name: getattr(self, name) for name in STRENGTHS}
        fine = all(math.isfinite(value) and value >= 0 for value in values.values())
        largest = max(self.camera_deg, self.light_deg, self.hue_deg)
        if not fine or not any(values.values()) or largest > 180 or self.brightness >= 1 or self.seed < 0:
            raise ConfigError(
                "view_shift", expected="strengths of 0 or more, one of them above 0, angles up to 180, brightness below 1",
                got=" ".join(f"{name}={value}" for name, value in asdict(self).items()),
                hint="E.g. view_shift.camera_deg=5, view_shift.light_stops=1 or view_shift.hue_deg=20.",
            )  # fmt: skip

    def uses(self, strengths: tuple[str, ...]) -> bool:
        """Whether one of these strengths is above 0."""
        return any(getattr(self, name) > 0 for name in strengths)

    def draw(self, episode_seed: int, *, cameras: int = 0) -> ViewDraw:
        """Directions of an episode.

        Args:
            episode_seed: 0 or more.
            cameras: K.
        """
        rng = np.random.default_rng([_STREAM, self.seed, episode_seed])
        signs = rng.choice([-1, 1], 3).tolist()
        axes = rng.standard_normal((1 + 2 * cameras, 3))
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
        return ViewDraw(axes[1::2], axes[2::2], axes[0], *signs)

    def colour_matrix(self, drawn: ViewDraw) -> Float64[Array, "3 3"]:
        """What RGB is multiplied by: a turn about (1, 1, 1) (Rodrigues), which leaves grey as it is, then the brightness.

        120 degrees take red to green, green to blue and blue to red.
        """
        angle = math.radians(drawn.hue_sign * self.hue_deg)
        axis = np.full(3, 1 / math.sqrt(3))
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        out: np.ndarray = (1 + drawn.brightness_sign * self.brightness) * turn
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


def with_strength(name: str, strength: float, *, seed: int = 0) -> ViewShift | None:
    """A shift of one kind alone; None for 0.

    Raises:
        ConfigError: an unknown name, or a strength that can't be.
    """
    if name not in STRENGTHS:
        raise ConfigError("view shift", expected=", ".join(STRENGTHS), got=name, hint="Correct the name.")
    if strength == 0:
        return None
    shift = ViewShift(**{field.name: strength for field in fields(ViewShift) if field.name == name}, seed=seed)
    shift.validate()
    return shift
