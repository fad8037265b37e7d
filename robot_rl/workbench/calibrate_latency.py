"""Measure how late a robot follows its commands, and how late a camera's stamps are; one file for `robot-rl collect`.

    robot-rl calibrate latency --output delays.json robot=so101 driver=ros2                the arm moves
    robot-rl calibrate latency --output delays.json camera=uvc camera.name=wrist camera.device=...
    robot-rl collect ... session.recording.delays=delays.json

The robot makes small steps back and forth, through the safety layer of its card; a camera looks at a page that blinks. What is
measured is put into the file; what is there of other cameras stays. Ctrl-C: the robot comes to rest and holds, nothing is
written. See docs/cameras.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robot_rl.data.delays import CameraDelays, Delays, RobotDelays, load_delays
from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.errors import ConfigError, DeployError
from robot_rl.runs.directory import write_json
from robot_rl.workbench.calibrate_latency_camera import BlinkPlan, measure_camera
from robot_rl.workbench.calibrate_latency_page import BlinkPage
from robot_rl.workbench.calibrate_latency_robot import StepPlan, delta_gain_for, measure_robot

_BLINKS = "blinking page: middle between the last frame before and the first after each change of light"


@dataclass(frozen=True)
class LatencyConfig:
    """Configuration words of `robot-rl calibrate latency`.

    Attributes:
        robot: a robot card: its name or a YAML file.
        driver: component group: who talks to the robot; null: no robot is measured.
        env: of driver=sim; null: what the driver says.
        camera: component of a camera; null: none is measured.
    """

    robot: str = ""
    driver: dict[str, Any] | None = None
    env: dict[str, Any] | None = field(default=None)
    camera: dict[str, Any] | None = None


def main(words: Sequence[str]) -> int:
    """Measure, print and store.

    Raises:
        ConfigError: wrong words.
        DataError: --output is there and no file of this kind.
        RobotRlError: nothing follows from what was measured; nothing is stored.
        KeyboardInterrupt: Ctrl-C, after the robot holds.
    """
    from robot_rl.runs.config import load_config

    asked = _parser().parse_intermixed_args(list(words))
    config = load_config(LatencyConfig, asked.words, name="calibrate_latency", config_dir=asked.config_dir)
    if (config.driver is None and config.camera is None) or (config.driver is not None) != bool(config.robot):
        raise ConfigError(
            "calibrate latency", expected="robot=<card> driver=<driver>, or camera=<camera>, or all three",
            got=" ".join(asked.words) or "none", hint="E.g. robot=so101 driver=ros2; see --help.",
        )  # fmt: skip
    found = load_delays(asked.output) if asked.output.exists() else Delays()
    _require_writable(asked.output)
    if config.driver is not None:
        robot = _measure_robot(config, asked)
        print(_robot_text(robot))
        found = replace(found, robot=robot)
    if config.camera is not None:
        name, camera = _measure_camera(config.camera, asked)
        print(_camera_text(name, camera))
        found = replace(found, cameras={**found.cameras, name: camera})
    write_json(asked.output, found.to_json())
    print(f"wrote {asked.output}; store it with episodes: robot-rl collect ... session.recording.delays={asked.output}")
    return 0


def _measure_robot(config: LatencyConfig, asked: argparse.Namespace) -> RobotDelays:
    from robot_rl.stages.collect_teleop import robot_of

    robot = robot_of(replace(config, env=config.env or {}))
    plan = StepPlan(asked.part, asked.step, asked.repeats, asked.hold_s)
    with ExitStack() as undo:
        undo.callback(robot.close)
        robot.connect()
        return measure_robot(
            robot, plan, clock=MonotonicClock(), confirm=lambda text: _confirm(text, is_sure=asked.yes),
            say=lambda text: print(text, flush=True),
        )  # fmt: skip


def _measure_camera(node: dict[str, Any], asked: argparse.Namespace) -> tuple[str, CameraDelays]:
    from robot_rl.runs.config import build

    plan = BlinkPlan(asked.blinks, asked.region)
    with ExitStack() as undo:
        camera = build(node)
        page = BlinkPage(port=asked.port, wait_s=asked.wait_s)
        undo.callback(page.close)
        undo.callback(camera.close)
        camera.connect()
        print(f"open {page.address} on this machine, full screen, where camera {camera.name!r} sees it", flush=True)
        page.wait_open()
        return camera.name, measure_camera(camera.read, page, plan, clock=MonotonicClock(), method=_BLINKS)


def _confirm(text: str, *, is_sure: bool) -> None:
    """Ask a person before anything moves.

    Raises:
        DeployError: the answer is not yes, or there is nobody to ask.
    """
    print(f"{text}. Keep clear of it, with the e-stop in reach. Ctrl-C: it comes to rest and holds.", flush=True)
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise DeployError(
            "calibrate latency",
            expected="a person who says yes",
            got="no terminal",
            hint="Give --yes when all is clear.",
        )
    if input("Type yes to begin: ").strip().lower() != "yes":
        raise DeployError("calibrate latency", expected="yes", got="another answer", hint="Nothing has moved.")


def _robot_text(found: RobotDelays) -> str:
    gain, unbounded = delta_gain_for(found)
    bound = f", bounded from {unbounded:.2f}" if unbounded > gain else ""
    lines = [
        f"robot {found.card}: {found.steps} steps of {found.moved}; spread is the interquartile range",
        f"dead time of commands  {_ms(found.command_delay_s)}, spread {_ms(found.command_delay_spread_s)}",
        f"time constant          {_ms(found.time_constant_s)}, spread {_ms(found.time_constant_spread_s)}",
        f"age of readings        {_ms(found.reading_age_s)}, one every {_ms(found.resolution_s)}",
        f"delta_gain={gain:.2f}{bound}: 1 + age / (2 T), for policies whose actions are deltas from what is measured",
    ]
    if found.time_constant_s < found.resolution_s:
        lines.append(
            "the time constant is below the time between two readings: take it as an upper bound, not a figure"
        )
    return "\n".join(lines)


def _camera_text(name: str, found: CameraDelays) -> str:
    return (
        f"camera {name}: {found.blinks} blinks, one frame every {_ms(found.frame_period_s)}\n"
        f"stamps are late by     {_ms(found.camera_delay_s)}, spread {_ms(found.camera_delay_spread_s)} (with the lag of the screen)"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _require_writable(path: Path) -> None:
    """Fail before anything moves, not after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError("--output", expected="a place that can be written", got=str(error), hint="") from error


