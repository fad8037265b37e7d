"""Collect episodes that people drive: any robot, any device, one dataset. Chosen by `collect teleop=...`.

Outputs beside the dataset: events.jsonl (every transition with its monotonic stamp), episodes.jsonl (one line a saved
episode) and summary.json in the run directory. An episode is durable when "saved" is shown; what was recorded and not saved
is found again by the next session with the same dataset.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from robot_rl.contracts import Robot
from robot_rl.data.delays import KEY, load_delays_for
from robot_rl.data.store import EpisodeStore
from robot_rl.deploy.inference import ProcessPolicy
from robot_rl.deploy.loop_policy import policy_file
from robot_rl.deploy.policy_source import PolicySource
from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.schedule import MonotonicClock
from robot_rl.errors import ConfigError
from robot_rl.runs.config import build, build_for
from robot_rl.runs.directory import RunDirectory
from robot_rl.specs import EnvSpec
from robot_rl.teleop.clutch import Clutch
from robot_rl.teleop.episode_machine import Transition
from robot_rl.teleop.mapping import ActionMapping, require_same_joints
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.teleop.panel import OperatorPanel
from robot_rl.teleop.pilots import OperatorPilot, Pilot
from robot_rl.teleop.recording import Recorder
from robot_rl.teleop.resetting import ResetConfig, without_time_limit
from robot_rl.teleop.rows import layout_for
from robot_rl.teleop.session import Session, SessionConfig, SessionParts
from robot_rl.teleop.shared_pilot import SharedPilot
from robot_rl.teleop.terminal_panel import TerminalPanel
from robot_rl.teleop.writing import RecordingConfig

log = logging.getLogger(__name__)


class SharedMode(str, Enum):
    """Who drives when there are a policy and a person."""

    intervene = "intervene"


@dataclass(frozen=True)
class TeleopConfig:
    """How a session of `collect teleop=...` runs.

    Attributes:
        operator: who drives; stored with every episode.
        auto_start, auto_save, end_on_success, time_limit_s, camera_hz, view_hz: see session.SessionConfig.
        hand_over_s: with mode=intervene, see shared_pilot.SharedPilot.
        mapping: see mapping_config.MappingConfig.
        recording: see recording.RecordingConfig.
        reset: see resetting.ResetConfig.
    """

    operator: str = ""
    auto_start: bool = False
    auto_save: bool = False
    end_on_success: bool = True
    time_limit_s: float | None = None
    camera_hz: float | None = None
    view_hz: float = 15.0
    hand_over_s: float = 0.2
    mapping: MappingConfig = field(default_factory=MappingConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    reset: ResetConfig = field(default_factory=ResetConfig)


def run_teleop(config: Any, run: RunDirectory) -> dict[str, Any]:
    """Fill the dataset up to `num_episodes` by hand and return what became of it.

    Args:
        config: a collect.CollectConfig with `teleop`.
        run: where tables go.

    Raises:
        RobotRlError: robot, device or dataset do not come up or do not fit; nothing has moved.
        KeyboardInterrupt: Ctrl-C, after the robot holds and everything is written.
    """
    if bool(config.policy) != (config.mode is SharedMode.intervene):
        raise ConfigError(
            "collect", expected="with teleop neither policy nor mode, or policy=<run of export> and mode=intervene",
            got=f"policy={config.policy!r}, mode={config.mode}", hint="A policy that plays alone wants no teleop.",
        )  # fmt: skip
    began = time.monotonic()
    with ExitStack() as undo:
        policy = _policy(config, undo)
        robot = robot_of(config, spec=None if policy is None else policy.start().spec)
        undo.callback(robot.close)
        # What a robot sends (cameras, a state) is known once it was heard, and the dataset is made for that.
        robot.connect()
        scene = _scene(config, robot)
        if scene is not None and scene is not robot:
            undo.callback(scene.close)
        delays = _delays(config.session.recording.delays, robot)
        device = build(config.teleop)
        undo.callback(device.close)
        require_same_joints(device, robot.card, config.session.mapping)
        panel: OperatorPanel = device if isinstance(device, OperatorPanel) else TerminalPanel()
        undo.callback(panel.close)
        store = undo.enter_context(_store(config, robot, device.name))
        if hasattr(device, "show_dataset"):
            device.show_dataset(str(store.path))
        facts = {
            "collector": "intervene" if config.policy else "teleop", "policy": config.policy, "device": device.name,
            "operator": config.session.operator, "robot": robot.card.name,
            **delays,
        }  # fmt: skip
        recorder = Recorder(store, layout_for(robot.spec, robot.card), config.session.recording, facts=facts)
        # An edit of saved episodes puts another store in its place.
        undo.callback(lambda: recorder.store.close())
        undo.callback(recorder.close)
        table = undo.enter_context(open(run.path / "events.jsonl", "a", encoding="utf-8"))

        def on_transition(transition: Transition) -> None:
            table.write(json.dumps(transition.to_json()) + "\n")
            table.flush()

        parts = SessionParts((panel,), scene=scene, facts=_facts_of(config, robot, panel, undo), observer=on_transition)
        pilot = _pilot(config, robot, policy)
        session = Session(robot, device, pilot, recorder, config=_session_config(config), parts=parts)
        counts = session.run()
        summary = _written(config, run, session, counts) | {"seconds": time.monotonic() - began}
        run.write_json("summary.json", summary)
    if session.is_interrupted:
        log.warning("stopped by the user: %d episodes are safe in %s", counts["stored"], config.dataset)
        raise KeyboardInterrupt
    return summary


def _written(config: Any, run: RunDirectory, session: Session, counts: dict[str, Any]) -> dict[str, Any]:
    """The table of saved episodes, and the summary but for its time."""
    effects = session.effects
    (run.path / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in effects.list.of_session))
    summary = counts | {"dataset": config.dataset, "content_hash": session.recorder.store.content_hash()}
    summary |= {"autonomous_successes": effects.policy_success} if config.policy else {}
    return summary | {"takeover": effects.takeover, "loop": session.schedule.jitter.to_json()}


def robot_of(config: Any, *, spec: EnvSpec | None = None) -> Robot:
    """The robot that `robot`, `driver` and `env` name; not connected.

    Args:
        config: a collect.CollectConfig.
        spec: of a policy that shall drive it: a robot that takes a spec is told its actions, and shows what it looks at. None:
            its own.

    Raises:
        RobotRlError: one of them is wrong.
    """
    part = config.driver.get("robot")
    if not isinstance(part, Mapping):
        raise ConfigError("driver.robot", expected="a component", got=repr(part), hint="Use driver=sim or driver=ros2.")
    card, part = load_robot_card(config.robot), dict(part)
    if "env" in part and "options" in part:
        # A robot that is a simulated scene: that of `env`, with what the driver says of it.
        part["options"] = {**config.env, **part["options"]}
    robot: Robot = without_time_limit(build_for(part, spec, card=card))
    return robot


def _store(config: Any, robot: Robot, device: str) -> EpisodeStore:
    metadata = {"collector": "teleop", "robot": robot.card.name, "device": device}
    if "env" in config.driver["robot"]:
        metadata["env"] = config.env  # only where the robot is that scene
    store = EpisodeStore.open_or_create(config.dataset, robot.spec, metadata=metadata, images=config.images)
    there = len(store)
    log.info("%s: have %d, will record %d", config.dataset, there, max(config.num_episodes - there, 0))
    return store


def _delays(file: str, robot: Robot) -> dict[str, Any]:
    """What the metadata of each episode say of delays: those of a file, if they are of this robot and its cameras."""
    if not file:
        return {}
    cameras = tuple(key.removeprefix("image/") for key in robot.spec.observation if key.startswith("image/"))
    return {KEY: load_delays_for(Path(file), card=robot.card.name, cameras=cameras).to_json()}


def _scene(config: Any, robot: Any) -> Any:
    """Who resets and judges: the driver's scene, a simulated robot itself, or people (None)."""
    if config.driver.get("scene"):
        return without_time_limit(build(config.driver["scene"], card=robot.card))
    return robot if hasattr(robot, "reset") and hasattr(robot, "episode") else None


