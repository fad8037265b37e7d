"""Changed views for any StepEnv: colours on the observation; cameras and lights where the simulator can move them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robot_rl.algorithms.view_shift import OF_CAMERAS, OF_COLOURS, OF_LIGHTS, ViewShift
from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.errors import EnvError

from .history import Frame, StepEnv

MoveViews = Callable[[int, int], None]
"""(env, seed of the episode that is about to start in it): moves its cameras and lights."""


class ViewShiftedSteps:
    """A StepEnv whose pictures and points are seen otherwise; between the simulator and HistoryEnv.

    Args:
        inner: the simulator.
        shift: what changes.
        move: of cameras and lights, called before each reset; None where the simulator can't.

    Raises:
        EnvError: cameras or lights shall change and can't, or nothing is seen at all.
        ConfigError: numbers out of range.
    """

    def __init__(self, inner: StepEnv, shift: ViewShift, *, move: MoveViews | None = None) -> None:
        shift.validate()
        keys = [key for key in inner.spec.observation if key.startswith(("image/", "depth/")) or key == "points"]
        if not keys:
            raise EnvError(
                f"view_shift of {inner.spec.env_id}", expected="an environment that shows images, depth or points",
                got=", ".join(inner.spec.observation), hint="Numbers have no camera: use push or shift.",
            )  # fmt: skip
        if move is None and shift.uses(OF_CAMERAS + OF_LIGHTS):
            raise EnvError(
                f"view_shift of {inner.spec.env_id}", expected="hue_deg and brightness alone",
                got="camera_deg, camera_m, light_stops or light_deg",
                hint="Cameras and lights move in ManiSkill tasks with CPU physics and a renderer.",
            )  # fmt: skip
        self.spec, self.num_envs, self.device = inner.spec, inner.num_envs, inner.device
        self._inner, self._shift, self._move, self._keys = inner, shift, move, keys
        self._colours = torch.eye(3).repeat(self.num_envs, 1, 1)

    def reset_envs(self, mask: Bool[Array, " N"], seeds: Int64[Array, " N"]) -> Frame:
        """Start episodes and draw how they are seen."""
        for row in np.flatnonzero(mask).tolist():
            seed = int(seeds[row])
            matrix = self._shift.colour_matrix(self._shift.draw(seed))
            self._colours[row] = torch.from_numpy(matrix).float()
            if self._move is not None:
                self._move(row, seed)
        return self._seen(self._inner.reset_envs(mask, seeds))

    def step_envs(self, action: Float32[Array, "N A"], active: Bool[Array, " N"]) -> Frame:
        """Play one action."""
        return self._seen(self._inner.step_envs(action, active))

    def protocol(self) -> dict[str, Any]:
        """The simulator's block and the shift."""
        return self._inner.protocol() | {"view_shift": self._shift.to_json()}

    def close(self) -> None:
        """Release the simulator."""
        self._inner.close()

    def _seen(self, frame: Frame) -> Frame:
        if not self._shift.uses(OF_COLOURS):
            return frame
        changed: Mapping[str, torch.Tensor] = {
            key: recoloured(key, frame.observation[key], self._colours.to(frame.observation[key].device))
            for key in self._keys
        }
        return replace(frame, observation={**frame.observation, **changed})


def recoloured(key: str, array: torch.Tensor, matrix: Float32[Array, "N 3 3"]) -> torch.Tensor:
    """RGB of every pixel or point times its env's matrix, clipped; depth and points without colours as they are.

    Args:
        key: of the observation.
        array: uint8 (N, H, W, 3), or float32 (N, M, 6) with red, green, blue in 0..1.
        matrix: columns are what red, green and blue become.
    """
    if key.startswith("image/"):
        seen = torch.einsum("nij,nhwj->nhwi", matrix, array.float())
        return seen.round().clamp(0, 255).to(torch.uint8)
    if key == "points" and array.shape[-1] == 6:
        colour = torch.einsum("nij,nmj->nmi", matrix, array[..., 3:]).clamp(0, 1)
        return torch.cat([array[..., :3], colour], dim=-1)
    return array


def seen_otherwise(inner: StepEnv, shift: ViewShift | None, *, move: MoveViews | None = None) -> StepEnv:
    """`inner`, seen through `shift` when there is one. Raises as ViewShiftedSteps."""
    return inner if shift is None else ViewShiftedSteps(inner, shift, move=move)
