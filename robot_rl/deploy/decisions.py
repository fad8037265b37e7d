"""When the policy is asked, and which action is due: the part of a control loop that knows of chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from robot_rl.deploy.chunking import ChunkFollower, DueAction, ObservationHistory
from robot_rl.deploy.inference import Answer, PolicyRunner
from robot_rl.deploy.policy_words import PolicyInfo
from robot_rl.deploy.safety import Reason
from robot_rl.deploy.schedule import Clock, Slot, TimeHistogram
from robot_rl.errors import RobotRlError
from robot_rl.types import Reading


@dataclass(frozen=True)
class Timing:
    """Times of questions and answers.

    Attributes:
        period_s: between two commands.
        every: commands for one action.
        ask_every: actions between two questions.
        wait_s: how long a slot waits for the answer to its own observation.
        late_s: how long an answer may be late while the rest of the old chunk is followed.
    """

    period_s: float
    every: int
    ask_every: int
    wait_s: float
    late_s: float


class Decisions:
    """One policy's questions and answers.

    Args:
        policy: started.
        info: what it said of itself.
        timing: see Timing.
        streams: whose capture counts for the latency.
        clock: of the loop.
        latch: called with a reason and a text for people when the robot must stop.
    """

    def __init__(
        self, policy: PolicyRunner, info: PolicyInfo, timing: Timing, *, streams: tuple[str, ...], clock: Clock,
        latch: Callable[[Reason, str], None],
    ) -> None:  # fmt: skip
        self._policy, self._timing, self._streams, self._clock, self._latch = policy, timing, streams, clock, latch
        self._follower = ChunkFollower(
            period_s=timing.every * timing.period_s, execute=info.execute, late_s=timing.late_s
        )
        self._history = ObservationHistory(info.spec, keys=info.keys, history=info.history)
        self._requests = 0
        self.begin(seed=0)

    def begin(self, *, seed: int) -> None:
        """A new episode: nothing is due, and what is still being answered will be dropped."""
        self._seed, self._newest_index, self._next_question, self._answered = seed, -1, 0, -1
        self._wanted_s, self._asked_s = math.inf, math.nan
        self._asked_capture_s, self._followed_capture_s = math.nan, math.nan
        self._follower.forget(next_request=self._requests + 1)
        self._history.forget()
        self.requests = self.answers = self.dropped = 0
        self.compute = TimeHistogram()

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
        self._collect(self._policy.poll(), slot)
        if not may_ask or self._policy.failure or not (is_new or self._history.is_filled):
            return
        self._wanted_s = min(self._wanted_s, slot.due_s)
        if is_new:
            try:
                self._history.push(reading)
            except RobotRlError as error:
                self._latch(Reason.measured_not_finite, f"{error.where}: expected {error.expected}, got {error.got}")
                return
        if self._policy.is_busy or index < self._next_question or not self._history.is_filled:
            return
        self._requests += 1
        self._asked_s, self._next_question = slot.due_s, index + self._timing.ask_every
        self._asked_capture_s = min((reading.stamps[name] for name in self._streams), default=math.nan)
        self._policy.ask(self._requests, self._history.observation(), episode_seed=self._seed, decision=self.requests)
        self.requests += 1
        self._collect(self._policy.poll(slot.due_s + self._timing.wait_s - self._clock.now()), slot)

    def due(self, slot: Slot) -> DueAction | None:
        """The action of this slot."""
        return self._follower.due(slot.due_s)

    def is_waiting(self, slot: Slot) -> bool:
        """Whether the first answer of the episode may still come in time.

        Counted from when it could first be asked for: a policy that is busy with an old question for ever is late too.
        """
        return self.answers == 0 and slot.due_s - self._wanted_s <= self._timing.late_s

    def latency_s(self, due: DueAction | None) -> float:
        """From the capture that an action answers to until now; once for every answer, else NaN."""
        if due is None or due.request == self._answered:
            return math.nan
        self._answered = due.request
        return self._clock.now() - self._followed_capture_s

    def _collect(self, answer: Answer | None, slot: Slot) -> None:
        if answer is None:
            return
        if answer.actions is None:
            reason = Reason.wrong_size if answer.is_wrong_shape else Reason.policy_lost
            self._latch(reason, f"the policy failed: {answer.error}")
            return
        if answer.request == self._requests and self.requests:
            self.answers += 1
            self.compute.add(answer.compute_s)
        if self._follower.take(answer.actions, request=answer.request, start_s=self._asked_s, now_s=slot.due_s):
            self._followed_capture_s = self._asked_capture_s
        else:
            self.dropped += 1