def _facts_of(config: Any, robot: Any, panel: Any, undo: ExitStack) -> Any:
    """What a simulated robot shows beside its reading, where it does, and a picture of it where the panel has viewers."""
    shown = getattr(robot, "shown", None)
    if not config.driver.get("view"):
        return shown
    if shown is None:
        raise ConfigError(
            "driver.view", expected="a robot that says where everything is (shown), as a simulated one", got=type(robot).__name__,
            hint="driver.view=null: the drawn view stays.",
        )  # fmt: skip
    view = build(config.driver["view"], robot=robot)
    undo.callback(view.close)
    return lambda reading: shown(reading) | view.shown(time.monotonic(), is_watched=getattr(panel, "viewers", 0) > 0)


def _policy(config: Any, undo: ExitStack) -> ProcessPolicy | None:
    """The policy that a person corrects, in a process of its own; None: a person alone."""
    if not config.policy:
        return None
    policy = ProcessPolicy(PolicySource(onnx=str(policy_file(config.policy))))
    undo.callback(policy.close)
    return policy


def _pilot(config: Any, robot: Robot, policy: ProcessPolicy | None) -> Pilot:
    limits, spec, card = robot.card.thresholds, robot.spec, robot.card
    clutch = Clutch(limits.operator_release_s, limits.operator_fault_s)
    mapping = ActionMapping(spec, card, config.session.mapping)
    if policy is None:
        return OperatorPilot(mapping, clutch)
    hand_over_s = config.session.hand_over_s
    return SharedPilot(mapping, clutch, policy, spec=spec, card=card, clock=MonotonicClock(), hand_over_s=hand_over_s)


def _session_config(config: Any) -> SessionConfig:
    plain = config.session
    return SessionConfig(
        total=config.num_episodes, first_seed=config.first_seed, keep_failures=config.keep.value == "all",
        auto_start=plain.auto_start, auto_save=plain.auto_save, end_on_success=plain.end_on_success,
        time_limit_s=plain.time_limit_s, camera_hz=plain.camera_hz, view_hz=plain.view_hz, reset=plain.reset,
    )  # fmt: skip
