"""What `robot-rl --help` and `robot-rl <stage> --help` print; made from docstrings, dataclasses and YAML."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from robot_rl.errors import ConfigError
from robot_rl.stages import STAGES

TOOLS = (
    "report",
    "card",
    "compare",
    "results",
    "check",
    "doctor",
    "bench",
    "data",
    "sweep",
    "rl100",
    "rl100_online",
    "judge",
    "adapt",
    "adopt",
    "ros2",
    "curves",
    "rti",
    "robustness",
    "calibrate",
)
COMMANDS = (*STAGES, *TOOLS, "info")

OPTIONS = """Options:
  --help            this text
  --json            print the summary as JSON on stdout
  --dry-run         print the complete configuration and stop
  --quiet           only warnings and errors on stderr
  --debug           show tracebacks of user errors
  --track LIST      trackers, separated by commas: tensorboard (default; none for deploy), wandb, trackio; none
  --track-project P project name for wandb and trackio (default robot-rl)
  --config-dir DIR  a folder of your own YAML files (groups and stages), which win over ours

Exit codes: 0 ok, 1 user or data error, 2 usage or configuration, 3 safety stop, 130 interrupted."""


def general_help() -> str:
    """Help of the whole program. Stages are not imported, so it is quick."""
    lines = ["Usage: robot-rl <command> [key=value ...] [group=choice ...] [options]", "", "Commands:"]
    places = [("stages", name) for name in STAGES] + [("workbench", name) for name in TOOLS]
    for folder, name in places:
        path = Path(__file__).with_name(folder) / f"{name}.py"
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else None
        lines.append(f"  {name:16} {(text or 'not in this version').splitlines()[0]}")
    lines += [f"  {'info':16} Versions and devices of this installation.", ""]
    return "\n".join([*lines, "`robot-rl <command> --help` lists the keys and groups of a command.", "", OPTIONS])


def stage_help(command: str, config_dir: Path | None) -> str:
    """Docstring, keys with types and defaults, and groups of one stage.

    Raises:
        ConfigError: when the stage's own YAML is broken.
    """
    from robot_rl.runs.composition import compose_config, group_choices

    stage = importlib.import_module(f"robot_rl.stages.{command}")
    values = compose_config([], name=command, config_dir=config_dir)
    lines = [f"Usage: robot-rl {command} [key=value ...] [group=choice ...] [options]", ""]
    lines += [inspect.cleandoc(stage.__doc__ or ""), "", "Keys (type = default):"]
    for key, kind, default, text in _rows(stage.CONFIG, values, ""):
        left = f"  {key}: {kind} = {default}"
        lines.append(f"{left:58}  {text}".rstrip())
    lines += ["", "Groups:"]
    lines += [f"  {group}: {', '.join(choices)}" for group, choices in group_choices(config_dir).items() if choices]
    return "\n".join([*lines, "", "resume=<run directory> continues a run with its own configuration.", "", OPTIONS])


def _rows(kind: type, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and text of every field, nested dataclasses and components included."""
    from robot_rl.runs.config import config_to_json, type_name, validate_component

    hints, texts = get_type_hints(kind), _attribute_texts(kind)
    for item in fields(kind):
        key, hint, text = prefix + item.name, hints[item.name], texts.get(item.name, "")
        default = item.default if item.default_factory is MISSING else item.default_factory()
        value = values.get(item.name, default)
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _rows(hint, value if isinstance(value, Mapping) else config_to_json(value), f"{key}.")
        elif isinstance(value, Mapping) and "_target_" in value:
            yield key, "component", str(value["_target_"]), text
            try:
                _, config = validate_component(value, where=key)
            except ConfigError as error:
                yield f"{key}.*", "?", "?", f"not known: {error}"
            else:
                yield from _rows(type(config), config_to_json(config), f"{key}.")
        else:
            yield key, type_name(hint), _shown(value), text


def _shown(value: Any) -> str:
    from robot_rl.runs.config import config_to_json

    if value is MISSING:
        return "(required)"
    plain = config_to_json(value)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    return str(plain) if plain != "" else "''"


def _attribute_texts(kind: type) -> dict[str, str]:
    """Field -> its text in the `Attributes:` section of the class docstring (`name: text` or `a, b: text`)."""
    section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for match in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n      +.*)*)", section, re.MULTILINE):
        found |= {name.strip(): " ".join(match.group(2).split()) for name in match.group(1).split(",")}
    return found
