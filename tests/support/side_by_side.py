"""Threads that ask one policy at the same time, as the workers of a policy server do."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np


def wrong_answers(policy: Any, toy: Any, *, threads: int = 2, calls: int = 400) -> list[str]:
    """What went wrong when each thread asked its own shallow copy `calls` times; actions by hand are the right answer.

    Args:
        policy: of `toy`.
        toy: the fixture of tests/deploy/conftest.py.
        threads, calls: of each thread.
    """
    wrong: list[str] = []
    start = threading.Barrier(threads)

    def ask(number: int) -> None:
        mine = copy.copy(policy)
        start.wait()
        for call in range(calls):
            observation, noise = toy.observe(1 + (call + number) % 2)
            noise = noise + np.float32(number)
            try:
                actions = mine.act(observation, noise).actions
                if not np.allclose(actions, toy.by_hand(observation, noise), atol=1e-5):
                    wrong.append("the actions of another question")
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=ask, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong
