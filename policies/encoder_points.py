"""Point clouds -> one vector: a small MLP on every point, then the maximum over points (PointNet as in DP3).

Source: 3D Diffusion Policy (Ze et al. 2024, arXiv 2403.03954): 64-128-256 with LayerNorm and ReLU, linear and LayerNorm
behind the maximum. The order of the points means nothing, and a repeated point changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from robot_rl.arrays import Array, Float32
from robot_rl.errors import PolicyError
from robot_rl.specs import ArraySpec

XYZ = 3


@dataclass(frozen=True)
class PointEncoderConfig:
    """How points are encoded.

    Attributes:
        widths: of the layers on every point.
        size: of the feature.
        use_colour: also read red, green and blue, where the points have them.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    size: int = 64
    use_colour: bool = False


class PointEncoder(nn.Module):
    """See the text of this module. `size` is that of its feature.

    Args:
        config: see PointEncoderConfig.
        spec: of "points": shape (M, 3) or (M, 6).

    Raises:
        PolicyError: points of another shape, colours wanted and none there, or no layer.
    """

    def __init__(self, config: PointEncoderConfig, spec: ArraySpec) -> None:
        super().__init__()
        wanted = 6 if config.use_colour else XYZ
        if len(spec.shape) != 2 or spec.shape[1] not in (XYZ, 6) or spec.shape[1] < wanted or not config.widths:
            raise PolicyError(
                f"encoder of {spec.name!r}", expected=f"points of shape (M, {wanted}) and at least one layer",
                got=f"shape {spec.shape}, use_colour {config.use_colour}, widths {config.widths}",
                hint="Points without colours: use_colour=false.",
            )  # fmt: skip
        self.size, self._columns = config.size, wanted
        layers: list[nn.Module] = []
        for inputs, outputs in zip((wanted, *config.widths), config.widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
        self.each = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(config.widths[-1], config.size), nn.LayerNorm(config.size))

    def forward(self, points: Float32[Array, "B To M D"]) -> Float32[Array, "B To F"]:
        """Feature of every frame from normalised points."""
        out: torch.Tensor = self.project(self.each(points[..., : self._columns]).amax(dim=-2))
        return out
