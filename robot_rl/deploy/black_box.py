"""The last seconds of every step, in shared memory; a process of its own writes them as MCAP at each stop and episode end.

The loop copies one row of numbers a step and never opens a file. As the rows lie in shared memory, the process also writes
them when the loop was killed. A file appears whole or not at all; when there is no room, that is said and nothing else
changes. Foxglove reads the files: JSON with a schema, `/black_box/step` to plot and `/black_box/log` for what happened.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.deploy.child_process import Child, SharedArrays
from robot_rl.deploy.policy_words import read_reply
from robot_rl.deploy.robot_card import CommandKind, RobotCard
from robot_rl.deploy.safety import Reason
from robot_rl.errors import DeployError
from robot_rl.types import Goal, Reading

log = logging.getLogger("robot_rl.black_box")

STEP_TOPIC, LOG_TOPIC = "/black_box/step", "/black_box/log"
# Columns of a row, one number each; `number` counts from 1 and is written last.
_SINGLE = (
    "number", "monotonic_s", "slot", "skipped", "late_s", "age_s", "latency_s", "request", "index", "reasons",
)  # fmt: skip


@dataclass(frozen=True)
class StepRecord:
    """One step of the loop.

    Attributes:
        slot, skipped, late_s: see schedule.Slot.
        monotonic_s: when it began.
        reading: what was measured.
        age_s: of the stream that used most of its threshold.
        action: as the policy gave it, float32 (A,); None when none was due.
        request, index: of that action; -1 without.
        goal: what the action means; None without.
        sent: what the robot was sent.
        reasons: why `sent` is not `goal`.
        latency_s: from the capture that the action answers to until it was sent; NaN without a new answer.
    """

    slot: int
    skipped: int
    late_s: float
    monotonic_s: float
    reading: Reading
    age_s: float
    action: Any
    request: int
    index: int
    goal: Goal | None
    sent: Goal
    reasons: Reason
    latency_s: float


@dataclass(frozen=True)
class BlackBoxConfig:
    """What is kept.

    Attributes:
        folder: of the files; made when it is missing.
        seconds: of the past in a file.
        at_episode_end: whether to write one for an episode without a stop too.
        start_s: how long its process may take to start.
    """

    folder: str
    seconds: float = 30.0
    at_episode_end: bool = True
    start_s: float = 30.0


def columns_of(card: RobotCard, *, action_size: int) -> dict[str, tuple[int, int]]:
    """Name -> first and behind-last column of a row."""
    is_joint = card.command.is_joint
    joints = len(card.joints)
    goal = joints if is_joint else 7 if card.command is CommandKind.pose else 6
    sizes = dict.fromkeys(_SINGLE, 1) | {
        "action": action_size, "goal": goal, "goal_gripper": 1, "sent": goal, "sent_gripper": 1,
        "position": joints, "velocity": joints, "pose": 7, "gripper": 1, "wrench": 6,
    }  # fmt: skip
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: (end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def layout_of(columns: Mapping[str, tuple[int, int]], rows: int) -> list[tuple[str, tuple[int, ...], str]]:
    """Shared memory of a ring: rows, and how many were ever written."""
    return [("rows", (rows, max(end for _, end in columns.values())), "float64"), ("count", (1,), "int64")]


class BlackBox:
    """The loop's side; see the text of this module.

    Args:
        config: see BlackBoxConfig.
        card: of the robot.
        action_size: A.

    Raises:
        DeployError: its process does not start: mcap is not installed, or the folder can't be written.
    """

    def __init__(self, config: BlackBoxConfig, card: RobotCard, *, action_size: int) -> None:
        self.config, self.columns = config, columns_of(card, action_size=action_size)
        rows = math.ceil(config.seconds * card.control_hz) + 1
        memory = SharedArrays(layout_of(self.columns, rows))
        self._rows, self._count = memory["rows"], memory["count"]
        self._waiting = 0
        about = {"robot": card.name, "joints": list(card.joints), "command": card.command.value}
        plain = {"folder": config.folder, "columns": self.columns, "rows": rows, "about": about}
        self._child = Child("robot_rl.deploy.black_box_process", plain, fds=[memory.fd])
        try:
            self._wait_until_ready()
        except BaseException:
            self._child.close()
            raise
        finally:
            memory.close_fd()

    def _wait_until_ready(self) -> None:
        if (message := self._child.first_message(self.config.start_s)) is not None:
            read_reply(message)
            return
        raise DeployError(
            "black box", expected=f"its process within {self.config.start_s:g} s", got=f"exit code {self._child.exit_code}",
            hint="Its messages are above. To run without a black box, leave it out by name.",
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    def add(self, record: StepRecord) -> None:
        """Keep one step over the oldest; some microseconds, and never a file."""
        number = int(self._count[0]) + 1
        row = self._rows[number % len(self._rows)]
        row[:] = np.nan
        single = (
            math.nan, record.monotonic_s, record.slot, record.skipped, record.late_s, record.age_s, record.latency_s,
            record.request, record.index, int(record.reasons),
        )  # fmt: skip
        row[: len(_SINGLE)] = single
        reading, goal = record.reading, record.goal
        self._put(row, "action", record.action)
        for name, told in (("goal", goal), ("sent", record.sent)):
            if told is not None:
                self._put(row, name, next((v for v in (told.position, told.pose, told.twist) if v is not None), None))
                self._put(row, f"{name}_gripper", told.gripper)
        for name in ("position", "velocity", "pose", "gripper", "wrench"):
            self._put(row, name, getattr(reading, name))
        row[0] = number
        self._count[0] = number

    def _put(self, row: np.ndarray, name: str, value: Any) -> None:
        """As much of a value as fits: one of a wrong size is why the robot stops, and no reason to fail here."""
        if value is None:
            return
        first, end = self.columns[name]
        flat = np.asarray(value, np.float64).ravel()[: end - first]
        row[first : first + len(flat)] = flat

    def write(self, reasons: Reason, what: str) -> None:
        """Have the last seconds written; returns at once.

        Args:
            reasons: why the robot stopped; none at the end of an episode.
            what: happened, for people.
        """
        self._waiting += self._child.send(json.dumps({"reasons": int(reasons), "what": what[:1000]}).encode())

    def written(self, wait_s: float = 0.0) -> list[tuple[Path | None, str]]:
        """Files written since the last call, as (path, ""), and failures as (None, why).

        Args:
            wait_s: how long to wait for those asked for and not yet written.
        """
        found: list[tuple[Path | None, str]] = []
        deadline_s = time.monotonic() + wait_s
        while self._waiting:
            message = self._child.receive(min(max(deadline_s - time.monotonic(), 0.0), 0.1))
            if message is not None:
                reply = json.loads(message)
                self._waiting -= 1
                found.append((Path(reply["path"]), "") if "path" in reply else (None, reply["failed"]))
            elif self._child.exit_code is not None:
                found.append((None, f"the black box's process ended with exit code {self._child.exit_code}"))
                self._waiting = 0
            elif time.monotonic() >= deadline_s:
                break
        return found

    def close(self) -> None:
        """End its process, after what it was asked to write."""
        self._child.send(b"{}")
        self._child.close(grace_s=10.0)


def read_black_box(path: Path) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Steps, log lines and facts of a file.

    Raises:
        DeployError: mcap is not installed, or this is no such file.
    """
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
    except ModuleNotFoundError as error:
        raise DeployError(
            str(path), expected="mcap to read it", got=str(error), hint="pip install 'robot-rl[ros2]'."
        ) from error
    try:
        with path.open("rb") as stream:
            reader = make_reader(stream)
            messages = [(channel.topic, json.loads(message.data)) for _, channel, message in reader.iter_messages()]
            facts = {key: value for entry in reader.iter_metadata() for key, value in entry.metadata.items()}
    except (OSError, McapError, ValueError) as error:
        raise DeployError(str(path), expected="a black box", got=str(error), hint="Is it the right file?") from error
    steps = [plain for topic, plain in messages if topic == STEP_TOPIC]
    return steps, [plain["message"] for topic, plain in messages if topic == LOG_TOPIC], facts
