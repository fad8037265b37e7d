"""Run an exported policy on a robot: N episodes through the control loop, with every limit of the robot's card.

Inputs: an exported policy (an .onnx file, or the run directory of `export`), a robot card, and a driver: `ros2` (a robot or
a simulated one behind topics) or `sim` (a simulated robot in this process).
Outputs: episodes.jsonl (one line an episode), summary.json, and the black boxes of stops, in the run directory.
The policy runs in a process of its own; limits, ages and the reasons of stops are those of the card. A stop that a person
must release ends the run with exit code 3; a simulated robot may go on (`release_stops=true`). Policy and robot that do not
belong together are refused with both declarations before anything moves.
Latency is that of each answer of the policy: from the capture of the observation until its first command was sent.

Metrics (metrics.jsonl, step = episodes played):
    deploy/success           share of the episodes so far
    deploy/latency_p50_ms    of the last episode
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robot_rl.algorithms.statistics import proportion
from robot_rl.contracts import Robot
from robot_rl.data.same_spec import require_same_actions
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import PolicySource, load_policy
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.onnx_policy import exported_file
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.station import Station, StationConfig
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import ConfigError, DeployError, PolicyError
from robot_rl.runs.config import build
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress
from robot_rl.specs import EnvSpec

log = logging.getLogger(__name__)

CAN_RESUME = False
_FRESH_S = 10.0


class StoppedError(DeployError):
    """The robot was stopped for a reason that a person must release."""

    exit_code = 3


@runtime_checkable
class Scene(Protocol):
    """What starts an episode and says whether it succeeded: a simulated robot, or a node that has both as services."""

    def reset(self, seed: int) -> None:
        """Bring scene and robot to the start that belongs to a seed."""
        ...

    def episode(self) -> Any:
        """The episode so far: seed, steps, success, is_over."""
        ...

    def close(self) -> None:
        """End it; also twice."""
        ...


@dataclass(frozen=True)
class DeployConfig:
    """Configuration of `robot-rl deploy`.

    Attributes:
        policy: an .onnx file of `export`, or its run directory.
        robot: a robot card: its name or a YAML file.
        driver: component group: `robot` (component: who talks to the robot), `scene` (component: who resets and judges;
            empty: the robot itself), `watchdog` ("package.module:function", see deploy/watchdog.py; empty: none).
        num_episodes: how many seeds, from first_seed on.
        first_seed: of the episodes.
        max_steps: time limit in actions; null: that of the policy's spec.
        settle_s: wait behind a reset for readings of before that are still under way.
        delta_gain: above 1 where readings come late: 1 + half of their age over the arm's time constant (docs/ros2.md).
        release_stops: go on after a stop, as a person would by hand. Only for simulated robots.
        black_box: keep the last seconds of every stop (needs mcap).
        runtime: what runs the policy: onnx, openvino, tensorrt, or auto, which measures first (docs/infer.md).
        threads: of onnxruntime or OpenVINO.
        seed, run_root, resume: as in every stage.
    """

    policy: str = ""
    robot: str = "sim_panda"
    driver: dict[str, Any] = field(default_factory=dict)
    num_episodes: int = 10
    first_seed: int = 900_000
    max_steps: int | None = None
    settle_s: float = 0.2
    delta_gain: float = 1.0
    release_stops: bool = False
    black_box: bool = True
    runtime: Runtime = Runtime.onnx
    threads: int = 1
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = DeployConfig


def run(config: DeployConfig, run: RunDirectory) -> dict[str, Any]:
    """Play the episodes and write the summary."""
    if config.num_episodes < 1:
        raise ConfigError("num_episodes", expected="1 or more", got=str(config.num_episodes), hint="Correct it.")
    began, card = time.monotonic(), load_robot_card(config.robot)
    source = PolicySource(onnx=str(policy_file(config.policy)), runtime=config.runtime, threads=config.threads)
    spec = load_policy(source).spec
    rows: list[dict[str, Any]] = []
    steps = _Steps()
    with ExitStack() as undo:
        robot: Robot = build(_part(config.driver, "robot"), card=card, spec=spec)
        undo.callback(robot.close)
        require_same(spec, robot.spec, card, where=source.onnx)
        scene = scene_of(config.driver, robot, card)
        undo.callback(scene.close)
        station = Station(
            robot,
            spec,
            _station_config(config, source, run),
            observer=lambda record: _watch(record, steps, scene, station.loop),
        )
        undo.callback(station.close)
        undo.enter_context(
            _summary_at_the_end(rows, steps, run, {"policy": source.onnx, "robot": card.name, "began": began})
        )
        metrics = undo.enter_context(MetricsWriter(run.path / "metrics.jsonl"))
        bar = undo.enter_context(Progress("deploy", total=config.num_episodes))
        for number in range(config.num_episodes):
            row, summary = _play(station.loop, robot, scene, steps, config.first_seed + number, config)
            rows.append(row)
            with open(run.path / "episodes.jsonl", "a", encoding="utf-8") as table:
                table.write(json.dumps(row) + "\n")
            wins = sum(entry["success"] for entry in rows)
            values = {"deploy/success": wins / len(rows)}
            values |= {} if row["latency_p50_ms"] is None else {"deploy/latency_p50_ms": row["latency_p50_ms"]}
            metrics.write(len(rows), values)
            bar.advance(1, f"{wins}/{len(rows)} succeeded")
            if summary.is_interrupted:
                raise KeyboardInterrupt
            _after_stop(station.loop, summary, config)
    out: dict[str, Any] = run.read_json("summary.json")
    return out


@contextmanager
def _summary_at_the_end(
    rows: list[dict[str, Any]], steps: _Steps, run: RunDirectory, facts: dict[str, Any]
) -> Iterator[None]:
    """Write summary.json of the episodes there are, also after a stop or Ctrl-C."""
    began = facts.pop("began")
    try:
        yield
    finally:
        if rows:
            facts = facts | {"first_seed": rows[0]["seed"], "seconds": time.monotonic() - began}
            run.write_json("summary.json", summarize(rows, steps) | facts)


def policy_file(policy: str) -> Path:
    """The .onnx file of a policy.

    Raises:
        PolicyError: there is none.
    """
    found = exported_file(policy)
    if found is not None and found.is_file():
        return found
    raise PolicyError(
        f"policy={policy}", expected="an exported policy: an .onnx file or a run directory of `export`",
        got="a directory without export/policy.onnx" if policy and Path(policy).is_dir() else "none",
        hint=f"Run `robot-rl export policy={policy or '<run>'}` and give its run directory.",
    )  # fmt: skip


def require_same(policy: EnvSpec, robot: EnvSpec, card: RobotCard, *, where: str) -> None:
    """Refuse a policy that was made for another robot or another meaning of actions.

    Raises:
        PolicyError: with both declarations.
    """
    if policy.robot != card.robot:
        raise PolicyError(
            where, expected=f"a policy for robot {card.robot!r} (card {card.name!r})", got=f"one for {policy.robot!r}",
            hint="Choose the card of the policy's robot.",
        )  # fmt: skip
    require_same_actions(
        policy.action_semantics, robot.action_semantics, where=where, taker=card.name,
        hint="Give the driver the environment the policy was trained with, or another card.",
    )  # fmt: skip


def scene_of(driver: dict[str, Any], robot: Any, card: RobotCard) -> Scene:
    """Who resets and judges.

    Raises:
        ConfigError: nobody does.
    """
    if driver.get("scene"):
        scene: Scene = build(driver["scene"], card=card)
        return scene
    if isinstance(robot, Scene):
        return robot
    raise ConfigError(
        "driver.scene", expected="who resets the scene and judges success", got="none",
        hint="Use driver=sim, or driver=ros2 with a node that has a reset service.",
    )  # fmt: skip


def _part(driver: dict[str, Any], name: str) -> dict[str, Any]:
    part = driver.get(name)
    if not isinstance(part, dict):
        raise ConfigError(
            f"driver.{name}", expected="a component", got=repr(part), hint="Use driver=ros2 or driver=sim."
        )
    return part


def _station_config(config: DeployConfig, source: PolicySource, run: RunDirectory) -> StationConfig:
    folder = run.path / "black_box" if config.black_box else None
    return StationConfig(
        source, log_folder="" if folder is None else str(folder), watchdog=str(config.driver.get("watchdog") or ""),
        delta_gain=config.delta_gain,
        watchdog_config={"card": config.robot, "domain_id": config.driver["robot"].get("domain_id")},
    )  # fmt: skip


class _Steps:
    """What all steps of all episodes measured, seconds."""

    def __init__(self) -> None:
        self.latency_s: list[float] = []
        self.late_s: list[float] = []
        self.age_s: list[float] = []
        self.skipped = 0

    def add(self, record: StepRecord) -> None:
        self.late_s.append(record.late_s)
        self.age_s.append(record.age_s)
        self.skipped += record.skipped
        if not math.isnan(record.latency_s):
            self.latency_s.append(record.latency_s)


def _watch(record: StepRecord, steps: _Steps, scene: Scene, loop: ControlLoop) -> None:
    steps.add(record)
    if scene.episode().success:
        loop.mark_success()


def _play(
    loop: ControlLoop, robot: Robot, scene: Scene, steps: _Steps, seed: int, config: DeployConfig
) -> tuple[dict[str, Any], EpisodeSummary]:
    """One episode, and its line of the table."""
    began, first = time.monotonic(), len(steps.latency_s)
    summary = loop.run_episode(
        seed=seed, max_steps=config.max_steps, reset=lambda: _reset(scene, robot, seed, config.settle_s)
    )
    success = _outcome(scene, config)
    counts = summary.counts
    row = {
        "seed": seed, "success": success, "ended_by": summary.ended_by, "steps": summary.steps,
        "reasons": summary.to_json()["reasons"], "clamps": counts["clamps"], "stop_steps": counts["stop_steps"],
        "requests": counts["requests"], "dropped": counts["dropped"],
        "latency_p50_ms": _percentile(steps.latency_s[first:], 50.0), "wall_s": time.monotonic() - began,
        "black_box": list(summary.black_box),
    }  # fmt: skip
    return row, summary


def _reset(scene: Scene, robot: Robot, seed: int, settle_s: float) -> None:
    """Start the episode, and wait until every stream shows it."""
    scene.reset(seed)
    since_s = time.monotonic() + settle_s
    deadline_s = since_s + _FRESH_S
    while time.monotonic() < deadline_s:
        stamps = robot.read().stamps.values()
        if time.monotonic() >= since_s and all(stamp_s >= since_s - settle_s for stamp_s in stamps):
            return
        time.sleep(0.005)
    raise DeployError(
        f"reset to seed {seed}", expected=f"new readings within {_FRESH_S:g} s", got=str(dict(robot.read().stamps)),
        hint="Is the robot's node still running?",
    )  # fmt: skip


def _outcome(scene: Scene, config: DeployConfig) -> bool:
    """The scene's own verdict, a moment later: its last signal is under way when the loop ends."""
    deadline_s = time.monotonic() + config.settle_s
    while time.monotonic() < deadline_s and not scene.episode().is_over:
        time.sleep(0.005)
    return bool(scene.episode().success)


