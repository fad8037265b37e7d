"""What a control loop asks of the machine, and what it was given: no garbage collection, real-time priority, no swapping.

Nothing here is needed to run, and none of it is taken for granted: every wish is answered with whether it was fulfilled.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_MCL_CURRENT, _MCL_FUTURE = 1, 2  # Linux, mman.h


@dataclass(frozen=True)
class RealtimeConfig:
    """What is asked for.

    Attributes:
        freeze_gc: collect once, then move everything out of the collector's sight and turn it off.
        fifo_priority: SCHED_FIFO priority 1..99 of this thread; None: the system's usual scheduling.
        lock_memory: mlockall: no page of this process is swapped out, now or later.
        cpus: CPUs that this process may use; (): all it has.
    """

    freeze_gc: bool = True
    fifo_priority: int | None = 80
    lock_memory: bool = True
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Grant:
    """Answer to one wish.

    Attributes:
        wish: "gc frozen", "SCHED_FIFO 80", "mlockall", "CPUs 2,3".
        is_granted: whether it holds now.
        detail: why not, and what helps; "" when granted.
    """

    wish: str
    is_granted: bool
    detail: str = ""


@contextmanager
def realtime(config: RealtimeConfig) -> Iterator[tuple[Grant, ...]]:
    """Ask for everything in `config` while the block runs, then put the process back as it was. Raises nothing.

    The priority holds for the calling thread and is not handed to child processes.
    """
    with ExitStack() as undo:
        grants = []
        if config.cpus:
            grants.append(_asked(f"CPUs {','.join(map(str, config.cpus))}", lambda: _pin(config.cpus, undo)))
        if config.lock_memory:
            grants.append(_asked("mlockall", lambda: _lock_memory(undo)))
        if config.fifo_priority is not None:
            priority = config.fifo_priority
            grants.append(_asked(f"SCHED_FIFO {priority}", lambda: _fifo(priority, undo)))
        if config.freeze_gc:
            grants.append(_asked("gc frozen", lambda: _freeze_gc(undo)))
        yield tuple(grants)


def take_priority(priority: int | None) -> str:
    """SCHED_FIFO for the calling thread and for good; returns what came of it, for people. None: not asked for."""
    if priority is None:
        return "not asked for"
    return as_text((_asked(f"SCHED_FIFO {priority}", lambda: _fifo(priority, ExitStack())),))


def as_text(grants: tuple[Grant, ...]) -> str:
    """One line for a log."""
    return (
        "; ".join(f"{g.wish}: {'yes' if g.is_granted else f'NO ({g.detail})'}" for g in grants) or "nothing asked for"
    )


def _asked(wish: str, take: Callable[[], None]) -> Grant:
    try:
        take()
    except (OSError, AttributeError, ValueError) as error:
        return Grant(wish, False, f"{error}; see ulimit -r and -l, or CAP_SYS_NICE and CAP_IPC_LOCK")
    return Grant(wish, True)


def _freeze_gc(undo: ExitStack) -> None:
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    undo.callback(gc.enable if was_on else gc.disable)
    undo.callback(gc.unfreeze)


def _fifo(priority: int, undo: ExitStack) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    undo.callback(os.sched_setscheduler, 0, *before)


def _lock_memory(undo: ExitStack) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    undo.callback(libc.munlockall)


def _pin(cpus: tuple[int, ...], undo: ExitStack) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    undo.callback(os.sched_setaffinity, 0, before)
