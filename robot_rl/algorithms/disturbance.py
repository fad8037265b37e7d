"""Push perturbations and shifted starts: what is done to an episode, drawn from its seed.

RL-100 (arXiv 2510.14830) tests its policies with physical pushes during the episode and from changed starts, without
training on them (zero-shot). Here both are plain numbers that an environment takes in its configuration and writes into
its protocol.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robot_rl.arrays import Array
from robot_rl.errors import ConfigError

# Keeps these draws apart from others of (seed, episode seed).
_STREAM = 1_886_745_448


@dataclass(frozen=True)
class Push:
    """One push in every episode that lasts long enough.

    Its first step and its direction depend on (seed, seed of the episode) alone. The direction is uniform in the
    horizontal plane.

    Attributes:
        body: name of the object that is pushed, by the names of the environment; empty: the action is offset.
        impulse_n_s: size of the whole impulse on the body, N s (its mass times the change of its velocity), given in
            equal parts in the first physics step of each of `steps` control steps.
        action_offset: size of the offset, action units, in the plane of the first two elements of the action. It is
            added behind the clip to the action's range; a controller that clips once more may take a part of it away.
        steps: control steps that the push lasts.
        first_step, last_step: the action with which it begins, 0 for the first, is uniform in this range (both ends).
        seed: of the draws.
    """

    body: str = ""
    impulse_n_s: float = 0.0
    action_offset: float = 0.0
    steps: int = 1
    first_step: int = 5
    last_step: int = 20
    seed: int = 0

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: a size that does not go with the target, or a number out of range.
        """
        sizes = self.impulse_n_s, self.action_offset
        size, other = sizes if self.body else reversed(sizes)
        if not (math.isfinite(size) and size > 0 and other == 0):
            raise ConfigError(
                "push", expected="body and impulse_n_s above 0, or action_offset above 0 alone",
                got=f"body={self.body!r} impulse_n_s={self.impulse_n_s} action_offset={self.action_offset}",
                hint="E.g. push.body=cube push.impulse_n_s=0.05, or push.action_offset=1 push.steps=4.",
            )  # fmt: skip
        if self.steps < 1 or not 0 <= self.first_step <= self.last_step or self.seed < 0:
            raise ConfigError(
                "push", expected="steps of 1 or more, 0 <= first_step <= last_step, seed of 0 or more",
                got=f"steps={self.steps} first_step={self.first_step} last_step={self.last_step} seed={self.seed}",
                hint="Correct these fields.",
            )  # fmt: skip

    def draw(self, episode_seed: int) -> tuple[int, float]:
        """(first action of the push, its angle in the plane in rad from the first axis) of an episode.

        Args:
            episode_seed: 0 or more.
        """
        rng = np.random.default_rng([_STREAM, self.seed, episode_seed])
        return int(rng.integers(self.first_step, self.last_step + 1)), float(rng.uniform(0.0, 2 * math.pi))

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Shift:
    """Starts moved away from those of training: scaled about the centre of the task's own region, then translated.

    Attributes:
        xy_m: translation in the frame of the task, m.
        scale: of the region; 1 keeps it.
        bodies: which objects, by the names of the environment; empty: all that it can move.
    """

    xy_m: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    bodies: tuple[str, ...] = ()

    def validate(self) -> None:
        """Check the numbers. Raises ConfigError when one is not finite, the scale is not positive, or nothing moves."""
        finite = all(map(math.isfinite, (*self.xy_m, self.scale)))
        if not finite or self.scale <= 0 or (self.scale == 1 and self.xy_m == (0.0, 0.0)):
            raise ConfigError(
                "shift", expected="finite numbers that move something, scale above 0",
                got=f"xy_m={list(self.xy_m)} scale={self.scale}", hint="E.g. shift.xy_m=[0.05,0] or shift.scale=1.5.",
            )  # fmt: skip

    def moved(self, xy: Array, *, centre: Array) -> Array:
        """centre + scale (xy - centre) + xy_m.

        Args:
            xy: (..., 2), m; numpy or torch.
            centre: of the task's own region, (2,), m, of the same kind.
        """
        out = centre + self.scale * (xy - centre)
        out[..., 0] += self.xy_m[0]
        out[..., 1] += self.xy_m[1]
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return asdict(self) | {"xy_m": list(self.xy_m), "bodies": list(self.bodies)}
