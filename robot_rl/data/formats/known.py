"""The foreign formats there are readers for: by name, by what a path looks like, and a card to fill in for each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.data.formats.hdf5_source import named_damage
from robot_rl.data.formats.keyed import KeyedSource
from robot_rl.errors import ConfigError, DataError, closest

# Name -> module and class of its KeyedSource. ManiSkill has a reader of its own (maniskill.py): its spec comes from an env.
SOURCES = {
    "diffusion_policy": "diffusion_policy.DiffusionPolicySource",
    "lerobot": "lerobot.LeRobotSource",
    "robomimic": "robomimic.RobomimicSource",
    "aloha": "aloha.AlohaSource",
    "minari": "minari.MinariSource",
    "dppo": "dppo.DppoSource",
    "mcap": "mcap_source.McapSource",
}
FORMATS = ("maniskill", *SOURCES)
# Field of a card -> (what stands in a card that says nothing of it, what to write there).
_FIELDS = {
    "env_id": ("???", "name of the task"),
    "robot": ("???", ""),
    "control_hz": ("???", "actions per second"),
    "max_episode_steps": ("???", "time limit of the task"),
    "joint_names": ("[]", "of the joints in proprio, in order"),
    "source": ("teleop", "who acted: teleop, scripted, policy, intervention"),
    "success": ("???", "last_step (all are good demonstrations), none, or a key"),
    "reward_key": (None, ""),
    "timestamp_key": (None, ""),
    "timestamp_from_start": (None, ""),
    "source_key": (None, ""),
    "final_observation": (None, ""),
}
_SEMANTICS = """action_semantics:
  kind: ???                # absolute, delta, velocity
  delta_reference: none    # of a delta: measured or target
  frame: ???               # joint, base, tool
  rotation: ???            # none, euler_xyz, rotvec, rot6d, quat_wxyz
  gripper: ???             # e.g. -1 closed .. 1 open; none without one
  control_mode: ???        # the driver's name of the mode"""
_ACTION = 'action: {keys: ["%s"], units: ["???"], meanings: ["???"]}'
_OBSERVATION = """observation:               # proprio is required; columns: [start, stop] takes a part
  proprio: {keys: ["???"], units: ["???"], meanings: ["???"]}"""


def open_source(name: str, path: Path, options: Mapping[str, Any]) -> KeyedSource:
    """The dataset at `path` as a source of format `name`.

    Args:
        name: of SOURCES.
        path: of the dataset.
        options: of the format, as its class names them.

    Raises:
        ConfigError: an option that the format does not have.
        DataError: as the format's class.
    """
    module, class_name = SOURCES[name].split(".")
    source = getattr(import_module(f"robot_rl.data.formats.{module}"), class_name)
    known = [option for option in inspect.signature(source).parameters if option != "path"]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"--option {option}", expected=f"an option of {name}", got=repr(option),
                hint=closest(option, known) if known else f"{name} has none.",
            )  # fmt: skip
    with named_damage(f"{path}"):
        return _GuardedSource(source(path, **options))


class _GuardedSource:
    """A source whose libraries may meet bytes that no writer wrote: what they raise then is a DataError too."""

    def __init__(self, source: KeyedSource) -> None:
        self._source = source
        self.format, self.path, self.episodes, self.keys = source.format, source.path, source.episodes, source.keys
        self.declared, self.facts, self.notes = source.declared, source.facts, source.notes

    def rows(self, index: int, key: str) -> np.ndarray:
        """See KeyedSource."""
        with named_damage(f"{self.path}, {self.episodes[index].name}, key {key!r}"):
            return self._source.rows(index, key)

    def close(self) -> None:
        """See KeyedSource."""
        self._source.close()


def detect_format(path: Path) -> str:
    """The format that a path looks like.

    Raises:
        DataError: nothing there, or like none of them.
    """
    looks = [name for name, matches in _looks(path) if matches]
    if looks:
        return looks[0]
    raise DataError(
        f"{path}", expected=f"a dataset of a known format ({', '.join(FORMATS)})",
        got="something else" if path.exists() else "nothing at this path", hint="Name it with --format if it is one.",
    )  # fmt: skip


def _looks(path: Path) -> Iterator[tuple[str, bool]]:
    yield "lerobot", (path / "meta" / "info.json").is_file()
    is_hdf5 = path.is_file() and path.suffix in (".h5", ".hdf5")
    yield (
        "minari",
        path.name == "main_data.hdf5" or any((path / p).is_file() for p in ("main_data.hdf5", "data/main_data.hdf5")),
    )
    yield (
        "aloha",
        (is_hdf5 and path.stem.startswith("episode_")) or bool(path.is_dir() and [*path.glob("episode_*.hdf5")]),
    )
    yield "maniskill", is_hdf5 and path.with_suffix(".json").is_file()
    yield "robomimic", is_hdf5
    yield (
        "mcap",
        path.suffix in (".mcap", ".db3")
        or (path / "metadata.yaml").is_file()
        or bool(path.is_dir() and [*path.glob("*.mcap"), *path.glob("*/metadata.yaml")]),
    )
    yield "dppo", path.is_file() and path.suffix == ".npz"
    yield "diffusion_policy", path.name.endswith((".zarr", ".zarr.zip")) or (path / ".zgroup").is_file()


def card_text(source: KeyedSource) -> str:
    """A spec card as YAML: what the files declare, and ??? where a person must say it."""
    said = dict(source.declared)
    lines = []
    for name, (default, comment) in _FIELDS.items():
        value = json.dumps(said[name]) if name in said else default
        if value is not None:
            lines.append(f"{name}: {value}".ljust(27) + (f"# {comment}" if comment else ""))
    lines.append(
        _SEMANTICS if "action_semantics" not in said else f"action_semantics: {json.dumps(said['action_semantics'])}"
    )
    first = next((key for key in ("action", "actions") if key in source.keys), "???")
    lines.append(_ACTION % first if "action" not in said else f"action: {json.dumps(said['action'])}")
    if "observation" in said:
        lines += ["observation:", *(f"  {key}: {json.dumps(card)}" for key, card in said["observation"].items())]
    else:
        lines.append(_OBSERVATION)
    shapes = [f"# {name}: one row is {shape}, {dtype}" for name, (shape, dtype) in source.keys.items()]
    return "\n".join([*(line.rstrip() for line in lines), *shapes])
