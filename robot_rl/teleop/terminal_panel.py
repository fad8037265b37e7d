"""A session on one line of the terminal: state, what is recorded, rate, and which events would do something now."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from robot_rl.teleop.panel import EDITS, PanelEvent, SessionView


class TerminalPanel:
    """Shows, and hears nothing: keys are the device's (hardware/keyboard.py).

    Args:
        stream: to write to; None: stderr.
        period_s: between two lines in a terminal. Elsewhere a line is written when the state or the message changes.
    """

    def __init__(self, stream: TextIO | None = None, *, period_s: float = 0.2) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._period_s, self._shown_s, self._told = period_s, -1.0, ("", "")
        self._is_terminal = self._stream.isatty()

    def publish(self, view: SessionView) -> None:
        """See OperatorPanel."""
        told, now_s = (view.state, view.message), time.monotonic()
        if self._is_terminal and (now_s - self._shown_s >= self._period_s or told != self._told):
            # The last column stays free: a line that wraps can't be written over.
            self._stream.write("\r\x1b[K" + line_of(view)[: _columns() - 1])
            self._stream.flush()
            self._shown_s = now_s
        elif not self._is_terminal and told != self._told:
            self._stream.write(line_of(view) + "\n")
            self._stream.flush()
        self._told = told

    def events(self) -> list[PanelEvent]:
        """None, ever."""
        return []

    def close(self) -> None:
        """See OperatorPanel."""
        if self._is_terminal and self._shown_s >= 0:
            self._stream.write("\n")
            self._shown_s = -1.0


def line_of(view: SessionView) -> str:
    """A view in one line."""
    episode, totals, loop = view.episode, view.totals, view.loop
    parts = [f"[{view.state}]", f"{totals['saved']}/{totals['wanted']}"]
    if view.state in ("recording", "paused"):
        parts.append(f"step {episode['steps']} {episode['seconds']:.1f} s {episode['source']}")
    if episode["label"]:
        parts.append(str(episode["label"]))
    parts.append(f"{loop['achieved_hz']:.1f} Hz")
    parts.append(view.message)
    parts += [f"! {problem}" for problem in (*episode["problems"], *view.device.get("problems", ()))]
    parts += [f"limit: {', '.join(view.limits)}"] if view.limits else []
    keys = {what: key for key, what in view.device.get("help", {}).items()}
    shown = [f"{keys[event]}={event}" if event in keys else event for event in view.allowed if event not in EDITS]
    return " ".join(parts) + " | " + " ".join(shown)


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns
