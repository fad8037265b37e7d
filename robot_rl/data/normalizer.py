"""Normalizer: one affine map per key, inside the policy, the same object in training, evaluation and export.

standard:  z = (x - mean) / max(std, floor), clamped to +-5.
range:     z = affine map of [min, max] to [-1, 1], not clamped.
The floors are absolute, in the unit of the element: dividing by the tiny spread of a joint that hardly moves would turn
a millimetre of noise into a huge input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, overload

import torch
from torch import nn

from robot_rl.arrays import Array, Float32
from robot_rl.errors import DataError, EnvError, closest
from robot_rl.specs import EnvSpec

STD_FLOOR = 0.02
RANGE_FLOOR = 1e-4
CLAMP = 5.0
# Stands for "no clamp"; a finite number, because JSON and some inference engines have no infinity.
_NO_CLAMP = torch.finfo(torch.float32).max
_PARTS = ("offset", "gain", "scale", "limit", "narrow")


class NormalizerMode(str, Enum):
    """How the affine map of a key is found."""

    standard = "standard"
    range = "range"


class Normalizer(nn.Module):
    """Affine maps by key. All numbers are buffers, so they travel with `state_dict` into every checkpoint.

    For x (..., D): z = clamp((x - offset) * gain, -limit, limit), and back: x = z * scale + offset.
    An element that is constant in range mode has gain = scale = 0: it maps to 0, and back to exactly that constant.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Use `fit`, `identity` or `from_json` instead.

        Args:
            parts: key -> {"offset", "gain", "scale", "limit"} float32 (D,) and {"narrow"} bool (D,).
        """
        super().__init__()
        self._keys = tuple(parts)
        for key, values in parts.items():
            for part in _PARTS:
                self.register_buffer(_buffer_name(key, part), values[part])

    @classmethod
    def fit(
        cls,
        data: Mapping[str, Float32[Array, "... D"]],
        modes: Mapping[str, NormalizerMode],
        *,
        std_floor: float = STD_FLOOR,
        range_floor: float = RANGE_FLOOR,
    ) -> Normalizer:
        """Find the maps from data, in float64.

        Args:
            data: key -> float32 tensor (..., D); all dimensions but the last are samples.
            modes: key -> mode, for the same keys.
            std_floor: smallest divisor of standard mode, in the unit of the element.
            range_floor: an element whose max - min is smaller counts as constant in range mode.

        Raises:
            DataError: when the keys differ, a key has no samples, or a number is not finite.
        """
        if set(data) != set(modes):
            raise DataError(
                "normalizer",
                expected=f"a mode for each of the keys {sorted(data)}",
                got=f"modes for {sorted(modes)}",
                hint="Give data and mode for every key, and no others.",
            )
        parts = {}
        for key, values in data.items():
            samples = _samples(key, values)
            if NormalizerMode(modes[key]) is NormalizerMode.standard:
                parts[key] = _standard(samples, std_floor)
            else:
                parts[key] = _range(samples, range_floor)
        return cls(parts)

    @classmethod
    def identity(cls, dims: Mapping[str, int]) -> Normalizer:
        """Maps that change nothing, with D elements per key; also the shell to load a state_dict into."""
        return cls({key: _parts(torch.zeros(dim), torch.ones(dim), torch.ones(dim)) for key, dim in dims.items()})

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that can be normalised."""
        return self._keys

    @overload
    def apply(self, key: Callable[[nn.Module], None]) -> Normalizer: ...

    @overload
    def apply(self, key: str, x: Float32[Array, "*batch D"]) -> torch.Tensor: ...

    def apply(
        self, key: str | Callable[[nn.Module], None], x: Float32[Array, "*batch D"] | None = None
    ) -> Normalizer | torch.Tensor:
        """Physical units to normalised numbers, float32 (*batch, D).

        With a function alone this is nn.Module.apply, which every parent module calls on its children.

        Raises:
            DataError: for an unknown key.
        """
        if not isinstance(key, str):
            return super().apply(key)
        assert x is not None, "apply(key, x) needs x"
        limit = self._part(key, "limit")
        z = (x - self._part(key, "offset")) * self._part(key, "gain")
        return torch.minimum(torch.maximum(z, -limit), limit)

    def invert(self, key: str, z: Float32[Array, "*batch D"]) -> torch.Tensor:
        """Normalised numbers to physical units, float32 (*batch, D); undoes `apply` where that did not clamp.

        Raises:
            DataError: for an unknown key.
        """
        x: torch.Tensor = z * self._part(key, "scale") + self._part(key, "offset")
        return x

    def near_constant(self, key: str) -> tuple[int, ...]:
        """Elements that varied less than the floor when the map was found: their input carries little or nothing.

        Raises:
            DataError: for an unknown key.
        """
        return tuple(int(i) for i in torch.nonzero(self._part(key, "narrow")).flatten())

    def to_json(self) -> dict[str, Any]:
        """JSON types; float32 numbers come back bit for bit."""
        return {key: {part: self._part(key, part).tolist() for part in _PARTS} for key in self._keys}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Normalizer:
        """Inverse of `to_json`.

        Raises:
            DataError: when a part is missing or the lengths differ.
        """
        parts = {}
        for key, values in data.items():
            lengths = {part: len(values[part]) if part in values else None for part in _PARTS}
            if None in lengths.values() or len(set(lengths.values())) != 1:
                raise DataError(
                    f"normalizer, key {key!r}",
                    expected=f"{', '.join(_PARTS)} of the same length",
                    got=f"lengths {lengths}",
                    hint="The file is damaged; take it from the checkpoint again.",
                )
            dtypes = {part: torch.bool if part == "narrow" else torch.float32 for part in _PARTS}
            parts[key] = {part: torch.tensor(values[part], dtype=dtypes[part]) for part in _PARTS}
        return cls(parts)

    def _part(self, key: str, part: str) -> torch.Tensor:
        if key not in self._keys:
            raise DataError("normalizer", expected="a fitted key", got=repr(key), hint=closest(key, self._keys))
        return self.get_buffer(_buffer_name(key, part))


def _buffer_name(key: str, part: str) -> str:
    if "." in key:
        raise DataError("normalizer", expected="a key without '.'", got=repr(key), hint="Rename the observation.")
    return f"{key}__{part}"


def _samples(key: str, values: torch.Tensor) -> torch.Tensor:
    if not values.is_floating_point() or values.ndim < 1 or values.numel() == 0:
        raise DataError(
            f"normalizer, key {key!r}",
            expected="a float tensor (..., D) with at least one sample",
            got=f"{values.dtype} of shape {tuple(values.shape)}",
            hint="Images are not normalised here; an empty dataset can't be.",
        )
    samples = values.detach().reshape(-1, values.shape[-1]).to(torch.float64)
    bad = torch.nonzero(~torch.isfinite(samples))
    if len(bad):
        row, element = (int(i) for i in bad[0])
        raise DataError(
            f"normalizer, key {key!r}, element {element}, sample {row}",
            expected="finite numbers",
            got=f"{float(samples[row, element])} ({len(bad)} bad numbers)",
            hint="Drop or repair the episode it comes from.",
        )
    return samples


def _standard(samples: torch.Tensor, floor: float) -> dict[str, torch.Tensor]:
    std = samples.std(dim=0, correction=0)
    constant = samples.amin(dim=0) == samples.amax(dim=0)
    # The mean of equal numbers can be off in the last bit; a constant must come back exactly.
    mean = torch.where(constant, samples[0], samples.mean(dim=0))
    scale = std.clamp(min=floor)
    parts = _parts(mean, 1 / scale, scale, narrow=std < floor)
    return parts | {"limit": torch.full_like(parts["limit"], CLAMP)}


def _range(samples: torch.Tensor, floor: float) -> dict[str, torch.Tensor]:
    low, high = samples.amin(dim=0), samples.amax(dim=0)
    half = (high - low) / 2
    narrow = high - low < floor
    gain = torch.where(narrow, 0.0, 1 / torch.where(narrow, 1.0, half))
    return _parts((low + high) / 2, gain, torch.where(narrow, 0.0, half), narrow=narrow)


def _parts(
    offset: torch.Tensor, gain: torch.Tensor, scale: torch.Tensor, *, narrow: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    floats = {"offset": offset, "gain": gain, "scale": scale, "limit": torch.full_like(offset, _NO_CLAMP)}
    no_narrow = torch.zeros(offset.shape, dtype=torch.bool, device=offset.device)
    return {k: v.to(torch.float32) for k, v in floats.items()} | {"narrow": no_narrow if narrow is None else narrow}


def unit_actions(spec: EnvSpec, keys: tuple[str, ...]) -> Normalizer:
    """Actions from the spec's bounds to [-1, 1], observations of `keys` as they are (images and depths need nothing).

    Raises:
        EnvError: the spec gives no bounds of the action.
    """
    if spec.action.low is None or spec.action.high is None:
        raise EnvError(
            f"action of {spec.env_id}", expected="bounds, which RL baselines scale to [-1, 1]", got="none",
            hint="Give low and high in the environment's spec, or choose a bounded control mode.",
        )  # fmt: skip
    bounds = torch.tensor([spec.action.low, spec.action.high], dtype=torch.float32)
    scaled = Normalizer.fit({"action": bounds}, {"action": NormalizerMode.range})
    shapes = {key: spec.observation[key].shape for key in keys if not key.startswith(("image/", "depth/"))}
    plain = Normalizer.identity({key: int(shape[-1]) for key, shape in shapes.items()})
    return Normalizer.from_json({**plain.to_json(), **scaled.to_json()})
