"""ROS 2 launch files: `ros2 up FILE.launch.py name:=value` runs one without `ros2 launch`; `ros2 files` says where ours are.

On a robot with ROS 2 from apt: `colcon build --base-paths <the folder that `ros2 files` prints>` and `ros2 launch`.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robot_rl.errors import ConfigError

DISCOVERY = "ROS_AUTOMATIC_DISCOVERY_RANGE"
# Launch files and their runner know drivers, so they are a plug-in.
RUNNER = "robot_rl.hardware.launch_runner"
WORDS = "robot_rl.hardware.launch_words"


def main(words: Sequence[str]) -> int:
    """Run a launch file, or list ours.

    Args:
        words: arguments behind `robot-rl ros2`.

    Returns:
        0; 1 when a process of the launch file failed.

    Raises:
        ConfigError: an unknown file or argument.
        DeployError: rclpy is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="robot-rl ros2", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run a launch file")
    up.add_argument("file", help="a .launch.py file, or the name of one of ours")
    up.add_argument("arguments", nargs="*", metavar="name:=value", help="launch arguments")
    up.add_argument("--show-args", action="store_true", help="list the file's arguments and stop")
    up.add_argument("--network", action="store_true", help="find nodes on other machines too (else only on this one)")
    commands.add_parser("files", help="folder of our ament package and its launch files")
    options = parser.parse_args(list(words))
    folder: Path = importlib.import_module(WORDS).package_share("robot_rl_bridge")
    if options.command == "files":
        print(folder)
        print("\n".join(f"  {file.name}" for file in sorted((folder / "launch").glob("*.launch.py"))))
        return 0
    ours = folder / "launch" / options.file
    file = ours if not Path(options.file).exists() and ours.is_file() else Path(options.file)
    runner = importlib.import_module(RUNNER)
    if options.show_args:
        _show(runner, file)
        return 0
    if not options.network:
        os.environ.setdefault(DISCOVERY, "LOCALHOST")
    print(f"{DISCOVERY}={os.environ.get(DISCOVERY, 'not set: the whole network')}", flush=True)
    code: int = runner.run_launch_file(file, _pairs(options.arguments), say=_say)
    return code


def _say(line: str) -> None:
    print(f"[launch] {line}", flush=True)


def _show(runner: Any, file: Path) -> None:
    for entry in runner.declared(runner.read_launch_file(file).entities):
        default = "required" if entry.default_value is None else f"default {entry.default_value!r}"
        print(f"  {entry.name:14} {default}; {entry.description}")


def _pairs(words: Sequence[str]) -> dict[str, str]:
    out = {}
    for word in words:
        name, separator, value = word.partition(":=")
        if not separator or not name:
            raise ConfigError(
                "launch argument", expected="name:=value", got=repr(word), hint="As `ros2 launch` takes them."
            )
        out[name] = value
    return out
