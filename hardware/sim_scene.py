"""Environments of configs/env whose time passes by itself, by their names: what simulated robots are made of, and drawn from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from importlib.resources import files
from typing import Any, get_type_hints

from robot_rl.errors import ConfigError, closest

# Environments with a live form: target in configs/env -> what builds it.
LIVE: Mapping[str, str] = {"robot_rl.envs.maniskill.make_env": "robot_rl.envs.maniskill_live.make_live"}
# ... and a form that draws one, for sim_render.py.
RENDERED: Mapping[str, str] = {"robot_rl.envs.maniskill.make_env": "robot_rl.envs.maniskill_render.make_rendered"}


def live_scene(env: str, options: Mapping[str, Any], *, forms: Mapping[str, str] = LIVE, **words: Any) -> Any:
    """The live form of an environment of configs/env.

    Args:
        env: its name.
        options: fields in place of those of the file.
        forms: LIVE, or RENDERED.
        words: more for what builds it.

    Raises:
        ConfigError: no such name, an environment without a live form, or an unknown option.
        EnvError: it can't be built.
    """
    import yaml

    folder = files("robot_rl.configs") / "env"
    known = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    if env not in known:
        raise ConfigError(f"env {env!r}", expected="a name of configs/env", got="none", hint=closest(env, known))
    plain = {**yaml.safe_load(known[env].read_text(encoding="utf-8")), **options}
    target = str(plain.pop("_target_", ""))
    if target not in forms:
        raise ConfigError(
            f"env {env!r}", expected=f"one with a live form ({', '.join(forms)})", got=target,
            hint="Other environments wait for their policy and can't be a robot.",
        )  # fmt: skip
    module, _, name = forms[target].rpartition(".")
    make = getattr(importlib.import_module(module), name)
    config_class = get_type_hints(make)["config"]
    hints, names = get_type_hints(config_class), {entry.name for entry in fields(config_class)}
    for key in plain:
        if key not in names:
            raise ConfigError(f"env {env!r}, {key}", expected="a known field", got=key, hint=closest(key, names))
    return make(config_class(**{key: _typed(hints[key], value, key) for key, value in plain.items()}), **words)


def _typed(kind: Any, value: Any, key: str) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return value
    try:
        return kind(value)
    except ValueError as error:
        hint = closest(str(value), [member.value for member in kind])
        raise ConfigError(key, expected=f"a {kind.__name__}", got=repr(value), hint=hint) from error
