"""Progress of long loops, where their time goes, and leaving them by Ctrl-C without losing work."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)


class Progress:
    """A bar with rate and ETA when stderr is a terminal; otherwise one log line a minute.

        with Progress("imitate", total=2000) as progress:
            progress.advance(1, "loss 0.03")
            with progress.share("data"):
                ...
        progress.shares   # {"data": 1.2}, seconds

    The rate counts from the first `advance` on, so a resumed run reports its old steps there.
    """

    def __init__(
        self,
        name: str,
        *,
        total: int,
        interval_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        use_bar: bool | None = None,
    ) -> None:
        """Prepare; nothing is shown before `with`.

        Args:
            name: shown in front.
            total: number of steps, of which the resumed ones are a part.
            interval_s: seconds between log lines when there is no terminal.
            clock: seconds, monotonic.
            use_bar: None decides by whether stderr is a terminal.
        """
        self.name, self.total, self.done, self.shares = name, total, 0, dict[str, float]()
        self._interval_s, self._clock, self._use_bar = interval_s, clock, use_bar
        self._text = ""
        self._first: tuple[float, int] | None = None
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._began = self._last_line = self._clock()
        if console().is_terminal if self._use_bar is None else self._use_bar:
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        log.info("%s", self.line())

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Count `steps` more; `text` is shown behind the bar until the next one."""
        now = self._clock()
        self.done += steps
        self._first = self._first or (now, self.done)
        self._text = self._text if text is None else text
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=f"{self._rate(now):.3g}/s {self._text}")
        elif now - self._last_line >= self._interval_s:
            self._last_line = now
            log.info("%s", self.line())

    @contextmanager
    def share(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to `shares[name]`."""
        began = self._clock()
        try:
            yield
        finally:
            self.shares[name] = self.shares.get(name, 0.0) + self._clock() - began

    def line(self) -> str:
        """One line of text: count, rate, time left, text, and the named shares of the time."""
        now = self._clock()
        rate, elapsed = self._rate(now), max(now - self._began, 1e-9)
        left = f", {_duration((self.total - self.done) / rate)} left" if rate > 0 and self.done < self.total else ""
        text = f", {self._text}" if self._text else ""
        # Behind words of their own: "evaluation 0 %" alone reads as success.
        parts = ", ".join(f"{name} {100 * seconds / elapsed:.0f} %" for name, seconds in self.shares.items())
        shares = f"; of the time: {parts}" if parts else ""
        return f"{self.name} {self.done}/{self.total}, {_duration(elapsed)}, {rate:.3g}/s{left}{text}{shares}"

    def _rate(self, now: float) -> float:
        began, done = self._first or (now, self.done)
        return (self.done - done) / max(now - began, 1e-9)


@dataclass
class Stop:
    """Whether the user asked the loop to end; poll `requested` once a step."""

    requested: bool = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Turn the first Ctrl-C (SIGINT) or SIGTERM into `stop.requested`; a second one raises KeyboardInterrupt.

    The loop saves and leaves by itself. Outside the main thread, where Python allows no handlers, the flag stays False.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        log.warning("%s: finishing this step and saving; once more to stop at once", signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            # None: a handler not set from Python; it can't be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@cache
def console() -> Any:
    """The rich console on stderr that bars and log lines share, so that they do not tear each other."""
    from rich.console import Console

    return Console(stderr=True)


def _bar() -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}"),
        console=console(),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
