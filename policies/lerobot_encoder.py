"""What a LeRobot diffusion policy sees -> its condition vector, as LeRobot 0.4.4 puts it together.

A frame's numbers: state, then the features of every camera, then the state of the environment; the frames follow each other.
An image goes resize -> middle crop -> ResNet -> 1x1 convolution -> spatial softmax -> linear -> ReLU.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from robot_rl.arrays import Array, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError
from robot_rl.types import Observation

from .lerobot_config import ACTION, RANGES, LeRobotConfig
from .resnet import BLOCKS, ResNet

log = logging.getLogger(__name__)

# torchvision's ResNet without its last two parts, in a Sequential; LeRobot's names -> those of resnet.ResNet.
_PARTS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# The largest float32 stands for "no clamp", as in the normaliser.
_NO_LIMIT = torch.finfo(torch.float32).max


def normalizer_of(
    config: LeRobotConfig, statistics: Mapping[str, Mapping[str, torch.Tensor]], keys: Mapping[str, str]
) -> tuple[Normalizer, dict[str, torch.Tensor]]:
    """LeRobot's normalisation as a Normalizer, and what is still to be added to each key.

    An element that never varied is divided by eps there and its constant becomes -1, where a Normalizer has 0: so the -1 is
    added behind it.

    Args:
        config: of the checkpoint.
        statistics: see read_statistics.
        keys: LeRobot's name -> ours, with "action".

    Returns:
        The normaliser, by our keys; and float32 (D,) by our keys, -1 at such elements and 0 elsewhere.
    """
    parts, shifts = {}, {}
    for name, key in keys.items():
        mode, found = config.mode_of(name), statistics.get(name, {})
        size = config.action_size if name == ACTION else int(config.input_features[name]["shape"][0])
        parts[key], shifts[key] = _map_of(mode, found, size)
        if constant := torch.nonzero(shifts[key]).flatten().tolist():
            log.warning(
                "%s: elements %s never varied in training; LeRobot divides their change by 1e-8", name, constant
            )
    return Normalizer(parts), shifts


def _map_of(
    mode: str, found: Mapping[str, torch.Tensor], size: int
) -> tuple[dict[str, torch.Tensor], Float32[Array, " D"]]:
    still = torch.zeros(size, dtype=torch.bool)
    if mode == "IDENTITY":
        offset, gain, scale = torch.zeros(size), torch.ones(size), torch.ones(size)
    elif mode == "MEAN_STD":
        offset, scale = found["mean"], found["std"]
        gain = 1 / (scale.double() + found["eps"].double())
    else:
        low, high = (found[statistic].double() for statistic in RANGES[mode])
        still = low == high
        width = torch.where(still, found["eps"].double(), high - low)
        offset, gain, scale = torch.where(still, low, (low + high) / 2), 2 / width, width / 2
    numbers = {"offset": offset, "gain": gain, "scale": scale, "limit": torch.full((size,), _NO_LIMIT)}
    return {name: value.float() for name, value in numbers.items()} | {"narrow": still}, -still.float()


class LeRobotImages(nn.Module):
    """The network of one camera, or of all that share it.

    Args:
        config: of the checkpoint.

    Raises:
        PolicyError: another backbone than resnet18 or resnet34, or a crop larger than the image.
    """

    pos_grid: torch.Tensor

    def __init__(self, config: LeRobotConfig) -> None:
        super().__init__()
        shape = tuple(config.input_features[config.cameras[0]]["shape"])
        self.resize, self.crop = config.resize_shape, config.crop_shape
        seen = self.resize or shape[1:]
        if config.vision_backbone not in BLOCKS or any(c > s for c, s in zip(self.crop or seen, seen, strict=True)):
            raise PolicyError(
                "LeRobot's image encoder", expected=f"{' or '.join(BLOCKS)}, and a crop within {tuple(seen)}",
                got=f"{config.vision_backbone}, crop_shape {self.crop}", hint="No other backbone is written here.",
            )  # fmt: skip
        if {tuple(config.input_features[camera]["shape"]) for camera in config.cameras} != {shape} or shape[0] != 3:
            raise PolicyError(
                "LeRobot's image encoder", expected="images of one shape (3, H, W)",
                got=str([config.input_features[camera]["shape"] for camera in config.cameras]), hint="Is config.json damaged?",
            )  # fmt: skip
        self.backbone = ResNet(config.vision_backbone, is_frozen=not config.use_group_norm)
        rows, columns = (math.ceil(side / self.backbone.reduction) for side in self.crop or seen)
        points = config.spatial_softmax_num_keypoints
        self.nets = nn.Conv2d(self.backbone.channels, points, 1)
        # (x, y) of every place of the map, from the file.
        self.register_buffer("pos_grid", torch.zeros(rows * columns, 2))
        self.out = nn.Linear(2 * points, 2 * points)
        self.size = 2 * points

    def forward(self, pixels: Float32[Array, "B 3 H W"]) -> Float32[Array, "B F"]:
        """Feature of normalised images."""
        if self.resize is not None:
            pixels = functional.interpolate(pixels, list(self.resize), mode="bilinear", antialias=True)
        if self.crop is not None:
            # Python rounds halves to even, as torchvision's CenterCrop does.
            top, left = (round((size - kept) / 2.0) for size, kept in zip(pixels.shape[2:], self.crop, strict=True))
            pixels = pixels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        weight = self.nets(self.backbone(pixels)).flatten(2).softmax(dim=-1)
        return torch.relu(self.out((weight @ self.pos_grid).flatten(1)))

    @staticmethod
    def our_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of LeRobot's encoder under the names of this one, without what carries no weights."""
        named = {}
        for name, tensor in tensors.items():
            if name.endswith("num_batches_tracked"):
                continue
            found = re.fullmatch(r"backbone\.(\d+)\.(.+)", name)
            part = found and _PARTS.get(found.group(1))
            named[f"backbone.{part}.{found.group(2)}" if found and part else name.removeprefix("pool.")] = tensor
        return named


