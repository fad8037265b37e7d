"""The watchdog's process: `python -m robot_rl.deploy.watchdog_process FD`, started by watchdog.Watchdog."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time

from robot_rl.deploy.child_process import SharedArrays, function_of, parent_socket, receive
from robot_rl.deploy.policy_words import failed
from robot_rl.deploy.realtime import take_priority
from robot_rl.deploy.watchdog import LAYOUT, Judge, ready

log = logging.getLogger("robot_rl.watchdog")


def main(words: list[str]) -> int:
    """Watch until the parent is gone and the robot needs nobody.

    Args:
        words: number of the socket's file descriptor.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a service manager ends all at once; armed, this one goes last
    channel, config = parent_socket(words)
    try:
        stop = function_of(config["stop"])(config["config"])
    except Exception as error:  # a driver may raise anything; the parent must hear of it
        channel.send(failed(error))
        return 1
    memory = SharedArrays(LAYOUT, fd=int(config["fds"][0]))
    state = {name: memory[name] for name, _, _ in LAYOUT}
    judge = Judge(config["heartbeat_s"])
    fifo = take_priority(config["fifo_priority"])
    gc.collect()
    gc.freeze()
    gc.disable()
    channel.send(ready(fifo))
    parent_is_there = True
    while parent_is_there or state["armed"][0]:
        if parent_is_there:
            got = receive(channel, config["poll_s"])
            parent_is_there = got is None or bool(got[0])
        else:
            time.sleep(config["poll_s"])
        if not judge.is_silent(state, time.monotonic()):
            if state["stopped"][0] and not parent_is_there:
                return 0
            continue
        if not state["tripped"][0]:
            state["tripped"][0] = time.monotonic()
        try:
            stop()
        except Exception:  # whatever the driver raises, the robot still moves: try again
            log.exception("the robot could not be stopped; trying again")
            continue
        state["stopped"][0] = time.monotonic()
        silent_ms = 1e3 * (state["tripped"][0] - state["beat"][0])
        log.error("the control loop was silent for %.0f ms; the robot was stopped until a person resets it", silent_ms)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
