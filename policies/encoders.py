"""Encoders: what a policy sees -> one condition vector.

An encoder is an nn.Module with `keys`, `size` (C), `forward(observation) -> (B, C)` and `encode(arrays) -> (B, C)`;
the second takes bare tensors by key, which is what an exported graph has. Numbers go through StateEncoder, which has no
weights; images and points through FusionEncoder (encoder_fusion.py), described by an EncoderConfig.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from robot_rl.arrays import Array, Float32
from robot_rl.data.normalizer import Normalizer
from robot_rl.errors import PolicyError, closest
from robot_rl.specs import EnvSpec
from robot_rl.types import Observation

from .encoder_fusion import EncoderConfig, FusionEncoder

LOW_DIMENSIONAL = ("proprio", "state")


class StateEncoder(nn.Module):
    """Normalised low-dimensional keys of To frames, flattened and concatenated in the order of `keys`. No weights.

    Args:
        spec: where the keys' shapes come from.
        keys: of "proprio", "state".
        history: To.
        normalizer: knows every key; kept as a submodule, so it travels with the weights.

    Raises:
        PolicyError: a key is not in the spec.
    """

    def __init__(self, spec: EnvSpec, keys: tuple[str, ...], *, history: int, normalizer: Normalizer) -> None:
        super().__init__()
        for key in keys:
            if key not in spec.observation:
                raise PolicyError(
                    f"encoder for {spec.env_id}",
                    expected="an observation key that the environment has",
                    got=repr(key),
                    hint=closest(key, spec.observation),
                )
        self.keys = keys
        self.history = history
        self.sizes = {key: spec.observation[key].size for key in keys}
        self.size = history * sum(self.sizes.values())
        self.normalizer = normalizer

    def forward(self, observation: Observation) -> Float32[Array, "B C"]:
        """Condition of a batch of observations."""
        return self.encode(observation.arrays())

    def encode(self, arrays: Mapping[str, Array]) -> Float32[Array, "B C"]:
        """Condition from float32 tensors (B, To, size) by key.

        Raises:
            PolicyError: a key is missing, or its shape is not (B, To, size).
        """
        parts = []
        for key in self.keys:
            if key not in arrays:
                raise PolicyError(
                    "policy input", expected=f"key {key!r}", got=", ".join(sorted(arrays)), hint="See observation_keys."
                )
            array = arrays[key]
            if array.ndim != 3 or tuple(array.shape[1:]) != (self.history, self.sizes[key]):
                raise PolicyError(
                    f"policy input {key!r}",
                    expected=f"shape (N, {self.history}, {self.sizes[key]}), frames in the middle",
                    got=str(tuple(array.shape)),
                    hint="The environment must stack as many frames as the policy's history.",
                )
            parts.append(self.normalizer.apply(key, array).flatten(1))
        return torch.cat(parts, dim=1)


def build_encoder(
    spec: EnvSpec,
    keys: tuple[str, ...],
    *,
    history: int,
    normalizer: Normalizer,
    config: EncoderConfig | None = None,
) -> StateEncoder | FusionEncoder:
    """Choose the encoder for `keys`: with a configuration one that learns, without one the numbers as they are.

    Raises:
        PolicyError: no key, an unknown key, images or points without a configuration, or one that does not fit them.
    """
    if not keys:
        raise PolicyError(
            "observation_keys", expected="at least one key", got="none", hint=closest("", LOW_DIMENSIONAL)
        )
    if config is None:
        for key in keys:
            if key.startswith(("image/", "depth/")) or key == "points":
                raise PolicyError(
                    "observation_keys", expected=f"low-dimensional keys ({', '.join(LOW_DIMENSIONAL)}), or an encoder",
                    got=f"{key!r} and none", hint="Choose one: encoder=rgb, encoder=rgbd, encoder=rgb_vit or encoder=points.",
                )  # fmt: skip
        return StateEncoder(spec, keys, history=history, normalizer=normalizer)
    for key in keys:
        if key not in spec.observation:
            raise PolicyError(
                f"encoder for {spec.env_id}", expected="an observation key that the environment has",
                got=repr(key), hint=closest(key, spec.observation),
            )  # fmt: skip
    return FusionEncoder(config, spec, keys, history=history, normalizer=normalizer)
