"""Run an exported policy on a robot: N episodes through the control loop, with every limit of the robot's card.

Inputs: an exported policy (an .onnx file, or the run directory of `export`) or one behind a WebSocket, a robot card, and a
driver: `ros2` (a robot or a simulated one behind topics) or `sim` (a simulated robot in this process).
Outputs: episodes.jsonl (one line an episode), summary.json, and the black boxes of stops, in the run directory.
The policy runs in a process of its own; limits, ages and the reasons of stops are those of the card. A stop that a person
must release ends the run with exit code 3; a simulated robot may go on (`release_stops=true`). Policy and robot that do not
belong together are refused with both declarations before anything moves.
Latency is that of each answer of the policy: from the capture of the observation until its first command was sent. Smoothness is
that of the actions played, as in `evaluate`: action_change_rms, action_jerk_rms, action_step_max, gripper_flips.

Metrics (metrics.jsonl, step = episodes played):
    deploy/success           share of the episodes so far
    deploy/latency_p50_ms    of the last episode
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from robot_rl.contracts import Robot
from robot_rl.data.same_spec import require_same_actions
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.client import ClientTimes
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.loop_parts import LoopConfig
from robot_rl.deploy.loop_policy import ROBOT_TIMES, source_of
from robot_rl.deploy.loop_summary import EpisodeSummary
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.robot_card import RobotCard, load_robot_card
from robot_rl.deploy.station import Station, StationConfig
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import ConfigError, DeployError, PolicyError
from robot_rl.runs.config import build, config_to_json
from robot_rl.runs.directory import RunDirectory
from robot_rl.runs.metrics import MetricsWriter
from robot_rl.runs.progress import Progress
from robot_rl.specs import EnvSpec
from robot_rl.stages.deploy_summary import Steps, row_of, summarize

log = logging.getLogger(__name__)

CAN_RESUME = False
TRACK = "none"  # TensorBoard's writer would load torch into the process of the control loop
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
        policy: an .onnx file of `export`, its run directory, or ws://host:port of `robot-rl serve`; with execution=rtc a run or
            checkpoint directory of a diffusion policy (torch, in the policy's process alone).
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
        start_s: how long the policy may take to load and warm up; null: 60 s, and 900 s with runtime=tensorrt or auto, which
            may have to build an engine first.
        execution: what is played while the policy computes (docs/chunks.md): async, sync, ensemble or rtc.
        chunks: every, blend_steps, decay and guidance of execution, as in `evaluate`.
        server: how long to wait for a policy=ws://..., seconds: connect_s, answer_s, ping_every_s, ping_timeout_s, and give_up_s:
            the robot holds where its chunk ends, and is stopped when the server was away for so long.
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
    start_s: float | None = None
    execution: Execution = Execution.asynchronous
    chunks: ChunkRule = field(default_factory=ChunkRule)
    server: ClientTimes = field(default_factory=lambda: ROBOT_TIMES)
    seed: int = 0
    run_root: str = "runs"
    resume: str | None = None


CONFIG = DeployConfig


def run(config: DeployConfig, run: RunDirectory) -> dict[str, Any]:
    """Play the episodes and write the summary."""
    if config.num_episodes < 1:
        raise ConfigError("num_episodes", expected="1 or more", got=str(config.num_episodes), hint="Correct it.")
    began, card = time.monotonic(), load_robot_card(config.robot)
    loop = LoopConfig(execution=config.execution, chunks=config.chunks)
    source = source_of(config.policy, loop, runtime=config.runtime, threads=config.threads, server=config.server)
    name = source.onnx or config.policy
    rows: list[dict[str, Any]] = []
    steps = Steps()
    with ExitStack() as undo:
        policy = ProcessPolicy(source, start_s=config.start_s)
        undo.callback(policy.close)
        spec = policy.start().spec
        robot: Robot = build(_part(config.driver, "robot"), card=card, spec=spec)
        undo.callback(robot.close)
        require_same(spec, robot.spec, card, where=name)
        scene = scene_of(config.driver, robot, card)
        undo.callback(scene.close)
        station = Station(
            robot,
            spec,
            _station_config(config, source, loop, run),
            observer=lambda record: _watch(record, steps, scene, station.loop),
            policy=policy,
        )
        undo.callback(station.close)
        undo.enter_context(
            _summary_at_the_end(rows, steps, run, {"policy": name, "robot": card.name, "began": began} | _said(config))
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
    rows: list[dict[str, Any]], steps: Steps, run: RunDirectory, facts: dict[str, Any]
) -> Iterator[None]:
    """Write summary.json of the episodes there are, also after a stop or Ctrl-C."""
    began = facts.pop("began")

    def write() -> None:
        if rows:
            told = facts | {"first_seed": rows[0]["seed"], "seconds": time.monotonic() - began}
            run.write_json("summary.json", summarize(rows, steps) | told)

    try:
        yield
    except BaseException:
        try:
            write()
        except Exception:  # why the run ended, and its exit code, count for more
            log.exception("summary.json was not written")
        raise
    write()


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


def _said(config: DeployConfig) -> dict[str, Any]:
    """How chunks were played, for the summary."""
    return {"execution": {"kind": config.execution.value} | config_to_json(config.chunks)}


def _station_config(config: DeployConfig, source: PolicySource, loop: LoopConfig, run: RunDirectory) -> StationConfig:
    folder = run.path / "black_box" if config.black_box else None
    return StationConfig(
        source, log_folder="" if folder is None else str(folder), watchdog=str(config.driver.get("watchdog") or ""),
        delta_gain=config.delta_gain, loop=loop,
        watchdog_config={"card": config.robot, "domain_id": config.driver["robot"].get("domain_id")},
    )  # fmt: skip


def _watch(record: StepRecord, steps: Steps, scene: Scene, loop: ControlLoop) -> None:
    steps.add(record)
    if scene.episode().success:
        loop.mark_success()


def _play(
    loop: ControlLoop, robot: Robot, scene: Scene, steps: Steps, seed: int, config: DeployConfig
) -> tuple[dict[str, Any], EpisodeSummary]:
    """One episode, and its line of the table."""
    began, first = time.monotonic(), len(steps.latency_s)
    summary = loop.run_episode(
        seed=seed, max_steps=config.max_steps, reset=lambda: _reset(scene, robot, seed, config.settle_s)
    )
    success = _outcome(scene, config)
    wall_s = time.monotonic() - began
    return row_of(summary, steps.latency_s[first:], seed=seed, success=success, wall_s=wall_s), summary


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
