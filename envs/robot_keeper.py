"""Holds a robot while nobody plays it: between two decisions, when the policy takes longer than a period of commands."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from robot_rl.deploy.schedule import Clock

log = logging.getLogger(__name__)


class Keeper:
    """A thread that takes the turns nobody else takes.

    Args:
        turn: one turn of holding; it must not wait.
        due_s: when the next turn is due.
        clock: see Clock; on one that moves only by hand no time passes between decisions, and there is no thread.
        is_threaded: False: no thread.
    """

    def __init__(
        self, turn: Callable[[], None], due_s: Callable[[], float], *, clock: Clock, is_threaded: bool
    ) -> None:
        self._turn, self._due_s, self._clock = turn, due_s, clock
        self._changed = threading.Condition(threading.RLock())
        self._is_idle, self._is_closed = False, False
        self._thread = threading.Thread(target=self._run, name="robot keeper", daemon=True) if is_threaded else None
        if self._thread is not None:
            self._thread.start()

    @contextmanager
    def busy(self, *, then_hold: bool) -> Iterator[None]:
        """Somebody plays; waits for a turn that is being taken. `then_hold`: the keeper holds behind it."""
        with self._changed:
            self._is_idle = False
            self._changed.notify_all()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            with self._changed:
                # Behind an error as well somebody must hold, until the env is closed.
                self._is_idle = then_hold or not is_done
                self._changed.notify_all()

    def close(self) -> None:
        """End the thread; also twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_idle or self._is_closed)
                if self._is_closed:
                    return
                left_s = self._due_s() - self._clock.now()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                try:
                    self._turn()
                except Exception:  # somebody's own driver: the next step of the owner meets it and says so
                    log.exception("the robot can't be held")
                    self._is_idle = False
