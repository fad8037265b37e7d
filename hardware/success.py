"""A success classifier from labelled frames or states, and the detector that turns it into a reward signal.

The classifier gives every frame the log odds of success (0: as likely as not). The detector adds hysteresis
(algorithms/detection.py), so that one odd frame makes no reward and one bad frame does not end it. A robot, which has no
simulator to ask, takes its sparse reward and the end of its episodes from here; a person's veto stays above it. Training
and figures: success_training.py.

Save it like a policy: tensors {"policy": state_dict}, documents `classifier.documents()`; runs/checkpoint.load_policy reads
it back, thresholds included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from robot_rl.algorithms.detection import check_thresholds
from robot_rl.arrays import Array, Bool, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import DataError, closest
from robot_rl.specs import EnvSpec

IMAGE = "image/"


@dataclass(frozen=True)
class SuccessConfig:
    """What the classifier sees, its size, and the detector's thresholds.

    Attributes:
        keys: observation keys: low-dimensional ones, and "image/<camera>" of at least 8 x 8 pixels.
        hidden: widths of the hidden layers.
        channels: of the convolutions of each camera (3 x 3, stride 2).
        on, off, hold: see algorithms/detection.py, in log odds; `fit_success` calibrates `on` and `off`.
    """

    keys: tuple[str, ...] = ("state",)
    hidden: tuple[int, ...] = (64, 64)
    channels: tuple[int, ...] = (16, 32, 32)
    on: float = 0.0
    off: float = -1.0
    hold: int = 1


class SuccessClassifier(nn.Module):
    """Log odds of success of a single frame.

    Args:
        config: see SuccessConfig.
        spec: of the robot or environment.
        normalizer: knows the low-dimensional keys; becomes part of the classifier.

    Raises:
        DataError: a key that the spec does not have, no key, or thresholds in the wrong order.
    """

    def __init__(self, config: SuccessConfig, spec: EnvSpec, normalizer: Normalizer) -> None:
        super().__init__()
        check_thresholds(on=config.on, off=config.off, hold=config.hold)
        for key in config.keys or ("",):
            if key not in spec.observation:
                raise DataError(
                    "success classifier", expected="an observation key of the spec", got=repr(key),
                    hint=closest(key, spec.observation),
                )  # fmt: skip
        self.config = config
        self.spec = spec
        self.normalizer = normalizer
        self.cameras = nn.ModuleDict()
        size = 0
        for key in config.keys:
            if key.startswith(IMAGE):
                self.cameras[_module_name(key)] = _convolutions(config.channels)
                size += config.channels[-1] * 4
            else:
                size += spec.observation[key].size
        layers: list[nn.Module] = []
        for width in config.hidden:
            layers += [nn.Linear(size, width), nn.SiLU()]
            size = width
        self.body = nn.Sequential(*layers, nn.Linear(size, 1))

    def forward(self, frames: Mapping[str, Array]) -> Float32[Array, " B"]:
        """Log odds of success, of a world where half of the frames are successes (as in training).

        Args:
            frames: key -> (B, ...): float32 low-dimensional keys, uint8 (B, H, W, 3) images.
        """
        parts = []
        for key in self.config.keys:
            if key.startswith(IMAGE):
                pixels = frames[key].movedim(-1, 1).float() / 127.5 - 1
                parts.append(self.cameras[_module_name(key)](pixels))
            else:
                parts.append(self.normalizer.apply(key, frames[key].flatten(1)))
        logits: torch.Tensor = self.body(torch.cat(parts, dim=1)).squeeze(1)
        return logits

    @torch.no_grad()
    def score(self, frames: Mapping[str, Array]) -> Float32[Array, " B"]:
        """Log odds of frames as numpy arrays, as numpy."""
        tensors = {key: torch.as_tensor(np.asarray(frames[key])) for key in self.config.keys}
        return self(tensors).numpy()

    def detector(self, num_envs: int) -> SuccessDetector:
        """A detector for so many envs, with the thresholds of `config`."""
        return SuccessDetector(self, num_envs=num_envs)

    def documents(self) -> dict[str, Any]:
        """The documents of its checkpoint: "policy", "spec" and "normalizer", as `load_policy` wants them."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return {
            "policy": {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", "config": config},
            "spec": self.spec.to_json(),
            "normalizer": self.normalizer.to_json(),
        }


class SuccessDetector:
    """The success signal of N envs or one robot, frame by frame: the classifier with hysteresis.

    Args:
        classifier: with the thresholds in its configuration.
        num_envs: N.
    """

    def __init__(self, classifier: SuccessClassifier, *, num_envs: int = 1) -> None:
        self.classifier = classifier.eval()
        self._kept = np.zeros(num_envs, dtype=np.int64)
        self._is_on = np.zeros(num_envs, dtype=bool)

    def reset(self, mask: Bool[Array, " N"]) -> None:
        """A new episode begins in the envs of `mask`."""
        self._kept[mask], self._is_on[mask] = 0, False

    def update(self, frames: Mapping[str, Array]) -> Bool[Array, " N"]:
        """The signal after these frames; numpy arrays as for SuccessClassifier.forward."""
        config, score = self.classifier.config, self.classifier.score(frames)
        self._kept = np.where(score >= config.on, self._kept + 1, 0)
        self._is_on = np.where(self._is_on, score >= config.off, self._kept >= config.hold)
        return self._is_on.copy()


def _module_name(key: str) -> str:
    return key.replace("/", "__").replace(".", "_")


def _convolutions(channels: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for size_in, size_out in zip((3, *channels[:-1]), channels, strict=True):
        layers += [nn.Conv2d(size_in, size_out, 3, stride=2, padding=1), nn.GroupNorm(1, size_out), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