class LeRobotEncoder(nn.Module):
    """Condition vector of a LeRobot diffusion policy. `keys` are ours, `size` is C.

    Args:
        config: of the checkpoint.
        names: LeRobot's name of every input -> our key.
        statistics: see read_statistics.

    Raises:
        PolicyError: see LeRobotImages.
    """

    def __init__(
        self, config: LeRobotConfig, names: Mapping[str, str], statistics: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        super().__init__()
        self.keys = tuple(names[name] for name in config.inputs)
        self.history = config.n_obs_steps
        self.normalizer, shifts = normalizer_of(
            config, statistics, {name: names[name] for name in config.inputs} | {ACTION: ACTION}
        )
        for number, key in enumerate(self.keys):
            self.register_buffer(f"shift_{number}", shifts[key], persistent=False)
        self.shapes = {names[name]: tuple(config.input_features[name]["shape"]) for name in config.inputs}
        networks = len(config.cameras) if config.use_separate_rgb_encoder_per_camera else min(len(config.cameras), 1)
        self.cameras = nn.ModuleList(LeRobotImages(config) for _ in range(networks))
        self._camera_of = {names[name]: number if networks > 1 else 0 for number, name in enumerate(config.cameras)}
        features = 2 * config.spatial_softmax_num_keypoints
        sizes = [features if key in self._camera_of else self.shapes[key][0] for key in self.keys]
        self.size = self.history * sum(sizes)

    def forward(self, observation: Observation) -> Float32[Array, "B C"]:
        """Condition of a batch of observations."""
        return self.encode(observation.arrays())

    def encode(self, arrays: Mapping[str, Array]) -> Float32[Array, "B C"]:
        """Condition from tensors by our keys: float32 (B, To, size), or uint8 (B, To, H, W, 3).

        Raises:
            PolicyError: a key is missing, or has another shape or type.
        """
        parts = []
        for number, key in enumerate(self.keys):
            array = self._checked(key, arrays)
            shift = self.get_buffer(f"shift_{number}")
            if key not in self._camera_of:
                parts.append(self.normalizer.apply(key, array) + shift)
                continue
            pixels = self.normalizer.apply(key, array.float() / 255) + shift
            network = self.cameras[self._camera_of[key]]
            feature = network(pixels.flatten(0, 1).permute(0, 3, 1, 2))
            parts.append(feature.reshape(*array.shape[:2], -1))
        return torch.cat(parts, dim=-1).flatten(1)

    def _checked(self, key: str, arrays: Mapping[str, Array]) -> Array:
        shape = self.shapes[key]
        is_image = key in self._camera_of
        wanted = (self.history, *shape[1:], 3) if is_image else (self.history, *shape)
        array = arrays.get(key)
        dtype = torch.uint8 if is_image else torch.float32
        if array is None or tuple(array.shape[1:]) != wanted or array.dtype != dtype:
            raise PolicyError(
                f"policy input {key!r}", expected=f"{dtype} (N, {', '.join(map(str, wanted))})",
                got="none" if array is None else f"{array.dtype} {tuple(array.shape)}",
                hint="The environment must stack as many frames as the checkpoint's n_obs_steps.",
            )  # fmt: skip
        return array
