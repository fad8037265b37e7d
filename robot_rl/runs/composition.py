"""Composition of YAML files and command-line overrides by Hydra's Compose API, into plain data.

What the keys mean is checked in config.py. Interpolation of another key (`${horizon}`) is allowed; resolvers that read
the environment or compute are not.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError, closest

CONFIG_MODULE = "robot_rl.configs"
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")


def compose_config(
    overrides: Sequence[str], *, name: str, config_dir: Path | None = None, plain_keys: Sequence[str] = ()
) -> dict[str, Any]:
    """What Hydra makes of the YAML files and the overrides, as plain data; only names of files and groups are checked.

    Args:
        overrides: Hydra overrides.
        name: of the primary YAML file.
        config_dir: the user's own folder of YAML files.
        plain_keys: keys that hold a value in this config although a group may have the same name
            (`evaluate policy=runs/...`, and the group `policy` of the other stages).

    Raises:
        ConfigError: unknown file, group or choice, unreadable override, or a resolver (`${oc.env:...}`) in a value.
    """
    from hydra import compose
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    try:
        with _hydra(config_dir):
            for_hydra, values = _sorted_out(overrides, plain_keys, groups=group_choices(config_dir))
            composed = compose(name, overrides=for_hydra)
            with open_dict(composed):
                composed.update(values)
            _refuse_resolvers(OmegaConf.to_container(composed), where=name)
            plain = OmegaConf.to_container(composed, resolve=True)
    except MissingConfigException as error:
        raise _missing_choice(error, name) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(
            f"{name}: overrides {' '.join(overrides)!r}",
            expected="key=value or group=choice",
            got=str(error).split("\nSee https")[0].replace("\n", " "),
            hint=f"Run `robot-rl {name} --help` for keys and groups; quote values with spaces or commas.",
        ) from error
    return {str(key): value for key, value in plain.items()}


def group_choices(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Every config group and its choices, sorted; the user's own and ours."""
    found: dict[str, set[str]] = {}
    for root in _roots(config_dir):
        for path in root.glob("*/**/*.yaml"):
            found.setdefault(path.parent.relative_to(root).as_posix(), set()).add(path.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def _roots(config_dir: Path | None) -> list[Path]:
    ours = Path(str(importlib.resources.files(CONFIG_MODULE)))
    return [ours] if config_dir is None else [config_dir, ours]


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[None]:
    """An initialised Hydra, with a folder of the user's before ours."""
    from hydra import initialize_config_dir, initialize_config_module

    if config_dir is None:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            yield
        return
    if not config_dir.is_dir():
        raise ConfigError(
            str(config_dir), expected="a folder of YAML files", got="no folder", hint="Check --config-dir."
        )
    _append_ours()
    with initialize_config_dir(str(config_dir.resolve()), version_base="1.3"):
        yield


@cache
def _append_ours() -> None:
    """Put our folder behind the user's in Hydra's search path, once a process.

    The override `hydra.searchpath` would be read too late: Hydra looks for the stage's own YAML before, and a user's
    folder may hold groups alone.
    """
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OursBehindTheUsers(SearchPathPlugin):  # type: ignore[misc]  # hydra is untyped here
        def manipulate_search_path(self, search_path: Any) -> None:
            search_path.append("robot_rl", f"pkg://{CONFIG_MODULE}")

    Plugins.instance().register(OursBehindTheUsers)


def _sorted_out(
    overrides: Sequence[str], plain_keys: Sequence[str], *, groups: Mapping[str, list[str]]
) -> tuple[list[str], dict[str, Any]]:
    """Overrides for Hydra, and values of keys that Hydra would take for a group.

    `key=value` becomes `++key=value`: fields that no YAML names can be set too, and config.py knows the fields.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType

    for_hydra, values = list[str](), dict[str, Any]()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, text = override.key_or_group, str(override.input_line)
        if key in groups and key in plain_keys:
            values[key] = override.value()
        elif key in groups or override.type is not OverrideType.CHANGE or key.startswith("hydra."):
            for_hydra.append(text)
        else:
            for_hydra.append(f"++{text}")
    return for_hydra, values


def _refuse_resolvers(node: Any, *, where: str) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_resolvers(value, where=f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _refuse_resolvers(value, where=f"{where}[{index}]")
    elif isinstance(node, str) and _RESOLVER.search(node):
        raise ConfigError(
            where,
            expected="a plain value or ${another.key}",
            got=node,
            hint="Values come neither from environment variables nor from code: write the value itself.",
        )


def _missing_choice(error: Any, name: str) -> ConfigError:
    missing, options = str(error.missing_cfg_file), error.options
    if not options:
        return ConfigError(
            f"config {name!r}",
            expected="a YAML file of that name",
            got=f"none for {missing!r}",
            hint="Use the name of a stage, or add your own folder with --config-dir.",
        )
    group, _, choice = missing.rpartition("/")
    return ConfigError(
        f"{name}: group {group!r}", expected="a known choice", got=repr(choice), hint=closest(choice, options)
    )
