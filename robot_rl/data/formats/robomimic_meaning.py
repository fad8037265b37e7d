"""What robomimic's `env_args` says about the numbers of a file: fields of a spec card, where they are certain.

Only robosuite's environments (type 1) say enough. Sources: robomimic 0.3 (envs/env_base.py, dataset docs), robosuite
1.2 to 1.5 (controllers/): quaternions are xyzw; OSC takes deltas of the measured pose along the axes of the world until
1.4 (`control_delta`), and says frame and reference itself since 1.5; a gripper closes at 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from robot_rl.errors import DataError

ROBOSUITE = 1
_UNKNOWN = "???"
_QUATERNION = ("x", "y", "z", "w")
_AXES = ("x", "y", "z")
_PROPRIO = ("eef_pos", "eef_quat", "gripper_qpos")

Keys = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def declared_card(env_args: Mapping[str, Any], keys: Keys, *, reaches: float) -> dict[str, Any]:
    """Fields of a SpecCard (JSON types) that `env_args` and the names of robosuite's observations give.

    Args:
        env_args: of the file.
        keys: of the source, "obs/..." and "actions".
        reaches: largest absolute value of an action in the file.
    """
    if env_args.get("type") != ROBOSUITE or not isinstance(kwargs := env_args.get("env_kwargs"), Mapping):
        return {"env_id": str(env_args["env_name"])} if "env_name" in env_args else {}
    robots = kwargs.get("robots") or []
    robots = [robots] if isinstance(robots, str) else list(robots)
    card: dict[str, Any] = {"env_id": str(env_args.get("env_name", _UNKNOWN)), "joint_names": []}
    if robots:
        card["robot"] = "+".join(map(str, robots))
    if isinstance(kwargs.get("control_freq"), int | float):
        card["control_hz"] = float(kwargs["control_freq"])
    if kwargs.get("reward_shaping") is False:
        card |= {"success": "rewards", "reward_key": "rewards"}
    controller = _controller(kwargs.get("controller_configs"))
    if controller is not None and not contradicts(env_args, reaches=reaches):
        semantics = _semantics(controller, str(env_args.get("env_version", "")))
        action = _action(controller, semantics, size=int(np.prod(keys["actions"][0])), robots=max(len(robots), 1))
        if semantics is not None and (action is not None or semantics["frame"] == "joint"):
            card["action_semantics"] = semantics
        if action is not None:
            card["action"] = action
    observation = dict(_observation(keys))
    return card | ({"observation": observation} if "proprio" in observation else {})


def contradicts(env_args: Mapping[str, Any], *, reaches: float) -> bool:
    """Whether actions leave the range of the controller in env_args, as in diffusion_policy's *_abs.hdf5 files."""
    kwargs = env_args.get("env_kwargs")
    controller = _controller(kwargs.get("controller_configs")) if isinstance(kwargs, Mapping) else None
    if controller is None or not _is_delta(controller):
        return False
    bounds = np.abs(np.asarray([controller.get("input_max", 1), controller.get("input_min", -1)], dtype=object).ravel())
    return bool(reaches > max(float(bound) for bound in bounds) + 1e-3)


def parse_env_args(text: str, *, where: str) -> dict[str, Any]:
    """The JSON of `env_args`.

    Raises:
        DataError: it is no JSON object.
    """
    import json

    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise DataError(
            f"{where}, env_args", expected="a JSON object", got=str(error), hint="The attribute is damaged."
        ) from error
    return content


def _controller(config: Any) -> Mapping[str, Any] | None:
    """The one controller of all arms, or None when there is none or they differ."""
    if isinstance(config, Mapping) and isinstance(parts := config.get("body_parts"), Mapping):
        arms = parts.get("arms", parts)
        config = [arms[name] for name in ("right", "left") if isinstance(arms, Mapping) and name in arms]
    several: Sequence[Any] = config if isinstance(config, list) else [config]
    if not several or not isinstance(several[0], Mapping) or any(other != several[0] for other in several):
        return None
    return several[0]


def _is_delta(controller: Mapping[str, Any]) -> bool | None:
    if "input_type" in controller:
        return {"delta": True, "absolute": False}.get(str(controller["input_type"]))
    return bool(controller["control_delta"]) if "control_delta" in controller else None


