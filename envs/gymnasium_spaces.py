"""From Gymnasium's spaces to the arrays of an EnvSpec: which part of an observation is proprio, state or an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.errors import EnvError, closest
from robot_rl.specs import ArraySpec

# Our key -> (place in a Dict observation, or None for a Box; its space), in the order in which they are joined.
Layout = Mapping[str, tuple[tuple[str | None, Any], ...]]


def layout_of(space: Any, names: Mapping[str, list[str]], *, where: str) -> Layout:
    """Decide what becomes what. `names` is GymnasiumConfig.observation.

    Raises:
        EnvError: a space that is no Box, a key that does not exist, no place for "proprio", an image that is no uint8
            (rows, columns, 3).
    """
    import gymnasium

    layout: dict[str, tuple[tuple[str | None, Any], ...]]
    if isinstance(space, gymnasium.spaces.Dict):
        wanted = dict(names) or {key: [key] for key in space}
        layout = {ours: tuple((key, _part(space, key, where)) for key in keys) for ours, keys in wanted.items()}
    elif names:
        hint = "Leave `observation` empty for an environment with one Box."
        raise EnvError(where, expected="a Dict observation to pick from", got=repr(space), hint=hint)
    elif _is_image(space):
        layout = {"image/camera": ((None, space),)}
    else:
        layout = {"state": ((None, space),)}
    if "state" in layout and "proprio" not in layout:
        layout["proprio"] = layout["state"]
    if "proprio" not in layout:
        hint = "Set `observation`, e.g. {proprio: [agent_pos], image/top: [pixels]}, on a Dict that has a vector."
        raise EnvError(where, expected='an observation for "proprio"', got=repr(space), hint=hint)
    for ours, parts in layout.items():
        _check(ours, parts, where)
    return layout


def observation_specs(layout: Layout) -> dict[str, ArraySpec]:
    """ArraySpec of every key: images as they are, everything else flat float32; bounds where all are finite."""
    specs = {}
    for ours, parts in layout.items():
        spaces = [space for _, space in parts]
        if ours.startswith("image/"):
            specs[ours] = ArraySpec(ours, tuple(spaces[0].shape), dtype="uint8")
        else:
            specs[ours] = bounded(ours, spaces)
    return specs


def bounded(name: str, boxes: Sequence[Any]) -> ArraySpec:
    """A flat float32 vector of joined Boxes; without low and high where one of them is not finite."""
    low, high = (np.concatenate([getattr(box, side).reshape(-1) for box in boxes]) for side in ("low", "high"))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return ArraySpec(name, low.shape)
    return ArraySpec(name, low.shape, low=tuple(low.astype(float).tolist()), high=tuple(high.astype(float).tolist()))


def reader(layout: Layout) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function from one raw observation to one frame: float32 vectors and uint8 images."""

    def read(observation: Any) -> dict[str, np.ndarray]:
        frame = {}
        for ours, parts in layout.items():
            raw = [np.asarray(observation if key is None else observation[key]) for key, _ in parts]
            image = ours.startswith("image/")
            frame[ours] = raw[0] if image else np.concatenate([x.reshape(-1) for x in raw]).astype(np.float32)
        return frame

    return read


def check_action_space(space: Any, *, where: str) -> None:
    """Accept a Box of floats.

    Raises:
        EnvError: for anything else, Discrete above all.
    """
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box) or np.dtype(space.dtype).kind != "f":
        raise EnvError(
            where,
            expected="a Box of floats as action space",
            got=repr(space),
            hint="robot-rl has continuous actions only; many tasks have a variant for that (LunarLander: continuous).",
        )


def _part(space: Any, key: str, where: str) -> Any:
    if key not in space.spaces:
        raise EnvError(where, expected="a key of the observation", got=repr(key), hint=closest(key, space.spaces))
    return space.spaces[key]


def _is_image(space: Any) -> bool:
    return getattr(space, "dtype", None) == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3


def _check(ours: str, parts: tuple[tuple[str | None, Any], ...], where: str) -> None:
    import gymnasium

    if ours not in ("proprio", "state") and not ours.startswith("image/"):
        hint = f"Name {ours!r} under `observation`: proprio, state or image/<camera> -> keys of the environment."
        raise EnvError(where, expected='"proprio", "state" or "image/<camera>"', got=repr(ours), hint=hint)
    if ours.startswith("image/"):
        if len(parts) != 1 or not _is_image(parts[0][1]):
            got = ", ".join(repr(space) for _, space in parts)
            hint = "Images are RGB with the channels last; wrap the environment to change that."
            raise EnvError(f"{where}, {ours}", expected="one uint8 Box (rows, columns, 3)", got=got, hint=hint)
        return
    for key, space in parts:
        if not isinstance(space, gymnasium.spaces.Box) or _is_image(space):
            hint = "Vectors go to proprio and state, images to image/<camera>; Discrete observations are not read."
            raise EnvError(f"{where}, {ours}", expected="Boxes of numbers", got=f"{key!r}: {space!r}", hint=hint)
    if not parts:
        raise EnvError(f"{where}, {ours}", expected="at least one key", got="none", hint="Name keys or leave it out.")
