"""Recorded actions, played on a robot: through the same control loop, ages and safety layer as a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from robot_rl.arrays import Array, Float32, Int64
from robot_rl.contracts import Robot
from robot_rl.data.same_spec import table_of_semantics
from robot_rl.deploy.black_box import StepRecord
from robot_rl.deploy.control_loop import ControlLoop
from robot_rl.deploy.inference import Answer
from robot_rl.deploy.loop_parts import LoopParts
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.targets import ActionReader
from robot_rl.errors import DataError, DeployError
from robot_rl.specs import EnvSpec
from robot_rl.types import Episode, Observation

_FRESH_S = 10.0


class RecordedPolicy:
    """A PolicyRunner that answers the first question of an episode with all its actions, to be followed by time.

    Args:
        spec: of the data.
        keys: observations that are compared.
        longest: actions of the longest episode.
    """

    def __init__(self, spec: EnvSpec, keys: tuple[str, ...], longest: int) -> None:
        self._info = PolicyInfo(spec, keys, history=1, horizon=longest, execute=longest)
        self._actions = np.zeros((0, spec.action.size), np.float32)
        self._open: int | None = None

    def begin(self, actions: Float32[Array, "T A"]) -> None:
        """The actions of the next episode."""
        self._actions, self._open = actions, None

    def start(self) -> PolicyInfo:
        """What the loop must know."""
        return self._info

    @property
    def is_busy(self) -> bool:
        """Whether a question is open."""
        return self._open is not None

    @property
    def failure(self) -> str:
        """Numbers on a disk do not fail."""
        return ""

    def ask(self, request: int, observation: Observation, *, episode_seed: int, decision: int) -> None:
        """Open a question; what is seen does not matter."""
        self._open = request

    def poll(self, wait_s: float = 0.0) -> Answer | None:
        """All actions."""
        if self._open is None:
            return None
        request, self._open = self._open, None
        return Answer(request, self._actions, 0.0)

    def close(self) -> None:
        """Nothing to end."""


class _Watcher:
    """Keeps the frame that each action answers to, and the one behind the last."""

    def __init__(self, keys: tuple[str, ...], steps: int) -> None:
        self._keys, self._steps = keys, steps
        self.frames: dict[int, dict[str, np.ndarray]] = {}

    def __call__(self, record: StepRecord) -> None:
        step = record.index
        if step < 0:
            if self._steps - 1 not in self.frames:
                return
            step = self._steps
        if step not in self.frames:
            self.frames[step] = {key: np.array(record.reading.frames[key]) for key in self._keys}


class RobotReplay:
    """Plays episodes on one robot; the robot is held and closed at the end. A context manager.

    Args:
        robot: not connected yet.
        spec: of the data.
        longest: actions of the longest episode that will be played.
        start_tolerance: largest difference between the first recorded proprio and what the robot says before it moves.
        parts: watchdog, black box and clock of the loop.

    Raises:
        DataError: the robot reads actions in another way, with both declarations.
        DeployError: as the control loop; the robot has not moved.
    """

    def __init__(
        self, robot: Robot, spec: EnvSpec, *, longest: int, start_tolerance: float, parts: LoopParts | None = None
    ) -> None:
        require_robot_takes(spec, robot)
        self._robot, self._tolerance, self._parts = robot, start_tolerance, parts or LoopParts()
        self.keys = tuple(key for key in spec.observation if key in robot.spec.observation)
        self._spec = replace(spec, observation={key: spec.observation[key] for key in self.keys})
        self._policy = RecordedPolicy(self._spec, self.keys, longest)
        self._watcher = _Watcher(self.keys, longest)
        parts = replace(self._parts, observer=lambda record: self._watcher(record))
        self._loop = ControlLoop(robot, self._policy, ActionReader(self._spec, robot.card), parts=parts)
        self._loop.bring_up()

    def __enter__(self) -> RobotReplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.close()

    def play(
        self, episode: Episode, *, reset: Callable[[], None] | None = None
    ) -> tuple[dict[str, np.ndarray], Int64[Array, " L"]]:
        """Play the actions of one episode at the rate of the data.

        Args:
            episode: whose actions are played.
            reset: brings scene and robot to its start; None: a person did.

        Returns:
            key -> (L, ...), frames of the robot, and the steps that they belong to (what action t answered to; T: behind
            the last one). Steps that the loop had to skip are missing.

        Raises:
            DataError: the robot stands elsewhere.
            DeployError: the robot was stopped.
        """

        def start() -> None:
            if reset is not None:
                reset()
                self._wait_for_readings()
            _require_near(self._robot, episode, self._spec, self._tolerance)

        self._watcher = _Watcher(self.keys, len(episode))
        self._policy.begin(np.asarray(episode.action, np.float32))
        summary = self._loop.run_episode(max_steps=len(episode), reset=start)
        if summary.reasons or summary.is_interrupted:
            raise DeployError(
                f"replay on {self._robot.card.name!r}, step {summary.steps}", expected="all actions played",
                got=f"a stop: {', '.join(summary.to_json()['reasons'])}", hint="The robot is held; nothing was compared.",
            )  # fmt: skip
        steps = sorted(self._watcher.frames)
        frames = {key: np.stack([self._watcher.frames[step][key] for step in steps]) for key in self.keys}
        return frames, np.array(steps, np.int64)

    def _wait_for_readings(self) -> None:
        """Until every stream shows the scene as it is behind the reset."""
        clock = self._parts.clock
        since_s = clock.now()
        while clock.now() < since_s + _FRESH_S:
            if all(stamp_s >= since_s for stamp_s in self._robot.read().stamps.values()):
                return
            clock.sleep_until(clock.now() + 0.005)
        raise DeployError(
            f"robot {self._robot.card.name!r}", expected=f"new readings within {_FRESH_S:g} s of the reset",
            got=f"{dict(self._robot.read().stamps)}", hint="Is its node still running?",
        )  # fmt: skip


def require_robot_takes(spec: EnvSpec, robot: Robot) -> None:
    """Refuse actions that the robot reads in another way.

    Raises:
        DataError: with both declarations.
    """
    if table := table_of_semantics(spec, robot.spec):
        raise DataError(
            f"data of {spec.env_id}", expected=f"actions as robot {robot.card.name!r} (wanted) takes them", got=f"{table}\n",
            hint="Convert the data (`robot-rl data convert`), or use the robot's other mode. Nothing has moved.",
        )  # fmt: skip


def _require_near(robot: Robot, episode: Episode, spec: EnvSpec, tolerance: float) -> None:
    """A replay from elsewhere would jump, or go where nobody went."""
    if "proprio" not in spec.observation:
        return
    here = np.asarray(robot.read().frames["proprio"], np.float64)
    gap = np.abs(here - np.asarray(episode.observation["proprio"][0], np.float64))
    element = int(gap.argmax())
    if not gap.max() <= tolerance:
        raise DataError(
            f"start of the robot, proprio[{element}]", expected=f"within {tolerance:g} of the recorded start",
            got=f"{here[element]:.4g}, recorded {episode.observation['proprio'][0][element]:.4g}",
            hint="Bring the robot to the start of the episode first. Nothing has moved.",
        )  # fmt: skip
