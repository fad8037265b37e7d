"""Configuration: composition.py makes plain data of YAML and overrides, this module makes typed frozen dataclasses.

Everything is checked before anything starts: unknown keys, misspelt enum values, wrong types and unknown group choices
end in a ConfigError with the valid names. A component is a mapping with `_target_`: the dotted name of a class or
function whose first parameter is annotated with a frozen dataclass; its other keys are the fields of that dataclass.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from robot_rl.errors import ConfigError, closest, missing_package
from robot_rl.runs.composition import compose_config

T = TypeVar("T")


def load_config(config_class: type[T], overrides: Sequence[str], *, name: str, config_dir: Path | None = None) -> T:
    """Compose `<name>.yaml` with `overrides` and return a checked `config_class`.

    Args:
        config_class: frozen dataclass of the stage.
        overrides: Hydra overrides (`key=value`, `group=choice`, `+group=choice`, `~key`).
        name: of the primary YAML file, the stage's name.
        config_dir: the user's own folder of YAML files; its files win over ours of the same name.

    Raises:
        ConfigError: naming the key or group, the valid choices and the nearest one.
    """
    hints = get_type_hints(config_class)
    plain_keys = [key for key, kind in hints.items() if not is_dataclass(kind) and "dict" not in str(kind)]
    plain = compose_config(overrides, name=name, config_dir=config_dir, plain_keys=plain_keys)
    return convert_config(config_class, plain, where=name)


def read_config(config_class: type[T], path: Path) -> T:
    """Read back the `config.yaml` of a run (see `config_to_yaml`).

    Raises:
        ConfigError: when it does not fit `config_class` any more.
    """
    from omegaconf import OmegaConf

    return convert_config(config_class, OmegaConf.to_container(OmegaConf.load(path)), where=str(path))


def convert_config(config_class: type[T], data: Any, *, where: str) -> T:
    """Check plain data against a dataclass, and every component inside against its own; return the real object.

    Component nodes come back complete, with the defaults of their dataclass filled in.

    Raises:
        ConfigError: naming the dotted key.
    """
    converted: T = _dataclass(config_class, data, where)
    return converted


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as type `kind`, or ConfigError."""
    base, arguments = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return _open(value, where)
    if base in (Union, UnionType):
        return _union(kind, value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if base in (dict, Mapping) and isinstance(value, Mapping):
        if "_target_" in value or not arguments:
            return _open(value, where)
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if base in (list, Sequence, tuple) and isinstance(value, (list, tuple)):
        return _sequence(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, value, where)
    if kind is float and type(value) in (int, float) and value == value:
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise _wrong_type(kind, value, where)


def _sequence(kind: Any, value: Sequence[Any], where: str) -> Any:
    arguments = get_args(kind)
    if get_origin(kind) is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if len(arguments) != len(value):
            raise _wrong_type(kind, value, where)
    else:
        arguments = (arguments[0] if arguments else Any,) * len(value)
    items = [_convert(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(arguments, value, strict=True))]
    return tuple(items) if (get_origin(kind) or kind) is tuple else items


def _enum(kind: type[Enum], value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    members = {member.name: member for member in kind} | {member.value: member for member in kind}
    if type(value) in (int, str) and value in members:
        return members[value]
    names = [member.name for member in kind]
    raise ConfigError(where, expected=f"a {kind.__name__}", got=repr(value), hint=closest(str(value), names))


def _wrong_type(kind: Any, value: Any, where: str) -> ConfigError:
    hint = "See the stage's --help for types."
    if kind is str and isinstance(value, (int, float)):
        hint = f"Quote it: '{where.rpartition('.')[2]}=\"{value}\"'."
    return ConfigError(where, expected=type_name(kind), got=f"{value!r} ({type(value).__name__})", hint=hint)


def _union(union: Any, value: Any, where: str) -> Any:
    arguments = get_args(union)
    if value is None and type(None) in arguments:
        return None
    kinds = [kind for kind in arguments if kind is not type(None)]
    if len(kinds) == 1:
        return _convert(kinds[0], value, where)
    exact = [kind for kind in kinds if kind is type(value)]
    for kind in exact or kinds:
        try:
            return _convert(kind, value, where)
        except ConfigError:
            continue
    raise _wrong_type(union, value, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong_type(kind, value, where)
    names = {f.name: f for f in fields(kind) if f.init}
    for key in value:
        if key not in names:
            raise ConfigError(
                f"{where}.{key}", expected=f"a field of {kind.__name__}", got=repr(key), hint=closest(str(key), names)
            )
    missing = [n for n, f in names.items() if n not in value and f.default is MISSING and f.default_factory is MISSING]
    missing += [n for n in names if isinstance(value.get(n), str) and value[n] == "???"]
    if missing:
        raise ConfigError(
            f"{where}.{missing[0]}", expected="a value", got="none", hint=f"Set {missing[0]}=...; it has no default."
        )
    hints = get_type_hints(kind)
    filled = {str(key): _over_default(names[key], hints[key], item) for key, item in value.items()}
    return kind(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in filled.items()})


def _over_default(field: Any, kind: Any, value: Any) -> Any:
    """A mapping for a nested dataclass, over the field's own default: that may differ from the defaults of its class."""
    if not is_dataclass(kind) or not isinstance(value, Mapping) or field.default_factory is MISSING:
        return value
    default = config_to_json(field.default_factory())
    return _merged(default, value) if isinstance(default, Mapping) else value


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(under[k], v) for k, v in over.items() if isinstance(v, Mapping) and isinstance(under.get(k), Mapping)
    }
    return {**under, **over, **both}


def _open(value: Any, where: str) -> Any:
    """Data of no fixed type; components in it are checked and completed."""
    if isinstance(value, Mapping) and "_target_" in value:
        _, config = validate_component(value, where=where)
        return {"_target_": value["_target_"], **config_to_json(config)}
    if isinstance(value, Mapping):
        return {key: _open(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_open(item, f"{where}[{index}]") for index, item in enumerate(value)]
    return value


def validate_component(node: Mapping[str, Any], *, where: str) -> tuple[Callable[..., Any], Any]:
    """Import the target of a component and check its keys; nothing is built.

    Args:
        node: `{"_target_": "package.module.Name", <fields of the config dataclass>}`.
        where: key of the node, for errors.

    Returns:
        The class or function, and its config object.

    Raises:
        ConfigError: no `_target_`, a target that can't be imported (with the extra to install), or a wrong key.
    """
    if not isinstance(node.get("_target_"), str):
        raise ConfigError(
            where, expected="a component with `_target_`", got=repr(dict(node)), hint="Choose one, e.g. env=<choice>."
        )
    target = _import_target(node["_target_"], where)
    config_class = _config_class(target, node["_target_"], where)
    return target, _dataclass(config_class, {k: v for k, v in node.items() if k != "_target_"}, where)


def build(node: Mapping[str, Any], **runtime: Any) -> Any:
    """Check a component and call its target as `target(config_object, **runtime)`.

    Raises:
        ConfigError: as `validate_component`.
    """
    target, config = validate_component(node, where=str(node.get("_target_", "component")))
    return target(config, **runtime)


def takes(node: Mapping[str, Any], name: str) -> bool:
    """Whether the target of a component has a parameter of this name, which `build` may then be given.

    Raises:
        ConfigError: as `validate_component`.
    """
    target, _ = validate_component(node, where=str(node.get("_target_", "component")))
    return name in inspect.signature(target).parameters


def build_for(node: Mapping[str, Any], spec: Any, **runtime: Any) -> Any:
    """`build` an environment or a robot for the policy of a spec, or None.

    A robot that knows of itself only how it is commanded takes the spec, and is told by it what its actions are.

    Raises:
        ConfigError: as `validate_component`.
        EnvError, DeployError: as what is built.
    """
    told = {"spec": spec} if spec is not None and takes(node, "spec") else {}
    return build(node, **runtime, **told)


def _import_target(dotted: str, where: str) -> Callable[..., Any]:
    module_name, _, attribute = dotted.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise missing_package(error.name, where=f"{where}: {module_name}") from error
        module = None
    except ImportError as error:
        raise ConfigError(
            f"{where}._target_", expected="a module that can be imported", got=f"{dotted}: {error}",
            hint="Use the full dotted name, e.g. robot_rl.envs.<module>.<name>.",
        ) from error  # fmt: skip
    if module is None:
        raise ConfigError(
            f"{where}._target_", expected="package.module.Name that can be imported", got=dotted,
            hint=f"There is no module {module_name!r} on the path of Python: check the spelling, install the package that has it, "
            "or put the folder that holds your own one on the path: `PYTHONPATH=. robot-rl ...`.",
        )  # fmt: skip
    if not callable(getattr(module, attribute, None)):
        public = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module_name]
        raise ConfigError(
            f"{where}._target_", expected=f"a class or function of {module_name}", got=attribute,
            hint=closest(attribute, [n for n in public if not n.startswith("_")]),
        )  # fmt: skip
    return getattr(module, attribute)  # type: ignore[no-any-return]


def _config_class(target: Callable[..., Any], dotted: str, where: str) -> type:
    """The dataclass that the first parameter is annotated with. Other annotations are not looked at."""
    parameters = list(inspect.signature(target).parameters.values())
    kind = parameters[0].annotation if parameters else None
    if isinstance(kind, str):
        function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
        first, *rest = kind.split(".")
        kind = getattr(function, "__globals__", {}).get(first)
        for name in rest:
            kind = getattr(kind, name, None)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ConfigError(
            f"{where}._target_", expected="a target whose first parameter is annotated with a dataclass", got=dotted,
            hint="Write `def __init__(self, config: MyConfig, ...)` with a frozen dataclass MyConfig.",
        )  # fmt: skip
    return kind


def config_to_json(config: Any) -> Any:
    """A config object as plain JSON types: dataclasses to dicts, enums to values, tuples to lists, paths to text."""
    if is_dataclass(config) and not isinstance(config, type):
        return {f.name: config_to_json(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, Mapping):
        return {str(key): config_to_json(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [config_to_json(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def config_to_yaml(config: Any) -> str:
    """A config object as YAML that `read_config` reads back to an equal object."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(config_to_json(config))))


def type_name(kind: Any) -> str:
    """Short name of a field's type for people; enums list their values."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(member.name for member in kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join("null" if k is type(None) else type_name(k) for k in get_args(kind))
    name = str(kind.__name__) if isinstance(kind, type) and not get_args(kind) else str(kind)
    return name.replace("typing.", "")