def _after_stop(loop: ControlLoop, summary: EpisodeSummary, config: DeployConfig) -> None:
    if not summary.reasons:
        return
    if not config.release_stops:
        raise StoppedError(
            "robot", expected="an episode without a stop", got=f"stopped: {summary.to_json()['reasons']}",
            hint=f"The robot holds. Look at it, and at {', '.join(summary.black_box) or 'the log'}; then start again.",
        )  # fmt: skip
    log.warning("released by release_stops=true after %s", summary.to_json()["reasons"])
    loop.release()


def _percentile(seconds: Sequence[float], percent: float) -> float | None:
    """Milliseconds; None without any."""
    return 1e3 * float(np.percentile(seconds, percent)) if len(seconds) else None


def summarize(rows: Sequence[dict[str, Any]], steps: _Steps) -> dict[str, Any]:
    """Success with its interval, latency, jitter, and what was bent and stopped, of at least one episode."""

    def spread(seconds: Sequence[float]) -> dict[str, float | None]:
        return {f"p{percent:g}": _percentile(seconds, percent) for percent in (50.0, 90.0, 99.0, 100.0)}

    def total(name: str) -> dict[str, int]:
        counter: Counter[str] = Counter()
        for row in rows:
            counter.update(row[name])
        return dict(counter)

    return {
        "success": proportion(sum(row["success"] for row in rows), len(rows)).to_json(),
        "episodes": len(rows),
        "ended_by": dict(Counter(row["ended_by"] for row in rows)),
        "latency_ms": spread(steps.latency_s),
        "observation_age_ms": spread(steps.age_s),
        "jitter_ms": spread(steps.late_s),
        "slots": len(steps.late_s),
        "slots_skipped": steps.skipped,
        "clamps": total("clamps"),
        "stops": dict(Counter(reason for row in rows for reason in row["reasons"])),
        "answers_dropped": sum(row["dropped"] for row in rows),
        "load_average_1min": os.getloadavg()[0],
    }
