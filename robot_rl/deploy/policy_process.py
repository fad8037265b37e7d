"""The process of a policy: `python -m robot_rl.deploy.policy_process FD`, started by inference.ProcessPolicy."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import SharedArrays, parent_socket, receive
from robot_rl.deploy.inference import REQUEST
from robot_rl.deploy.policy_source import PolicySource, decide, info_of, load_policy
from robot_rl.deploy.policy_words import (
    ANSWER,
    FINE,
    TEXT_BYTES,
    PolicyInfo,
    failed,
    hello,
    layout_of,
    outcome_of,
)
from robot_rl.deploy.realtime import take_priority
from robot_rl.types import Observation

_WAIT_S = 1.0


def main(words: list[str]) -> int:
    """Load, warm up, then answer until the parent is gone.

    Args:
        words: number of the socket's file descriptor.
    """
    channel, config = parent_socket(words)
    try:
        policy = load_policy(PolicySource(**config["source"]))
        info = info_of(policy)
        channel.send(hello(info))
        arrays = _map(channel, info)
        if arrays is None:
            return 0
        took_s = [
            _answer(policy, info, arrays, (0, 0, 0, n and (info.can_continue or info.starts_warm)))
            for n in range(config["warm_up_calls"])
        ]
        fifo = take_priority(config["source"]["fifo_priority"])
        channel.send(json.dumps({"warm_up_s": took_s, "fifo": fifo}).encode())
    except Exception as error:  # whatever a policy raises while it loads must reach the parent
        channel.send(failed(error))
        return 1
    while True:
        got = receive(channel, _WAIT_S)
        if got is None:
            continue
        if len(got[0]) != REQUEST.size:
            return 0
        numbers = REQUEST.unpack(got[0])
        began, outcome, text = time.perf_counter(), FINE, b""
        try:
            _answer(policy, info, arrays, numbers)
        except Exception as error:  # the loop stops the robot; the next request may be answered
            outcome, text = outcome_of(error), f"{type(error).__name__}: {error}".encode()[:TEXT_BYTES]
        channel.send(ANSWER.pack(numbers[0], time.perf_counter() - began, outcome) + text)


def _map(channel: Any, info: PolicyInfo) -> SharedArrays | None:
    got = receive(channel, 30.0)
    if not got or not got[1]:
        return None
    arrays = SharedArrays(layout_of(info), fd=got[1][0])
    os.close(got[1][0])
    return arrays


def _answer(policy: Any, info: PolicyInfo, arrays: SharedArrays, numbers: tuple[int, ...]) -> float:
    began = time.perf_counter()
    observation = {key: arrays[f"observation/{key}"] for key in info.keys}
    observation.setdefault("proprio", np.zeros((1, info.history, 0), np.float32))
    _, episode_seed, decision, has_plan = numbers
    told = (("plan", "weights") if info.can_continue else ("plan",)) if has_plan else ()
    plan = {name: arrays[name].copy() for name in told}
    arrays["actions"][:] = decide(
        policy, Observation.from_arrays(observation), episode_seed=episode_seed, decision=decision, **plan
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
