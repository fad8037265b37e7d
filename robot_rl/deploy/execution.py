"""Which action is played while the next chunk is computed: the rules of chunk execution, for one robot, step by step.

The control loop of a robot (decisions.py) and an evaluation (robot_rl/chunk_execution.py) play by this code.
Time counts in action periods. A question at step t is answered at step t + d, and one is open at a time, as on a robot.
The first answer of an episode is waited for: the robot stands, so its chunk is played from the first action on.
    sync      the robot holds until the answer is there, then plays the chunk from its first action.
    naive     the old chunk goes on; the new one begins at its first action when it comes, d steps late.
    async     the old chunk goes on; of the new one the actions whose time has passed are dropped (deploy/chunking.py).
    ensemble  asked as often as possible; all chunks that have an action for a step are averaged with weights
              exp(-decay i), i = 0 the oldest (ACT, arXiv 2304.13705).
    rtc       async, and the policy continues the old chunk (real-time chunking, arXiv 2506.07339).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from robot_rl.arrays import Array, Float32, Float64
from robot_rl.deploy.chunk_weights import continuation_weights, ensembled
from robot_rl.deploy.chunking import ChunkFollower, DueAction
from robot_rl.deploy.execution_counts import ExecutionCounts
from robot_rl.errors import ConfigError
from robot_rl.specs import ActionKind, EnvSpec

FORECAST = 10  # newest measured delays of which the largest is expected


class Execution(str, Enum):
    """See the text of this module."""

    sync = "sync"
    naive = "naive"
    asynchronous = "async"
    ensemble = "ensemble"
    rtc = "rtc"


@dataclass(frozen=True)
class ChunkRule:
    """Numbers of chunk execution.

    Attributes:
        every: steps between two questions; null: the policy's execute, less where the chunk would end before the next one
            comes. ensemble: 1. Answers that take longer delay the next question.
        blend_steps: async and rtc: over so many steps from the hand-over on, actions move from the old chunk to the new one
            (not those of a gripper).
        decay: of ensemble.
        guidance: rtc: largest weight of the pull towards the old chunk.
    """

    every: int | None = None
    blend_steps: int = 0
    decay: float = 0.01
    guidance: float = 5.0


def question_interval(kind: Execution, rule: ChunkRule, *, delay: int, horizon: int, execute: int) -> int:
    """Steps between two questions.

    Args:
        kind, rule: of the execution.
        delay: steps from a question to its answer, 0 or more.
        horizon, execute: Tp, Ta of the policy.

    Raises:
        ConfigError: a number out of range, or a chunk that ends before the next one comes.
    """
    given = rule.every
    if (given is not None and given < 1) or rule.blend_steps < 0 or rule.decay < 0 or rule.guidance <= 0:
        raise ConfigError(
            "chunks", expected="every of 1 or more, blend_steps and decay of 0 or more, guidance above 0", got=str(rule),
            hint="Correct it.",
        )  # fmt: skip
    if rule.blend_steps and kind not in (Execution.asynchronous, Execution.rtc):
        raise ConfigError(
            "chunks.blend_steps",
            expected="execution=async or rtc",
            got=kind.value,
            hint="Only those hand over on time.",
        )
    for name, owner in (("decay", Execution.ensemble), ("guidance", Execution.rtc)):
        if kind is not owner and getattr(rule, name) != getattr(ChunkRule, name):
            raise ConfigError(
                f"chunks.{name}", expected=f"execution={owner.value}", got=kind.value, hint=f"Leave chunks.{name} out."
            )
    if kind is Execution.ensemble:
        interval, most = 1 if given is None else given, horizon - delay
    elif kind is Execution.sync or kind is Execution.naive:
        interval, most = execute if given is None else given, horizon
    else:
        most = horizon - delay
        interval = max(min(execute, most), delay, 1) if given is None else given
    interval = max(interval, delay) if kind is not Execution.sync else interval  # one question at a time
    if not 1 <= interval <= most:
        raise ConfigError(
            f"execution={kind.value}", expected=f"at most {most} steps between two questions: a chunk has {horizon} actions "
            f"and an answer takes {delay} steps", got=str(interval),
            hint="A policy with a longer horizon, a faster one, or a smaller chunks.every.",
        )  # fmt: skip
    return interval


def require_blendable(spec: EnvSpec, kind: Execution, rule: ChunkRule) -> None:
    """Refuse to average actions whose rotations are no vectors: halfway between q and -q, or 3.1 and -3.1 rad, is no pose.

    Raises:
        ConfigError: ensemble or blend_steps with such actions.
    """
    rotation, is_absolute = spec.action_semantics.rotation, spec.action_semantics.kind is ActionKind.absolute
    is_bad = rotation.startswith(("quat", "matrix")) or (is_absolute and rotation.startswith(("euler", "rotvec")))
    if is_bad and (kind is Execution.ensemble or rule.blend_steps):
        raise ConfigError(
            "execution=ensemble" if kind is Execution.ensemble else "chunks.blend_steps",
            expected="actions that may be averaged element by element", got=f"rotation {rotation!r}",
            hint="Use execution=async or rtc without chunks.blend_steps, or a policy with rot6d or with small turns.",
        )  # fmt: skip


@dataclass(frozen=True)
class _Chunk:
    actions: np.ndarray
    start: int
    request: int


class ChunkPlayer:
    """One robot's chunks. A robot: `take` when an answer comes, `asked` where it `wants` to ask, then `due`, in every step.

    A simulation knows when an answer will come: call in every step `collect`, then `ask` if `wants`, then `action`.

    Args:
        kind, rule: of the execution.
        interval: see question_interval.
        horizon: Tp.
        discrete: elements that are not blended.
        usable: how many actions of a chunk may be played while the next one is late, and how many steps an answer may take
            at most; of an ensemble, how old its newest chunk may be. None: as long as the prediction goes, and any.
    """

    def __init__(
        self, kind: Execution, rule: ChunkRule, *, interval: int, horizon: int, discrete: tuple[int, ...] = (),
        usable: int | None = None,
    ) -> None:  # fmt: skip
        self._kind, self._rule, self._interval, self._horizon = kind, rule, interval, horizon
        self._discrete, self._longest_wait = list(discrete), usable
        self._usable = horizon if usable is None else min(usable, horizon)
        # A step is 1.0 s here; sync stops to ask.
        self._follower = ChunkFollower(
            period_s=1.0, execute=interval if kind is Execution.sync else self._usable, late_s=0.0
        )
        self.counts = ExecutionCounts()
        self._requests = 0
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self._follower.forget(next_request=self._requests + 1)
        self._coming: tuple[int, np.ndarray] | None = None  # step of its arrival, and actions
        self._asked_at: int | None = None
        self._current: _Chunk | None = None
        self._before: _Chunk | None = None
        self._taken_at, self._next_question, self._is_first = 0, 0, True
        self._all: list[_Chunk] = []
        self._has_held, self._is_off_plan, self._has_held_since, self._expected = False, False, False, 0

    @property
    def is_asked(self) -> bool:
        """Whether a question is open."""
        return self._asked_at is not None

    def wants(self, step: int) -> bool:
        """Whether to ask the policy at this step."""
        return self._asked_at is None and step >= self._next_question

    def asked(self, step: int, *, expected: int = 0) -> None:
        """The policy was asked at `step`.

        Args:
            step: of the episode.
            expected: steps that the answer may take: the next question comes sooner where the chunk would be over before
                its answer. Not where the rule has an `every`.
        """
        self._asked_at, self._expected, self._has_held_since = step, expected, False
        self._next_question = step + self._interval_for(expected)
        self.counts.questions += 1

    def _interval_for(self, expected: int) -> int:
        if self._kind not in (Execution.asynchronous, Execution.rtc) or self._rule.every is not None:
            return self._interval
        return max(min(self._interval, self._usable - expected), 1)

    def lost(self) -> None:
        """There will be no answer to the open question."""
        self._asked_at, self._next_question = None, 0

    def take(self, step: int, actions: Float32[Array, "Tp A"], *, request: int | None = None) -> bool:
        """Hand over to the answer to the open question, which came at `step`.

        Args:
            step: of the episode.
            actions: of the chunk.
            request: a number for DueAction, larger than any before; None: counted here.

        Returns:
            Whether it is played from now on; False where it came too late.
        """
        asked = step if self._asked_at is None else self._asked_at
        self._asked_at = None
        if self._longest_wait is not None and step - asked >= self._longest_wait:
            return False
        has_waited = self._is_first or self._kind is Execution.sync  # the robot stood still
        if has_waited:
            self._next_question = step + self._interval_for(max(self._expected, step - asked))
        starts_now = has_waited or self._kind is Execution.naive
        self._requests = self._requests + 1 if request is None else request
        chunk, self._is_first = _Chunk(actions, step if starts_now else asked, self._requests), False
        old = None if self._has_held else self._current
        if self._kind is Execution.ensemble:
            self._all = [chunk] if self._has_held else [*self._all, chunk]
        elif not self._follower.take(actions, request=chunk.request, start_s=float(chunk.start), now_s=float(step)):
            return False
        self._before, self._current, self._taken_at, self._has_held = old, chunk, step, False
        self._is_off_plan = self._has_held_since and not has_waited
        return True

    def went(self, *, is_held: bool) -> None:
        """Whether the robot just played what was due or held. Behind a hold it is not where its chunks had it go.

        A chunk that comes then is not averaged with, blended with or continued from those of before; and nothing is continued
        until a chunk is played that was asked for after the hold.
        """
        self._has_held = is_held
        if is_held:
            self._is_off_plan = self._has_held_since = True

    def continuation(self, step: int, *, expected: int) -> tuple[Float32[Array, "Tp A"], Float64[Array, " Tp"]] | None:
        """What a chunk that is asked for at `step` is to continue, with `continuation_weights`; None: nothing is played.

        Args:
            step: of the episode.
            expected: steps that the answer will take.
        """
        if (rest := self.rest(step)) is None:
            return None
        actions, planned = rest
        weights = continuation_weights(committed=min(expected, planned), planned=planned, horizon=len(actions))
        return actions, weights

    def rest(self, step: int) -> tuple[Float32[Array, "Tp A"], int] | None:
        """What is planned from `step` on, its last action repeated, and how many actions of it are planned; None: nothing.

        Of an ensemble that is the average of its chunks, as far as the newest one goes; of a blend, the actions between both.
        """
        # Where the usable actions end just now nothing was held yet: the last of them was played.
        if self._current is None or self._is_off_plan or step - self._current.start > self._usable:
            return None
        left = self._current.actions[step - self._current.start :]
        if not len(left):
            return None
        # Where a blend goes on, what will be played is neither of the two chunks.
        is_average, later = self._kind is Execution.ensemble, list(enumerate(left, start=step))
        left = np.stack([self._averaged(at) if is_average else self._blended(action, at) for at, action in later])
        padding = np.repeat(left[-1:], self._horizon - len(left), axis=0)
        return np.concatenate([left, padding]), len(left)

    def ask(self, step: int, actions: Float32[Array, "Tp A"], *, delay: int, expected: int = 0) -> None:
        """The answer to a question at `step`, which arrives `delay` steps later; at once in the first step of an episode."""
        arrives = step if self._is_first else step + delay
        self.asked(step, expected=max(expected, delay) if self._is_first else expected)
        self._coming = (arrives, actions)
        self.collect(step)

    def collect(self, step: int) -> None:
        """Hand over to the answer that has arrived by `step`, if one has."""
        if self._coming is not None and self._coming[0] <= step:
            (_, actions), self._coming = self._coming, None
            self.take(step, actions)

    def action(self, step: int) -> Float32[Array, " A"] | None:
        """What is played at `step`, counted; None: nothing is due, so hold."""
        due = self.due(step)
        self.count(is_held=due is None)
        self.went(is_held=due is None)
        return None if due is None else due.action

    def count(self, *, is_held: bool) -> None:
        """Another step was played, or held."""
        self.counts.steps += 1
        self.counts.held += is_held

    def due(self, step: int) -> DueAction | None:
        """What is to be played at `step`, of the newest chunk that is in it; None: hold."""
        if self._kind is not Execution.ensemble:
            due = self._follower.due(float(step))
            return None if due is None else DueAction(self._blended(due.action, step), due.request, due.index)
        self._all = [chunk for chunk in self._all if step - chunk.start < len(chunk.actions)]
        if not self._all or step - self._all[-1].start >= self._usable:
            return None
        return DueAction(self._averaged(step), self._all[-1].request, step - self._all[-1].start)

    def _averaged(self, step: int) -> np.ndarray:
        """What the chunks of an ensemble that reach as far as `step` have for it."""
        reaching = [chunk for chunk in self._all if step - chunk.start < len(chunk.actions)]
        out: np.ndarray = ensembled(
            np.stack([chunk.actions[step - chunk.start] for chunk in reaching]), self._rule.decay
        )
        return out

    def _blended(self, new: np.ndarray, step: int) -> np.ndarray:
        old, since = self._before, step - self._taken_at
        if old is None or since >= self._rule.blend_steps or step - old.start >= min(self._usable, len(old.actions)):
            return new
        share = np.float32((since + 1) / (self._rule.blend_steps + 1))
        out: np.ndarray = (1 - share) * old.actions[step - old.start] + share * new
        out[self._discrete] = new[self._discrete]
        return out


def delay_steps(latency_ms: float, control_hz: float) -> int:
    """Whole steps that pass until an answer is there; an answer within a rounding error of a step is in time."""
    return max(0, int(np.ceil(latency_ms * 1e-3 * control_hz - 1e-6)))


def held_action(spec: EnvSpec, last: np.ndarray | None, grippers: tuple[int, ...]) -> np.ndarray:
    """The action that keeps the robot where it is told to be: the last one, or no motion; a gripper keeps its command.

    Args:
        spec: of the actions.
        last: action before; None: there was none.
        grippers: elements that command one.

    Raises:
        ConfigError: a delta whose rotation is not zero where nothing turns.
    """
    said, size = spec.action_semantics, spec.action.size
    if said.kind is ActionKind.absolute and last is not None:
        return last
    if said.kind is not ActionKind.absolute and said.rotation.startswith(("quat", "rot6d", "matrix")):
        raise ConfigError(
            "execution", expected="deltas of which zero is no motion", got=f"rotation {said.rotation!r}",
            hint="Judge this policy without execution=.",
        )  # fmt: skip
    out = np.zeros(size, np.float32)
    if last is not None:
        out[list(grippers)] = last[list(grippers)]
    return out


def describe(kind: Execution, rule: ChunkRule, *, latency_ms: float | None, interval: int) -> dict[str, Any]:
    """JSON types for the protocol of an evaluation."""
    return {
        "kind": kind.value, "latency_ms": "measured" if latency_ms is None else latency_ms, "every": interval,
        "blend_steps": rule.blend_steps,
        **({"decay": rule.decay} if kind is Execution.ensemble else {}),
        **({"guidance": rule.guidance} if kind is Execution.rtc else {}),
    }  # fmt: skip
