"""Spaces as Minari keeps them in metadata.json, and what they and the env_spec declare of a spec card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot_rl.errors import DataError

_UNKNOWN = "???"
_DISCRETE = ("Discrete", "MultiDiscrete", "MultiBinary")


@dataclass(frozen=True)
class Leaf:
    """One array of a space.

    Attributes:
        shape: of one sample.
        low, high: per element; None where one of them is unbounded.
        is_discrete: whole numbers that stand for choices.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    is_discrete: bool = False


def leaves(text: Any, path: str, *, where: str) -> dict[str, Leaf]:
    """Path in the file ("observations/goal") -> its part of the space; empty without a space, text left out.

    Raises:
        DataError: it is damaged.
    """
    if text is None:
        return {}
    try:
        return _leaves(json.loads(text) if isinstance(text, str) else text, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            where, expected="a space as Minari writes it", got=f"{type(error).__name__}: {error}",
            hint="metadata.json is damaged, or of a newer version of Minari.",
        ) from error  # fmt: skip


def declared_card(
    env_spec: Mapping[str, Any], spaces: Mapping[str, Leaf], keys: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> dict[str, Any]:
    """Fields of a SpecCard as JSON types; units and meanings stay `???`, which a space does not know."""
    card: dict[str, Any] = {"reward_key": "rewards"}
    if isinstance(env_spec.get("id"), str):
        card["env_id"] = env_spec["id"]
    if isinstance(env_spec.get("max_episode_steps"), int):
        card["max_episode_steps"] = env_spec["max_episode_steps"]
    actions = [key for key in spaces if key.startswith("actions") and key in keys]
    if actions:
        card["action"] = _array_card(actions, spaces)
    flat = [key for key in spaces if key.startswith("observations") and key in keys and len(keys[key][0]) < 2]
    observation = {"proprio": _array_card(flat, spaces)} if flat else {}
    for key, (shape, dtype) in keys.items():
        if key.startswith("observations") and len(shape) == 3 and shape[-1] == 3 and dtype == np.uint8:
            camera = key.removeprefix("observations").removeprefix("/") or "camera"
            observation[f"image/{camera}"] = {"keys": [key], "units": ["1"], "meanings": ["RGB"]}
    return card | ({"observation": observation} if observation else {})


def _leaves(space: Mapping[str, Any], path: str) -> dict[str, Leaf]:
    kind = space["type"]
    if kind == "Dict":
        parts = dict(space["subspaces"])
    elif kind == "Tuple":
        parts = {f"_index_{number}": part for number, part in enumerate(space["subspaces"])}
    elif kind == "Text":
        return {}
    elif kind == "Box":
        low, high = (_bound(space[side]) for side in ("low", "high"))
        known = low is not None and high is not None
        return {path: Leaf(tuple(space["shape"]), low if known else None, high if known else None)}
    elif kind in _DISCRETE:
        shape = (
            np.shape(space["nvec"])
            if kind == "MultiDiscrete"
            else ()
            if kind == "Discrete"
            else np.shape(np.zeros(space["n"]))
        )
        return {path: Leaf(tuple(shape), is_discrete=True)}
    else:
        raise ValueError(f"a space of type {kind!r}")
    return {key: leaf for name, part in parts.items() for key, leaf in _leaves(part, f"{path}/{name}").items()}


def _bound(values: Any) -> tuple[float, ...] | None:
    numbers = np.asarray(values, float).ravel().tolist()
    return tuple(numbers) if all(math.isfinite(number) for number in numbers) else None


def _array_card(names: Sequence[str], spaces: Mapping[str, Leaf]) -> dict[str, Any]:
    card: dict[str, Any] = {"keys": list(names), "units": [_UNKNOWN], "meanings": [_UNKNOWN]}
    for side in ("low", "high"):
        bounds = [getattr(spaces[name], side) for name in names]
        if all(bound is not None for bound in bounds):
            card[side] = [number for bound in bounds for number in bound]
    return card
