"""How our nodes end: Ctrl-C and SIGTERM set an event, and the node goes down by itself.

rclpy's own handler shuts the context down wherever its executor is just then; in the middle of making a wait set that is an
RCLError and exit code 1 instead of an orderly end. And a second Ctrl-C would cut short what the first one began.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence


def init_until_signal(words: Sequence[str] | None) -> threading.Event:
    """rclpy.init without its signal handlers; the event is set by SIGINT and SIGTERM. For the main thread.

    Args:
        words: ROS arguments; None: those of the process.
    """
    import rclpy

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    options = rclpy.signals.SignalHandlerOptions.NO
    rclpy.init(args=None if words is None else list(words), signal_handler_options=options)
    return ended
