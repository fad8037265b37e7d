"""Runs a ROS 2 launch file where `ros2 launch` is not to be had: real processes, real lifecycle services.

`robot-rl ros2 up FILE.launch.py name:=value ...`. The file itself is unchanged (launch_words.py gives it its words). Every
node is a process in a session of its own; Ctrl-C asks them to end (SIGINT), after `_PATIENCE_S` they are told (SIGTERM), at
last killed. A lifecycle node is driven by its own services, as launch_ros does it.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError, closest

from . import launch_words as words
from .launch_lifecycle import LaunchState, LifecycleDriver, Started

# Our executables where no colcon workspace has them.
EXECUTABLES = {
    "bridge": "robot_rl.hardware.ros2_bridge",
    "sim_robot": "robot_rl.hardware.sim_robot_node",
    "recorder": "robot_rl.hardware.ros2_recorder",
}
_PATIENCE_S = 8.0


def read_launch_file(path: str | Path) -> Any:
    """The description that a launch file makes.

    Raises:
        ConfigError: no such file, an error inside, or a word that launch_words.py does not have.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            str(path), expected="a launch file", got="nothing there", hint="`robot-rl ros2 files` lists ours."
        )
    if not file.name.endswith(".launch.py"):
        raise ConfigError(
            str(path), expected="a .launch.py file", got=file.name, hint="XML and YAML need `ros2 launch`."
        )
    spec = importlib.util.spec_from_file_location(f"launch_file_{file.stem.split('.')[0]}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(str(path), expected="a Python file", got="one that can't be loaded", hint="Correct it.")
    module = importlib.util.module_from_spec(spec)
    with words.installed():
        try:
            spec.loader.exec_module(module)
            return module.generate_launch_description()
        except (ImportError, AttributeError, TypeError, SyntaxError) as error:
            raise ConfigError(
                str(path), expected="words that this runner knows", got=f"{type(error).__name__}: {error}",
                hint="Use `ros2 launch` for this file, or the words of hardware/launch_words.py.",
            ) from error  # fmt: skip


def run_launch_file(path: str | Path, given: Mapping[str, str], *, say: Callable[[str], None] = print) -> int:
    """Run a launch file until its processes end or a signal comes.

    Args:
        path: of the file.
        given: launch arguments.
        say: takes lines for the person.

    Returns:
        0, or 1 when a process ended with an error or a transition failed.

    Raises:
        ConfigError: an unknown or missing argument, or what `read_launch_file` refuses.
        DeployError: rclpy is not installed.
    """
    description = read_launch_file(path)
    _check_names(description.entities, given, str(path))
    state = LaunchState(dict(given), say)
    lifecycle = LifecycleDriver() if _has_lifecycle(description.entities) else None
    ask_to_end = _end_on_signals(state)
    try:
        for entity in description.entities:
            _run(entity, state)
        while any(not item.is_over for item in state.started) and not state.is_ending:
            _notice_exits(state)
            if lifecycle is not None:
                for entity in lifecycle.step(state):
                    _run(entity, state)
            else:
                time.sleep(0.05)
    finally:
        _end(state)
        ask_to_end()
        if lifecycle is not None:
            lifecycle.close()
    if state.failed:
        say(f"failed: {state.failed}")
    return 1 if state.failed else 0


def declared(entities: Sequence[Any]) -> list[words.DeclareLaunchArgument]:
    """Arguments of a launch file."""
    return [entity for entity in entities if isinstance(entity, words.DeclareLaunchArgument)]


def _check_names(entities: Sequence[Any], given: Mapping[str, str], where: str) -> None:
    known = {entry.name: entry for entry in declared(entities)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(where, expected="a declared argument", got=repr(name), hint=closest(name, known))
        choices = known[name].choices
        if choices is not None and value not in choices:
            raise ConfigError(f"{where}, {name}", expected="a choice", got=repr(value), hint=closest(value, choices))
    missing = [name for name, entry in known.items() if entry.default_value is None and name not in given]
    if missing:
        raise ConfigError(
            where, expected=f"argument {missing[0]!r}", got=f"{sorted(given)}",
            hint=f"{missing[0]}:=VALUE  {known[missing[0]].description}",
        )  # fmt: skip


def _has_lifecycle(entities: Sequence[Any]) -> bool:
    return any(isinstance(entity, words.LifecycleNode) for entity in entities)


def _end_on_signals(state: LaunchState) -> Callable[[], None]:
    def end(number: int, _frame: Any) -> None:
        if not state.is_ending:
            state.say(f"{signal.Signals(number).name}: ending all")
        state.is_ending = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def _run(entity: Any, state: LaunchState) -> None:
    if getattr(entity, "condition", None) is not None and not entity.condition.holds(state.context):
        return
    if isinstance(entity, words.DeclareLaunchArgument):
        if entity.default_value is not None:
            state.context.setdefault(entity.name, words.as_text(entity.default_value, state.context))
    elif isinstance(entity, words.Node):
        state.started.append(_started(entity, state))
    elif isinstance(entity, words.RegisterEventHandler):
        state.handlers.append(entity.event_handler)
    elif isinstance(entity, words.EmitEvent):
        _emit(entity.event, state)
    elif isinstance(entity, words.LogInfo):
        state.say(words.as_text(entity.msg, state.context))
    elif isinstance(entity, words.SetEnvironmentVariable):
        name = words.as_text(entity.name, state.context)
        state.environment[name] = words.as_text(entity.value, state.context)
    elif isinstance(entity, words.Shutdown):
        _emit(entity, state)
    else:
        raise ConfigError(
            "launch file", expected="an entity of hardware/launch_words.py", got=type(entity).__name__,
            hint="Use `ros2 launch` for this file.",
        )  # fmt: skip


def _emit(event: Any, state: LaunchState) -> None:
    if isinstance(event, words.ChangeState):
        state.asked.append(event)
    elif isinstance(event, words.Shutdown):
        state.say(f"shutdown: {event.reason or 'asked by the launch file'}")
        state.is_ending = True
    else:
        raise ConfigError(
            "launch file, event",
            expected="ChangeState or Shutdown",
            got=type(event).__name__,
            hint="Use `ros2 launch`.",
        )


def command_line(action: words.Node, context: Mapping[str, str]) -> tuple[list[str], str]:
    """Words that start a node, and the node's full name.

    Raises:
        ConfigError: a package or executable that is not here.
    """
    name, namespace = action.name, words.as_text(action.namespace, context).strip("/")
    ros = ["--ros-args", "-r", f"__node:={name}"] + (["-r", f"__ns:=/{namespace}"] if namespace else [])
    for old, new in action.remappings:
        ros += ["-r", f"{words.as_text(old, context)}:={words.as_text(new, context)}"]
    for entry in action.parameters:
        if isinstance(entry, Mapping):
            for key, value in entry.items():
                ros += ["-p", f"{key}:={_parameter(value, context)}"]
        elif path := words.as_text(entry, context):
            ros += ["--params-file", path]
    extra = [words.as_text(word, context) for word in action.arguments]
    return [*_executable(action), *extra, *ros], "/" + "/".join(part for part in (namespace, name) if part)


def _parameter(value: Any, context: Mapping[str, str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = words.as_text(value, context)
    # An empty word, or one that YAML would read as something else, stays a string.
    return text if text and not isinstance(value, str) else f'"{text}"'


def _executable(action: words.Node) -> list[str]:
    for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
        if (file := Path(prefix) / "lib" / action.package / action.executable).is_file():
            return [str(file)]
    if action.package == words.PACKAGE and action.executable in EXECUTABLES:
        return [sys.executable, "-m", EXECUTABLES[action.executable]]
    if action.package == words.PACKAGE:
        hint = closest(action.executable, EXECUTABLES)
    else:
        hint = f"Build and source the workspace that has {action.package!r}."
    raise ConfigError(
        f"node {action.name!r}", expected=f"executable {action.executable!r} of package {action.package!r}",
        got="none below AMENT_PREFIX_PATH", hint=hint,
    )  # fmt: skip


def _started(action: words.Node, state: LaunchState) -> Started:
    command, full_name = command_line(action, state.context)
    own = {key: words.as_text(value, state.context) for key, value in action.additional_env.items()}
    state.say(f"start {full_name}: {shlex.join(command)}")
    process = subprocess.Popen(command, env=os.environ | state.environment | own, start_new_session=True)
    return Started(action, full_name, process)


def _notice_exits(state: LaunchState) -> None:
    for item in state.started:
        code = item.process.poll()
        if item.is_over or code is None:
            continue
        item.is_over = True
        state.say(f"{item.full_name} ended with code {code}")
        if code not in (0, -signal.SIGINT):
            state.failed = state.failed or f"{item.full_name} ended with code {code}"
        actions = [handler.on_exit for handler in state.handlers
                   if isinstance(handler, words.OnProcessExit) and handler.target_action is item.action]  # fmt: skip
        for action in [*actions, item.action.on_exit]:
            for entity in action if isinstance(action, (list, tuple)) else [action]:
                if entity is not None:
                    _run(entity, state)


def _end(state: LaunchState) -> None:
    """SIGINT, then SIGTERM, then SIGKILL; the last started first, so that a bridge ends before its robot."""
    alive = [item for item in reversed(state.started) if item.process.poll() is None]
    for number, patience_s in ((signal.SIGINT, _PATIENCE_S), (signal.SIGTERM, _PATIENCE_S / 2), (signal.SIGKILL, 5.0)):
        for item in alive:
            if item.process.poll() is None:
                if number != signal.SIGINT:
                    state.say(f"{item.full_name} does not end: {number.name}")
                item.process.send_signal(number)
                _wait([item], patience_s if number == signal.SIGINT else 0.0)
        _wait(alive, patience_s)
        alive = [item for item in alive if item.process.poll() is None]
        if not alive:
            return


def _wait(items: Sequence[Started], patience_s: float) -> None:
    end = time.monotonic() + patience_s
    for item in items:
        try:
            item.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
