"""The words of ROS 2 launch files that ours use, for machines where `launch` and `launch_ros` are not to be had.

PyPI has ROS 2 wheels but no launch (its package of that name is another program). `installed()` puts these stand-ins in
the place of the real modules while a launch file is read; what they describe is then really started by launch_runner.py.
A word that is not here is refused by name, never ignored.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError

Context = Mapping[str, str]


class Substitution:
    """Text that is known when the launch file runs."""

    def text(self, context: Context) -> str:
        """What it stands for. Raises ConfigError when it can't be told."""
        raise NotImplementedError


@dataclass(frozen=True)
class LaunchConfiguration(Substitution):
    """Value of a launch argument."""

    variable_name: str

    def text(self, context: Context) -> str:
        """Its value. Raises ConfigError for an argument that was not declared."""
        if self.variable_name not in context:
            raise ConfigError(
                f"launch argument {self.variable_name!r}", expected="a declared argument", got="none of that name",
                hint=f"Declared: {', '.join(sorted(context)) or 'none'}.",
            )  # fmt: skip
        return context[self.variable_name]


@dataclass(frozen=True)
class PathJoinSubstitution(Substitution):
    """Parts of a path."""

    substitutions: Sequence[Any]

    def text(self, context: Context) -> str:
        """The path."""
        return str(Path(*(as_text(part, context) for part in self.substitutions)))


@dataclass(frozen=True)
class FindPackageShare(Substitution):
    """Share folder of a package: ours is this folder's `ros2`, others come from AMENT_PREFIX_PATH."""

    package: str

    def text(self, context: Context) -> str:
        """The folder. Raises ConfigError when no prefix holds the package."""
        del context
        return str(package_share(self.package))


def package_share(package: str) -> Path:
    """Share folder of an ament package.

    Raises:
        ConfigError: not ours and not below AMENT_PREFIX_PATH.
    """
    import os

    if package == PACKAGE:
        return Path(__file__).parent / "ros2"
    prefixes = [part for part in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if part]
    for prefix in prefixes:
        if (folder := Path(prefix) / "share" / package).is_dir():
            return folder
    raise ConfigError(
        f"package {package!r}", expected=f"{PACKAGE!r}, or a package below AMENT_PREFIX_PATH", got=f"prefixes {prefixes}",
        hint="Source the workspace that has it.",
    )  # fmt: skip


PACKAGE = "robot_rl_bridge"


def as_text(value: Any, context: Context) -> str:
    """Text of a string, a substitution or a sequence of both."""
    if isinstance(value, Substitution):
        return value.text(context)
    if isinstance(value, (list, tuple)):
        return "".join(as_text(part, context) for part in value)
    return str(value)


@dataclass(frozen=True)
class IfCondition:
    """Whether an entity counts: the words true, 1, yes or on."""

    predicate_expression: Any

    def holds(self, context: Context) -> bool:
        """Whether it is true. Raises ConfigError for another word."""
        word = as_text(self.predicate_expression, context).lower()
        if word not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            raise ConfigError(
                "condition of a launch file", expected="true or false", got=repr(word), hint="Correct it."
            )
        return word in ("true", "1", "yes", "on")


class UnlessCondition(IfCondition):
    """The opposite of IfCondition."""

    def holds(self, context: Context) -> bool:
        """Whether it is false."""
        return not super().holds(context)


@dataclass(frozen=True)
class DeclareLaunchArgument:
    """A launch argument; without a default it must be given."""

    name: str
    default_value: Any = None
    description: str = ""
    choices: Sequence[str] | None = None
    condition: IfCondition | None = None


@dataclass(frozen=True)
class LogInfo:
    """A line for the log."""

    msg: Any
    condition: IfCondition | None = None


@dataclass(frozen=True)
class SetEnvironmentVariable:
    """An environment variable of every process started after it."""

    name: Any
    value: Any
    condition: IfCondition | None = None


@dataclass(frozen=True, eq=False)
class Node:
    """A process with a ROS 2 node."""

    package: str
    executable: str
    name: str
    namespace: Any = ""
    parameters: Sequence[Any] = ()
    remappings: Sequence[tuple[Any, Any]] = ()
    arguments: Sequence[Any] = ()
    output: str = "screen"
    respawn: bool = False
    on_exit: Any = None
    condition: IfCondition | None = None
    additional_env: Mapping[str, Any] = field(default_factory=dict)


class LifecycleNode(Node):
    """A process with a lifecycle node."""


@dataclass(frozen=True)
class Shutdown:
    """End everything; as an action, or an event."""

    reason: str = ""
    condition: IfCondition | None = None


@dataclass(frozen=True)
class ChangeState:
    """Event: a transition is asked of a lifecycle node."""

    lifecycle_node_matcher: Callable[[Any], bool]
    transition_id: int


@dataclass(frozen=True)
class EmitEvent:
    """Action that sends an event."""

    event: Any
    condition: IfCondition | None = None


@dataclass(frozen=True)
class RegisterEventHandler:
    """Action that begins to listen."""

    event_handler: Any
    condition: IfCondition | None = None


@dataclass(frozen=True)
class OnStateTransition:
    """What to do when a lifecycle node arrives in a state."""

    entities: Sequence[Any]
    target_lifecycle_node: Any
    goal_state: str
    start_state: str | None = None


@dataclass(frozen=True)
class OnProcessExit:
    """What to do when a process has ended."""

    target_action: Any
    on_exit: Any


class LaunchDescription:
    """Entities in the order in which they run."""

    def __init__(self, entities: Iterable[Any] = ()) -> None:
        self.entities = list(entities)

    def add_action(self, entity: Any) -> None:
        """Append one."""
        self.entities.append(entity)


def matches_action(action: Any) -> Callable[[Any], bool]:
    """A test for one action."""
    return lambda other: other is action


_MODULES: dict[str, tuple[Any, ...]] = {
    "launch": (LaunchDescription,),
    "launch.actions": (
        DeclareLaunchArgument, EmitEvent, LogInfo, RegisterEventHandler, SetEnvironmentVariable, Shutdown,
    ),
    "launch.conditions": (IfCondition, UnlessCondition),
    "launch.event_handlers": (OnProcessExit,),
    "launch.events": (matches_action, Shutdown),
    "launch.substitutions": (LaunchConfiguration, PathJoinSubstitution),
    "launch_ros": (),
    "launch_ros.actions": (LifecycleNode, Node),
    "launch_ros.event_handlers": (OnStateTransition,),
    "launch_ros.events": (),
    "launch_ros.events.lifecycle": (ChangeState,),
    "launch_ros.substitutions": (FindPackageShare,),
}  # fmt: skip


@contextmanager
def installed() -> Iterator[None]:
    """These words in the place of `launch` and `launch_ros`, in this process, while the block runs."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("launch", "launch_ros")}
    for name in before:
        del sys.modules[name]
    for name, words in _MODULES.items():
        module = types.ModuleType(name)
        module.__path__ = []
        for word in words:
            setattr(module, word.__name__, word)
        sys.modules[name] = module
    for name, module in [(name, sys.modules[name]) for name in _MODULES if "." in name]:
        parent, _, leaf = name.rpartition(".")
        setattr(sys.modules[parent], leaf, module)
    try:
        yield
    finally:
        for name in _MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)