def _region(text: str) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(word) for word in text.split(","))
    return x0, y0, x1, y1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="robot-rl calibrate latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "words", nargs="*", help="robot=<card> driver=<choice>, and/or camera=<choice> camera.key=value"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file; what it has of other cameras stays")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own YAML files")
    robot = parser.add_argument_group("robot")
    robot.add_argument("--yes", action="store_true", help="do not ask before the arm moves")
    robot.add_argument("--part", default="", help="joint, or x, y, z of a pose (default: the last joint, or z)")
    robot.add_argument("--step", type=float, help="rad or m (default: 0.05 rad or 0.02 m)")
    robot.add_argument("--repeats", type=int, default=10, help="there and back (%(default)s)")
    robot.add_argument("--hold-s", type=float, default=1.0, help="time of each step (%(default)s)")
    camera = parser.add_argument_group("camera")
    camera.add_argument("--blinks", type=int, default=40, help="changes of light (%(default)s)")
    camera.add_argument(
        "--region", type=_region, default=(0.0, 0.0, 1.0, 1.0), help="part of the picture, x0,y0,x1,y1 in shares of it"
    )
    camera.add_argument("--port", type=int, default=0, help="of the page on loopback (default: a free one)")
    camera.add_argument("--wait-s", type=float, default=120.0, help="for a browser to open the page (%(default)s)")
    return parser
