"""A robot and a success signal as a VectorEnv with N = 1: what `robot-rl online` learns on outside a simulator.

The parts are those of `robot-rl deploy` and `collect`: a robot card, a driver (robot, and a scene that resets and judges, where
there is one), a teleoperation device with which a person takes over, and a panel that prompts and hears. The safety layer of
the card stands before every command. StepResult.played holds what was sent behind it, in the numbers of the action; episodes
keep that. Success comes from the scene, from a person's keys, or from a classifier (`robot-rl online success=<run>`).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Bool, Float32, Int64
from robot_rl.deploy.black_box import BlackBoxConfig
from robot_rl.deploy.robot_card import load_robot_card
from robot_rl.deploy.schedule import Clock, ManualClock, MonotonicClock
from robot_rl.deploy.watchdog import WatchdogConfig
from robot_rl.errors import ConfigError, EnvError
from robot_rl.specs import EnvSpec
from robot_rl.teleop.mapping_config import MappingConfig
from robot_rl.teleop.panel import OperatorPanel
from robot_rl.teleop.resetting import ResetConfig, without_time_limit
from robot_rl.types import ActionChunk, Observation, StepResult

from .history import HistoryEnv
from .robot_guard import Guard
from .robot_hand import RobotHand
from .robot_people import People
from .robot_plan import PlayConfig
from .robot_play import RobotPlayer

log = logging.getLogger(__name__)

# Components are built where every stage builds them; plug-ins may not import that layer when they load.
_CONFIG = "robot_rl.runs.config"


class By(str, Enum):
    """Who resets, or judges: the driver's scene, or a person. A person's keys are heard in any case."""

    scene = "scene"
    person = "person"


@dataclass(frozen=True)
class RealRobotConfig:
    """Which robot, and who resets, judges and takes over.

    Attributes:
        robot: a robot card: its name or a YAML file.
        driver: component group as in `robot-rl deploy`: `robot`, `scene` where the robot is none itself, and `watchdog`
            ("package.module:function", see deploy/watchdog.py; empty: none), told `card`, `domain_id` and `watchdog_config`.
        black_box: keep the last seconds of every stop (needs mcap), where the stage says where (`log_to`).
        reward: who says success; `person` as well where a classifier says it.
        resets: `scene`: scripted; `person`: the robot goes home, and a person puts the scene back and asks "start".
        device: component of a TeleopDevice that takes over while its clutch is held, or empty.
        panel: component of an OperatorPanel, or empty; a device that is one needs none.
        mapping: of the device's commands to actions.
        reset: how a reset goes (countdown, home or pose).
        terminate_on_success: whether success ends an episode.
        max_episode_steps: time limit; null: that of the robot's spec.
        release_stops: go on behind a stop as if a person had released it. Only for simulated robots.
        rest_s: longest braking at the end of an episode.
        as_fast_as_possible: time passes only while the robot moves; for drivers that take a clock (sim, mock), never a real robot.
    """

    robot: str = "sim_panda"
    driver: dict[str, Any] = field(default_factory=dict)
    black_box: bool = True
    reward: By = By.scene
    resets: By = By.scene
    device: dict[str, Any] = field(default_factory=dict)
    panel: dict[str, Any] = field(default_factory=dict)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    reset: ResetConfig = field(default_factory=ResetConfig)
    terminate_on_success: bool = True
    max_episode_steps: int | None = None
    release_stops: bool = False
    rest_s: float = 2.0
    as_fast_as_possible: bool = False


@dataclass(frozen=True)
class RobotParts:
    """Parts that are there already, in place of those that the configuration names.

    Attributes:
        robot, scene, device, panel: as in RealRobotConfig.
        clock: of robot and loop.
    """

    robot: Any = None
    scene: Any = None
    device: Any = None
    panel: Any = None
    clock: Clock | None = None


def make_env(
    config: RealRobotConfig,
    *,
    num_envs: int,
    history: int,
    spec: EnvSpec | None = None,
    parts: RobotParts | None = None,
) -> RealRobotEnv:
    """Build the env; the robot is connected at the first reset.

    Args:
        config: see RealRobotConfig.
        num_envs: 1.
        history: To.
        spec: of the policy that plays, for drivers that take one: the robot is told its actions, and shows what it looks at.
            None: what the robot says of itself.
        parts: see RobotParts.

    Raises:
        ConfigError: several envs, no driver, or nobody who resets or judges.
        DeployError: actions that the robot can't be told.
    """
    if num_envs != 1:
        raise ConfigError("num_envs", expected="1", got=str(num_envs), hint="There is one robot.")
    parts = parts or RobotParts()
    clock = parts.clock or (ManualClock() if config.as_fast_as_possible else MonotonicClock())
    robot = parts.robot if parts.robot is not None else _robot(config, clock, spec)
    without_time_limit(robot)  # ours counts
    scene = parts.scene if parts.scene is not None else _scene(config, robot)
    if scene is None and By.scene in (config.reward, config.resets):
        raise ConfigError(
            "real_robot", expected="a driver with a scene, or reward=person and resets=person", got="no scene",
            hint="Nobody says what succeeds, or puts things back: see docs/real_robot_rl.md.",
        )  # fmt: skip
    device = parts.device if parts.device is not None else _part(config.device)
    panel = parts.panel if parts.panel is not None else _part(config.panel)
    panel = device if panel is None and isinstance(device, OperatorPanel) else panel
    if By.person in (config.reward, config.resets) and device is None and panel is None:
        raise ConfigError(
            "real_robot", expected="device= or panel= for a person to say it with", got="neither",
            hint="E.g. teleop@env.device=browser, or teleop@env.device=keyboard.",
        )  # fmt: skip
    play = PlayConfig(
        asks_person=config.resets is By.person, judges=config.reward is By.scene, release_stops=config.release_stops,
        rest_s=config.rest_s, reset=config.reset, is_threaded=not isinstance(clock, ManualClock),
    )  # fmt: skip
    people = People(device, () if panel is None else (panel,))
    player = RobotPlayer(
        robot, scene if By.scene in (config.reward, config.resets) else None, people, config=play, clock=clock,
        guard=_guard(config, robot.card, clock),
    )  # fmt: skip
    env = HistoryEnv(
        player,
        history=history,
        terminate_on_success=config.terminate_on_success,
        max_episode_steps=config.max_episode_steps,
    )
    hand = RobotHand(player, config.mapping) if device is not None else None
    return RealRobotEnv(env, player, hand, keeps_box=config.black_box and play.is_threaded)


class RealRobotEnv:
    """A VectorEnv of one robot; see the text of this module. Made by `make_env`.

    Args:
        env: on the player.
        player: of the robot.
        intervener: who may take over, or None; see fitting/on_policy.Intervener.
        keeps_box: whether `log_to` does anything.
    """

    def __init__(
        self, env: HistoryEnv, player: RobotPlayer, intervener: RobotHand | None, *, keeps_box: bool = False
    ) -> None:
        self._keeps_box = keeps_box
        self._env, self._player, self.intervener = env, player, intervener
        self.spec, self.num_envs, self.device = env.spec, env.num_envs, env.device

    @property
    def episode_seeds(self) -> Int64[Array, " 1"]:
        """See VectorEnv."""
        return self._env.episode_seeds

    @property
    def success_at_reset(self) -> Bool[Array, " 1"]:
        """See VectorEnv."""
        return self._env.success_at_reset

    def reset(self, seeds: Iterable[int]) -> Observation:
        """See VectorEnv; waits for people where they are asked.

        Raises:
            EnvError, DeployError: no seeds, or robot or scene do not come to the start.
        """
        return self._env.reset(seeds)

    def step(self, chunk: ActionChunk) -> StepResult:
        """See VectorEnv; takes as long as the actions take. Behind the last episode the robot is at rest and held.

        Raises:
            EnvError, DeployError: a chunk that does not fit, or a robot that nobody may release.
        """
        self._player.played = []
        result = self._env.step(chunk)
        if (self._env.episode_seeds < 0).all():
            self._player.rest()
        return replace(result, played=self._played(chunk.execute))

    def log_to(self, folder: Path) -> None:
        """Where black boxes go (`black_box`); before the first reset. Time that only a loop moves leaves none."""
        if self._keeps_box:
            self._player.guard.black_box = BlackBoxConfig(str(folder), at_episode_end=False)

    def judged_by(self, detector: Any) -> RealRobotEnv:
        """An env on the same robot whose reward and success come from a detector; a person's "failure" and "stop" stay."""
        return RealRobotEnv(self._env.judged_by(detector), self._player, self.intervener, keeps_box=self._keeps_box)

    def measures(self) -> dict[str, float]:
        """Numbers of the robot so far, for metrics: shares of steps, lateness of the loop, stops."""
        counts, hand = self._player.counts, self.intervener
        steps = max(counts.steps, 1)
        return {
            "bent_share": counts.bent / steps, "stale_share": counts.stale / steps, "stops": float(counts.stops),
            "late_decisions_share": counts.late_decisions / steps,
            "late_p99_ms": 1e3 * self._player.late.percentile_s(99.0),
            "takeover": 0.0 if hand is None else hand.steps / steps,
            "takeovers": 0.0 if hand is None else float(hand.count),
        }  # fmt: skip

    def protocol(self) -> dict[str, Any]:
        """See VectorEnv; `real_time` says whether wall time was the robot's."""
        return self._env.protocol()

    def close(self) -> None:
        """Bring the robot to rest, hold it, and end every connection. Also twice."""
        self._env.close()

    def _played(self, execute: int) -> Float32[Array, "1 Ta A"]:
        out = np.zeros((1, execute, self.spec.action.size), np.float32)
        for column, action in enumerate(self._player.played):
            out[0, column] = action
        return torch.from_numpy(out)


