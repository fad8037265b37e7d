"""When the policy is asked, and which action is due: the part of a control loop that knows of chunks."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robot_rl.data.element_names import gripper_elements
from robot_rl.deploy.chunking import DueAction, ObservationHistory
from robot_rl.deploy.execution import (
    FORECAST,
    ChunkPlayer,
    ChunkRule,
    Execution,
    describe,
    question_interval,
    require_blendable,
)
from robot_rl.deploy.inference import Answer, ContinuingRunner, PolicyRunner, WarmRunner
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Clock, Slot, TimeHistogram
from robot_rl.deploy.smoothness import Smoothness
from robot_rl.errors import ConfigError, DeployError, RobotRlError
from robot_rl.specs import ActionKind, DeltaReference
from robot_rl.types import Reading

log = logging.getLogger("robot_rl.control_loop")

_ROUNDING = 1e-6  # a threshold of whole periods is that many


@dataclass(frozen=True)
class Timing:
    """Times of questions and answers.

    Attributes:
        period_s: between two commands.
        every: commands for one action.
        wait_s: how long a slot waits for the answer to its own observation.
        late_s: how long an answer may be late while the rest of the old chunk is followed.
        execution, chunks: what is played meanwhile (execution.py); `naive` is not for robots.
    """

    period_s: float
    every: int
    wait_s: float
    late_s: float
    execution: Execution = Execution.asynchronous
    chunks: ChunkRule = field(default_factory=ChunkRule)


class Decisions:
    """One policy's questions and answers. Questions and hand-overs are those of whole action periods, as in an evaluation.

    Args:
        policy: started.
        info: what it said of itself.
        timing: see Timing.
        streams: whose capture counts for the latency.
        clock: of the loop.
        latch: called with a reason and a text for people when the robot must stop.

    Raises:
        ConfigError: an execution that makes no sense for this policy or for a robot.
        DeployError: rtc with a policy that can't continue a chunk, or a warm start that nobody can pass on.
    """

    def __init__(
        self, policy: PolicyRunner, info: PolicyInfo, timing: Timing, *, streams: tuple[str, ...], clock: Clock,
        latch: Callable[[Reason, str], None],
    ) -> None:  # fmt: skip
        self._policy, self._timing, self._streams, self._clock, self._latch = policy, timing, streams, clock, latch
        self._player, self._interval = _player_of(info, timing)
        self._continuing = (
            policy if timing.execution is Execution.rtc and isinstance(policy, ContinuingRunner) else None
        )
        if timing.execution is Execution.rtc and not (info.can_continue and self._continuing is not None):
            raise DeployError(
                "execution=rtc", expected="a policy that can continue a chunk: a run or checkpoint directory of a diffusion policy",
                got="one that can't", hint="Exported files, heads and servers have no gradients: use execution=async.",
            )  # fmt: skip
        self._warm = _warm_runner(policy, info)
        self._history = ObservationHistory(info.spec, keys=info.keys, history=info.history)
        self._spec, self._requests, self._is_away = info.spec, 0, False
        said = info.spec.action_semantics
        from_measured = said.kind is ActionKind.delta and said.delta_reference is DeltaReference.measured
        self._may_change = said.kind is ActionKind.absolute or from_measured
        self._recent: deque[int] = deque([0], maxlen=FORECAST)  # steps that the newest answers took
        self.begin(seed=0)

    def begin(self, *, seed: int) -> None:
        """A new episode: nothing is due, and what is still being answered will be dropped."""
        self._seed, self._newest_index, self._counted, self._pushed = seed, -1, -1, -1
        self._has_followed = False  # whether an answer of this episode was handed over to
        self._open, self._answered, self._asked_index = 0, -1, 0  # request and its action period; 0: none is open
        self._waiting: np.ndarray | None = None  # an answer that is handed over to at the next action period
        self._wanted_s, self._asked_s = math.inf, math.nan
        self._asked_capture_s, self._followed_capture_s = math.nan, math.nan
        self._player.begin()
        self._player.counts = type(self._player.counts)()
        self._history.forget()
        self.requests = self.answers = self.dropped = self.unanswered = self.warm_starts = 0
        self.compute, self.delays, self.smoothness = TimeHistogram(), list[int](), Smoothness(self._spec)

    @property
    def steps(self) -> int:
        """Action periods begun."""
        return self._newest_index + 1

    def update(self, slot: Slot, reading: Reading, *, may_ask: bool) -> None:
        """Take the frame of a new action period, collect what was answered, and ask when it is time.

        After asking it waits a little, so that the first action of the answer is in time.

        Args:
            slot: of the loop.
            reading: of this slot.
            may_ask: whether the reading is fresh and the robot may move.
        """
        index = slot.index // self._timing.every
        is_new, self._newest_index = index != self._newest_index, index
        self._collect(self._policy.poll())
        # Within a period an action stays, but for the answer to the question of this very period; a goal that counts from what
        # was sent last would move on twice in it.
        if is_new or self._player.due(index) is None or (self._may_change and index == self._asked_index):
            self._hand_over(index)
        # One frame a period: its first slot's, or where that was stale and nothing is played that could change in it, a later one's.
        is_frame_due = is_new or (index != self._pushed and self._player.due(index) is None)
        if not may_ask or not is_frame_due or self._policy.failure:
            return
        self._pushed = index
        self._wanted_s = min(self._wanted_s, slot.due_s)
        try:
            self._history.push(reading)
        except RobotRlError as error:
            self._latch(Reason.measured_not_finite, f"{error.where}: expected {error.expected}, got {error.got}")
            return
        if self._policy.is_busy or self._waiting is not None or not self._player.wants(index):
            return
        self._ask(slot, index, reading)
        self._collect(self._policy.poll(slot.due_s + self._timing.wait_s - self._clock.now()))
        self._hand_over(index)

    def _ask(self, slot: Slot, index: int, reading: Reading) -> None:
        expected = max(self._recent)
        plan = None if self._continuing is None else self._player.continuation(index, expected=expected)
        if self._continuing is not None and plan is not None:
            self._continuing.continue_from(*plan)
        rest = None if self._warm is None else self._player.rest(index)
        if self._warm is not None and rest is not None:
            self._warm.start_from(rest[0])
            self.warm_starts += 1
        self._player.asked(index, expected=expected)
        self._requests += 1
        self._open, self._asked_s, self._asked_index = self._requests, slot.due_s, index
        self._asked_capture_s = min((reading.stamps[name] for name in self._streams), default=math.nan)
        self._policy.ask(self._requests, self._history.observation(), episode_seed=self._seed, decision=self.requests)
        self.requests += 1

    def due(self, slot: Slot, *, is_stale: bool = False) -> DueAction | None:
        """The action of this slot; None where the robot holds, as it does on a stale reading."""
        due = None if is_stale else self._player.due(self._newest_index)
        self._player.went(is_held=due is None)
        if self._newest_index != self._counted:
            self._counted = self._newest_index
            self._player.count(is_held=due is None)
            self.smoothness.add(None if due is None else due.action)
        return due

    def overruled(self) -> None:
        """Something else than the due action was played: as behind a hold, the next chunk neither blends nor starts warm."""
        self._player.went(is_held=True)

    def is_waiting(self, slot: Slot) -> bool:
        """Whether what is waited for may still come in time: the first answer of the episode, or where it stands to ask.

        Counted from when it could first be asked for: a policy that is busy with an old question for ever is late too.
        """
        is_stop = self._timing.execution is Execution.sync and self._player.is_asked
        since_s = self._wanted_s if self.answers == 0 else self._asked_s if is_stop else -math.inf
        return slot.due_s - since_s <= self._timing.late_s

    def to_json(self) -> dict[str, Any]:
        """Counts of the episode, chunk execution and smoothness as in an evaluation; JSON types."""
        told = describe(self._timing.execution, self._timing.chunks, latency_ms=None, interval=self._interval)
        execution = self._player.counts.to_json(self.delays)
        names = ("requests", "answers", "dropped", "unanswered", *(() if self._warm is None else ("warm_starts",)))
        return {name: getattr(self, name) for name in names} | {
            "execution": told, "chunk_execution": execution, "smoothness": self.smoothness.to_json()
        }  # fmt: skip

    def latency_s(self, due: DueAction | None) -> float:
        """From the capture that an action answers to until now; once for every answer, else NaN."""
        if due is None or due.request == self._answered:
            return math.nan
        self._answered = due.request
        return self._clock.now() - self._followed_capture_s

    def _collect(self, answer: Answer | None) -> None:
        """Keep an answer for the hand-over, or see why there is none."""
        if answer is None:
            return
        is_open = answer.request == self._open
        if answer.is_away:
            if not self._is_away:
                log.warning("no answer; the robot holds where its chunk ends, and asks again: %s", answer.error)
            self._is_away = True
            if is_open:
                self._open, self.unanswered = 0, self.unanswered + 1
                self._player.lost()
        elif answer.actions is None:
            reason = Reason.wrong_size if answer.is_wrong_shape else Reason.policy_lost
            self._latch(reason, f"the policy failed: {answer.error}")
        elif is_open:
            self.answers += 1
            self.compute.add(answer.compute_s)
            self._open, self._waiting, self._waiting_request = 0, answer.actions, answer.request
            if self._is_away:
                log.warning("the policy answers again")
            self._is_away = False
        else:
            self.dropped += 1

    def _hand_over(self, index: int) -> None:
        """To the answer that is there, if one is."""
        actions, self._waiting = self._waiting, None
        if actions is None:
            return
        if not self._player.take(index, actions, request=self._waiting_request):
            self.dropped += 1
            return
        self._followed_capture_s = self._asked_capture_s
        self._recent.append(index - self._asked_index)
        if self._has_followed:  # as in an evaluation the first one, for which the robot stood, is no delay
            self.delays.append(index - self._asked_index)
        self._has_followed = True


def _warm_runner(policy: PolicyRunner, info: PolicyInfo) -> WarmRunner | None:
    if not info.starts_warm:
        return None
    if not isinstance(policy, WarmRunner):
        raise DeployError(
            "policy", expected="a runner that passes on what is being played", got=type(policy).__name__,
            hint="This policy starts from it (rti.onnx); give it start_from, or deploy its policy.onnx.",
        )  # fmt: skip
    return policy


def _player_of(info: PolicyInfo, timing: Timing) -> tuple[ChunkPlayer, int]:
    """The rules of execution for this policy, and actions between two questions.

    Raises:
        ConfigError: see Decisions.
    """
    kind, rule = timing.execution, timing.chunks
    if kind is Execution.naive:
        raise ConfigError(
            "execution=naive", expected="sync, async, ensemble or rtc on a robot", got="naive",
            hint="It plays actions whose time has passed; it is there for comparison in `evaluate`.",
        )  # fmt: skip
    require_blendable(info.spec, kind, rule)
    interval = question_interval(kind, rule, delay=0, horizon=info.horizon, execute=info.execute)
    late = math.floor(timing.late_s / (timing.every * timing.period_s) + _ROUNDING)
    player = ChunkPlayer(
        kind, rule, interval=interval, horizon=info.horizon, discrete=gripper_elements(info.spec.action),
        usable=max(info.execute, interval) + late,
    )  # fmt: skip
    return player, interval
