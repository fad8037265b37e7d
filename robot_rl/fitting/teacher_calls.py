"""Asking one teacher: time-outs, retries, a cache, and where the wall time goes. Who is asked when: guided_env.py."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robot_rl.arrays import Array, Float32, Int64
from robot_rl.contracts import Teacher
from robot_rl.data.observation_digest import row_digests
from robot_rl.data.teacher_card import TeacherCard
from robot_rl.errors import ConfigError, DeployError, PolicyError
from robot_rl.types import ActionChunk, Observation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CallConfig:
    """How teachers are asked during training.

    Attributes:
        envs: asked at a step, in turn; null: all. For a slow teacher; the rest have no teacher term.
        every: env steps from one question to the next.
        cache_entries: answers kept by (digest of the observation, teacher), least used ones dropped; 0: no cache.
        timeout_s: of one call to a remote teacher; of every row of it where the teacher takes one frame a message.
        retries: further calls behind a failed or late one, of a remote teacher.
        wait_s: before the first retry; doubles with each.
    """

    envs: int | None = None
    every: int = 1
    cache_entries: int = 0
    timeout_s: float = 30.0
    retries: int = 3
    wait_s: float = 0.5

    def validate(self) -> None:
        """Raises ConfigError for a number out of range."""
        good = self.every >= 1 and (self.envs is None or self.envs >= 1) and self.cache_entries >= 0
        if not (good and self.timeout_s > 0 and self.retries >= 0 and self.wait_s >= 0):
            raise ConfigError(
                "calls", expected="envs and every of at least 1, timeout_s above 0, the others 0 or more", got=str(self),
                hint="Correct them.",
            )  # fmt: skip


class AskedTeacher:
    """A teacher, and what asking it has cost. Answers are first actions of its chunks.

    Args:
        teacher: has `history` (frames that it wants), `card` and `is_remote` as well. A remote one has `close`, which ends its
            connection even while `label` waits for it in another thread (the next `label` opens one), and `is_one_frame`:
            whether every row is a message of its own.
        config: see CallConfig.
        sleep: between retries.
        clock: seconds, monotonic.

    Attributes:
        seconds: spent waiting for it.
        calls, rows: batches and observations that it answered.
        hits: rows answered by the cache.
        retried: calls that failed and were made again.
    """

    def __init__(
        self, teacher: Teacher, config: CallConfig, *, sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        about: Any = teacher
        self.teacher, self.config, self._sleep, self._clock = teacher, config, sleep, clock
        self.card: TeacherCard = about.card
        self.history: int = about.history
        self.is_remote: bool = about.is_remote
        self.is_one_frame: bool = self.is_remote and about.is_one_frame
        self.seconds, self.calls, self.rows, self.hits, self.retried = 0.0, 0, 0, 0, 0
        self._cache: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def label(self, observation: Observation) -> Float32[Array, "N A"]:
        """Physical actions, in the order of the rows, on the CPU.

        Args:
            observation: N rows with at least `history` frames; the newest are used.

        Raises:
            DeployError: it failed or was late, and so were all retries.
            PolicyError: an answer of a wrong shape, or one that is not finite.
        """
        observation = newest_frames(observation, self.history)
        if not self.config.cache_entries:
            return self._ask(observation)
        keys = [self.card.name.encode() + digest for digest in row_digests(observation)]
        unknown = [row for row, key in enumerate(keys) if key not in self._cache]
        self.hits += len(keys) - len(unknown)
        fresh: dict[bytes, torch.Tensor] = {}
        if unknown:
            answers = self._ask(take_rows(observation, np.array(unknown, dtype=np.int64)))
            fresh = {keys[row]: answer for row, answer in zip(unknown, answers, strict=True)}
        out = torch.stack([fresh[key] if key in fresh else self._cache[key] for key in keys])
        for key in keys:
            self._cache[key] = fresh[key] if key in fresh else self._cache[key]
            self._cache.move_to_end(key)
        while len(self._cache) > self.config.cache_entries:
            self._cache.popitem(last=False)
        return out

    def close(self) -> None:
        """End its connection, where it has one."""
        if self.is_remote:
            about: Any = self.teacher
            about.close()

    def counts(self) -> dict[str, Any]:
        """Name and counts, JSON types."""
        return {
            "teacher": self.card.name, "calls": self.calls, "answers": self.rows, "cache_hits": self.hits,
            "retried": self.retried, "seconds": self.seconds,
        }  # fmt: skip

    def _ask(self, observation: Observation) -> torch.Tensor:
        began, wait = self._clock(), self.config.wait_s
        attempts = 1 + (self.config.retries if self.is_remote else 0)
        try:
            for attempt in range(attempts):
                try:
                    chunk = self._answer(observation)
                    break
                except (DeployError, OSError) as error:
                    if attempt + 1 == attempts:
                        raise DeployError(
                            f"teacher {self.card.name!r}", expected="an answer", got=f"{type(error).__name__}: {error}",
                            hint=f"It was asked {attempts} times. Look at its own log; start it again.",
                        ) from error  # fmt: skip
                    log.warning("teacher %s: %s; asked again in %.1f s", self.card.name, error, wait)
                    self.retried += 1
                    self._sleep(wait)
                    wait *= 2
        finally:
            self.seconds += self._clock() - began
        self.calls, self.rows = self.calls + 1, self.rows + len(observation.proprio)
        return self._checked(chunk, len(observation.proprio))

    def _answer(self, observation: Observation) -> ActionChunk:
        """One call; a remote one in a thread that is left alone, without its connection, when it is late."""
        if not self.is_remote:
            return self.teacher.label(observation)
        found: list[Any] = []

        def call() -> None:
            try:
                found.append(self.teacher.label(observation))
            except BaseException as error:  # handed to the thread that waits
                found.append(error)

        worker = threading.Thread(target=call, daemon=True, name=f"teacher {self.card.name}")
        worker.start()
        limit_s = self.config.timeout_s * (len(observation.proprio) if self.is_one_frame else 1)
        worker.join(limit_s)
        if not found:
            self.close()  # two threads on one connection would take each other's answers
            raise DeployError(
                f"teacher {self.card.name!r}", expected=f"an answer within {limit_s:g} s", got="none",
                hint="Ask about fewer envs (calls.envs), or raise calls.timeout_s.",
            )  # fmt: skip
        if isinstance(found[0], BaseException):
            raise found[0]
        answer: ActionChunk = found[0]
        return answer

    def _checked(self, chunk: ActionChunk, number: int) -> torch.Tensor:
        actions = torch.as_tensor(chunk.actions).detach().cpu().float()
        is_good = actions.ndim == 3 and len(actions) == number and actions.shape[2] == self.card.size
        if not is_good or not bool(torch.isfinite(actions[:, 0]).all()):
            raise PolicyError(
                f"teacher {self.card.name!r}", expected=f"finite actions (N={number}, Tp, A={self.card.size})",
                got=f"shape {tuple(actions.shape)}" + (", not all finite" if is_good else ""), hint="Run `robot-rl check teacher`.",
            )  # fmt: skip
        return actions[:, 0].clone()


def newest_frames(observation: Observation, history: int) -> Observation:
    """The last `history` frames."""
    return observation.map(lambda array: array[:, -history:])


def take_rows(observation: Observation, rows: Int64[Array, " R"]) -> Observation:
    """Rows of an observation, in this order, texts too."""
    taken = observation.map(lambda array: array[rows.tolist()])
    texts = observation.instruction
    return taken if texts is None else replace(taken, instruction=tuple(texts[row] for row in rows.tolist()))
