"""A policy beside the control loop: in a process of its own on a robot, or in the same thread for tests.

Both answer one request at a time and number their answers. A process can't hold up the loop: nothing here waits longer
than it is told to, a dead process is noticed, and a late answer still has its number, so that the loop can drop it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from robot_rl.arrays import Array, Float32, Float64
from robot_rl.deploy.child_process import Child, SharedArrays
from robot_rl.deploy.onnx_policy import TENSORRT_PROVIDER
from robot_rl.deploy.policy_source import PolicySource, decide, info_of
from robot_rl.deploy.policy_words import (
    ANSWER,
    AWAY,
    FINE,
    WRONG_SHAPE,
    PolicyInfo,
    from_hello,
    layout_of,
    outcome_of,
    read_reply,
)
from robot_rl.deploy.schedule import Clock
from robot_rl.deploy.tensorrt_policy import Runtime
from robot_rl.errors import DeployError
from robot_rl.types import Observation

# Request, episode seed, decision, whether there is a plan to continue or to start from.
REQUEST = struct.Struct("<QqqB")
WARM_UP_CALLS = 3
# TensorRT builds an engine where it has none, which takes minutes; it is kept only when it is done.
START_S, ENGINE_START_S = 60.0, 900.0


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        request: its number.
        actions: float32 (Tp, A), or None when the policy failed.
        compute_s: time in the policy.
        error: what it said; "" when it did not fail.
        is_wrong_shape: whether it failed by giving actions of another shape than it says.
        is_away: whether there was no answer in time, and the next request may get one.
    """

    request: int
    actions: Float32[Array, "Tp A"] | None
    compute_s: float
    error: str = ""
    is_wrong_shape: bool = False
    is_away: bool = False


@runtime_checkable
class PolicyRunner(Protocol):
    """A policy that a loop can ask without waiting."""

    def start(self) -> PolicyInfo:
        """Load and warm up; returns when the first request will be answered as fast as any.

        Raises:
            DeployError: it can't be loaded, or is not ready in time.
        """
        ...

    @property
    def is_busy(self) -> bool:
        """Whether a request is open; there may be one."""
        ...

    @property
    def failure(self) -> str:
        """Why there will never be another answer; "" while there may be."""
        ...

    def ask(self, request: int, observation: Observation, *, episode_seed: int, decision: int) -> None:
        """Open a request; only when not busy.

        Args:
            request: its number; larger than any before.
            observation: one env.
            episode_seed, decision: for the noise, see deploy/noise.py.
        """
        ...

    def poll(self, wait_s: float = 0.0) -> Answer | None:
        """The answer to the open request, waiting for it at most `wait_s`."""
        ...

    def close(self) -> None:
        """End it; also twice, also before `start`."""
        ...


@runtime_checkable
class ContinuingRunner(PolicyRunner, Protocol):
    """One whose policy may continue the chunk that is being played; PolicyInfo says whether it does."""

    def continue_from(self, actions: Float32[Array, "Tp A"], weights: Float64[Array, " Tp"]) -> None:
        """Before `ask`: what the answer is pulled to, for one request; see chunk_weights.continuation_weights."""
        ...


@runtime_checkable
class WarmRunner(PolicyRunner, Protocol):
    """One whose policy starts from the rest of what is being played; PolicyInfo says whether it does (RTI)."""

    def start_from(self, rest: Float32[Array, "Tp A"]) -> None:
        """Before `ask`: what is planned from that step on, for one request. A request without starts from nothing."""
        ...


class SameThreadPolicy:
    """A policy that computes when asked and answers after a stated time: exact in tests, no use on a robot.

    Args:
        policy: see PolicySource.target.
        clock: of the loop.
        latency_s: number of a request -> time until it is answered.
    """

    def __init__(self, policy: Any, *, clock: Clock, latency_s: Callable[[int], float] = lambda request: 0.0) -> None:
        self._policy, self._clock, self._latency_s = policy, clock, latency_s
        self._open: tuple[float, Answer] | None = None
        self._plan: dict[str, Array] = {}  # for `decide`
        self.failure = ""

    def start(self) -> PolicyInfo:
        """See PolicyRunner."""
        return info_of(self._policy)

    @property
    def is_busy(self) -> bool:
        """See PolicyRunner."""
        return self._open is not None

    def continue_from(self, actions: Float32[Array, "Tp A"], weights: Float64[Array, " Tp"]) -> None:
        """See ContinuingRunner."""
        self._plan = {"plan": actions, "weights": weights}

    def start_from(self, rest: Float32[Array, "Tp A"]) -> None:
        """See WarmRunner."""
        self._plan = {"plan": rest}

    def ask(self, request: int, observation: Observation, *, episode_seed: int, decision: int) -> None:
        """See PolicyRunner."""
        began = time.perf_counter()
        plan, self._plan = self._plan, {}
        try:
            actions = decide(self._policy, observation, episode_seed=episode_seed, decision=decision, **plan)
            answer = Answer(request, actions, time.perf_counter() - began)
        except Exception as error:  # a policy may raise anything; the loop must live
            text, outcome = f"{type(error).__name__}: {error}", outcome_of(error)
            answer = Answer(request, None, time.perf_counter() - began, text, outcome == WRONG_SHAPE, outcome == AWAY)
        self._open = (self._clock.now() + self._latency_s(request), answer)

    def poll(self, wait_s: float = 0.0) -> Answer | None:
        """See PolicyRunner."""
        if self._open is None:
            return None
        ready_s, answer = self._open
        self._clock.sleep_until(min(ready_s, self._clock.now() + wait_s))
        if ready_s > self._clock.now():
            return None
        self._open = None
        return answer

    def close(self) -> None:
        """See PolicyRunner."""
        self._open = None