def _semantics(controller: Mapping[str, Any], version: str) -> dict[str, str] | None:
    """ActionSemantics as JSON, `???` where env_args leaves it open; None for a controller that isn't known here."""
    name, is_delta = str(controller.get("type")), _is_delta(controller)
    if controller.get("impedance_mode", "fixed") != "fixed":
        return None  # the action holds gains too
    parts = version.split(".")
    minor = (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else None
    if name == "JOINT_VELOCITY":
        kind, frame, rotation = "velocity", "joint", "none"
    elif name in ("OSC_POSE", "OSC_POSITION"):
        kind = _UNKNOWN if is_delta is None else "delta" if is_delta else "absolute"
        frame = str(controller.get("input_ref_frame", "world" if minor is not None and minor < (1, 5) else _UNKNOWN))
        rotation = "rotvec" if name == "OSC_POSE" else "none"
    elif name == "JOINT_POSITION" and minor is not None:
        # Until 1.4 it takes deltas only, and has no field that says so.
        kind, frame, rotation = "delta" if minor < (1, 5) or is_delta else "absolute", "joint", "none"
    else:
        return None
    reference = "none"
    if kind == "delta":
        modes = {"achieved": "measured", "target": "target", None: _UNKNOWN}
        reference = modes.get(controller.get("goal_update_mode"), _UNKNOWN)
        reference = "measured" if minor is not None and minor < (1, 5) else reference
    return {
        "kind": kind, "delta_reference": reference, "frame": frame, "rotation": rotation,
        "gripper": "-1 open .. 1 closed", "control_mode": name,
    }  # fmt: skip


def _action(
    controller: Mapping[str, Any], semantics: Mapping[str, str] | None, *, size: int, robots: int
) -> dict[str, Any] | None:
    """ArrayCard of the action as JSON; None when its size does not fit the controller."""
    if semantics is None or semantics["kind"] not in ("delta", "absolute") or semantics["frame"] == "joint":
        return None
    names = [*_AXES, *(f"rotvec {axis}" for axis in _AXES)] if semantics["rotation"] == "rotvec" else [*_AXES]
    if size != robots * (len(names) + 1):
        return None
    if semantics["kind"] == "absolute":
        units = ["rad" if name.startswith("rotvec") else "m" for name in names] + ["1"]
        meanings, bounds = [f"{name} of the end effector" for name in names] + ["gripper, 1 closes"], {}
    else:
        scale = np.broadcast_to(np.asarray(controller.get("output_max", 1.0), float), (len(names),))
        units = ["1"] * (len(names) + 1)
        meanings = [
            f"delta {name}, 1 is {factor:g} {'rad' if name.startswith('rotvec') else 'm'}"
            for name, factor in zip(names, scale, strict=True)
        ] + ["gripper, 1 closes"]
        low, high = controller.get("input_min", -1), controller.get("input_max", 1)
        bounds = {"low": _bounds(low, -1.0, len(names)) * robots, "high": _bounds(high, 1.0, len(names)) * robots}
    meanings = [f"robot{number} {text}" for number in range(robots) for text in meanings]
    return {"keys": ["actions"], "units": units * robots, "meanings": meanings, **bounds}


def _bounds(value: Any, gripper: float, size: int) -> list[float]:
    numbers: list[float] = np.broadcast_to(np.asarray(value, float), (size,)).tolist()
    return [*numbers, gripper]


def _observation(keys: Keys) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours -> ArrayCard as JSON, for robosuite's own names."""
    proprio = [
        key
        for robot in range(8)
        for part in _PROPRIO
        if (key := f"obs/robot{robot}_{part}") in keys and len(keys[key][0]) == 1
    ]
    if proprio:
        yield "proprio", _array_card(proprio, keys)
        if "obs/object" in keys:
            yield "state", _array_card([*proprio, "obs/object"], keys)
    for key, (shape, dtype) in keys.items():
        if key.startswith("obs/") and dtype == np.uint8 and len(shape) == 3 and shape[-1] == 3:
            camera = key.removeprefix("obs/").removesuffix("_image").removesuffix("_rgb")
            yield f"image/{camera}", {"keys": [key], "units": ["1"], "meanings": ["RGB"]}


def _array_card(names: Sequence[str], keys: Keys) -> dict[str, Any]:
    units, meanings = [], []
    for key in names:
        name, size = key.removeprefix("obs/"), keys[key][0][0]
        parts: Sequence[str] = [str(index) for index in range(size)]
        unit = "1"
        if name.endswith("eef_pos") and size == 3:
            unit, parts = "m", _AXES
        elif name.endswith("quat") and size == 4:
            parts = _QUATERNION
        units += [unit] * size
        suffix = " of the quaternion (xyzw)" if parts is _QUATERNION else ""
        meanings += [f"{name} {part}{suffix}" for part in parts]
    return {"keys": list(names), "units": units, "meanings": meanings}