def _guard(config: RealRobotConfig, card: Any, clock: Clock) -> Guard:
    """The watchdog that the driver names; the black box comes with `log_to`."""
    stop, is_real_time = str(config.driver.get("watchdog") or ""), not isinstance(clock, ManualClock)
    if not stop:
        if is_real_time:
            log.warning("no watchdog: when this process dies, nobody stops robot %s", card.name)
        return Guard()
    if not is_real_time:
        raise EnvError(
            "env.driver.watchdog", expected="a robot in real time", got="as_fast_as_possible",
            hint="Leave one of them out: a watchdog judges silence by the machine's clock.",
        )  # fmt: skip
    told = {"card": config.robot, "domain_id": config.driver.get("robot", {}).get("domain_id")}
    told |= config.driver.get("watchdog_config") or {}
    return Guard(WatchdogConfig(stop, told, card.thresholds.heartbeat_s))


def _robot(config: RealRobotConfig, clock: Clock, spec: EnvSpec | None) -> Any:
    node = config.driver.get("robot")
    if not isinstance(node, Mapping):
        raise ConfigError(
            "env.driver.robot", expected="a component", got=repr(node), hint="Use driver@env.driver=sim, or =ros2."
        )
    takes = importlib.import_module(_CONFIG).takes
    if isinstance(clock, ManualClock) and not takes(node, "clock"):
        raise EnvError(
            "as_fast_as_possible", expected="a driver that takes a clock", got=str(node.get("_target_")),
            hint="A real robot's time passes by itself: leave it out.",
        )  # fmt: skip
    runtime = {name: part for name, part in (("clock", clock), ("spec", spec)) if takes(node, name)}
    return _build(node, card=load_robot_card(config.robot), **runtime)


def _scene(config: RealRobotConfig, robot: Any) -> Any:
    """The driver's scene, a simulated robot itself, or None; not put up when nobody asks for it."""
    if By.scene not in (config.reward, config.resets):
        return None
    if config.driver.get("scene"):
        return without_time_limit(_build(config.driver["scene"], card=robot.card))
    return robot if hasattr(robot, "reset") and hasattr(robot, "episode") else None


def _part(node: Mapping[str, Any]) -> Any:
    if not node:
        return None
    part = _build(node)
    if hasattr(part, "connect"):
        part.connect()
    return part


def _build(node: Mapping[str, Any], **runtime: Any) -> Any:
    return importlib.import_module(_CONFIG).build(node, **runtime)
