"""What a control loop is made of and how it is set up; control_loop.py runs it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from robot_rl.arrays import Array
from robot_rl.deploy.black_box import BlackBox, StepRecord
from robot_rl.deploy.execution import ChunkRule, Execution
from robot_rl.deploy.realtime import RealtimeConfig
from robot_rl.deploy.schedule import Clock, MonotonicClock
from robot_rl.deploy.targets import Target
from robot_rl.deploy.watchdog import Heart
from robot_rl.types import Goal, Reading


@runtime_checkable
class Targets(Protocol):
    """Reads actions of a policy as goals of a robot; targets.ActionReader."""

    def read(self, action: Array, *, reading: Reading, sent: Goal | None) -> Target:
        """What an action asks for; `sent` is what the robot was sent last in this episode."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs; what belongs to the robot stands in its card.

    Attributes:
        wait_s: how long a slot waits for the answer to its own observation; None: half a period of commands.
        execution: what is played while the policy computes (execution.py, docs/chunks.md): async, sync, ensemble or rtc.
        chunks: its numbers: every, blend_steps, decay, guidance.
        late_s: how long an answer may be late while the rest of the old chunk is followed; None: thresholds.observation_s.
        rest_s: longest braking before the robot's own stop.
        write_s: how long the end of an episode waits for the black box.
        stop_without_log: whether a black box that can't be written ends the work. The robot holds by then.
        realtime: see RealtimeConfig.
    """

    wait_s: float | None = None
    execution: Execution = Execution.asynchronous
    chunks: ChunkRule = field(default_factory=ChunkRule)
    late_s: float | None = None
    rest_s: float = 2.0
    write_s: float = 5.0
    stop_without_log: bool = False
    realtime: RealtimeConfig = field(default_factory=RealtimeConfig)


@dataclass(frozen=True)
class LoopParts:
    """What may stand beside a loop; closed by the caller, after the loop.

    Attributes:
        heart: a watchdog; None: nobody looks after the loop, and the log says so.
        black_box: None: nothing is kept.
        observer: called with every step after its command was sent; it must be quick.
        clock: see Clock.
    """

    heart: Heart | None = None
    black_box: BlackBox | None = None
    observer: Callable[[StepRecord], None] | None = None
    clock: Clock = field(default_factory=MonotonicClock)


@contextmanager
def interrupts(tell: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `tell` instead of ending the process; in the main thread only, as Python has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: tell()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