class ProcessPolicy:
    """A policy in a process of its own: observations and actions in shared memory, requests and answers by number.

    Args:
        source: see PolicySource.
        start_s: how long it may take to load and warm up, above 0; None: START_S, or ENGINE_START_S where an engine may be built.
        warm_up_calls: until it is ready.

    Raises:
        DeployError: start_s is not above 0.
    """

    def __init__(
        self, source: PolicySource, *, start_s: float | None = None, warm_up_calls: int = WARM_UP_CALLS
    ) -> None:  # fmt: skip
        if start_s is not None and not start_s > 0:
            raise DeployError("start_s", expected="above 0", got=f"{start_s:g}", hint="Leave it out for the default.")
        self._source, self._warm_up_calls = source, warm_up_calls
        self._start_s = _start_limit_s(source) if start_s is None else start_s
        self._child: Child | None = None
        self._arrays: SharedArrays | None = None
        self._open: int | None = None
        self._has_plan = False
        self._info: PolicyInfo | None = None
        self._failure = ""
        self.warm_up_s: tuple[float, ...] = ()
        self.fifo = ""

    def start(self) -> PolicyInfo:
        """See PolicyRunner; at once where it runs already."""
        if self._info is not None and not self.failure:
            return self._info
        self.close()
        self._failure, deadline_s = "", time.monotonic() + self._start_s
        source = {**vars(self._source), "config": dict(self._source.config)}
        self._child = Child("robot_rl.deploy.policy_process", {"source": source, "warm_up_calls": self._warm_up_calls})
        try:
            info = from_hello(self._reply(deadline_s, "to load"))
            self._arrays = SharedArrays(layout_of(info))
            self._child.send(b"map", fds=[self._arrays.fd])
            self._arrays.close_fd()
            ready = self._reply(deadline_s, "to warm up")
        except BaseException:
            self.close()
            raise
        self.warm_up_s, self.fifo = tuple(ready["warm_up_s"]), str(ready["fifo"])
        self._info = info
        return info

    @property
    def pid(self) -> int:
        """Of the process; 0 before `start`."""
        return 0 if self._child is None else self._child.pid

    @property
    def is_busy(self) -> bool:
        """See PolicyRunner."""
        return self._open is not None

    @property
    def failure(self) -> str:
        """See PolicyRunner."""
        if self._child is None:
            return "the policy was not started"
        code = self._child.exit_code
        if not self._failure and code is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._failure = f"process {self._child.pid} of the policy {how}"
        return self._failure

    def continue_from(self, actions: Float32[Array, "Tp A"], weights: Float64[Array, " Tp"]) -> None:
        """See ContinuingRunner."""
        assert self._arrays is not None
        self._arrays["plan"][:], self._arrays["weights"][:] = actions, weights
        self._has_plan = True

    def start_from(self, rest: Float32[Array, "Tp A"]) -> None:
        """See WarmRunner."""
        assert self._arrays is not None
        self._arrays["plan"][:] = rest
        self._has_plan = True

    def ask(self, request: int, observation: Observation, *, episode_seed: int, decision: int) -> None:
        """See PolicyRunner."""
        if self._child is None or self._arrays is None or self._open is not None:
            raise DeployError("policy", expected="a started policy without an open request", got="none", hint="A bug.")
        for key, array in observation.arrays().items():
            if array.size:
                self._arrays[f"observation/{key}"][:] = array
        self._open, has_plan, self._has_plan = request, self._has_plan, False
        if not self._child.send(REQUEST.pack(request, episode_seed, decision, has_plan)) and not self.failure:
            self._failure = "the process of the policy takes no requests"

    def poll(self, wait_s: float = 0.0) -> Answer | None:
        """See PolicyRunner."""
        if self._child is None or self._arrays is None or self._open is None:
            return None
        message = self._child.receive(wait_s)
        if message is None or len(message) < ANSWER.size:
            return None
        self._open = None
        request, compute_s, outcome = ANSWER.unpack_from(message)
        if outcome != FINE:
            text = message[ANSWER.size :].decode(errors="replace") or "no text"
            return Answer(request, None, compute_s, text, outcome == WRONG_SHAPE, outcome == AWAY)
        return Answer(request, self._arrays["actions"].copy(), compute_s)

    def close(self) -> None:
        """See PolicyRunner."""
        if self._child is not None:
            self._child.close()
        self._child, self._arrays, self._open, self._info = None, None, None, None

    def _reply(self, deadline_s: float, what: str) -> dict[str, Any]:
        assert self._child is not None
        while time.monotonic() < deadline_s:
            message = self._child.receive(min(0.2, max(deadline_s - time.monotonic(), 0.0)))
            if message is not None:
                return read_reply(message)
            if self._child.exit_code is not None:
                break
        raise DeployError(
            "policy", expected=f"its process {what} within {self._start_s:g} s",
            got=f"exit code {self._child.exit_code}" if self._child.exit_code is not None else "silence",
            hint=f"Its messages are above. start_s=... waits longer. The load average is {os.getloadavg()[0]:.1f}.",
        )  # fmt: skip


def _start_limit_s(source: PolicySource) -> float:
    builds = Runtime(source.runtime) in (Runtime.tensorrt, Runtime.auto) or source.provider == TENSORRT_PROVIDER
    return ENGINE_START_S if builds and source.onnx else START_S
