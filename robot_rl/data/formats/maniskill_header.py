"""The two files of a ManiSkill recording as a whole: what they say about all episodes, before any is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robot_rl.data.formats.hdf5_source import named_damage, open_hdf5
from robot_rl.errors import DataError


@dataclass(frozen=True)
class ManiSkillHeader:
    """What the two files say about all episodes.

    Attributes:
        path: of the .h5 file.
        env_id: the task.
        env_kwargs: the arguments the environment was made with.
        max_episode_steps: time limit that the environment had, or None.
        obs_mode: as the file says; None when it does not.
        control_mode: of all episodes; None when the file does not say.
        image_size: rows and columns of the first camera, or None without images.
        source_type: "motionplanning", "human", "rl", ..., or None.
        source_desc: text of whoever recorded it, or None.
        entries: trajectory name -> its entry in the json, sorted by number.
    """

    path: Path
    env_id: str
    env_kwargs: Mapping[str, Any]
    max_episode_steps: int | None
    obs_mode: str | None
    control_mode: str | None
    image_size: tuple[int, int] | None
    source_type: str | None
    source_desc: str | None
    entries: Mapping[str, Mapping[str, Any]]


def read_header(path: Path) -> ManiSkillHeader:
    """Read the json, and look at the first trajectory.

    Raises:
        DataError: a file is missing or damaged, json and h5 don't belong together, or there are no observations.
    """
    content = _read_json(path)
    info = content.get("env_info")
    if not isinstance(info, Mapping) or "env_id" not in info:
        raise DataError(
            f"{path.with_suffix('.json')}, env_info",
            expected="the environment the episodes were recorded in",
            got=f"{info}",
            hint="Record from an environment made by gymnasium.make, or add env_id and env_kwargs to the json.",
        )
    kwargs = _typed(info, "env_kwargs", dict, path) or {}
    with open_hdf5(path) as file, named_damage(f"{path}"):
        entries = _entries(path, content, list(file))
        modes = sorted({str(e["control_mode"]) for e in entries.values() if e.get("control_mode")})
        if len(modes) > 1:
            raise DataError(
                f"{path.with_suffix('.json')}, episodes",
                expected="one control mode for all episodes",
                got=", ".join(modes),
                hint=replay_hint(path, "-c <one of them>"),
            )
        obs_mode = kwargs.get("obs_mode")
        first = next(iter(entries))
        group = file[first]
        if "obs" not in group or (hasattr(group["obs"], "keys") and not len(group["obs"])):
            raise DataError(
                f"{path}, {first}",
                expected="observations (obs)",
                got=f"only {', '.join(sorted(set(group) - {'obs'}))} (obs_mode {obs_mode!r})",
                hint=replay_hint(path, "-o state --use-env-states"),
            )
        image_size = _image_size(group["obs"])
    return ManiSkillHeader(
        path=path,
        env_id=_typed(info, "env_id", str, path),
        env_kwargs=kwargs,
        max_episode_steps=_typed(info, "max_episode_steps", int, path),
        obs_mode=obs_mode,
        control_mode=modes[0] if modes else kwargs.get("control_mode"),
        image_size=image_size,
        source_type=_typed(content, "source_type", str, path),
        source_desc=_typed(content, "source_desc", str, path),
        entries=entries,
    )


def _read_json(path: Path) -> dict[str, Any]:
    json_path = path.with_suffix(".json")
    try:
        content = json.loads(json_path.read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("episodes"), list):
            raise ValueError("no list 'episodes'")
        strange = [number for number, entry in enumerate(content["episodes"]) if not isinstance(entry, dict)]
        if strange:
            raise ValueError(f"entry {strange[0]} of 'episodes' is no object")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{json_path}",
            expected="ManiSkill's json beside the .h5, with env_info and episodes",
            got=f"{error}",
            hint="Copy it from where the .h5 comes from; both are needed, under the same name.",
        ) from error
    return content


def _typed(content: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    """A value of the json, or None where it says nothing."""
    value = content.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise DataError(
            f"{path.with_suffix('.json')}, {key}", expected=kind.__name__, got=f"{value!r:.80} ({type(value).__name__})",
            hint="Copy the file from where the .h5 comes, or correct it.",
        )  # fmt: skip
    return value


def _entries(path: Path, content: Mapping[str, Any], groups: list[str]) -> dict[str, Mapping[str, Any]]:
    """Trajectory name -> json entry, by number; the json may be in any order but must name the same episodes."""
    stored = sorted((g for g in groups if re.fullmatch(r"traj_\d+", g)), key=lambda g: int(g[5:]))
    described = [f"traj_{entry.get('episode_id')}" for entry in content["episodes"]]
    twice = (
        sorted({name for name in described if described.count(name) > 1})
        if len(described) != len(set(described))
        else []
    )
    problems = [f"{name} is twice in the json" for name in twice]
    problems += [f"{name} has no entry in the json" for name in stored if name not in set(described)]
    problems += [f"{name} is in the json only" for name in described if name not in set(stored)]
    if problems or not stored:
        raise DataError(
            f"{path}",
            expected="the same trajectories in .h5 and .json, at least one",
            got="; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "") or "none",
            hint="The files don't belong together, or a recording was cut off: remove the odd ones from the json.",
        )
    found = dict(zip(described, content["episodes"], strict=True))
    return {name: found[name] for name in stored}


def _image_size(obs: Any) -> tuple[int, int] | None:
    cameras = obs["sensor_data"] if hasattr(obs, "keys") and "sensor_data" in obs else {}
    for camera in cameras:
        if "rgb" in cameras[camera]:
            rows, columns = cameras[camera]["rgb"].shape[1:3]
            return int(rows), int(columns)
    return None


def replay_hint(path: Path, flags: str) -> str:
    """The command that makes ManiSkill write what is missing, as a hint."""
    return (
        f"Let ManiSkill write them: python -m mani_skill.trajectory.replay_trajectory --traj-path {path} {flags} "
        "--save-traj, and import the new file. (It leaves failed episodes out; --allow-failure keeps them.)"
    )
